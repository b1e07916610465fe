//! The one shape of ioctl that is needed here: a struct goes in, is written to even when the call fails, and the
//! return value counts.

use std::ffi::c_void;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

struct Call<'a, T> {
    opcode: Opcode,
    arg: &'a mut T,
}

// SAFETY: `as_ptr` gives a pointer to an initialised `T` that lives through the call; whoever builds a `Call` vouches
// that the opcode takes a `T` (the contract of `call`).
unsafe impl<T> Ioctl for Call<'_, T> {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.arg).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput, Errno> {
        Ok(out)
    }
}

/// Makes the call and gives its return value.
///
/// # Safety
/// `opcode` takes a pointer to a `T`, for whatever file `fd` is, and what the call does to the memory that `arg` names
/// is sound.
pub(crate) unsafe fn call<T>(fd: impl AsFd, opcode: Opcode, arg: &mut T) -> Result<IoctlOutput, Errno> {
    // SAFETY: handed on to the caller.
    unsafe { rustix::ioctl::ioctl(fd, Call { opcode, arg }) }
}

struct Value {
    opcode: Opcode,
    value: usize,
}

// SAFETY: the argument is a number that the call does not dereference (the contract of `call_with_value`).
unsafe impl Ioctl for Value {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.value)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<IoctlOutput, Errno> {
        Ok(out)
    }
}

/// Makes a call whose argument is a number, and gives its return value.
///
/// # Safety
/// `opcode` takes a number, for whatever file `fd` is.
pub(crate) unsafe fn call_with_value(
    fd: impl AsFd,
    opcode: Opcode,
    value: usize,
) -> Result<IoctlOutput, Errno> {
    // SAFETY: handed on to the caller.
    unsafe { rustix::ioctl::ioctl(fd, Value { opcode, value }) }
}
