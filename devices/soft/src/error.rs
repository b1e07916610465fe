//! What can go wrong.

use hmm_core::addr::PAGE_SIZE;
use rustix::io::Errno;

use crate::trap::TrapError;

/// Why a device could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A device of nothing.
    #[error(
        "a device has at least one unit and one page of memory ({PAGE_SIZE} bytes), and at most 2^32 pages"
    )]
    Size,
    /// Memory for the device.
    #[error(
        "cannot get memory for the device: {0}; give it less (`memory`), or raise the limit (`ulimit -v`)"
    )]
    Memory(Errno),
    /// No view of the process's mappings.
    #[error("cannot read the process's mappings: {0}; mount /proc")]
    Maps(Errno),
    /// No barriers.
    #[error(
        "the kernel has no membarrier here: {0}; a device takes entries from its units by it. If a filter of system \
         calls (seccomp) forbids it, allow it"
    )]
    Barrier(Errno),
    /// No handler.
    #[error(transparent)]
    Trap(#[from] TrapError),
    /// An access of a unit's to a page that is away would be a signal, and to the device a fault.
    #[error("the address space has `Faults::InThread`: give one whose faults are served by handlers")]
    InThread,
    /// The address space did not take the device.
    #[error("the address space did not take the device: {0}")]
    Host(String),
}

/// Why a page cannot be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// There is no memory, or none that a device may access.
    NoMapping,
    /// It may not be written.
    Permission,
    /// The system has no memory for it.
    NoMemory,
    /// The address is no multiple of the value's size.
    Misaligned,
    /// The page was there when the driver looked, and was gone when the unit accessed it, several times. The program maps
    /// and unmaps it, or its content is lost.
    Vanished,
}

impl Why {
    pub(crate) fn code(self) -> u64 {
        self as u64
    }

    pub(crate) fn of_code(code: u64) -> Self {
        let all = [Self::NoMapping, Self::Permission, Self::NoMemory, Self::Misaligned, Self::Vanished];
        all.into_iter().find(|why| why.code() == code).unwrap_or(Self::NoMapping)
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NoMapping => {
                "there is no memory that a device may access; give the kernel a pointer to a mapping"
            }
            Self::Permission => "the mapping is read-only",
            Self::NoMemory => "the system has no memory for the page",
            Self::Misaligned => "the address is no multiple of the value's size",
            Self::Vanished => "the page is unmapped again and again, or its content is lost",
        }
    }
}

/// A fault that cannot be served: the kernel's access did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device could not {} address {addr:#x}: {}", if *write { "write" } else { "read" }, why.text())]
pub struct DeviceFault {
    /// What was to be accessed.
    pub addr: u64,
    /// Whether it was to be written.
    pub write: bool,
    /// Why it was not.
    pub why: Why,
}

/// Why a launch ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A unit's fault that cannot be served. The first of them; the other units ran on.
    #[error(transparent)]
    Fault(#[from] DeviceFault),
    /// The handler that makes it safe to access the program's memory is gone.
    #[error(transparent)]
    Trap(#[from] TrapError),
    /// No threads for the units.
    #[error("cannot start a thread for a unit: {0}")]
    Thread(std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        for why in [Why::NoMapping, Why::Permission, Why::NoMemory, Why::Misaligned, Why::Vanished] {
            assert_eq!(Why::of_code(why.code()), why);
        }
    }
}
