//! The page table of an open device, and how it is kept in step with the program's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::notifier::{Cause, Change, Owner, Pass, Watch};
use hmm_device::DevicePfn;
use hmm_uapi::sys::gettid;

use crate::abi::Number;

/// Where the device finds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the program's address: system memory, or a coherent device's.
    System {
        /// It was the kernel's page of zeroes.
        zero: bool,
    },
    /// In the device's own memory.
    Frame(DevicePfn),
    /// In system memory that only the device may use, at this address.
    Exclusive(u64),
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    /// Never for exclusive pages: writing to one begins with a fault, as Linux's device has it.
    pub(crate) write: bool,
}

/// The page table of an open device.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<u64, Entry>);

impl Table {
    pub(crate) fn get(&self, page: Vpn) -> Option<Entry> {
        self.0.get(&page.0).copied()
    }

    pub(crate) fn set(&mut self, page: Vpn, entry: Entry) {
        self.0.insert(page.0, entry);
    }

    pub(crate) fn remove(&mut self, range: PageRange) {
        if !range.is_empty() {
            self.0.extract_if(range.start.0..range.end.0, |_, _| true).for_each(drop);
        }
    }

    pub(crate) fn any_exclusive(&self, range: PageRange) -> bool {
        let is_exclusive = |entry: &Entry| matches!(entry.place, Place::Exclusive(_));
        !range.is_empty() && self.0.range(range.start.0..range.end.0).any(|(_, entry)| is_exclusive(entry))
    }
}

/// The identity of a device: pages are its own whoever has it open.
pub const fn owner_of(device: Number) -> Owner {
    // "dmirror" and the number, unlike anybody else's.
    Owner(u64::from_be_bytes(*b"dmirror\0") | device.get() as u64)
}

/// No thread has this number.
const NOBODY: i32 = 0;

/// Keeps a table in step: what changes is dropped from it.
#[derive(Debug)]
pub struct Follow {
    owner: Owner,
    /// The thread that migrates for this mirror, which keeps the table right by itself. What others migrate is a change
    /// like any other, also when it is a page of this device that comes home.
    migrating: AtomicI32,
}

impl Follow {
    pub(crate) fn new(owner: Owner) -> Self {
        Self { owner, migrating: AtomicI32::new(NOBODY) }
    }

    /// Does something in which what this thread migrates or makes exclusive is not told to the table.
    pub fn migrating<R>(&self, work: impl FnOnce() -> R) -> R {
        self.migrating.store(gettid(), Ordering::Relaxed);
        let result = work();
        self.migrating.store(NOBODY, Ordering::Relaxed);
        result
    }
}

impl Watch for Follow {
    type Table = Table;

    fn ignores(&self, change: &Change) -> bool {
        matches!(change.cause, Cause::Migrate | Cause::Exclusive)
            && change.owner == Some(self.owner)
            && self.migrating.load(Ordering::Relaxed) == gettid()
    }

    fn invalidate(&self, table: &mut Table, change: &Change) -> Pass {
        table.remove(change.range);
        Pass::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(cause: Cause, owner: Owner) -> Change {
        Change { range: PageRange::new(Vpn(10), 2), cause, owner: Some(owner) }
    }

    #[test]
    fn only_the_own_migration_of_the_own_thread_is_ignored() {
        let (own, other) = (
            owner_of(Number::new(0).expect("there is one")),
            owner_of(Number::new(1).expect("there is one")),
        );
        let follow = Follow::new(own);
        assert!(!follow.ignores(&change(Cause::Migrate, own)), "a page comes home");
        follow.migrating(|| {
            assert!(follow.ignores(&change(Cause::Migrate, own)));
            assert!(!follow.ignores(&change(Cause::Migrate, other)));
            assert!(!follow.ignores(&change(Cause::Clear, own)));
        });
        follow.migrating.store(gettid() + 1, Ordering::Relaxed);
        assert!(!follow.ignores(&change(Cause::Migrate, own)), "another thread migrates");
    }

    #[test]
    fn a_change_takes_its_range_and_nothing_else() {
        let follow = Follow::new(Owner(1));
        let mut table = Table::default();
        for page in 8..14 {
            table.set(Vpn(page), Entry { place: Place::System { zero: false }, write: false });
        }
        assert_eq!(follow.invalidate(&mut table, &change(Cause::Unmap, Owner(1))), Pass::Done);
        let left: Vec<_> = (0..20).filter(|page| table.get(Vpn(*page)).is_some()).collect();
        assert_eq!(left, [8, 9, 12, 13]);
    }
}
