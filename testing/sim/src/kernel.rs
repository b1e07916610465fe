//! The simulated kernel: what Linux does with pages when userfaultfd asks it to, in safe Rust.

use std::ops::Range;
use std::sync::Arc;

use hmm_core::addr::{BLOCK_PAGES, Bay, BlockId, PageRange, Slot, SlotRun, Vpn};
use hmm_core::bits::PageSet;
use hmm_core::kernel::{BayScan, Kernel, MovedOut, Progress, Refusal, Seen, Stop};
use hmm_core::ledger::Ledger;
use hmm_core::stats::Stats;
use hmm_model::{Entropy, Span};

use crate::check::budget;
use crate::device;
use crate::failure::Verb;
use crate::machine::Machine;
use crate::memory::{Bytes, Entry, Held, Whose, zeroes};
use crate::setup::Noise;
use crate::shared::Shared;

/// The engine's kernel door.
#[derive(Clone, Debug)]
pub(crate) struct SimKernel(pub(crate) Arc<Shared>);

/// How far a call may go, and why not further.
struct Limit {
    nr_pages: usize,
    stop: Option<Stop>,
}

impl Machine {
    /// Begins a call: something may happen first, and the call may be one that has to fail.
    fn begin(&mut self, verb: Verb, nr_pages: usize) -> Limit {
        let was_changing = self.events.is_changing();
        self.interleave();
        let planned = self.kernel_plan.make(verb, nr_pages, &mut self.entropy);
        if self.gone {
            return Limit { nr_pages: 0, stop: Some(Stop::Gone) };
        }
        if let Some((stop, done)) = planned {
            self.gone = stop == Stop::Gone;
            let nr_pages = if self.events.is_changing() { 0 } else { done };
            return Limit { nr_pages, stop: Some(stop) };
        }
        if !self.events.is_changing() {
            return Limit { nr_pages, stop: None };
        }
        // A discard begins at any time, also in the middle of the call. Everything else excludes the call by a lock.
        let bound = if was_changing || !self.events.are_discards() { 1 } else { nr_pages };
        let done = self.entropy.below(u32::try_from(bound).unwrap_or(1)) as usize;
        Limit { nr_pages: done, stop: Some(Stop::Changing) }
    }

    /// Fills holes of the program, page by page from the front.
    fn fill(
        &mut self,
        verb: Verb,
        dst: PageRange,
        mut page: impl FnMut(&mut Self, usize) -> Result<Entry, Stop>,
    ) -> Progress {
        let span = self.span(dst);
        let limit = self.begin(verb, span.len as usize);
        let mut progress = Progress { done: limit.nr_pages, stop: limit.stop };
        if limit.nr_pages > 0 && !self.suits(verb, span) {
            progress = Progress { done: 0, stop: Some(Stop::Unsuited) };
        }
        for (number, index) in span.pages().zip(0..progress.done) {
            let filled = if self.memory.is_hole(number) { page(self, index) } else { Err(Stop::Exists) };
            match filled {
                Ok(entry) => self.fill_hole(number, entry),
                Err(stop) => {
                    progress = Progress { done: index, stop: Some(stop) };
                    break;
                }
            }
        }
        self.wake(Span::new(span.first, u32::try_from(progress.done).unwrap_or(0)));
        self.note(|| format!("  {verb:?} {span:?} = {progress:?}"));
        progress
    }

    /// Whether the pages are in one mapping, of a kind that the call works on: Linux looks at that first.
    fn suits(&self, verb: Verb, span: Span) -> bool {
        let run = self.memory.first_run(span).filter(|(run, _)| *run == span);
        let is_move = matches!(verb, Verb::MoveHome | Verb::MapFrames | Verb::UnmapFrames);
        run.is_some_and(|(_, mapping)| mapping.managed && (mapping.writable || !is_move))
    }

    fn fill_hole(&mut self, page: u32, entry: Entry) {
        if self.dropping.iter().any(|span| span.contains(page)) {
            self.filled.insert(page);
        }
        self.ghosts.remove(&page);
        self.memory.put(page, entry);
    }

    fn unprotect(&mut self, range: PageRange) -> Option<Stop> {
        let span = self.span(range);
        let limit = self.begin(Verb::Unprotect, span.len as usize);
        if limit.stop.is_none() && !span.pages().all(|page| self.memory.is_managed(page)) {
            return Some(Stop::Unsuited);
        }
        let done = Span::new(span.first, u32::try_from(limit.nr_pages).unwrap_or(0));
        self.memory.unprotect(done);
        if limit.stop.is_none() {
            self.wake(span);
        }
        self.note(|| format!("  Unprotect {span:?}, stop {:?}", limit.stop));
        limit.stop
    }

    fn move_out(&mut self, src: PageRange, bay: Bay) -> MovedOut {
        let limit = self.begin(Verb::MoveOut, usize::try_from(src.nr_pages()).unwrap_or(0));
        let mut stop = None;
        let mut pages = PageSet::EMPTY;
        let huge = self.page(src.start).is_some_and(|first| self.memory.is_huge(first));
        for vpn in src.iter().take(limit.nr_pages) {
            match self.move_page_out(vpn, bay.slot(vpn.index())) {
                Ok(true) => pages.insert(vpn.index()),
                Ok(false) => {}
                Err(reason) => stop = Some(reason),
            }
        }
        let moved = pages.len();
        let was_huge = huge && moved == BLOCK_PAGES;
        if was_huge || (moved == BLOCK_PAGES && self.entropy.one_in(2)) {
            self.note(|| format!("  {bay:?} is one huge page"));
            self.slots.set_huge(bay);
        }
        // What ended the call counts more than what a page in front of that did.
        let stop = limit.stop.or(stop);
        self.note(|| format!("  MoveOut {src:?} to {bay:?} moves {moved}, stop {stop:?}"));
        MovedOut { pages, stop }
    }

    /// Moves a page to a slot. Returns whether there was one.
    fn move_page_out(&mut self, vpn: Vpn, slot: Slot) -> Result<bool, Stop> {
        // What is not registered is no business of ours.
        let Some(page) = self.page(vpn).filter(|page| self.memory.is_managed(*page)) else {
            return Ok(false);
        };
        if !self.memory.mapping(page).is_some_and(|mapping| mapping.writable) {
            return Err(Stop::Unsuited);
        }
        match self.memory.take(page) {
            None => Ok(false),
            Some(Entry::Present { bytes, held: Held::No | Held::Protected, .. }) => {
                self.slots.fill(slot, bytes);
                self.strangers.remove(&page);
                Ok(true)
            }
            Some(held @ Entry::Present { .. }) => {
                self.memory.put(page, held);
                Err(Stop::Busy)
            }
            Some(Entry::Poisoned) => {
                self.memory.put(page, Entry::Poisoned);
                Err(Stop::Unsuited)
            }
        }
    }
}

impl Machine {
    /// Moves pages back to frames, page by page from the front.
    fn unmap_frames(&mut self, src: PageRange, dst: u64) -> Progress {
        let span = self.span(src);
        let limit = self.begin(Verb::UnmapFrames, span.len as usize);
        let mut progress = Progress { done: limit.nr_pages, stop: limit.stop };
        if limit.nr_pages > 0 && !self.suits(Verb::UnmapFrames, span) {
            progress = Progress { done: 0, stop: Some(Stop::Unsuited) };
        }
        for (page, index) in span.pages().zip(0..progress.done) {
            if let Err(stop) = self.unmap_frame(page, dst + (index * hmm_model::PAGE_SIZE) as u64) {
                progress = Progress { done: index, stop: Some(stop) };
                break;
            }
        }
        self.note(|| format!("  UnmapFrames {span:?} = {progress:?}"));
        progress
    }

    fn unmap_frame(&mut self, page: u32, addr: u64) -> Result<(), Stop> {
        match self.memory.take(page) {
            None => Err(Stop::Absent),
            Some(Entry::Present { bytes, held: Held::No, .. }) => {
                let (device, pfn) = device::frame_at(addr);
                self.devices[device].put_back(pfn, bytes);
                self.strangers.remove(&page);
                Ok(())
            }
            Some(entry) => {
                let is_busy = matches!(entry, Entry::Present { .. });
                self.memory.put(page, entry);
                Err(if is_busy { Stop::Busy } else { Stop::Unsuited })
            }
        }
    }
}

/// Where staging lies in the address space: behind the arena.
const STAGING: u64 = 0x7000_0000_0000;

const fn slot_addr(slot: Slot) -> u64 {
    STAGING + slot.0 as u64 * hmm_model::PAGE_SIZE as u64
}

/// The slot at an address.
pub(crate) fn slot_at(addr: u64) -> Slot {
    Slot(u32::try_from((addr - STAGING) / hmm_model::PAGE_SIZE as u64).expect("an address in staging"))
}

const fn present(bytes: Bytes) -> Entry {
    Entry::Present { bytes, held: Held::No, of: Whose::System }
}

impl SimKernel {
    /// A call that changes what is resident.
    fn call<T>(&self, call: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.0.lock();
        let outcome = call(&mut machine);
        budget::check_resident(&self.0, &machine);
        machine.be_peeked_at();
        machine.interleave();
        outcome
    }
}

impl Machine {
    /// Somebody else reads some of our memory, perhaps: a debugger, who goes through all of it.
    fn be_peeked_at(&mut self) {
        const MANY: u32 = 64;
        let rarity = self.setup.peek_rarity;
        if rarity == 0 || !self.entropy.one_in(rarity) {
            return;
        }
        let nr_slots = u32::try_from(self.slots.nr_slots()).unwrap_or(u32::MAX);
        let (first, many) = (self.entropy.below(nr_slots), self.entropy.one_in(2));
        let last = nr_slots.min(first + if many { MANY } else { 1 });
        self.note(|| format!("  slots {first} to {last} are read"));
        (first..last).for_each(|slot| self.slots.peek(Slot(slot)));
    }
}

impl Kernel for SimKernel {
    fn move_out(&self, src: PageRange, bay: Bay) -> MovedOut {
        self.call(|machine| machine.move_out(src, bay))
    }

    fn move_home(&self, src: Slot, dst: PageRange) -> Progress {
        let page = |machine: &mut Machine, index| {
            machine.slots.take(src.add(index)).map(present).ok_or(Stop::Absent)
        };
        self.call(|machine| {
            let huge = machine.slots.scan(src.bay()).huge && src.index() == dst.start.index();
            let progress = machine.fill(Verb::MoveHome, dst, page);
            if huge && progress.done == BLOCK_PAGES {
                let first = machine.span(dst).first;
                machine.memory.set_huge(first);
            }
            progress
        })
    }

    fn copy_home(&self, src: Slot, dst: PageRange) -> Progress {
        let page = |machine: &mut Machine, index| {
            machine.slots.copy(src.add(index)).map(present).ok_or(Stop::Absent)
        };
        self.call(|machine| machine.fill(Verb::CopyHome, dst, page))
    }

    fn copy_home_protected(&self, src: Slot, dst: PageRange) -> Progress {
        let page = |machine: &mut Machine, index| {
            let bytes = machine.slots.copy(src.add(index)).ok_or(Stop::Absent)?;
            Ok(Entry::Present { bytes, held: Held::Protected, of: Whose::System })
        };
        self.call(|machine| machine.fill(Verb::CopyHome, dst, page))
    }

    fn unprotect(&self, dst: PageRange) -> Option<Stop> {
        self.call(|machine| machine.unprotect(dst))
    }

    fn zero_home(&self, dst: PageRange) -> Progress {
        self.call(|machine| machine.fill(Verb::ZeroHome, dst, |_, _| Ok(present(zeroes()))))
    }

    fn zero_page_home(&self, dst: Vpn) -> Progress {
        self.zero_home(PageRange::new(dst, 1))
    }

    fn poison(&self, dst: PageRange) -> Progress {
        self.call(|machine| {
            let first = machine.span(dst).first;
            machine.fill(Verb::Poison, dst, |machine, index| {
                machine.lose(first + u32::try_from(index).unwrap_or(0));
                Ok(Entry::Poisoned)
            })
        })
    }

    fn wake(&self, range: PageRange) {
        let mut machine = self.0.lock();
        let span = machine.span(range);
        machine.note(|| format!("  Wake {span:?}"));
        machine.wake(span);
        machine.interleave();
    }

    fn present(&self, block: BlockId) -> PageSet {
        crate::runtime::present(&self.0.lock(), block)
    }

    fn is_changing(&self) -> bool {
        self.0.lock().events.is_changing()
    }

    fn scan_bay(&self, bay: Bay) -> BayScan {
        self.0.lock().slots.scan(bay)
    }

    fn fill_bay(&self, bay: Bay) -> BayScan {
        self.call(|machine| {
            // Memory is in small pieces, now and then.
            let is_calm = machine.setup.noise == Noise::NONE && machine.setup.failure_rarity == 0;
            if !is_calm && machine.entropy.one_in(4) {
                return machine.slots.scan(bay);
            }
            (0..BLOCK_PAGES).for_each(|index| machine.slots.populate(bay.slot(index), zeroes()));
            if is_calm || !machine.entropy.one_in(4) {
                machine.slots.set_huge(bay);
            }
            machine.slots.scan(bay)
        })
    }

    fn release(&self, run: SlotRun) {
        let mut machine = self.0.lock();
        machine.note(|| format!("  Release {run:?}"));
        machine.slots.release(run);
        machine.interleave();
    }

    fn lend_frames(&self, memory: Range<u64>) -> bool {
        device::frame_at(memory.start).0 < self.0.lock().devices.len()
    }

    fn end_frames(&self, memory: Range<u64>) {
        let mut machine = self.0.lock();
        let (device, _) = device::frame_at(memory.start);
        assert_eq!(machine.devices[device].used().count(), 0, "frames of a device that is gone");
        machine.interleave();
    }

    fn map_frames(&self, src: u64, dst: PageRange) -> Progress {
        let page = |machine: &mut Machine, index: usize| {
            let (device, pfn) = device::frame_at(src + (index * hmm_model::PAGE_SIZE) as u64);
            let bytes = machine.devices[device].take(pfn).ok_or(Stop::Absent)?;
            Ok(Entry::Present { bytes, held: Held::No, of: Whose::Device })
        };
        self.call(|machine| machine.fill(Verb::MapFrames, dst, page))
    }

    fn unmap_frames(&self, src: PageRange, dst: u64) -> Progress {
        self.call(|machine| machine.unmap_frames(src, dst))
    }

    fn unshare(&self, range: PageRange) {
        let mut machine = self.0.lock();
        let first = range.start;
        let Some(page) = machine.page(first) else { return };
        // The range is a block, which may reach behind the arena.
        let span = machine.block_of(page);
        machine.memory.unshare(span);
        drop(machine);
        self.0.intervene();
    }

    fn slot_addr(&self, slot: Slot) -> u64 {
        slot_addr(slot)
    }

    fn with_slots(&self, run: SlotRun, read: &mut dyn FnMut(&[u8])) {
        let bytes = self.0.lock().slots.begin_read(run);
        read(&bytes);
        self.0.lock().slots.end_read(run);
    }

    fn with_slots_mut(&self, run: SlotRun, write: &mut dyn FnMut(&mut [u8])) {
        let mut bytes = self.0.lock().slots.begin_write(run);
        write(&mut bytes);
        self.0.lock().slots.end_write(run, &bytes);
    }

    fn walk(&self, range: PageRange, seen: &mut [Seen]) -> Result<(), Refusal> {
        let machine = self.0.lock();
        for (vpn, seen) in range.iter().zip(seen) {
            *seen = machine.page(vpn).map_or(Seen::default(), |page| machine.memory.seen(page));
        }
        Ok(())
    }

    fn populate(&self, range: PageRange, write: bool) -> Result<(), Refusal> {
        let span = self.0.lock().span(range);
        self.0.touch(span);
        if write {
            self.0.lift(span);
        }
        let mut machine = self.0.lock();
        if write {
            machine.memory.unshare(span);
        }
        // Those that are not there now have left again.
        let is_lost = |page| machine.memory.entry(page).is_some() && !machine.memory.is_present(page);
        let refused = machine.gone || span.pages().any(is_lost);
        if refused { Err(Refusal::Fault) } else { Ok(()) }
    }

    fn extent(&self, page: Vpn) -> PageRange {
        let machine = self.0.lock();
        let none = PageRange::new(page, 0);
        let Some(number) = machine.page(page).filter(|page| machine.memory.is_managed(*page)) else {
            return none;
        };
        machine.memory.extent(number, machine.block_of(number)).map_or(none, Machine::range)
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn stats(&self) -> &Stats {
        &self.0.stats
    }
}
