//! System calls that rustix does not offer, made directly.

use std::arch::asm;

use rustix::io::Errno;

/// Smallest result that is a negated error number.
const MIN_ERROR: isize = -4095;

/// Makes a system call of up to five arguments (none needed here has six).
///
/// # Safety
/// The arguments are what the call `nr` expects, and its effects are sound.
pub(crate) unsafe fn syscall(nr: u32, args: [usize; 5]) -> Result<usize, Errno> {
    let [a, b, c, d, e] = args;
    // SAFETY: handed on to the caller.
    unsafe { any_syscall(nr as usize, [a, b, c, d, e, 0]) }
}

/// Makes any system call.
///
/// # Safety
/// The arguments are what the call `nr` expects, and its effects are sound.
///
/// # Errors
/// What the kernel says.
#[cfg(target_arch = "x86_64")]
pub unsafe fn any_syscall(nr: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let ret: isize;
    // SAFETY: the kernel's calling convention; rcx and r11 are clobbered by the instruction. Memory is assumed to be
    // read and written. The call itself is the caller's responsibility.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    decode(ret)
}

/// Makes any system call.
///
/// # Safety
/// The arguments are what the call `nr` expects, and its effects are sound.
///
/// # Errors
/// What the kernel says.
#[cfg(target_arch = "aarch64")]
pub unsafe fn any_syscall(nr: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let ret: isize;
    // SAFETY: the kernel's calling convention. Memory is assumed to be read and written. The call itself is the
    // caller's responsibility.
    unsafe {
        asm!(
            "svc 0",
            in("x8") nr,
            inlateout("x0") args[0] => ret,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    decode(ret)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("hmm-uapi makes system calls directly and knows how only on x86_64 and aarch64");

/// Tells a result from a negated error number.
pub(crate) fn decode(ret: isize) -> Result<usize, Errno> {
    #[expect(clippy::cast_possible_truncation, reason = "error numbers have twelve bits")]
    #[expect(clippy::cast_sign_loss, reason = "the values that mean an error are excluded")]
    match ret {
        MIN_ERROR..=-1 => Err(Errno::from_raw_os_error(-ret as i32)),
        value => Ok(value as usize),
    }
}
