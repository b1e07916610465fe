//! The agent's accounts, in memory shared with the supervisor, and what it does when devices are full.

use hmm::control::{Control, Figures, OnFull, Slot, Text, Verdict, VerdictKind};
use hmm::core::ledger::{Ledger, Share};
use hmm::core::stats::Stats;
use hmm::core::trace::Event;
use hmm::device::DeviceError;
use hmm::mm::Books;
use hmm::runtime::Policy;
use hmm::uapi::Errno;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::{control, ending, reserve};

/// The ledger, of all processes or this one's, and this process's counters.
#[derive(Debug)]
pub(crate) struct SharedBooks {
    control: Control,
}

/// This process's place in the control page: another one in the child of a fork.
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

impl SharedBooks {
    pub(crate) fn new(control: Control, slot: &'static Slot) -> Self {
        Self::set_slot(slot);
        Self { control }
    }

    /// This process begins: what is recorded of one that had the slot before says nothing of it.
    pub(crate) fn begin(&self) {
        record_beginning(&self.control, own_slot());
    }

    /// From now on this process counts there.
    pub(crate) fn set_slot(slot: &'static Slot) {
        SLOT.store(std::ptr::from_ref(slot).cast_mut(), Ordering::Release);
    }
}

/// Whoever has the slot begins.
pub(crate) fn record_beginning(control: &Control, slot: &Slot) {
    if control.trace().is_on() {
        control.trace().record_beginning(control.number_of(slot));
    }
}

/// This process's place in the control page.
pub(crate) fn own_slot() -> &'static Slot {
    // SAFETY: the pointer comes from a `&'static Slot`, set before there are books.
    unsafe { &*SLOT.load(Ordering::Acquire) }
}

impl Books for SharedBooks {
    fn ledger(&self) -> &Ledger {
        self.control.ledger_of(own_slot())
    }

    fn share(&self) -> Share<'_> {
        self.control.share(own_slot())
    }

    fn stats(&self) -> &Stats {
        own_slot().stats()
    }

    fn is_traced(&self) -> bool {
        self.control.trace().is_on()
    }

    fn record(&self, event: Event) {
        self.control.trace().record(self.control.number_of(own_slot()), event);
    }

    fn device_failed(&self, device: u8, why: DeviceError) {
        let text = Text::format(format_args!("device {}: {why}", u16::from(device) + 1));
        leave_word(VerdictKind::DeviceLost, 0, text);
    }
}

/// Leaves this process's word on what happened, with its figures as they were counted last.
pub(crate) fn leave_word(kind: VerdictKind, errno: i32, text: Text<256>) {
    let Some((control, slot)) = control::setup() else { return };
    // In the child of a fork it is another one, once that has its own.
    let slot = if SLOT.load(Ordering::Relaxed).is_null() { slot } else { own_slot() };
    let stats = slot.stats();
    let usage = stats.usage();
    let figures = Figures {
        charged_pages: control.ledger_of(slot).charged(),
        away_pages: stats.away.load(Ordering::Relaxed),
        device_bytes: usage.used_bytes,
        device_capacity_bytes: usage.capacity_bytes,
    };
    let pid = hmm::uapi::sys::getpid().unsigned_abs();
    control.set_verdict(&Verdict { kind, pid, errno, figures, text });
}

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct RunPolicy {
    pub(crate) control: Control,
    pub(crate) on_full: OnFull,
}

impl Policy for RunPolicy {
    fn on_full(&self) -> OnFull {
        self.on_full
    }

    fn end(&self) {
        ending::end(VerdictKind::DeviceFull, format_args!(""))
    }

    fn forbidden(&self, errno: Errno) {
        let text = Text::format(format_args!("userfaultfd, as by a seccomp filter"));
        leave_word(VerdictKind::KernelError, errno.raw_os_error(), text);
        ending::kill()
    }

    fn settle_the_dead(&self) -> bool {
        self.control.settle_the_dead()
    }

    fn spare(&self) -> bool {
        reserve::spare(&self.control)
    }
}
