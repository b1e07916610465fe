//! Programs that bring an allocator of their own, or much else under the names of libc's functions.

use std::path::Path;

use hmm_programs::skip::skipped;
use hmm_programs::{Hmm, Job, MIB, TempDir, can_run, compile, compile_with};

/// No such library.
const NONE: i32 = 77;

/// Loaded while the program runs, and before; two of them give memory back by `madvise`, one keeps the most of it.
#[test]
fn what_other_allocators_give_is_what_was_written() {
    let dir = TempDir::new();
    let Some(program) = compile("allocators", &dir).filter(|_| can_run()) else { return };
    // Whether it can be loaded later than the program: not where it wants thread-local storage that is there from the start.
    let libraries =
        [("libjemalloc.so.2", false), ("libmimalloc.so.2", true), ("libtcmalloc_minimal.so.4", true)];
    for (library, later) in libraries {
        let loaded = later.then(|| Job::new(&program).args([library, "32"]));
        let preloaded = Job::new(&program).args(["-", "32"]).env("LD_PRELOAD", library);
        for job in loaded.into_iter().chain([preloaded]) {
            let alone = job.alone();
            if alone.status.code() == Some(NONE) || alone.stderr.contains("cannot be preloaded") {
                skipped(&format!("no {library}"));
                break;
            }
            assert!(alone.status.success(), "{library}: {} {}", alone.status, alone.stderr);
            let managed = job.under(&Hmm::ram(16 * MIB));
            let stats = managed.stats();
            assert!(managed.status.success(), "{library}: {} {}\n{stats}", managed.status, managed.stderr);
            assert_eq!(managed.stdout(), alone.stdout(), "{library}");
            assert_eq!([stats.count("pgpoison"), stats.count("overcharged")], [0; 2], "{stats}");
            // tcmalloc maps memory by system calls of its own: that is found late.
            let found_late = stats.count("pgadopt") * 4096;
            assert!(stats.get("peak_resident_bytes") <= 16 * MIB + found_late, "{stats}");
        }
    }
}

/// It has a `memcpy` of its own that looks into memory of its own, terabytes, of which little is ever touched, and which is managed:
/// our threads must not call it. In the end it would stop our threads, too, and look for leaks in what is away.
#[test]
fn a_program_with_a_sanitizer_in_it() {
    for more in [&["-fsanitize=address", "-static-libasan"][..], &["-fsanitize=address"]] {
        let dir = TempDir::new();
        let Some(program) = compile_with("allocators", &dir, more).filter(|_| can_run()) else { return };
        run_with_a_sanitizer(&program);
    }
}

fn run_with_a_sanitizer(program: &Path) {
    let job = Job::new(program).args(["-", "16"]).env("ASAN_OPTIONS", "quarantine_size_mb=4");
    let alone = job.alone();
    assert!(alone.status.success(), "{} {}", alone.status, alone.stderr);
    let managed = job.under(&Hmm::ram(32 * MIB));
    assert!(managed.status.success(), "{} {}", managed.status, managed.stderr);
    assert_eq!(managed.stdout(), alone.stdout());
    assert!(managed.stats().count("pgstore") * 4096 >= 64 * MIB, "hardly anything left: {}", managed.stats());
}
