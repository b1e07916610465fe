//! What a test stands on: an address space with the device in it, and its driver.

use std::sync::{Arc, Mutex, PoisonError};

use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use hmm::core::notifier::Owner;
use hmm::device::decorate::{Fault, Faulty, Rule, Verb, When};
use hmm::device::{Device, DeviceError, MemKind};

use crate::counted::Counted;
use crate::driver::Driver;
use crate::watchdog::{Watched, states};

/// Makes a device, new and empty.
pub type Make = fn() -> Arc<dyn Device>;

/// The owner of the device that is tested.
const OWNER: Owner = Owner(7);

/// See the module.
#[derive(Debug)]
pub struct Ground {
    /// The address space.
    pub space: AddressSpace,
    /// The device, which fails as planned, and whose frames are watched.
    pub device: Arc<Counted<Faulty<Arc<dyn Device>>>>,
    /// Its driver.
    pub driver: Driver,
    make: Make,
    ranges: Arc<Mutex<Vec<PageRange>>>,
}

impl Ground {
    /// An address space without a budget, with one of these devices.
    ///
    /// # Panics
    /// If there is no userfaultfd.
    pub fn new(make: Make, watched: &Watched) -> Self {
        let space = AddressSpace::builder().build().expect("userfaultfd can be had: see `hmm doctor`");
        let device = Arc::new(Counted::new(Faulty::new(make(), [])));
        let driver = Driver::new(&space, Arc::clone(&device) as _, OWNER);
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (shown, of) = (space.clone(), Arc::clone(&ranges));
        watched.add(Box::new(move || {
            let ranges: Vec<PageRange> = of.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ranges.iter().map(|range| states(&shown, *range)).collect::<Vec<_>>().join("\n")
        }));
        Self { space, device, driver, make, ranges }
    }

    /// Another device of the kind.
    pub fn another(&self) -> Arc<dyn Device> {
        (self.make)()
    }

    /// The range's states are printed if the test hangs.
    pub fn watch(&self, range: PageRange) {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).push(range);
    }

    /// Whether a touch of the CPU brings a page home from the device.
    pub fn comes_home(&self) -> bool {
        self.device.caps().kind == MemKind::Private
    }

    /// From now on the device's calls of this kind fail in this way.
    pub fn fail(&self, verb: Verb, when: When, fault: Fault) {
        self.device.inner().set_plan([Rule { verb: Some(verb), when, fault }]);
    }

    /// The device is lost.
    pub fn lose(&self) {
        self.device.inner().set_plan([Rule {
            verb: None,
            when: When::From(0),
            fault: Fault::fail(DeviceError::Lost),
        }]);
    }

    /// The device is sound again.
    pub fn mend(&self) {
        self.device.inner().set_plan([]);
    }

    /// Number of the next call of this kind.
    pub fn next_call(&self, verb: Verb) -> u64 {
        self.device.inner().calls(verb) + 1
    }

    /// No frame was used as it must not be.
    ///
    /// # Panics
    /// If one was.
    pub fn expect_sound(&self) {
        assert_eq!(self.device.wrong(), Vec::<String>::new(), "frames were misused");
    }

    /// The end of a test, whose memory is gone: so are all frames, and nothing was done wrong with any of them.
    ///
    /// # Panics
    /// If not.
    pub fn finish(self) {
        self.space.settle();
        assert_eq!(self.device.nr_live(), 0, "frames are in use when all memory is gone");
        assert!(self.device.nr_granted() > 0, "the test has used the device");
        assert_eq!(self.device.inner().usage().frames, 0, "the device counts frames that were freed");
        self.space.remove_device(self.driver.id()).expect("nobody uses the device");
        self.expect_sound();
    }
}
