//! Why a process could not go on, in its own words.
//!
//! The record is claimed by the first that has something to say and published when it is complete. Who dies in between
//! leaves a verdict of unknown content, which is still a verdict.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::text::{SharedText, Text};

/// What ended a process, or kept it from being managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictKind {
    /// No device had room for another page, the budget was used up, and `--on-full` says kill.
    DeviceFull,
    /// A device is lost, and pages of the program with it.
    DeviceLost,
    /// The agent could not start; the program has not run.
    AgentFailed,
    /// The kernel refused what it must not refuse.
    KernelError,
    /// hmm had no room for what it keeps of the process.
    NoMemory,
    /// hmm itself failed: a panic of its own or of a device's, or what it cannot go on without.
    Defect,
    /// The writer ended before it had said why.
    Unknown,
}

impl VerdictKind {
    const fn to_word(self) -> u32 {
        match self {
            Self::DeviceFull => 1,
            Self::DeviceLost => 2,
            Self::AgentFailed => 3,
            Self::KernelError => 4,
            Self::Unknown => 5,
            Self::NoMemory => 6,
            Self::Defect => 7,
        }
    }

    const fn of_word(word: u32) -> Self {
        match word {
            1 => Self::DeviceFull,
            2 => Self::DeviceLost,
            3 => Self::AgentFailed,
            4 => Self::KernelError,
            6 => Self::NoMemory,
            7 => Self::Defect,
            _ => Self::Unknown,
        }
    }
}

/// How things stood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Pages that the ledger had charged.
    pub charged_pages: u64,
    /// Pages of the process that were on a device.
    pub away_pages: u64,
    /// Bytes of RAM that the device took.
    pub device_bytes: u64,
    /// Bytes of RAM that the device may take.
    pub device_capacity_bytes: u64,
}

/// A process's last words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What happened.
    pub kind: VerdictKind,
    /// To which process.
    pub pid: u32,
    /// What the kernel said, 0 when it said nothing.
    pub errno: i32,
    /// How things stood.
    pub figures: Figures,
    /// In words: what was being done, and what was refused.
    pub text: Text<256>,
}

const NONE: u32 = 0;
const CLAIMED: u32 = 1;
const PUBLISHED: u32 = 2;

/// The record in the control page.
#[derive(Debug)]
#[repr(C)]
pub(super) struct SharedVerdict {
    progress: AtomicU32,
    kind: AtomicU32,
    pid: AtomicU32,
    errno: AtomicU32,
    charged_pages: AtomicU64,
    away_pages: AtomicU64,
    device_bytes: AtomicU64,
    device_capacity_bytes: AtomicU64,
    text: SharedText<32>,
}

impl SharedVerdict {
    /// Writes the record if it is the first, says whether it was.
    pub(super) fn publish(&self, verdict: &Verdict) -> bool {
        let claim = self.progress.compare_exchange(NONE, CLAIMED, Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_err() {
            return false;
        }
        self.kind.store(verdict.kind.to_word(), Ordering::Relaxed);
        self.pid.store(verdict.pid, Ordering::Relaxed);
        self.errno.store(verdict.errno.cast_unsigned(), Ordering::Relaxed);
        self.charged_pages.store(verdict.figures.charged_pages, Ordering::Relaxed);
        self.away_pages.store(verdict.figures.away_pages, Ordering::Relaxed);
        self.device_bytes.store(verdict.figures.device_bytes, Ordering::Relaxed);
        self.device_capacity_bytes.store(verdict.figures.device_capacity_bytes, Ordering::Relaxed);
        self.text.store(verdict.text.as_str());
        self.progress.store(PUBLISHED, Ordering::Release);
        true
    }

    /// The record. One that is still being written is of unknown kind: ask again while its writer lives.
    pub(super) fn read(&self) -> Option<Verdict> {
        let kind = match self.progress.load(Ordering::Acquire) {
            NONE => return None,
            PUBLISHED => VerdictKind::of_word(self.kind.load(Ordering::Relaxed)),
            _ => VerdictKind::Unknown,
        };
        Some(Verdict {
            kind,
            pid: self.pid.load(Ordering::Relaxed),
            errno: self.errno.load(Ordering::Relaxed).cast_signed(),
            figures: Figures {
                charged_pages: self.charged_pages.load(Ordering::Relaxed),
                away_pages: self.away_pages.load(Ordering::Relaxed),
                device_bytes: self.device_bytes.load(Ordering::Relaxed),
                device_capacity_bytes: self.device_capacity_bytes.load(Ordering::Relaxed),
            },
            text: self.text.load(),
        })
    }
}
