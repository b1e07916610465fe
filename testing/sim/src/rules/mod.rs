//! The rules of driver migration and exclusive access, one by one (the list that Linux keeps, see `hmm_core::driver`).
//!
//! A program has filled sixteen pages; two drivers have devices of plain memory, and write down what they are told.

mod changes;
mod coherent;
mod demotion;
mod duplicates;
mod exclusive;
mod fault;
mod held;
mod huge;
mod migration;
mod overtaken;
mod removal;
mod stock;

use std::sync::{Arc, Mutex};

use hmm_core::addr::{PageRange, Vpn};
use hmm_core::driver::{Collected, Migration, Select};
use hmm_core::notifier::{Cause, Change, Notifier, Owner, Pass, Watch};
use hmm_core::state::PageState;
use hmm_core::{DeviceId, Engine};
use hmm_device::{Device, DevicePfn, Ram};
use hmm_model::{Op, Pattern, Span};

use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::setup::Setup;
use crate::world::World;
use crate::{check, runtime};

/// What the program has filled.
const DATA: Span = Span::new(0, 16);
/// Frames of each driver's device.
const NR_FRAMES: usize = 64;

/// Writes down what it is told, and does not ignore anything.
#[derive(Debug)]
struct Scribe;

impl Watch for Scribe {
    type Table = Vec<Change>;

    fn invalidate(&self, table: &mut Vec<Change>, change: &Change) -> Pass {
        table.push(*change);
        Pass::Done
    }
}

struct Driver {
    owner: Owner,
    id: DeviceId,
    device: Arc<Ram>,
}

impl Driver {
    fn new(engine: &Engine<SimKernel>, owner: u64, nr_frames: usize) -> Self {
        let (owner, device) = (Owner(owner), Arc::new(Ram::new(nr_frames)));
        let id = engine.add_device(Arc::clone(&device) as _, owner).expect("there are few");
        Self { owner, id, device }
    }

    /// Frames that are in use.
    fn nr_used(&self) -> u64 {
        self.device.usage().frames
    }

    fn frame(&self) -> DevicePfn {
        let mut frames = [DevicePfn::default()];
        assert_eq!(self.device.alloc(&mut frames), 1, "the device has room");
        frames[0]
    }
}

struct Fixture {
    world: World,
    one: Driver,
    two: Driver,
    log: Notifier<Scribe>,
}

impl Fixture {
    fn new() -> Self {
        Self::with_frames(NR_FRAMES)
    }

    fn with_frames(nr_frames: usize) -> Self {
        Self::with_setup(nr_frames, Setup { budget_pages: 1300, ..Setup::calm(1) })
    }

    /// As [`with_frames`](Self::with_frames); the memory that a page leaves behind is used for others.
    fn that_reuses_memory(nr_frames: usize) -> Self {
        let calm = Setup::calm(1);
        let config = hmm_core::Config { reuses_memory: true, ..calm.config };
        Self::with_setup(nr_frames, Setup { budget_pages: 1300, config, ..calm })
    }

    /// An address space without a budget.
    fn mirrored() -> Self {
        let calm = Setup::calm(1);
        let config = hmm_core::Config { zero_page: true, reuses_memory: true, ..calm.config };
        Self::with_setup(NR_FRAMES, Setup { budget_pages: 1 << 20, config, ..calm })
    }

    fn with_setup(nr_frames: usize, setup: Setup) -> Self {
        let arena = setup.arena.all();
        let world = World::new(setup);
        world.op(&Op::Map { span: arena });
        world.op(&Op::Fill { span: DATA, pattern: Pattern::Noise, stamp: 7 });
        let (one, two) =
            (Driver::new(world.engine(), 1, nr_frames), Driver::new(world.engine(), 2, nr_frames));
        let table = Arc::new(Mutex::new(Vec::new()));
        let range = Machine::range(arena);
        let log = Notifier::new(world.engine().notifiers(), range, table, Scribe).expect("has pages");
        Self { world, one, two, log }
    }

    fn engine(&self) -> &Engine<SimKernel> {
        self.world.engine()
    }

    fn setup(&self, span: Span, select: Select, driver: &Driver) -> Migration<'_, SimKernel, Collected> {
        self.engine().migrate_setup(Machine::range(span), select, driver.owner).expect("a short range")
    }

    /// Takes a span to the first driver's device. Returns how many pages went.
    fn take(&self, span: Span) -> usize {
        let mut migration = self.setup(span, Select::SYSTEM, &self.one);
        migration.store(self.one.id).expect("the device is its driver's");
        migration.pages().finalize()
    }

    fn state(&self, page: u32) -> PageState {
        self.engine().state(Machine::vpn(page))
    }

    fn is_away(&self, page: u32) -> bool {
        matches!(self.state(page), PageState::Device { .. })
    }

    /// What the drivers were told since the last time.
    fn told(&self) -> Vec<(PageRange, Cause, Option<Owner>)> {
        let changes = std::mem::take(&mut *self.log.table());
        changes.iter().map(|change| (change.range, change.cause, change.owner)).collect()
    }

    /// A thread of the program does something, and may be left waiting.
    fn begin(&self, op: &Op) {
        self.world.start(op);
        while runtime::pump(&self.world.shared(), self.engine()) {}
    }

    fn nr_waiting(&self) -> usize {
        self.world.shared().lock().threads.len()
    }

    /// The program reads what is mapped of a span.
    fn scan(&self, span: Span) {
        span.pages().for_each(|page| self.world.op(&Op::scan(Span::new(page, 1))));
    }

    /// The program reads what it wrote, and everything is somewhere once.
    fn verify(&self) {
        runtime::settle(&self.world.shared(), self.engine());
        self.scan(DATA);
        check::all(&self.world.shared(), self.engine());
        check::bytes(&self.world.shared(), self.engine());
        assert_eq!((self.one.nr_used(), self.two.nr_used()), (0, 0), "frames of pages that are home");
    }
}

fn vpn(page: u32) -> Vpn {
    Machine::vpn(page)
}

fn range(first: u32, len: u32) -> PageRange {
    Machine::range(Span::new(first, len))
}
