//! The model itself: a map from pages to what they must read.

use std::collections::BTreeMap;

use crate::content::{Content, Pattern};
use crate::generate::Arena;
use crate::op::Op;
use crate::span::Span;

/// Why the kernel would refuse an operation. The memory is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It leaves the arena, or has no pages. No program of ours does that.
    #[error("the pages are not in the arena")]
    OutOfArena,
    /// A page is not mapped.
    #[error("a page is not mapped")]
    Unmapped,
    /// A page that would be written is read-only.
    #[error("a page is read-only")]
    ReadOnly,
    /// Source and destination overlap.
    #[error("source and destination overlap")]
    Overlap,
}

/// A mapped page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its bytes. `None`: lost with a device, every access gets SIGBUS.
    pub content: Option<Content>,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// What the program's memory must look like.
#[derive(Clone, Debug)]
pub struct Model {
    arena: Arena,
    pages: BTreeMap<u32, Page>,
}

impl Model {
    /// An arena in which nothing is mapped.
    pub const fn new(arena: Arena) -> Self {
        Self { arena, pages: BTreeMap::new() }
    }

    /// The page, if it is mapped.
    pub fn page(&self, page: u32) -> Option<&Page> {
        self.pages.get(&page)
    }

    /// All mapped pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = (u32, &Page)> {
        self.pages.iter().map(|(number, page)| (*number, page))
    }

    /// What the page must read; `None` when it is not mapped or lost.
    pub fn content(&self, page: u32) -> Option<&Content> {
        self.pages.get(&page)?.content.as_ref()
    }

    /// The page was lost with a device: from now on every access gets SIGBUS, until it is given back.
    pub fn lose(&mut self, page: u32) {
        if let Some(page) = self.pages.get_mut(&page) {
            page.content = None;
        }
    }

    /// The page has other bytes now: one page of a [`Fill`](Op::Fill), when pages are written one at a time.
    pub fn set(&mut self, page: u32, content: Content) {
        self.write(page, |old| *old = content);
    }

    /// Whether the kernel would accept the operation.
    ///
    /// # Errors
    /// Why it would not.
    pub fn check(&self, op: &Op) -> Result<(), Refused> {
        let Some(span) = op.span() else { return Ok(()) };
        self.check_arena(span)?;
        match *op {
            Op::Map { .. }
            | Op::Adopt { .. }
            | Op::Unmap { .. }
            | Op::DontNeed { .. }
            | Op::Release { .. } => Ok(()),
            Op::Remap { from, to, len, .. } => {
                let (source, destination) = (Span::new(from, len), Span::new(to, len));
                self.check_arena(destination)?;
                if source.overlaps(destination) {
                    return Err(Refused::Overlap);
                }
                self.check_mapped(source)
            }
            Op::Protect { .. } | Op::Read { .. } | Op::Scan { .. } | Op::Hold { .. } => {
                self.check_mapped(span)
            }
            Op::Write { .. } | Op::Fill { .. } => {
                self.check_mapped(span)?;
                let read_only = span.pages().any(|page| self.pages[&page].read_only);
                if read_only { Err(Refused::ReadOnly) } else { Ok(()) }
            }
            Op::Reclaim { .. } | Op::ReadAhead { .. } => Ok(()),
        }
    }

    /// Does what the kernel would do. What the engine does on its own changes nothing.
    ///
    /// # Errors
    /// As [`check`](Self::check); nothing has changed then.
    pub fn apply(&mut self, op: &Op) -> Result<(), Refused> {
        self.check(op)?;
        match *op {
            Op::Map { span } => self.map(span, |_| Content::default()),
            Op::Adopt { span, stamp } => self.map(span, |index| found(stamp, index)),
            Op::Unmap { span } => span.pages().for_each(|page| drop(self.pages.remove(&page))),
            Op::DontNeed { span } => {
                self.mapped(span).for_each(|page| page.content = Some(Content::default()));
            }
            Op::Remap { from, to, len, keep_source } => self.remap(from, to, len, keep_source),
            Op::Protect { span, writable } => self.mapped(span).for_each(|page| page.read_only = !writable),
            Op::Write { page, word, value } => self.write(page, |content| content.write(word, value)),
            Op::Fill { span, pattern, stamp } => {
                for (page, index) in span.pages().zip(0..) {
                    self.set(page, Content::filled(pattern, Op::page_stamp(stamp, index)));
                }
            }
            Op::Read { .. }
            | Op::Scan { .. }
            | Op::Hold { .. }
            | Op::Release { .. }
            | Op::Reclaim { .. }
            | Op::ReadAhead { .. } => {}
        }
        Ok(())
    }

    fn map(&mut self, span: Span, content: impl Fn(u32) -> Content) {
        for (page, index) in span.pages().zip(0..) {
            self.pages.insert(page, Page { content: Some(content(index)), read_only: false });
        }
    }

    fn remap(&mut self, from: u32, to: u32, len: u32, keep_source: bool) {
        for index in 0..len {
            let Some(page) = self.pages.remove(&(from + index)) else { continue };
            if keep_source {
                let emptied = Page { content: Some(Content::default()), read_only: page.read_only };
                self.pages.insert(from + index, emptied);
            }
            self.pages.insert(to + index, page);
        }
    }

    /// A lost page stays lost: the write got SIGBUS.
    fn write(&mut self, page: u32, write: impl FnOnce(&mut Content)) {
        if let Some(content) = self.pages.get_mut(&page).and_then(|page| page.content.as_mut()) {
            write(content);
        }
    }

    fn mapped(&mut self, span: Span) -> impl Iterator<Item = &mut Page> {
        self.pages.range_mut(span.pages()).map(|(_, page)| page)
    }

    fn check_arena(&self, span: Span) -> Result<(), Refused> {
        let inside =
            span.len > 0 && span.first.checked_add(span.len).is_some_and(|end| end <= self.arena.nr_pages);
        if inside { Ok(()) } else { Err(Refused::OutOfArena) }
    }

    fn check_mapped(&self, span: Span) -> Result<(), Refused> {
        let all = self.pages.range(span.pages()).count() == span.len as usize;
        if all { Ok(()) } else { Err(Refused::Unmapped) }
    }
}

/// What an adopted page holds.
fn found(stamp: u64, index: u32) -> Content {
    if Op::is_found(stamp, index) {
        Content::filled(Pattern::Noise, Op::page_stamp(stamp, index))
    } else {
        Content::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(ops: &[Op]) -> Model {
        let mut model = Model::new(Arena { nr_pages: 64 });
        for op in ops {
            model.apply(op).unwrap();
        }
        model
    }

    const MAP: Op = Op::Map { span: Span::new(0, 32) };
    const WRITE: Op = Op::Write { page: 3, word: 9, value: 77 };

    #[test]
    fn a_write_is_read_until_the_page_is_given_back() {
        assert_eq!(model(&[MAP, WRITE]).content(3).unwrap().word(9), 77);
        let dropped = model(&[MAP, WRITE, Op::DontNeed { span: Span::new(2, 2) }]);
        assert_eq!(dropped.content(3).unwrap().word(9), 0);
        assert!(model(&[MAP, WRITE, Op::Unmap { span: Span::new(3, 1) }]).page(3).is_none());
    }

    #[test]
    fn a_remap_takes_the_bytes_along() {
        let remap = |keep_source| Op::Remap { from: 3, to: 40, len: 2, keep_source };
        let moved = model(&[MAP, WRITE, remap(false)]);
        assert_eq!(moved.content(40).unwrap().word(9), 77);
        assert!(moved.page(3).is_none());
        let kept = model(&[MAP, WRITE, remap(true)]);
        assert_eq!(kept.content(40).unwrap().word(9), 77);
        assert_eq!(kept.content(3).unwrap().word(9), 0);
    }

    #[test]
    fn what_the_kernel_refuses_changes_nothing() {
        let mut model = model(&[MAP, Op::Protect { span: Span::new(3, 1), writable: false }]);
        let before = model.pages.clone();
        assert_eq!(model.apply(&WRITE), Err(Refused::ReadOnly));
        assert_eq!(model.apply(&Op::Read { page: 40, word: 0 }), Err(Refused::Unmapped));
        assert_eq!(model.apply(&Op::Map { span: Span::new(60, 5) }), Err(Refused::OutOfArena));
        assert_eq!(model.apply(&Op::Map { span: Span::new(u32::MAX, 2) }), Err(Refused::OutOfArena));
        let onto_itself = Op::Remap { from: 0, to: 1, len: 2, keep_source: false };
        assert_eq!(model.apply(&onto_itself), Err(Refused::Overlap));
        assert_eq!(model.pages, before);
    }

    #[test]
    fn a_lost_page_stays_lost_until_it_is_given_back() {
        let mut model = model(&[MAP, WRITE]);
        model.lose(3);
        model.apply(&WRITE).unwrap();
        assert_eq!(model.content(3), None);
        model.apply(&Op::Remap { from: 3, to: 40, len: 1, keep_source: false }).unwrap();
        assert_eq!(model.content(40), None);
        model.apply(&Op::DontNeed { span: Span::new(40, 1) }).unwrap();
        assert_eq!(model.content(40).unwrap().word(9), 0);
    }
}
