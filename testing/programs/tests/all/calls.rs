//! Memory calls on pages that are away, by C programs that check every byte.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use hmm_programs::command::hmm_binary;
use hmm_programs::skip::{has_programs, is_root};
use hmm_programs::{
    Hmm, Job, MIB, Stats, TempDir, assert_healthy, assert_same_output, can_run, compile, procs, scale,
};
use rustix::process::Signal;

/// Compiles the program, runs it alone and in a quarter of what it works on.
#[track_caller]
pub(crate) fn check(name: &str, args: &[&str], ram: u64) {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile(name, &dir) else { return };
    let job = Job::new(program).args(args);
    let alone = job.alone();
    assert!(alone.status.success(), "{} {}", alone.status, alone.stderr);
    let managed = job.under(&Hmm::ram(ram));
    // Its message has the figures.
    assert_healthy(&managed, ram);
    assert_same_output(&managed, &alone);
    assert!(managed.stats().count("pgstore") * 4096 >= ram, "hardly anything left: {}", managed.stats());
}

/// Threads, MiB in all, rounds, seed, and MiB of the budget.
fn calls(nr_threads: u64, mib: u64, rounds: u64, seed: u64, ram: u64) {
    let args = [nr_threads, mib * scale(), rounds, seed].map(|number| number.to_string());
    check("calls", &args.each_ref().map(String::as_str), ram * scale() * MIB);
}

/// Arguments of the program, and its budget.
fn heap(args: &[&str], ram: u64) {
    check("heap", args, ram);
}

/// A third of the memory is one mapping, which may be read-only for a while and stays resident then. So it gets more than a
/// quarter.
#[test]
fn one_thread_maps_and_unmaps() {
    calls(1, 64, 3000, 1, 32);
}

#[test]
fn four_threads_map_and_unmap() {
    calls(4, 96, 1500, 2, 24);
}

#[test]
fn eight_threads_map_and_unmap() {
    calls(8, 128, 600, 3, 32);
}

/// What is one mapping to the program moves as one, also when it is several to the kernel.
#[test]
fn mappings_in_pieces_move() {
    check("remap", &["64"], 16 * MIB);
}

/// Who has moved memory goes on when that was told, and may move it on before it is noted.
#[test]
fn what_has_just_moved_moves_on_in_pieces() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("hurry", &dir) else { return };
    let managed = Job::new(program).args(["4000"]).under(&Hmm::ram(16 * MIB));
    assert_healthy(&managed, 16 * MIB);
    assert_eq!(managed.stdout(), "done\n");
}

#[test]
fn the_break_moves() {
    check("brk", &["64"], 16 * MIB);
}

#[test]
fn the_kernel_touches_pages_that_are_away() {
    check("syscalls", &["64"], 16 * MIB);
}

/// Direct I/O, rings, pipes with the pages themselves, debuggers.
#[test]
fn others_access_pages_that_are_away() {
    let dir = TempDir::new();
    let file = dir.join("file");
    check("access", &["32", &file.to_string_lossy()], 16 * MIB);
}

/// Whoever reads memory of hmm's that is empty has the kernel make zeroes there, which must not be taken for the program's.
#[test]
fn who_reads_all_memory_changes_none() {
    check("peeked", &["64", "4"], 16 * MIB);
}

#[test]
fn what_is_locked_altogether_stays_and_is_right() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("lockall", &dir) else { return };
    let job = Job::new(program).args(["48"]);
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(24 * MIB)));
    assert_same_output(&managed, &alone);
    let stats = managed.stats();
    assert!(stats.count("pgstore") * 4096 >= 48 * MIB && stats.count("pgpoison") == 0, "{stats}");
    // What is locked as it is mapped is resident before it can be charged.
    let most = 24 * MIB + 8 * MIB + stats.count("overcharged") * 4096;
    assert!(stats.get("peak_resident_bytes") <= most, "{stats}");
}

#[test]
fn a_core_dump_has_what_was_resident() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("dumped", &dir) else { return };
    let here = TempDir::new();
    let managed = Job::new(program).arg("48").arg(here.path()).under(&Hmm::ram(16 * MIB));
    assert_healthy(&managed, 16 * MIB);
    match managed.stdout().as_str() {
        "no core\n" => println!("SKIPPED: core dumps are no files here: /proc/sys/kernel/core_pattern"),
        text => assert_eq!(text, "core\n"),
    }
}

#[test]
fn forks_while_threads_write() {
    check("forks", &["64"], 16 * MIB);
}

/// Whoever is killed at whatever moment, what was set aside for its child is the child's, or free again.
#[test]
fn forks_of_processes_that_are_killed() {
    let rounds = (60 * scale()).to_string();
    check("orphans", &["24", &rounds, "1"], 16 * MIB);
}

/// What the supervisor does for processes that are gone others do if it is late: here nobody hears of it for longer than
/// a fault waits for memory. The dead of these runs have all of a small budget, and all slots of a large one.
#[test]
fn forks_while_the_supervisor_stands_still() {
    const STANDSTILL: Duration = Duration::from_secs(3);
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("orphans", &dir) else { return };
    for (rounds, ram, nr_processes) in [("60", 16 * MIB, 60), ("600", 4096 * MIB, 600)] {
        let mut supervisor = None;
        let mut look = |front| match supervisor {
            None => {
                // The front, the supervisor, and the program.
                supervisor =
                    procs::tree(front).get(1..3).map(|processes| (processes[0], Some(Instant::now())));
                supervisor.inspect(|(pid, _)| procs::signal(*pid, Signal::STOP));
            }
            Some((pid, Some(since))) if since.elapsed() > STANDSTILL => {
                procs::signal(pid, Signal::CONT);
                supervisor = Some((pid, None));
            }
            Some(_) => {}
        };
        let managed = Job::new(&program).args(["24", rounds, "1"]).under_meanwhile(&Hmm::ram(ram), &mut look);
        assert!(supervisor.is_some_and(|(_, since)| since.is_none()), "it did not stand still");
        assert_healthy(&managed, ram);
        assert!(managed.stats().get("processes") > nr_processes, "{}", managed.stats());
        assert_eq!((managed.stdout(), managed.stderr.as_str()), ("all have ended\n".to_owned(), ""));
    }
}

/// What cannot leave is more than the budget, all processes together: none waits for what cannot come. It took 13 s, where
/// each second fork waited for two.
#[test]
fn forks_that_share_what_may_only_be_read() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("nested", &dir) else { return };
    let of = |nr_processes, quarters| Job::new(&program).args([nr_processes, "7", quarters]);
    let job = of("8", "1");
    let ram = Hmm::ram(16 * MIB);
    let (alone, managed, each) = (job.alone(), job.under(&ram), job.under(&ram.clone().per_process()));
    for done in [&alone, &managed, &each] {
        // It is told that the budget was exceeded.
        assert_eq!(done.stdout(), "done\n", "{}", done.stderr);
    }
    assert!(managed.stats().count("overcharged") > 4096, "it would not fit: {}", managed.stats());
    // What one of them has that cannot leave does fit.
    assert_healthy(&each, 16 * MIB);
    // If it does not, the child is granted what its parent was: else it could never be paid for.
    let granted = of("3", "4").under(&ram.per_process());
    assert_eq!(granted.stdout(), "done\n", "{}", granted.stderr);
    assert!(granted.stats().count("overcharged") > 0, "it would not fit: {}", granted.stats());
}

/// The child finds mappings where the kernel has them at that moment.
#[test]
fn forks_while_mappings_move() {
    check("forkmoves", &["64"], 16 * MIB);
}

/// Each cell of operations times states: see `OPERATIONS.md`.
#[test]
fn states_and_operations() {
    check("states", &["24"], 16 * MIB);
}

/// What a child does not get, or gets as zeroes, the engine must not know there any more.
#[test]
fn what_is_kept_from_children() {
    check("atfork", &["64"], 16 * MIB);
}

#[test]
fn stacks_and_signal_stacks_that_are_away() {
    check("stacks", &["64"], 16 * MIB);
}

/// Faults of mappings that may only be read go another way, and need memory like others.
/// Half of it is read-only at a time, and stays resident as long: the budget has room for that, and for half of the rest.
#[test]
fn memory_that_may_only_be_read() {
    check("readonly", &["64"], 48 * MIB);
}

#[test]
fn blocks_of_the_heap_in_random_order() {
    heap(&["96", "300000", "1"], 24 * MIB);
}

#[test]
fn large_blocks_of_the_heap() {
    heap(&["96", "60000", "2", "300000"], 24 * MIB);
}

/// Stacks, heaps of threads, blocks that grow, memory that the kernel shall populate: all of it touched at once.
#[test]
fn memory_that_grows_when_it_is_of_another_kind() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("grows", &dir) else { return };
    let job = Job::new(program);
    let managed = job.under(&Hmm::ram(16 * MIB));
    assert_same_output(&managed, &job.alone());
}

#[test]
fn memory_that_is_touched_at_once() {
    check("late", &["64"], 16 * MIB);
}

/// The break goes back and forth.
#[test]
fn a_heap_that_is_trimmed() {
    heap(&["96", "1000000", "3", "8000", "stack"], 16 * MIB);
}

/// Where libc's functions cannot be replaced, memory may be found late. Nothing but the budget may suffer. The program
/// checks that they were not replaced.
#[test]
fn a_libc_that_stays_as_it_is() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("late", &dir) else { return };
    let job = Job::new(program).args(["64"]).env("HMM_KEEP_LIBC", "1");
    let alone = job.alone();
    let managed = job.under(&Hmm::ram(16 * MIB));
    assert!(managed.status.success(), "{} {}", managed.status, managed.stderr);
    assert_eq!(managed.stdout(), alone.stdout());
    let stats = managed.stats();
    assert!(stats.count("pgstore") > 0, "nothing left: {stats}");
}

/// `hmm run` of root's with a right, or without it.
fn run_with(right: &str) -> Job {
    Job::new("setpriv").args(["--bounding-set", right]).arg(hmm_binary()).arg("run")
}

/// A child of a fork that nobody arranged reads what its parent had, or ends: by SIGBUS on a page that is away where the
/// kernel reports forks (signal 7), else by SIGSEGV (11) on any that is managed. Children of libc's forks have everything, as long as nothing
/// is away, but for what the program keeps from them.
#[test]
fn a_bare_fork_never_reads_wrong_bytes() {
    if !can_run() || !is_root() || !has_programs(&["setpriv"]) {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("rawfork", &dir) else { return };
    let alone = Job::new(&program).args(["64"]).alone();
    for (rights, signal) in [("+sys_ptrace", 7), ("-sys_ptrace", 11)] {
        let managed = run_with(rights).args(["--ram", "16M", "--"]).arg(&program).args(["64"]).alone();
        assert!(managed.status.success(), "{rights}: {} {}", managed.status, managed.stderr);
        let wanted =
            alone.stdout().replace("bare system call: exit 0", &format!("bare system call: signal {signal}"));
        assert_ne!(wanted, alone.stdout(), "the program did not do it");
        assert_eq!(managed.stdout(), wanted, "{rights}");
    }
}

/// What comes while a fork is arranged comes to the child as well, also where the kernel does not report forks; there no page
/// leaves meanwhile. What has just gone does not end the child: its agent's first stack comes to that place, as a rule.
#[test]
fn children_have_what_other_threads_map() {
    let jobs = [["4", "200", "advice"], ["12", "200", "advice"], ["12", "200", "none"]];
    check_children("newcomers", &jobs.each_ref().map(<[_; 3]>::as_slice));
}

/// What a mapping has grown by in place is in no list of ours before it is found. No time is left for that.
#[test]
fn children_have_what_mappings_have_grown_by() {
    check_children("growing", &[&["400"]]);
}

/// A fork whose copy is of no use is made again, where that can be seen: in a namespace of pids that ends with its first process,
/// and where libc makes the fork, `daemon` after the parent's end.
#[test]
fn what_was_forked_in_vain_is_seen_by_nobody() {
    if !is_root() {
        return;
    }
    for act in ["namespace", "daemon", "terminal"] {
        check("firstborn", &[act, "20", "48"], 16 * MIB);
    }
}

/// Where forks are not reported no page may be away, and none can leave for the child: what both sides may come to have is charged,
/// and as much of it as is beyond the budget is counted.
#[test]
fn what_a_fork_charges_beyond_the_budget_is_counted() {
    if !can_run() || !is_root() || !has_programs(&["setpriv", "python3"]) {
        return;
    }
    let dir = TempDir::new();
    let script = "import os\nmemory = bytearray(18 << 20)\nfor at in range(0, len(memory), 4096): memory[at] = 1\n\
                  pid = os.fork()\npid or os._exit(0)\nassert os.waitpid(pid, 0)[1] == 0";
    let overcharged = |options: &[&str]| {
        let managed = run_with("-sys_ptrace")
            .args(["--ram", "32M", "--stats"])
            .arg(dir.join("stats.json"))
            .args(options)
            .args(["--", "python3", "-c", script])
            .alone();
        assert!(managed.status.success(), "{} {}", managed.status, managed.stderr);
        Stats::read(&dir.join("stats.json")).expect("stats").count("overcharged")
    };
    assert!(overcharged(&[]) * 4096 > 2 * 18 * MIB - 32 * MIB);
    assert_eq!(overcharged(&["--per-process"]), 0, "each of both sides fits");
}

/// There, what is away comes home before a fork if all of it fits into the budget; if not, the fork is refused.
#[test]
fn what_fits_comes_home_for_a_fork_that_is_not_reported() {
    if !can_run() || !is_root() || !has_programs(&["setpriv", "python3"]) {
        return;
    }
    let script = "import os\n\
                  def fill(size):\n  \
                    memory = bytearray(size)\n  \
                    for at in range(0, size, 4096): memory[at] = at >> 12 & 255\n  \
                    return memory\n\
                  def fork():\n  \
                    pid = os.fork()\n  \
                    pid or os._exit(any(few[at] != at >> 12 & 255 for at in range(0, len(few), 4096)))\n  \
                    return os.waitpid(pid, 0)[1]\n\
                  few, many = fill(6 << 20), fill(60 << 20)\n\
                  try: print(fork())\n\
                  except BlockingIOError: print('refused')\n\
                  del many\n\
                  print(fork())\n";
    let managed = run_with("-sys_ptrace").args(["--ram", "32M", "--", "python3", "-c", script]).alone();
    assert!(managed.status.success(), "{} {}", managed.status, managed.stderr);
    assert_eq!(managed.stdout(), "refused\n0\n");
}

/// Runs a program whose children check what they have, with the kernel reporting forks and without.
fn check_children(name: &str, jobs: &[&[&str]]) {
    if !can_run() || !is_root() || !has_programs(&["setpriv"]) {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile(name, &dir) else { return };
    for rights in ["-sys_ptrace", "+sys_ptrace"] {
        for args in jobs {
            let managed = run_with(rights)
                .args(["--quiet", "--ram", "16M", "--"])
                .arg(&program)
                .args(args.iter().copied())
                .alone();
            assert!(managed.status.success(), "{rights}, {args:?}: {} {}", managed.status, managed.stderr);
            assert_eq!(managed.stdout(), "every child had all of it\n");
        }
    }
}

/// Each process has what was there when it was forked, most of it in a file; also one that is shut up as another user.
#[test]
fn memory_in_a_file_and_forks() {
    if !can_run() {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("filefork", &dir) else { return };
    let jail = dir.path().join("jail");
    std::fs::create_dir(&jail).unwrap();
    // The other user makes files there, too.
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let job = Job::new(&program).arg("64");
    fork_with_memory_in_a_file(&job, &dir);
    if is_root() {
        fork_with_memory_in_a_file(&job.arg(&jail), &dir);
    }
}

fn fork_with_memory_in_a_file(job: &Job, dir: &TempDir) {
    let alone = job.alone();
    assert!(alone.status.success(), "{} {}", alone.status, alone.stderr);
    let device = format!("file:path={},cap=256M", dir.path().display());
    let managed = job.under(&Hmm::ram(16 * MIB).device(&device));
    assert_healthy(&managed, 16 * MIB);
    assert_eq!(managed.stdout(), alone.stdout());
    let stats = managed.stats();
    assert!(stats.count("pgstore") * 4096 >= 64 * MIB, "hardly anything left: {stats}");
    assert_eq!(
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".hmm"))
            .count(),
        0
    );
}
