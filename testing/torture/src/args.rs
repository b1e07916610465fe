//! What can be asked of `hmm torture`.

use std::path::Path;

use hmm::core::policy::Name;
use hmm::spec::{DeviceSpec, SpecError, parse_size};

/// Torture hmm: a program does to its memory whatever a program may do, and knows every byte that it must read.
///
/// Its threads read, write, map, unmap, move, protect, lock, give up and guard memory of three times the budget, have the
/// kernel read and write it, and fork; everything at random, but the same for the same seed. Memory is looked at from
/// outside, too, whether the budget holds. Who makes no progress for a while hangs. Exit status: 0 if all was as it must
/// be; 1 if not, with a line that runs the same seed again; 125 where `hmm run` does not work. Without `CAP_SYS_PTRACE`
/// (an ordinary user) forks are refused while pages are away, and the refused ones are counted.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What is done; each round of 20 s takes the next [default: by chance, and printed].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// How long.
    #[arg(long, value_name = "M", default_value_t = 1.0)]
    pub(crate) minutes: f64,
    /// Memory that may be resident, as of `hmm run`.
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size)]
    pub(crate) ram: u64,
    /// Each process may have that, as of `hmm run`.
    #[arg(long)]
    pub(crate) per_process: bool,
    /// Where the rest lives, as of `hmm run` [default: lz4]. One that fails on purpose, like `lz4:lost-after=1000`
    /// or `lz4:io-errors=100,corrupt=1000`, loses pages: a page is SIGBUS then, or as it must be.
    #[arg(long = "device", value_name = "SPEC", value_parser = device)]
    pub(crate) devices: Vec<DeviceSpec>,
    /// Who decides what leaves, as of `hmm run` [default: clock].
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: Option<Name>,
    /// Threads [default: one to four, by the seed].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) threads: Option<u8>,
    /// So many seconds without progress are a hang.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) patience: u64,
    /// Without hmm: whether the kernel does what is expected of it.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Of which defaults are made; none of those is used here.
const PHYSICAL_BYTES: u64 = 8 << 30;

fn device(text: &str) -> Result<DeviceSpec, SpecError> {
    DeviceSpec::parse(text, PHYSICAL_BYTES)
}

/// Whether this process has `CAP_SYS_PTRACE`, as its programs do then.
fn may_trace() -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let word = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    word.and_then(|word| u64::from_str_radix(word.trim(), 16).ok())
        .is_some_and(|all| all & CAP_SYS_PTRACE != 0)
}

impl Args {
    /// Whether programs are run under hmm.
    pub const fn runs_hmm(&self) -> bool {
        !self.alone
    }

    /// Whether a device fails on purpose.
    pub(crate) fn may_lose(&self) -> bool {
        self.devices.iter().any(|device| device.rehearsal.may_lose())
    }

    /// Whether forks may be refused: with pages on a device that fails, or away where the kernel does not report forks.
    pub(crate) fn may_refuse(&self) -> bool {
        !self.alone && (self.may_lose() || !may_trace())
    }

    /// The command line that does a round again.
    pub(crate) fn replay(&self, seed: u64, minutes: f64) -> String {
        let mut line = format!("hmm torture --seed {seed} --minutes {minutes:.2} --ram {}", self.ram);
        if self.per_process {
            line.push_str(" --per-process");
        }
        for device in &self.devices {
            line.push_str(&format!(" --device {device}"));
        }
        if let Some(policy) = self.policy {
            line.push_str(&format!(" --policy {policy}"));
        }
        if let Some(threads) = self.threads {
            line.push_str(&format!(" --threads {threads}"));
        }
        if self.alone {
            line.push_str(" --alone");
        }
        line
    }

    /// What comes in front of the worker.
    pub(crate) fn prefix(&self, hmm: &Path, stats: &Path) -> Vec<std::ffi::OsString> {
        if self.alone {
            return Vec::new();
        }
        let ram = format!("--ram={}", self.ram);
        let mut words: Vec<std::ffi::OsString> = vec![hmm.into(), "run".into(), "--quiet".into(), ram.into()];
        if self.per_process {
            words.push("--per-process".into());
        }
        for device in &self.devices {
            words.extend(["--device".into(), device.to_string().into()]);
        }
        if let Some(policy) = self.policy {
            words.extend(["--policy".into(), policy.to_string().into()]);
        }
        words.extend(["--stats".into(), stats.into(), "--".into()]);
        words
    }
}

/// Arguments of the hidden subcommand [`WorkerArgs::SUBCOMMAND`], which is what is tortured.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// What is done.
    #[arg(long)]
    pub(crate) seed: u64,
    /// How long.
    #[arg(long)]
    pub(crate) millis: u64,
    /// Threads.
    #[arg(long)]
    pub(crate) threads: usize,
    /// Bytes of memory, of all threads together.
    #[arg(long)]
    pub(crate) size: u64,
    /// Whether a device fails on purpose.
    #[arg(long)]
    pub(crate) may_lose: bool,
    /// Whether forks may be refused.
    #[arg(long)]
    pub(crate) may_refuse: bool,
    /// Whether what is one mapping to the program may be several for mremap, as it is to the kernel.
    #[arg(long)]
    pub(crate) in_pieces: bool,
}

impl WorkerArgs {
    /// Name that the `hmm` command has to mount the worker under, hidden.
    pub const SUBCOMMAND: &str = "torture-worker";

    /// The command line that these arguments come from.
    pub(crate) fn to_command_line(&self) -> Vec<String> {
        let mut words = vec![
            Self::SUBCOMMAND.to_owned(),
            format!("--seed={}", self.seed),
            format!("--millis={}", self.millis),
            format!("--threads={}", self.threads),
            format!("--size={}", self.size),
        ];
        if self.may_lose {
            words.push("--may-lose".to_owned());
        }
        if self.may_refuse {
            words.push("--may-refuse".to_owned());
        }
        if self.in_pieces {
            words.push("--in-pieces".to_owned());
        }
        words
    }
}
