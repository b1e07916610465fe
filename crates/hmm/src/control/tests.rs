use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Child, Command};

use hmm_core::policy::Name;

use super::*;
use crate::spec::Backing;

fn config() -> RunConfig {
    RunConfig {
        ram_pages: 1000,
        per_process: false,
        on_full: OnFull::Grow,
        devices: vec![
            Backing::Lz4 { capacity_bytes: 1 << 30 }.into(),
            Backing::Lz4 { capacity_bytes: 512 << 30 }.into(),
        ],
        dmirror: true,
        policy: Name::Twice,
    }
}

fn path_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// A process to be accounted, which ends when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("60").spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn find(control: &Control, pid: u32) -> &'static Slot {
    control.slots().find(|slot| slot.owner().is_some_and(|owner| owner.pid() == pid)).unwrap()
}

fn verdict(text: &str) -> Verdict {
    let figures =
        Figures { charged_pages: 1, away_pages: 2, device_bytes: 3, device_capacity_bytes: u64::MAX };
    let text = Text::format(format_args!("{text}"));
    Verdict { kind: VerdictKind::DeviceFull, pid: 42, errno: -12, figures, text }
}

#[test]
fn an_opened_page_is_the_created_one() {
    let (fd, control) = Control::create(&config()).unwrap();
    let opened = Control::open(&path_of(&fd), config()).unwrap();
    assert_eq!(*opened.config(), config());
    assert_eq!(opened.budget(), 1000);
    assert!(opened.page.ledger.share(3).try_charge(10));
    assert_eq!(control.charged(), 10);
}

#[test]
fn opening_leaves_no_descriptor_behind() {
    let (fd, _) = Control::create(&config()).unwrap();
    let name = std::fs::read_link(path_of(&fd)).unwrap();
    Control::open(&path_of(&fd), config()).unwrap();
    let nr_open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            // The same name belongs to the other tests' pages, too; the inode tells them apart.
            std::fs::read_link(&path).is_ok_and(|link| link == name) && same_file(&path, &path_of(&fd))
        })
        .count();
    assert_eq!(nr_open, 1, "the supervisor's own");
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &Path| std::fs::metadata(path).map(|meta| meta.ino()).ok();
    inode(a) == inode(b)
}

#[test]
fn other_files_are_refused() {
    let foreign = |path: &Path| Control::open(path, config()).map(drop).expect_err("refused").to_string();
    assert!(foreign(Path::new("/nowhere")).contains("cannot open the control page /nowhere"));
    assert!(foreign(Path::new("/dev/zero")).contains("its size differs"));

    let (fd, _) = Control::create(&config()).unwrap();
    let len = File::from(fd).metadata().unwrap().len();
    let path = std::env::temp_dir().join(format!("hmm-control-test-{}", std::process::id()));
    File::create(&path).unwrap().set_len(len).unwrap();
    assert!(foreign(&path).contains("its magic number differs"));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn more_devices_than_fit_are_refused() {
    let mut config = config();
    config.devices = vec![config.devices[0].clone(); MAX_DEVICES + 1];
    assert!(matches!(Control::create(&config), Err(ControlError::TooManyDevices { given: 5 })));
}

#[test]
fn every_process_has_a_slot_of_its_own() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let (one, other) = (Sleeper::new(), Sleeper::new());
    assert_eq!(control.slots().count(), 0);
    control.claim_slot(one.pid()).unwrap().set_state(SlotState::Managed);
    control.claim_slot(other.pid()).unwrap();

    assert_eq!(control.nr_processes(), 2);
    assert_eq!(find(&control, one.pid()).state(), SlotState::Managed);
    assert_eq!(find(&control, other.pid()).state(), SlotState::Starting);
    assert_eq!(find(&control, other.pid()).name().as_str(), "sleep");
}

#[test]
fn a_process_that_is_not_there_gets_no_slot() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let pid = Sleeper::new().pid();
    assert!(control.claim_slot(pid).is_none());
    assert_eq!(control.nr_processes(), 0);
}

#[test]
fn charges_of_the_dead_are_taken_back_once_and_their_counts_stay() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let process = Sleeper::new();
    let slot = control.claim_slot(process.pid()).unwrap();
    let owner = slot.owner().unwrap();
    assert!(control.share(slot).try_charge(30));
    slot.stats().pgfault.store(7, Ordering::Relaxed);

    control.settle(slot, owner);
    assert_eq!(control.charged(), 0);
    assert_eq!(slot.owner(), None);
    control.settle(slot, owner);
    assert_eq!(control.charged(), 0);

    let next = control.claim_slot(process.pid()).unwrap();
    assert_eq!(next.stats().pgfault.load(Ordering::Relaxed), 7);
    assert_eq!(control.slots().count(), 1);
    assert_eq!(control.nr_processes(), 2);
}

fn identity(process: &Sleeper) -> ProcessId {
    ProcessId::of_pid(process.pid()).unwrap().0
}

/// A parent with 40 pages, and a slot for its child with 30.
fn about_to_fork(control: &Control, parent: &Sleeper) -> (ProcessId, &'static Slot, &'static Slot) {
    let slot = control.claim_slot(parent.pid()).unwrap();
    let childs = control.claim_for_child(slot).unwrap();
    assert!(control.share(slot).try_charge(40) && control.share(childs).try_charge(30));
    (slot.owner().unwrap(), slot, childs)
}

#[test]
fn a_child_takes_over_what_was_set_aside_for_it_and_outlives_its_parent() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let (parent, child) = (Sleeper::new(), Sleeper::new());
    let (owner, slot, childs) = about_to_fork(&control, &parent);
    assert_eq!(control.nr_processes(), 1);
    assert!(control.take_over(childs, owner, identity(&child)));
    assert_eq!((control.nr_processes(), control.charged()), (2, 70));
    // The parent was killed, and its supervisor has seen it as the owner of both.
    control.settle(slot, owner);
    control.settle(childs, owner);
    assert_eq!(control.charged(), 30);
    assert_eq!(find(&control, child.pid()).owner(), childs.owner());
    control.settle(childs, childs.owner().unwrap());
    assert_eq!(control.charged(), 0);
}

#[test]
fn each_process_may_have_a_budget_to_itself() {
    let (_fd, control) = Control::create(&RunConfig { per_process: true, ..config() }).unwrap();
    let (parent, child, next) = (Sleeper::new(), Sleeper::new(), Sleeper::new());
    let slot = control.claim_slot(parent.pid()).unwrap();
    let limit = control.share(slot).free();
    assert!(control.share(slot).try_charge(limit) && !control.share(slot).try_charge(1));
    control.ledger_of(slot).grow(50);
    let more = limit + control.share(slot).free();
    let childs = control.claim_for_child(slot).unwrap();
    control.grant_to_child(slot, childs);
    assert!(control.share(childs).try_charge(more), "what the parent may have, with what it was granted");
    assert_eq!((control.charged(), control.peak(), control.budget()), (limit + more, more, 1000));
    assert!(control.take_over(childs, slot.owner().unwrap(), identity(&child)));
    control.settle(childs, identity(&child));
    assert_eq!((control.charged(), control.ledger_of(slot).granted()), (limit, 50));
    let again = control.claim_slot(next.pid()).unwrap();
    assert_eq!(control.number_of(again), control.number_of(childs));
    assert_eq!(
        (control.share(again).free(), control.peak()),
        (limit, more),
        "what was granted is not the next one's"
    );
}

#[test]
fn what_was_set_aside_goes_with_the_parent() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let (parent, child) = (Sleeper::new(), Sleeper::new());
    let (owner, slot, childs) = about_to_fork(&control, &parent);
    control.settle(childs, owner);
    assert_eq!(control.charged(), 40);
    control.settle(slot, owner);
    assert_eq!(control.charged(), 0);
    assert!(!control.take_over(childs, owner, identity(&child)), "it is gone");
    assert!(control.claim_slot(child.pid()).is_some());
}

#[test]
fn a_slot_is_freed_by_who_comes_next_if_somebody_died_while_he_freed_it() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let (parent, child) = (Sleeper::new(), Sleeper::new());
    let (owner, _, childs) = about_to_fork(&control, &parent);
    childs.begin_to_leave(owner);
    assert_eq!(childs.owner(), Some(owner));
    assert!(!control.take_over(childs, owner, identity(&child)), "half of it may be gone");
    control.settle(childs, owner);
    assert_eq!((childs.owner(), control.charged()), (None, 40));
}

/// A process that nobody is.
fn gone_in(round: u64) -> ProcessId {
    ProcessId::of_word(round << 32 | 0x3fff_ffff).unwrap()
}

/// One with `pages` charged in the slot.
fn gone(control: &Control, slot: &Slot, round: u64, pages: u64) -> ProcessId {
    let process = gone_in(round);
    assert!(slot.try_claim(process, "gone") && control.share(slot).try_charge(pages));
    process
}

#[test]
fn who_finds_no_slot_settles_the_dead() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let (one, other) = (Sleeper::new(), Sleeper::new());
    let slot = control.claim_slot(one.pid()).unwrap();
    assert!(!control.settle_the_dead(), "it is alive");
    let count = |number: usize| _ = gone(&control, &control.page.slots[number], number as u64, 5);
    control.page.nr_reached.store(NR_SLOTS as u64, Ordering::Relaxed);
    (1..NR_SLOTS).for_each(count);
    let supervisor = control.page.supervisor.swap(0, Ordering::Relaxed);
    assert!(control.claim_for_child(slot).is_none(), "who does not see the supervisor cannot tell");
    control.page.supervisor.store(supervisor, Ordering::Relaxed);
    assert!(control.claim_for_child(slot).is_some());
    assert_eq!(control.charged(), 0);
    (2..NR_SLOTS).for_each(count);
    assert!(control.claim_slot(other.pid()).is_some());
    assert_eq!((control.charged(), control.nr_turned_away()), (0, 0));
}

#[test]
fn who_settles_late_takes_nothing_from_the_next() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let (slot, next) = (&control.page.slots[0], gone_in(2));
    let gone = gone(&control, slot, 1, 7);
    // One of two stands still after it has seen that it has to be done.
    assert!(slot.begin_to_leave(gone));
    let seen = control.share(slot).seen();
    control.settle(slot, gone);
    assert!(slot.try_claim(next, "next") && control.share(slot).try_charge(7));
    assert!(!control.share(slot).clear_seen(seen));
    control.settle(slot, gone);
    assert_eq!((slot.owner(), control.charged()), (Some(next), 7));
}

#[test]
fn exec_begins_anew_in_the_same_slot() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let process = Sleeper::new();
    let slot = control.claim_slot(process.pid()).unwrap();
    slot.set_state(SlotState::Managed);
    let other = control.claim_for_child(slot).unwrap();
    assert!(control.share(slot).try_charge(30) && control.share(other).try_charge(20));

    let again = control.claim_slot(process.pid()).unwrap();
    assert!(std::ptr::eq(slot, again));
    assert_eq!(again.state(), SlotState::Starting);
    assert_eq!((other.owner(), control.charged()), (None, 0), "nor is there a child");
    assert_eq!(control.nr_processes(), 1);
}

#[test]
fn when_all_slots_are_taken_the_next_process_gets_none() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let processes: Vec<Sleeper> = (0..=NR_SLOTS).map(|_| Sleeper::new()).collect();
    let (last, first) = processes.split_last().unwrap();
    for process in first {
        assert!(control.claim_slot(process.pid()).is_some());
    }
    assert!(control.claim_slot(last.pid()).is_none());
    assert_eq!((control.nr_processes(), control.nr_turned_away()), (NR_SLOTS as u64, 1));

    let slot = find(&control, first[5].pid());
    assert!(control.claim_for_child(slot).is_none());
    control.settle(slot, slot.owner().unwrap());
    assert!(control.claim_slot(last.pid()).is_some());
}

#[test]
fn one_slot_is_never_given_to_two() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let processes: Vec<Sleeper> = (0..16).map(|_| Sleeper::new()).collect();
    for _ in 0..50 {
        std::thread::scope(|scope| {
            for process in &processes {
                scope.spawn(move || control.claim_slot(process.pid()).unwrap());
            }
        });
        let mut owners: Vec<u32> =
            control.slots().filter_map(|slot| slot.owner().map(ProcessId::pid)).collect();
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), processes.len());
        control.slots().for_each(|slot| control.settle(slot, slot.owner().unwrap()));
    }
}

#[test]
fn the_first_verdict_counts() {
    let (fd, control) = Control::create(&config()).unwrap();
    assert_eq!(control.verdict(), None);
    let process = Control::open(&path_of(&fd), config()).unwrap();
    assert!(process.set_verdict(&verdict("lz4 has no room")));
    assert!(!process.set_verdict(&verdict("nor has the next")));
    assert_eq!(control.verdict(), Some(verdict("lz4 has no room")));
}

#[test]
fn a_text_of_full_length_comes_through() {
    let (_fd, control) = Control::create(&config()).unwrap();
    let long = verdict(&"x".repeat(300));
    assert_eq!(long.text.as_str().len(), 256);
    assert!(control.set_verdict(&long));
    assert_eq!(control.verdict(), Some(long));
}
