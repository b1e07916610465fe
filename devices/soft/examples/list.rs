//! A linked list that the CPU built of ordinary boxes, walked by a device through the list's own pointers.
//!
//! `cargo run --release -p hmm-soft --example list [number of nodes]`

use std::mem::offset_of;

use anyhow::{Result, ensure};
use hmm::AddressSpace;
use hmm_soft::{Ptr, Soft};

/// The program's allocator, so that the device may have any pointer.
#[global_allocator]
static ALLOCATOR: hmm::Heap = hmm::Heap;

#[repr(C)]
struct Node {
    value: u64,
    next: *mut Node,
}

/// A list of boxes, which the program owns.
struct List(*mut Node);

impl List {
    fn new(nr: usize) -> Self {
        let push = |next, value| Box::into_raw(Box::new(Node { value, next }));
        Self((0..nr as u64).rev().fold(std::ptr::null_mut(), push))
    }

    fn sum(&self) -> u64 {
        let mut sum = 0_u64;
        let mut at = self.0;
        while !at.is_null() {
            // SAFETY: the list's nodes live as long as the list.
            let node = unsafe { &*at };
            sum = sum.wrapping_add(node.value);
            at = node.next;
        }
        sum
    }
}

impl Drop for List {
    fn drop(&mut self) {
        while !self.0.is_null() {
            // SAFETY: each node came from a box, and is in one list.
            let node = unsafe { Box::from_raw(self.0) };
            self.0 = node.next;
        }
    }
}

fn list(nr: usize) -> Result<()> {
    let space = AddressSpace::builder().build()?;
    let soft = Soft::builder(&space)?.memory(4 << 20).build()?;
    let list = List::new(nr);
    let head = Ptr::<Node>::from_raw(list.0);
    let expected = list.sum().wrapping_add(nr as u64);
    let mut sum = 0_u64;
    let to = Ptr::from_raw(&raw mut sum);
    let walk = |unit: &hmm_soft::Unit<'_>| {
        let mut sum = 0_u64;
        let mut at = head;
        while !at.is_null() {
            let value = at.field::<u64>(offset_of!(Node, value));
            // It changes the nodes, too.
            unit.store(value, unit.load(value)? + 1)?;
            sum = sum.wrapping_add(unit.load(value)?);
            at = unit.load(at.field::<Ptr<Node>>(offset_of!(Node, next)))?;
        }
        unit.store(to, sum)
    };
    // SAFETY: nobody else accesses the list or the sum while the kernel runs.
    unsafe { soft.launch(walk) }?;
    ensure!(sum == expected, "the device summed up {sum}, the CPU {expected}");
    ensure!(list.sum() == expected, "the CPU does not see what the device wrote");
    Ok(())
}

fn main() -> Result<()> {
    let nr = std::env::args().nth(1).map_or(Ok(1 << 20), |nr| nr.parse())?;
    list(nr)
}

#[cfg(test)]
mod tests {
    #[cfg_attr(thread_sanitizer, ignore = "the device has what the sanitizer keeps beside the heap")]
    #[test]
    fn the_device_walks_what_the_cpu_built() {
        super::list(20_000).unwrap();
    }
}
