//! Getting a userfaultfd: by the device node, or by the system call.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};

use linux_raw_sys::general::{O_CLOEXEC, O_NONBLOCK, S_IFMT, UFFD_USER_MODE_ONLY};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;

use super::Userfaultfd;
use crate::fd::Fd;
use crate::ioc;

/// `USERFAULTFD_IOC_NEW`, which the bindings lack: number 0 of userfaultfd's ioctls.
const IOC_NEW: u32 = rustix::ioctl::opcode::none(super::IOC_GROUP, 0);

/// What the kernel calls a userfaultfd.
const NAME: &[u8] = b"anon_inode:[userfaultfd]";

/// Whose faults a userfaultfd serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The program's and the kernel's on its behalf: system calls that touch a page that is away wait for it.
    Full,
    /// The program's own only: system calls that touch a page that is away fail with `EFAULT`. Needs no privilege.
    UserModeOnly,
}

/// Why there is no userfaultfd to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The kernel lacks it, or a filter says so.
    #[error(
        "this kernel has no userfaultfd (userfaultfd(2): ENOSYS); use one built with CONFIG_USERFAULTFD=y, or lift the \
         seccomp filter that hides the call"
    )]
    Missing,
    /// Faults of the kernel are not ours to serve.
    #[error(
        "no permission for a userfaultfd that serves system calls (/dev/userfaultfd: {device}; userfaultfd(2): \
         {syscall}); an administrator can allow it with `setfacl -m u:<user>:rw /dev/userfaultfd` (for good: the udev \
         rule KERNEL==\"userfaultfd\", GROUP=\"<group>\", MODE=\"0660\"), with `sysctl vm.unprivileged_userfaultfd=1`, \
         or by granting CAP_SYS_PTRACE; in a container pass the device (`--device /dev/userfaultfd`); without any of \
         these, user-mode-only access works for programs whose system calls never touch pages that are away"
    )]
    Denied {
        /// What opening the device node said.
        device: Errno,
        /// What the system call said.
        syscall: Errno,
    },
    /// Even what needs no privilege is forbidden.
    #[error(
        "userfaultfd is forbidden here, even for user-mode faults (/dev/userfaultfd: {device}; userfaultfd(2): \
         {syscall}): a seccomp filter or security module blocks it; allow the call in the container's seccomp profile \
         or pass it /dev/userfaultfd"
    )]
    Forbidden {
        /// What opening the device node said.
        device: Errno,
        /// What the system call said.
        syscall: Errno,
    },
    /// Something else: no descriptors or no memory left.
    #[error(
        "cannot create a userfaultfd ({errno}): the process or the system is out of descriptors or memory; raise the \
         limit (`ulimit -n`) or free some"
    )]
    Exhausted {
        /// What the kernel said.
        errno: Errno,
    },
}

/// The device node, open: with it any process can [open](Userfaultfd::open_by_node) a userfaultfd.
///
/// # Errors
/// `ENOENT`: there is none. `EACCES`: it is not for this user.
pub fn open_node() -> Result<Fd, Errno> {
    rustix::fs::open(c"/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(Fd::from)
}

impl Userfaultfd {
    /// Opens one for this address space: by `/dev/userfaultfd`, else by `userfaultfd(2)`. Closed on exec, and reading
    /// it does not wait. It serves nothing before [`enable`](Self::enable).
    ///
    /// # Errors
    /// [`OpenError`] says what is missing and who can grant it.
    pub fn open(access: Access) -> Result<Self, OpenError> {
        let device = match Self::open_by_device(access) {
            Ok(opened) => return Ok(opened),
            Err(errno) => errno,
        };
        Self::open_by_syscall(access).map_err(|syscall| match (syscall, access) {
            (Errno::NOSYS, _) => OpenError::Missing,
            (Errno::PERM | Errno::ACCESS, Access::Full) => OpenError::Denied { device, syscall },
            (Errno::PERM | Errno::ACCESS, Access::UserModeOnly) => OpenError::Forbidden { device, syscall },
            (errno, _) => OpenError::Exhausted { errno },
        })
    }

    fn open_by_device(access: Access) -> Result<Self, Errno> {
        Self::open_by_node(open_node()?, access)
    }

    /// Opens one for this address space by an open [device node](open_node), whoever has opened that. Otherwise as
    /// [`open`](Self::open).
    ///
    /// # Errors
    /// `ENOTTY`: it is not that node. `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn open_by_node(node: impl AsFd, access: Access) -> Result<Self, Errno> {
        let mut flags = O_CLOEXEC | O_NONBLOCK;
        if access == Access::UserModeOnly {
            flags |= UFFD_USER_MODE_ONLY;
        }
        // SAFETY: the opcode takes flags, and only makes a descriptor.
        let fd = unsafe { ioc::call_with_value(&node, IOC_NEW, flags as usize) }?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self::from_fd(unsafe { Fd::from_raw_fd(fd) }))
    }

    /// Takes a descriptor over that a stranger has sent, if it is a userfaultfd. Calls of it do nothing to anything else then.
    pub fn of_stranger(fd: Fd) -> Option<Self> {
        // Files that have neither a type nor a directory are the kernel's own, and this is the name of ours.
        let has_type = rustix::fs::fstat(&fd).map_or(true, |stat| stat.st_mode & S_IFMT != 0);
        let mut path = [0u8; 40];
        write!(&mut path[..], "/proc/self/fd/{}\0", fd.as_raw_fd()).ok()?;
        let mut name = [0u8; NAME.len() + 1];
        let path = CStr::from_bytes_until_nul(&path).ok()?;
        let len = rustix::fs::readlinkat_raw(CWD, path, &mut name[..]).ok()?;
        (!has_type && name.get(..len) == Some(NAME)).then(|| Self::from_fd(fd))
    }

    fn open_by_syscall(access: Access) -> Result<Self, Errno> {
        let mut flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        if access == Access::UserModeOnly {
            flags |= UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        }
        // SAFETY: the call only makes a descriptor; what can be done with it is guarded by `register` and `move`.
        let fd = unsafe { rustix::mm::userfaultfd(flags) }?;
        Ok(Self::from_fd(Fd::from(fd)))
    }
}
