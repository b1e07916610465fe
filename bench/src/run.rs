//! The order of measurements: systems take turns, so that whatever changes on the machine over time hits them alike.

use crate::args::Plan;
use crate::child::{GivenUp, check_stopped};
use crate::data::Data;
use crate::outcome::Outcome;
use crate::report::{Cell, Medians, Skipped};
use crate::system::{System, measure};
use crate::worker::WorkerArgs;
use crate::workload::Workload;
use anyhow::{Context, Result};
use std::io::{IsTerminal, Write};

/// How often a worker is started again after the kernel has killed it for want of memory.
const RESTARTS: u32 = 2;

/// What was measured, and which systems could not be.
pub(crate) type Measured = (Vec<Cell>, Vec<Skipped>);

/// Makes all measurements of the plan.
///
/// # Errors
/// A signal, wrong bytes, or something that concerns all systems alike.
pub(crate) fn run(plan: &Plan) -> Result<Measured> {
    let mut run =
        Run { plan, skipped: Vec::new(), proven: Vec::new(), progress: Progress::new(plan.nr_runs()) };
    let mut cells: Vec<Cell> = Vec::new();
    for data in &plan.data {
        for workload in &plan.workloads {
            cells.extend(run.take_turns(*data, *workload)?);
        }
    }
    let skipped = run.skipped;
    cells.retain(|cell| cell.was_tried() || skipped.iter().all(|skipped| skipped.system != cell.system));
    Ok((cells, skipped))
}

#[derive(Debug)]
struct Run<'a> {
    plan: &'a Plan,
    skipped: Vec<Skipped>,
    /// Systems that have worked: from then on, that one does not is a failure.
    proven: Vec<System>,
    progress: Progress,
}

impl Run<'_> {
    /// All repetitions of one workload on all systems.
    fn take_turns(&mut self, data: Data, workload: Workload) -> Result<Vec<Cell>> {
        let systems = &self.plan.systems;
        let mut cells: Vec<Cell> = systems.iter().map(|system| Cell::new(data, workload, *system)).collect();
        for rep in 0..self.plan.reps {
            for cell in &mut cells {
                self.progress.step(cell, rep);
                if !self.is_skipped(cell.system) && !cell.given_up {
                    self.repeat(cell, rep)?;
                }
            }
        }
        for cell in &mut cells {
            cell.median = Medians::of(&cell.repetitions);
        }
        Ok(cells)
    }

    fn is_skipped(&self, system: System) -> bool {
        self.skipped.iter().any(|skipped| skipped.system == system)
    }

    /// One repetition, started again when the kernel kills it.
    fn repeat(&mut self, cell: &mut Cell, rep: u32) -> Result<()> {
        let worker = WorkerArgs {
            workload: cell.workload,
            data: cell.data,
            size: self.plan.size,
            passes: self.plan.passes,
            threads: self.plan.threads,
            seed: u64::from(rep),
            file: None,
            in_thread: None,
        };
        for _ in 0..=RESTARTS {
            check_stopped()?;
            let (workload, system) = (cell.workload.name(), cell.system.name());
            let outcome = measure(cell.system, &self.plan.budget, &worker);
            if let Err(error) = &outcome
                && let Some(slow) = error.downcast_ref::<GivenUp>()
            {
                cell.failures.push(format!("repetition {}: {slow}", rep + 1));
                cell.given_up = true;
                return Ok(());
            }
            match outcome.with_context(|| format!("{workload} on {system}, {} data", cell.data))? {
                Outcome::Done(repetition) => {
                    self.proven.push(cell.system);
                    cell.repetitions.push(*repetition);
                    return Ok(());
                }
                Outcome::OutOfMemory => cell.oom_kills += 1,
                Outcome::Unavailable(reason) if !self.proven.contains(&cell.system) => {
                    self.skipped.push(Skipped { system: cell.system, reason });
                    return Ok(());
                }
                Outcome::Unavailable(reason) | Outcome::Failed(reason) => {
                    cell.failures.push(format!("repetition {}: {reason}", rep + 1));
                    return Ok(());
                }
            }
        }
        cell.failures
            .push(format!("repetition {}: killed for want of memory, started again in vain", rep + 1));
        Ok(())
    }
}

/// A line on standard error that is always about the current measurement, if a person is there to read it.
#[derive(Debug)]
struct Progress {
    is_shown: bool,
    nr_runs: usize,
    nr_done: usize,
}

impl Progress {
    fn new(nr_runs: usize) -> Self {
        Self { is_shown: std::io::stderr().is_terminal(), nr_runs, nr_done: 0 }
    }

    fn step(&mut self, cell: &Cell, rep: u32) {
        self.nr_done += 1;
        let (workload, system) = (cell.workload.name(), cell.system.name());
        self.show(&format!(
            "{}/{}: {workload} on {system}, {} data, repetition {}",
            self.nr_done,
            self.nr_runs,
            cell.data,
            rep + 1
        ));
    }

    fn show(&self, text: &str) {
        if self.is_shown {
            // Back to the start of the line, and clear it. A line that cannot be shown is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
