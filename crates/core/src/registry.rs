//! The devices of an engine, in two roles.
//!
//! - *Tiers* are given at the start and stay: reclaim evicts to them, in their order. Nobody can map their frames.
//! - *Drivers' devices* come and go at run time. Only their driver migrates pages there, and each has its driver's
//!   [`Owner`]: frames are shown to nobody else.
//!
//! A page's state names a device by a number below sixteen. A tier is found by its number without a lock, because faults
//! and reclaim do so for every page; a driver's device is held by whoever works with it ([`Held`]), so that its number
//! is given to another one only when nobody does any more.

use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hmm_device::{Device, MemKind, PAGE_SIZE};

use crate::engine::Engine;
use crate::frames::Descriptors;
use crate::kernel::Kernel;
use crate::notifier::Owner;
use crate::state::Frame;

/// Devices that an engine can have: their numbers have four bits.
pub const MAX_DEVICES: usize = 16;

/// Names a driver's device in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(pub(crate) u8);

impl DeviceId {
    /// The number by which [`Frame::device`] names it.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// Why a device is not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The engine has as many devices as it can have.
    #[error("there are {MAX_DEVICES} devices already: remove one that is not needed any more")]
    TooMany,
    /// A device says that it is coherent, and its memory cannot be moved from and to.
    #[error(
        "the memory of the coherent device cannot be mapped elsewhere: `Device::memory` has to give private anonymous \
         memory of this process, whole pages, one for each frame"
    )]
    Memory,
}

/// A driver's device.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) owner: Owner,
    pub(crate) descriptors: Descriptors,
    /// Where its frames are, if the CPU can map them.
    memory: Option<Range<u64>>,
    /// It is being removed: no page goes there any more.
    closing: AtomicBool,
}

impl Member {
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }
}

/// A device in use: it is not removed meanwhile.
pub(crate) enum Held<'e> {
    Tier(&'e dyn Device),
    Driver(Arc<Member>),
}

impl<'e> Deref for Held<'e> {
    type Target = dyn Device + 'e;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Tier(device) => *device,
            Self::Driver(member) => &*member.device,
        }
    }
}

/// All devices.
#[derive(Debug)]
pub(crate) struct Registry {
    tiers: Vec<Arc<dyn Device>>,
    /// By number; those of the tiers are empty.
    drivers: RwLock<[Option<Arc<Member>>; MAX_DEVICES]>,
}

impl Registry {
    pub(crate) fn new(tiers: Vec<Arc<dyn Device>>) -> Self {
        Self { tiers, drivers: RwLock::default() }
    }

    pub(crate) fn tiers(&self) -> &[Arc<dyn Device>] {
        &self.tiers
    }

    /// The device with that number. `None`: there is none any more.
    pub(crate) fn get(&self, number: u8) -> Option<Held<'_>> {
        match self.tiers.get(usize::from(number)) {
            Some(tier) => Some(Held::Tier(&**tier)),
            None => self.member(number).map(Held::Driver),
        }
    }

    /// The driver's device with that number.
    pub(crate) fn member(&self, number: u8) -> Option<Arc<Member>> {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        drivers.get(usize::from(number))?.clone()
    }

    /// Whose device it is; nobody's is a tier.
    pub(crate) fn owner(&self, number: u8) -> Option<Owner> {
        if usize::from(number) < self.tiers.len() {
            return None;
        }
        self.member(number).map(|member| member.owner)
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most sixteen devices")]
    fn add(&self, member: Member) -> Result<DeviceId, AddError> {
        let mut drivers = self.drivers.write().unwrap_or_else(PoisonError::into_inner);
        let free = |number: &usize| drivers[*number].is_none();
        let number = (self.tiers.len()..MAX_DEVICES).find(free).ok_or(AddError::TooMany)?;
        drivers[number] = Some(Arc::new(member));
        Ok(DeviceId(number as u8))
    }

    /// Whether the CPU can map the device's frames.
    pub(crate) fn is_coherent(&self, number: u8) -> bool {
        usize::from(number) >= self.tiers.len()
            && self.member(number).is_some_and(|member| member.memory.is_some())
    }

    /// Where the frame is, if the CPU can map it.
    pub(crate) fn address(&self, frame: Frame) -> Option<u64> {
        if usize::from(frame.device) < self.tiers.len() {
            return None;
        }
        let memory = self.member(frame.device)?.memory.clone()?;
        Some(memory.start + u64::from(frame.pfn.0) * PAGE_SIZE as u64)
    }

    /// How many others hold the device.
    pub(crate) fn nr_holders(&self, id: DeviceId) -> usize {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        drivers[usize::from(id.0)].as_ref().map_or(0, |member| Arc::strong_count(member) - 1)
    }

    /// Takes a driver's device out. Its number may be given to another one.
    fn remove(&self, id: DeviceId) -> Option<Arc<Member>> {
        self.drivers.write().unwrap_or_else(PoisonError::into_inner)[usize::from(id.0)].take()
    }
}

impl<K: Kernel> Engine<K> {
    /// Adds a driver's device. Reclaim never evicts to it, and private frames are shown to nobody but `owner`.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_device(&self, device: Arc<dyn Device>, owner: Owner) -> Result<DeviceId, AddError> {
        let caps = device.caps();
        let memory = match caps.kind {
            MemKind::Private => None,
            MemKind::Coherent => Some(device.memory().ok_or(AddError::Memory)?),
        };
        if let Some(memory) = &memory {
            let is_whole = memory.start.is_multiple_of(PAGE_SIZE as u64);
            let has_all =
                memory.end.checked_sub(memory.start) == Some(caps.capacity_pages * PAGE_SIZE as u64);
            if !is_whole || !has_all || !self.kernel.lend_frames(memory.clone()) {
                return Err(AddError::Memory);
            }
        }
        let (descriptors, closing) = (Descriptors::new(), AtomicBool::new(false));
        let member = Member { device, owner, descriptors, memory: memory.clone(), closing };
        let added = self.registry.add(member);
        if let (Err(_), Some(memory)) = (&added, memory) {
            self.kernel.end_frames(memory);
        }
        added
    }

    /// Forgets a device that nobody uses any more.
    pub(crate) fn forget_device(&self, id: DeviceId) {
        let member = self.registry.remove(id);
        if let Some(memory) = member.and_then(|member| member.memory.clone()) {
            self.kernel.end_frames(memory);
        }
    }

    /// The owner of a frame's device; `None` for a tier, whose frames nobody can map.
    pub fn owner_of(&self, frame: Frame) -> Option<Owner> {
        self.registry.owner(frame.device)
    }
}
