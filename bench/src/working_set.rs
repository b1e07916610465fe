//! The memory that is worked on.

use crate::data::{PAGE_BYTES, PAGE_WORDS, Page};
use crate::library::{Library, Managed, SpaceFigures};
use crate::workload::Order;
use anyhow::{Context, Result};
use hmm_uapi::{Fd, SharedMapping};
use rustix::mm::{Advice, madvise};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Memory from a page boundary on.
#[derive(Debug)]
pub(crate) struct WorkingSet {
    memory: Memory,
    nr_pages: usize,
}

#[derive(Debug)]
enum Memory {
    /// Private anonymous memory as any program gets it from its allocator.
    Private { words: Vec<u64>, skip_words: usize },
    /// A mapping of a file, which writes go to.
    File(SharedMapping),
    /// Memory of the library's.
    Managed(Managed),
}

impl WorkingSet {
    /// Asks for `nr_pages`; none of them is touched yet.
    pub(crate) fn new(nr_pages: usize) -> Self {
        let words = vec![0; (nr_pages + 1) * PAGE_WORDS];
        let skip_words = words.as_ptr().align_offset(PAGE_BYTES);
        Self { memory: Memory::Private { words, skip_words }, nr_pages }
    }

    /// Maps a file, all of it, to be touched in such an order. Nobody else may use it meanwhile.
    ///
    /// # Errors
    /// It cannot be opened or mapped.
    pub(crate) fn mapped(path: &Path, order: Option<Order>) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let mapping = SharedMapping::from_fd(Fd::from(OwnedFd::from(file)));
        let mapping = mapping.with_context(|| format!("cannot map {}", path.display()))?;
        if order == Some(Order::Random) {
            // As any program would that does this to a file: else every page brings many along that nobody needs.
            // SAFETY: the range is the mapping's, and the advice changes no bytes.
            unsafe { madvise(mapping.as_ptr().cast(), mapping.len(), Advice::Random) }
                .context("the kernel takes no advice on the file")?;
        }
        let nr_pages = mapping.len() / PAGE_BYTES;
        Ok(Self { memory: Memory::File(mapping), nr_pages })
    }

    /// Asks the library for `nr_pages`; none of them is touched yet.
    ///
    /// # Errors
    /// See [`Managed::new`].
    pub(crate) fn managed(nr_pages: usize, library: &Library) -> Result<Self> {
        let managed = Managed::new(nr_pages * PAGE_BYTES, library)?;
        Ok(Self { memory: Memory::Managed(managed), nr_pages })
    }

    /// What the library says of it, if it is the library's.
    pub(crate) fn space_figures(&self) -> Option<SpaceFigures> {
        if let Memory::Managed(managed) = &self.memory { Some(managed.figures()) } else { None }
    }

    /// Its pages.
    pub(crate) fn pages_mut(&mut self) -> &mut [Page] {
        match &mut self.memory {
            Memory::Private { words, skip_words } => {
                let words = &mut words[*skip_words..][..self.nr_pages * PAGE_WORDS];
                words.as_chunks_mut().0
            }
            Memory::Managed(managed) => managed.region.as_mut_slice::<u64>().as_chunks_mut().0,
            // SAFETY:
            // 1. the mapping is readable and writable, page aligned, as long as said, and lives as long as `self`.
            // 2. any bytes are words.
            // 3. `&mut self` is the only access of this process, and nobody else uses the file, by the contract of
            //    `mapped`.
            Memory::File(mapping) => unsafe {
                std::slice::from_raw_parts_mut(mapping.as_ptr().cast(), self.nr_pages)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_of_pages() {
        let mut set = WorkingSet::new(3);
        let pages = set.pages_mut();
        assert_eq!(pages.len(), 3);
        assert_eq!(pages.as_ptr().addr() % PAGE_BYTES, 0);
    }

    #[test]
    fn a_mapped_one_is_the_file() {
        let path = std::env::temp_dir().join(format!("hmm-bench-set-{}", std::process::id()));
        File::create_new(&path).unwrap().set_len(5 * PAGE_BYTES as u64).unwrap();
        let mut set = WorkingSet::mapped(&path, Some(Order::Random)).unwrap();
        let pages = set.pages_mut();
        assert_eq!(pages.len(), 5);
        pages[4][511] = 0x0102_0304_0506_0708;
        drop(set);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes[5 * PAGE_BYTES - 8..], 0x0102_0304_0506_0708_u64.to_ne_bytes());
    }
}
