//! Those who do not let the memory be where it is.

use std::sync::atomic::{AtomicU64, Ordering};

use hmm::core::addr::PageRange;
use hmm::core::driver::Select;
use hmm::device::DevicePfn;
use hmm::uapi::maps::Perms;
use hmm_conformance::Rng;

use crate::agent::{Side, access};
use crate::region::{Region, Rules};
use crate::{Accelerator, Fire, Kind};

/// Takes pages hither and thither. Holds no lock of the program's: memory may be unmapped or moved under its hands.
pub(crate) fn move_pages(fire: &Fire, rng: &mut Rng) {
    while fire.goes_on() {
        let index = rng.below(fire.regions.len());
        let map = fire.regions[index].map();
        let first = rng.below(map.nr_pages());
        let most = (map.nr_pages() - first).min(if rng.one_in(8) { 600 } else { 16 });
        let range = map.part(first, 1 + rng.below(most));
        let accelerator = &fire.accelerators[rng.below(fire.accelerators.len())];
        let choice = rng.below(10);
        let (name, kind) = NAMES[choice];
        fire.report.now(name, index, first);
        let is_coherent = accelerator.driver.select() == Select::COHERENT;
        if is_left_out(name) || is_coherent && is_left_out("coherent") {
            continue;
        }
        let working = accelerator.working.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let done = match choice {
            // What is not there any more is not moved.
            0..4 => accelerator.driver.try_to_device(range).unwrap_or(0),
            4 => accelerator.driver.try_to_system(range).unwrap_or(0),
            5 => fire.space.evict_pages(range),
            6 | 7 => usize::from(accelerator.driver.take(range.start).is_ok()),
            8 => give_up(fire, accelerator, range, rng),
            _ => by_frames(fire, accelerator, rng),
        };
        drop(working);
        fire.report.add(kind, done);
    }
}

const NAMES: [(&str, Kind); 10] = [
    ("to_device", Kind::ToDevice),
    ("to_device", Kind::ToDevice),
    ("to_device", Kind::ToDevice),
    ("to_device", Kind::ToDevice),
    ("to_system", Kind::ToSystem),
    ("evict", Kind::Evicted),
    ("take", Kind::Taken),
    ("take", Kind::Taken),
    ("give_up", Kind::GivenUp),
    ("by_frames", Kind::ByFrames),
];

/// Begins a migration, and drops it somewhere on the way.
fn give_up(fire: &Fire, accelerator: &Accelerator, range: PageRange, rng: &mut Rng) -> usize {
    let range = PageRange::new(range.start, range.nr_pages().min(512));
    let driver = &accelerator.driver;
    let is_outward = rng.one_in(2);
    let select = if is_outward { Select::SYSTEM } else { driver.select() };
    let Ok(mut migration) = fire.space.migrate_setup(range, select, driver.owner()) else { return 0 };
    driver.forget(range);
    let nr_collected = migration.nr_collected();
    match rng.below(3) {
        0 => drop(migration),
        stage => {
            if is_outward {
                let _ = migration.store(driver.id());
            } else {
                migration.fetch();
            }
            if stage == 1 { drop(migration) } else { drop(migration.pages()) }
        }
    }
    nr_collected
}

/// Empties a part of a device.
fn by_frames(fire: &Fire, accelerator: &Accelerator, rng: &mut Rng) -> usize {
    let driver = &accelerator.driver;
    let first = u32::try_from(rng.below(500)).unwrap_or(0);
    let frames = DevicePfn(first)..DevicePfn(first + 30);
    let Ok(mut migration) =
        fire.space.migrate_device_range(driver.id(), frames, driver.select(), driver.owner())
    else {
        return 0;
    };
    for entry in migration.entries() {
        driver.forget(PageRange::new(entry.page(), 1));
    }
    migration.fetch();
    migration.pages().finalize()
}

pub(crate) fn is_left_out(name: &str) -> bool {
    std::env::var("HMM_FIRE_LEAVE_OUT").is_ok_and(|names| names.split(',').any(|other| other == name))
}

/// Does what a program does to its mappings, and sees to it that nobody uses the memory meanwhile.
pub(crate) fn change_mappings(fire: &Fire, rng: &mut Rng) {
    while fire.goes_on() {
        std::thread::sleep(std::time::Duration::from_micros(rng.bits() % 2000));
        let index = rng.below(fire.regions.len());
        let region = &fire.regions[index];
        let mut rules = region.write();
        let choice = CHANGES[rng.below(CHANGES.len())];
        fire.report.now(choice, index, 0);
        if is_left_out(choice) {
            continue;
        }
        if rng.one_in(2) {
            verify_some(fire, region, &rules, rng);
        }
        let changed = change(fire, region, &mut rules, choice, rng);
        // Units go on when the lock is given back: what was unmapped must be gone from their tables.
        fire.space.settle();
        if let Some((kind, pages)) = changed {
            fire.report.count(kind);
            verify_some(fire, region, &rules, rng);
            let mut load = |page, word| region.load(page, word);
            pages.take(4).for_each(|page| region.verify_page(&rules.lives, page, &mut load));
        }
    }
}

const CHANGES: [&str; 7] = ["discard", "discard", "replace", "relocate", "protect", "protect", "fork"];

/// Changes the mapping. Returns what was done, and to which pages; nothing if the kernel did not want it.
fn change(
    fire: &Fire,
    region: &Region,
    rules: &mut Rules,
    choice: &str,
    rng: &mut Rng,
) -> Option<(Kind, std::ops::Range<usize>)> {
    let map = region.map();
    let all = 0..map.nr_pages();
    match choice {
        "discard" => {
            let first = rng.below(map.nr_pages());
            let some = first..first + 1 + rng.below((map.nr_pages() - first).min(64));
            // Not by madvise: of its end nobody is told, and until then an entry may be made that the audit does not take.
            // SAFETY: nobody accesses the memory, and there are no references to it.
            unsafe { fire.space.discard(map.part(some.start, some.len())) }.expect("discards");
            region.begin_anew(rules, some.clone());
            Some((Kind::Discarded, some))
        }
        "replace" => {
            map.replace();
            rules.is_writable = true;
            region.begin_anew(rules, all.clone());
            // Of what happens to memory that is not managed nobody is told.
            fire.space.manage(map.pages()).expect("can be managed");
            Some((Kind::Replaced, all))
        }
        "relocate" => {
            // Mostly it is one mapping by that. If pages of it were registered before, the kernel may still hold it in parts,
            // which do not move as one.
            fire.space.manage(map.pages()).expect("can be managed");
            if let Err(error) = map.relocate() {
                assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "mremap: {error}");
                return None;
            }
            Some((Kind::Relocated, all))
        }
        "protect" => {
            let perms = if rules.is_writable { Perms::READ } else { Perms::READ | Perms::WRITE };
            // SAFETY: nobody accesses the memory, and nobody writes to it as long as the rules say so.
            unsafe { fire.space.protect(map.pages(), perms) }.expect("protects");
            rules.is_writable = !rules.is_writable;
            Some((Kind::Protected, all))
        }
        _ => {
            // SAFETY: the child ends at once, by a system call.
            let child = unsafe { hmm_conformance::fork() };
            if child == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: our child.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            (waited == child && status == 0).then_some((Kind::Forked, all))
        }
    }
}

/// Looks at some pages, from either side.
fn verify_some(fire: &Fire, region: &Region, rules: &Rules, rng: &mut Rng) {
    let side = match rng.below(1 + fire.accelerators.len()) {
        0 => Side::Cpu,
        unit => Side::Unit(unit - 1),
    };
    let read = |word: &AtomicU64| word.load(Ordering::SeqCst);
    let mut load = |page, word| access(fire, side, region, page, word, false, &read);
    for _ in 0..rng.below(12) {
        region.verify_page(&rules.lives, rng.below(region.map().nr_pages()), &mut load);
    }
}
