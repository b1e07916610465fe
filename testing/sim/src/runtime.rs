//! What the runtime's threads do with the engine: they read faults and events, register new mappings, reclaim.

use hmm_core::addr::BlockId;
use hmm_core::bits::PageSet;
use hmm_core::state::PageState;
use hmm_core::{Engine, Outcome};
use hmm_model::{Entropy, Op, Span};

use crate::device::DEVICE_PATIENCE;
use crate::events::Event;
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::program::Wait;
use crate::setup::{Noise, Setup};
use crate::shared::Shared;

type SimEngine = Engine<SimKernel>;

/// Faults served without any thread of the program getting ahead, until the budget is raised.
const PATIENCE: u32 = 100;
/// The same, of those that found no memory, where faults are served in the middle of other faults: each tries to take out every
/// block, and in the middle of that others do.
const MAX_HUNGRY: u32 = 2000;
/// Faults served without any thread of the program getting ahead: more is a hang.
const MAX_ROUNDS: u32 = 200;
/// What an operator adds to a budget that turns out to be too small.
const RAISE_PAGES: u64 = 32;

enum Job {
    Advance,
    Events,
    Fault { thread: u32, page: u32, number: u64, protected: bool },
    Manage { thread: u32, span: Span },
}

impl Machine {
    /// Something that can be done, if there is anything.
    fn pick_job(&mut self) -> Option<Job> {
        let mut jobs = Vec::new();
        for (id, thread) in &self.threads {
            match thread.wait {
                Wait::Ready => jobs.push(Job::Advance),
                Wait::Fault { page, number, read: false, protected } => {
                    jobs.push(Job::Fault { thread: *id, page, number, protected })
                }
                Wait::Manage(span) => jobs.push(Job::Manage { thread: *id, span }),
                Wait::Fault { read: true, .. } | Wait::Event => {}
            }
        }
        if !self.events.is_empty() {
            jobs.push(Job::Events);
        }
        let is_fault = |job: &Job| matches!(job, Job::Fault { .. });
        if std::mem::take(&mut self.put_off) && !jobs.iter().all(is_fault) {
            jobs.retain(|job| !is_fault(job));
        }
        if jobs.is_empty() {
            return None;
        }
        let pick = self.entropy.below(u32::try_from(jobs.len()).unwrap_or(1));
        Some(jobs.swap_remove(pick as usize))
    }
}

/// Does one thing that is to be done. False: everybody waits for somebody.
pub(crate) fn pump(shared: &Shared, engine: &SimEngine) -> bool {
    let Some(job) = shared.lock().pick_job() else { return false };
    match job {
        Job::Advance => drop(shared.lock().advance_any()),
        Job::Events => read_events(shared, engine),
        Job::Fault { thread, page, number, protected } => {
            serve(shared, engine, thread, (page, protected), number);
        }
        Job::Manage { thread, span } => manage(shared, engine, thread, span),
    }
    true
}

/// Begins the operations one after the other, reads their events, and lets everybody go on as far as they come without
/// whoever waits for us.
pub(crate) fn meanwhile(shared: &Shared, engine: &SimEngine, ops: &[Op]) {
    for op in ops {
        if !background(shared, engine, op) {
            let _ = shared.lock().start(op);
        }
        while !shared.lock().events.is_empty() {
            read_events(shared, engine);
        }
    }
    for _ in 0..MAX_ROUNDS {
        if !pump(shared, engine) {
            break;
        }
    }
}

/// Lets everything that is under way come to its end.
pub(crate) fn settle(shared: &Shared, engine: &SimEngine) {
    while !shared.lock().gone && pump(shared, engine) {}
    let machine = shared.lock();
    assert!(
        machine.gone || machine.threads.is_empty(),
        "everybody waits for somebody: {:?}",
        machine.threads
    );
}

/// Does what the engine's own threads do, if the operation is of that kind; says whether it was.
pub(crate) fn background(shared: &Shared, engine: &SimEngine, op: &Op) -> bool {
    if let Op::Reclaim { steps } = *op {
        (0..steps).for_each(|_| reclaim(shared, engine));
        true
    } else if let Op::ReadAhead { steps } = *op {
        (0..steps).for_each(|_| read_ahead(shared, engine));
        true
    } else {
        false
    }
}

/// Time passes, and the transfers under way do not get on: they are seen to be slow, or given up.
pub(crate) fn let_time_pass(shared: &Shared, engine: &SimEngine) {
    let now = shared.lock().now;
    engine.watch(now);
    let mut machine = shared.lock();
    let takes_too_long = !machine.entropy.one_in(3);
    machine.now += if takes_too_long { DEVICE_PATIENCE } else { DEVICE_PATIENCE / 50 };
    if takes_too_long {
        machine.give_up_calls();
    }
    machine.note(|| format!("time passes: too long {takes_too_long}"));
    let now = machine.now;
    drop(machine);
    engine.watch(now);
}

/// One step of the evictor.
pub(crate) fn reclaim(shared: &Shared, engine: &SimEngine) {
    let evict = {
        let mut machine = shared.lock();
        let nr_pages = machine.arena().nr_pages;
        let first = machine.entropy.below(nr_pages);
        let len = 1 + machine.entropy.below(nr_pages - first);
        let noisy = machine.setup.noise != Noise::NONE;
        (noisy && machine.entropy.one_in(6)).then_some(Span::new(first, len))
    };
    if let Some(span) = evict {
        let evicted = engine.evict_range(Machine::range(span));
        shared.lock().note(|| format!("evict {span:?} = {evicted}"));
        set_aside(shared, engine, span.len);
    } else {
        let reclaimed = engine.reclaim();
        shared.lock().note(|| format!("reclaim = {reclaimed:?}"));
    }
    demote(shared, engine);
}

/// One step of what moves pages down. What waits longest has no longer to wait than a few of them.
fn demote(shared: &Shared, engine: &SimEngine) {
    let nr_steps = {
        let mut machine = shared.lock();
        let has_lower = machine.tiers().len() > 1;
        if has_lower { machine.entropy.below(4) } else { 0 }
    };
    for _ in 0..nr_steps {
        let moved = engine.demote();
        shared.lock().note(|| format!("demote = {moved}"));
    }
}

/// Sets memory aside as a fork does, and gives it back.
fn set_aside(shared: &Shared, engine: &SimEngine, nr_pages: u32) {
    let before = shared.ledger.charged();
    let aside = shared.ledger.share(1);
    let got = engine.set_aside(aside, u64::from(nr_pages));
    let charged = shared.ledger.charged();
    assert!(got <= u64::from(nr_pages), "{got} pages set aside, {nr_pages} were wanted");
    assert!(charged <= shared.ledger.budget().max(before), "{got} pages set aside, {charged} charged");
    assert!(
        got == u64::from(nr_pages) || shared.ledger.free() == 0,
        "{got} of {nr_pages}, and some are free"
    );
    assert_eq!(aside.charged(), got);
    aside.clear();
    shared.lock().note(|| format!("set aside {nr_pages} = {got}"));
}

/// One step of read-ahead.
pub(crate) fn read_ahead(shared: &Shared, engine: &SimEngine) {
    let some = engine.read_ahead();
    shared.lock().note(|| format!("read ahead = {some}"));
}

/// Pins pages in the engine, or lets all go.
pub(crate) fn pin(shared: &Shared, engine: &SimEngine, span: Span, pinned: bool) {
    engine.pin(Machine::range(span), pinned);
    let mut machine = shared.lock();
    machine.note(|| format!("pin {span:?} {pinned}"));
    if pinned {
        machine.pinned.extend(span.pages());
    } else {
        machine.pinned.retain(|page| !span.contains(*page));
    }
}

fn read_events(shared: &Shared, engine: &SimEngine) {
    let events = engine.events();
    loop {
        // The guard is taken first: reading lets the program go on.
        let Some(event) = shared.lock().read_event() else { return };
        match event {
            Event::Unmapped(span) => events.unmapped(Machine::range(span)),
            Event::Discarded(span) => events.removed(Machine::range(span)),
            Event::Remapped { from, to } => {
                events.remapped(Machine::range(from), Machine::vpn(to));
                note_taken_along(shared, engine, from, to);
                note_strangers(shared, engine, Span::new(to, from.len));
            }
        }
        if let Event::Unmapped(span) | Event::Remapped { from: span, .. } = event {
            note_strangers(shared, engine, span);
        }
        if shared.lock().entropy.one_in(3) {
            return;
        }
    }
}

/// Pages that are mapped and that the engine knows nothing of: another thread of the program was given fresh memory, and
/// touched it before it was managed, while the event of the unmapping that made room for it was still on its way.
fn note_strangers(shared: &Shared, engine: &SimEngine, span: Span) {
    let mut machine = shared.lock();
    for page in span.pages() {
        // What is given up in the middle of a fetch says nothing of the page that is there now.
        let state = engine.state(Machine::vpn(page));
        let is_known = !matches!(state, PageState::None | PageState::Dropped { .. });
        if machine.memory.is_present(page) && machine.memory.is_managed(page) && !is_known {
            machine.strangers.insert(page);
        } else {
            machine.strangers.remove(&page);
        }
    }
}

/// A page of a fresh mapping was adopted at the old address before the engine heard of the move: the move took its state
/// along, to a hole.
fn note_taken_along(shared: &Shared, engine: &SimEngine, from: Span, to: u32) {
    let mut machine = shared.lock();
    for (old, new) in from.pages().zip(to..) {
        let is_known = matches!(engine.state(Machine::vpn(new)), PageState::System { .. });
        if is_known && machine.memory.is_hole(new) && machine.memory.is_present(old) {
            machine.ghosts.insert(new);
        }
    }
}

fn manage(shared: &Shared, engine: &SimEngine, thread: u32, span: Span) {
    {
        let mut machine = shared.lock();
        machine.memory.manage(span);
        // What the engine knows there are still the pages of another mapping, whose end it will hear of.
        let is_taken = |page: &u32| {
            !matches!(engine.state(Machine::vpn(*page)), PageState::None | PageState::Dropped { .. })
        };
        let early: Vec<u32> =
            span.pages().filter(|page| machine.memory.is_present(*page)).filter(is_taken).collect();
        machine.strangers.extend(early);
    }
    let adopted = engine.adopt(Machine::range(span), &mut |block| present(&shared.lock(), block));
    let mut machine = shared.lock();
    machine.nr_adopted += adopted;
    machine.note(|| format!("{span:?} is managed, {adopted} pages were there"));
    if let Some(thread) = machine.threads.get_mut(&thread) {
        thread.wait = Wait::Ready;
    }
}

pub(crate) fn present(machine: &Machine, block: BlockId) -> PageSet {
    let mut present = PageSet::EMPTY;
    for vpn in block.pages().iter() {
        if machine.page(vpn).is_some_and(|page| machine.memory.is_present(page)) {
            present.insert(vpn.index());
        }
    }
    present
}

/// Has the engine serve a fault, and does what the runtime does with the outcome.
fn serve(shared: &Shared, engine: &SimEngine, thread: u32, (page, protected): (u32, bool), number: u64) {
    {
        let mut machine = shared.lock();
        machine.set_read(thread, number, true);
        machine.note(|| format!("fault at {page} of thread {thread}"));
        if machine.depth == 0 {
            machine.rounds += 1;
            assert!(machine.rounds <= MAX_ROUNDS, "page {page} is faulted for ever");
        }
    }
    let vpn = Machine::vpn(page);
    let outcome = if protected { engine.write_fault(vpn) } else { engine.fault(vpn) };
    let mut machine = shared.lock();
    machine.note(|| {
        format!(
            "fault at {page} of thread {thread} = {outcome:?}, {} of {} charged, {} in stock",
            shared.ledger.charged(),
            shared.ledger.budget(),
            engine.nr_stock()
        )
    });
    let waits = machine.waits(thread, number);
    match outcome {
        Outcome::Done => assert!(!waits || machine.gone, "thread {thread} was not woken at page {page}"),
        Outcome::Parked => {}
        Outcome::Retry => {
            machine.set_read(thread, number, false);
            machine.put_off = true;
            machine.nr_hungry += 1;
            if machine.rounds >= PATIENCE || machine.nr_hungry >= MAX_HUNGRY {
                let stays =
                    machine.nr_unmovable() > 0 || machine.depth > 0 && holds(shared, engine, &machine);
                assert!(stays || machine.may_fail(), "nothing is reclaimed, and every page could be");
                grow(shared);
            }
        }
        Outcome::Unmanaged if machine.memory.is_managed(page) => {
            let arena = machine.arena().all();
            machine.memory.discover(page, arena);
            machine.set_read(thread, number, false);
            machine.put_off = true;
        }
        Outcome::Unmanaged => machine.wake(Span::new(page, 1)),
        Outcome::Full => {
            let full = machine.tiers().iter().any(|device| device.is_full() || device.is_lost());
            assert!(
                full || machine.any_given_up() || machine.may_fail(),
                "page {page} finds no memory, and the devices have room"
            );
            grow(shared);
            machine.set_read(thread, number, false);
        }
    }
}

/// Whether those that are interrupted have memory in their hands: what is charged, and is nobody's else.
fn holds(shared: &Shared, engine: &SimEngine, machine: &Machine) -> bool {
    let is_charged = |page: &u32| {
        matches!(engine.state(Machine::vpn(*page)), PageState::System { .. } | PageState::Staged { .. })
    };
    let nr_charged = machine.arena().all().pages().filter(is_charged).count() as u64;
    shared.ledger.charged() > nr_charged + engine.nr_stock()
}

/// More memory than was allowed, counted: the alternative is a program that stands still.
fn grow(shared: &Shared) {
    shared.ledger.set_budget(shared.ledger.budget() + RAISE_PAGES);
}

impl Machine {
    /// Whether the thread still waits for that fault.
    fn waits(&self, thread: u32, number: u64) -> bool {
        self.threads
            .get(&thread)
            .is_some_and(|thread| matches!(thread.wait, Wait::Fault { number: now, .. } if now == number))
    }

    /// Notes whether somebody takes care of that fault, if the thread still waits for it.
    fn set_read(&mut self, thread: u32, number: u64, is_read: bool) {
        if let Some(thread) = self.threads.get_mut(&thread)
            && let Wait::Fault { number: now, read, .. } = &mut thread.wait
            && *now == number
        {
            *read = is_read;
        }
    }

    /// Resident pages that cannot be taken out of the program.
    fn nr_unmovable(&self) -> usize {
        let pages = self.arena().all().pages();
        pages
            .filter(|page| {
                self.memory.is_present(*page)
                    && (self.pinned.contains(page) || !self.memory.is_movable(*page))
            })
            .count()
    }

    /// Whether failures are planned: then the engine may say what else it may not.
    pub(crate) fn may_fail(&self) -> bool {
        let Setup { kernel_failures, device_failures, failure_rarity, .. } = &self.setup;
        !kernel_failures.is_empty() || !device_failures.is_empty() || *failure_rarity > 0
    }
}
