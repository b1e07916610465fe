//! SIGBUS that is not ours: each test is a process of its own, because handlers are the whole process's.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hmm::device::decorate::{Fault, Faulty, Rule, Verb, When};
use hmm::device::{DeviceError, Ram};

use crate::common::{MIB, space};
use crate::{filled, lz4, pattern};

const SIGBUS: i32 = 7;
const MCEERR_AR: i32 = 4;
const ADRERR: i32 = 2;
/// Tells a test that it is the process that it is about.
const ALONE: &str = "HMM_TEST_ALONE";

/// Runs the named test again in a process of its own, and gives how that ended: exit code, signal.
fn alone(test: &str, itself: impl FnOnce()) -> Option<(Option<i32>, Option<i32>)> {
    if std::env::var_os(ALONE).is_some() {
        itself();
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("has a name"))
        .args(["--exact", &format!("handler::{test}"), "--nocapture"])
        .env(ALONE, "1")
        .spawn()
        .expect("starts");
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("is a child") {
            return Some((status.code(), status.signal()));
        }
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("is alive");
            panic!("{test} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDR: AtomicU64 = AtomicU64::new(0);
static HELD_BACK: AtomicU64 = AtomicU64::new(0);

/// Notes what it is told. What faulted is given a page, so that it can go on.
extern "C" fn before(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's.
    let told = unsafe { &*info };
    // SAFETY: of what is sent it is not looked at.
    let (code, addr) = (told.si_code, unsafe { told.si_addr() });
    CALLS.fetch_add(1, Ordering::SeqCst);
    CODE.store(code, Ordering::SeqCst);
    ADDR.store(addr.addr() as u64, Ordering::SeqCst);
    let mut held_back = 0u64;
    let nothing = std::ptr::null::<u64>();
    // SAFETY: writes the set in force.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, nothing, &raw mut held_back, 8) };
    HELD_BACK.store(held_back, Ordering::SeqCst);
    if code > 0 {
        let page = (addr.addr() & !4095) as *mut libc::c_void;
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        // SAFETY: the page is the one that faulted, which has no bytes any more.
        unsafe { libc::mmap(page, 4096, prot, flags, -1, 0) };
    }
}

/// Installs a handler as a program would.
fn install(handler: usize, flags: libc::c_int) {
    // SAFETY: of zeroes it is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the set is ours.
    unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1) };
    // SAFETY: the handlers of these tests may be called anywhere.
    assert_eq!(unsafe { libc::sigaction(SIGBUS, &raw const action, std::ptr::null_mut()) }, 0);
}

/// A page of a file that is not that long.
fn beyond_the_end() -> *mut u8 {
    // SAFETY: makes a file without a name.
    let file = unsafe { libc::memfd_create(c"short".as_ptr(), 0) };
    assert!(file >= 0);
    // SAFETY: maps it somewhere.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, file, 0) };
    assert_ne!(place, libc::MAP_FAILED);
    place.cast()
}

fn read(place: *const u8) -> u8 {
    // SAFETY: it faults, or reads a mapped byte.
    unsafe { place.read_volatile() }
}

#[test]
fn what_is_not_ours_goes_to_the_handler_before() {
    let ended = alone("what_is_not_ours_goes_to_the_handler_before", || {
        install(before as *const () as usize, libc::SA_SIGINFO);
        let space = space(16 * MIB, lz4());
        let region = filled(&space, 64 * MIB);
        let words = region.as_slice::<u64>();
        (0..words.len() / 512).for_each(|page| assert_eq!(words[page * 512], pattern(page, 0)));
        assert_eq!(CALLS.load(Ordering::SeqCst), 0, "what is ours is served");
        let place = beyond_the_end();
        assert_eq!(read(place.wrapping_add(5)), 0);
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
        assert_eq!(CODE.load(Ordering::SeqCst), ADRERR);
        assert_eq!(ADDR.load(Ordering::SeqCst), place.addr() as u64 + 5);
        let set = |signal: i32| 1u64 << (signal - 1);
        assert_eq!(HELD_BACK.load(Ordering::SeqCst), set(SIGBUS) | set(libc::SIGUSR1), "as it was asked for");
        // SAFETY: the handler returns.
        unsafe { libc::raise(SIGBUS) };
        assert_eq!(CALLS.load(Ordering::SeqCst), 2);
        assert!(CODE.load(Ordering::SeqCst) <= 0, "sent");
        (0..words.len() / 512).for_each(|page| assert_eq!(words[page * 512], pattern(page, 0)));
    });
    assert!(ended.is_none_or(|ended| ended == (Some(0), None)), "{ended:?}");
}

#[test]
fn without_a_handler_it_is_the_end() {
    let ended = alone("without_a_handler_it_is_the_end", || {
        install(libc::SIG_DFL, 0);
        let space = space(16 * MIB, lz4());
        let region = filled(&space, MIB);
        assert!(space.evict(&region) > 0);
        assert_eq!(region.as_slice::<u64>()[512], pattern(1, 0));
        read(beyond_the_end());
    });
    assert!(ended.is_none_or(|ended| ended == (None, Some(SIGBUS))), "{ended:?}");
}

#[test]
fn a_signal_that_is_sent_ends_the_process_or_is_ignored() {
    let ended = alone("a_signal_that_is_sent_ends_the_process_or_is_ignored", || {
        install(libc::SIG_DFL, 0);
        let _space = space(16 * MIB, lz4());
        // SAFETY: it ends this process.
        unsafe { libc::raise(SIGBUS) };
        panic!("it goes on");
    });
    assert!(ended.is_none_or(|ended| ended == (None, Some(SIGBUS))), "{ended:?}");
}

#[test]
fn who_ignores_it_ignores_what_is_sent_and_nothing_else() {
    let ended = alone("who_ignores_it_ignores_what_is_sent_and_nothing_else", || {
        install(libc::SIG_IGN, 0);
        let _space = space(16 * MIB, lz4());
        // SAFETY: nothing comes of it.
        unsafe { libc::raise(SIGBUS) };
        read(beyond_the_end());
        panic!("it goes on");
    });
    assert!(ended.is_none_or(|ended| ended == (None, Some(SIGBUS))), "{ended:?}");
}

/// Fills, loses the device, and reads all.
fn read_after_loss() {
    let device = Arc::new(Faulty::new(Ram::new(64 * 1024), []));
    let space = space(16 * MIB, Arc::clone(&device) as _);
    let region = filled(&space, 64 * MIB);
    let lost = Fault::fail(DeviceError::Lost);
    device.set_plan([Rule { verb: Some(Verb::Fetch), when: When::From(0), fault: lost }]);
    let words = region.as_slice::<u64>();
    for page in 0..words.len() / 512 {
        let word = words[page * 512];
        let calls = CALLS.load(Ordering::SeqCst);
        if calls > 0 {
            // As for memory that has failed, if the kernel knows that memory can.
            assert!([MCEERR_AR, ADRERR].contains(&CODE.load(Ordering::SeqCst)));
            assert_eq!(ADDR.load(Ordering::SeqCst), (&raw const words[page * 512]).addr() as u64);
            assert_eq!(word, 0, "the handler's page");
            return;
        }
        assert_eq!(word, pattern(page, 0));
    }
    panic!("nothing was lost");
}

#[test]
fn a_lost_page_is_sigbus() {
    let ended = alone("a_lost_page_is_sigbus", read_after_loss);
    assert!(ended.is_none_or(|ended| ended == (None, Some(SIGBUS))), "{ended:?}");
}

#[test]
fn a_lost_page_is_told_to_the_handler_before() {
    let ended = alone("a_lost_page_is_told_to_the_handler_before", || {
        install(before as *const () as usize, libc::SA_SIGINFO);
        read_after_loss();
    });
    assert!(ended.is_none_or(|ended| ended == (Some(0), None)), "{ended:?}");
}

/// What a process does with its child's end.
fn ended_child(work: impl FnOnce()) -> i32 {
    // SAFETY: the child does what a signal handler may, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // Should it hang.
        // SAFETY: takes a number.
        unsafe { libc::alarm(20) };
        work();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: writes the status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

#[test]
fn the_child_of_a_fork_has_none_of_the_memory_and_its_own_sigbus() {
    let ended = alone("the_child_of_a_fork_has_none_of_the_memory_and_its_own_sigbus", || {
        install(libc::SIG_DFL, 0);
        let space = space(16 * MIB, lz4());
        let region = filled(&space, 32 * MIB);
        let words = region.as_slice::<u64>();
        let status = ended_child(|| {
            read(words.as_ptr().cast());
        });
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV, "{status:x}");
        // A file that is shorter than it is mapped, in the place where its parent's memory is.
        let status = ended_child(|| {
            // SAFETY: makes a file without a name.
            let file = unsafe { libc::memfd_create(c"short".as_ptr(), 0) };
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let place = words.as_ptr().cast_mut().cast();
            // SAFETY: nothing is mapped there in this process.
            unsafe { libc::mmap(place, 4096, libc::PROT_READ, flags, file, 0) };
            read(place.cast());
        });
        assert_eq!(libc::WTERMSIG(status), SIGBUS, "{status:x}");
        (0..words.len() / 512).for_each(|page| assert_eq!(words[page * 512], pattern(page, 0)));
    });
    assert!(ended.is_none_or(|ended| ended == (Some(0), None)), "{ended:?}");
}
