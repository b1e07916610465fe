//! The instructions that may fault.
//!
//! The handler sets `rdx` to 1 and goes on behind the instruction. So each function has `rdx` as its flag, 0 before.

use std::arch::asm;

use super::Trapped;

/// One instruction that may fault, with its entry in the exception table: two offsets, of the instruction and of where
/// to go on, each from its own place.
macro_rules! guarded {
    ($instruction:literal, $($operands:tt)*) => {{
        let failed: u64;
        asm!(
            "2:",
            $instruction,
            "3:",
            ".pushsection hmm_soft_traps, \"aR\", @progbits",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            $($operands)*
            inout("rdx") 0_u64 => failed,
            options(nostack),
        );
        failed == 0
    }};
}

macro_rules! loads_and_stores {
    ($($value:ty, $kind:ident, $load:ident, $load_asm:literal, $store:ident, $store_asm:literal;)+) => {$(
        /// Loads a value.
        ///
        /// # Safety
        /// If there is memory at `at`, it may be read as a thread of the program would.
        #[inline(always)]
        pub(crate) unsafe fn $load(at: u64) -> Result<$value, Trapped> {
            let value: $value;
            // SAFETY: one load, allowed by the caller. If it faults, the handler has it skipped.
            let done = unsafe { guarded!($load_asm, value = out($kind) value, at = in(reg) at,) };
            if done { Ok(value) } else { Err(Trapped) }
        }

        /// Stores a value.
        ///
        /// # Safety
        /// If there is memory at `at`, it may be written as a thread of the program would.
        #[inline(always)]
        pub(crate) unsafe fn $store(at: u64, value: $value) -> Result<(), Trapped> {
            // SAFETY: one store, allowed by the caller. If it faults, the handler has it skipped.
            let done = unsafe { guarded!($store_asm, value = in($kind) value, at = in(reg) at,) };
            if done { Ok(()) } else { Err(Trapped) }
        }
    )+};
}

loads_and_stores! {
    u8, reg_byte, load_u8, "mov {value}, byte ptr [{at}]", store_u8, "mov byte ptr [{at}], {value}";
    u16, reg, load_u16, "mov {value:x}, word ptr [{at}]", store_u16, "mov word ptr [{at}], {value:x}";
    u32, reg, load_u32, "mov {value:e}, dword ptr [{at}]", store_u32, "mov dword ptr [{at}], {value:e}";
    u64, reg, load_u64, "mov {value}, qword ptr [{at}]", store_u64, "mov qword ptr [{at}], {value}";
}

macro_rules! atomics {
    ($($value:ty, $add:ident, $add_asm:literal, $swap:ident, $swap_asm:literal,
       $cas:ident, $cas_asm:literal;)+) => {$(
        /// Adds to a value, wrapping; what it was before.
        ///
        /// # Safety
        /// If there is memory at `at`, it is aligned, and may be changed atomically.
        pub(crate) unsafe fn $add(at: u64, value: $value) -> Result<$value, Trapped> {
            let before: $value;
            // SAFETY: one atomic change, allowed by the caller. If it faults, the handler has it skipped.
            let done = unsafe { guarded!($add_asm, value = inout(reg) value => before, at = in(reg) at,) };
            if done { Ok(before) } else { Err(Trapped) }
        }

        /// Replaces a value; what it was before.
        ///
        /// # Safety
        /// As for the addition.
        pub(crate) unsafe fn $swap(at: u64, value: $value) -> Result<$value, Trapped> {
            let before: $value;
            // SAFETY: as for the addition.
            let done = unsafe { guarded!($swap_asm, value = inout(reg) value => before, at = in(reg) at,) };
            if done { Ok(before) } else { Err(Trapped) }
        }

        /// Replaces a value if it is `expected`; what it was before.
        ///
        /// # Safety
        /// As for the addition.
        pub(crate) unsafe fn $cas(at: u64, expected: $value, value: $value) -> Result<$value, Trapped> {
            let before: $value;
            // SAFETY: as for the addition.
            let done = unsafe {
                guarded!($cas_asm, value = in(reg) value, at = in(reg) at, inout("rax") expected => before,)
            };
            if done { Ok(before) } else { Err(Trapped) }
        }
    )+};
}

atomics! {
    u32, add_u32, "lock xadd dword ptr [{at}], {value:e}", swap_u32, "xchg dword ptr [{at}], {value:e}",
        cas_u32, "lock cmpxchg dword ptr [{at}], {value:e}";
    u64, add_u64, "lock xadd qword ptr [{at}], {value}", swap_u64, "xchg qword ptr [{at}], {value}",
        cas_u64, "lock cmpxchg qword ptr [{at}], {value}";
}

/// Copies bytes, from the front.
///
/// # Safety
/// If there is memory at both places, the one may be read and the other written; they do not overlap.
#[inline]
pub(crate) unsafe fn copy(to: u64, from: u64, nr_bytes: u64) -> Result<(), Trapped> {
    // SAFETY: one string instruction, allowed by the caller; the ABI keeps the direction flag clear. If it faults, the
    // handler has the rest of it skipped.
    let done = unsafe {
        guarded!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") nr_bytes => _,)
    };
    if done { Ok(()) } else { Err(Trapped) }
}
