//! Ranges that are not one mapping any more, because the program has changed the protection of a part: no event tells of that,
//! and the kernel refuses a verb that crosses the border.

use hmm_core::addr::PageRange;
use hmm_core::kernel::{Progress, Stop};
use hmm_uapi::maps::Maps;

/// Does a verb on a range, and where that is refused on the mappings in it, one after the other. The verb is told how many pages
/// of the range are in front of those that it is to do.
pub(crate) fn by_mappings(
    maps: &Maps,
    range: PageRange,
    verb: impl Fn(usize, PageRange) -> Progress,
) -> Progress {
    let Progress { mut done, mut stop } = verb(0, range);
    let mut tried = range;
    while stop == Some(Stop::Unsuited) {
        let rest = PageRange { start: range.start.add(done as u64), end: range.end };
        let Ok(Some(vma)) = maps.next_vma(rest.start.addr()) else { break };
        let piece = PageRange::of_bytes(vma.start, vma.end).intersect(rest);
        if piece.is_empty() || piece.start != rest.start || piece == tried {
            break;
        }
        tried = piece;
        let progress = verb(done, piece);
        done += progress.done;
        stop = progress.stop;
        if progress.done as u64 == piece.nr_pages() {
            stop = (piece.end < range.end).then_some(Stop::Unsuited);
        }
    }
    Progress { done, stop }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use hmm_core::addr::Vpn;
    use hmm_uapi::Mapping;

    use super::*;

    const PAGE: usize = 4096;

    /// What is asked for of ten pages, of which those from 2 to 4 and from 4 to 7 are mappings of their own, from `first` on.
    fn asked(first: u64, verb: impl Fn(u64, u64) -> Progress) -> (Vec<(u64, u64)>, Progress) {
        let mapping = Mapping::reserve(10 * PAGE).expect("addresses");
        mapping.commit(2 * PAGE, 5 * PAGE).expect("memory");
        let range = mapping.range();
        let start = Vpn::of_addr(range.start);
        let part = hmm_uapi::AddrRange::new(start.add(4).addr(), 3 * PAGE as u64);
        // SAFETY: nobody accesses the memory.
        unsafe { hmm_uapi::sys::mprotect(part, hmm_uapi::maps::Perms::READ) }.expect("protects");
        let calls = RefCell::new(Vec::new());
        let maps = Maps::open().expect("procfs");
        let pages = PageRange { start: start.add(first), end: start.add(7) };
        let progress = by_mappings(&maps, pages, |done, piece| {
            assert_eq!(piece.start, pages.start.add(done as u64));
            let (from, to) = (piece.start.0 - start.0, piece.end.0 - start.0);
            calls.borrow_mut().push((from, to));
            verb(from, to)
        });
        (calls.into_inner(), progress)
    }

    fn all(from: u64, to: u64) -> Progress {
        Progress { done: usize::try_from(to - from).expect("few"), stop: None }
    }

    #[test]
    fn where_it_is_refused_it_goes_by_mappings() {
        let refused = Progress { done: 0, stop: Some(Stop::Unsuited) };
        let crosses = |from, to| from < 4 && to > 4;
        let verb = |from, to| if crosses(from, to) { refused } else { all(from, to) };
        let (calls, progress) = asked(2, verb);
        assert_eq!((calls, progress), (vec![(2, 7), (2, 4), (4, 7)], Progress { done: 5, stop: None }));
        let (calls, progress) = asked(2, |from, to| if from < 4 { verb(from, to) } else { refused });
        assert_eq!((calls.len(), progress), (3, Progress { done: 2, stop: Some(Stop::Unsuited) }));
        let (calls, progress) = asked(4, |_, _| refused);
        assert_eq!((calls.len(), progress), (1, refused), "it is one mapping");
        let busy = Progress { done: 1, stop: Some(Stop::Busy) };
        let (calls, progress) = asked(2, |from, to| if from < 4 { verb(from, to) } else { busy });
        assert_eq!((calls.len(), progress), (3, Progress { done: 3, stop: Some(Stop::Busy) }));
        let (calls, progress) = asked(2, |_, _| busy);
        assert_eq!((calls.len(), progress), (1, busy), "it is not refused");
    }
}
