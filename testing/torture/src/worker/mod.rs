//! The program that is tortured: it does whatever a program may do to its memory, and knows what it must read.
//!
//! It is a program like others: nothing here knows of hmm. Each thread has an [`arena`](arena::Arena) of its own, next to
//! the others', so that blocks and mappings are shared at the borders; all of them work on [`common`] memory. What a thread
//! does follows from the seed and its number; how the threads meet does not.
//!
//! It writes a line about each thread's progress to standard output several times a second, so that who watches it knows
//! a hang, and what it has found to standard error.

mod access;
mod arena;
mod buffer;
mod chance;
mod common;
pub(crate) mod finding;
mod fork;
mod heap;
mod life;
mod mappings;
mod place;
mod remap;
mod signals;
mod thread;
mod trail;

use std::process::ExitCode;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use arena::Arena;
use buffer::Buffer;
use chance::Chance;
use common::Common;
use finding::Finding;
use place::done;
use thread::{MAX_THREADS, Progress, Thread};

use crate::args::WorkerArgs;
use crate::line::{Done, Line};

/// How often the worker says how far it is.
const TICK: Duration = Duration::from_millis(100);

/// Does it, for so long.
///
/// # Errors
/// The system has no memory for it.
pub fn worker(args: &WorkerArgs) -> Result<ExitCode> {
    signals::install(args.may_lose);
    let until = Instant::now() + Duration::from_millis(args.millis);
    let nr_threads = args.threads.clamp(1, MAX_THREADS);
    let refused = |why: place::Errno| anyhow!("no memory to torture: {why}");
    life::begin().map_err(refused)?;
    let common = RwLock::new(Common::new(0).map_err(refused)?);
    let nr_pages = usize::try_from(args.size)? / place::PAGE / nr_threads;
    let orphans = pipe().map_err(refused)?;
    let mut threads = Vec::new();
    for number in 0..nr_threads {
        threads.push(Thread {
            number,
            arena: Arena::new(2 * common::NR_PAGES + number * nr_pages, nr_pages).map_err(refused)?,
            chance: Chance::new(args.seed, number as u64),
            buffer: Buffer::new().map_err(refused)?,
            heap: heap::Heap::default(),
            children: fork::Children::writing_to(orphans[1], args.may_refuse),
            common: &common,
            in_pieces: args.in_pieces,
            depth: 0,
        });
    }
    std::thread::scope(|scope| {
        for mut thread in threads {
            scope.spawn(move || {
                life::is(thread.number);
                if let Err(finding) = thread.work(until) {
                    finding.end(format_args!("thread {}", thread.number));
                }
            });
        }
        watch(nr_threads);
    });
    let common = common.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !args.may_lose
        && let Err(finding) = common.check_all("in the end")
    {
        finding.end("all threads");
    }
    conclude(nr_threads, orphans);
    Ok(ExitCode::SUCCESS)
}

fn pipe() -> Result<[i32; 2], place::Errno> {
    let mut ends = [0; 2];
    // SAFETY: there is room for two.
    done(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok(ends)
}

/// Says how far the threads are, until all are done.
fn watch(nr_threads: usize) {
    loop {
        let progress: Vec<_> = (0..nr_threads).map(Progress::of).collect();
        let said = (0..nr_threads).map(life::of).zip(&progress);
        Line::Progress(said.map(|(signs, (done, what))| (*done, signs, (*what).to_owned())).collect())
            .write();
        if progress.iter().all(|(_, operation)| *operation == "done") {
            return;
        }
        std::thread::sleep(TICK);
    }
}

/// Waits for those that outlive their parents, and says what was done.
fn conclude(nr_threads: usize, orphans: [i32; 2]) {
    // SAFETY: it is ours, and used no more.
    unsafe { libc::close(orphans[1]) };
    let nr_well = fork::count_orphans(orphans[0]);
    let [nr_forks, nr_refused, nr_orphans] = fork::counts();
    if nr_well != nr_orphans && !signals::may_lose() {
        let what = format!("of {nr_orphans} children that outlive their parents {nr_well} were well");
        Finding(what).end("all threads");
    }
    let nr_operations = (0..nr_threads).map(|thread| Progress::of(thread).0).sum();
    let nr_lost = signals::nr_lost();
    Line::Done(Done { nr_operations, nr_forks, nr_refused, nr_orphans, nr_lost }).write();
}
