//! What `/proc` says of threads.

use std::ffi::CStr;
use std::io::Write;

use rustix::fs::{Mode, OFlags};

use crate::procfs::Procfs;

/// Field of a thread's `stat` that says where it ran last, counted from the one behind the name (the third).
const PROCESSOR: usize = 39 - 3;
/// Fields of a process's: how many threads it has (the 20th), and what its first has ended with (the 52nd).
const NR_THREADS: usize = 20 - 3;
const EXIT_CODE: usize = 52 - 3;
/// Room for the text of a `stat`: 52 numbers of up to 20 digits.
const STAT_BYTES: usize = 1200;
/// Room for the beginning of a `status`: what comes before the line of locked memory has a name, numbers and the groups of a
/// user, of which there can be many.
const STATUS_BYTES: usize = 4096;

/// The CPU that a thread of this process runs on, or ran on last; see `processor` in `proc_pid_stat(5)`.
///
/// `None` if it is not to be had: there is no such thread, or no procfs. Reading takes some microseconds, and
/// neither allocates nor goes through libc.
pub fn cpu_of(tid: u32) -> Option<usize> {
    let mut path = [0u8; 40];
    write!(&mut path[..], "/proc/self/task/{tid}/stat\0").ok()?;
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    processor(beginning(path, &mut [0; STAT_BYTES])?)
}

/// The beginning of a file, as far as there is room and it comes at once.
fn beginning<'r>(path: &CStr, room: &'r mut [u8]) -> Option<&'r [u8]> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let len = rustix::io::read(&file, &mut *room).ok()?;
    room.get(..len)
}

/// The threads of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// How many there are, the first of them included also when it has ended.
    pub nr: usize,
    /// What the first of them gave to `exit(2)`, if it has ended. The process goes on while there are others.
    pub first_ended: Option<i32>,
}

/// The threads of this process; `None` where that cannot be read. Neither allocates nor goes through libc.
pub fn threads(procfs: &Procfs) -> Option<Threads> {
    let mut room = [0; STAT_BYTES];
    let len = rustix::io::read(procfs.open_file(c"self/stat").ok()?, &mut room[..]).ok()?;
    parse_threads(room.get(..len)?)
}

fn parse_threads(stat: &[u8]) -> Option<Threads> {
    let (_, mut fields) = split_stat(stat)?;
    let state = fields.next()?;
    let nr = fields.nth(NR_THREADS - 1)?.parse().ok()?;
    // As `wait(2)` gives it: the status is the second byte.
    let exit_code: i32 = fields.nth(EXIT_CODE - NR_THREADS - 1)?.parse().ok()?;
    Some(Threads { nr, first_ended: (state == "Z").then_some(exit_code >> 8) })
}

fn processor(stat: &[u8]) -> Option<usize> {
    let (_, mut fields) = split_stat(stat)?;
    fields.nth(PROCESSOR)?.parse().ok()
}

/// Whether this process has locked memory (mlock, mlockall, `MAP_LOCKED`); false also where there is no procfs. Neither
/// allocates nor goes through libc.
pub fn has_locked_memory() -> bool {
    let mut room = [0; STATUS_BYTES];
    beginning(c"/proc/self/status", &mut room).and_then(locked_kib).is_some_and(|kib| kib > 0)
}

/// The line `VmLck:` of a `status`; see `proc_pid_status(5)`.
fn locked_kib(status: &[u8]) -> Option<u64> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(b"VmLck:"))?;
    std::str::from_utf8(value).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// The name of a thread, and the fields behind it: the state is the first, and the third of the line. `stat` is what
/// `/proc/PID/stat` says, or its beginning. The name is in parentheses and may have any byte in it, parentheses, too: it ends at
/// the last.
pub fn split_stat(stat: &[u8]) -> Option<(&[u8], impl Iterator<Item = &str>)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let behind = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    Some((stat.get(open + 1..close)?, behind.split_ascii_whitespace()))
}

#[cfg(test)]
mod tests {
    use rustix::thread::CpuSet;

    use super::*;
    use crate::sys;

    #[test]
    fn a_thread_is_where_it_was_pinned() {
        let allowed = sys::affinity(None).unwrap();
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
            let seen = std::thread::spawn(move || {
                // What looks like the end of a name, and fields behind it.
                sys::set_thread_name(c"a) R 1 (b 7 7").unwrap();
                sys::pin_to(cpu).unwrap();
                cpu_of(sys::gettid().unsigned_abs())
            });
            assert_eq!(seen.join().unwrap(), Some(cpu));
        }
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_goes_on() {
        let behind = |state: &str| {
            let before: Vec<_> = (4..20).map(|n| n.to_string()).collect();
            let after: Vec<_> = (21..52).map(|n| n.to_string()).collect();
            format!("7 (x) Y) {state} {} 5 {} 1792", before.join(" "), after.join(" "))
        };
        let of = |state| parse_threads(behind(state).as_bytes());
        assert_eq!(of("Z"), Some(Threads { nr: 5, first_ended: Some(7) }));
        assert_eq!(of("S"), Some(Threads { nr: 5, first_ended: None }));
        assert_eq!(parse_threads(b"7 (x) Z 1 2"), None);
        let own = threads(&Procfs::open().unwrap()).unwrap();
        assert!(own.nr >= 1 && own.first_ended.is_none(), "{own:?}");
    }

    #[test]
    fn locked_memory_is_seen() {
        let page = vec![0u8; 2 * 4096];
        // Not by libc: in the place of its function a sanitizer has one that does nothing.
        // SAFETY: locks memory of our own.
        unsafe { rustix::mm::mlock(page.as_ptr().cast_mut().cast(), page.len()) }.unwrap();
        assert!(has_locked_memory());
        assert_eq!(locked_kib(b"Name:\tVmLck:\nVmLck:\t      12 kB\nVmPin:\t 0 kB\n"), Some(12));
        assert_eq!(locked_kib(b"Name:\tkthreadd\n"), None);
    }

    #[test]
    fn threads_that_are_not_ours_are_nowhere() {
        assert_eq!(cpu_of(1), None, "this process is not the first of the system");
        assert_eq!(cpu_of(u32::MAX), None);
        assert_eq!(processor(b"12 (name) R 1 2"), None);
    }
}
