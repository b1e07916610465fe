//! Faulting: every page of a range gets an entry.
//!
//! Linux's range fault goes through a range, and at the first page that has to be faulted it faults all that is behind in the
//! same mapping, then looks again. So a page that is in the device's own memory, and could stay there, comes home if one in
//! front of it has to be faulted. Ours leaves it where it is; programs see these devices do as Linux's do.

use std::time::Instant;

use hmm_core::addr::{PageRange, Vpn};

use crate::abi::Failure;
use crate::mirror::{BATCH_PAGES, Mirror, PATIENCE};
use crate::space::{Kind, Request, Seen, Space, Vma};
use crate::table::{Entry, Place, Table};

impl<S: Space> Mirror<S> {
    /// Gives every page of the range an entry.
    pub(crate) fn fault(&self, range: PageRange, how: Request) -> Result<(), Failure> {
        let mut seen = [Seen::default(); BATCH_PAGES];
        let mut at = range.start;
        while at < range.end {
            let batch = PageRange::new(at, BATCH_PAGES as u64).intersect(range);
            let seen = &mut seen[..usize::try_from(batch.nr_pages()).unwrap_or(BATCH_PAGES)];
            self.look(batch, Request::Snapshot, seen, |_, _| ())?;
            self.touch_behind(batch, how, seen);
            self.look(batch, how, seen, |table, seen| enter(table, batch, how, seen))??;
            at = batch.end;
        }
        Ok(())
    }

    /// Whether a page that was entered read-only is not that page any more: the CPU has written to a page of zeroes or to one that
    /// was shared after a fork, for which the kernel has made another. Nobody tells of that.
    pub(crate) fn is_outdated(&self, page: Vpn, was_zero: bool) -> bool {
        self.snapshot_of(page)
            .is_ok_and(|seen| seen.write || was_zero && seen.kind != Kind::System { zero: true })
    }

    /// What one page is now.
    pub(crate) fn snapshot_of(&self, page: Vpn) -> Result<Seen, Failure> {
        let mut seen = [Seen::default()];
        self.look(PageRange::new(page, 1), Request::Snapshot, &mut seen, |_, _| ())?;
        Ok(seen[0])
    }

    /// Looks at a batch and does something with what was seen, while that is certainly so.
    pub(crate) fn look<R>(
        &self,
        batch: PageRange,
        how: Request,
        seen: &mut [Seen],
        then: impl Fn(&mut Table, &[Seen]) -> R,
    ) -> Result<R, Failure> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let seq = self.notifier.read_begin();
            match self.space.range_fault(self.device, (&self.notifier, seq), batch, how, seen) {
                Ok(()) => {}
                Err(Failure::Busy) => continue,
                Err(failure) => return Err(failure),
            }
            if let Ok(result) = self.notifier.install(seq, |table| then(table, seen)) {
                return Ok(result);
            }
        }
        Err(Failure::Busy)
    }

    /// Where the mapping ends, with those behind it that are alike: to Linux without us they would be one.
    fn end_of_alike(&self, first: Vma) -> Vpn {
        let mut end = first.end;
        while let Some(next) = self.space.vma(end).filter(|next| Vma { end: first.end, ..*next } == first) {
            end = next.end;
        }
        end
    }

    /// Touches what is in the device's own memory behind pages that have to be faulted.
    fn touch_behind(&self, batch: PageRange, how: Request, seen: &[Seen]) {
        let mut faulted_to = batch.start;
        for (page, seen) in batch.iter().zip(seen) {
            match seen.kind {
                Kind::Private(_) if page < faulted_to => self.space.touch(page),
                Kind::Private(_) => {}
                // Faulting ends here, with an error.
                Kind::Error => return,
                Kind::None | Kind::System { .. } | Kind::Coherent(_) => {
                    let is_enough = seen.kind != Kind::None && (how != Request::Write || seen.write);
                    if page < faulted_to || is_enough {
                        continue;
                    }
                    let Some(vma) = self.space.vma(page) else { return };
                    if how == Request::Write && !vma.writable {
                        return;
                    }
                    faulted_to = self.end_of_alike(vma).min(page.block().pages().end);
                }
            }
        }
    }
}

/// Puts what was faulted into the table. A page that cannot be written though that was asked for is a quirk of device
/// frames that are shared after a fork; Linux's device fails there, too.
fn enter(table: &mut Table, batch: PageRange, how: Request, seen: &[Seen]) -> Result<(), Failure> {
    for (page, seen) in batch.iter().zip(seen) {
        let place = match seen.kind {
            Kind::System { zero } => Place::System { zero },
            Kind::Coherent(_) => Place::System { zero: false },
            Kind::Private(pfn) => Place::Frame(pfn),
            Kind::None | Kind::Error => return Err(Failure::Fault),
        };
        if how == Request::Write && !seen.write {
            return Err(Failure::Fault);
        }
        table.set(page, Entry { place, write: seen.write });
    }
    Ok(())
}
