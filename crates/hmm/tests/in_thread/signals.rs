//! Faults in the midst of the program's signals, and `errno`.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hmm::device::{Caps, Device, DevicePfn, Fetch, Ram, Store, Transfer, Usage};

use crate::common::{MIB, space, within};
use crate::{Random, filled, lz4, pattern};

static WORDS: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
static TICKS: AtomicUsize = AtomicUsize::new(0);
static STATE: AtomicU64 = AtomicU64::new(11);
const PAGES: usize = 64 * MIB / 4096;

/// Touches a page that may be away, whatever it interrupts.
extern "C" fn on_tick(_: libc::c_int) {
    let words = WORDS.load(Ordering::Relaxed);
    let mut random = Random(STATE.load(Ordering::Relaxed));
    let page = random.below(PAGES);
    STATE.store(random.0, Ordering::Relaxed);
    // SAFETY: the region lives as long as there are ticks, and nobody writes to it.
    let word = unsafe { words.wrapping_add(page * 512 + 3).read_volatile() };
    if word != pattern(page, 0) {
        std::process::abort();
    }
    TICKS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_signal_handler_that_faults_meets_a_fault() {
    within(120, || {
        let space = space(16 * MIB, lz4());
        let region = filled(&space, 64 * MIB);
        WORDS.store(region.as_slice::<u64>().as_ptr().cast_mut(), Ordering::Relaxed);
        // SAFETY: of zeroes it is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_tick as *const () as usize;
        // SAFETY: the handler is async-signal-safe.
        assert_eq!(unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) }, 0);
        // SAFETY: gives the calling thread.
        let target = unsafe { libc::pthread_self() };
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // SAFETY: the thread lives until this one has ended.
                    unsafe { libc::pthread_kill(target, libc::SIGUSR2) };
                    std::thread::sleep(Duration::from_micros(30));
                }
            });
            let mut random = Random(2);
            let begin = Instant::now();
            while TICKS.load(Ordering::Relaxed) < 5000 && begin.elapsed() < Duration::from_secs(60) {
                let page = random.below(PAGES);
                assert_eq!(region.as_slice::<u64>()[page * 512 + 100], pattern(page, 0));
            }
            over.store(true, Ordering::Relaxed);
        });
        let ticks = TICKS.load(Ordering::Relaxed);
        assert!(ticks > 1000, "{ticks} signals");
    });
}

fn set_errno(value: i32) {
    // SAFETY: gives the place of the calling thread's `errno`.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread lives.
    unsafe { place.write(value) };
}

/// A device that makes system calls by libc, which fail.
#[derive(Debug)]
struct Careless(Ram);

impl Device for Careless {
    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.0.alloc(frames)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.0.store(run)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        set_errno(libc::ENOTTY);
        self.0.fetch(run)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.0.free(frames);
    }
}

#[test]
fn errno_stays_what_it_was() {
    within(60, || {
        let space = space(16 * MIB, Arc::new(Careless(Ram::new(64 * 1024))));
        let region = filled(&space, 64 * MIB);
        let words = region.as_slice::<u64>();
        let mut random = Random(4);
        for round in 0..20_000 {
            let page = random.below(PAGES);
            let value = 1000 + round % 100;
            set_errno(value);
            // SAFETY: a word of the region.
            let word = unsafe { std::ptr::read_volatile(&raw const words[page * 512]) };
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(value));
            assert_eq!(word, pattern(page, 0));
        }
    });
}
