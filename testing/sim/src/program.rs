//! The program's threads: small step machines that block where a real thread would, on a missing page or on an event
//! that nobody has read. What they do to mappings is in [`deeds`](crate::deeds).

use std::collections::VecDeque;
use std::sync::Arc;

use hmm_model::{Content, Op, Pattern, Span};

use crate::events::Event;
use crate::machine::Machine;
use crate::memory::{Bytes, Entry, Held, Whose, bytes_of, zeroes};

/// A thread in the middle of an operation.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) wait: Wait,
    steps: VecDeque<Step>,
    /// Pages that this thread is changing the mappings of: other threads of a sane program keep off.
    busy: Vec<Span>,
    /// Pages that it has unmapped: another thread may get fresh memory there before the events are read.
    pub(crate) vacated: Option<Span>,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing: it goes on when it is given the CPU.
    Ready,
    /// It touched a page that is missing.
    Fault {
        page: u32,
        /// Tells this fault from a later one at the same page.
        number: u64,
        /// Whether the fault has been read from the kernel, and the engine has taken care of it.
        read: bool,
        /// Whether the page is there, and it was about to write to it.
        protected: bool,
    },
    /// Its event has not been read.
    Event,
    /// The runtime has to register its new mapping.
    Manage(Span),
}

/// What a thread does without being interrupted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    ReadWord { page: u32, word: u16 },
    ReadPage { page: u32 },
    WriteWord { page: u32, word: u16, value: u64 },
    FillPage { page: u32, pattern: Pattern, stamp: u64 },
    Map { span: Span, op: Op },
    Unmap { span: Span },
    DontNeed { span: Span },
    Zap { span: Span },
    Remap { from: Span, to: u32, keep_source: bool },
    Send(Event),
    Wait(Wait),
}

/// How a thread goes on behind a step.
pub(crate) enum Next {
    Done,
    /// In place of this step, these.
    Then(Vec<Step>),
    /// It blocks, and goes on with the next step.
    Block(Wait),
    /// It blocks, and tries this step again.
    Again(Wait),
}

fn steps_of(op: &Op) -> VecDeque<Step> {
    match *op {
        Op::Map { span } | Op::Adopt { span, .. } => {
            [Step::Map { span, op: *op }, Step::Wait(Wait::Manage(span))].into()
        }
        Op::Unmap { span } => [Step::Unmap { span }].into(),
        Op::DontNeed { span } => [Step::DontNeed { span }].into(),
        Op::Remap { from, to, len, keep_source } => {
            [Step::Remap { from: Span::new(from, len), to, keep_source }].into()
        }
        Op::Write { page, word, value } => [Step::WriteWord { page, word, value }].into(),
        Op::Read { page, word } => [Step::ReadWord { page, word }].into(),
        Op::Scan { span, stride } => span.pages_by(stride).map(|page| Step::ReadPage { page }).collect(),
        Op::Fill { span, pattern, stamp } => span
            .pages()
            .zip(0..)
            .map(|(page, index)| Step::FillPage { page, pattern, stamp: Op::page_stamp(stamp, index) })
            .collect(),
        Op::Protect { .. }
        | Op::Hold { .. }
        | Op::Release { .. }
        | Op::Reclaim { .. }
        | Op::ReadAhead { .. } => VecDeque::new(),
    }
}

impl Machine {
    /// Begins an operation of the program on a thread of its own and lets it come as far as it can. `None`: the kernel
    /// would refuse it, or no sane program would do it now.
    pub(crate) fn start(&mut self, op: &Op) -> Option<u32> {
        self.model.check(op).ok()?;
        let span = op.span()?;
        let mut thread = Thread { wait: Wait::Ready, steps: steps_of(op), busy: Vec::new(), vacated: None };
        if !op.is_access() {
            thread.busy.push(span);
            if let Op::Remap { to, len, .. } = *op {
                thread.busy.push(Span::new(to, len));
            }
            let fresh = matches!(op, Op::Map { .. }) && !self.memory.any_managed(span);
            if thread.busy.iter().any(|span| self.is_busy(*span, fresh)) {
                return None;
            }
        }
        let id = self.nr_threads;
        self.nr_threads += 1;
        self.note(|| format!("thread {id}: {op:?}"));
        self.at_once(op);
        self.threads.insert(id, thread);
        self.advance(id);
        Some(id)
    }

    /// Whether a thread is changing mappings in the span. Fresh memory may appear where another has been unmapped.
    fn is_busy(&self, span: Span, fresh: bool) -> bool {
        self.threads.values().any(|thread| {
            let vacated = |busy: &Span| fresh && thread.vacated == Some(*busy);
            thread.busy.iter().any(|busy| busy.overlaps(span) && !vacated(busy))
        })
    }

    /// Lets a thread go on until it blocks or ends.
    pub(crate) fn advance(&mut self, id: u32) {
        let Some(mut thread) = self.threads.remove(&id) else { return };
        assert_eq!(thread.wait, Wait::Ready, "thread {id} is blocked");
        while let Some(step) = thread.steps.pop_front() {
            thread.wait = match self.step(id, &mut thread, step) {
                Next::Done => {
                    self.rounds = 0;
                    self.nr_hungry = 0;
                    continue;
                }
                Next::Then(steps) => {
                    steps.into_iter().rev().for_each(|step| thread.steps.push_front(step));
                    continue;
                }
                Next::Block(wait) => wait,
                Next::Again(wait) => {
                    thread.steps.push_front(step);
                    wait
                }
            };
            self.threads.insert(id, thread);
            return;
        }
        self.note(|| format!("thread {id} is done"));
    }

    fn step(&mut self, id: u32, thread: &mut Thread, step: Step) -> Next {
        match step {
            Step::ReadWord { page, word } => self.access(page, false, |machine, bytes| {
                machine.check_word(page, word, bytes);
            }),
            Step::ReadPage { page } => {
                self.access(page, false, |machine, bytes| machine.check_page(page, bytes))
            }
            Step::WriteWord { page, word, value } => self.access(page, true, |machine, bytes| {
                let at = usize::from(word) * 8;
                Arc::make_mut(bytes)[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                machine.apply(&Op::Write { page, word, value });
            }),
            Step::FillPage { page, pattern, stamp } => self.access(page, true, |machine, bytes| {
                let content = Content::filled(pattern, stamp);
                *bytes = bytes_of(&content);
                machine.model.set(page, content);
            }),
            Step::Send(event) => {
                self.note(|| format!("thread {id} sends {event:?}"));
                self.events.send(event, id);
                Next::Block(Wait::Event)
            }
            Step::Wait(wait) => Next::Block(wait),
            Step::Map { .. }
            | Step::Unmap { .. }
            | Step::DontNeed { .. }
            | Step::Zap { .. }
            | Step::Remap { .. } => self.deed(thread, step),
        }
    }

    /// Touches a page: goes on when it is there, faults when it is not.
    fn access(&mut self, page: u32, write: bool, access: impl FnOnce(&mut Self, &mut Bytes)) -> Next {
        if self.dropping.iter().any(|span| span.contains(page)) {
            // Another thread discards it just now; a sane program waits.
            return Next::Again(Wait::Ready);
        }
        // Unmapped or protected by another thread meanwhile: this one gets SIGSEGV.
        let Some(mapping) = self.memory.mapping(page) else { return Next::Done };
        if write && !mapping.writable {
            return Next::Done;
        }
        if write && self.memory.is_protected(page) {
            self.nr_faults += 1;
            return Next::Again(Wait::Fault { page, number: self.nr_faults, read: false, protected: true });
        }
        let (mut bytes, held, of) = match self.memory.take(page) {
            Some(Entry::Present { bytes, held, of }) => (bytes, held, of),
            Some(Entry::Poisoned) => {
                self.memory.put(page, Entry::Poisoned);
                assert!(self.model.content(page).is_none(), "SIGBUS at page {page}, which was not lost");
                return Next::Done;
            }
            None if mapping.managed => {
                self.nr_faults += 1;
                let number = self.nr_faults;
                return Next::Again(Wait::Fault { page, number, read: false, protected: false });
            }
            None => (zeroes(), Held::No, Whose::System),
        };
        access(self, &mut bytes);
        // A write ends the sharing with a child.
        let held = if write && held == Held::Shared { Held::No } else { held };
        self.memory.put(page, Entry::Present { bytes, held, of });
        Next::Done
    }

    fn check_word(&self, page: u32, word: u16, bytes: &Bytes) {
        let content =
            self.model.content(page).unwrap_or_else(|| panic!("page {page} is readable and was lost"));
        let at = usize::from(word) * 8;
        let mut found = [0; 8];
        found.copy_from_slice(&bytes[at..at + 8]);
        let (found, expected) = (u64::from_ne_bytes(found), content.word(word));
        assert_eq!(found, expected, "page {page} word {word} reads {found:#x} instead of {expected:#x}");
    }

    pub(crate) fn check_page(&self, page: u32, bytes: &Bytes) {
        let content =
            self.model.content(page).unwrap_or_else(|| panic!("page {page} is readable and was lost"));
        if let Some(difference) = content.difference(bytes) {
            panic!("page {page} reads wrong: {difference:x?}");
        }
    }

    /// Wakes who waits for a page of the span.
    pub(crate) fn wake(&mut self, span: Span) {
        for thread in self.threads.values_mut() {
            if matches!(thread.wait, Wait::Fault { page, .. } if span.contains(page)) {
                thread.wait = Wait::Ready;
            }
        }
    }
}
