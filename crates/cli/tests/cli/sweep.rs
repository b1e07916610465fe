//! Whoever of a run is killed, at whatever moment: nobody and nothing is left behind.
//!
//! `HMM_SWEEPS=N` has it done so often, rather than a few times; `HMM_SWEEP_SEED=N` chooses the moments.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::{
    Running, TempDir, can_run, children, finish, hmm, is_alive, is_root, kill, run, wait_until,
};

/// Told to all processes of a run by their environment.
const MARK: &str = "HMM_TEST_SWEEP";
/// Until the door is told, and then children that fork and execute, one after the other.
const SCRIPT: &str = "echo $HMM_DOOR >$0.new; mv $0.new $0
while :; do (seq 3000 | sort -R | tail -1) & (x=$(seq 2000); sleep 0.01) & wait; done >/dev/null";

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Numbers by chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A process and all that it has started, itself first.
fn tree(front: u32) -> Vec<u32> {
    let mut pids = vec![front];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        pids.extend(children(*pid));
        next += 1;
    }
    pids
}

/// Who is alive of those with the mark.
fn marked(mark: &str) -> Vec<u32> {
    let mark = format!("{MARK}={mark}");
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
    };
    pids.filter(has).filter(|pid| is_alive(*pid)).collect()
}

/// Shared memory of hmm's that has a name.
fn nr_shared() -> usize {
    let names = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().contains("hmm")).count()
}

fn sweep(dir: &TempDir, round: u64, chance: &mut Chance) {
    let (mark, door) = (format!("{}-{round}", std::process::id()), dir.path().join("door"));
    let files = dir.path().join("files");
    std::fs::create_dir_all(&files).unwrap();
    let device = match chance.below(4) {
        0 => format!("file:path={}", files.display()),
        _ => "lz4".to_owned(),
    };
    let mut command = hmm(["run", "--quiet", "--ram", "16M", "--device", &device, "--", "sh", "-c", SCRIPT]);
    let running = Running::start(command.arg(&door).env(MARK, &mark));
    wait_until("the program tells where the door is", || door.exists());
    let place = PathBuf::from(std::fs::read_to_string(&door).unwrap().trim()).parent().unwrap().to_owned();
    std::fs::remove_file(&door).unwrap();
    let front = running.pid();
    assert!(marked(&mark).len() >= 2, "they are found as long as they are there");
    // Some of them, at any moment, and then one without which the others cannot go on.
    for _ in 0..chance.below(4) {
        std::thread::sleep(Duration::from_millis(chance.below(40)));
        let below: Vec<_> = tree(front).into_iter().skip(3).collect();
        if !below.is_empty() {
            let victim = below[usize::try_from(chance.below(below.len() as u64)).unwrap()];
            kill(i32::try_from(victim).unwrap(), libc::SIGKILL);
        }
    }
    std::thread::sleep(Duration::from_millis(chance.below(60)));
    let above: Vec<_> = tree(front).into_iter().take(3).collect();
    let first = usize::try_from(chance.below(above.len() as u64)).unwrap();
    let also_next = chance.below(3) == 0;
    for victim in above.iter().skip(first).take(1 + usize::from(also_next)) {
        kill(i32::try_from(*victim).unwrap(), libc::SIGKILL);
    }
    running.finish();
    let mut left = Vec::new();
    wait_until("all are gone", || {
        left = marked(&mark);
        left.is_empty()
    });
    // If nobody was left who could the next run does it.
    if place.exists() {
        assert_eq!(finish(&mut run(["true"])).code(), 0);
    }
    wait_until("the directory is gone", || !place.exists());
    let named = std::fs::read_dir(&files).unwrap().count();
    assert_eq!(named, 0, "files of devices");
}

#[test]
fn nothing_is_left_behind_at_any_moment() {
    if !can_run() || !is_root() {
        return;
    }
    let seed = number("HMM_SWEEP_SEED", 1);
    let before = nr_shared();
    let dir = TempDir::new("sweep");
    let mut chance = Chance(seed);
    for round in 0..number("HMM_SWEEPS", 8) {
        println!("HMM_SWEEP_SEED={seed}, round {round}");
        sweep(&dir, round, &mut chance);
    }
    assert_eq!(nr_shared(), before, "shared memory with a name");
}
