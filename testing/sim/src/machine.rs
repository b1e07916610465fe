//! All of the simulated world but the engine: memory, staging, devices, threads, and the model that watches them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use hmm_core::addr::{BLOCK_PAGES, BlockId, PageRange, Vpn};
use hmm_device::{DeviceError, DevicePfn, Transfer};
use hmm_model::{Arena, Content, Entropy, Generator, Mix, Model, Span};

use crate::choices::Choices;
use crate::device::Frames;
use crate::events::{Event, Events};
use crate::failure::{DeviceVerb, Plan, Verb};
use crate::memory::{Bytes, Memory};
use crate::program::{Thread, Wait};
use crate::setup::Setup;
use crate::slots::Slots;
use crate::trace::Trace;

/// Where the arena lies in the address space.
const BASE: Vpn = BlockId(0x3_f00).page(0);

/// Threads of the program that are in the middle of something.
const MAX_THREADS: usize = 6;

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) setup: Setup,
    pub(crate) model: Model,
    pub(crate) memory: Memory,
    pub(crate) slots: Slots,
    pub(crate) devices: Vec<Frames>,
    pub(crate) events: Events,
    pub(crate) threads: BTreeMap<u32, Thread>,
    pub(crate) nr_threads: u32,
    pub(crate) nr_faults: u64,
    pub(crate) kernel_plan: Plan<Verb>,
    pub(crate) device_plan: Plan<DeviceVerb>,
    /// The address space is gone: every call says so.
    pub(crate) gone: bool,
    /// Spans whose REMOVE has been read, and whose pages have not gone yet.
    pub(crate) dropping: Vec<Span>,
    /// Pages of those that the engine has filled since.
    pub(crate) filled: BTreeSet<u32>,
    /// Pages that the engine believes mapped and that are not: it filled them while the program discarded them.
    pub(crate) ghosts: BTreeSet<u32>,
    /// Pages that are mapped and that the engine does not know: they came between an unmapping and its event.
    pub(crate) strangers: BTreeSet<u32>,
    /// Pages that the engine was told to keep, perhaps unmapped since.
    pub(crate) pinned: BTreeSet<u32>,
    /// Page contents that a device could not give back.
    unreadable: HashSet<u64>,
    /// Transfers under way, one in the middle of the other.
    calls: Vec<Call>,
    /// The simulation's time.
    pub(crate) now: Instant,
    /// Pages that were there before they were managed.
    pub(crate) nr_adopted: u64,
    /// Faults served since a thread of the program last made a step.
    pub(crate) rounds: u32,
    /// Faults that found no memory since then, also in the middle of other calls.
    pub(crate) nr_hungry: u32,
    /// The engine has put a fault off: others go first.
    pub(crate) put_off: bool,
    /// Transfers of devices that have begun.
    pub(crate) nr_transfers: usize,
    /// What drivers did, counted by what it is.
    pub(crate) driven: BTreeMap<&'static str, u64>,
    /// How deep in each other the calls of the engine are.
    pub(crate) depth: u32,
    pub(crate) entropy: Choices,
    pub(crate) trace: Trace,
}

impl Machine {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            model: Model::new(setup.arena),
            memory: Memory::new(setup.arena.nr_pages),
            slots: Slots::new(&setup.config),
            devices: setup.devices.iter().chain(&setup.drivers).copied().map(Frames::new).collect(),
            events: Events::default(),
            threads: BTreeMap::new(),
            nr_threads: 0,
            nr_faults: 0,
            nr_adopted: 0,
            kernel_plan: Plan::new(setup.kernel_failures.clone(), setup.failure_rarity),
            device_plan: Plan::new(setup.device_failures.clone(), setup.failure_rarity),
            gone: false,
            dropping: Vec::new(),
            filled: BTreeSet::new(),
            ghosts: BTreeSet::new(),
            strangers: BTreeSet::new(),
            pinned: BTreeSet::new(),
            unreadable: HashSet::new(),
            calls: Vec::new(),
            now: Instant::now(),
            rounds: 0,
            nr_hungry: 0,
            put_off: false,
            nr_transfers: 0,
            driven: BTreeMap::new(),
            depth: 0,
            entropy: Choices::new(setup.schedule.clone(), setup.seed),
            trace: Trace::default(),
            setup,
        }
    }

    /// Notes a line for the report of a failure.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.push(line());
    }

    /// Counts what a driver did.
    pub(crate) fn count(&mut self, what: &'static str, times: usize) {
        *self.driven.entry(what).or_default() += times as u64;
    }

    pub(crate) const fn arena(&self) -> Arena {
        self.setup.arena
    }

    /// Something of the program happens while the engine is in a call that it makes under its locks: a thread begins
    /// something, or goes on. Nothing in it waits for the engine.
    pub(crate) fn interleave(&mut self) {
        let rarity = self.setup.noise.program;
        if rarity == 0 || !self.entropy.one_in(rarity) {
            return;
        }
        if self.entropy.one_in(2) {
            self.start_any();
        } else {
            self.advance_any();
        }
    }

    /// A thread begins something, unless enough have.
    pub(crate) fn start_any(&mut self) {
        if self.threads.len() >= MAX_THREADS {
            return;
        }
        let generator = Generator { arena: self.arena(), mix: Mix::UPHEAVAL };
        let op = generator.op(&mut self.entropy);
        self.start(&op);
    }

    /// A thread that can goes on. Returns whether there was one.
    pub(crate) fn advance_any(&mut self) -> bool {
        let ready = |thread: &Thread| thread.wait == Wait::Ready;
        let Some(id) = self.pick_thread(ready) else { return false };
        self.advance(id);
        true
    }

    /// One of the threads that pass the test.
    pub(crate) fn pick_thread(&mut self, test: impl Fn(&Thread) -> bool) -> Option<u32> {
        let ids: Vec<u32> =
            self.threads.iter().filter(|(_, thread)| test(thread)).map(|(id, _)| *id).collect();
        let pick = self.entropy.below(u32::try_from(ids.len()).expect("few threads"));
        ids.get(pick as usize).copied()
    }

    /// Reads an event from the kernel: its thread may go on.
    pub(crate) fn read_event(&mut self) -> Option<Event> {
        let (event, id) = self.events.read()?;
        self.note(|| format!("{event:?} is read"));
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.wait = Wait::Ready;
        }
        if let Event::Discarded(span) = event {
            self.dropping.push(span);
        }
        Some(event)
    }

    /// Pages of the arena as the engine names them.
    pub(crate) fn range(span: Span) -> PageRange {
        PageRange::new(Self::vpn(span.first), u64::from(span.len))
    }

    pub(crate) const fn vpn(page: u32) -> Vpn {
        BASE.add(page as u64)
    }

    /// The engine's pages as the arena numbers them.
    pub(crate) fn span(&self, range: PageRange) -> Span {
        let inside = BASE <= range.start && range.end <= Self::vpn(self.arena().nr_pages);
        assert!(inside, "{range:?} leaves the arena");
        let first = u32::try_from(range.start.0 - BASE.0).expect("inside the arena");
        Span::new(first, u32::try_from(range.nr_pages()).expect("inside the arena"))
    }

    /// The page's number in the arena, if it is there.
    pub(crate) fn page(&self, page: Vpn) -> Option<u32> {
        let number = u32::try_from(page.0.checked_sub(BASE.0)?).ok()?;
        (number < self.arena().nr_pages).then_some(number)
    }

    /// The pages of the arena that are in a block.
    pub(crate) fn block_of(&self, page: u32) -> Span {
        let block = u32::try_from(BLOCK_PAGES).expect("a block is small");
        let first = page - page % block;
        Span::new(first, block.min(self.arena().nr_pages - first))
    }

    /// How many of the frames that are asked for a device may hand out.
    pub(crate) fn plan_alloc(&mut self, nr_frames: usize) -> usize {
        self.device_plan
            .make(DeviceVerb::Alloc, nr_frames, &mut self.entropy)
            .map_or(nr_frames, |(_, done)| done)
    }

    /// How a transfer of a device goes: as planned, and not at all when the device is lost.
    pub(crate) fn plan_transfer(&mut self, device: usize, verb: DeviceVerb, nr_pages: usize) -> Transfer {
        let planned = self.device_plan.make(verb, nr_pages, &mut self.entropy);
        if self.devices[device].is_lost() {
            return Transfer::stopped(0, DeviceError::Lost);
        }
        match planned {
            Some((error, done)) => {
                if error == DeviceError::Lost {
                    self.devices[device].lose();
                }
                Transfer::stopped(done, error)
            }
            None => Transfer::complete(nr_pages),
        }
    }

    /// The devices that the engine evicts to.
    pub(crate) fn tiers(&self) -> &[Frames] {
        &self.devices[..self.setup.devices.len()]
    }

    /// A transfer begins; a fetch brings that frame first.
    pub(crate) fn begin_call(&mut self, device: usize, first: Option<&DevicePfn>) {
        let bytes = first.and_then(|pfn| self.devices[device].bytes(*pfn).cloned());
        self.calls.push(Call { device, bytes, given_up: false });
    }

    /// Whether the transfer that is under way has taken too long.
    pub(crate) fn is_given_up(&self) -> bool {
        self.calls.last().is_some_and(|call| call.given_up)
    }

    /// Whether any of them has.
    pub(crate) fn any_given_up(&self) -> bool {
        self.calls.iter().any(|call| call.given_up)
    }

    pub(crate) fn end_call(&mut self) {
        self.calls.pop();
    }

    /// Every transfer that is under way takes too long: what each brings first may be lost, and all that is on a device if none
    /// of its calls returns.
    pub(crate) fn give_up_calls(&mut self) {
        let mut lost: Vec<Bytes> = Vec::new();
        for call in &mut self.calls {
            if self.devices[call.device].may_hang() {
                call.given_up = true;
                lost.extend(call.bytes.clone());
            }
        }
        for (number, device) in self.devices.iter().enumerate() {
            if self.calls.iter().filter(|call| call.given_up && call.device == number).count() >= DEVICE_CALLS
            {
                lost.extend(device.used().filter_map(|(_, bytes)| bytes.cloned()));
            }
        }
        lost.iter().for_each(|bytes| self.note_unreadable(bytes));
    }

    /// The device could not give these bytes back: their page may be lost.
    pub(crate) fn note_unreadable(&mut self, bytes: &Bytes) {
        self.unreadable.insert(hash(bytes));
    }

    /// Whether a device could not give back a page with that content.
    pub(crate) fn may_be_lost(&self, content: &Content) -> bool {
        self.unreadable.contains(&hash(&crate::memory::bytes_of(content)))
    }

    /// The engine poisons a page: it must have been on a device that could not give it back.
    pub(crate) fn lose(&mut self, page: u32) {
        let Some(content) = self.model.content(page) else { return };
        assert!(self.may_be_lost(content), "page {page} is poisoned, and no device failed to give it back");
        self.model.lose(page);
    }
}

/// A transfer under way.
#[derive(Debug)]
struct Call {
    device: usize,
    /// The page that a fetch brings first.
    bytes: Option<Bytes>,
    given_up: bool,
}

/// Calls of a device that the engine lets be under way.
const DEVICE_CALLS: usize = 3;

fn hash(bytes: &Bytes) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
