//! What the program's threads do to their mappings, in the order in which Linux does it and tells of it.

use std::collections::BTreeSet;

use hmm_model::{Op, Span};

use crate::events::Event;
use crate::machine::Machine;
use crate::memory::{Entry, Held, Whose, bytes_of};
use crate::program::{Next, Step, Thread};

impl Machine {
    /// Deeds that block nobody.
    pub(crate) fn at_once(&mut self, op: &Op) {
        match *op {
            Op::Protect { span, writable } => {
                self.memory.protect(span, writable);
                self.apply(op);
            }
            Op::Hold { span } => {
                let how = if span.first.is_multiple_of(2) { Held::Pinned } else { Held::Shared };
                self.memory.hold(span, how);
            }
            Op::Release { span } => self.memory.hold(span, Held::No),
            Op::Map { .. }
            | Op::Adopt { .. }
            | Op::Unmap { .. }
            | Op::DontNeed { .. }
            | Op::Remap { .. }
            | Op::Write { .. }
            | Op::Fill { .. }
            | Op::Read { .. }
            | Op::Scan { .. }
            | Op::Reclaim { .. }
            | Op::ReadAhead { .. } => {}
        }
    }

    /// Tells the model of a deed that has just been done.
    pub(crate) fn apply(&mut self, op: &Op) {
        if let Err(refused) = self.model.apply(op) {
            panic!("the model refuses {op:?}: {refused}");
        }
    }

    pub(crate) fn deed(&mut self, thread: &mut Thread, step: Step) -> Next {
        match step {
            Step::Map { span, op } => self.map(span, &op),
            Step::Unmap { span } => {
                let had_managed = self.unmap(span);
                self.apply(&Op::Unmap { span });
                thread.vacated = Some(span);
                self.report(had_managed.then_some(Event::Unmapped(span)))
            }
            Step::DontNeed { span } => self.dont_need(span),
            Step::Zap { span } => self.zap(span),
            Step::Remap { from, to, keep_source } => self.remap(thread, from, to, keep_source),
            Step::ReadWord { .. }
            | Step::ReadPage { .. }
            | Step::WriteWord { .. }
            | Step::FillPage { .. }
            | Step::Send(_)
            | Step::Wait(_) => Next::Done,
        }
    }

    fn map(&mut self, span: Span, op: &Op) -> Next {
        let had_managed = self.unmap(span);
        self.memory.map(span);
        self.apply(op);
        if let Op::Adopt { stamp, .. } = *op {
            self.touch_unmanaged(span, stamp);
        }
        self.report(had_managed.then_some(Event::Unmapped(span)))
    }

    /// Returns whether a managed mapping was there.
    fn unmap(&mut self, span: Span) -> bool {
        let had_managed = self.memory.any_managed(span);
        self.memory.unmap(span);
        self.ghosts.retain(|page| !span.contains(*page));
        self.strangers.retain(|page| !span.contains(*page));
        had_managed
    }

    /// Pages that the program touches before its new mapping is managed.
    fn touch_unmanaged(&mut self, span: Span, stamp: u64) {
        for (page, index) in span.pages().zip(0..) {
            if let Some(content) = self.model.content(page)
                && Op::is_found(stamp, index)
            {
                let entry = Entry::Present { bytes: bytes_of(content), held: Held::No, of: Whose::System };
                self.memory.put(page, entry);
            }
        }
    }

    /// One mapping after the other: REMOVE, and when it has been read the pages go.
    fn dont_need(&mut self, span: Span) -> Next {
        let Some((run, mapping)) = self.memory.first_run(span) else { return Next::Done };
        let mut steps = vec![Step::Zap { span: run }];
        if mapping.managed {
            self.events.begin(1);
            steps.insert(0, Step::Send(Event::Discarded(run)));
        }
        let rest = Span::new(run.end(), span.end() - run.end());
        if rest.len > 0 {
            steps.push(Step::DontNeed { span: rest });
        }
        Next::Then(steps)
    }

    /// The second half of a discard. What the engine has filled since it read the event goes, too, and it does not hear
    /// of that: it believes in ghosts.
    fn zap(&mut self, span: Span) -> Next {
        for page in span.pages() {
            if self.filled.remove(&page) && self.memory.is_present(page) {
                self.ghosts.insert(page);
            }
        }
        self.memory.zap(span);
        self.strangers.retain(|page| !span.contains(*page));
        self.apply(&Op::DontNeed { span });
        self.dropping.retain(|dropping| *dropping != span);
        self.note(|| format!("{span:?} is zapped"));
        Next::Done
    }

    fn remap(&mut self, thread: &mut Thread, from: Span, to: u32, keep_source: bool) -> Next {
        let op = Op::Remap { from: from.first, to, len: from.len, keep_source };
        // One mapping at a time, or the kernel refuses.
        let source = self.memory.first_run(from).filter(|(run, _)| *run == from);
        let Some((_, mapping)) = source.filter(|_| self.model.check(&op).is_ok()) else { return Next::Done };
        let destination = Span::new(to, from.len);
        let mut events = Vec::new();
        if self.unmap(destination) {
            events.push(Event::Unmapped(destination));
        }
        self.memory.remap(from, to, keep_source);
        self.apply(&op);
        move_along(&mut self.ghosts, from, to);
        move_along(&mut self.strangers, from, to);
        if mapping.managed {
            events.push(Event::Remapped { from, to });
            if !keep_source {
                events.push(Event::Unmapped(from));
            }
        }
        if !keep_source {
            thread.vacated = Some(from);
        }
        self.report(events)
    }

    /// How the kernel tells of a deed that is done: one event after the other, and until the last is read the mappings
    /// are changing.
    fn report(&mut self, events: impl IntoIterator<Item = Event>) -> Next {
        let sends: Vec<_> = events.into_iter().map(Step::Send).collect();
        self.events.begin(sends.len());
        Next::Then(sends)
    }
}

/// Pages of the set that are in `from` are at `to` now.
fn move_along(pages: &mut BTreeSet<u32>, from: Span, to: u32) {
    let moved: Vec<u32> = pages.extract_if(from.pages(), |_| true).collect();
    pages.extend(moved.iter().map(|page| to + (page - from.first)));
}
