//! Access to the program's memory that may not be there any more.
//!
//! A unit accesses a system page in place, at its own address. The program may unmap it at the same moment, and hmm hears
//! of that only afterwards: userfaultfd's messages of munmap and mremap come when the mapping is gone, and those that
//! change a protection do not come at all. The access then faults for good, and the kernel sends SIGSEGV, or SIGBUS for a
//! page that is lost. A device must not end the process by that; it has a device fault.
//!
//! So every instruction that accesses such a page is written here, in assembly, and notes its address and where to go on
//! if it faults, in a section of its own of the executable: the exception table. A handler for both signals, installed
//! once, looks the faulting instruction up. If it is in the table, the thread goes on at the fix-up with a flag set. If
//! it is not, the fault is none of ours, and goes to the handler that was there before, or does what the system would
//! have done.
//!
//! A program that installs a handler of its own later has to pass on what it does not know, as this one does. If it does
//! not, everything works but for one case: memory that is unmapped while a unit is accessing it ends the process, as it
//! does for a thread of the program. [`Installed::check`] tells whether ours is in place, and every launch of a kernel asks.
//!
//! Faults of userfaultfd are no signals: the access waits until the page is there. That is why no unit is inside an access
//! window here (I6): see `tlb`.

use std::sync::OnceLock;

use rustix::io::Errno;

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
use x86_64 as arch;
#[cfg(not(target_arch = "x86_64"))]
compile_error!("the software accelerator accesses system pages by x86_64 instructions only");

mod handler;

pub(crate) use arch::{add_u32, add_u64, cas_u32, cas_u64, copy, swap_u32, swap_u64};
pub(crate) use arch::{load_u8, load_u16, load_u32, load_u64, store_u8, store_u16, store_u32, store_u64};

/// The access faulted, and did nothing; a copy may have done a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trapped;

/// Why accesses cannot be made safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrapError {
    /// The kernel refused the handler.
    #[error("cannot install a handler for SIGSEGV and SIGBUS: {0}")]
    Refused(Errno),
    /// Another handler has taken the place of ours.
    #[error(
        "another handler for SIGSEGV or SIGBUS was installed: memory that the program unmaps while a device accesses \
         it would end the process; have that handler installed before the device is built"
    )]
    Replaced,
}

/// The handler is installed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installed(());

impl Installed {
    /// Whether the handler is still in place.
    pub(crate) fn check(self) -> Result<(), TrapError> {
        if handler::in_place() { Ok(()) } else { Err(TrapError::Replaced) }
    }
}

/// Installs the handler, at the first call.
///
/// # Errors
/// See [`TrapError`].
pub(crate) fn install() -> Result<Installed, TrapError> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    DONE.get_or_init(handler::install).map_err(TrapError::Refused)?;
    Ok(Installed(()))
}

/// Lets both signals reach the calling thread: the kernel ends a process that blocks them and faults.
pub(crate) fn unblock() {
    handler::unblock();
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_core::addr::PAGE_SIZE;
    use hmm_uapi::mapping::Mapping;

    fn addr_of<T>(value: &T) -> u64 {
        std::ptr::from_ref(value).expose_provenance() as u64
    }

    #[test]
    fn what_is_there_is_accessed() {
        install().unwrap();
        let value = std::sync::atomic::AtomicU64::new(40);
        let at = addr_of(&value);
        // SAFETY: an aligned value of ours, accessed atomically.
        assert_eq!(unsafe { add_u64(at, 2) }, Ok(40));
        // SAFETY: as above.
        assert_eq!(unsafe { cas_u64(at, 42, 50) }, Ok(42));
        // SAFETY: as above.
        assert_eq!(unsafe { cas_u64(at, 42, 60) }, Ok(50));
        // SAFETY: as above.
        assert_eq!(unsafe { swap_u64(at, 1) }, Ok(50));
        // SAFETY: as above.
        assert_eq!(unsafe { store_u32(at, 9) }, Ok(()));
        // SAFETY: as above.
        assert_eq!(unsafe { load_u64(at) }, Ok(9));
    }

    #[test]
    fn what_is_not_there_is_noticed() {
        install().unwrap();
        let gone = Mapping::reserve(2 * PAGE_SIZE).unwrap();
        let at = gone.range().start;
        let mut buffer = [0_u8; 16];
        let to = buffer.as_mut_ptr().expose_provenance() as u64;
        for _ in 0..100 {
            // SAFETY: inaccessible memory: nothing is accessed.
            assert_eq!(unsafe { load_u8(at) }, Err(Trapped));
            // SAFETY: as above.
            assert_eq!(unsafe { store_u64(at, 1) }, Err(Trapped));
            // SAFETY: as above.
            assert_eq!(unsafe { add_u32(at, 1) }, Err(Trapped));
            // SAFETY: as above.
            assert_eq!(unsafe { cas_u64(at, 1, 1) }, Err(Trapped));
            // SAFETY: as above; the destination is ours.
            assert_eq!(unsafe { copy(to, at, 16) }, Err(Trapped));
        }
        // A copy that begins well: the second page is not accessible.
        gone.commit(0, PAGE_SIZE).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { copy(to, at, 16) }, Ok(()));
        // SAFETY: as above; what lies behind the first page is inaccessible.
        assert_eq!(unsafe { copy(to, at + PAGE_SIZE as u64 - 8, 16) }, Err(Trapped));
        assert!(install().unwrap().check().is_ok());
    }
}
