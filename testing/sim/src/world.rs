//! A world: an engine on a simulated kernel, and the program that it serves.

use std::sync::Arc;

use hmm_core::Engine;
use hmm_device::Device;
use hmm_model::{Entropy, Op, Span};

use crate::device::SimDevice;
use crate::failure::{DeviceVerb, Made, Verb};
use crate::kernel::SimKernel;
use crate::setup::{Noise, Setup};
use crate::shared::Shared;
use crate::{check, runtime};

/// Operations between two comparisons of all bytes.
const BYTES_EVERY: usize = 8;

/// What a run called, for a next one in which a call fails.
#[derive(Clone, Debug)]
pub struct Calls {
    /// Of the kernel door.
    pub kernel: Vec<Made<Verb>>,
    /// Of the devices.
    pub device: Vec<Made<DeviceVerb>>,
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
        let (config, nr_devices) = (setup.config, setup.devices.len());
        let shared = Arc::new(Shared::new(setup));
        let device = |number| Arc::new(SimDevice::new(Arc::clone(&shared), number)) as Arc<dyn Device>;
        let devices = (0..nr_devices).map(device).collect();
        let engine = Arc::new(Engine::new(SimKernel(Arc::clone(&shared)), devices, config));
        shared.set_engine(&engine);
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
        }
        check::bytes(&self.shared, &self.engine);
        self.read_everything();
        self.unmap_everything();
    }

    /// What was called so far.
    pub fn calls(&self) -> Calls {
        let machine = self.shared.lock();
        Calls { kernel: machine.kernel_plan.made().to_vec(), device: machine.device_plan.made().to_vec() }
    }

    /// A way to look at the world from another thread.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn op(&self, op: &Op) {
        match *op {
            Op::Reclaim { steps } => (0..steps).for_each(|_| runtime::reclaim(&self.shared, &self.engine)),
            Op::ReadAhead { steps } => (0..steps).for_each(|_| runtime::read_ahead(&self.shared, &self.engine)),
            Op::Hold { span } if self.shared.lock().entropy.one_in(3) => {
                runtime::pin(&self.shared, &self.engine, span, true);
            }
            Op::Release { span } => {
                runtime::pin(&self.shared, &self.engine, span, false);
                self.start(op);
            }
            Op::Map { .. }
            | Op::Adopt { .. }
            | Op::Unmap { .. }
            | Op::DontNeed { .. }
            | Op::Remap { .. }
            | Op::Protect { .. }
            | Op::Write { .. }
            | Op::Fill { .. }
            | Op::Read { .. }
            | Op::Scan { .. }
            | Op::Hold { .. } => self.start(op),
        }
        runtime::settle(&self.shared, &self.engine);
    }

    fn start(&self, op: &Op) {
        self.shared.lock().start(op);
    }

    /// Touches every page, one at a time.
    fn read_everything(&self) {
        self.shared.lock().note(|| "read everything".to_owned());
        let pages: Vec<u32> = self.shared.lock().model.pages().map(|(page, _)| page).collect();
        for page in pages {
            self.op(&Op::Scan { span: Span::new(page, 1) });
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
            // Nobody sends events any more: the runtime drops all it knows.
            self.engine.events().removed(crate::machine::Machine::range(arena));
        }
        check::empty(&self.shared, &self.engine);
    }
}
