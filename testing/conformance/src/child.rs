//! Children of tests, which access memory, make system calls, and end.

/// A child, as of `fork(2)`. Under ThreadSanitizer without libc: the sanitizer's runtime holds its locks while libc forks, and the
/// fork ends when a handler, which needs them, has heard of it.
///
/// # Panics
/// If there can be none.
///
/// # Safety
/// The child accesses memory and makes system calls, and ends by one.
pub unsafe fn fork() -> i32 {
    let child = if cfg!(thread_sanitizer) {
        // SAFETY: the caller's; without a stack and flags it is a fork.
        i32::try_from(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }).unwrap_or(-1)
    } else {
        // SAFETY: the caller's.
        unsafe { libc::fork() }
    };
    assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    child
}

/// Runs `look` while a child shares all private memory with us.
///
/// # Panics
/// If there can be none.
pub fn with_child(look: impl FnOnce()) {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the child makes system calls only.
    let child = unsafe { fork() };
    if child == 0 {
        let mut byte = 0u8;
        // SAFETY: as above; it returns when the parent has closed its end.
        unsafe { libc::close(ends[1]) };
        // SAFETY: writes a byte.
        unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) };
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    look();
    for end in ends {
        // SAFETY: ours.
        unsafe { libc::close(end) };
    }
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
}

/// In a child: what a signal does from here on is the kernel's, and ends the process. A handler of the runtime's, of a sanitizer's
/// before all, may map memory, and the place of what is not in the child is a good one for it: its zeroes would be read.
///
/// # Panics
/// If the kernel refuses.
pub fn end_by_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // As the kernel knows it: all zero is what it does by itself, and no signal is blocked.
        let by_default = [0u64; 4];
        let (action, none) = (by_default.as_ptr(), std::ptr::null_mut::<u64>());
        // SAFETY: the kernel reads the action, and writes nothing. No handler is needed in this process any more.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action, none, size_of::<u64>()) };
        assert_eq!(result, 0, "rt_sigaction");
    }
}
