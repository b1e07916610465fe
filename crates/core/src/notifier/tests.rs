use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::addr::Vpn;

/// Remembers what it was told.
#[derive(Default)]
struct Log {
    own: Option<Owner>,
    slow: bool,
    finished: Mutex<Vec<Cause>>,
}

impl Watch for Log {
    type Table = Vec<Cause>;

    fn ignores(&self, change: &Change) -> bool {
        change.cause == Cause::Migrate && change.owner.is_some() && change.owner == self.own
    }

    fn invalidate(&self, table: &mut Vec<Cause>, change: &Change) -> Pass {
        table.push(change.cause);
        if self.slow { Pass::Begun } else { Pass::Done }
    }

    fn finish(&self, change: &Change) {
        self.finished.lock().expect("not poisoned").push(change.cause);
    }
}

fn pages(start: u64, end: u64) -> PageRange {
    PageRange { start: Vpn(start), end: Vpn(end) }
}

fn change(start: u64, end: u64) -> Change {
    Change { range: pages(start, end), cause: Cause::Clear, owner: None }
}

fn watch(all: &Arc<Notifiers>, range: PageRange, log: Log) -> Notifier<Log> {
    Notifier::new(all, range, Arc::default(), log).expect("the range is not empty")
}

#[test]
fn what_was_read_before_a_change_is_not_installed() {
    let all: Arc<Notifiers> = Arc::default();
    let notifier = watch(&all, pages(10, 20), Log::default());
    let seq = notifier.read_begin();
    assert!(notifier.install(seq, |_| ()).is_ok());
    drop(all.invalidate(change(15, 16)));
    assert!(notifier.check_retry(seq));
    assert_eq!(notifier.install(seq, |_| ()), Err(Collided));
    let seq = notifier.read_begin();
    assert!(!notifier.check_retry(seq));
    assert_eq!(notifier.install(seq, |table| table.clone()), Ok(vec![Cause::Clear]));
}

#[test]
fn a_change_elsewhere_disturbs_nobody() {
    let all: Arc<Notifiers> = Arc::default();
    let notifier = watch(&all, pages(10, 20), Log::default());
    let seq = notifier.read_begin();
    let before = all.invalidate(change(0, 10));
    let behind = all.invalidate(change(20, 30));
    assert_eq!(notifier.read_begin(), seq, "no need to wait");
    assert!(notifier.install(seq, |_| ()).is_ok());
    drop((before, behind));
    assert!(notifier.install(seq, |_| ()).is_ok());
    assert!(notifier.table().is_empty());
}

/// A thread that has begun to read.
fn reader(notifier: &Arc<Notifier<Log>>) -> mpsc::Receiver<Sequence> {
    let ((tell, told), (begin, begun)) = (mpsc::channel(), mpsc::channel());
    let notifier = Arc::clone(notifier);
    std::thread::spawn(move || {
        let _ = begin.send(());
        tell.send(notifier.read_begin())
    });
    // From here on it is its wait that is seen, not that of a new thread for a CPU.
    begun.recv().expect("a thread that reads");
    told
}

fn waits(told: &mpsc::Receiver<Sequence>) -> bool {
    told.recv_timeout(Duration::from_millis(50)).is_err()
}

fn goes_on(told: &mpsc::Receiver<Sequence>) -> Sequence {
    told.recv_timeout(Duration::from_secs(10)).expect("reading goes on when the change has ended")
}

#[test]
fn reading_waits_for_the_last_of_nested_changes() {
    let all: Arc<Notifiers> = Arc::default();
    let notifier = Arc::new(watch(&all, pages(10, 20), Log::default()));
    let outer = all.invalidate(change(0, 100));
    let inner = all.invalidate(change(12, 13));
    let told = reader(&notifier);
    assert!(waits(&told));
    drop(outer);
    assert!(waits(&told));
    drop(inner);
    let seq = goes_on(&told);
    assert!(notifier.install(seq, |_| ()).is_ok());
}

#[test]
fn who_comes_in_the_middle_of_a_change_waits_for_its_end() {
    for is_watched in [false, true] {
        let all: Arc<Notifiers> = Arc::default();
        let before = is_watched.then(|| watch(&all, pages(10, 20), Log::default()));
        // Nobody may watch yet, and still it counts: the newcomer could read pages that are just being taken.
        let changing = all.invalidate(change(10, 20));
        let notifier = Arc::new(watch(&all, pages(10, 20), Log::default()));
        let told = reader(&notifier);
        let has_waited = waits(&told);
        // Before anything fails: the newcomer's end would wait for it.
        drop(changing);
        assert!(has_waited, "somebody watched before: {is_watched}");
        let seq = goes_on(&told);
        assert!(notifier.install(seq, |_| ()).is_ok());
        drop(before);
    }
}

#[test]
fn an_own_change_that_is_ignored_collides_with_what_was_read_alone() {
    let all: Arc<Notifiers> = Arc::default();
    let own = Some(Owner(7));
    let notifier = watch(&all, pages(10, 20), Log { own, ..Log::default() });
    let seq = notifier.read_begin();
    let migrate = |owner| Change { range: pages(10, 20), cause: Cause::Migrate, owner };
    drop(all.invalidate(migrate(own)));
    assert!(notifier.table().is_empty(), "it was not called");
    assert!(notifier.install_own(seq, |_| ()).is_ok());
    assert!(notifier.check_retry(seq));
    assert_eq!(notifier.install(seq, |_| ()), Err(Collided));
    drop(all.invalidate(migrate(Some(Owner(8)))));
    assert_eq!(notifier.install_own(seq, |_| ()), Err(Collided));
}

#[test]
fn reading_waits_for_an_own_change_as_well() {
    let all: Arc<Notifiers> = Arc::default();
    let own = Some(Owner(7));
    let notifier = Arc::new(watch(&all, pages(10, 20), Log { own, ..Log::default() }));
    let change = Change { range: pages(10, 20), cause: Cause::Migrate, owner: own };
    let changing = all.invalidate(change);
    let told = reader(&notifier);
    assert!(waits(&told));
    drop(changing);
    let seq = goes_on(&told);
    assert!(notifier.install(seq, |_| ()).is_ok());
}

#[test]
fn every_first_pass_is_over_before_the_second_begins() {
    let all: Arc<Notifiers> = Arc::default();
    let slow = || Log { slow: true, ..Log::default() };
    /// Finishes only when the other device's pass has begun.
    struct Second(Arc<Mutex<Vec<Cause>>>);
    impl Watch for Second {
        type Table = ();
        fn invalidate(&self, (): &mut (), _: &Change) -> Pass {
            Pass::Begun
        }
        fn finish(&self, _: &Change) {
            assert_eq!(self.0.lock().expect("not poisoned").len(), 1, "the other pass has begun");
        }
    }
    let table = Arc::default();
    let _first = Notifier::new(&all, pages(0, 9), Arc::default(), Second(Arc::clone(&table)));
    let second = Notifier::new(&all, pages(0, 9), table, slow()).expect("the range is not empty");
    drop(all.invalidate(change(3, 4)));
    assert_eq!(*second.watch().finished.lock().expect("not poisoned"), [Cause::Clear]);
}

#[test]
fn after_the_end_nobody_is_called() {
    let all: Arc<Notifiers> = Arc::default();
    let table = Arc::new(Mutex::new(vec![]));
    let notifier = Notifier::new(&all, pages(0, 9), Arc::clone(&table), Log::default());
    assert!(!all.is_empty());
    drop(notifier);
    assert!(all.is_empty());
    drop(all.invalidate(change(0, 9)));
    assert!(table.lock().expect("not poisoned").is_empty());
}

#[test]
fn the_end_waits_for_a_change_that_is_going_on() {
    let all: Arc<Notifiers> = Arc::default();
    let notifier = watch(&all, pages(0, 9), Log::default());
    let changing = all.invalidate(change(0, 9));
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        drop(notifier);
        tell.send(())
    });
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
    drop(changing);
    assert!(told.recv_timeout(Duration::from_secs(10)).is_ok());
}

#[test]
fn a_range_without_pages_is_refused() {
    let all: Arc<Notifiers> = Arc::default();
    let refused = Notifier::new(&all, pages(5, 5), Arc::default(), Log::default());
    assert_eq!(refused.map(|_| ()).expect_err("there is nothing to watch"), EmptyRange);
}

#[test]
fn second_passes_are_in_order_and_only_of_those_who_asked() {
    let all: Arc<Notifiers> = Arc::default();
    /// Writes down both passes under its number.
    struct Numbered(u32, Pass, Arc<Mutex<Vec<(u32, bool)>>>);
    impl Numbered {
        fn note(&self, is_second: bool) {
            self.2.lock().expect("not poisoned").push((self.0, is_second));
        }
    }
    impl Watch for Numbered {
        type Table = ();
        fn invalidate(&self, (): &mut (), _: &Change) -> Pass {
            self.note(false);
            self.1
        }
        fn finish(&self, _: &Change) {
            self.note(true);
        }
    }
    let passes = Arc::default();
    let new = |number, pass, range| {
        Notifier::new(&all, range, Arc::default(), Numbered(number, pass, Arc::clone(&passes)))
    };
    let _notifiers = [
        new(1, Pass::Begun, pages(0, 9)),
        new(2, Pass::Done, pages(0, 9)),
        new(3, Pass::Begun, pages(5, 20)),
        new(4, Pass::Begun, pages(9, 20)),
    ];
    drop(all.invalidate(change(7, 8)));
    let expected = [(1, false), (2, false), (3, false), (1, true), (3, true)];
    assert_eq!(*passes.lock().expect("not poisoned"), expected);
}
