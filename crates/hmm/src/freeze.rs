//! Standing still, so that a fork copies an engine at rest, and answering for a child until it can do so itself.
//!
//! Who forks has [`Runtime::freeze`] called by a thread that is neither handler nor reclaimer. From then on only that
//! thread works on the engine: it serves faults ([`Runtime::serve_once`]) until the kernel reports the fork, because a
//! thread that waits for a page may hold a lock that the forking one needs. Whether it was at work when the memory was
//! copied, the child sees from the `busy` flag of its copy: then its engine is no use, and the fork has to be repeated.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hmm_core::Peeked;
use hmm_core::addr::{PAGE_SIZE, Vpn};
use hmm_uapi::AddrRange;
use hmm_uapi::sys::{Scope, futex_wait, futex_wake};
use hmm_uapi::uffd::{CopyMode, Event, EventBuffer, FaultAccess, MAX_EVENTS, Userfaultfd};

use crate::runtime::{Pending, RETRY_PAUSE_NS, Retries, Runtime, Touch, pause};

/// Set while the thread that froze the others works on the engine.
static BUSY: AtomicBool = AtomicBool::new(false);
/// How long the others may take to come to a rest.
const PATIENCE: Duration = Duration::from_secs(5);

impl Runtime {
    pub(crate) fn is_frozen(&self) -> bool {
        self.freezing.load(Ordering::SeqCst) == 1
    }

    /// The calling thread will work on the engine, too: it comes to [`park_if_frozen`](Self::park_if_frozen) soon after
    /// the first of [`eventfds`](Self::eventfds) is readable.
    pub fn enlist(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
    }

    /// Handlers, the reclaimer and other enlisted threads come here between two pieces of work, holding nothing.
    pub fn park_if_frozen(&self) {
        if !self.is_frozen() {
            return;
        }
        // Again if they are to stand still once more: until it says otherwise a thread counts as one that does.
        while self.is_frozen() {
            self.parked.fetch_add(1, Ordering::SeqCst);
            while self.is_frozen() {
                let _ = futex_wait(&self.freezing, Scope::Private, 1, None);
            }
            self.parked.fetch_sub(1, Ordering::SeqCst);
        }
        let errand = *self.errand.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errand) = errand {
            errand();
            self.nr_errands.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Has all threads of the runtime do something once, and the calling one, which is none of them, last. Others than
    /// `nr_threads` may only be about to begin: those are waited for. False if they do not come to a rest; then nobody has done it.
    #[must_use = "it may not have been done"]
    pub fn everywhere(&self, nr_threads: usize, errand: fn()) -> bool {
        let start = self.clock.now();
        while self.nr_running() < nr_threads {
            if self.clock.now().duration_since(start) > PATIENCE {
                return false;
            }
            pause(RETRY_PAUSE_NS);
        }
        if !self.freeze() {
            return false;
        }
        let set = |errand| *self.errand.lock().unwrap_or_else(PoisonError::into_inner) = errand;
        set(Some(errand));
        self.nr_errands.store(self.parked.load(Ordering::SeqCst), Ordering::SeqCst);
        self.thaw();
        while self.nr_errands.load(Ordering::SeqCst) > 0 {
            pause(RETRY_PAUSE_NS);
        }
        set(None);
        errand();
        true
    }

    /// Waits until all other threads of the runtime stand still. False when they do not; then they go on.
    #[must_use = "without rest there must be no fork"]
    pub fn freeze(&self) -> bool {
        // What a device has to itself it may change at any time; a child gets a copy that does not change any more.
        self.engine().restore_all();
        self.freezing.store(1, Ordering::SeqCst);
        self.alarm();
        let start = self.clock.now();
        while self.parked.load(Ordering::SeqCst) < self.running.load(Ordering::SeqCst) {
            if self.clock.now().duration_since(start) > PATIENCE {
                self.thaw();
                return false;
            }
            self.kick();
            // One of them may wait for a fault of its own, and nobody else serves any more.
            self.serve_once(&mut |child| self.poison_child(&child));
            std::hint::spin_loop();
        }
        true
    }

    /// Lets all go on.
    pub fn thaw(&self) {
        self.engine().kernel().wake_put_off(true);
        self.end_alarm();
        self.freezing.store(0, Ordering::SeqCst);
        futex_wake(&self.freezing, Scope::Private, u32::MAX);
    }

    /// Works on the engine, on the thread that froze the others: if the fork comes meanwhile, it has to be repeated.
    pub fn while_busy(&self, work: impl FnOnce()) {
        BUSY.store(true, Ordering::SeqCst);
        work();
        BUSY.store(false, Ordering::SeqCst);
    }

    /// Serves what there is to serve, on the thread that froze the others. Gives the userfaultfds of children.
    pub fn serve_once(&self, forked: &mut dyn FnMut(Userfaultfd)) {
        self.while_busy(|| self.serve_frozen(forked));
    }

    /// The same, as a part of other work: to be called in [`while_busy`](Self::while_busy).
    pub fn serve_frozen(&self, forked: &mut dyn FnMut(Userfaultfd)) {
        let mut buffer = EventBuffer::new();
        let mut faults = [Touch::NONE; MAX_EVENTS];
        let mut forks = 0;
        let nr_faults = self.read(&mut buffer, &mut faults, &mut |uffd| {
            forks += 1;
            forked(uffd);
        });
        if forks == 0 {
            let mut retries = Retries::new();
            for touch in &faults[..nr_faults] {
                self.serve_fault(Pending::new(*touch), &mut retries);
            }
            self.let_go(&mut retries);
            self.engine().kernel().wake_put_off(nr_faults == 0);
        } else {
            // From here on the child's pages must stay as they are; who faults now, faults again later.
            for touch in &faults[..nr_faults] {
                self.put_off(touch.page);
            }
        }
    }

    /// In the child: whether the copy of the engine was made while it was worked on.
    pub fn was_busy() -> bool {
        BUSY.load(Ordering::SeqCst)
    }

    /// In the child, before its threads are started: none of the parent's are here.
    pub fn reset_threads(&self) {
        self.running.store(0, Ordering::SeqCst);
        self.parked.store(0, Ordering::SeqCst);
        self.freezing.store(0, Ordering::SeqCst);
        self.reclaiming.store(false, Ordering::SeqCst);
        self.sleeping.store(0, Ordering::SeqCst);
        self.follower.reset();
        self.engine().kernel().put_off.reset();
    }

    /// Answers the faults of a child with its pages as they were when it was made. The engine is frozen.
    pub fn serve_child(&self, child: &Userfaultfd, buffer: &mut EventBuffer, page: &mut [u8; PAGE_SIZE]) {
        let Ok(messages) = child.read_events(buffer) else { return };
        for message in messages {
            let Event::Fault { addr, access, .. } = message else { continue };
            let vpn = Vpn::of_addr(addr);
            let range = AddrRange::new(vpn.addr(), PAGE_SIZE as u64);
            if access == FaultAccess::WriteProtect {
                // No device of the child's has a copy.
                if child.write_protect(range, false).is_err() {
                    let _ = child.wake(range);
                }
                continue;
            }
            let outcome = match self.engine().peek(vpn, page) {
                Peeked::Bytes => {
                    let source = std::ptr::from_ref(&*page).expose_provenance() as u64;
                    child.copy(source, range.start, range.len(), CopyMode::empty())
                }
                Peeked::Lost => child.poison(range),
            };
            if outcome.stop.is_some() {
                // There already, or the mapping is changing: let the child look again.
                let _ = child.wake(range);
            }
        }
    }

    /// A child that was not announced has nobody to bring its pages: those that are away are poisoned there, so that it
    /// can never read wrong bytes.
    pub fn poison_child(&self, child: &Userfaultfd) {
        self.engine().for_each_absent(&mut |page| {
            let _ = child.poison(AddrRange::new(page.addr(), PAGE_SIZE as u64));
        });
    }
}
