//! Forks. The child finds what its parent had, whatever its parent does then; it does something to its own memory, which
//! its parent never sees. Some have children of their own, some are killed at any moment, some outlive their parent.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLockWriteGuard};

use super::arena::Page;
use super::buffer::{BUFFER_PAGES, Buffer};
use super::common::Common;
use super::finding::{FOUND, Finding, LOST, end, ends_what_lost, found, say};
use super::place::{Errno, done, last_errno};
use super::thread::Thread;
use super::{life, signals};

/// Children of one thread at a time.
const MAX_CHILDREN: usize = 2;
const MAX_DEPTH: usize = 2;
/// What a child writes to say that it outlived its parent, and that all was well.
const WELL: u8 = b'+';

static NR_FORKS: AtomicU64 = AtomicU64::new(0);
static NR_REFUSED: AtomicU64 = AtomicU64::new(0);
static NR_ORPHANS: AtomicU64 = AtomicU64::new(0);

/// Forks that were made, forks that were refused for want of room, and children that outlive their parents.
pub(crate) fn counts() -> [u64; 3] {
    [&NR_FORKS, &NR_REFUSED, &NR_ORPHANS].map(|count| count.load(Ordering::Relaxed))
}

/// Children that are not waited for yet.
#[derive(Debug)]
pub(crate) struct Children {
    pids: Vec<c_int>,
    /// Where who outlives its parent says that all is well.
    orphans: c_int,
    /// Whether there may be none.
    may_refuse: bool,
}

impl Children {
    /// No children; who outlives its parent writes to that pipe. Whether forks may be refused.
    pub(crate) const fn writing_to(orphans: c_int, may_refuse: bool) -> Self {
        Self { pids: Vec::new(), orphans, may_refuse }
    }

    fn end_of(pid: c_int, status: c_int, is_killed: bool) -> Result<(), Finding> {
        match (libc::WIFEXITED(status), libc::WEXITSTATUS(status), libc::WTERMSIG(status)) {
            (true, 0, _) => Ok(()),
            (true, LOST, _) if signals::may_lose() => Ok(()),
            (false, _, signal) if signals::may_lose() && ends_what_lost(signal) => Ok(()),
            // It has told of it.
            (true, FOUND, _) => end(FOUND),
            (false, _, libc::SIGKILL) if is_killed => Ok(()),
            _ => found(format_args!("child {pid} ended with status {status:#x}")),
        }
    }

    fn wait(pid: c_int, flags: c_int) -> Result<Option<c_int>, Finding> {
        let mut status = 0;
        loop {
            // SAFETY: a child of ours.
            match done(unsafe { libc::waitpid(pid, &raw mut status, flags) }) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(status)),
                Err(Errno(libc::EINTR)) => {}
                Err(why) => return found(format_args!("waiting for child {pid}: {why}")),
            }
        }
    }

    /// Hears of those that have ended.
    fn look(&mut self) -> Result<(), Finding> {
        let mut left = Vec::new();
        for pid in std::mem::take(&mut self.pids) {
            match Self::wait(pid, libc::WNOHANG)? {
                Some(status) => Self::end_of(pid, status, false)?,
                None => left.push(pid),
            }
        }
        self.pids = left;
        Ok(())
    }

    /// Waits for all.
    pub(crate) fn wait_for_all(&mut self) -> Result<(), Finding> {
        for pid in std::mem::take(&mut self.pids) {
            if let Some(status) = Self::wait(pid, 0)? {
                Self::end_of(pid, status, false)?;
            }
        }
        Ok(())
    }
}

/// What becomes of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its parent goes on.
    Alone,
    /// Its parent waits, and the child reads its memory, too.
    Watched,
    /// It is killed.
    Killed,
    /// Its parent, a child itself, ends before it.
    Orphan,
}

/// One fork.
pub(super) fn fork(thread: &mut Thread<'_>) -> Result<(), Finding> {
    thread.children.look()?;
    if thread.children.pids.len() >= MAX_CHILDREN {
        return thread.children.wait_for_all();
    }
    // Only the worker itself counts those that outlive their parents.
    let fates = [Fate::Alone, Fate::Watched, Fate::Killed, Fate::Orphan];
    let fate = thread.chance.one_of(if thread.depth == 0 { &fates } else { &fates[..3] });
    let common = thread.common;
    // Nobody writes to it while it is copied. The child has the lock, too.
    let guard = (thread.depth == 0).then(|| common.write().unwrap_or_else(PoisonError::into_inner));
    // Asked before: the child of one that was killed at once would be told of whoever it was handed to.
    // SAFETY: never fails.
    let parent_pid = unsafe { libc::getpid() };
    // SAFETY: the child has this thread alone, whose locks it holds itself; libc's allocator is made ready by fork.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => child(thread, guard, fate, parent_pid),
        pid if pid > 0 => {
            drop(guard);
            NR_FORKS.fetch_add(1, Ordering::Relaxed);
            parent(thread, pid, fate)
        }
        _ => refused(thread),
    }
}

/// There is no child, because that cannot be now.
fn refused(thread: &Thread<'_>) -> Result<(), Finding> {
    match last_errno() {
        Errno(libc::EAGAIN) if thread.children.may_refuse => {
            NR_REFUSED.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        why => found(format_args!("fork: {why}")),
    }
}

fn parent(thread: &mut Thread<'_>, pid: c_int, fate: Fate) -> Result<(), Finding> {
    match fate {
        Fate::Alone => {
            thread.children.pids.push(pid);
            Ok(())
        }
        Fate::Killed => {
            let pause = std::time::Duration::from_micros(1 << thread.chance.below(16));
            std::thread::sleep(pause);
            // SAFETY: a child of ours that was not waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            let status = Children::wait(pid, 0)?.unwrap_or(0);
            Children::end_of(pid, status, true)
        }
        Fate::Watched | Fate::Orphan => {
            if fate == Fate::Orphan {
                NR_ORPHANS.fetch_add(1, Ordering::Relaxed);
            }
            let status = Children::wait(pid, 0)?.unwrap_or(0);
            Children::end_of(pid, status, false)
        }
    }
}

fn child(
    thread: &mut Thread<'_>,
    common: Option<RwLockWriteGuard<'_, Common>>,
    fate: Fate,
    parent: c_int,
) -> ! {
    thread.depth += 1;
    thread.children.pids.clear();
    let who =
        |thread: &Thread<'_>| format!("thread {}, child of depth {}, {fate:?}", thread.number, thread.depth);
    if fate == Fate::Orphan {
        // SAFETY: as in `fork`.
        match unsafe { libc::fork() } {
            0 => thread.depth += 1,
            pid if pid > 0 => end(0),
            _ => {
                if let Err(finding) = refused(thread) {
                    finding.end(who(thread));
                }
                // It is as if it had been.
                well(thread);
                end(0);
            }
        }
    }
    if let Err(finding) = life(thread, common, fate, parent) {
        finding.end(who(thread));
    }
    if fate == Fate::Orphan {
        well(thread);
    }
    end(0)
}

fn life(
    thread: &mut Thread<'_>,
    common: Option<RwLockWriteGuard<'_, Common>>,
    fate: Fate,
    parent: c_int,
) -> Result<(), Finding> {
    // Its parent's is shared with its parent.
    let Ok(buffer) = Buffer::new() else { return found("no buffer for a child") };
    thread.buffer = buffer;
    if fate == Fate::Watched && !signals::may_lose() {
        compare_with_parent(thread, parent)?;
    }
    thread.arena.forked();
    thread.check_all("in a child, from its parent")?;
    if let Some(common) = common
        && !signals::may_lose()
    {
        common.check_all("in a child, from its parent")?;
    }
    if thread.depth < MAX_DEPTH && thread.chance.one_in(3) {
        fork(thread)?;
    }
    let nr_steps = thread.chance.one_of(&[0, 5, 40]);
    thread.steps(nr_steps)?;
    thread.children.wait_for_all()
}

/// Whether the parent was killed, as its own parent may have done. Its memory is not its any more by then, and pages that were away
/// read as zeroes, a while before it is gone: some 0.1 s on a loaded machine. What kills it is pending from before that until then.
fn is_killed(parent: c_int, depth: usize) -> bool {
    // SAFETY: never fails.
    let has_another = || unsafe { libc::getppid() } != parent;
    // The worker itself is killed by nobody.
    depth > 1 && (has_another() || is_dying(&status_of(parent)))
}

/// What the kernel says of a process; nothing of one that is gone.
fn status_of(pid: c_int) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// Whether it is gone, or on its way: nobody takes a SIGKILL out of what is pending for a whole process.
fn is_dying(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = field("ShdPnd:").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    let is_killed = pending.is_none_or(|bits| bits & 1 << (libc::SIGKILL - 1) != 0);
    is_killed || field("State:").is_none_or(|state| state.starts_with(['Z', 'X']))
}

/// The parent waits: what can be read of its memory is what the child must have.
fn compare_with_parent(thread: &mut Thread<'_>, parent: c_int) -> Result<(), Finding> {
    let known = |page: &Page| page.is_readable() && !page.lazy;
    let mut first = 0;
    while first < thread.arena.nr_pages() {
        let most = BUFFER_PAGES.min(thread.arena.nr_pages() - first);
        let nr_pages = thread.arena.run(first, most, known);
        life::sign();
        if nr_pages > 0 {
            let place = thread.arena.memory().pages(first, nr_pages);
            match thread.buffer.of_process(place, parent) {
                // It may be a child itself, whose fate it was to be killed just now.
                Err(Errno(libc::EPERM | libc::ESRCH)) => return Ok(()),
                Ok(nr) if nr == place.len() => {}
                _ if is_killed(parent, thread.depth) => return Ok(()),
                other => {
                    let again = thread.buffer.of_process(place, parent);
                    let status = status_of(parent).replace(['\n', '\t'], " ");
                    return found(format_args!(
                        "the parent's memory, {first}+{nr_pages}: {other:?}, and then {again:?}, of {status}"
                    ));
                }
            }
            let wanted = thread.arena.wanted().pages(first, nr_pages);
            if let Some(at) = thread.buffer.bytes(place.len()).difference(wanted) {
                if is_killed(parent, thread.depth) {
                    return Ok(());
                }
                return found(format_args!("wrong bytes of the parent's: byte {at} of {first}+{nr_pages}"));
            }
        }
        first += nr_pages.max(1);
    }
    Ok(())
}

fn well(thread: &Thread<'_>) {
    // SAFETY: one byte.
    if unsafe { libc::write(thread.children.orphans, [WELL].as_ptr().cast(), 1) } != 1 {
        say("an orphan could not tell that all is well");
    }
}

/// Waits until all who have the other end of the pipe are gone, and counts those that were well.
pub(crate) fn count_orphans(pipe: c_int) -> u64 {
    let (mut nr_well, mut bytes) = (0, [0; 64]);
    loop {
        // SAFETY: as many bytes as there is room for.
        match done(unsafe { libc::read(pipe, bytes.as_mut_ptr().cast(), bytes.len()) }) {
            Ok(0) => return nr_well,
            Ok(nr) => nr_well += bytes[..nr].iter().filter(|byte| **byte == WELL).count() as u64,
            Err(Errno(libc::EINTR)) => {}
            Err(_) => return nr_well,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A parent that was killed before its child began has handed it to somebody who is well, and has other memory.
    #[test]
    fn who_has_handed_its_child_over_was_killed() {
        // SAFETY: never fails.
        let this = unsafe { libc::getpid() };
        // SAFETY: never fails.
        let parent = unsafe { libc::getppid() };
        assert!(is_killed(this, 2), "this is no child of its own");
        assert!(!is_killed(this, 1), "nobody kills the worker");
        assert!(!is_killed(parent, 2), "{}", status_of(parent));
    }

    #[test]
    fn who_is_killed_is_dying_until_it_is_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(!is_dying(&status_of(pid)), "{}", status_of(pid));
        child.kill().unwrap();
        assert!(is_dying(&status_of(pid)), "at once: {}", status_of(pid));
        child.wait().unwrap();
        assert!(is_dying(&status_of(pid)), "gone");
        let living = "State:\tS (sleeping)\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n";
        assert!(!is_dying(living));
        assert!(is_dying(&living.replace("ShdPnd:\t00000000000000", "ShdPnd:\t00000000000001")));
    }
}
