use std::sync::Arc;

use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};

use crate::abi::{Cmd, Command, Failure};
use crate::fake::{BUFFER, Fake, number};
use crate::mirror::Mirror;

/// The first page of the program's memory.
const BASE: Vpn = Vpn(0x1000);

fn page(index: u64) -> Vpn {
    BASE.add(index)
}

fn program(nr_pages: u64) -> Arc<Fake> {
    let fake = Fake::new();
    fake.map(PageRange::new(BASE, nr_pages));
    fake
}

fn open(fake: &Arc<Fake>, device: u8) -> Mirror<Fake> {
    let memory = Arc::clone(&fake.memories[usize::from(device)]);
    Mirror::open(number(device), memory, Arc::clone(fake)).expect("it opens")
}

/// A command on pages from `first` on; pages and faults, or why not.
fn run(mirror: &Mirror<Fake>, command: Command, first: u64, nr_pages: u64) -> Result<(u64, u64), Failure> {
    let cmd = Cmd { addr: page(first).addr(), ptr: BUFFER, nr_pages, copied_pages: 99, faults: 99 };
    let fake = Arc::clone(&mirror.space);
    mirror.command(command, cmd, &*fake).map(|out| (out.copied_pages, out.faults))
}

/// The first byte of each page in the buffer.
fn buffer(fake: &Fake, nr_pages: usize) -> Vec<u8> {
    fake.buffer.lock().expect("not poisoned").iter().step_by(PAGE_SIZE).take(nr_pages).copied().collect()
}

fn snapshot(mirror: &Mirror<Fake>, nr_pages: u64) -> Vec<u8> {
    assert_eq!(run(mirror, Command::Snapshot, 0, nr_pages), Ok((nr_pages, 0)));
    let len = usize::try_from(nr_pages).expect("few");
    mirror.space.buffer.lock().expect("not poisoned")[..len].to_vec()
}

#[test]
fn one_fault_maps_everything_and_the_next_read_needs_none() {
    let fake = program(40);
    (0..40).for_each(|index| fake.cpu_write(page(index), 1 + index.to_le_bytes()[0]));
    let mirror = open(&fake, 0);
    assert_eq!(run(&mirror, Command::Read, 0, 40), Ok((40, 1)));
    assert_eq!(buffer(&fake, 40), (1..=40).collect::<Vec<u8>>());
    assert_eq!(run(&mirror, Command::ReadUnlocked, 0, 40), Ok((40, 0)));
    fake.protect(page(35), true, false);
    assert_eq!(run(&mirror, Command::Read, 0, 40), Ok((40, 1)), "the change was noticed");
}

#[test]
fn a_range_that_changes_meanwhile_is_looked_at_again() {
    let fake = program(1);
    fake.cpu_write(page(0), 5);
    let mirror = open(&fake, 0);
    *fake.disturb.lock().expect("not poisoned") = 3;
    assert_eq!(run(&mirror, Command::Read, 0, 1), Ok((1, 1)));
    *fake.disturb.lock().expect("not poisoned") = usize::MAX;
    fake.unmap(page(0));
    fake.map(PageRange::new(page(0), 1));
    assert_eq!(run(&mirror, Command::Read, 0, 1), Err(Failure::Busy), "it never stands still");
}

#[test]
fn what_is_behind_a_fault_comes_home() {
    let fake = program(6);
    let mirror = open(&fake, 0);
    (0..6).for_each(|index| fake.cpu_write(page(index), 3));
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 6), Ok((6, 0)));
    assert_eq!(run(&mirror, Command::Read, 0, 6), Ok((6, 0)), "nothing has to be faulted");
    fake.unmap(page(1));
    fake.map(PageRange::new(page(1), 1));
    fake.protect(page(4), true, false);
    assert_eq!(run(&mirror, Command::Read, 0, 6), Ok((6, 1)));
    let is_there: Vec<_> = (0..6).map(|index| fake.is_on(page(index)).is_some()).collect();
    assert_eq!(is_there, [true, false, false, false, true, true], "up to the end of the mapping");
}

#[test]
fn a_page_of_zeroes_that_was_written_to_is_another() {
    let fake = program(2);
    let mirror = open(&fake, 0);
    assert_eq!(run(&mirror, Command::Read, 0, 2), Ok((2, 1)));
    fake.cpu_write(page(0), 3);
    assert_eq!(run(&mirror, Command::Read, 1, 1), Ok((1, 0)));
    assert_eq!(run(&mirror, Command::Read, 0, 2), Ok((2, 1)), "nobody told of it");
    assert_eq!(buffer(&fake, 2), [3, 0]);
}

#[test]
fn writing_needs_permission() {
    let fake = program(2);
    let mirror = open(&fake, 0);
    fake.buffer.lock().expect("not poisoned").fill(7);
    assert_eq!(run(&mirror, Command::Read, 0, 2), Ok((2, 1)));
    fake.buffer.lock().expect("not poisoned").fill(7);
    assert_eq!(run(&mirror, Command::Write, 0, 2), Ok((2, 1)), "a readable entry is not enough");
    assert_eq!((fake.cpu_read(page(0)), fake.cpu_read(page(1))), (7, 7));
    fake.protect(page(1), true, false);
    assert_eq!(run(&mirror, Command::Write, 0, 2), Err(Failure::Permission));
    fake.protect(page(1), false, false);
    assert_eq!(run(&mirror, Command::Read, 0, 2), Err(Failure::Fault));
    assert_eq!(run(&mirror, Command::Read, 0, 3), Err(Failure::Fault), "no memory behind");
}

#[test]
fn pages_go_to_the_device_and_come_home_when_touched() {
    let fake = program(4);
    fake.cpu_write(page(0), 3);
    let mirror = open(&fake, 0);
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 4), Ok((4, 0)));
    assert_eq!(buffer(&fake, 4), [3, 0, 0, 0], "holes are zeroes");
    assert!((0..4).all(|index| fake.is_on(page(index)) == Some(number(0))));
    fake.buffer.lock().expect("not poisoned").fill(9);
    assert_eq!(run(&mirror, Command::Write, 1, 1), Ok((1, 0)), "into the frame");
    assert_eq!((fake.cpu_read(page(1)), fake.cpu_read(page(0))), (9, 3));
    assert_eq!(run(&mirror, Command::Read, 0, 4), Ok((4, 1)), "what came home is no entry any more");
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 4), Ok((4, 0)), "a mixture");
    assert_eq!(run(&mirror, Command::MigrateToSystem, 0, 4), Ok((4, 0)));
    assert_eq!(run(&mirror, Command::MigrateToSystem, 0, 4), Ok((0, 0)));
    assert_eq!((fake.is_on(page(0)), fake.cpu_read(page(1))), (None, 9));
}

#[test]
fn another_devices_page_is_left_there_and_comes_home_for_reading() {
    let fake = program(1);
    fake.cpu_write(page(0), 3);
    let (zero, one) = (open(&fake, 0), open(&fake, 1));
    assert_eq!(run(&one, Command::MigrateToDevice, 0, 1), Ok((1, 0)));
    assert_eq!(run(&zero, Command::MigrateToDevice, 0, 1), Err(Failure::NoEntry));
    assert_eq!(run(&zero, Command::MigrateToSystem, 0, 1), Ok((0, 0)));
    assert_eq!((fake.is_on(page(0)), buffer(&fake, 1)), (Some(number(1)), vec![3]));
    assert_eq!(run(&zero, Command::Read, 0, 1), Ok((1, 1)));
    assert_eq!(fake.is_on(page(0)), None);
    assert_eq!(run(&one, Command::Read, 0, 1), Ok((1, 1)), "its entry was taken");
}

#[test]
fn what_cannot_migrate_is_an_error_behind_what_has_migrated() {
    let fake = program(3);
    let mirror = open(&fake, 0);
    fake.protect(page(1), false, false);
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 3), Err(Failure::Invalid));
    assert_eq!((fake.is_on(page(0)), fake.is_on(page(2))), (Some(number(0)), None));
    fake.unmap(page(1));
    assert_eq!(run(&mirror, Command::MigrateToSystem, 0, 3), Err(Failure::Invalid));
    assert_eq!(fake.is_on(page(0)), None);
    fake.make_special(page(2));
    assert_eq!(run(&mirror, Command::MigrateToDevice, 2, 1), Err(Failure::Invalid));
}

#[test]
fn the_next_allocation_fails_on_demand() {
    let fake = program(2);
    let mirror = open(&fake, 0);
    assert_eq!(run(&mirror, Command::Flags, 0, 1), Ok((0, 0)));
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 2), Err(Failure::NoEntry), "one page stayed");
    assert_eq!((fake.is_on(page(0)), fake.is_on(page(1))), (None, Some(number(0))));
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 2), Ok((2, 0)), "only once");
    assert_eq!(run(&mirror, Command::Flags, 0, 1), Ok((0, 0)));
    assert_eq!(run(&mirror, Command::MigrateToSystem, 0, 2), Err(Failure::NoMemory));
    assert_eq!(fake.is_on(page(0)), Some(number(0)));
}

#[test]
fn a_snapshot_tells_each_kind() {
    let fake = program(7);
    let (mine, other) = (open(&fake, 0), open(&fake, 1));
    fake.protect(page(0), false, false);
    fake.unmap(page(1));
    assert_eq!(fake.cpu_read(page(2)), 0);
    fake.cpu_write(page(3), 1);
    fake.protect(page(3), true, false);
    fake.cpu_write(page(4), 1);
    assert_eq!(run(&mine, Command::MigrateToDevice, 5, 1), Ok((1, 0)));
    assert_eq!(run(&other, Command::MigrateToDevice, 6, 1), Ok((1, 0)));
    assert_eq!(snapshot(&mine, 7), [0xff, 0xff, 0x11, 0x01, 0x02, 0x22, 0x00]);
    let (mine, other) = (open(&fake, 2), open(&fake, 3));
    fake.cpu_write(page(5), 1);
    fake.cpu_write(page(6), 1);
    assert_eq!(run(&mine, Command::MigrateToDevice, 5, 1), Ok((1, 0)));
    assert_eq!(run(&other, Command::MigrateToDevice, 6, 1), Ok((1, 0)));
    assert_eq!(snapshot(&mine, 7)[5..], [0x42, 0x52]);
}

#[test]
fn exclusive_until_the_cpu_touches_it() {
    let fake = program(2);
    fake.cpu_write(page(0), 4);
    fake.cpu_write(page(1), 5);
    let mirror = open(&fake, 0);
    assert_eq!(run(&mirror, Command::Exclusive, 0, 2), Ok((2, 0)));
    assert_eq!(buffer(&fake, 2), [4, 5]);
    assert_eq!(run(&mirror, Command::CheckExclusive, 0, 2), Err(Failure::Permission));
    assert_eq!(fake.cpu_read(page(0)), 4);
    assert_eq!(run(&mirror, Command::CheckExclusive, 0, 1), Ok((0, 0)));
    assert_eq!(run(&mirror, Command::CheckExclusive, 0, 2), Err(Failure::Permission));
    fake.buffer.lock().expect("not poisoned").fill(6);
    assert_eq!(run(&mirror, Command::Write, 1, 1), Ok((1, 1)), "writing takes it back");
    assert_eq!(fake.cpu_read(page(1)), 6);
    fake.protect(page(0), true, false);
    assert_eq!(run(&mirror, Command::Exclusive, 0, 1), Err(Failure::Fault));
}

#[test]
fn release_and_close_bring_everything_home() {
    let fake = program(2);
    fake.cpu_write(page(0), 4);
    let mirror = open(&fake, 0);
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 2), Ok((2, 0)));
    assert_eq!(run(&mirror, Command::Release, 0, 1), Ok((0, 0)));
    assert_eq!((fake.is_on(page(0)), fake.is_on(page(1))), (None, None));
    assert_eq!(run(&mirror, Command::MigrateToDevice, 0, 2), Ok((2, 0)));
    mirror.close();
    assert_eq!((fake.is_on(page(0)), fake.cpu_read(page(0))), (None, 4));
}

#[test]
fn wrong_arguments_are_refused() {
    let fake = program(2);
    let mirror = open(&fake, 0);
    let command = |addr, ptr, nr_pages| {
        let cmd = Cmd { addr, ptr, nr_pages, ..Cmd::default() };
        mirror.command(Command::Read, cmd, &*fake).map(|out| out.copied_pages)
    };
    assert_eq!(command(BASE.addr() + 1, BUFFER, 1), Err(Failure::Invalid));
    assert_eq!(command(BASE.addr(), BUFFER, 0), Err(Failure::Invalid));
    assert_eq!(command(BASE.addr(), BUFFER, u64::MAX), Err(Failure::Invalid));
    assert_eq!(command(BASE.addr(), BUFFER, 1 << 52), Err(Failure::Invalid));
    assert_eq!(command(BASE.addr(), 0, 1), Err(Failure::Fault), "no buffer");
    assert_eq!(command(BASE.addr(), BUFFER, 2), Ok(2));
}
