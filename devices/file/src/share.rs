//! Forks: both sides have what was in the file, and each stores to one of its own.
//!
//! ```text
//!  parent                                  child
//!  begin_sharing: another file,
//!    its own once more, with a claim
//!  fork
//!  end_sharing                             inherit: the other file is its own, and empty;
//!  stores where no child reads               what it has from its parent is read from the parent's
//! ```
//!
//! Nobody ever stores to another's file. A frame's entry says in which file it is: there are [`NR_FILES`] numbers, for a process's
//! own and those of its ancestors, of which one is free again when no frame holds anything in it. So it does not matter how often
//! a process forks, only how deep forks are nested of which each had something in its file.
//!
//! What a child may read its parent must not store over. It has no count of those who read: they can be killed at any moment. But
//! each has the parent's file opened anew, with a lock on the byte that is its number ([`claim`]), which the kernel ends with
//! its last descriptor; its own children claim the same byte. The parent asks which are claimed when it has kept many
//! [blocks](crate::blocks), when it has no other, and after each fork.
//!
//! A file's room on the disk is free when the last process ends that claims it, or has it for its own.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use hmm_uapi::claim::{any_claimed, claim, give_up};
use hmm_uapi::procfs::Procfs;
use hmm_uapi::{Errno, Fd};

use crate::device::FileDevice;
use crate::entry::NR_FILES;
use crate::open::FileError;

/// Children that are told from each other; while more than so many read nothing is given back.
const MAX_CLAIMS: usize = 256;
/// A byte that no child claims.
const NOBODY: u64 = u32::MAX as u64 + 1;

/// Which children read what a process has in its file.
#[derive(Debug)]
pub(crate) struct Claims {
    numbers: [u32; MAX_CLAIMS],
    /// More than fit: it is not known which.
    len: usize,
    /// It was asked for children up to that number.
    up_to: u32,
}

impl Claims {
    /// Asks which of the first so many children read.
    fn of(file: BorrowedFd<'_>, up_to: u32) -> Self {
        let mut this = Self { numbers: [0; MAX_CLAIMS], len: 0, up_to };
        if this.ask(file, &(1..=u64::from(up_to))).is_err() {
            this.len = MAX_CLAIMS + 1;
        }
        this
    }

    /// Notes all that are claimed. The kernel says one of them at a time, any.
    fn ask(&mut self, file: BorrowedFd<'_>, numbers: &RangeInclusive<u64>) -> Result<(), Errno> {
        if self.len > MAX_CLAIMS || numbers.is_empty() {
            return Ok(());
        }
        let Some(number) = any_claimed(file, numbers)? else { return Ok(()) };
        if let Some(place) = self.numbers.get_mut(self.len) {
            *place = u32::try_from(number).unwrap_or(u32::MAX);
        }
        self.len += 1;
        self.ask(file, &(*numbers.start()..=number - 1))?;
        self.ask(file, &(number + 1..=*numbers.end()))
    }

    /// Whether a child may read what was stored after fork `born`, and has ended after fork `ended`.
    pub(crate) fn may_read(&self, born: u32, ended: u32) -> bool {
        let known = self.numbers.get(..self.len);
        let any = |known: &[u32]| known.iter().any(|number| (born + 1..=ended).contains(number));
        ended > self.up_to || known.is_none_or(any)
    }

    pub(crate) const fn are_none(&self) -> bool {
        self.len == 0
    }

    pub(crate) const fn up_to(&self) -> u32 {
        self.up_to
    }
}

/// What a child has from its parent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shared {
    /// The files, a bit for each.
    lent: u8,
    /// What it claims in each.
    claims: [u32; NR_FILES as usize],
}

impl FileDevice {
    /// Whether a fork can share the files, as far as can be told before.
    pub fn can_share(&self, procfs: &Procfs) -> bool {
        self.free_number().is_some() && self.open_once_more(procfs, self.as_fd(), NOBODY).is_ok()
    }

    /// Before a fork: makes the descriptors that the child needs, to be given to it as they are
    /// ([`inherit`](Self::inherit)). Until [`end_sharing`](Self::end_sharing) it does not matter when exactly the fork happens.
    ///
    /// # Errors
    /// See [`FileError`]. Nothing has changed.
    pub fn begin_sharing(&self, procfs: &Procfs) -> Result<Vec<Fd>, FileError> {
        self.free_number().ok_or(FileError::TooManyFiles)?;
        let number = self.table().blocks().begin_fork();
        let fds = self.lend(procfs, number);
        if fds.is_err() {
            self.end_sharing();
        }
        fds
    }

    /// After a fork, in the parent, or when there is none.
    pub fn end_sharing(&self) {
        let mut table = self.table();
        table.blocks().end_fork();
        table.shared.lent = 0;
        drop(table);
        self.take_back(true);
    }

    fn lend(&self, procfs: &Procfs, number: u32) -> Result<Vec<Fd>, FileError> {
        let failed = |errno: Errno| FileError::Share(errno.into());
        let copy = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(failed);
        let mut fds = vec![Fd::from(copy(self.files.dir.as_fd())?), Fd::from(self.another_file()?)];
        let (mut shared, own) = self.table().sharing();
        shared.lent = 0;
        shared.claims[usize::from(own)] = number;
        for (file, claim) in (0..).zip(shared.claims) {
            // Until the fork something may come into the own one.
            if file != own && !self.table().is_held(file) {
                continue;
            }
            match self.open_once_more(procfs, self.files.get(file), claim.into()) {
                Ok(fd) => fds.push(fd),
                Err(_) if !self.table().is_held(file) => continue,
                Err(errno) => return Err(failed(errno)),
            }
            shared.lent |= 1 << file;
        }
        // The child has a number for it.
        if self.files.inherited[usize::from(own)].get().is_none() {
            let _ = self.files.inherited[usize::from(own)].set(copy(self.as_fd())?);
        }
        self.table().shared = shared;
        Ok(fds)
    }

    fn open_once_more(&self, procfs: &Procfs, file: BorrowedFd<'_>, at: u64) -> Result<Fd, Errno> {
        let again = procfs.open_again(file, self.is_direct())?;
        claim(&again, at)?;
        Ok(again)
    }

    /// The lowest number of which no frame is, and which is not the own one's: that may be needed.
    fn free_number(&self) -> Option<u8> {
        let table = self.table();
        (0..NR_FILES).find(|file| *file != table.own() && !table.is_held(*file))
    }

    /// In the child: how many descriptors the parent has made for it.
    pub fn nr_shared(&self) -> usize {
        2 + self.table().shared.lent.count_ones() as usize
    }

    /// In the child: whether it has all that its frames are in.
    pub fn is_shared(&self) -> bool {
        let table = self.table();
        (0..NR_FILES).all(|file| table.shared.lent >> file & 1 != 0 || !table.is_held(file))
    }

    /// In the child: makes the device its own. Takes the descriptors that the parent has made, and returns what every
    /// number that the device knows has to mean from now on (`dup3`), before it is used.
    ///
    /// # Errors
    /// See [`FileError`]: it is of no use here.
    pub fn inherit(&self, fds: Vec<Fd>) -> Result<Vec<(RawFd, Fd)>, FileError> {
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or(FileError::Share(std::io::ErrorKind::UnexpectedEof.into()));
        let mut table = self.table();
        let number = (0..NR_FILES).find(|file| !table.is_held(*file)).ok_or(FileError::TooManyFiles)?;
        let mut meanings = vec![next()?, next()?];
        for (file, known) in (0..).zip(&self.files.inherited) {
            let received = if table.shared.lent >> file & 1 != 0 { Some(next()?) } else { None };
            if known.get().is_some() {
                // What nobody reads from means nothing, but the number has to be somebody's.
                let nothing = || rustix::io::fcntl_dupfd_cloexec(&meanings[1], 0).map(Fd::from);
                let received = received.filter(|_| table.is_held(file)).map_or_else(nothing, Ok);
                meanings.push(received.map_err(|errno| FileError::Share(errno.into()))?);
            }
        }
        table.begin_anew(number);
        table.shared.lent = 0;
        self.files.set_own_number(number);
        Ok(self.files.numbers().zip(meanings).collect())
    }

    /// Nothing is held any more in these files, which are others': their room can be used again.
    pub(crate) fn give_up(&self, files: u8) {
        let claims = self.table().shared.claims;
        for (file, at) in (0..).zip(claims).filter(|(file, _)| files >> file & 1 != 0) {
            // It ends with this process, if not here.
            let _ = give_up(self.files.get(file), at.into());
        }
    }

    /// Takes blocks back that were kept for children which do not read them any more: if there are many, or any is needed.
    /// Returns how many.
    pub(crate) fn take_back(&self, is_needed: bool) -> usize {
        let Some(nr_forks) = self.table().blocks().nr_forks_to_ask_for(is_needed) else { return 0 };
        let claims = Claims::of(self.as_fd(), nr_forks);
        self.table().blocks().give_kept(&claims)
    }
}
