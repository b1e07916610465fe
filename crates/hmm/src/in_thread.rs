//! Faults that are served in the thread that has them: no message, no handler to wake, no thread to switch to.
//!
//! The kernel raises SIGBUS instead of sending a message (`UFFD_FEATURE_SIGBUS`), and the signal's handler
//! ([`sigbus`](crate::sigbus)) does what a handler thread would. What makes that safe in a signal handler:
//!
//! - Only memory of [`AddressSpace::alloc`](crate::AddressSpace::alloc) is managed. So what is interrupted is code that touches
//!   such memory, at that very instruction; it is not `malloc`, and not the engine, which never touches managed memory (I6).
//! - Serving a fault allocates nothing, if the device does not: states and queues are made when memory is allocated
//!   ([`Engine::prepare`](hmm_core::Engine::prepare)).
//! - No lock is held when the handler waits, and it waits no longer than a moment: then the access faults again. Signals
//!   that came meanwhile are handled in between.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use hmm_core::addr::Vpn;
use hmm_core::kernel::Kernel;
use hmm_core::state::PageState;
use hmm_uapi::mapping::{Advice, Mapping};
use rustix::io::Errno;

use crate::heap::Inside;
use crate::runtime::{Attempt, Pending, RETRY_PAUSE_NS, Runtime, Touch, pause};

/// Who serves faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Faults {
    /// Threads of hmm's. The thread that faults sleeps until its page is there; so do system calls.
    #[default]
    Handlers,
    /// The thread that faults, in a handler of SIGBUS. Where a page comes quickly (memory that is compressed) this takes a
    /// fraction of the time, because nobody has to be woken. The price:
    ///
    /// - System calls do not wait. One that is given a pointer to a page that is away fails with `EFAULT`:
    ///   [`AddressSpace::pin`](crate::AddressSpace::pin) what system calls work on.
    /// - The process has a handler of SIGBUS. What is not hmm's goes on to the one that was there when the first such space was
    ///   built. Who installs another one later has to pass on what it does not know.
    /// - A thread that blocks SIGBUS, and touches a page that is away, ends the process. So does one with less than 64 KiB
    ///   of its stack left, perhaps.
    /// - Signals are handled when a fault has been served, not meanwhile.
    /// - Drivers can have memory of [`AddressSpace::alloc`](crate::AddressSpace::alloc), and no other; and hmm-soft cannot be used.
    /// - Devices whose calls may not return (with a `patience`) are refused.
    InThread,
}

/// Spaces at a time that have it.
const MAX_SPACES: usize = 16;
/// Looks at a page that somebody else is bringing, and how long one takes: about as long as a page takes to come from
/// memory.
const LOOKS: usize = 16;
const SPINS: usize = 64;

/// Why a space cannot have its faults served by the threads that have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InThreadError {
    /// There are too many.
    #[error("there are {MAX_SPACES} spaces with `Faults::InThread` already: use fewer, or handlers")]
    TooMany,
    /// Nobody could give up a call that does not return.
    #[error(
        "a device has a `patience`, so its calls may not return, and a thread that serves its own fault cannot be called off: \
         use `Faults::Handlers`, or a device without"
    )]
    Patience,
    /// No handler of SIGBUS.
    #[error("cannot install a handler for SIGBUS: {0}")]
    Handler(Errno),
}

struct Slot {
    runtime: AtomicPtr<Runtime>,
    /// Threads that look at it.
    users: AtomicUsize,
}

static SLOTS: [Slot; MAX_SPACES] =
    [const { Slot { runtime: AtomicPtr::new(ptr::null_mut()), users: AtomicUsize::new(0) } }; MAX_SPACES];

/// Points to 1 in the process that has the slots. In a child of a fork it is 0: the slots there are copies, of runtimes whose
/// userfaultfd is their parent's, and the memory is not there at all.
static IS_OURS: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

fn is_ours() -> bool {
    // SAFETY: once set it points to memory that is never unmapped.
    unsafe { IS_OURS.load(Ordering::Acquire).as_ref() }.is_some_and(|word| word.load(Ordering::Relaxed) == 1)
}

/// Makes the slots this process's: those of its parent are forgotten.
fn take_slots() -> Result<(), Errno> {
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if is_ours() {
        return Ok(());
    }
    for slot in &SLOTS {
        slot.runtime.store(ptr::null_mut(), Ordering::SeqCst);
        slot.users.store(0, Ordering::SeqCst);
    }
    let mut word = IS_OURS.load(Ordering::Acquire);
    if word.is_null() {
        let page = Mapping::anonymous(hmm_core::addr::PAGE_SIZE)?;
        page.advise(0, page.len(), Advice::WipeOnFork)?;
        // For as long as the process lives.
        word = std::mem::ManuallyDrop::new(page).as_ptr().cast();
    }
    // SAFETY: it points to a page of ours, which is never unmapped.
    unsafe { &*word }.store(1, Ordering::Relaxed);
    IS_OURS.store(word, Ordering::Release);
    Ok(())
}

/// From now on faults in the runtime's memory are served by the threads that have them.
///
/// # Errors
/// See [`InThreadError`].
pub(crate) fn add(runtime: &Arc<Runtime>) -> Result<(), InThreadError> {
    if runtime.engine().max_flights() > 0 {
        return Err(InThreadError::Patience);
    }
    take_slots().and_then(|()| crate::sigbus::install()).map_err(InThreadError::Handler)?;
    let ours = Arc::as_ptr(runtime).cast_mut();
    let place = |slot: &Slot| {
        slot.runtime.compare_exchange(ptr::null_mut(), ours, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    };
    if SLOTS.iter().any(place) { Ok(()) } else { Err(InThreadError::TooMany) }
}

/// Nobody serves the runtime's faults any more, when this returns.
pub(crate) fn remove(runtime: &Arc<Runtime>) {
    let ours = Arc::as_ptr(runtime).cast_mut();
    for slot in &SLOTS {
        let is_it =
            slot.runtime.compare_exchange(ours, ptr::null_mut(), Ordering::SeqCst, Ordering::SeqCst).is_ok();
        while is_it && is_ours() && slot.users.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}

/// Serves a fault of the calling thread, if it is at memory of ours: then the access can be tried again. In a signal handler.
pub(crate) fn serve(touch: Touch) -> bool {
    if !is_ours() {
        return false;
    }
    let _inside = Inside::enter();
    SLOTS.iter().any(|slot| slot.serve(touch))
}

impl Slot {
    fn serve(&self, touch: Touch) -> bool {
        if self.runtime.load(Ordering::Relaxed).is_null() {
            return false;
        }
        self.users.fetch_add(1, Ordering::SeqCst);
        let runtime = self.runtime.load(Ordering::SeqCst);
        // SAFETY: who removes the runtime takes it out of the slot, and then waits for the users. So one that is found here after
        // this was counted among them lives until it is no more.
        let is_served = unsafe { runtime.as_ref() }.is_some_and(|runtime| runtime.serve_in_thread(touch));
        self.users.fetch_sub(1, Ordering::SeqCst);
        is_served
    }
}

impl Runtime {
    /// As [`serve`]: one attempt, and a pause if there has to be another.
    fn serve_in_thread(&self, touch: Touch) -> bool {
        if self.engine().kernel().extents().covering(touch.page).is_none() {
            return false;
        }
        let was_lost = self.is_lost(touch.page);
        match self.attempt(Pending::new(touch)) {
            // Kernels without CONFIG_MEMORY_FAILURE tell of lost pages as of any others.
            Attempt::Served if was_lost => return false,
            Attempt::Served => {}
            Attempt::Parked => self.wait_for(touch.page),
            Attempt::Again => pause(RETRY_PAUSE_NS),
        }
        self.count_fault();
        self.kick_if_low();
        if self.engine().wants_read_ahead() {
            self.call_for_help();
        }
        true
    }

    fn is_lost(&self, page: Vpn) -> bool {
        let any_lost = self.engine().kernel().stats().pgpoison.load(Ordering::Relaxed) > 0;
        any_lost && self.engine().state(page) == PageState::Poisoned
    }

    fn count_fault(&self) {
        self.engine().kernel().stats().pgfault.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the page is there that somebody else is bringing, or for a moment.
    fn wait_for(&self, page: Vpn) {
        let is_coming = || {
            let state = self.engine().state(page);
            matches!(state, PageState::Fetching { .. } | PageState::Dropped { .. })
        };
        for _ in 0..LOOKS {
            (0..SPINS).for_each(|_| std::hint::spin_loop());
            if !is_coming() {
                return;
            }
        }
        pause(RETRY_PAUSE_NS);
    }
}
