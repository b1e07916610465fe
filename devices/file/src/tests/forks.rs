//! A family of processes that were forked from each other, chosen by chance what each does: whatever the others do, and whoever
//! is killed, each reads what it has stored, and what its parent had at the fork.
//!
//! The copy that a fork makes is made here as a fork makes it, within one process: what differs is only that descriptors are
//! copied as well, to numbers that are nobody else's.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

use hmm_uapi::procfs::Procfs;
use proptest::prelude::*;
use rustix::fd::OwnedFd;

use super::*;
use crate::entry::Content;

/// Blocks of each file: few, so that they are full now and then.
const BLOCKS: u64 = 64;
const MAX_PROCESSES: usize = 12;

#[derive(Debug)]
struct Process {
    device: FileDevice,
    /// What each frame holds.
    held: BTreeMap<u32, Vec<u8>>,
}

fn inherit(child: &FileDevice, fds: Vec<hmm_uapi::Fd>) {
    assert!(child.is_shared() && child.nr_shared() == fds.len());
    for (number, fd) in child.inherit(fds).expect("it can be inherited") {
        // SAFETY: the number is the device's, and is not closed here.
        let mut known = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
        rustix::io::dup2(&fd, &mut known).expect("two descriptors");
    }
}

impl Process {
    fn new(config: &FileConfig) -> Self {
        Self { device: made(config), held: BTreeMap::new() }
    }

    /// Stores what fits; returns how many pages that is.
    fn store(&mut self, nr_pages: usize, number: usize) -> usize {
        // In turn what compresses, noise, and one word.
        let bytes: Vec<u8> = (0..nr_pages)
            .flat_map(|index| match (number + index / 20) % 4 {
                0 | 1 => page(number + index),
                2 => noise(number + index),
                _ => (number as u64).to_le_bytes().repeat(512),
            })
            .collect();
        let mut frames = vec![DevicePfn(0); nr_pages];
        let granted = self.device.alloc(&mut frames);
        let access = if number.is_multiple_of(2) { Access::Stream } else { Access::Random };
        let done = store(&self.device, &frames[..granted], &bytes[..granted * PAGE_SIZE], access).done;
        for (pfn, bytes) in frames[..done].iter().zip(bytes.chunks_exact(PAGE_SIZE)) {
            assert!(self.held.insert(pfn.0, bytes.to_vec()).is_none(), "{pfn:?} was handed out twice");
        }
        self.device.free(&frames[done..granted]);
        done
    }

    fn free(&mut self, first: usize, step: usize) {
        let gone: Vec<u32> = self.held.keys().copied().skip(first % 7).step_by(step).collect();
        self.device.free(&gone.iter().copied().map(DevicePfn).collect::<Vec<_>>());
        gone.iter().for_each(|pfn| _ = self.held.remove(pfn));
    }

    fn check(&self) {
        let frames: Vec<DevicePfn> = self.held.keys().copied().map(DevicePfn).collect();
        let (transfer, bytes) = fetch(&self.device, &frames);
        assert_eq!(transfer, Transfer::complete(frames.len()));
        assert!(bytes.chunks_exact(PAGE_SIZE).zip(self.held.values()).all(|(got, held)| got == held));
        assert_eq!(self.device.usage().frames, frames.len() as u64);
    }

    /// A fork, with `before` done by the parent when it may have happened already, and `after` when it has.
    fn fork(&mut self, before: impl FnOnce(&mut Self), after: impl FnOnce(&mut Self)) -> Option<Self> {
        let procfs = Procfs::open().expect("there is one");
        let fds = match self.device.begin_sharing(&procfs) {
            Ok(fds) => fds,
            Err(why) => {
                assert!(matches!(why, FileError::TooManyFiles), "{why}");
                return None;
            }
        };
        before(self);
        let child = Self { device: self.device.copied(), held: self.held.clone() };
        after(self);
        inherit(&child.device, fds);
        self.device.end_sharing();
        Some(child)
    }

    /// Blocks of its own file in which nothing is that it holds.
    fn nr_kept(&self) -> u64 {
        let own = self.device.table().own();
        let mut blocks = std::collections::BTreeSet::new();
        for pfn in self.held.keys() {
            if let Content::Part(unit, _) = self.device.table().get(DevicePfn(*pfn)).0
                && unit.file == own
            {
                blocks.extend(unit.block as usize..unit.block as usize + unit.nr_blocks());
            }
        }
        used_blocks(&self.device) - blocks.len() as u64
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Store(usize),
    Free(usize, usize),
    Fork,
    /// With something done while it is under way.
    BusyFork(usize, usize),
    End,
}

fn deed() -> impl Strategy<Value = (usize, Deed)> {
    let deed = prop_oneof![
        5 => (1..100_usize).prop_map(Deed::Store),
        4 => (any::<usize>(), 1..5_usize).prop_map(|(first, step)| Deed::Free(first, step)),
        2 => Just(Deed::Fork),
        1 => (1..40_usize, 1..4_usize).prop_map(|(nr_pages, step)| Deed::BusyFork(nr_pages, step)),
        1 => Just(Deed::End),
    ];
    (any::<usize>(), deed)
}

fn act(family: &mut Vec<Process>, (who, deed): &(usize, Deed), number: usize) {
    let who = who % family.len();
    let may_grow = family.len() < MAX_PROCESSES;
    let process = &mut family[who];
    match deed {
        Deed::Store(nr_pages) => _ = process.store(*nr_pages, number),
        Deed::Free(first, step) => process.free(*first, *step),
        Deed::Fork if may_grow => {
            let child = process.fork(|_| {}, |_| {});
            family.extend(child);
        }
        Deed::BusyFork(nr_pages, step) if may_grow => {
            let busy = |process: &mut Process| {
                process.free(*nr_pages, *step);
                process.store(*nr_pages, number + 1000);
            };
            let child = process.fork(busy, |process| {
                busy(process);
                process.free(0, 2);
            });
            family.extend(child);
        }
        Deed::End if family.len() > 1 => _ = family.swap_remove(who),
        Deed::Fork | Deed::BusyFork(..) | Deed::End => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_reads_what_it_had_and_nobody_else_s(
        way in 1..5_usize,
        deeds in proptest::collection::vec(deed(), 1..80),
    ) {
        let mut family = vec![Process::new(&configs(BLOCKS)[way])];
        for (number, deed) in deeds.iter().enumerate() {
            act(&mut family, deed, number * 3000);
            if number % 6 == 5 || number + 1 == deeds.len() {
                family.iter().for_each(Process::check);
            }
        }
        // Who is left alone has all of its room.
        let last = family.swap_remove(0);
        drop(family);
        last.device.take_back(true);
        prop_assert_eq!(last.nr_kept(), 0);
        last.check();
    }
}

#[test]
fn what_a_child_reads_is_kept_as_long_as_it_lives() {
    let mut parent = Process::new(&config(BLOCKS));
    let stored = parent.store(100, 0);
    let child = parent.fork(|_| {}, |_| {}).expect("a child");
    let before = used_blocks(&parent.device);
    parent.free(0, 1);
    assert_eq!((parent.held.len(), used_blocks(&parent.device)), (0, before), "of {stored} pages");
    // There is room for others as long as there is any, and what it was kept for can be read all the while.
    while parent.store(50, 3) > 0 {
        child.check();
    }
    parent.free(0, 1);
    assert_eq!(used_blocks(&parent.device), before, "what came after the fork is no child's");
    let grandchild = Process { device: child.device.copied(), held: BTreeMap::new() };
    drop(child);
    parent.device.take_back(true);
    assert_eq!(used_blocks(&parent.device), before, "somebody has its descriptors still");
    drop(grandchild);
    while parent.store(50, 0) > 0 {}
    assert_eq!(parent.nr_kept(), 0, "it was asked when there was no other room");
}

#[test]
fn a_child_that_needs_nothing_more_holds_nothing_up() {
    let mut parent = Process::new(&config(BLOCKS));
    parent.store(100, 0);
    let mut child = parent.fork(|_| {}, |_| {}).expect("a child");
    child.free(0, 1);
    child.store(20, 0);
    parent.free(0, 1);
    parent.device.take_back(true);
    assert_eq!(used_blocks(&parent.device), 0);
    child.check();
}

#[test]
fn children_come_and_go_without_end() {
    let mut parent = Process::new(&config(BLOCKS));
    let oldest = {
        parent.store(20, 0);
        parent.fork(|_| {}, |_| {}).expect("a child")
    };
    for number in 0..100 {
        parent.free(number, 2);
        parent.store(40, number * 100);
        let child = parent.fork(|_| {}, |_| {}).expect("as many as one likes");
        parent.free(number, 3);
        parent.store(10, number * 100 + 50);
        [&parent, &child, &oldest].into_iter().for_each(Process::check);
    }
    let kept = parent.nr_kept();
    assert!(kept <= 20, "only what the oldest reads: {kept}");
}

#[test]
fn forks_are_nested_as_deep_as_there_are_numbers() {
    let mut line = vec![Process::new(&config(BLOCKS))];
    for depth in 0..7 {
        let last = line.last_mut().expect("there is one");
        last.store(2, 2);
        assert!(last.device.can_share(&Procfs::open().expect("there is one")), "{depth}");
        let child = last.fork(|_| {}, |_| {}).expect("there are numbers");
        line.push(child);
    }
    let last = line.last_mut().expect("there is one");
    last.store(2, 2);
    assert!(!last.device.can_share(&Procfs::open().expect("there is one")));
    assert!(last.fork(|_| {}, |_| {}).is_none());
    line.iter().for_each(Process::check);
    // Frames of the oldest end: its number is free.
    let last = line.last_mut().expect("there is one");
    let oldest: Vec<u32> = last.held.keys().copied().take(2).collect();
    last.device.free(&oldest.iter().copied().map(DevicePfn).collect::<Vec<_>>());
    oldest.iter().for_each(|pfn| _ = last.held.remove(pfn));
    let child = last.fork(|_| {}, |_| {}).expect("a number is free");
    line.push(child);
    line.iter().for_each(Process::check);
}

#[test]
fn where_files_cannot_be_opened_again_only_what_is_in_none_is_shared() {
    // A directory that is no procfs.
    let dir = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("a root");
    let nothing = Procfs::from_fd(dir.into());
    let device = made(&config(BLOCKS));
    assert!(!device.can_share(&nothing));
    let fds = device.begin_sharing(&nothing).expect("it is empty");
    let child = device.copied();
    device.end_sharing();
    inherit(&child, fds);
    let frames = stored(&device, &pages(0..4), Access::Random);
    let ours = stored(&child, &pages(4..8), Access::Random);
    assert!(fetch(&device, &frames).1 == pages(0..4) && fetch(&child, &ours).1 == pages(4..8));
    let error = device.begin_sharing(&nothing).expect_err("something is in it").to_string();
    assert!(error.contains("cannot share"), "{error}");
    // What came into it meanwhile is not there for the child.
    device.free(&frames);
    assert!(device.begin_sharing(&nothing).is_ok());
    stored(&device, &pages(0..4), Access::Random);
    assert!(!device.copied().is_shared());
}
