//! Under fire: threads of the program and three devices, one of them coherent, read, write and do atomics on the same pages,
//! while other threads migrate the pages, evict them, take them exclusively, discard, replace, move and protect them.
//!
//! Every access is checked against what a single memory could have given ([`region`]). Nothing is random but which thread
//! comes first: the operations of each thread follow from the seed, which is printed.
//!
//! | variable | what it does |
//! |---|---|
//! | `HMM_FIRE_SECONDS=300` | how long each test goes on at least (default 3) |
//! | `HMM_FIRE_SEED=17` | the threads' operations (default: of the time) |
//! | `HMM_FIRE_LEAVE_OUT=fork,relocate` | kinds of operations that are left out, to find out what matters |

#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod agent;
mod audit;
mod disturb;
mod region;
mod report;
mod vram;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmm::AddressSpace;
use hmm::core::notifier::Owner;
use hmm::device::MemKind;
use hmm::heap::{Heap, Inside};
use hmm::lz4::{Lz4, Lz4Config};
use hmm_conformance::{Counted, Driver, Rng, Watched, states, within};

use agent::{Agent, Side};
use region::Region;
use report::{Kind, Report};
use vram::Vram;

#[global_allocator]
static ALLOCATOR: Heap = Heap;

/// Threads of the program that work.
const NR_CPUS: u64 = 2;
/// The devices. What is in the memory of a coherent one stays mapped in the program.
const DEVICES: [MemKind; 3] = [MemKind::Private, MemKind::Private, MemKind::Coherent];
/// Everybody who writes: two threads of the program, and a unit for each device.
const NR_AGENTS: usize = 5;

/// A driver and its device.
struct Accelerator {
    driver: Driver,
    vram: Arc<Counted<Vram>>,
    /// Held for writing by who compares the table with the pages: then the driver migrates nothing.
    working: std::sync::RwLock<()>,
}

/// Everything that the threads share.
struct Fire {
    space: AddressSpace,
    accelerators: Vec<Accelerator>,
    regions: Vec<Region>,
    report: Report,
    is_over: AtomicBool,
}

/// As much longer as asked for a test goes on for what has not happened yet.
const FOR_EVERYTHING: Duration = Duration::from_secs(60);

/// A thread that fails ends the others.
struct Ends<'f>(&'f AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Fire {
    fn new(space: AddressSpace, sizes: &[usize], nr_frames: usize) -> Arc<Self> {
        let _inside = Inside::enter();
        let accelerators = (1..)
            .zip(DEVICES)
            .map(|(number, kind)| {
                let vram = Arc::new(Counted::new(Vram::new(kind, nr_frames)));
                let driver = Driver::new(&space, Arc::clone(&vram) as _, Owner(number));
                Accelerator { driver, vram, working: std::sync::RwLock::default() }
            })
            .collect();
        let regions: Vec<Region> = sizes.iter().map(|nr_pages| Region::new(*nr_pages)).collect();
        for region in &regions {
            space.manage(region.map().pages()).expect("can be managed");
        }
        Arc::new(Self {
            space,
            accelerators,
            regions,
            report: Report::default(),
            is_over: AtomicBool::new(false),
        })
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Lets everybody work for so long, and on a slow machine until everything has happened once.
    fn burn(self: &Arc<Self>, seed: u64, time: Duration) {
        let rng = Rng::new(seed);
        std::thread::scope(|scope| {
            let start = |name: &'static str, number: u64, work: fn(&Self, u64, &mut Rng)| {
                let mut rng = rng.fork(number + 1);
                scope.spawn(move || {
                    let _ends = Ends(&self.is_over);
                    self.report.enlist(name);
                    work(self, number, &mut rng);
                });
            };
            for cpu in 0..NR_CPUS {
                start("cpu", cpu, |fire, number, rng| Agent::new(fire, number, Side::Cpu).work(rng));
            }
            for unit in 0..DEVICES.len() as u64 {
                start("unit", NR_CPUS + unit, |fire, number, rng| {
                    let accelerator = usize::try_from(number - NR_CPUS).unwrap_or(0);
                    Agent::new(fire, number, Side::Unit(accelerator)).work(rng);
                });
            }
            start("mover", 10, |fire, _, rng| disturb::move_pages(fire, rng));
            start("mover", 11, |fire, _, rng| disturb::move_pages(fire, rng));
            start("mapper", 12, |fire, _, rng| disturb::change_mappings(fire, rng));
            start("auditor", 13, |fire, _, rng| audit::audit(fire, rng));
            let begin = Instant::now();
            let is_time_over = || {
                let more = if self.report.missing().is_some() { FOR_EVERYTHING } else { Duration::ZERO };
                begin.elapsed() >= time + more
            };
            while self.goes_on() && !is_time_over() {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.is_over.store(true, Ordering::Relaxed);
        });
    }

    /// Everybody has stopped: every word is what it must be, and every frame is free when the memory is gone.
    fn end(self: Arc<Self>) {
        for region in &self.regions {
            region.verify(&mut |page, word| region.load(page, word));
        }
        let stats = self.space.stats();
        assert_eq!(stats.poisoned, 0, "no device was lost: {stats:?}");
        // Where there is a budget it was used up.
        let is_bounded = stats.budget < 1 << 20;
        assert!(!is_bounded || stats.stored > 0, "there was no pressure: {stats:?}");
        let this = Arc::into_inner(self).expect("all threads have ended");
        drop(this.regions);
        this.space.settle();
        for accelerator in this.accelerators {
            assert_eq!(accelerator.vram.nr_live(), 0, "frames are in use when all memory is gone");
            assert_eq!(accelerator.vram.wrong(), Vec::<String>::new());
            this.space.remove_device(accelerator.driver.id()).expect("nobody uses it");
        }
        this.report.print();
        this.report.expect_all();
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()));
    number("HMM_FIRE_SEED").unwrap_or(now)
}

/// One after the other: they use all the machine has.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn under_fire(name: &str, make: fn() -> AddressSpace, sizes: &'static [usize], nr_frames: usize) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (seed, seconds) = (seed(), number("HMM_FIRE_SECONDS").unwrap_or(3));
    eprintln!("{name}: HMM_FIRE_SEED={seed}");
    let patience = Duration::from_secs(seconds + 60) + FOR_EVERYTHING;
    within(patience, name, move |watched: &Watched| {
        let fire = Fire::new(make(), sizes, nr_frames);
        let (weak, space) = (Arc::downgrade(&fire), fire.space.clone());
        watched.add(Box::new(move || {
            let Some(fire) = weak.upgrade() else { return "it has ended".into() };
            fire.report.text()
        }));
        let weak = Arc::downgrade(&fire);
        watched.add(Box::new(move || {
            let Some(fire) = weak.upgrade() else { return String::new() };
            let of = |region: &Region| states(&space, region.map().pages());
            fire.regions.iter().map(of).collect::<Vec<_>>().join("\n")
        }));
        fire.burn(seed, Duration::from_secs(seconds));
        fire.end();
    });
}

#[test]
fn mirrors_and_migration() {
    let make = || AddressSpace::builder().build().expect("userfaultfd can be had");
    under_fire("mirrors_and_migration", make, &[1, 24, 600], 512);
}

/// The same where memory is short: the engine evicts to a tier by itself.
#[test]
fn mirrors_and_migration_within_a_budget() {
    let make = || {
        let tier = Arc::new(Lz4::new(Lz4Config::new(32 << 20)).expect("the capacity is in range"));
        AddressSpace::builder().ram(16 << 20).device(tier).build().expect("userfaultfd can be had")
    };
    under_fire("mirrors_and_migration_within_a_budget", make, &[1, 24, 1500, 1500, 1500, 1500], 512);
}
