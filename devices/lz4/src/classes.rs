//! Sizes of slots: each slab is cut into slots of one class, and a unit lies in the smallest class that it fits in.
//!
//! A class is the largest multiple of 16 bytes of which `n` fit into a slab, so that slabs have hardly any rest.
//! Neighbouring classes differ by at least a 40th, which bounds what rounding up wastes where slots are small; where
//! they are large the step is 1/n: at most 3 % for a page, 9 % for the largest stream unit.

/// Bytes in a slab. Large enough for fine steps between large classes, small enough to become empty again.
pub(crate) const SLAB_BYTES: usize = 128 << 10;
/// Offsets and sizes of slots are multiples of so many bytes.
pub(crate) const GRANULE: usize = 16;
/// Bytes in the largest slot: the largest stream unit and its counter.
pub(crate) const MAX_SLOT_BYTES: usize = SLAB_BYTES / 10 / GRANULE * GRANULE;
/// Bytes in the smallest slot: a 32nd of a page.
pub(crate) const MIN_SLOT_BYTES: usize = 128;
/// Slots in a slab, at most.
pub(crate) const MAX_SLOTS: usize = SLAB_BYTES / MIN_SLOT_BYTES;

const GRANULES: usize = MAX_SLOT_BYTES / GRANULE;
const NR_CLASSES: usize = count();

/// Index of a class, by size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class(u8);

/// The size of the class behind one of `size` bytes.
const fn next_smaller(size: usize) -> usize {
    let limit = size - size / 40;
    let mut nr_slots = SLAB_BYTES / size + 1;
    while SLAB_BYTES / nr_slots / GRANULE * GRANULE > limit {
        nr_slots += 1;
    }
    let next = SLAB_BYTES / nr_slots / GRANULE * GRANULE;
    // The page itself must be a class without rest: incompressible pages are many.
    if size > 4096 && next < 4096 { 4096 } else { next }
}

const fn count() -> usize {
    let mut size = MAX_SLOT_BYTES;
    let mut nr_classes = 1;
    while size > MIN_SLOT_BYTES {
        size = next_smaller(size);
        nr_classes += 1;
    }
    nr_classes
}

/// Bytes of a slot of each class, ascending.
const SIZES: [u16; NR_CLASSES] = {
    let mut sizes = [0; NR_CLASSES];
    let mut size = MAX_SLOT_BYTES;
    let mut index = NR_CLASSES;
    while index > 0 {
        index -= 1;
        sizes[index] = u16_of(if size < MIN_SLOT_BYTES { MIN_SLOT_BYTES } else { size });
        size = if size > MIN_SLOT_BYTES { next_smaller(size) } else { size };
    }
    sizes
};

/// The class for a size in granules, rounded up.
const CLASS_OF: [u8; GRANULES + 1] = {
    let mut classes = [0; GRANULES + 1];
    let (mut granules, mut class) = (0, 0);
    while granules <= GRANULES {
        if granules * GRANULE > SIZES[class as usize] as usize {
            class += 1;
        }
        classes[granules] = class;
        granules += 1;
    }
    classes
};

#[expect(clippy::cast_possible_truncation, reason = "checked")]
const fn u16_of(size: usize) -> u16 {
    assert!(size <= u16::MAX as usize);
    size as u16
}

impl Class {
    /// The number of classes.
    pub(crate) const COUNT: usize = NR_CLASSES;

    /// The smallest class whose slots hold so many bytes; `None` when none does.
    pub(crate) fn for_bytes(len_bytes: usize) -> Option<Self> {
        CLASS_OF.get(len_bytes.div_ceil(GRANULE)).copied().map(Self)
    }

    /// Bytes of a slot.
    pub(crate) const fn slot_bytes(self) -> usize {
        SIZES[self.0 as usize] as usize
    }

    /// Slots in a slab.
    pub(crate) const fn nr_slots(self) -> usize {
        SLAB_BYTES / self.slot_bytes()
    }

    /// Its place among all classes.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    /// The class and those with larger slots, ascending.
    pub(crate) fn and_larger(self) -> impl Iterator<Item = Self> {
        (self.0..).take(NR_CLASSES - self.index()).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_class_that_wastes_little() {
        assert!(SIZES.is_sorted_by(|a, b| a < b), "{SIZES:?}");
        const { assert!(NR_CLASSES <= 200, "units would be spread over too many slabs") };
        for len in 1..=MAX_SLOT_BYTES {
            let class = Class::for_bytes(len).unwrap();
            let slot = class.slot_bytes();
            assert!(slot >= len && slot.is_multiple_of(GRANULE) && class.nr_slots() <= MAX_SLOTS);
            let wasted = (slot - len) as f64 / slot as f64;
            let bound = match len {
                ..512 => 0.11,
                512..1024 => 0.06,
                1024..=4096 => 0.051,
                _ => 0.1,
            };
            assert!(len < MIN_SLOT_BYTES || wasted <= bound, "{len} bytes in a slot of {slot}");
            let rest = SLAB_BYTES - class.nr_slots() * slot;
            assert!(rest <= SLAB_BYTES / 64, "{rest} bytes of a slab of {slot} never used");
        }
        assert_eq!(Class::for_bytes(MAX_SLOT_BYTES + 1), None);
        assert_eq!(Class::for_bytes(4096).unwrap().slot_bytes(), 4096);
    }

    #[test]
    fn on_average_rounding_wastes_two_percent() {
        for (from, to, bound) in [(512, 4097, 0.025), (1024, 2048, 0.022), (4096, MAX_SLOT_BYTES, 0.04)] {
            let wasted: f64 = (from..to)
                .map(|len| 1.0 - len as f64 / Class::for_bytes(len).unwrap().slot_bytes() as f64)
                .sum::<f64>()
                / (to - from) as f64;
            assert!(wasted <= bound, "{from}..{to}: {wasted}");
        }
    }

    #[test]
    fn larger_classes_are_larger() {
        let class = Class::for_bytes(4096).unwrap();
        assert!(class.and_larger().skip(1).all(|larger| larger.slot_bytes() > 4096));
        let last = Class::for_bytes(MAX_SLOT_BYTES).unwrap();
        assert_eq!((last.and_larger().count(), last.index()), (1, Class::COUNT - 1));
    }
}
