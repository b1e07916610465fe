//! The program's address space as the simulated kernel keeps it: mappings, and the pages that are present.

use std::collections::BTreeSet;
use std::sync::Arc;

use hmm_core::addr::HUGE_ORDER;
use hmm_core::kernel::{Mapped, Rights, Seen};
use hmm_model::{Content, PAGE_SIZE, Span};

/// Pages of a huge page.
const BLOCK_PAGES: u32 = 1 << HUGE_ORDER;

/// A page of memory. Shared by copies until one of them is written.
pub(crate) type Bytes = Arc<[u8; PAGE_SIZE]>;

/// A page of zeroes.
pub(crate) fn zeroes() -> Bytes {
    Arc::new([0; PAGE_SIZE])
}

/// A page with that content.
pub(crate) fn bytes_of(content: &Content) -> Bytes {
    Arc::from(content.bytes())
}

/// Why a present page cannot be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Held {
    #[default]
    No,
    /// Pinned for I/O.
    Pinned,
    /// Shared with a child since a fork, until it is written or made the program's own.
    Shared,
    /// Not held at all, but write-protected: the engine is told of the first write.
    Protected,
}

/// What a page's entry in the program's page table says. No entry is a hole.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Present { bytes: Bytes, held: Held, of: Whose },
    Poisoned,
}

/// Whose memory a page is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Whose {
    #[default]
    System,
    /// A coherent device's.
    Device,
}

/// What the mapping of a page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Tells neighbouring mappings apart.
    id: u32,
    /// The same, as far as the runtime knows: it does not hear of a change of protection.
    extent: u32,
    pub(crate) writable: bool,
    /// Whether its missing pages are the engine's business.
    pub(crate) managed: bool,
}

impl Mapping {
    /// Whether the two are the same to the kernel, if they are next to each other.
    fn is_one_with(self, other: Self) -> bool {
        Self { extent: 0, ..self } == Self { extent: 0, ..other }
    }
}

/// Mappings and page table, by pages of the arena.
#[derive(Debug)]
pub(crate) struct Memory {
    mappings: Vec<Option<Mapping>>,
    entries: Vec<Option<Entry>>,
    /// Entries that are there.
    nr_entries: usize,
    /// Those of them whose memory is a device's.
    nr_of_devices: usize,
    nr_mappings: u32,
    /// First pages of blocks that are mapped as huge pages.
    huge: BTreeSet<u32>,
}

fn is_of_device(entry: Option<&Entry>) -> bool {
    matches!(entry, Some(Entry::Present { of: Whose::Device, .. }))
}

fn indices(span: Span) -> std::ops::Range<usize> {
    span.first as usize..span.end() as usize
}

impl Memory {
    pub(crate) fn new(nr_pages: u32) -> Self {
        Self {
            mappings: vec![None; nr_pages as usize],
            entries: vec![None; nr_pages as usize],
            nr_entries: 0,
            nr_of_devices: 0,
            nr_mappings: 0,
            huge: BTreeSet::new(),
        }
    }

    /// The block that begins at the page is one huge page.
    pub(crate) fn set_huge(&mut self, first: u32) {
        self.huge.insert(first);
    }

    /// Whether a huge page begins at the page.
    pub(crate) fn is_huge(&self, first: u32) -> bool {
        self.huge.contains(&first)
    }

    pub(crate) fn mapping(&self, page: u32) -> Option<Mapping> {
        self.mappings[page as usize]
    }

    pub(crate) fn entry(&self, page: u32) -> Option<&Entry> {
        self.entries[page as usize].as_ref()
    }

    pub(crate) fn is_hole(&self, page: u32) -> bool {
        self.entry(page).is_none()
    }

    pub(crate) fn is_present(&self, page: u32) -> bool {
        matches!(self.entry(page), Some(Entry::Present { .. }))
    }

    /// The page as a walk of the page table finds it.
    pub(crate) fn seen(&self, page: u32) -> Seen {
        let Some(mapping) = self.mapping(page) else { return Seen::default() };
        let cpu = match self.entry(page) {
            None | Some(Entry::Poisoned) => Mapped::Absent,
            Some(Entry::Present { held: Held::Shared | Held::Protected, .. }) => Mapped::ReadOnly,
            Some(Entry::Present { held: Held::No | Held::Pinned, .. }) if mapping.writable => {
                Mapped::Writable
            }
            Some(Entry::Present { .. }) => Mapped::ReadOnly,
        };
        let rights = if mapping.writable { Rights::Write } else { Rights::Read };
        let order = if self.is_huge(page - page % BLOCK_PAGES) { HUGE_ORDER } else { 0 };
        Seen { rights, cpu, order, protected: self.is_protected(page) }
    }

    /// Whether the page is present and can be taken out.
    pub(crate) fn is_movable(&self, page: u32) -> bool {
        matches!(self.entry(page), Some(Entry::Present { held: Held::No | Held::Protected, .. }))
            && self.mapping(page).is_some_and(|mapping| mapping.managed && mapping.writable)
    }

    /// Whether the page is write-protected.
    pub(crate) fn is_protected(&self, page: u32) -> bool {
        matches!(self.entry(page), Some(Entry::Present { held: Held::Protected, .. }))
    }

    /// Lifts the write protection of the span.
    pub(crate) fn unprotect(&mut self, span: Span) {
        for entry in self.entries[indices(span)].iter_mut().flatten() {
            if let Entry::Present { held: held @ Held::Protected, .. } = entry {
                *held = Held::No;
            }
        }
    }

    /// Whether the page is in a mapping that the engine manages.
    pub(crate) fn is_managed(&self, page: u32) -> bool {
        self.mapping(page).is_some_and(|mapping| mapping.managed)
    }

    /// Whether a page of the span is.
    pub(crate) fn any_managed(&self, span: Span) -> bool {
        span.pages().any(|page| self.is_managed(page))
    }

    /// The run of pages in one mapping that begins at the first mapped page of the span.
    pub(crate) fn first_run(&self, span: Span) -> Option<(Span, Mapping)> {
        let first = span.pages().find(|page| self.mapping(*page).is_some())?;
        let mapping = self.mapping(first)?;
        let same = |page: &u32| self.mapping(*page).is_some_and(|other| other.is_one_with(mapping));
        let len = (first..span.end()).take_while(same).count();
        Some((Span::new(first, u32::try_from(len).expect("a span")), mapping))
    }

    /// The mapping around the page, inside `within`, as far as the runtime knows.
    pub(crate) fn extent(&self, page: u32, within: Span) -> Option<Span> {
        let extent = self.mapping(page)?.extent;
        self.run_around(page, within, |mapping| mapping.extent == extent)
    }

    /// The runtime looks at the mapping around the page.
    pub(crate) fn discover(&mut self, page: u32, within: Span) {
        let Some(here) = self.mapping(page) else { return };
        let Some(run) = self.run_around(page, within, |mapping| mapping.is_one_with(here)) else { return };
        self.nr_mappings += 1;
        let extent = self.nr_mappings;
        self.mappings[indices(run)].iter_mut().flatten().for_each(|mapping| mapping.extent = extent);
    }

    fn run_around(&self, page: u32, within: Span, test: impl Fn(Mapping) -> bool) -> Option<Span> {
        let same = |page: &u32| self.mapping(*page).is_some_and(&test);
        let before = u32::try_from((within.first..page).rev().take_while(same).count()).ok()?;
        let behind = u32::try_from((page..within.end()).take_while(same).count()).ok()?;
        Some(Span::new(page - before, before + behind))
    }

    /// A fresh mapping, not managed yet. The place is free.
    pub(crate) fn map(&mut self, span: Span) {
        self.nr_mappings += 1;
        let mapping =
            Mapping { id: self.nr_mappings, extent: self.nr_mappings, writable: true, managed: false };
        self.mappings[indices(span)].fill(Some(mapping));
    }

    pub(crate) fn unmap(&mut self, span: Span) {
        self.zap(span);
        self.mappings[indices(span)].fill(None);
    }

    /// Takes the pages away and leaves the mapping.
    pub(crate) fn zap(&mut self, span: Span) {
        span.pages().for_each(|page| drop(self.take(page)));
    }

    pub(crate) fn put(&mut self, page: u32, entry: Entry) {
        self.nr_of_devices += usize::from(is_of_device(Some(&entry)));
        let before = self.entries[page as usize].replace(entry);
        self.nr_entries += usize::from(before.is_none());
        self.nr_of_devices -= usize::from(is_of_device(before.as_ref()));
    }

    pub(crate) fn take(&mut self, page: u32) -> Option<Entry> {
        let taken = self.entries[page as usize].take();
        // The arena begins with a block.
        self.huge.remove(&(page - page % BLOCK_PAGES));
        self.nr_entries -= usize::from(taken.is_some());
        self.nr_of_devices -= usize::from(is_of_device(taken.as_ref()));
        taken
    }

    /// Pages that are poisoned, or present and in system memory.
    pub(crate) const fn nr_of_system(&self) -> usize {
        self.nr_entries - self.nr_of_devices
    }

    /// Whether the page is present and in system memory.
    pub(crate) fn is_of_system(&self, page: u32) -> bool {
        self.is_present(page) && !is_of_device(self.entry(page))
    }

    /// A device changes a page where the program has it: as if the program did.
    pub(crate) fn write(&mut self, page: u32, changed: Bytes) {
        if let Some(Some(Entry::Present { bytes, held, .. })) = self.entries.get_mut(page as usize) {
            *bytes = changed;
            if *held == Held::Shared {
                *held = Held::No;
            }
        }
    }

    /// Moves a mapping and its pages. The destination is free.
    pub(crate) fn remap(&mut self, source: Span, to: u32, keep_source: bool) {
        self.nr_mappings += 1;
        let id = self.nr_mappings;
        for (from, to) in indices(source).zip(to as usize..) {
            self.mappings[to] = self.mappings[from].map(|mapping| Mapping { id, extent: id, ..mapping });
            if !keep_source {
                self.mappings[from] = None;
            }
            self.entries[to] = self.entries[from].take();
            self.huge
                .retain(|first| !(*first as usize..*first as usize + BLOCK_PAGES as usize).contains(&from));
        }
    }

    pub(crate) fn protect(&mut self, span: Span, writable: bool) {
        self.mappings[indices(span)].iter_mut().flatten().for_each(|mapping| mapping.writable = writable);
    }

    pub(crate) fn manage(&mut self, span: Span) {
        self.mappings[indices(span)].iter_mut().flatten().for_each(|mapping| mapping.managed = true);
    }

    /// Holds the present pages of the span, or lets them go.
    pub(crate) fn hold(&mut self, span: Span, how: Held) {
        for entry in self.entries[indices(span)].iter_mut().flatten() {
            // Whoever pins a page to write to it is told of as a writer.
            if let Entry::Present { held, .. } = entry
                && *held != Held::Protected
            {
                *held = how;
            }
        }
    }

    /// Ends the sharing with a child.
    pub(crate) fn unshare(&mut self, span: Span) {
        for entry in self.entries[indices(span)].iter_mut().flatten() {
            if let Entry::Present { held: held @ Held::Shared, .. } = entry {
                *held = Held::No;
            }
        }
    }
}
