//! The world that the engine's kernel door and its devices share, and what other threads of the runtime do meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use hmm_core::Engine;
use hmm_core::ledger::Ledger;
use hmm_core::stats::Stats;
use hmm_model::{Entropy, Op, Span};

use crate::device::Frames;
use crate::driver::{self, Driver};
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::runtime;
use crate::setup::Setup;

/// Calls of the engine in the middle of each other.
const MAX_DEPTH: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    machine: Mutex<Machine>,
    pub(crate) ledger: Ledger,
    pub(crate) stats: Stats,
    engine: OnceLock<Weak<Engine<SimKernel>>>,
    drivers: OnceLock<Vec<Driver>>,
}

impl Shared {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            ledger: Ledger::new(setup.budget_pages),
            stats: Stats::default(),
            machine: Mutex::new(Machine::new(setup)),
            engine: OnceLock::new(),
            drivers: OnceLock::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless it is in use: for a report from another thread.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Machine>> {
        match self.machine.try_lock() {
            Ok(machine) => Some(machine),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn set_engine(&self, engine: &Arc<Engine<SimKernel>>) {
        let first = self.engine.set(Arc::downgrade(engine)).is_ok();
        assert!(first, "a world has one engine");
    }

    pub(crate) fn set_drivers(&self, drivers: Vec<Driver>) {
        let first = self.drivers.set(drivers).is_ok();
        assert!(first, "drivers come once");
    }

    pub(crate) fn drivers(&self) -> &[Driver] {
        self.drivers.get().map_or(&[], Vec::as_slice)
    }

    /// A transfer begins: what was ordered for its time happens, and what comes by chance.
    pub(crate) fn begin_transfer(&self) {
        let ordered = {
            let mut machine = self.lock();
            let number = machine.nr_transfers;
            machine.nr_transfers += 1;
            let setup = &machine.setup;
            setup
                .meanwhile
                .iter()
                .find(|ordered| ordered.transfer == number)
                .map(|ordered| ordered.ops.clone())
        };
        if let (Some(ops), Some(engine)) = (ordered, self.engine()) {
            self.deepen();
            runtime::meanwhile(self, &engine, &ops);
            self.surface();
        }
        self.intervene();
    }

    /// Reads a word of each page, as a thread of the program would, and lets everybody go on until that is done.
    pub(crate) fn touch(&self, span: Span) {
        let Some(engine) = self.engine() else { return };
        let ops: Vec<_> = span.pages().map(|page| Op::Read { page, word: 0 }).collect();
        self.deepen();
        for op in &ops {
            runtime::meanwhile(self, &engine, std::slice::from_ref(op));
        }
        self.surface();
    }

    /// Has the engine lift the write protection of pages, as a thread of the program that writes would.
    pub(crate) fn lift(&self, span: Span) {
        let Some(engine) = self.engine() else { return };
        for page in span.pages() {
            if self.lock().memory.is_protected(page) {
                let outcome = engine.write_fault(Machine::vpn(page));
                self.lock().note(|| format!("write to {page} = {outcome:?}"));
            }
        }
    }

    fn engine(&self) -> Option<Arc<Engine<SimKernel>>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    fn deepen(&self) {
        let mut machine = self.lock();
        machine.depth += 1;
        machine.note(|| "{".to_owned());
    }

    fn surface(&self) {
        let mut machine = self.lock();
        machine.depth -= 1;
        machine.note(|| "}".to_owned());
    }

    /// Other threads of the runtime call the engine while it is in a call that it makes without locks.
    pub(crate) fn intervene(&self) {
        let Some(engine) = self.engine() else { return };
        let nr_steps = {
            let mut machine = self.lock();
            let rarity = machine.setup.noise.engine;
            if rarity == 0 || machine.depth == MAX_DEPTH || !machine.entropy.one_in(rarity) {
                return;
            }
            1 + machine.entropy.below(6)
        };
        self.deepen();
        for _ in 0..nr_steps {
            let choice = {
                let mut machine = self.lock();
                let may_hang = machine.devices.iter().any(Frames::may_hang);
                if may_hang && machine.entropy.one_in(8) {
                    drop(machine);
                    runtime::let_time_pass(self, &engine);
                    continue;
                }
                // A driver's own steps are many: not in the middle of the middle.
                let with_drivers = !self.drivers().is_empty() && machine.depth == 1;
                machine.entropy.below(if with_drivers { 10 } else { 8 })
            };
            match choice {
                8.. => driver::act(self, &engine),
                0 => self.lock().start_any(),
                1 => runtime::reclaim(self, &engine),
                2 => runtime::read_ahead(self, &engine),
                _ => drop(runtime::pump(self, &engine)),
            }
        }
        self.surface();
    }
}
