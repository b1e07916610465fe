//! Raw threads run Rust code that knows nothing of libc's threads.
//!
//! Their first functions are not instrumented by AddressSanitizer: before a call that does not return, as that of
//! `exit_thread`, it would ask libc for the stack of a thread that libc does not know. ThreadSanitizer's runtime has its notes of
//! a thread in the thread's local storage, and those of raw threads have none that it has prepared.
#![cfg(all(target_arch = "x86_64", not(thread_sanitizer)))]
#![cfg_attr(address_sanitizer, feature(sanitize))]

mod common;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::ptr::NonNull;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

    use hmm_uapi::sys::{self, Scope};
    use hmm_uapi::thread::{MIN_TLS_BYTES, RawThread, Spawn, clone_thread, exit_thread};
    use hmm_uapi::uffd::{CopyMode, Event, EventBuffer, Features, Modes};
    use hmm_uapi::{Errno, Mapping};

    use crate::common::*;

    const STACK: usize = 64 * PAGE;

    /// A thread with its memory.
    struct Running {
        thread: RawThread,
        memory: Mapping,
    }

    impl Running {
        fn start<T: Sync>(
            entry: unsafe extern "C" fn(*mut u8) -> !,
            arg: &'static T,
            share_files: bool,
        ) -> Self {
            let memory = Mapping::anonymous(STACK + MIN_TLS_BYTES).unwrap();
            let stack = NonNull::new(memory.as_ptr()).unwrap();
            // SAFETY: inside of the mapping.
            let tls = unsafe { stack.add(STACK) };
            let spawn =
                Spawn { stack, stack_len: STACK, tls, tls_len: MIN_TLS_BYTES, share_files, locals: None };
            // SAFETY: the memory is the thread's alone and kept until it has ended; the entry points of these tests
            // expect what they are given, and use no thread-locals.
            let thread =
                unsafe { clone_thread(&spawn, entry, std::ptr::from_ref(arg).cast_mut().cast()) }.unwrap();
            Self { thread, memory }
        }

        fn join(self) {
            assert!(self.thread.join(LIMIT), "the thread hangs");
            drop(self.memory);
        }
    }

    fn leak<T>(value: T) -> &'static T {
        Box::leak(Box::new(value))
    }

    #[derive(Default)]
    struct Shared {
        sum: Mutex<u64>,
        tid: AtomicI32,
        signals: AtomicU64,
        go: AtomicU32,
        stray: AtomicI32,
        errno_at: AtomicUsize,
    }

    #[cfg_attr(address_sanitizer, sanitize(address = "off"))]
    extern "C" fn count(arg: *mut u8) -> ! {
        // SAFETY: the test gives a `Shared` that lives for ever.
        let shared = unsafe { &*arg.cast::<Shared>() };
        shared.tid.store(sys::gettid(), Ordering::Relaxed);
        while shared.go.load(Ordering::Acquire) == 0 {
            let _ = sys::futex_wait(&shared.go, Scope::Private, 0, None);
        }
        for _ in 0..100_000 {
            *shared.sum.lock().unwrap() += 1;
        }
        exit_thread()
    }

    #[test]
    fn locks_are_shared_with_ordinary_threads() {
        let _turn = one_at_a_time();
        let shared: &'static Shared = leak(Shared::default());
        let threads = [(); 3].map(|()| Running::start(count, shared, true));
        assert!(threads.iter().all(|running| !running.thread.has_exited()));
        shared.go.store(1, Ordering::Release);
        sys::futex_wake(&shared.go, Scope::Private, u32::MAX);
        for _ in 0..100_000 {
            *shared.sum.lock().unwrap() += 1;
        }
        let tids = threads.each_ref().map(|running| running.thread.tid());
        threads.into_iter().for_each(Running::join);
        assert_eq!(*shared.sum.lock().unwrap(), 400_000);
        assert!(tids.contains(&shared.tid.load(Ordering::Relaxed)));
        assert_eq!(sys::tgkill(sys::getpid(), tids[0], 0), Err(Errno::SRCH));
    }

    /// Reads the mask of blocked signals from procfs, without allocating.
    fn blocked_signals() -> Option<u64> {
        let status = rustix::fs::open(
            c"/proc/thread-self/status",
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        )
        .ok()?;
        let mut text = [0; 4096];
        let len = rustix::io::read(&status, &mut text).ok()?;
        let key = b"SigBlk:\t";
        let at = text[..len].windows(key.len()).position(|window| window == key)? + key.len();
        u64::from_str_radix(str::from_utf8(text.get(at..at + 16)?).ok()?, 16).ok()
    }

    #[cfg_attr(address_sanitizer, sanitize(address = "off"))]
    extern "C" fn look_around(arg: *mut u8) -> ! {
        // SAFETY: the test gives a `Shared` that lives for ever.
        let shared = unsafe { &*arg.cast::<Shared>() };
        shared.signals.store(blocked_signals().unwrap_or(0), Ordering::Relaxed);
        // A call that goes through libc and fails writes to the thread-local `errno`: ours.
        // SAFETY: closes nothing.
        let failed = unsafe { libc::close(-1) };
        // SAFETY: gives the calling thread's place.
        let place = unsafe { libc::__errno_location() };
        shared.errno_at.store(place.addr(), Ordering::Relaxed);
        // SAFETY: the place is the calling thread's.
        let errno = unsafe { *place };
        shared.stray.store(if failed == -1 { errno } else { 0 }, Ordering::Relaxed);
        exit_thread()
    }

    #[test]
    fn signals_are_blocked_and_stray_errors_land_in_its_own_storage() {
        let _turn = one_at_a_time();
        let before = blocked_signals();
        let shared: &'static Shared = leak(Shared::default());
        let running = Running::start(look_around, shared, true);
        let storage = running.memory.range();
        running.join();
        assert!(storage.contains(shared.errno_at.load(Ordering::Relaxed) as u64));
        // All but SIGKILL (9) and SIGSTOP (19).
        let expected = !(1u64 << 8 | 1 << 18);
        assert_eq!(shared.signals.load(Ordering::Relaxed), expected);
        assert_eq!(shared.stray.load(Ordering::Relaxed), libc::EBADF);
        assert_eq!(blocked_signals(), before, "the caller's mask comes back");
    }

    struct Server {
        memory: Managed,
        source: Mapping,
        served: AtomicU32,
    }

    #[cfg_attr(address_sanitizer, sanitize(address = "off"))]
    extern "C" fn serve(arg: *mut u8) -> ! {
        // SAFETY: the test gives a `Server` that lives for ever.
        let server = unsafe { &*arg.cast::<Server>() };
        let mut buffer = EventBuffer::new();
        while server.served.load(Ordering::Relaxed) < 3 {
            let Ok(events) = server.memory.uffd.read_events(&mut buffer) else { continue };
            for event in events {
                let Event::Fault { addr, .. } = event else { continue };
                let src = server.source.range().start;
                if server.memory.uffd.copy(src, addr, PAGE as u64, CopyMode::empty()).is_complete() {
                    server.served.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        exit_thread()
    }

    #[test]
    fn serves_faults_with_descriptors_of_its_own() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 3) else { return };
        memory.uffd.set_nonblocking(false).unwrap();
        let server = leak(Server { memory, source: filled(1, 5), served: AtomicU32::new(0) });
        let running = Running::start(serve, server, false);
        for index in 0..3 {
            assert_eq!(read(server.memory.page(index)).get(), 5);
        }
        running.join();
        assert_eq!(server.served.load(Ordering::Relaxed), 3);
    }

    struct Table {
        fd: AtomicI32,
        closed: AtomicU32,
        result: AtomicI32,
    }

    #[cfg_attr(address_sanitizer, sanitize(address = "off"))]
    extern "C" fn use_descriptor(arg: *mut u8) -> ! {
        // SAFETY: the test gives a `Table` that lives for ever.
        let table = unsafe { &*arg.cast::<Table>() };
        while table.closed.load(Ordering::Acquire) == 0 {
            let _ = sys::futex_wait(&table.closed, Scope::Private, 0, None);
        }
        // SAFETY: the number was a descriptor when the thread was made, and is one of its own table still, or of none.
        let fd = unsafe { rustix::fd::BorrowedFd::borrow_raw(table.fd.load(Ordering::Relaxed)) };
        let result = rustix::io::fcntl_getfd(fd).map_or_else(Errno::raw_os_error, |_| 0);
        table.result.store(result, Ordering::Relaxed);
        exit_thread()
    }

    #[test]
    fn its_descriptors_survive_the_programs_closing() {
        let _turn = one_at_a_time();
        for (share_files, expected) in [(false, 0), (true, Errno::BADF.raw_os_error())] {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let fd = rustix::io::fcntl_dupfd_cloexec(writer.as_fd(), 700).unwrap();
            let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
            let table = leak(Table {
                fd: AtomicI32::new(number),
                closed: AtomicU32::new(0),
                result: AtomicI32::new(-1),
            });
            let running = Running::start(use_descriptor, table, share_files);
            drop((fd, reader, writer));
            table.closed.store(1, Ordering::Release);
            sys::futex_wake(&table.closed, Scope::Private, 1);
            running.join();
            assert_eq!(table.result.load(Ordering::Relaxed), expected, "share_files: {share_files}");
        }
    }

    #[test]
    fn refuses_memory_that_does_not_do() {
        let memory = Mapping::anonymous(STACK + MIN_TLS_BYTES).unwrap();
        let start = NonNull::new(memory.as_ptr()).unwrap();
        let good = Spawn {
            stack: start,
            stack_len: STACK,
            tls: start,
            tls_len: MIN_TLS_BYTES,
            share_files: true,
            locals: None,
        };
        // SAFETY: inside of the mapping.
        let skewed = unsafe { start.add(8) };
        let bad = [
            Spawn { stack_len: 64, ..good },
            Spawn { tls_len: PAGE, ..good },
            Spawn { tls_len: MIN_TLS_BYTES + 8, ..good },
            Spawn { tls: skewed, ..good },
        ];
        for spawn in bad {
            // SAFETY: it starts no thread.
            let refused = unsafe { clone_thread(&spawn, count, std::ptr::null_mut()) };
            assert_eq!(refused.map(drop), Err(Errno::INVAL));
        }
    }
}
