//! The agent's descriptors in the child of a fork: under the numbers that the engine knows, so that nothing of it has to change.

use std::os::fd::{AsFd, AsRawFd};

use hmm::runtime::Runtime;
use hmm::uapi::maps::Maps;
use hmm::uapi::pagemap::Pagemap;
use hmm::uapi::procfs::Procfs;
use hmm::uapi::uffd::Userfaultfd;
use hmm::uapi::{Errno, Fd};
use rustix::event::EventfdFlags;
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};

use crate::devices;

/// Gives every descriptor that the engine knows by its number a meaning in this process; those of the devices are made of what the
/// parent has sent. The caller's descriptor table has none of those numbers.
pub(crate) fn renew(
    runtime: &Runtime,
    uffd: Userfaultfd,
    procfs: Procfs,
    files: Vec<Fd>,
) -> Result<(), &'static str> {
    let mm = runtime.engine().kernel();
    let [known_alarm, known_help] = runtime.eventfds();

    let eventfd = || rustix::event::eventfd(0, EventfdFlags::NONBLOCK).map(Fd::from).map_err(|_| "eventfd");
    let (alarm, help) = (eventfd()?, eventfd()?);
    let pagemap = open_pagemap(&procfs).map_err(|_| "pagemap")?;
    let maps = Maps::open_in(&procfs).map_err(|_| "maps")?;
    let files = devices::inherit(files).map_err(|_| "pages in a file")?;
    let engine = [
        (mm.uffd().as_fd(), uffd.as_fd()),
        (mm.procfs().as_fd(), procfs.as_fd()),
        (mm.pagemap().as_fd(), pagemap.as_fd()),
        (mm.maps().as_fd(), maps.as_fd()),
        (known_alarm, alarm.as_fd()),
        (known_help, help.as_fd()),
    ];
    let engine = engine.into_iter().map(|(known, new)| (known.as_raw_fd(), new));
    let meanings: Vec<_> = engine.chain(files.iter().map(|(known, new)| (*known, new.as_fd()))).collect();

    // First above all of the numbers, then to them: they may be each other's.
    let mut high = Vec::with_capacity(meanings.len());
    for (known, new) in meanings {
        // SAFETY: makes a new descriptor.
        high.push((known, unsafe { libc::fcntl(new.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 256) }));
    }
    drop((uffd, procfs, pagemap, maps, alarm, help, files));
    for (number, high) in high {
        // SAFETY: the number is the engine's, or a device's, which owns it.
        if unsafe { libc::dup3(high, number, libc::O_CLOEXEC) } < 0 {
            return Err("dup3");
        }
        // SAFETY: made above.
        unsafe { libc::close(high) };
    }
    Ok(())
}

/// The page table of this process. That of a process that is not dumpable, as after a change of its user, is root's file:
/// such a process is made dumpable for the moment that it takes to open it.
fn open_pagemap(procfs: &Procfs) -> Result<Pagemap, Errno> {
    let opened = Pagemap::open_in(procfs);
    let is_dumpable = dumpable_behavior() == Ok(DumpableBehavior::Dumpable);
    if opened.is_ok() || is_dumpable || set_dumpable_behavior(DumpableBehavior::Dumpable).is_err() {
        return opened;
    }
    let opened = Pagemap::open_in(procfs);
    // Whatever it was: what the kernel alone may set is as little to others.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    opened
}
