//! The files that frames are in: the device's own, and those of processes that its process was forked from.

use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::entry::NR_FILES;
use crate::open::Opened;

/// See the module. Descriptors have their numbers for ever: in the child of a fork they are given another meaning.
#[derive(Debug)]
pub(crate) struct Files {
    /// Where they are made.
    pub(crate) dir: OwnedFd,
    pub(crate) own: Opened,
    /// The own one's number.
    number: AtomicU8,
    /// Of other processes, by their numbers; where there is none any more, something else.
    pub(crate) inherited: [OnceLock<OwnedFd>; NR_FILES as usize],
}

impl Files {
    pub(crate) const fn new(dir: OwnedFd, own: Opened) -> Self {
        let inherited = [const { OnceLock::new() }; NR_FILES as usize];
        Self { dir, own, number: AtomicU8::new(0), inherited }
    }

    /// The file of that number.
    pub(crate) fn get(&self, number: u8) -> BorrowedFd<'_> {
        let inherited = self.inherited.get(usize::from(number)).and_then(OnceLock::get);
        let is_own = number == self.number.load(Ordering::Relaxed);
        inherited.filter(|_| !is_own).unwrap_or(&self.own.fd).as_fd()
    }

    /// The own one has that number from now on.
    pub(crate) fn set_own_number(&self, number: u8) {
        self.number.store(number, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn copied(&self) -> Self {
        let copy = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let own = Opened { fd: copy(&self.own.fd), direct: self.own.direct };
        let this = Self::new(copy(&self.dir), own);
        for (from, to) in self.inherited.iter().zip(&this.inherited) {
            from.get().into_iter().for_each(|fd| to.set(copy(fd)).expect("it is new"));
        }
        this.set_own_number(self.number.load(Ordering::Relaxed));
        this
    }

    /// All descriptors that there are, by their numbers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let inherited = self.inherited.iter().filter_map(OnceLock::get);
        [&self.dir, &self.own.fd].into_iter().chain(inherited).map(AsRawFd::as_raw_fd)
    }
}
