use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::classes::MAX_SLOT_BYTES;

const MIB: usize = 1 << 20;

/// Slabs, and what must be true of them.
struct Model {
    slabs: Slabs,
    budget: Budget,
    region_bytes: usize,
    /// Slots in use: their ends, by offset.
    slots: BTreeMap<usize, usize>,
}

impl Model {
    fn new(capacity_bytes: usize) -> Self {
        let region_bytes = 2 * capacity_bytes + Class::COUNT * SLAB_BYTES;
        let budget = Budget::new(capacity_bytes as u64, 0);
        Self { slabs: Slabs::new(region_bytes), budget, region_bytes, slots: BTreeMap::new() }
    }

    fn take(&mut self, len: usize) -> Option<usize> {
        let class = Class::for_bytes(len).unwrap();
        let offset = self.slabs.take(class, &self.budget)?;
        // The slab may be of a larger class, but at least these bytes are ours.
        let end = offset + class.slot_bytes();
        assert!(end <= self.region_bytes && offset.is_multiple_of(16));
        let before = self.slots.range(..end).next_back();
        assert!(before.is_none_or(|(_, other_end)| *other_end <= offset), "two slots overlap");
        self.slots.insert(offset, end);
        Some(offset)
    }

    fn give(&mut self, offset: usize) {
        self.slots.remove(&offset).unwrap();
        self.slabs.give(offset);
    }

    fn bury_all(&mut self) {
        while let Some((id, touched_bytes)) = self.slabs.next_dying() {
            assert!(touched_bytes > 0 && touched_bytes <= SLAB_BYTES);
            let (start, end) = (id.offset(), id.offset() + SLAB_BYTES);
            assert!(self.slots.range(start..end).next().is_none(), "a slab in use is to be given back");
            self.slabs.bury(id, &self.budget);
        }
    }

    fn check(&self) {
        let used: usize = self.slots.iter().map(|(start, end)| end - start).sum();
        let usage = self.slabs.usage();
        let tables = (self.slabs.slabs.len() * size_of::<Slab>()) as u64;
        assert!(usage.slot_bytes >= used as u64 && usage.slot_bytes <= usage.touched_bytes);
        assert_eq!(usage.touched_bytes + tables, self.budget.charged());
        assert!(self.budget.charged() <= self.budget.capacity());
    }

    fn give_all(&mut self) {
        while let Some((&offset, _)) = self.slots.first_key_value() {
            self.give(offset);
        }
        self.slabs.drop_spare();
        self.bury_all();
        assert_eq!(self.slabs.usage(), SlotUsage::default());
        assert_eq!(self.budget.charged(), (self.slabs.slabs.len() * size_of::<Slab>()) as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn slots_are_disjoint_and_every_byte_is_charged(
        ops in prop::collection::vec((1..=MAX_SLOT_BYTES, 0..1000_usize, 0..8_u8), 1..1500),
        capacity in MIB..4 * MIB,
    ) {
        let mut model = Model::new(capacity);
        for (len, pick, op) in ops {
            match op {
                0..5 => _ = model.take(len),
                5..7 => {
                    let nth = model.slots.keys().copied().nth(pick % model.slots.len().max(1));
                    nth.into_iter().for_each(|offset| model.give(offset));
                }
                _ => model.bury_all(),
            }
            model.check();
        }
        model.give_all();
        // Everything can be had again.
        while model.take(4096).is_some() {}
        model.check();
        prop_assert!(model.slots.len() * 4096 >= capacity - capacity / 20, "{}", model.slots.len());
    }
}

#[test]
fn a_full_pool_is_filled_up_through_larger_classes() {
    let mut model = Model::new(2 * MIB);
    let large: Vec<usize> = std::iter::from_fn(|| model.take(3000)).collect();
    // Every third one is given back: no slab becomes empty, so a smaller unit has to lie in such a slot.
    large.iter().step_by(3).for_each(|offset| model.give(*offset));
    let charged = model.budget.charged();
    let small = std::iter::from_fn(|| model.take(1000)).count();
    assert!(small >= large.len() / 3, "{small} of {}", large.len() / 3);
    // All that a first slab of the small class could still be charged.
    assert!(model.budget.charged() - charged < 2 * SLAB_BYTES as u64);
    model.check();
}

#[test]
fn the_fullest_slab_is_filled_first() {
    let mut model = Model::new(8 * MIB);
    let per_slab = Class::for_bytes(4096).unwrap().nr_slots();
    let slots: Vec<usize> = (0..4 * per_slab).map_while(|_| model.take(4096)).collect();
    let slab = |index: usize| &slots[index * per_slab..][..per_slab];
    // A quarter, a half and nearly all of three slabs are left.
    slab(0)[8..].iter().for_each(|offset| model.give(*offset));
    slab(1)[18..].iter().for_each(|offset| model.give(*offset));
    slab(2)[30..].iter().for_each(|offset| model.give(*offset));
    let taken: Vec<usize> =
        (0..16).map_while(|_| model.take(4096)).map(|offset| offset / SLAB_BYTES).collect();
    let at = |index: usize| slab(index)[0] / SLAB_BYTES;
    assert_eq!(taken[..2], [at(2); 2]);
    assert_eq!(taken[2..], [at(1); 14]);
}

#[test]
fn an_empty_slab_serves_any_class_before_new_memory_is_touched() {
    let mut model = Model::new(8 * MIB);
    let slots: Vec<usize> = (0..2 * SLAB_BYTES / 4096).map_while(|_| model.take(4096)).collect();
    slots.iter().for_each(|offset| model.give(*offset));
    let charged = model.budget.charged();
    assert!(model.slabs.next_dying().is_none(), "the first few are spared");
    assert!(model.take(1000).is_some() && model.take(200).is_some());
    assert_eq!(model.budget.charged(), charged);
}

#[test]
fn many_empty_slabs_die() {
    let mut model = Model::new(32 * MIB);
    let slots: Vec<usize> = std::iter::from_fn(|| model.take(4096)).collect();
    slots.iter().for_each(|offset| model.give(*offset));
    model.bury_all();
    let spare = MIN_SPARE + slots.len() * 4096 / SLAB_BYTES / USED_PER_SPARE;
    assert!(model.slabs.usage().touched_bytes <= (spare * SLAB_BYTES) as u64);
}
