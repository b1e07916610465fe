//! The child of a fork, whose parent may have kept memory from it.

use std::sync::atomic::Ordering;

use hmm_core::addr::{BlockId, PageRange};
use hmm_core::bits::PageSet;
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Maps, for_each_wiped_on_fork};
use rustix::io::Errno;

use crate::adopt::register_known;
use crate::messages::pages_of;
use crate::runtime::Runtime;

/// Behind the last address of a program.
const END: u64 = 1 << 47;

impl Runtime {
    /// In a child whose userfaultfd is its own, and which has all of its pages: registers our own memory. All else is to be
    /// found.
    ///
    /// # Errors
    /// What registering says.
    pub fn register_anew(&self) -> Result<(), Errno> {
        let mm = self.engine().kernel();
        // What was lent to this process is its own.
        self.engine().have_all_stay(false);
        mm.is_lent.store(false, Ordering::Relaxed);
        mm.extents().remove(pages_of(AddrRange { start: 0, end: END }));
        mm.register_own()
    }

    /// In a child whose userfaultfd has gone with its parent, while it stands still: registers all that was registered with
    /// that one, with its own. Says whether nothing is lost: whether every page that is not there is still a hole, and will be
    /// brought. One that was touched in between reads as zeroes.
    ///
    /// # Errors
    /// What registering says: `EBUSY` as long as the parent is not quite gone.
    pub fn register_alone(&self) -> Result<bool, Errno> {
        let mm = self.engine().kernel();
        mm.register_own()?;
        let mut rest = pages_of(AddrRange { start: 0, end: END });
        while let Some(extent) = mm.extents().next_in(rest.start, rest.end) {
            register_known(mm, extent)?;
            rest.start = extent.end;
        }
        let mut is_whole = true;
        let mut known: Option<(BlockId, PageSet)> = None;
        self.engine().for_each_kept(&mut |page| {
            let id = page.block();
            let (_, present) = match known {
                Some(known) if known.0 == id => known,
                _ => *known.insert((id, mm.present(id))),
            };
            is_whole &= mm.extents().covering(page).is_some() && !present.contains(page.index());
        });
        Ok(is_whole)
    }

    /// In the child, before its threads are started: forgets what the copy of the engine knows of memory that the child has
    /// not got, or that is zeroes there. Nobody has touched it yet.
    ///
    /// # Errors
    /// What reading `/proc/self` says.
    pub fn forget_what_was_withheld(&self) -> Result<(), Errno> {
        let events = self.engine().events();
        for_each_wiped_on_fork(self.engine().kernel().procfs(), &mut |range| {
            events.removed(pages_of(range))
        })?;
        let extents = self.engine().kernel().extents();
        let forget = |range: PageRange| {
            if !range.is_empty() {
                events.unmapped(range);
                extents.remove(range);
            }
        };
        let mut behind = 0;
        for vma in Maps::open_in(self.engine().kernel().procfs())?.iter_from(0) {
            let vma = vma?;
            forget(pages_of(AddrRange { start: behind, end: vma.start.min(END) }));
            behind = vma.end;
        }
        forget(pages_of(AddrRange { start: behind, end: END }));
        Ok(())
    }
}
