//! Descriptors of drivers' frames: how many refer to a frame, and a word that is its driver's (Linux: what of a `struct page`
//! a driver uses).
//!
//! The first reference is the engine's, from the frame's being handed to a migration until no page has it any more. A driver
//! may hold further ones across its steps ([`Engine::hold_frame`]): to copy from a frame whose page may go home meanwhile, say.
//! When the last one goes the frame is given back to its device, once ([`hmm_device::Device::free`]), and its word is zero
//! again.
//!
//! A descriptor has 16 bytes; those of 512 frames are made when the first of these is used. Tiers have none: nobody but the
//! engine refers to their frames. From a frame no way leads to its page, on purpose (see `driver::remove`).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use hmm_device::DevicePfn;

use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::notifier::Owner;
use crate::registry::Member;
use crate::state::Frame;

/// log2 of the descriptors that are made together.
const LEAF_SHIFT: u32 = 9;
/// log2 of the leaves below an entry of the root, which reaches 8 GiB.
const NODE_SHIFT: u32 = 12;
const ROOT_SHIFT: u32 = 32 - LEAF_SHIFT - NODE_SHIFT;

#[derive(Debug, Default)]
struct Descriptor {
    references: AtomicU32,
    word: AtomicU64,
}

type Leaf = Box<[Descriptor]>;
type Node = Box<[OnceLock<Leaf>]>;

/// The descriptors of one device's frames.
#[derive(Debug)]
pub(crate) struct Descriptors {
    root: Box<[OnceLock<Node>]>,
}

impl Descriptors {
    pub(crate) fn new() -> Self {
        Self { root: (0..1 << ROOT_SHIFT).map(|_| OnceLock::new()).collect() }
    }

    const fn split(pfn: DevicePfn) -> (usize, usize, usize) {
        let number = pfn.0 as usize;
        let leaf = number >> LEAF_SHIFT;
        (leaf >> NODE_SHIFT, leaf & ((1 << NODE_SHIFT) - 1), number & ((1 << LEAF_SHIFT) - 1))
    }

    /// The frame's descriptor, if one was ever needed.
    fn get(&self, pfn: DevicePfn) -> Option<&Descriptor> {
        let (root, node, index) = Self::split(pfn);
        self.root[root].get()?[node].get().map(|leaf| &leaf[index])
    }

    /// The engine's reference to a frame that a driver hands over. False: somebody has it already.
    pub(crate) fn begin(&self, pfn: DevicePfn) -> bool {
        let (root, node, index) = Self::split(pfn);
        let node_of = || (0..1 << NODE_SHIFT).map(|_| OnceLock::new()).collect();
        let leaf_of = || (0..1 << LEAF_SHIFT).map(|_| Descriptor::default()).collect();
        let leaf = self.root[root].get_or_init(node_of)[node].get_or_init(leaf_of);
        leaf[index].references.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// As [`begin`](Self::begin), of frames side by side: all of them, or none.
    pub(crate) fn begin_run(&self, first: DevicePfn, nr_frames: usize) -> bool {
        let nr_begun = (0..nr_frames).take_while(|number| self.begin(first.add(*number))).count();
        if nr_begun < nr_frames {
            (0..nr_begun).for_each(|number| {
                self.put(first.add(number));
            });
        }
        nr_begun == nr_frames
    }

    /// One reference more. False: the frame is nobody's.
    fn hold(&self, pfn: DevicePfn) -> bool {
        let more = |references: u32| if references == 0 { None } else { references.checked_add(1) };
        self.get(pfn).is_some_and(|descriptor| {
            descriptor.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
        })
    }

    /// One reference less. True: it was the last, and the caller gives the frame back to its device.
    pub(crate) fn put(&self, pfn: DevicePfn) -> bool {
        let Some(descriptor) = self.get(pfn) else { return false };
        let less = |references: u32| references.checked_sub(1);
        let before = descriptor.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
        debug_assert!(before.is_ok(), "{pfn:?} is given up, and nobody had it");
        let was_last = before == Ok(1);
        if was_last {
            // Until the device hands it out again nobody can refer to it.
            descriptor.word.store(0, Ordering::Relaxed);
        }
        was_last
    }
}

/// A reference to a frame of a driver's: the frame is not given to another page as long as this lives, whatever becomes of
/// the page that has it now. Nor is its device removed. What it does not keep is the page: that may leave the frame, which
/// then has the bytes of that moment. (From a coherent frame the bytes leave with the page that the program gives up.)
#[derive(Debug)]
pub struct HeldFrame {
    member: Arc<Member>,
    frame: Frame,
}

impl HeldFrame {
    /// Which.
    pub const fn frame(&self) -> Frame {
        self.frame
    }

    /// The driver's word: what it was set to since the frame was handed to a migration, zero at first.
    pub fn word(&self) -> u64 {
        self.descriptor().map_or(0, |descriptor| descriptor.word.load(Ordering::Acquire))
    }

    /// Sets the driver's word.
    pub fn set_word(&self, word: u64) {
        if let Some(descriptor) = self.descriptor() {
            descriptor.word.store(word, Ordering::Release);
        }
    }

    fn descriptor(&self) -> Option<&Descriptor> {
        self.member.descriptors.get(self.frame.pfn)
    }
}

impl Drop for HeldFrame {
    fn drop(&mut self) {
        self.member.free(&[self.frame.pfn]);
    }
}

impl Member {
    /// Gives references to frames up; those that were the last give the frames back.
    pub(crate) fn free(&self, frames: &[DevicePfn]) {
        // As a rule all of them: then it is one call.
        let mut rest = frames;
        while !rest.is_empty() {
            let nr_last = rest.iter().take_while(|pfn| self.descriptors.put(**pfn)).count();
            let (last, others) = rest.split_at(nr_last);
            if !last.is_empty() {
                self.device.free(last);
            }
            // The one that ended the run is held by its driver.
            rest = others.get(1..).unwrap_or_default();
        }
    }
}

impl<K: Kernel> Engine<K> {
    /// Holds a frame of the driver's own that a page has, or a migration: one of a migration's entries, or one that a range
    /// fault has shown; if the entry for it cannot be made then, it may be another page's by now, and is dropped. `None`: it is
    /// nobody's any more, or not the driver's.
    pub fn hold_frame(&self, frame: Frame, owner: Owner) -> Option<HeldFrame> {
        let member = self.registry.member(frame.device).filter(|member| member.owner == owner)?;
        member.descriptors.hold(frame.pfn).then(|| HeldFrame { member, frame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_ends_once_with_its_last_reference() {
        let descriptors = Descriptors::new();
        for pfn in [0, 511, 512, (1 << 21) - 1, 1 << 21, u32::MAX].map(DevicePfn) {
            assert!(!descriptors.hold(pfn), "nobody has it");
            assert!(descriptors.begin(pfn));
            assert!(!descriptors.begin(pfn), "it has a page already");
            assert!(descriptors.hold(pfn));
            assert!(!descriptors.put(pfn));
            assert!(descriptors.put(pfn), "the last");
            assert!(!descriptors.hold(pfn), "it is nobody's again");
            assert!(descriptors.begin(pfn));
            assert!(descriptors.put(pfn));
        }
    }

    #[test]
    fn a_run_begins_whole_or_not_at_all() {
        let descriptors = Descriptors::new();
        assert!(descriptors.begin(DevicePfn(5)));
        assert!(!descriptors.begin_run(DevicePfn(0), 8), "the sixth is in use");
        assert!((0..8).all(|pfn| pfn == 5 || !descriptors.hold(DevicePfn(pfn))), "the others are nobody's");
        assert!(descriptors.put(DevicePfn(5)), "whose it was has it still");
        assert!(descriptors.begin_run(DevicePfn(0), 8));
        assert!((0..8).all(|pfn| descriptors.put(DevicePfn(pfn))));
    }

    #[test]
    fn threads_give_a_frame_up_once() {
        let (descriptors, pfn) = (Descriptors::new(), DevicePfn(7));
        for _ in 0..200 {
            assert!(descriptors.begin(pfn));
            let nr_ended: usize = std::thread::scope(|scope| {
                let work = || {
                    let held = descriptors.hold(pfn);
                    usize::from(held && descriptors.put(pfn))
                };
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
                let own = usize::from(descriptors.put(pfn));
                own + threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<usize>()
            });
            assert_eq!(nr_ended, 1);
        }
    }
}
