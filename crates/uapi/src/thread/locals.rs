//! Thread-locals of one library in raw threads: what Rust's panics count with.
//!
//! Code of a library finds its thread-locals through the *dtv*, a table of the thread's that the thread pointer's second word
//! points to (Drepper, "ELF Handling For Thread-Local Storage"; the entries are glibc's):
//!
//! ```text
//!  dtv[-1]    dtv[0]       dtv[1] ..           dtv[module]
//!  | length   | generation | not allocated ..  | address of the library's block | nothing to free
//! ```
//!
//! The table says that it is newer than anything that is loaded later, and longer than any module's number: libc never makes it
//! longer, which would take memory of the program's. Every other library's thread-locals are "not allocated": touching one of them
//! has libc allocate, which a raw thread must not.

use std::ptr::NonNull;

/// Entries of the table, but for the first two.
const MODULES: usize = 62;
/// Bytes of the table, and of the library's block behind it.
const TABLE_BYTES: usize = (MODULES + 2) * size_of::<Entry>();
const BLOCK_BYTES: usize = 1024;
/// Bytes that a thread needs for both.
pub(super) const LOCALS_BYTES: usize = TABLE_BYTES + BLOCK_BYTES;
/// What both are aligned to.
const ALIGN: usize = 64;

/// An entry of the table: a word, and one more for libc.
type Entry = [usize; 2];

/// "Not allocated", as glibc writes it.
const UNALLOCATED: Entry = [usize::MAX, 0];

/// The thread-locals of a library, as it wants them to be when a thread begins.
#[derive(Clone, Copy, Debug)]
pub struct Locals {
    /// The library's number among those that have thread-locals, as the dynamic linker counts them.
    pub module: usize,
    /// Their first values.
    pub image: &'static [u8],
    /// Bytes that they have, with the zeroes behind the image.
    pub len: usize,
    /// What they are aligned to.
    pub align: usize,
}

impl Locals {
    /// Whether a raw thread has room for them.
    pub const fn fit(&self) -> bool {
        self.module >= 1
            && self.module <= MODULES
            && self.image.len() <= self.len
            && self.len <= BLOCK_BYTES
            && self.align <= ALIGN
    }

    /// Writes table and block, and gives the table's address. `None`: they do not fit.
    ///
    /// # Safety
    /// So many bytes ([`LOCALS_BYTES`]) from `at` are the caller's, zeroed and aligned to [`ALIGN`].
    pub(super) unsafe fn write(&self, at: NonNull<u8>) -> Option<NonNull<u8>> {
        if !self.fit() {
            return None;
        }
        // SAFETY: the block lies behind the table in the caller's bytes.
        let block = unsafe { at.add(TABLE_BYTES) };
        // SAFETY: the image fits into the block, and is not part of it.
        unsafe { block.copy_from_nonoverlapping(NonNull::from(self.image).cast(), self.image.len()) };
        let mut table = [UNALLOCATED; MODULES + 2];
        table[0] = [MODULES, 0];
        table[1] = [usize::MAX, 0];
        table[self.module + 1] = [block.as_ptr().expose_provenance(), 0];
        let entries = at.cast::<Entry>();
        // SAFETY: the table lies at the front of the caller's bytes.
        unsafe { entries.cast().write(table) };
        // SAFETY: it has more than one entry.
        Some(unsafe { entries.add(1) }.cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Locals = Locals { module: 7, image: &[1, 2, 3], len: 40, align: 8 };

    #[repr(align(64))]
    struct Room([u8; LOCALS_BYTES]);

    #[test]
    fn the_table_leads_to_a_block_with_the_first_values() {
        let mut room = Room([0; LOCALS_BYTES]);
        let at = NonNull::from(&mut room.0).cast();
        // SAFETY: all of it is this test's.
        let table = unsafe { GIVEN.write(at) }.unwrap().cast::<Entry>();
        assert_eq!(table.cast(), at.cast::<Entry>().map_addr(|at| at.saturating_add(size_of::<Entry>())));
        // SAFETY: the table is where the room is.
        let entries: [Entry; MODULES + 2] = unsafe { at.cast().read() };
        assert_eq!(entries[0][0], MODULES);
        for (module, entry) in entries[1..].iter().enumerate().skip(1) {
            assert_eq!(entry[1], 0, "libc frees nothing of it");
            assert_eq!(entry[0] == usize::MAX, module != GIVEN.module, "module {module}");
        }
        let block = std::ptr::with_exposed_provenance::<[u8; 40]>(entries[1 + GIVEN.module][0]);
        // SAFETY: that is where the block is.
        let block = unsafe { block.read() };
        assert_eq!((&block[..3], &block[3..]), (GIVEN.image, &[0; 37][..]));
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let others = [
            Locals { module: 0, ..GIVEN },
            Locals { module: MODULES + 1, ..GIVEN },
            Locals { len: BLOCK_BYTES + 1, ..GIVEN },
            Locals { len: 2, ..GIVEN },
            Locals { align: 128, ..GIVEN },
        ];
        assert!(GIVEN.fit() && Locals { module: MODULES, len: BLOCK_BYTES, align: 64, ..GIVEN }.fit());
        for locals in others {
            let mut room = Room([0; LOCALS_BYTES]);
            // SAFETY: all of it is this test's.
            assert_eq!(unsafe { locals.write(NonNull::from(&mut room.0).cast()) }, None, "{locals:?}");
            assert_eq!(room.0, [0; LOCALS_BYTES]);
        }
    }
}
