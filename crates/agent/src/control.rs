//! The control thread: sets everything up, then looks after what the other threads have no time for.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hmm::adopt::Found;
use hmm::calibrate::home_by;
use hmm::control::{Control, Slot, SlotState};
use hmm::core::{Config, Engine};
use hmm::heap;
use hmm::mm::Mm;
use hmm::runtime::Runtime;
use hmm::uapi::AddrRange;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake, gettid, set_thread_name};
use hmm::uapi::uffd::{Access, Features};

use crate::announce::Open;
use crate::books::{RunPolicy, SharedBooks};
use crate::mailbox::{EVERYTHING, MAILBOX};
use crate::why::Why;
use crate::{
    devices, dmirror, files, fork, lock_all, references, relocate, rights, thread_end, threads, withhold,
};

/// How often the control thread looks for new memory without being asked, while there is some.
const TICK_SHORT: Duration = Duration::from_millis(10);
/// How often when there was none for long.
const TICK_LONG: Duration = Duration::from_millis(320);
/// How soon it looks again for a thread that waits, while mappings are changing, and how long until it gives up.
const TICK_CHANGING: Duration = Duration::from_micros(50);
const CHANGING_PATIENCE: Duration = Duration::from_millis(200);
/// How often a range is looked at for a thread that waits, when it was refused.
const MAX_LOOKS: usize = 4;
/// The longest that the start may take.
const START_PATIENCE: Duration = Duration::from_secs(10);

static SETUP: OnceLock<(Control, &'static Slot)> = OnceLock::new();
static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static EXCLUDE: Mutex<Vec<AddrRange>> = Mutex::new(Vec::new());
/// Since when nothing could be looked at for a thread that waits. The control thread's.
static CHANGING_SINCE: Mutex<Option<Instant>> = Mutex::new(None);
static FAILURE: Mutex<Option<Why>> = Mutex::new(None);
static TID: AtomicI32 = AtomicI32::new(0);
/// 0 until the start has succeeded (1) or failed (2).
static STARTED: AtomicU32 = AtomicU32::new(0);

/// The control thread, or the parent's for a moment after a fork.
pub(crate) fn tid() -> i32 {
    TID.load(Ordering::Relaxed).max(1)
}

/// Memory of ours that was made after the start.
pub(crate) fn exclude(range: AddrRange) {
    EXCLUDE.lock().unwrap_or_else(PoisonError::into_inner).push(range);
}

/// The runtime, once it is started.
pub(crate) fn runtime() -> Option<&'static Runtime> {
    RUNTIME.get()
}

/// The control page and this process's place in it.
pub(crate) fn setup() -> Option<(Control, &'static Slot)> {
    SETUP.get().copied()
}

/// Starts the agent. Called on the program's main thread, which waits.
pub(crate) fn start(control: Control, slot: &'static Slot) -> Result<(), String> {
    let _ = SETUP.set((control, slot));
    MAILBOX.reset();
    rights::reset();
    if heap::range().is_none() {
        return Err("no addresses left for its own memory: raise the limit (ulimit -v)".into());
    }
    // The stacks have to be known before memory is looked for.
    threads::spawn(false, main).map_err(|errno| format!("cannot start a thread: {errno}"))?;
    let begin = Instant::now();
    // A signal ends the wait early.
    while STARTED.load(Ordering::Acquire) == 0 && begin.elapsed() < START_PATIENCE {
        let _ = futex_wait(&STARTED, Scope::Private, 0, Some(START_PATIENCE));
    }
    match STARTED.load(Ordering::Acquire) {
        1 => Ok(()),
        0 => Err(format!("its threads did not start within {START_PATIENCE:?}")),
        _ => {
            let why = FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(why.map(|why| why.to_string()).unwrap_or_default())
        }
    }
}

fn main() {
    let _ = set_thread_name(c"hmm-control");
    let outcome = set_up();
    let word = match outcome {
        Ok(()) => 1,
        Err(why) => {
            *FAILURE.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            2
        }
    };
    STARTED.store(word, Ordering::Release);
    futex_wake(&STARTED, Scope::Private, 1);
    if let (1, Some(runtime)) = (word, runtime()) {
        look_after(runtime);
    }
}

/// On the control thread, whose descriptor table is its own: everything opened here is out of the program's sight.
fn set_up() -> Result<(), Why> {
    // SAFETY: this thread's copies of the program's descriptors are used by nobody.
    unsafe { hmm::uapi::sys::close_range(0, u32::MAX) }.map_err(Why::not("close_range"))?;
    let (control, slot) = setup().ok_or("no control page")?;
    let run = control.config();
    let mut config =
        if run.has_budget() { Config::for_budget(run.ram_pages) } else { Config::for_mirror(run.ram_pages) };
    config.home_by = home_by(Access::Full);
    config.policy = run.policy;
    let mut all_devices = Vec::new();
    for (number, spec) in (0..).zip(&run.devices) {
        let (device, ranges) = devices::open(number, spec)?;
        ranges.into_iter().for_each(exclude);
        all_devices.push(device);
    }
    if run.dmirror {
        dmirror::reserve()?.into_iter().for_each(exclude);
    }
    // Forks are only reported to those who may trace; the others' forks are refused while pages are away.
    let files =
        files::open(Features::EVENT_FORK).or_else(|_| files::open(Features::empty())).map_err(Why::all)?;
    let books = Box::new(SharedBooks::new(control, slot));
    books.begin();
    let mm = Mm::new(files, config.nr_bays, books).map_err(Why::not("staging memory"))?;
    let engine = Engine::new(mm, all_devices, config);
    let policy = Box::new(RunPolicy { control, on_full: run.on_full });
    heap::range().inspect(|range| exclude(*range));
    let runtime = Runtime::new(engine, policy).map_err(Why::not("eventfd"))?;
    let _ = RUNTIME.set(runtime);
    let runtime = self::runtime().ok_or("no runtime")?;
    if run.dmirror {
        dmirror::listen(runtime)?;
    }
    spawn_workers(runtime)?;
    discover_all(runtime);
    slot.set_state(SlotState::Managed);
    Ok(())
}

/// Starts the handlers, the reclaimer and the device thread, which share this thread's descriptors.
pub(crate) fn spawn_workers(runtime: &Runtime) -> Result<(), Why> {
    for _ in 0..runtime.nr_handlers() {
        threads::spawn(true, serve).map_err(Why::not("cannot start a handler"))?;
    }
    threads::spawn(true, reclaim).map_err(Why::not("cannot start the reclaimer"))?;
    if dmirror::is_on() {
        threads::spawn(true, dmirror::serve).map_err(Why::not("cannot start the device thread"))?;
    }
    Ok(())
}

fn serve() {
    let _ = set_thread_name(c"hmm-handler");
    if let Some(runtime) = runtime() {
        let _ = runtime.serve();
    }
}

fn reclaim() {
    let _ = set_thread_name(c"hmm-reclaim");
    if let Some(runtime) = runtime() {
        runtime.reclaim();
    }
}

/// Whether all memory is managed, rather than what drivers ask for.
pub(crate) fn has_budget() -> bool {
    setup().is_some_and(|(control, _)| control.has_budget())
}

/// Looks for memory everywhere, if all of it is managed.
pub(crate) fn discover_all(runtime: &Runtime) {
    if has_budget() {
        discover(runtime, EVERYTHING);
    }
}

/// Looks for memory in a range, leaving out what is ours.
pub(crate) fn discover(runtime: &Runtime, within: AddrRange) -> Found {
    set_exclude(runtime);
    runtime.discover(within)
}

/// Says what is ours.
pub(crate) fn set_exclude(runtime: &Runtime) {
    runtime.set_exclude(&EXCLUDE.lock().unwrap_or_else(PoisonError::into_inner));
}

/// What became of what the program's threads have asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// They have asked for nothing.
    Nothing,
    Done,
    /// Mappings are changing: to be tried again when events have been read.
    Later,
}

/// Does what the program's threads have asked for, without waiting for anybody.
pub(crate) fn answer(runtime: &Runtime) -> Answer {
    let any_moves = relocate::serve(runtime);
    withhold::serve(runtime);
    lock_all::serve(runtime);
    references::serve(runtime);
    let any_pins = thread_end::serve(runtime);
    let (asked, range) = MAILBOX.take();
    let mut since = CHANGING_SINCE.lock().unwrap_or_else(PoisonError::into_inner);
    if !range.is_empty() {
        let is_changing = look(runtime, range);
        // What is not done in this time is found later.
        if is_changing && since.get_or_insert_with(Instant::now).elapsed() < CHANGING_PATIENCE {
            MAILBOX.put_back(range);
            return Answer::Later;
        }
    }
    *since = None;
    MAILBOX.answer(asked);
    if any_moves || any_pins || !range.is_empty() { Answer::Done } else { Answer::Nothing }
}

/// Looks for memory in a range, again while it is refused: a neighbour came or went. Gives whether mappings are changing.
fn look(runtime: &Runtime, range: AddrRange) -> bool {
    for _ in 0..MAX_LOOKS {
        let found = discover(runtime, range);
        if found.is_changing || found.refused == 0 {
            return found.is_changing;
        }
    }
    false
}

/// The control thread's life.
pub(crate) fn look_after(runtime: &'static Runtime) {
    TID.store(gettid(), Ordering::Relaxed);
    let mut open = Open::default();
    let mut tick = TICK_SHORT;
    let mut known = MAILBOX.asked().wrapping_sub(1);
    let mut last = Answer::Nothing;
    loop {
        let asked = MAILBOX.asked();
        if asked == known {
            MAILBOX.sleep(known, if last == Answer::Later { TICK_CHANGING } else { tick });
        }
        fork::serve_request(runtime, &mut open);
        rights::serve(runtime);
        known = MAILBOX.asked();
        // Behind that: who has announced a change is counted there, and is not left waiting for a tick.
        open.serve(runtime);
        last = answer(runtime);
        // After it was woken for something else, or for nothing, too.
        if last == Answer::Nothing {
            let found = if has_budget() { discover(runtime, EVERYTHING) } else { Found::default() };
            tick = if found.ranges > 0 || found.is_changing { TICK_SHORT } else { (tick * 2).min(TICK_LONG) };
            runtime.engine().refresh_gauges();
            if let Some(status) = threads::is_over(runtime.engine().kernel().procfs()) {
                // SAFETY: ends the process, as the kernel would have.
                unsafe { libc::_exit(status) }
            }
        }
    }
}
