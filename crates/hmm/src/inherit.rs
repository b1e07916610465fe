//! The child of a fork, whose parent may have kept memory from it.

use hmm_core::addr::PageRange;
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Maps, for_each_wiped_on_fork};
use rustix::io::Errno;

use crate::messages::pages_of;
use crate::runtime::Runtime;

/// Behind the last address of a program.
const END: u64 = 1 << 47;

impl Runtime {
    /// In the child, before its threads are started: forgets what the copy of the engine knows of memory that the child has
    /// not got, or that is zeroes there. Nobody has touched it yet.
    ///
    /// # Errors
    /// What reading `/proc/self` says.
    pub fn forget_what_was_withheld(&self) -> Result<(), Errno> {
        let events = self.engine().events();
        for_each_wiped_on_fork(&mut |range| events.removed(pages_of(range)))?;
        let extents = self.engine().kernel().extents();
        let forget = |range: PageRange| {
            if !range.is_empty() {
                events.unmapped(range);
                extents.remove(range);
            }
        };
        let mut behind = 0;
        for vma in Maps::open()?.iter_from(0) {
            let vma = vma?;
            forget(pages_of(AddrRange { start: behind, end: vma.start.min(END) }));
            behind = vma.end;
        }
        forget(pages_of(AddrRange { start: behind, end: END }));
        Ok(())
    }
}
