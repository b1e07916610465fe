//! A page that moves while devices map it, in every interleaving (loom) or in many (shuttle).
//!
//! `home` is where the page is. A device reads it and puts it into its table; whoever moves the page invalidates first.
//! While a change is under way no table may have an entry, and when all is over an entry names the page's home.

use super::*;
use crate::addr::Vpn;

#[cfg(loom)]
use loom::thread;
#[cfg(shuttle)]
use shuttle::thread;

#[cfg(loom)]
fn explore(case: impl Fn() + Send + Sync + 'static) {
    loom::model(case);
}

#[cfg(shuttle)]
fn explore(case: impl Fn() + Send + Sync + 'static) {
    shuttle::check_random(case, 20_000);
}

/// Drops its entry at once, or in two passes.
struct Device {
    in_two_passes: bool,
}

/// Who moves a page on behalf of the device, which need not be told.
const OWN: Option<Owner> = Some(Owner(1));

impl Watch for Device {
    type Table = Option<u64>;

    fn ignores(&self, change: &Change) -> bool {
        change.owner == OWN
    }

    fn invalidate(&self, entry: &mut Option<u64>, _: &Change) -> Pass {
        *entry = None;
        if self.in_two_passes { Pass::Begun } else { Pass::Done }
    }
}

type Tables = Vec<Arc<Mutex<Option<u64>>>>;

struct World {
    all: Arc<Notifiers>,
    home: AtomicU64,
    tables: Tables,
}

const PAGE: PageRange = PageRange { start: Vpn(3), end: Vpn(4) };

impl World {
    fn new(nr_devices: usize) -> Arc<Self> {
        let tables = (0..nr_devices).map(|_| Arc::new(Mutex::new(None))).collect();
        Arc::new(Self { all: Arc::default(), home: AtomicU64::new(0), tables })
    }

    fn device(self: &Arc<Self>, number: usize) -> Notifier<Device> {
        let device = Device { in_two_passes: number.is_multiple_of(2) };
        Notifier::new(&self.all, PAGE, Arc::clone(&self.tables[number]), device).expect("a page")
    }

    /// Maps the page on a device.
    fn map(&self, notifier: &Notifier<Device>, tries: usize) {
        for _ in 0..tries {
            let seq = notifier.read_begin();
            let home = self.home.load(Ordering::SeqCst);
            if notifier.install(seq, |entry| *entry = Some(home)).is_ok() {
                return;
            }
        }
    }

    /// Moves the page.
    fn move_to(&self, home: u64) {
        let changing = self.all.invalidate(Change { range: PAGE, cause: Cause::Clear, owner: None });
        self.home.store(home, Ordering::SeqCst);
        drop(changing);
    }

    fn entry(&self, number: usize) -> Option<u64> {
        *self.tables[number].lock().expect("not poisoned")
    }

    fn check(&self) {
        let home = self.home.load(Ordering::SeqCst);
        for number in 0..self.tables.len() {
            assert!(self.entry(number).is_none_or(|entry| entry == home), "a stale entry on device {number}");
        }
    }
}

#[test]
fn an_entry_never_outlives_a_move() {
    explore(|| {
        let world = World::new(1);
        let notifier = world.device(0);
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let changing = world.all.invalidate(Change { range: PAGE, cause: Cause::Clear, owner: None });
                assert_eq!(world.entry(0), None, "an entry in the middle of a change");
                world.home.store(1, Ordering::SeqCst);
                assert_eq!(world.entry(0), None, "an entry in the middle of a change");
                drop(changing);
            })
        };
        world.map(&notifier, 2);
        mover.join().expect("no panic");
        world.check();
    });
}

#[test]
fn moves_that_overlap_end_one_by_one() {
    explore(|| {
        let world = World::new(1);
        let notifier = world.device(0);
        // Not the same page's home, but one counter for both.
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                drop(world.all.invalidate(Change { range: PAGE, cause: Cause::Unmap, owner: None }));
            })
        };
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.move_to(1))
        };
        world.map(&notifier, 1);
        mover.join().expect("no panic");
        other.join().expect("no panic");
        world.check();
    });
}

#[test]
fn a_notifier_may_come_and_go_at_any_moment() {
    explore(|| {
        let world = World::new(1);
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.move_to(1))
        };
        let notifier = world.device(0);
        world.map(&notifier, 1);
        drop(notifier);
        // Nobody clears the table any more, and nobody writes to it.
        let left = world.entry(0);
        mover.join().expect("no panic");
        assert_eq!(world.entry(0), left, "a callback after the end");
    });
}

#[test]
fn what_the_driver_moves_itself_is_not_entered_as_it_was_before() {
    explore(|| {
        let world = World::new(1);
        let notifier = Arc::new(world.device(0));
        let mover = {
            let (world, notifier) = (Arc::clone(&world), Arc::clone(&notifier));
            thread::spawn(move || {
                let seq = notifier.read_begin();
                let change = Change { range: PAGE, cause: Cause::Migrate, owner: OWN };
                let changing = world.all.invalidate(change);
                world.home.store(1, Ordering::SeqCst);
                drop(changing);
                // The driver is not told of it, and drops its entry by itself.
                *notifier.table() = None;
                notifier.install_own(seq, |entry| *entry = Some(1)).expect("nobody else moves it");
            })
        };
        // The driver's fault, at the same time.
        world.map(&notifier, 2);
        mover.join().expect("no panic");
        assert!(world.entry(0) == Some(1), "a stale entry");
    });
}

#[cfg(shuttle)]
#[test]
fn two_devices_and_three_movers() {
    explore(|| {
        let world = World::new(2);
        let movers: Vec<_> = (1..=3)
            .map(|home| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.move_to(home))
            })
            .collect();
        let mappers: Vec<_> = (0..2)
            .map(|number| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    let notifier = world.device(number);
                    (0..3).for_each(|_| world.map(&notifier, 2));
                    notifier
                })
            })
            .collect();
        let notifiers: Vec<_> = mappers.into_iter().map(|mapper| mapper.join()).collect();
        movers.into_iter().for_each(|mover| mover.join().expect("no panic"));
        world.check();
        drop(notifiers);
    });
}
