//! The child of a fork: what it has of what its parent had.

use std::sync::atomic::Ordering;

use hmm_core::addr::{BlockId, PAGE_SIZE, PageRange, Vpn};
use hmm_core::bits::PageSet;
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Perms, Vma, VmaKind, for_each_wiped_on_fork};
use rustix::io::Errno;

use crate::adopt::{for_parts_outside, is_manageable, register_known};
use crate::messages::pages_of;
use crate::mm::Mm;
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

    /// In the child, before its threads are started: what the copy of the engine knows of memory that the child has not got,
    /// and what it does not know of. `has_own`: the child's own userfaultfd is here, as the kernel made it. What was
    /// [excluded](Self::set_exclude) is nobody's.
    ///
    /// # Errors
    /// What reading the mappings says; `EAGAIN`: they are changing.
    pub fn inherited(&self, has_own: bool) -> Result<Inherited, Errno> {
        let mm = self.engine().kernel();
        let exclude = self.excluded();
        let mut inherited = Inherited { gone: vec![], more: More::Nothing };
        let mut behind = Vpn(0);
        for vma in mm.maps().iter_from(0) {
            let vma = vma?;
            let is_here = if has_own { is_registered(mm, &vma)? } else { is_manageable(&vma) };
            if !is_here || vma.start >= END {
                continue;
            }
            inherited.is_gone(PageRange { start: behind, end: Vpn::of_addr(vma.start) });
            behind = Vpn::of_addr(vma.end);
            if has_own {
                for_parts_outside(vma.range(), &exclude, &mut |part| inherited.has_come(mm, pages_of(part)));
            }
        }
        inherited.is_gone(PageRange { start: behind, end: Vpn::of_addr(END) });
        exclude.iter().for_each(|ours| inherited.is_gone(pages_of(*ours)));
        Ok(inherited)
    }

    /// Forgets what this process has not got.
    pub fn forget_gone(&self, inherited: &Inherited) {
        let events = self.engine().events();
        for range in &inherited.gone {
            events.unmapped(*range);
            self.engine().kernel().extents().remove(*range);
        }
    }

    /// Forgets what is known of memory that is not registered.
    pub fn forget_unregistered(&self) {
        let events = self.engine().events();
        let mut rest = pages_of(AddrRange { start: 0, end: END });
        while let Some(gap) = self.engine().kernel().extents().first_gap(rest) {
            events.unmapped(gap);
            rest.start = gap.end;
        }
    }

    /// In the child, before its threads are started: forgets what is zeroes there, by the program's wish. Nobody has touched it
    /// yet.
    ///
    /// # Errors
    /// What reading `/proc/self/smaps` says.
    pub fn forget_wiped(&self) -> Result<(), Errno> {
        let events = self.engine().events();
        for_each_wiped_on_fork(self.engine().kernel().procfs(), &mut |range| events.removed(pages_of(range)))
    }
}

/// What there is in the child of a fork, compared with what the engine's copy knows.
#[derive(Debug)]
pub struct Inherited {
    gone: Vec<PageRange>,
    more: More,
}

/// Registered memory that the engine's copy does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum More {
    /// None.
    Nothing,
    /// There is more of mappings that are known in part: they have grown in place, or something has moved there.
    Behind,
    /// Something has moved to where nothing is known. Bytes of it may be where the engine does not look for them.
    Elsewhere,
}

impl Inherited {
    /// What there is to know of nothing.
    pub const NOTHING: Self = Self { gone: vec![], more: More::Nothing };

    /// What there is more than the engine's copy knows.
    pub const fn more(&self) -> More {
        self.more
    }

    fn is_gone(&mut self, range: PageRange) {
        if !range.is_empty() {
            self.gone.push(range);
        }
    }

    /// Takes note of a registered mapping.
    fn has_come(&mut self, mm: &Mm, mapping: PageRange) {
        let extents = mm.extents();
        if extents.first_gap(mapping).is_some() {
            let is_known = extents.next_in(mapping.start, mapping.end).is_some();
            self.more = self.more.max(if is_known { More::Behind } else { More::Elsewhere });
        }
    }
}

/// Whether a mapping is registered.
fn is_registered(mm: &Mm, vma: &Vma) -> Result<bool, Errno> {
    if !matches!(vma.kind, VmaKind::Anonymous | VmaKind::Heap) || vma.perms.contains(Perms::SHARED) {
        return Ok(false);
    }
    // All of it is, or nothing. To lift the protection of a page where no device has a copy changes nothing.
    match mm.uffd().write_protect(AddrRange::new(vma.start, PAGE_SIZE as u64), false) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN) => Err(Errno::AGAIN),
        Err(_) => Ok(false),
    }
}
