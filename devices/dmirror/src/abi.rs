//! What programs say to the device and hear from it: ioctl numbers, the structure, errors, and the bytes of a snapshot.

use hmm_device::MemKind;

/// Devices that there are.
pub const NR_DEVICES: u8 = 4;

/// Which device: 0 and 1 are private, 2 and 3 coherent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(u8);

impl Number {
    /// The device with this number; `None` where there is no such device.
    pub const fn new(number: u8) -> Option<Self> {
        if number < NR_DEVICES { Some(Self(number)) } else { None }
    }

    /// All devices.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..NR_DEVICES).map(Self)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// What kind of memory it has.
    pub const fn kind(self) -> MemKind {
        if self.0 < 2 { MemKind::Private } else { MemKind::Coherent }
    }
}

/// Bytes of a [`Cmd`].
pub const CMD_BYTES: usize = 40;
/// `_IOWR('H', 0, struct hmm_dmirror_cmd)`: direction, size and type of every command.
const REQUEST: u32 = 0xc028_4800;

/// The structure that comes with every command: five 64-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cmd {
    /// First byte of the memory that the command is about. A multiple of the page size.
    pub addr: u64,
    /// The caller's buffer.
    pub ptr: u64,
    /// Pages that the command is about; for [`Command::Flags`] the flags.
    pub nr_pages: u64,
    /// Out: pages that were copied, migrated or looked at.
    pub copied_pages: u64,
    /// Out: times that the device had to fault.
    pub faults: u64,
}

impl Cmd {
    /// The structure in these bytes.
    pub fn from_bytes(bytes: &[u8; CMD_BYTES]) -> Self {
        let mut words = [0; CMD_BYTES / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let [addr, ptr, nr_pages, copied_pages, faults] = words;
        Self { addr, ptr, nr_pages, copied_pages, faults }
    }

    /// The bytes of the structure.
    pub fn to_bytes(self) -> [u8; CMD_BYTES] {
        let words = [self.addr, self.ptr, self.nr_pages, self.copied_pages, self.faults];
        let mut bytes = [0; CMD_BYTES];
        for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *place = word.to_ne_bytes();
        }
        bytes
    }
}

/// What a program can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Copies memory to the buffer as the device sees it.
    Read,
    /// Copies the buffer to memory as the device would.
    Write,
    /// Migrates memory to the device, then reads it.
    MigrateToDevice,
    /// Migrates memory of the device back.
    MigrateToSystem,
    /// Tells a byte for each page, see `snapshot`, and faults nothing.
    Snapshot,
    /// Makes pages exclusive to the device, then reads them.
    Exclusive,
    /// Fails if a page is exclusive.
    CheckExclusive,
    /// Brings everything home that is in the device's memory.
    Release,
    /// Sets the mirror's flags.
    Flags,
    /// As [`Read`](Self::Read): the difference is one of locks that only the kernel has.
    ReadUnlocked,
}

impl Command {
    /// The command that an ioctl request means; `None` if it means none.
    pub const fn of_request(request: u32) -> Option<Self> {
        if request & !0xff != REQUEST {
            return None;
        }
        Some(match request & 0xff {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::MigrateToDevice,
            3 => Self::MigrateToSystem,
            4 => Self::Snapshot,
            5 => Self::Exclusive,
            6 => Self::CheckExclusive,
            7 => Self::Release,
            8 => Self::Flags,
            9 => Self::ReadUnlocked,
            _ => return None,
        })
    }
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The arguments make no sense, or the memory is of a kind that cannot be migrated.
    #[error("invalid argument: use whole pages of readable memory (EINVAL)")]
    Invalid,
    /// There is no memory at the address, or it may not be read, or the buffer cannot be used.
    #[error("bad address (EFAULT)")]
    Fault,
    /// The memory may not be written, or is exclusive.
    #[error("operation not permitted (EPERM)")]
    Permission,
    /// The device has no entry for a page.
    #[error("no such entry (ENOENT)")]
    NoEntry,
    /// The device or the system is out of memory.
    #[error("out of memory (ENOMEM)")]
    NoMemory,
    /// The memory did not stand still for long enough.
    #[error("busy (EBUSY)")]
    Busy,
    /// The memory is of a kind that cannot be exclusive.
    #[error("operation not supported (EOPNOTSUPP)")]
    Unsupported,
}

impl Failure {
    /// Linux's number for it.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Permission => 1,
            Self::NoEntry => 2,
            Self::NoMemory => 12,
            Self::Fault => 14,
            Self::Busy => 16,
            Self::Invalid => 22,
            Self::Unsupported => 95,
        }
    }
}

/// Flag: the next allocation fails.
pub(crate) const FAIL_ALLOC: u64 = 1;

/// The bytes of a snapshot: a kind, with [`READ`](snapshot::READ) or [`WRITE`](snapshot::WRITE), and the size of the
/// mapping.
pub(crate) mod snapshot {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const READ: u8 = 0x01;
    pub(crate) const WRITE: u8 = 0x02;
    pub(crate) const PMD: u8 = 0x04;
    pub(crate) const PUD: u8 = 0x08;
    pub(crate) const ZERO: u8 = 0x10;
    pub(crate) const PRIVATE_LOCAL: u8 = 0x20;
    pub(crate) const COHERENT_LOCAL: u8 = 0x40;
    pub(crate) const COHERENT_REMOTE: u8 = 0x50;
    pub(crate) const ERROR: u8 = 0xff;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_five_words_in_order() {
        let cmd = Cmd { addr: 1, ptr: 2, nr_pages: 3, copied_pages: 4, faults: u64::MAX };
        let bytes = cmd.to_bytes();
        assert_eq!(Cmd::from_bytes(&bytes), cmd);
        assert_eq!((bytes[0], bytes[8], bytes[16], bytes[24], bytes[39]), (1, 2, 3, 4, 0xff));
    }

    #[test]
    fn requests_are_those_of_linux() {
        assert_eq!(Command::of_request(0xc028_4800), Some(Command::Read));
        assert_eq!(Command::of_request(0xc028_4809), Some(Command::ReadUnlocked));
        for other in [0xc028_480a, 0xc020_4800, 0x4028_4800, 0xc028_4900, 0] {
            assert_eq!(Command::of_request(other), None, "{other:#x}");
        }
    }

    #[test]
    fn the_first_two_devices_are_private() {
        let kinds: Vec<_> = Number::all().map(Number::kind).collect();
        assert_eq!(kinds, [MemKind::Private, MemKind::Private, MemKind::Coherent, MemKind::Coherent]);
        assert_eq!(Number::new(4), None);
    }
}
