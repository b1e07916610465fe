//! Makes a driver's panic what a failed device is: lost.
//!
//! Who calls a device may be a thread that serves faults. A panic that unwinds through it takes the thread along, and leaves
//! pages on their way for ever: whoever touches one of them hangs. So the first panic is caught here, after Rust has printed it, and the
//! device is not called any more: what the panic left half done is never looked at.
//!
//! What is constant over a device's life (`caps`, `memory`, `patience`) is passed on as it is.
//!
//! Where panics abort there is nothing to catch, and the process ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::{Caps, Device, DeviceError, DevicePfn, Fetch, Store, Transfer, Usage};

/// Any device whose panics are contained.
#[derive(Debug)]
pub struct Contained<D> {
    inner: D,
    /// It has panicked.
    is_lost: AtomicBool,
}

impl<D: Device> Contained<D> {
    /// A device that does as `inner` does until that panics, and is lost from then on.
    pub const fn new(inner: D) -> Self {
        Self { inner, is_lost: AtomicBool::new(false) }
    }

    /// What the device answers, or what a lost one does.
    fn ask<R>(&self, question: impl FnOnce(&D) -> R, lost: impl FnOnce() -> R) -> R {
        if !self.is_lost.load(Ordering::Relaxed) {
            // Nobody sees the device again, so it may be left as it is.
            if let Ok(answer) = catch_unwind(AssertUnwindSafe(|| question(&self.inner))) {
                return answer;
            }
            self.is_lost.store(true, Ordering::Relaxed);
        }
        lost()
    }
}

/// What a lost device says to a transfer.
const fn lost() -> Transfer {
    Transfer::stopped(0, DeviceError::Lost)
}

impl<D: Device> Device for Contained<D> {
    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn usage(&self) -> Usage {
        self.ask(D::usage, Usage::default)
    }

    fn alloc(&self, frames: &mut [DevicePfn]) -> usize {
        self.ask(|device| device.alloc(frames), || 0)
    }

    fn alloc_large(&self) -> Option<DevicePfn> {
        self.ask(D::alloc_large, || None)
    }

    fn store(&self, run: Store<'_>) -> Transfer {
        self.ask(|device| device.store(run), lost)
    }

    fn fetch(&self, run: Fetch<'_>) -> Transfer {
        self.ask(|device| device.fetch(run), lost)
    }

    fn free(&self, frames: &[DevicePfn]) {
        self.ask(|device| device.free(frames), || ());
    }

    fn holds(&self, frame: DevicePfn, bytes: &[u8]) -> bool {
        self.ask(|device| device.holds(frame, bytes), || false)
    }

    fn is_worth_keeping(&self, frame: DevicePfn) -> bool {
        self.ask(|device| device.is_worth_keeping(frame), || false)
    }

    fn memory(&self) -> Option<std::ops::Range<u64>> {
        self.inner.memory()
    }

    fn patience(&self) -> Option<Duration> {
        self.inner.patience()
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.ask(D::flush, || Err(DeviceError::Lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decorate::{Fault, Faulty, Rule, Verb, When};
    use crate::{Access, PAGE_SIZE, Ram, conformance};

    #[test]
    fn conforms_while_nothing_panics() {
        conformance::check(|| Contained::new(Ram::new(700)));
    }

    /// Each verb in turn panics once: the call says what a lost device says, and the device is not asked any more.
    #[test]
    fn after_a_panic_it_is_lost() {
        for verb in Verb::ALL {
            let device = Contained::new(Faulty::new(Ram::new(8), []));
            let (mut frames, mut bytes) = ([DevicePfn(0); 2], vec![5; 2 * PAGE_SIZE]);
            assert_eq!(device.alloc(&mut frames), 2);
            let panics = Rule { verb: Some(verb), when: When::From(0), fault: Fault::Panic };
            device.inner.set_plan([panics]);
            for _ in 0..2 {
                let ok = match verb {
                    Verb::Alloc => device.alloc(&mut frames) == 0,
                    Verb::Store => {
                        let run = Store { frames: &frames, bytes: &bytes, access: Access::Random };
                        device.store(run) == lost()
                    }
                    Verb::Fetch => device.fetch(Fetch { frames: &frames, bytes: &mut bytes }) == lost(),
                    Verb::Free => {
                        device.free(&frames);
                        true
                    }
                    Verb::Holds => !device.holds(frames[0], &bytes[..PAGE_SIZE]),
                    Verb::Flush => device.flush() == Err(DeviceError::Lost),
                };
                assert!(ok, "{verb:?}");
            }
            let nr_calls = device.inner.all_calls();
            assert_eq!(device.flush(), Err(DeviceError::Lost), "{verb:?}");
            assert_eq!(device.usage(), Usage::default());
            assert_eq!(device.inner.all_calls(), nr_calls, "{verb:?}: it is not asked any more");
        }
    }
}
