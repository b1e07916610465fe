//! The test device's interface, as programs see it: a command of 40 bytes, and what it does by its number.

use std::ffi::CString;
use std::io;

use crate::sys;

/// How many devices there can be: 0 and 1 have private memory, 2 and 3 coherent memory.
pub(crate) const NR_DEVICES: usize = 4;
/// The first one with coherent memory.
pub(crate) const FIRST_COHERENT: usize = 2;

/// What a device can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    MigrateToDevice,
    MigrateToSystem,
    Snapshot,
    Exclusive,
    CheckExclusive,
    Release,
}

impl Command {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "dev-read",
            Self::Write => "dev-write",
            Self::MigrateToDevice => "to-dev",
            Self::MigrateToSystem => "to-sys",
            Self::Snapshot => "snapshot",
            Self::Exclusive => "exclusive",
            Self::CheckExclusive => "check-exclusive",
            Self::Release => "release",
        }
    }

    /// `_IOWR('H', number, struct of 40 bytes)`
    fn request(self) -> libc::c_ulong {
        let number = match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::MigrateToDevice => 2,
            Self::MigrateToSystem => 3,
            Self::Snapshot => 4,
            Self::Exclusive => 5,
            Self::CheckExclusive => 6,
            Self::Release => 7,
        };
        0xc028_4800 + number
    }

    /// Whether it copies pages to the caller's buffer when it succeeds.
    pub(crate) fn returns_pages(self) -> bool {
        matches!(self, Self::Read | Self::MigrateToDevice | Self::Exclusive)
    }
}

/// What goes in and out.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Cmd {
    addr: u64,
    ptr: u64,
    npages: u64,
    /// Out; [`UNTOUCHED`] if the device wrote nothing.
    pub(crate) cpages: u64,
    /// Out, likewise.
    pub(crate) faults: u64,
}

/// What the outputs are before the call.
pub(crate) const UNTOUCHED: u64 = u64::MAX;

/// An open device.
#[derive(Debug)]
pub(crate) struct Device {
    fd: libc::c_int,
}

impl Device {
    /// Opens it. From then on it mirrors the address space of the caller.
    ///
    /// # Errors
    /// The ones of open(2).
    pub(crate) fn open(number: usize) -> io::Result<Self> {
        let path = CString::new(format!("/dev/hmm_dmirror{number}"))?;
        // SAFETY: the path is a C string that outlives the call.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        sys::check(fd)?;
        Ok(Self { fd })
    }

    /// Asks for something. The buffer is what the device copies from or to; `None` is a null pointer.
    ///
    /// # Errors
    /// The ones of the device.
    pub(crate) fn ask(
        &self,
        command: Command,
        addr: u64,
        npages: usize,
        buffer: Option<&mut [u8]>,
    ) -> (io::Result<()>, Cmd) {
        let bytes_per_page = if command == Command::Snapshot { 1 } else { crate::region::PAGE };
        assert!(buffer.as_ref().is_none_or(|buffer| buffer.len() >= npages * bytes_per_page));
        let ptr = buffer.map_or(0, |buffer| buffer.as_mut_ptr().addr() as u64);
        let mut cmd = Cmd { addr, ptr, npages: npages as u64, cpages: UNTOUCHED, faults: UNTOUCHED };
        // SAFETY: the command is valid for reading and writing. The device reads and writes the program's memory only
        // within the buffer, which is exclusively ours and large enough (asserted), and within the region, of which no
        // reference is ever made.
        let ret = unsafe { libc::ioctl(self.fd, command.request(), &raw mut cmd) };
        (sys::check(ret), cmd)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and nobody uses it after this.
        unsafe { libc::close(self.fd) };
    }
}
