//! The process that measures some of the figures, and says in one line of JSON what it found.

use super::figure::Group;
use super::memory::PageKind;
use super::sample::Found;
use super::space::Lacking;
use super::{kernels, migrate, paging, snapshot};
use anyhow::{Context, Result};
use std::io::Write;
use std::process::ExitCode;

const MIB: usize = 1 << 20;

/// Arguments of the hidden subcommand [`MirrorWorkerArgs::SUBCOMMAND`], which `hmm bench --mirror` starts.
#[derive(Debug, clap::Args)]
pub struct MirrorWorkerArgs {
    /// What to measure.
    #[arg(long)]
    pub(crate) group: Group,
    /// Small sizes.
    #[arg(long)]
    pub(crate) quick: bool,
}

impl MirrorWorkerArgs {
    /// Name that the `hmm` command has to mount [`mirror_worker`] under, hidden.
    pub const SUBCOMMAND: &str = "bench-mirror-worker";

    /// The command line that these arguments come from.
    pub(crate) fn to_command_line(&self) -> Vec<String> {
        let group = clap::ValueEnum::to_possible_value(&self.group).map(|value| value.get_name().to_owned());
        let mut line = vec![Self::SUBCOMMAND.to_owned(), format!("--group={}", group.unwrap_or_default())];
        line.extend(self.quick.then(|| "--quick".to_owned()));
        line
    }
}

/// Measures, and prints what was found on standard output. The program's `#[global_allocator]` has to be `hmm::Heap`.
///
/// # Errors
/// Wrong bytes, or whatever else keeps something from being measured that could be.
pub fn mirror_worker(args: &MirrorWorkerArgs) -> Result<ExitCode> {
    let found = match measure(args.group, args.quick) {
        Ok(found) => found,
        Err(why) => Found::Unavailable(why.downcast::<Lacking>()?.to_string()),
    };
    let line = serde_json::to_string(&found).context("cannot write what was found as JSON")?;
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn measure(group: Group, quick: bool) -> Result<Found> {
    let size = |full_mib, quick_mib| MIB * if quick { quick_mib } else { full_mib };
    let rounds = if quick { 1 } else { 3 };
    match group {
        Group::Migrate4k => migrate::measure(PageKind::Small, size(256, 8), rounds),
        Group::MigrateHuge => migrate::measure(PageKind::Huge, size(256, 8), rounds),
        Group::Snapshot => snapshot::measure(size(256, 8), rounds),
        Group::Loads => kernels::loads(if quick { 100_000 } else { 10_000_000 }, rounds),
        Group::Slices => kernels::slices(size(128, 8), rounds),
        Group::Faults => kernels::faults(size(128, 8), rounds),
        Group::Twice => kernels::twice(size(128, 8), rounds),
        Group::Home => paging::measure(size(64, 16), rounds),
        Group::Sparse => paging::sparse(size(1024, 64), rounds),
    }
}
