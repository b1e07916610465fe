//! A driver that mirrors the arena is shown what is there, brings nothing by looking, and gets what it asks for.

use std::sync::{Arc, Mutex};

use hmm_core::Engine;
use hmm_core::mirror::{Found, Pfn, RangeError, RangeFault, Request};
use hmm_core::notifier::{Change, Notifier, Pass, Watch};
use hmm_core::state::PageState;
use hmm_model::{Entropy, Span};

use crate::device::Frames;
use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::setup::Noise;
use crate::shared::Shared;

/// Pages that are faulted in together, fewer than any budget.
const FAULT_PAGES: u32 = 4;

#[derive(Debug)]
struct Mirror;

impl Watch for Mirror {
    type Table = ();

    fn invalidate(&self, (): &mut (), _: &Change) -> Pass {
        Pass::Done
    }
}

fn watch(engine: &Engine<SimKernel>, span: Span) -> Notifier<Mirror> {
    let table = Arc::new(Mutex::new(()));
    Notifier::new(engine.notifiers(), Machine::range(span), table, Mirror).expect("not empty")
}

/// Looks at everything.
pub(crate) fn look(shared: &Shared, engine: &Engine<SimKernel>) {
    let arena = shared.lock().arena().all();
    let mut pfns = vec![Pfn::default(); arena.len as usize];
    let notifier = watch(engine, arena);
    let mut fault = RangeFault::snapshot(Machine::range(arena), None, &mut pfns);
    let mut look = || engine.range_fault(&notifier, notifier.read_begin(), &mut fault);
    // The first look may find that pages are not shared any more, which is a change, in each of the arena's blocks.
    let outcome = (0..arena.len).map(|_| look()).find(|outcome| *outcome != Err(RangeError::Busy));
    assert_eq!(outcome, Some(Ok(())), "looking fails");
    let machine = shared.lock();
    for (page, pfn) in arena.pages().zip(pfns) {
        let expected = if machine.memory.mapping(page).is_none() {
            Found::Error
        } else if !machine.memory.is_present(page) {
            Found::None
        } else if let PageState::Coherent { frame, .. } = engine.state(Machine::vpn(page)) {
            Found::Coherent(frame, engine.owner_of(frame).expect("it is a driver's"))
        } else {
            Found::System { zero: false }
        };
        assert_eq!(pfn.found, expected, "page {page}");
        let writable = machine.memory.mapping(page).is_some_and(|mapping| mapping.writable);
        assert!(writable || !pfn.write, "page {page} is read-only");
    }
}

/// Faults some pages in.
pub(crate) fn fault(shared: &Shared, engine: &Engine<SimKernel>) {
    let (span, write) = {
        let mut machine = shared.lock();
        let arena = machine.arena().all();
        let first = machine.entropy.below(arena.len);
        let len = (1 + machine.entropy.below(FAULT_PAGES)).min(arena.end() - first);
        (Span::new(first, len), machine.entropy.one_in(2))
    };
    let want = if write { Request::FAULT | Request::WRITE } else { Request::FAULT };
    let mut pfns = vec![Pfn::default(); span.len as usize];
    let notifier = watch(engine, span);
    // What another thread changes meanwhile is not looked at here.
    let noise = std::mem::replace(&mut shared.lock().setup.noise, Noise::NONE);
    let mut fault = RangeFault::all(Machine::range(span), want, None, &mut pfns);
    let outcome = engine.range_fault(&notifier, notifier.read_begin(), &mut fault);
    let mut machine = shared.lock();
    machine.setup.noise = noise;
    machine.note(|| format!("a driver faults {span:?} in, write {write}: {outcome:?}"));
    let any = |test: &dyn Fn(u32) -> bool| span.pages().any(test);
    match outcome {
        Ok(()) => {
            for (page, pfn) in span.pages().zip(pfns) {
                let is_there = matches!(pfn.found, Found::System { zero: false } | Found::Coherent(..));
                assert!(is_there, "page {page} is {:?}", pfn.found);
                assert!(pfn.write || !write, "page {page} was to be written");
                assert!(machine.memory.is_present(page) || span.len > 1, "page {page} is there");
            }
        }
        Err(RangeError::Permission) => {
            assert!(
                write && any(&|page| machine.memory.mapping(page).is_some_and(|mapping| !mapping.writable))
            )
        }
        Err(RangeError::Fault) => {
            let lost = |page: u32| machine.memory.entry(page).is_some() && !machine.memory.is_present(page);
            let unmapped = |page: u32| machine.memory.mapping(page).is_none();
            let any_fails = machine.may_fail() || machine.tiers().iter().any(Frames::may_hang);
            assert!(any(&|page| unmapped(page) || lost(page)) || any_fails || machine.gone);
        }
        // A page that was faulted in leaves again at once: the budget is tight.
        Err(RangeError::Busy | RangeError::NoMemory) => {}
        Err(RangeError::Invalid) => panic!("{span:?} is a range"),
    }
}
