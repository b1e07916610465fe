//! A hash table with chains that the CPU built, looked into by a device through the table's own pointers.
//!
//! `cargo run --release -p hmm-soft --example hash_table [number of keys]`

use std::mem::offset_of;

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm_soft::{DeviceFault, Ptr, Soft, Unit};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

#[repr(C)]
struct Item {
    key: u64,
    value: u64,
    next: Ptr<Item>,
}

struct Table {
    buckets: Vec<Ptr<Item>>,
    /// Each item on its own, so that pointers to them stay true.
    #[expect(clippy::vec_box, reason = "items must not move when the vector grows")]
    _items: Vec<Box<Item>>,
}

fn hash(key: u64, nr_buckets: usize) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % nr_buckets
}

impl Table {
    fn new(keys: &[u64]) -> Self {
        let mut buckets = vec![Ptr::new(0); keys.len() / 2 + 1];
        let mut items = Vec::new();
        for key in keys {
            let nr_buckets = buckets.len();
            let bucket = &mut buckets[hash(*key, nr_buckets)];
            let item = Box::new(Item { key: *key, value: !key, next: *bucket });
            *bucket = Ptr::from_raw(&raw const *item);
            items.push(item);
        }
        Self { buckets, _items: items }
    }
}

/// Looks a key up, on the device.
fn find(unit: &Unit<'_>, buckets: Ptr<Ptr<Item>>, nr: usize, key: u64) -> Result<Option<u64>, DeviceFault> {
    let mut at = unit.load(buckets.add(hash(key, nr)))?;
    while !at.is_null() {
        if unit.load(at.field::<u64>(offset_of!(Item, key)))? == key {
            return unit.load(at.field::<u64>(offset_of!(Item, value))).map(Some);
        }
        at = unit.load(at.field::<Ptr<Item>>(offset_of!(Item, next)))?;
    }
    Ok(None)
}

fn hash_table(nr: usize) -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let soft = Soft::builder(&space)?.memory(4 << 20).units(2).build()?;
    let keys: Vec<u64> = (0..nr as u64).map(|index| index * 3).collect();
    let table = Table::new(&keys);
    let mut found = vec![0_u64; 2 * nr];
    let (buckets, nr_buckets) = (Ptr::of(&table.buckets), table.buckets.len());
    let to = Ptr::of_mut(&mut found);
    let lookups = |unit: &Unit<'_>| {
        for index in unit.share(2 * nr) {
            let value = find(unit, buckets, nr_buckets, index as u64)?;
            unit.store(to.add(index), value.unwrap_or(7))?;
        }
        Ok(())
    };
    // SAFETY: nobody writes the table; the results are accessed by the kernel only, each by one unit.
    unsafe { soft.launch(lookups) }?;
    let expected = |key: u64| if key.is_multiple_of(3) && key / 3 < nr as u64 { !key } else { 7 };
    ensure!((0..).zip(&found).all(|(key, value)| *value == expected(key)), "the device found something else");
    Ok(())
}

fn main() -> Result<()> {
    let nr = std::env::args().nth(1).map_or(Ok(500_000), |nr| nr.parse())?;
    hash_table(nr)
}

#[cfg(test)]
mod tests {
    #[cfg_attr(thread_sanitizer, ignore = "the device has what the sanitizer keeps beside the heap")]
    #[test]
    fn the_device_finds_what_the_cpu_entered() {
        super::hash_table(30_000).unwrap();
    }
}
