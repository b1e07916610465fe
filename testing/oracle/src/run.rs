//! Doing the operations, and logging what came of them.

use std::io;

use crate::child::{self, Child, Link, Side};
use crate::dmirror::{Command, Device, FIRST_COHERENT, NR_DEVICES};
use crate::log::{self, Line};
use crate::op::{Change, Op, World};
use crate::region::{HUGE, PAGE, Range, Region};
use crate::rng::Rng;
use crate::sys;

/// After so many seconds the client is ended by a signal: something hangs.
const WATCHDOG_SECONDS: u32 = 120;
/// Pages of the region, where there are no huge ones.
const NR_PAGES: usize = 24;
/// How many operations a child does at most.
const MAX_CHILD_STEPS: usize = 4;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) huge: bool,
    pub(crate) private: bool,
    pub(crate) trace: bool,
}

/// A run.
#[derive(Debug)]
pub(crate) struct Runner {
    options: Options,
    rng: Rng,
    pub(crate) region: Region,
    world: World,
    /// With their numbers.
    pub(crate) devices: Vec<(usize, Device)>,
    pub(crate) child: Option<Child>,
    pub(crate) who: &'static str,
    /// What each device said of all pages after the last step.
    pub(crate) seen: Vec<Vec<u8>>,
    /// Pages that may be exclusive.
    pub(crate) exclusive: Vec<bool>,
    /// The CPU reads everything after each so many steps.
    read_all_every: usize,
    /// What devices and system calls copy from and to.
    buffer: Vec<u8>,
}

impl Runner {
    /// Opens devices and maps the region, as the seed says.
    ///
    /// # Errors
    /// When a device cannot be opened, or the region's place is taken.
    pub(crate) fn new(options: Options) -> io::Result<Self> {
        set_watchdog();
        let mut rng = Rng::new(options.seed);
        let nr_devices = if options.private { FIRST_COHERENT } else { NR_DEVICES };
        let first = rng.below(nr_devices);
        let numbers = if rng.once_in(2) { vec![first] } else { vec![first, (first + 1) % nr_devices] };
        let read_all_every = rng.pick(&[1, 5, 17, usize::MAX]);
        let nr_pages = if options.huge { 2 * HUGE } else { NR_PAGES };
        let release = numbers.iter().all(|&number| number < FIRST_COHERENT);
        let world = World { nr_pages, nr_devices: numbers.len(), huge: options.huge, release, opens: true };
        let devices =
            numbers.into_iter().map(|number| Ok((number, open(number)?))).collect::<io::Result<_>>()?;
        let region = Region::new(nr_pages, options.huge)?;
        let buffer = vec![0; nr_pages * PAGE];
        let who = "parent";
        let (seen, exclusive) = (Vec::new(), vec![false; nr_pages]);
        let child = None;
        Ok(Self { options, rng, region, world, devices, child, who, seen, exclusive, read_all_every, buffer })
    }

    /// Does the steps, ends the child if there is one, and reads everything.
    ///
    /// # Errors
    /// When the log cannot be written, or a process or a descriptor cannot be had.
    pub(crate) fn run(mut self) -> io::Result<()> {
        for step in 1..=self.options.steps {
            let op = self.world.choose(&mut self.rng);
            self.step(step, op)?;
        }
        let last = self.options.steps + 1;
        self.step(last, Op::EndChild)?;
        let mut line = self.line(last, "end");
        line.add("all", self.region.read(self.region.all()));
        line.print()
    }

    fn line(&self, step: usize, op: &str) -> Line {
        Line::new(self.options.seed, step, self.who, op)
    }

    fn step(&mut self, step: usize, op: Op) -> io::Result<()> {
        let op = self.limit(op);
        if self.options.trace {
            eprintln!("{step} {op:?}");
        }
        let mut line = match op {
            Op::Device { command, device, range, buffer } => {
                self.command(step, command, device, range, buffer)
            }
            Op::Reopen { device } => self.reopen(step, device)?,
            Op::CpuRead(range) | Op::CpuWrite(range) => self.cpu(step, range, matches!(op, Op::CpuWrite(_))),
            Op::SysRead(range) => self.sys_read(step, range),
            Op::SysWrite(range) => self.sys_write(step, range),
            Op::Change(range, change) => self.change(step, range, change),
            Op::Fork => self.fork(step)?,
            Op::EndChild => self.end_child(step),
        };
        self.snapshots(&mut line);
        if step.is_multiple_of(self.read_all_every) {
            line.add("all", self.region.read(self.region.all()));
        }
        line.print()
    }

    /// What the devices say of all pages.
    fn snapshots(&mut self, line: &mut Line) {
        let nr_pages = self.world.nr_pages;
        self.seen.clear();
        for (number, device) in &self.devices {
            let mut bytes = vec![0; nr_pages];
            let (result, _) = device.ask(Command::Snapshot, Region::addr(0), nr_pages, Some(&mut bytes));
            let shown = if result.is_ok() { log::snapshot(&bytes) } else { sys::name(&result) };
            line.add(&format!("s{number}"), shown);
            self.seen.push(bytes);
        }
        self.forget_shared();
    }

    fn command(&mut self, step: usize, command: Command, device: usize, range: Range, buffer: bool) -> Line {
        let mut line = self.line(step, command.name());
        let (number, device) = &self.devices[device];
        line.add("dev", number);
        add_range(&mut line, range);
        if command == Command::Write {
            fill(&mut self.rng, &mut self.buffer[..range.n * PAGE]);
        }
        let mut given = buffer.then_some(&mut self.buffer[..]);
        if given.is_none() {
            line.add("ptr", 0);
        }
        let (result, cmd) = device.ask(command, Region::addr(range.at), range.n, given.as_deref_mut());
        if command == Command::Exclusive && result.is_ok() {
            self.exclusive[range.pages()].fill(true);
        }
        line.add("ret", sys::name(&result));
        line.add_out("cpages", cmd.cpages);
        line.add_out("faults", cmd.faults);
        if let (Ok(()), Some(buffer)) = (&result, given) {
            if command.returns_pages() {
                line.add("bytes", log::pages(&buffer[..range.n * PAGE]));
            } else if command == Command::Snapshot {
                line.add("bytes", log::snapshot(&buffer[..range.n]));
            }
        }
        line
    }

    fn reopen(&mut self, step: usize, device: usize) -> io::Result<Line> {
        let mut line = self.line(step, "reopen");
        let (number, old) = self.devices.remove(device);
        drop(old);
        line.add("dev", number);
        self.devices.insert(device, (number, open(number)?));
        Ok(line)
    }

    fn cpu(&mut self, step: usize, range: Range, write: bool) -> Line {
        let mut line = self.line(step, if write { "cpu-write" } else { "cpu-read" });
        add_range(&mut line, range);
        if write {
            let mut bytes = vec![0; 8 + self.rng.below(PAGE / 8) * 8];
            fill(&mut self.rng, &mut bytes);
            let offset = self.rng.below((PAGE - bytes.len()) / 8 + 1) * 8;
            let nr_written = self.region.write(range, offset, &bytes);
            line.add("bytes", format!("{}@{offset}", bytes.len()));
            line.add("pages", nr_written);
        } else {
            line.add("bytes", self.region.read(range));
        }
        line
    }

    fn sys_read(&mut self, step: usize, range: Range) -> Line {
        let mut line = self.line(step, "sys-read");
        add_range(&mut line, range);
        let result = Region::sys_read(range, &mut self.buffer);
        let nr_read = add_length(&mut line, result);
        line.add("bytes", log::pages(&self.buffer[..nr_read]));
        line
    }

    fn sys_write(&mut self, step: usize, range: Range) -> Line {
        let mut line = self.line(step, "sys-write");
        add_range(&mut line, range);
        fill(&mut self.rng, &mut self.buffer[..range.n * PAGE]);
        let result = Region::sys_write(range, &mut self.buffer);
        add_length(&mut line, result);
        line
    }

    fn change(&mut self, step: usize, range: Range, change: Change) -> Line {
        let (name, how) = match change {
            Change::Map => ("map", None),
            Change::Unmap => ("unmap", None),
            Change::Protect(prot) => ("protect", Some(format!("{prot:?}"))),
            Change::Remap { to } => ("remap", Some(to.to_string())),
            Change::Advise(advice) => ("advise", Some(format!("{advice:?}"))),
        };
        let mut line = self.line(step, name);
        add_range(&mut line, range);
        if let Some(how) = how {
            line.add("to", how);
        }
        let result = match change {
            Change::Map => Some(self.region.map(range)),
            Change::Unmap => Some(self.region.unmap(range)),
            Change::Protect(prot) => Some(self.region.protect(range, prot)),
            Change::Remap { to } => self.region.remap(range, to),
            Change::Advise(advice) => Some(self.region.advise(range, advice.bits())),
        };
        line.add("ret", result.map_or("not-tried".to_owned(), |result| sys::name(&result)));
        line
    }

    fn fork(&mut self, step: usize) -> io::Result<Line> {
        let mut line = self.line(step, "fork");
        if self.child.is_some() || self.who == "child" {
            line.add("ret", "not-tried");
            return Ok(line);
        }
        let nr_steps = self.rng.below(MAX_CHILD_STEPS + 1);
        line.add("steps", nr_steps);
        if nr_steps > 0 {
            self.bring_home();
        }
        match child::fork()? {
            Side::Child(link) => self.be_child(step, nr_steps, link),
            Side::Parent(child) => {
                child.wait_until_ready();
                self.child = Some(child);
                if nr_steps > 0 {
                    self.unshare();
                }
                Ok(line)
            }
        }
    }

    /// What the child does. Its lines have the step of the fork.
    fn be_child(&mut self, step: usize, nr_steps: usize, mut link: Link) -> ! {
        set_watchdog();
        self.who = "child";
        let mut rng = Rng::new(self.options.seed ^ (step as u64) << 32);
        let mut all_well = true;
        let world = World { opens: false, ..self.world };
        for _ in 0..nr_steps {
            let op = world.choose(&mut rng);
            all_well &= self.step(step, op).is_ok();
        }
        link.sleep();
        let mut line = self.line(step, "end");
        line.add("all", self.region.read(self.region.all()));
        all_well &= line.print().is_ok();
        // SAFETY: nothing has to be done at exit; descriptors are closed by the kernel.
        unsafe { libc::_exit(i32::from(!all_well)) }
    }

    fn end_child(&mut self, step: usize) -> Line {
        let mut line = self.line(step, "end-child");
        match self.child.take() {
            Some(child) => {
                self.bring_home();
                self.unshare();
                line.add("status", child.end());
            }
            None => line.add("ret", "not-tried"),
        }
        line
    }
}

fn open(number: usize) -> io::Result<Device> {
    Device::open(number)
        .map_err(|error| io::Error::other(format!("cannot open /dev/hmm_dmirror{number}: {error}")))
}

fn set_watchdog() {
    // SAFETY: it has no preconditions.
    unsafe { libc::alarm(WATCHDOG_SECONDS) };
}

fn add_range(line: &mut Line, range: Range) {
    line.add("at", range.at);
    line.add("n", range.n);
}

/// The pages that a system call has done, and how many bytes they are.
fn add_length(line: &mut Line, result: io::Result<usize>) -> usize {
    match result {
        Ok(bytes) => {
            line.add("ret", 0);
            line.add("pages", bytes / PAGE);
            bytes
        }
        Err(error) => {
            line.add("ret", sys::name(&Err(error)));
            0
        }
    }
}

/// With random bytes.
fn fill(rng: &mut Rng, bytes: &mut [u8]) {
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes());
    }
}
