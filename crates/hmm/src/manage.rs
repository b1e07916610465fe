//! Taking over memory that a driver wants to migrate: exactly the pages that it names, when it first does so.
//!
//! Whoever serves faults must not stand on what is managed (I6). Refused are therefore hmm's own memory, the stacks of
//! threads that call hmm, static data (hmm's is among it), and what the program's `malloc` keeps its small blocks in,
//! unless [`Heap`] sees to it that hmm's own blocks are elsewhere. Large blocks are mappings of their own, and work.

use hmm_core::addr::PageRange;
use hmm_uapi::AddrRange;
use hmm_uapi::maps::{Perms, Vma, VmaKind};

use crate::adopt::{Found, is_manageable, wait_until_calm};
use crate::heap::Heap;
use crate::in_thread::Faults;
use crate::mm::{Mm, range_of};
use crate::runtime::Runtime;
use crate::statics;

/// glibc's secondary heaps are aligned to their size.
const ARENA_BYTES: u64 = 64 << 20;

/// Why memory cannot be managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// Nothing is mapped there, or not everywhere.
    #[error("part of the range is not mapped: give memory that the process has")]
    NotMapped,
    /// It is what hmm itself stands on.
    #[error(
        "the range holds memory of hmm itself, or the stack of a thread that calls hmm: give other memory"
    )]
    Own,
    /// hmm's own variables may be there.
    #[error("the range holds static data, hmm's own among it: give memory that was allocated")]
    StaticData,
    /// hmm's own allocations may be there.
    #[error(
        "the range is part of malloc's heap, where hmm's own allocations are, too: make `hmm::Heap` the \
         program's `#[global_allocator]`, or give a block of more than 128 KiB"
    )]
    Heap,
    /// Threads serve their own faults, and this is not memory that was allocated for that.
    #[error(
        "where threads serve their own faults (`Faults::InThread`) only memory of `AddressSpace::alloc` can be managed: give \
         some of that, or have faults served by handlers"
    )]
    InThread,
    /// The kernel refused to register some of it.
    #[error(
        "the kernel refused to register the memory: another userfaultfd has it, or it is of a kind that cannot be managed"
    )]
    Refused,
    /// Other threads unmap, move or discard memory all the time.
    #[error("the mappings of this process do not come to rest: try again")]
    Changing,
}

impl Runtime {
    /// Whether anything of a range is managed, when all events that were read are applied: who has moved memory goes on when its
    /// event is read, and may ask before.
    pub fn manages_any(&self, range: PageRange) -> bool {
        self.engine().catch_up();
        self.engine().kernel().extents().next_in(range.start, range.end).is_some()
    }

    /// Manages the pages of the range that can be and are not yet: what is private and anonymous. Pages of files and shared
    /// memory are passed over, as migration passes over them. A forked child finds pages that are away lost (SIGBUS); it has
    /// none of the memory at all (SIGSEGV) where we are not told of forks, for lack of [`Heap`] or of `CAP_SYS_PTRACE`.
    ///
    /// # Errors
    /// [`ManageError`]. Of a range that is refused nothing is registered, but for [`ManageError::Refused`].
    pub fn manage(&self, range: PageRange) -> Result<(), ManageError> {
        // What was mapped in the place of managed memory is there when its event is read, before that is applied.
        self.engine().catch_up();
        if self.engine().kernel().extents().first_gap(range).is_none() {
            return Ok(());
        }
        if self.faults == Faults::InThread {
            // Of a stack, or of malloc's blocks, a signal handler cannot serve faults.
            return Err(ManageError::InThread);
        }
        let may_use_heap = Heap::is_installed();
        for_mappings(self.engine().kernel(), range_of(range), &mut |vma, part| {
            check(self, vma, part, may_use_heap)
        })?;
        loop {
            let Found { refused, is_changing, .. } = self.take_part(range_of(range));
            if refused > 0 {
                return Err(ManageError::Refused);
            }
            if !is_changing {
                return Ok(());
            }
            if !wait_until_calm(self.engine()) {
                return Err(ManageError::Changing);
            }
        }
    }
}

/// Calls `each` for every mapping of the range with the part of it that is inside.
fn for_mappings(
    mm: &Mm,
    range: AddrRange,
    each: &mut dyn FnMut(&Vma, AddrRange) -> Result<(), ManageError>,
) -> Result<(), ManageError> {
    let mut at = range.start;
    while at < range.end {
        let Ok(Some(vma)) = mm.maps().next_vma(at) else { return Err(ManageError::NotMapped) };
        if vma.start > at {
            return Err(ManageError::NotMapped);
        }
        each(&vma, AddrRange { start: at, end: vma.end.min(range.end) })?;
        at = vma.end;
    }
    Ok(())
}

fn check(runtime: &Runtime, vma: &Vma, part: AddrRange, may_use_heap: bool) -> Result<(), ManageError> {
    if !is_manageable(vma) {
        return Ok(());
    }
    let mm = runtime.engine().kernel();
    if runtime.is_excluded(part) || crate::callers::any_stack_in(part) {
        Err(ManageError::Own)
    } else if statics::any_in(part) {
        Err(ManageError::StaticData)
    } else if !may_use_heap && (vma.kind == VmaKind::Heap || is_arena(mm, vma, part)) {
        Err(ManageError::Heap)
    } else {
        Ok(())
    }
}

/// Whether it looks like one of malloc's secondary heaps: from a multiple of its size on it can be used up to here, and
/// the rest is reserved.
fn is_arena(mm: &Mm, vma: &Vma, part: AddrRange) -> bool {
    let start = part.start & !(ARENA_BYTES - 1);
    let end = start + ARENA_BYTES;
    if start < vma.start || vma.end >= end {
        return false;
    }
    let rest = mm.maps().next_vma(vma.end).ok().flatten();
    rest.is_some_and(|rest| {
        rest.start == vma.end && rest.end >= end && !rest.perms.intersects(Perms::READ | Perms::WRITE)
    })
}
