//! One process under supervision.
//!
//! A slot belongs to nobody, or to the process whose pid and start time are in its owner word. A process claims a free
//! slot by one compare-exchange, so there is no moment at which the owner is half written, whatever dies in between.
//! A slot is freed by its process, if that has claimed it for a child that does not come, or by whoever finds its process
//! gone; the process itself appears in no exit path. Who frees one marks it first: the child may be about to take it over,
//! and one of them only succeeds. Several may free one at the same time, and each of them may be killed at any moment, or
//! stand still until the slot is another's: what they do is three exchanges (mark, share, owner) that only succeed on what
//! the process that is gone has left.
//!
//! Counters run on from one owner to the next: the sum over all slots is the sum over all processes that ever ran, and
//! nobody has to add them up at a death. Gauges mean nothing without an owner, and are cleared by the next.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hmm_core::ledger::Share;
use hmm_core::stats::Stats;
use hmm_device::Usage;
use hmm_uapi::Errno;
use hmm_uapi::procfs::Procfs;
use hmm_uapi::tasks::split_stat;

use super::text::{SharedText, Text};

/// How far a process came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// The agent is there, the memory is not managed yet.
    Starting = 0,
    /// The process's memory is managed.
    Managed = 1,
    /// The process runs, but its memory is not managed.
    Unmanaged = 2,
}

/// A process: its id together with its start time, because ids are used again.
///
/// In one word: the pid, and the low half of the start time in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(u64);

/// Set in the owner word while the slot is being freed: a bit that no pid has.
const LEAVING: u64 = 1 << 31;

impl ProcessId {
    /// The process that has this pid now, and its name as the kernel knows it.
    ///
    /// # Errors
    /// `NotFound` when there is none, `InvalidData` when `/proc` speaks another language than expected.
    pub fn of_pid(pid: u32) -> io::Result<(Self, Text<16>)> {
        read_stat(&mut File::open(path_of(pid).as_str())?)
    }

    /// This process, under the pid that it has for those who mounted procfs, and its name.
    ///
    /// # Errors
    /// As [`of_pid`](Self::of_pid).
    pub fn of_self(procfs: &Procfs) -> io::Result<(Self, Text<16>)> {
        read_stat(&mut File::from(OwnedFd::from(procfs.open_file(c"self/stat")?)))
    }

    /// The process of that word, if it is one.
    pub(super) fn of_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word))
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    /// The pid.
    #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
    pub const fn pid(self) -> u32 {
        self.0 as u32
    }

    /// Whether `/proc` shows this process.
    pub(super) fn is_seen(self) -> bool {
        Self::of_pid(self.pid()).is_ok_and(|(now, _)| now == self)
    }

    /// Whether the process is there: running or stopped, not a zombie. When the kernel does not tell, it is.
    pub fn is_alive(self) -> bool {
        match Self::of_pid(self.pid()) {
            Ok((now, _)) => now == self,
            // `/proc` may hide the processes of other users.
            Err(error) if error.kind() == io::ErrorKind::NotFound => !self.is_unknown(),
            // The second is what reading says when the process goes between opening and reading.
            Err(error) => {
                error.kind() != io::ErrorKind::InvalidData
                    && error.raw_os_error() != Some(Errno::SRCH.raw_os_error())
            }
        }
    }

    /// Whether nobody has this pid.
    fn is_unknown(self) -> bool {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
    }
}

fn path_of(pid: u32) -> Text<32> {
    Text::format(format_args!("/proc/{pid}/stat"))
}

fn read_stat(file: &mut File) -> io::Result<(ProcessId, Text<16>)> {
    // The name is at most 16 bytes and the numbers up to the start time are bounded: one read gets them all.
    let mut buffer = [0; 512];
    let len = file.read(&mut buffer)?;
    parse_stat(&buffer[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads `/proc/PID/stat`: `PID (NAME) STATE` and numbers. A zombie has none of the memory that we account, so it counts
/// as gone; unless it is only the first thread of a process whose other threads go on.
fn parse_stat(stat: &[u8]) -> Option<(ProcessId, Text<16>)> {
    let pid = stat.split(|byte| *byte == b' ').next()?;
    let pid: u32 = std::str::from_utf8(pid).ok()?.parse().ok()?;
    let (name, mut fields) = split_stat(stat)?;
    let name = String::from_utf8_lossy(name);
    let state = fields.next()?;
    // The 20th and 22nd field of the line.
    let nr_threads = fields.nth(16)?;
    let start_time: u64 = fields.nth(1)?.parse().ok()?;
    if matches!(state, "Z" | "X") && matches!(nr_threads, "0" | "1") {
        return None;
    }
    Some((ProcessId(start_time << 32 | u64::from(pid)), Text::format(format_args!("{name}"))))
}

/// A place for a process in the control page.
#[repr(C, align(64))]
pub struct Slot {
    /// A [`ProcessId`], or 0.
    owner: AtomicU64,
    state: AtomicU32,
    name: SharedText<2>,
    stats: Stats,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("owner", &self.owner())
            .field("state", &self.state())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl Slot {
    /// Who has the slot.
    pub fn owner(&self) -> Option<ProcessId> {
        ProcessId::of_word(self.owner.load(Ordering::Acquire) & !LEAVING)
    }

    /// How far the process came.
    pub fn state(&self) -> SlotState {
        match self.state.load(Ordering::Acquire) {
            1 => SlotState::Managed,
            2 => SlotState::Unmanaged,
            _ => SlotState::Starting,
        }
    }

    /// Says how far the process came.
    pub fn set_state(&self, state: SlotState) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// The process's name as the kernel knows it, at most 15 bytes.
    pub fn name(&self) -> Text<16> {
        self.name.load()
    }

    /// Where the process counts.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Takes the slot if it is free.
    pub(super) fn try_claim(&self, process: ProcessId, name: &str) -> bool {
        self.change_owner(0, process.0) && {
            self.clear_gauges();
            self.set_state(SlotState::Starting);
            self.name.store(name);
            true
        }
    }

    /// Makes the slot that a process had claimed for its child the child's, with all that is charged to it. False if the
    /// other is gone, and the slot with it.
    pub(super) fn take_over(&self, from: ProcessId, to: ProcessId) -> bool {
        self.change_owner(from.0, to.0)
    }

    fn change_owner(&self, from: u64, to: u64) -> bool {
        self.owner.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Begins anew in a slot that the same process claimed before: it has executed another program, and the memory that
    /// it had is gone. To be called by that process only.
    pub(super) fn begin_anew(&self, share: Share<'_>, name: &str) {
        share.clear();
        self.clear_gauges();
        self.set_state(SlotState::Starting);
        self.name.store(name);
    }

    /// Gives back what the process has charged here, and frees the slot, if it is still that process's. To be called by the
    /// process, or, when that is gone, by anybody.
    pub(super) fn free(&self, share: Share<'_>, process: ProcessId) {
        self.begin_to_leave(process);
        // Somebody may have died in the middle of this.
        while self.clear_if_leaving(share, process) == Some(false) {}
        self.change_owner(process.0 | LEAVING, 0);
    }

    pub(super) fn begin_to_leave(&self, process: ProcessId) -> bool {
        self.change_owner(process.0, process.0 | LEAVING)
    }

    /// Whether the share could be cleared; `None` if the slot is not that process's any more.
    fn clear_if_leaving(&self, share: Share<'_>, process: ProcessId) -> Option<bool> {
        // Seen before the owner is: if it is the next one's, the owner is not this one.
        let seen = share.seen();
        (self.owner.load(Ordering::SeqCst) == process.0 | LEAVING).then(|| share.clear_seen(seen))
    }

    fn clear_gauges(&self) {
        for gauge in [&self.stats.away, &self.stats.metadata_bytes] {
            gauge.store(0, Ordering::Relaxed);
        }
        self.stats.tiers.iter().for_each(|tier| tier.store(Usage::default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_threads(name_and_state: &str, nr_threads: u32) -> Option<(ProcessId, Text<16>)> {
        let numbers =
            format!("1 1 1 34816 1 4194304 100 0 0 0 5 6 0 0 20 0 {nr_threads} 0 987654 3000000 500");
        parse_stat(format!("77 {name_and_state} {numbers}").as_bytes())
    }

    fn parse(name_and_state: &str) -> Option<(ProcessId, Text<16>)> {
        parse_threads(name_and_state, 1)
    }

    #[test]
    fn a_process_is_its_pid_and_start_time() {
        let (process, name) = parse("(sort) R").unwrap();
        assert_eq!(process, ProcessId(987_654 << 32 | 77));
        assert_eq!((process.pid(), name.as_str()), (77, "sort"));
    }

    #[test]
    fn a_name_may_look_like_the_numbers() {
        let (process, name) = parse("(a) R 1 2 (b) S").unwrap();
        assert_eq!((process.0 >> 32, name.as_str()), (987_654, "a) R 1 2 (b"));
    }

    #[test]
    fn zombies_and_cut_texts_are_no_processes() {
        assert_eq!(parse("(sort) Z"), None);
        assert!(parse_threads("(sort) Z", 2).is_some(), "its other thread goes on");
        assert_eq!(parse_stat(b"77 (sort) R 1 1"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn this_process_is_alive_and_one_of_another_time_is_not() {
        let (me, _) = ProcessId::of_pid(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId(me.0 ^ (1 << 40)).is_alive());
    }
}
