//! The small system calls.

mod common;

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use hmm_uapi::mapping::Advice;
    use hmm_uapi::sys::{self, IoVec, Scope, SignalsBlocked};
    use hmm_uapi::{AddrRange, Errno, Fd};

    use crate::common::*;

    fn blocked() -> [bool; 3] {
        // SAFETY: an empty set is valid.
        let mut set = unsafe { std::mem::zeroed() };
        // SAFETY: reads the mask into the set.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
        let is_blocked = |signal| {
            // SAFETY: it is a signal, and the set is valid.
            unsafe { libc::sigismember(&raw const set, signal) == 1 }
        };
        [libc::SIGINT, libc::SIGUSR1, libc::SIGBUS].map(is_blocked)
    }

    #[test]
    fn signals_are_blocked_for_a_while() {
        let before = blocked();
        let guard = SignalsBlocked::new();
        assert_eq!(blocked(), [true, true, true]);
        drop(guard);
        assert_eq!(blocked(), before);
        assert_eq!(before, [false, false, false]);
        let guard = SignalsBlocked::but_for_faults();
        assert_eq!(blocked(), [true, true, false]);
        drop(guard);
        assert_eq!(blocked(), before);
    }

    #[test]
    fn signals_can_stay_blocked() {
        let after = std::thread::spawn(|| {
            SignalsBlocked::new().keep();
            blocked()
        });
        assert_eq!(after.join().unwrap(), [true, true, true]);
    }

    #[test]
    fn futexes_wait_wake_and_time_out() {
        for scope in [Scope::Private, Scope::Shared] {
            let word = Arc::new(AtomicU32::new(1));
            assert_eq!(sys::futex_wait(&word, scope, 2, None), Err(Errno::AGAIN));
            let short = Some(Duration::from_millis(1));
            assert_eq!(sys::futex_wait(&word, scope, 1, short), Err(Errno::TIMEDOUT));
            assert_eq!(sys::futex_wake(&word, scope, u32::MAX), 0);
            let waiter = elsewhere({
                let word = Arc::clone(&word);
                move || {
                    while word.load(Ordering::Acquire) == 1 {
                        let _ = sys::futex_wait(&word, scope, 1, None);
                    }
                }
            });
            // Woken with the word unchanged it waits again.
            let start = Instant::now();
            while sys::futex_wake(&word, scope, u32::MAX) == 0 {
                assert!(start.elapsed() < LIMIT, "nobody can be woken");
            }
            assert!(waiter.is_waiting());
            word.store(0, Ordering::Release);
            sys::futex_wake(&word, scope, u32::MAX);
            waiter.get();
        }
    }

    #[test]
    fn threads_have_a_cpu_a_name_and_an_id() {
        std::thread::spawn(|| {
            let cpus = sys::affinity(None).unwrap();
            for cpu in (0..64).filter(|cpu| cpus.is_set(*cpu)) {
                let mut one = cpus;
                one.clear();
                one.set(cpu);
                sys::set_affinity(Some(sys::gettid()), &one).unwrap();
                assert_eq!(sys::current_cpu(), cpu);
            }
            sys::set_thread_name(c"a-name").unwrap();
            let comm = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(comm, "a-name\n");
            assert_eq!(sys::tgkill(sys::getpid(), sys::gettid(), 0), Ok(()));
            assert_eq!(sys::tgkill(sys::getpid(), i32::MAX, 0), Err(Errno::SRCH));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn descriptors_come_from_processes_and_go_in_ranges() {
        let pidfd = sys::pidfd_open(sys::getpid()).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let copy = sys::pidfd_getfd(&pidfd, writer.as_raw_fd()).unwrap();
        rustix::io::write(&copy, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte), Ok(1));
        assert!(matches!(sys::pidfd_getfd(&pidfd, 1 << 20), Err(Errno::BADF)));

        // Far above what other tests of this process open.
        let far = rustix::io::fcntl_dupfd_cloexec(&copy, 900).unwrap().into_raw_fd();
        let first = u32::try_from(far).unwrap();
        // SAFETY: the descriptor was given up above, and nobody else's is there.
        unsafe { sys::close_range(first, first + 10) }.unwrap();
        assert!(matches!(sys::pidfd_getfd(&pidfd, far), Err(Errno::BADF)));
        // SAFETY: it fails.
        assert_eq!(unsafe { sys::close_range(2, 1) }, Err(Errno::INVAL));
    }

    #[test]
    fn a_descriptor_is_closed_on_drop_only() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let writer = Fd::from(std::os::fd::OwnedFd::from(Fd::from(writer)));
        rustix::io::write(&writer, b"x").unwrap();
        let mut bytes = [0; 2];
        assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(1));
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(0));
    }

    #[test]
    fn advice_reaches_many_runs_at_once() {
        let memory = filled(5, 1);
        let base = memory.as_ptr().expose_provenance();
        let runs = [IoVec::new(base, PAGE), IoVec::new(base + 3 * PAGE, 2 * PAGE)];
        let pidfd = sys::pidfd_open(sys::getpid()).unwrap();
        // SAFETY: nobody refers to the test's memory.
        match unsafe { sys::process_madvise(&pidfd, &runs, Advice::DontNeed) } {
            Ok(nr_bytes) => assert_eq!(nr_bytes, 3 * PAGE),
            Err(Errno::INVAL) => return eprintln!("SKIPPED: no process_madvise(DONTNEED) before Linux 6.13"),
            Err(errno) => panic!("{errno}"),
        }
        let bytes = [0, 1, 2, 3, 4].map(|page| peek(&memory, page));
        assert_eq!(bytes, [0, 2, 3, 0, 0]);
    }

    #[test]
    fn populating_changes_no_byte() {
        let memory = filled(2, 1);
        memory.advise(PAGE, PAGE, Advice::DontNeed).unwrap();
        sys::populate_write(memory.range()).unwrap();
        let bytes = [0, 1].map(|page| peek(&memory, page));
        assert_eq!(bytes, [1, 0]);
        assert_eq!(sys::populate_write(AddrRange::new(0, PAGE as u64)), Err(Errno::NOMEM));
        // SAFETY: nobody refers to the test's memory.
        unsafe { sys::madvise(memory.range(), Advice::DontNeed) }.unwrap();
        assert_eq!(peek(&memory, 0), 0);
    }
}
