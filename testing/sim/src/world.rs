//! A world: an engine on a simulated kernel, and the program that it serves.

use std::sync::Arc;

use hmm_core::Engine;
use hmm_device::Device;
use hmm_model::{Entropy, Op, Span};

use crate::device::SimDevice;
use crate::driver::{self, Driver};
use crate::failure::{DeviceVerb, Made, Verb};
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::setup::{Noise, Setup};
use crate::shared::Shared;
use crate::{check, runtime};

/// Operations between two comparisons of all bytes.
const BYTES_EVERY: usize = 8;

/// Operations between two looks of a driver.
const MIRROR_EVERY: usize = 5;

/// What happened in a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Calls of the kernel door, for a next run in which one of them fails.
    pub kernel_calls: Vec<Made<Verb>>,
    /// Calls of the devices.
    pub device_calls: Vec<Made<DeviceVerb>>,
    /// The engine's counters, and what drivers did.
    pub counters: Vec<(&'static str, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    shared: Arc<Shared>,
    engine: Arc<Engine<SimKernel>>,
}

impl World {
    /// A world in which nothing is mapped.
    pub fn new(setup: Setup) -> Self {
        let (config, nr_devices, nr_drivers) = (setup.config, setup.devices.len(), setup.drivers.len());
        let shared = Arc::new(Shared::new(setup));
        let device = |number| Arc::new(SimDevice::new(Arc::clone(&shared), number)) as Arc<dyn Device>;
        let devices = (0..nr_devices).map(device).collect();
        let engine = Arc::new(Engine::new(SimKernel(Arc::clone(&shared)), devices, config));
        shared.set_engine(&engine);
        let first = u8::try_from(nr_devices).expect("few devices");
        let drivers = (first..).zip(0..nr_drivers);
        shared.set_drivers(drivers.map(|(number, _)| Driver::new(&shared, &engine, number)).collect());
        Self { shared, engine }
    }

    /// Runs the operations one by one, and checks behind each. Then reads everything, unmaps everything, and checks that
    /// nothing is left.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn run(&self, ops: &[Op]) {
        for (number, op) in ops.iter().enumerate() {
            self.shared.lock().note(|| format!("op {number}: {op:?}"));
            self.op(op);
            check::all(&self.shared, &self.engine);
            if number % BYTES_EVERY == 0 {
                check::bytes(&self.shared, &self.engine);
            }
            if number % MIRROR_EVERY == 0 {
                check::mirror(&self.shared, &self.engine);
                // Where memory is short some of the driver's touches are still waiting.
                runtime::settle(&self.shared, &self.engine);
                // From here on what was discarded may be duplicated.
                self.engine.settle();
                check::all(&self.shared, &self.engine);
            }
        }
        check::bytes(&self.shared, &self.engine);
        check::peek(&self.shared, &self.engine);
        self.remove_devices();
        self.read_everything();
        if self.shared.lock().gone {
            self.forget_everything();
        } else {
            self.unmap_everything();
        }
    }

    /// The program has ended, or executes another: nobody sends events any more, and the runtime drops all it knows.
    fn forget_everything(&self) {
        let arena = self.shared.lock().arena().all();
        self.engine.events().removed(Machine::range(arena));
        check::nothing_kept(&self.shared, &self.engine);
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        let machine = self.shared.lock();
        Report {
            kernel_calls: machine.kernel_plan.made().to_vec(),
            device_calls: machine.device_plan.made().to_vec(),
            counters: self.shared.stats.counters().chain(machine.driven.clone()).collect(),
        }
    }

    /// A way to look at the world from another thread.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &Arc<Engine<SimKernel>> {
        &self.engine
    }

    /// Does one operation, and lets everybody come to an end with it.
    pub(crate) fn op(&self, op: &Op) {
        if !self.shared.drivers().is_empty() && !self.shared.lock().gone {
            driver::act(&self.shared, &self.engine);
        }
        let pin = |span, pinned| runtime::pin(&self.shared, &self.engine, span, pinned);
        if runtime::background(&self.shared, &self.engine, op) {
            // Done.
        } else if let Op::Hold { span } = *op
            && self.shared.lock().entropy.one_in(3)
        {
            pin(span, true);
        } else {
            if let Op::Release { span } = *op {
                pin(span, false);
            }
            self.start(op);
        }
        runtime::settle(&self.shared, &self.engine);
    }

    pub(crate) fn start(&self, op: &Op) {
        let mut machine = self.shared.lock();
        if !machine.gone {
            machine.start(op);
        }
    }

    /// Every second world loses its drivers' devices while they are in use.
    fn remove_devices(&self) {
        if self.shared.lock().gone || self.shared.lock().setup.seed.is_multiple_of(2) {
            return;
        }
        let noise = std::mem::replace(&mut self.shared.lock().setup.noise, Noise::NONE);
        self.shared.drivers().iter().for_each(|driver| driver.remove(&self.shared, &self.engine));
        runtime::settle(&self.shared, &self.engine);
        self.shared.lock().setup.noise = noise;
        check::all(&self.shared, &self.engine);
        check::bytes(&self.shared, &self.engine);
    }

    /// Touches every page, one at a time.
    fn read_everything(&self) {
        self.shared.lock().note(|| "read everything".to_owned());
        let pages: Vec<u32> = self.shared.lock().model.pages().map(|(page, _)| page).collect();
        for page in pages {
            self.op(&Op::scan(Span::new(page, 1)));
        }
        check::all(&self.shared, &self.engine);
    }

    fn unmap_everything(&self) {
        let arena = {
            let mut machine = self.shared.lock();
            machine.note(|| "unmap everything".to_owned());
            machine.setup.noise = Noise::NONE;
            machine.arena().all()
        };
        self.op(&Op::Unmap { span: arena });
        if self.shared.lock().gone {
            // At the last moment: nobody is told of the unmapping.
            return self.forget_everything();
        }
        check::all(&self.shared, &self.engine);
        check::nothing_kept(&self.shared, &self.engine);
    }
}
