//! What an mprotect(2) changes. Most of those that programs make twice change nothing, and Linux tells no driver of them.

use std::ffi::c_int;

use hmm::core::addr::{PageRange, Vpn};
use hmm::uapi::maps::{Maps, Perms};

/// Mappings that are looked at. What is behind them counts as changed.
const MAX_MAPPINGS: usize = 16;

/// The parts of a range whose protection mprotect with this argument changes; perhaps more, never less, if nobody else is
/// changing the mappings. The kernel goes on to the first hole.
pub(crate) fn changed_parts(maps: &Maps, range: PageRange, prot: c_int) -> Vec<PageRange> {
    let Some(wanted) = perms(prot) else { return vec![range] };
    let mut parts = Vec::new();
    let mut at = range.start;
    for _ in 0..MAX_MAPPINGS {
        if at >= range.end {
            return parts;
        }
        let vma = match maps.next_vma(at.addr()) {
            Ok(Some(vma)) if vma.start <= at.addr() => vma,
            Ok(_) => return parts,
            Err(_) => break,
        };
        let end = Vpn::of_addr(vma.end).min(range.end);
        if vma.perms.difference(Perms::SHARED) != wanted {
            parts.push(PageRange { start: at, end });
        }
        at = end;
    }
    parts.push(PageRange { start: at, end: range.end });
    parts
}

/// `None` if there is more to it than what may be done.
fn perms(prot: c_int) -> Option<Perms> {
    let mut rest = prot;
    let mut perms = Perms::empty();
    for (bit, perm) in
        [(libc::PROT_READ, Perms::READ), (libc::PROT_WRITE, Perms::WRITE), (libc::PROT_EXEC, Perms::EXEC)]
    {
        perms.set(perm, prot & bit != 0);
        rest &= !bit;
    }
    (rest == 0).then_some(perms)
}

#[cfg(test)]
mod tests {
    use hmm::uapi::mapping::Mapping;

    use super::*;

    const READ: c_int = libc::PROT_READ;
    const WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
    const PAGE: usize = 4096;

    #[test]
    fn only_what_changes_is_a_part() {
        // Pages 2 and 3 may be written to; what is behind the eighth cannot be accessed.
        let mapping = Mapping::reserve(12 * PAGE).expect("addresses");
        mapping.commit(2 * PAGE, 2 * PAGE).expect("memory");
        let range = mapping.range();
        let page = |index: u64| Vpn::of_addr(range.start).add(index);
        let pages = |start, end| PageRange { start: page(start), end: page(end) };
        let maps = Maps::open().expect("procfs");
        let changed = |start, end, prot| changed_parts(&maps, pages(start, end), prot);
        assert_eq!(changed(2, 4, WRITE), []);
        assert_eq!(changed(2, 4, READ), [pages(2, 4)]);
        assert_eq!(changed(3, 4, READ), [pages(3, 4)]);
        assert_eq!(changed(0, 8, WRITE), [pages(0, 2), pages(4, 8)]);
        assert_eq!(changed(0, 8, libc::PROT_NONE), [pages(2, 4)]);
        assert_eq!(changed(2, 4, WRITE | libc::PROT_GROWSDOWN), [pages(2, 4)], "there is more to it");
    }
}
