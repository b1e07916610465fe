//! The device on a fake address space.

#![expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hmm_core::addr::{PAGE_SIZE, PageRange, Vpn};
use hmm_core::hints::{Advice, Preferred};
use hmm_core::notifier::Cause;

use super::*;
use crate::fake::{Fake, Meanwhile};
use crate::host::Host;

mod huge;

const WORDS: usize = PAGE_SIZE / 8;

fn device(fake: &Arc<Fake>, nr_pages: usize, nr_units: usize) -> Soft {
    Builder::new(Arc::clone(fake) as _).memory(nr_pages * PAGE_SIZE).units(nr_units).build().unwrap()
}

/// Runs a kernel on one unit, and gives its result back.
fn run<R: Send>(
    soft: &Soft,
    kernel: impl Fn(&Unit<'_>) -> Result<R, DeviceFault> + Sync,
) -> Result<R, DeviceFault> {
    let result = std::sync::Mutex::new(None);
    // SAFETY: tests access memory of their own, which nobody holds references to.
    let launched = unsafe {
        soft.launch(|unit| {
            *result.lock().unwrap() = Some(kernel(unit)?);
            Ok(())
        })
    };
    match launched {
        Ok(()) => Ok(result.into_inner().unwrap().unwrap()),
        Err(LaunchError::Fault(fault)) => Err(fault),
        Err(other) => panic!("{other}"),
    }
}

fn word(page: Vpn, index: usize) -> Ptr<u64> {
    Ptr::<u64>::new(page.addr()).add(index)
}

/// What the program reads.
fn cpu(fake: &Fake, at: Ptr<u64>) -> u64 {
    fake.touch(Vpn::of_addr(at.addr()));
    // SAFETY: a page of the test's, which was brought home, and is read by a volatile access.
    unsafe { std::ptr::with_exposed_provenance::<u64>(at.addr() as usize).read_volatile() }
}

/// Has the program write.
fn cpu_write(fake: &Fake, at: Ptr<u64>, value: u64) {
    fake.touch(Vpn::of_addr(at.addr()));
    // SAFETY: as above.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(at.addr() as usize).write_volatile(value) }
}

#[test]
fn what_is_read_stays_and_what_is_written_comes() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(64, true);
    let soft = device(&fake, 64, 1);
    let page = pages.start;
    cpu_write(&fake, word(page, 3), 7);
    assert_eq!(run(&soft, |unit| unit.load(word(page, 3))), Ok(7));
    assert_eq!(fake.where_is(page), None);
    run(&soft, |unit| unit.store(word(page, 3), 8)).unwrap();
    assert_eq!(fake.where_is(page), Some(soft.index()));
    assert_eq!(run(&soft, |unit| unit.load(word(page, 3))), Ok(8));
    assert_eq!(cpu(&fake, word(page, 3)), 8);
    assert_eq!(fake.where_is(page), None);
    cpu_write(&fake, word(page, 3), 9);
    assert_eq!(run(&soft, |unit| unit.load(word(page, 3))), Ok(9));
    // 64 KiB came with it.
    assert!((1..16).all(|nr| fake.where_is(pages.start.add(nr)) == Some(soft.index())));
    assert_eq!(fake.where_is(pages.start.add(16)), None);
}

#[test]
fn words_of_all_sizes_are_themselves_in_both_places() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(32, true);
    for in_place in [true, false] {
        let soft = device(&fake, 64, 1);
        let preferred = if in_place { Preferred::System } else { Preferred::Device(soft.index()) };
        fake.hints.advise(pages, Advice::Preferred(Some(preferred)));
        run(&soft, |unit| {
            let at = pages.start.addr();
            unit.store(Ptr::new(at), 0x12_u8)?;
            unit.store(Ptr::new(at + 2), -2_i16)?;
            unit.store(Ptr::new(at + 4), 1.5_f32)?;
            unit.store(Ptr::new(at + 8), Ptr::<u8>::new(77))?;
            unit.store(Ptr::new(at + 16), -0.25_f64)?;
            assert_eq!(unit.load(Ptr::<u8>::new(at)), Ok(0x12));
            assert_eq!(unit.load(Ptr::<i16>::new(at + 2)), Ok(-2));
            assert_eq!(unit.load(Ptr::<f32>::new(at + 4)), Ok(1.5));
            assert_eq!(unit.load(Ptr::<Ptr<u8>>::new(at + 8)), Ok(Ptr::new(77)));
            assert_eq!(unit.load(Ptr::<f64>::new(at + 16)), Ok(-0.25));
            let counter = Ptr::<u32>::new(at + 24);
            unit.store(counter, u32::MAX)?;
            assert_eq!(unit.fetch_add(counter, 2), Ok(u32::MAX));
            assert_eq!(unit.compare_exchange(counter, 1, 5), Ok(1));
            assert_eq!(unit.compare_exchange(counter, 1, 6), Ok(5));
            assert_eq!(unit.swap(counter, 9), Ok(5));
            assert_eq!(unit.load(counter), Ok(9));
            Ok(())
        })
        .unwrap();
        assert_eq!(soft.resident_pages() == 0, in_place);
        drop(soft);
        assert_eq!(cpu(&fake, word(pages.start, 1)), 77);
    }
}

#[test]
fn slices_are_read_and_written_with_faults_in_batches() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(700, true);
    let soft = device(&fake, 1024, 1);
    let nr = 700 * WORDS - 9;
    let first = word(pages.start, 5);
    let data: Vec<u64> = (0..nr as u64).collect();
    run(&soft, |unit| unit.write(first, &data)).unwrap();
    let mut back = vec![0; nr];
    run(&soft, |unit| {
        let mut back = vec![0; nr];
        unit.read(first, &mut back)?;
        unit.chunks_mut(first, nr, |start, words| {
            words.iter_mut().enumerate().for_each(|(nr, word)| *word += (start + nr) as u64)
        })?;
        assert_eq!(back, data);
        Ok(())
    })
    .unwrap();
    for (index, word) in back.iter_mut().enumerate() {
        *word = cpu(&fake, first.add(index));
    }
    assert!(back.iter().enumerate().all(|(index, word)| *word == 2 * index as u64));
    let stats = soft.stats();
    assert!(stats.faults / stats.batches >= 64, "{stats:?}");
}

#[test]
fn units_together_raise_a_fault_once() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(512, true);
    let soft = device(&fake, 1024, 4);
    let counter = word(pages.start, 0);
    let rounds = 1000;
    let kernel = |unit: &Unit<'_>| {
        for _ in 0..rounds {
            unit.fetch_add(counter, 1)?;
        }
        let mine = unit.share(512);
        unit.chunks_mut(word(pages.start.add(mine.start as u64), 1), (mine.len() - 1) * WORDS, |_, words| {
            words.iter_mut().for_each(|word| *word += 3)
        })
    };
    // SAFETY: memory of the test's; what is not atomic is each unit's own.
    unsafe { soft.launch(kernel) }.unwrap();
    assert_eq!(cpu(&fake, counter), 4 * rounds);
    assert_eq!(cpu(&fake, word(pages.start.add(200), 7)), 3);
    assert_eq!(soft.stats().failed, 0);
}

#[test]
fn a_change_in_the_middle_of_a_fault_is_noticed() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(64, true);
    let soft = device(&fake, 64, 1);
    let other = device(&fake, 64, 1);
    let page = pages.start;
    cpu_write(&fake, word(page, 0), 1);
    // After the driver has read where the page is, it goes to another device.
    let (index, owner) = (other.index(), other.owner());
    let take = move |fake: &Fake| {
        assert_eq!(fake.migrate_in(index, owner, PageRange::new(page, 1), &mut |_, _, _| None), 1);
    };
    *fake.meanwhile.lock().unwrap() = Some(Meanwhile(Box::new(take)));
    assert_eq!(run(&soft, |unit| unit.load(word(page, 0))), Ok(1));
    // One for that, and one because the page was brought home for the second try.
    assert_eq!(soft.stats().collisions, 2);
}

#[test]
fn memory_that_is_not_there_is_a_fault_of_the_device() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(4, false);
    let soft = device(&fake, 64, 1);
    let why = |result: Result<u64, DeviceFault>| result.unwrap_err().why;
    assert_eq!(why(run(&soft, |unit| unit.load(Ptr::new(8)))), Why::NoMapping);
    assert_eq!(why(run(&soft, |unit| unit.load(word(pages.end, 0)))), Why::NoMapping);
    assert_eq!(why(run(&soft, |unit| unit.load(Ptr::new(pages.start.addr() + 4)))), Why::Misaligned);
    let fault = run(&soft, |unit| unit.store(word(pages.start, 2), 1)).unwrap_err();
    assert_eq!(fault, DeviceFault { addr: word(pages.start, 2).addr(), write: true, why: Why::Permission });
    assert_eq!(run(&soft, |unit| unit.load(word(pages.start, 2))), Ok(0), "reading still works");
    // A page that fails does not fail the others of its batch.
    let result = run(&soft, |unit| unit.chunks(word(pages.start, 0), 5 * WORDS, |_, _: &[u64]| {}));
    assert_eq!(result.unwrap_err().addr, pages.end.addr());
    assert_eq!(soft.stats().trapped, 0);
}

#[test]
fn memory_that_vanishes_unannounced_is_one_too() {
    let fake = Arc::new(Fake::default());
    let (mapping, pages) = fake.map(2, true);
    let soft = device(&fake, 64, 1);
    let result = run(&soft, |unit| {
        assert_eq!(unit.load(word(pages.start, 0)), Ok(0));
        fake.unmap(&mapping, PageRange::new(pages.start, 1), false);
        unit.load(word(pages.start, 0))
    });
    assert_eq!(result.unwrap_err().why, Why::NoMapping);
    assert_eq!(soft.stats().trapped, 1);
    // What is unmapped as it should be is noticed before it is accessed.
    let result = run(&soft, |unit| {
        let mut words = [1_u64; WORDS];
        unit.read(word(pages.start.add(1), 0), &mut words)?;
        fake.unmap(&mapping, PageRange::new(pages.start.add(1), 1), true);
        unit.read(word(pages.start.add(1), 0), &mut words)
    });
    assert_eq!(result.unwrap_err().why, Why::NoMapping);
    assert_eq!(soft.stats().trapped, 1);
}

/// Changes all of some memory, a few words of each page, in order.
fn work_through(soft: &Soft, pages: PageRange) {
    run(soft, |unit| {
        for index in (0..pages.nr_pages() as usize * WORDS).step_by(64) {
            let at = word(pages.start, index);
            let value = unit.load(at)?;
            unit.store(at, value + index as u64)?;
        }
        Ok(())
    })
    .unwrap();
}

fn has_worked(fake: &Fake, pages: PageRange, rounds: u64) -> bool {
    let mut indices = (0..pages.nr_pages() as usize * WORDS).step_by(64);
    indices.all(|index| cpu(fake, word(pages.start, index)) == rounds * index as u64)
}

#[test]
fn a_device_works_on_more_than_it_holds() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(150, true);
    let soft = device(&fake, 100, 1);
    fake.hints.advise(pages, Advice::Preferred(Some(Preferred::Device(soft.index()))));
    for round in 1..=4 {
        work_through(&soft, pages);
        assert!(soft.resident_pages() <= 100);
        assert!(soft.stats().evicted >= 50 * round, "{:?}", soft.stats());
    }
    // What does not fit has to come and go with each round; the rest need not.
    assert!(soft.stats().evicted <= 440, "{:?}", soft.stats());
    assert_eq!(soft.stats().crowded, 0);
    assert!(has_worked(&fake, pages, 4));
    assert_eq!(soft.resident_pages(), 0);
}

#[test]
fn what_comes_back_too_soon_stays() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(200, true);
    let soft = device(&fake, 100, 1);
    work_through(&soft, pages);
    let first = soft.stats();
    assert!(first.evicted >= 100 && first.crowded == 0, "{first:?}");
    for _ in 0..3 {
        work_through(&soft, pages);
    }
    let stats = soft.stats();
    assert!(stats.crowded > 0 && stats.evicted <= first.evicted + 32, "{stats:?}");
    assert!(soft.resident_pages() > 64, "and the memory is used");
    assert!(has_worked(&fake, pages, 4));
    // Where there is room again it comes.
    soft.evict(pages.start.addr(), 200 * PAGE_SIZE);
    work_through(&soft, PageRange::new(pages.start, 64));
    assert!((0..64).all(|page| fake.where_is(pages.start.add(page)) == Some(soft.index())));
}

#[test]
fn streams_find_their_pages_there() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(12 * 512, true);
    let soft = device(&fake, 8 * 512, 2);
    fake.hints.advise(pages, Advice::Preferred(Some(Preferred::Device(soft.index()))));
    for _ in 0..3 {
        let kernel = |unit: &Unit<'_>| {
            for page in unit.share(pages.nr_pages() as usize) {
                unit.fetch_add(word(pages.start.add(page as u64), 0), 1)?;
                if page % 64 == 0 {
                    // Time for the other threads.
                    std::thread::sleep(std::time::Duration::from_micros(100));
                }
            }
            Ok(())
        };
        // SAFETY: memory of the test's, accessed atomically.
        unsafe { soft.launch(kernel) }.unwrap();
    }
    let stats = soft.stats();
    assert!(stats.ahead >= 2 * 512, "{stats:?}");
    assert!(pages.iter().all(|page| cpu(&fake, word(page, 0)) == 3));
}

#[test]
fn devices_of_a_group_copy_directly_and_strangers_do_not() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(32, true);
    let group = Group::new();
    let build = || Builder::new(Arc::clone(&fake) as _).memory(1 << 20).group(&group).build().unwrap();
    let (one, two) = (build(), build());
    let stranger = device(&fake, 256, 1);
    let at = word(pages.start, 0);
    run(&one, |unit| unit.store(at, 5)).unwrap();
    run(&two, |unit| unit.fetch_add(at, 1)).unwrap();
    assert_eq!(fake.where_is(pages.start), Some(two.index()));
    assert_eq!((two.stats().from_peers, two.stats().migrated), (16, 0));
    run(&stranger, |unit| unit.fetch_add(at, 1)).unwrap();
    assert_eq!(stranger.stats().from_peers, 0);
    assert_eq!(cpu(&fake, at), 7);
    // A page that two devices only read is read in place by both.
    run(&one, |unit| unit.store(at, 8)).unwrap();
    assert_eq!(run(&two, |unit| unit.load(at)), Ok(8));
    assert_eq!(run(&one, |unit| unit.load(at)), Ok(8));
    assert_eq!(fake.where_is(pages.start), None);
}

#[test]
fn hints_say_where_pages_are() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(64, true);
    let soft = device(&fake, 64, 1);
    let here = Preferred::Device(soft.index());
    let (first, second) = (pages.start, pages.start.add(32));
    fake.hints.advise(PageRange::new(first, 4), Advice::Preferred(Some(here)));
    fake.hints.advise(PageRange::new(second, 32), Advice::AccessedBy(soft.index()));
    run(&soft, |unit| unit.load(word(first, 0))).unwrap();
    run(&soft, |unit| unit.store(word(second, 0), 4)).unwrap();
    assert_eq!(fake.where_is(first), Some(soft.index()));
    assert_eq!(fake.where_is(first.add(4)), None, "not beyond the hint");
    assert_eq!(fake.where_is(second), None);
    assert_eq!(cpu(&fake, word(second, 0)), 4);
    assert_eq!(soft.prefetch(second.addr(), 32 * PAGE_SIZE), 32);
    assert_eq!(fake.where_is(second), Some(soft.index()));
    assert_eq!(soft.evict(second.addr(), PAGE_SIZE), 1);
    assert_eq!(cpu(&fake, word(second, 0)), 4);
}

#[test]
fn a_copy_of_what_was_written_meanwhile_is_not_entered() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(1, true);
    let soft = device(&fake, 64, 1);
    let (page, at) = (pages.start, word(pages.start, 0));
    fake.hints.advise(pages, Advice::ReadMostly(true));
    cpu_write(&fake, at, 1);
    // When the page was found to be protected, the program writes to it, and it is not protected any more.
    let writes = move |fake: &Fake| {
        if fake.is_protected(page) {
            cpu_write(fake, at, 2);
        }
    };
    *fake.afterwards.lock().unwrap() = Some(Meanwhile(Box::new(writes)));
    assert_eq!(run(&soft, |unit| unit.load(at)), Ok(2));
    assert!(!fake.is_protected(page), "it was written to in the middle of all");
    assert_eq!((soft.stats().duplicated, soft.stats().collisions), (0, 1));
    // Nobody is told of this.
    let place: *mut u64 = std::ptr::with_exposed_provenance_mut(usize::try_from(at.addr()).unwrap());
    // SAFETY: the test's page, which no unit accesses now.
    unsafe { place.write(3) };
    assert_eq!(run(&soft, |unit| unit.load(at)), Ok(3), "a copy would have the old word");
}

#[test]
fn a_page_that_bounces_stays() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(1, true);
    let soft = device(&fake, 64, 1);
    let at = word(pages.start, 0);
    let turns = 2000;
    // The ends of the last turns: in so many within its time a page has come too often, whenever that time began.
    let ends = std::sync::Mutex::new(std::collections::VecDeque::new());
    let is_quick = AtomicBool::new(false);
    run(&soft, |unit| {
        for turn in 0..turns {
            unit.store(at, 2 * turn)?;
            assert_eq!(cpu(&fake, at), 2 * turn);
            cpu_write(&fake, at, 2 * turn + 1);
            assert_eq!(unit.load(at), Ok(2 * turn + 1));
            let mut ends = ends.lock().unwrap();
            ends.push_back(Instant::now());
            if ends.len() > 2 * (usize::from(thrash::MAX_BOUNCES) + 1) {
                let first: Instant = ends.pop_front().unwrap();
                is_quick.fetch_or(first.elapsed() < thrash::LAPSE, Ordering::Relaxed);
            }
        }
        Ok(())
    })
    .unwrap();
    let stats = soft.stats();
    if !is_quick.into_inner() {
        return eprintln!("SKIPPED: the machine is too slow for a page to bounce");
    }
    assert!(stats.bounced > 0 && stats.migrated < turns / 2, "{stats:?}");
}

#[test]
fn what_ends_leaves_its_pages_at_home() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(16, true);
    let soft = device(&fake, 64, 1);
    run(&soft, |unit| unit.store(word(pages.start, 0), 6)).unwrap();
    drop(soft);
    assert_eq!(fake.where_is(pages.start), None);
    assert_eq!(cpu(&fake, word(pages.start, 0)), 6);
}

#[test]
fn no_store_is_lost_when_pages_go_home_at_any_moment() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map(1, true);
    let soft = device(&fake, 64, 1);
    fake.hints.advise(pages, Advice::Preferred(Some(Preferred::Device(soft.index()))));
    let at = word(pages.start, 0);
    let over = AtomicBool::new(false);
    let evictions = 300;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                // The fake's page is no real one: it must not be accessed by units while it is at home.
                fake.announce(pages, Cause::Clear);
                soft.evict(pages.start.addr(), PAGE_SIZE);
                std::thread::yield_now();
            }
        });
        let result = run(&soft, |unit| {
            let mut value = 0;
            while soft.stats().evicted < evictions || value < 100_000 {
                // Not atomic: each store has to meet what the one before left.
                for _ in 0..1000 {
                    assert_eq!(unit.load(at), Ok(value));
                    value += 1;
                    unit.store(at, value)?;
                }
            }
            Ok(value)
        });
        over.store(true, Ordering::Release);
        assert_eq!(cpu(&fake, at), result.unwrap());
    });
    assert!(soft.stats().shootdowns >= evictions, "{:?}", soft.stats());
}
