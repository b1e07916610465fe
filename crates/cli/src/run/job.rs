//! What was typed, made valid: nothing has been started yet, and everything that can be known to fail has failed here.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;

use hmm::control::{MAX_DEVICES, NO_BUDGET_PAGES, RunConfig};
use hmm::spec::{ByteSize, DeviceSpec};
use hmm_core::addr::PAGE_SIZE;

use super::program::Program;
use super::recorder::TraceFile;
use crate::args::{RunArgs, physical_ram_bytes};
use crate::failure::{Attempt, Failure};

/// With less, the program's own code paths and what the engine keeps in flight would not fit.
const MIN_RAM_BYTES: u64 = 16 << 20;

/// A run that may start.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) config: RunConfig,
    pub(super) program: Program,
    /// The program's name as typed, and its arguments.
    pub(super) command_line: Vec<OsString>,
    /// Where the figures go, open for writing.
    pub(super) stats: Option<StatsFile>,
    /// Where the trace goes, open for writing.
    pub(super) trace: Option<TraceFile>,
    pub(super) show: Show,
}

/// The file that `--stats` names. Opened at the start: a wrong name must not cost a run of hours.
#[derive(Debug)]
pub(super) struct StatsFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// What to tell the user on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Show {
    /// A line that is drawn again and again.
    pub(super) live: bool,
    /// Figures at the end.
    pub(super) summary: bool,
}

impl Show {
    fn new(args: &RunArgs, on_terminal: bool) -> Self {
        let live = on_terminal && !args.quiet;
        Self { live, summary: live || args.summary }
    }
}

impl Job {
    /// Checks the arguments and finds the program.
    pub(super) fn new(args: RunArgs, trace: Option<PathBuf>) -> Result<Self, Failure> {
        let show = Show::new(&args, std::io::stderr().is_terminal());
        let config = config(&args)?;
        // clap has seen to it that there is one.
        let name = args.program.first().cloned().unwrap_or_default();
        let program = Program::find(&name, env::var_os("PATH").as_deref())
            .map_err(|refusal| Failure::with_code(refusal.exit_code(), refusal))?;
        let stats = args.stats.map(StatsFile::create).transpose()?;
        let trace = trace.map(TraceFile::create).transpose()?;
        Ok(Self { config, program, command_line: args.program, stats, trace, show })
    }
}

impl StatsFile {
    fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create(&path).attempt(format_args!("write the figures to {}", path.display()))?;
        Ok(Self { path, file })
    }
}

fn config(args: &RunArgs) -> Result<RunConfig, Failure> {
    let (per_process, on_full) = (args.per_process, args.on_full.into());
    let (dmirror, policy) = (args.dmirror, args.policy);
    // clap has seen to it that there is a budget, or the test devices.
    let Some(ram) = args.ram else {
        let (ram_pages, devices) = (NO_BUDGET_PAGES, Vec::new());
        return Ok(RunConfig { ram_pages, per_process, on_full, devices, dmirror, policy });
    };
    if ram < MIN_RAM_BYTES {
        return Err(Failure::of_hmm(format_args!(
            "--ram {}: too little to work with, {} is the least",
            ByteSize(ram),
            ByteSize(MIN_RAM_BYTES)
        )));
    }
    let mut devices = args.devices.clone();
    if devices.is_empty() {
        devices.push(DeviceSpec::parse("lz4", physical_ram_bytes()).map_err(Failure::of_hmm)?);
    }
    if devices.len() > MAX_DEVICES {
        return Err(Failure::of_hmm(format_args!(
            "--device was given {} times, {MAX_DEVICES} is the most",
            devices.len()
        )));
    }
    let ram_pages = (ram / PAGE_SIZE as u64).min(NO_BUDGET_PAGES - 1);
    Ok(RunConfig { ram_pages, per_process, on_full, devices, dmirror, policy })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn args(line: &str) -> RunArgs {
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Run(args) = args.command else { panic!("{line}: another subcommand") };
        args
    }

    #[test]
    fn a_terminal_is_shown_more() {
        let show = |line, on_terminal| {
            let Show { live, summary } = Show::new(&args(line), on_terminal);
            (live, summary)
        };
        assert_eq!(show("hmm run --ram 1G true", true), (true, true));
        assert_eq!(show("hmm run --ram 1G true", false), (false, false));
        assert_eq!(show("hmm run --ram 1G --summary true", false), (false, true));
        assert_eq!(show("hmm run --ram 1G --quiet true", true), (false, false));
    }

    #[test]
    fn the_budget_is_in_pages_and_the_device_lz4() {
        let job = Job::new(args("hmm run --ram 16M true"), None).unwrap();
        assert_eq!(job.config.ram_pages, 4096);
        assert_eq!(job.config.devices.len(), 1);
        assert_eq!(job.config.devices[0].name(), "lz4");
        assert_eq!(job.command_line, ["true"]);
    }

    #[test]
    fn the_test_devices_need_no_budget() {
        let config = Job::new(args("hmm run --dmirror true"), None).unwrap().config;
        assert_eq!((config.has_budget(), config.dmirror, config.devices.len()), (false, true, 0));
        let config = Job::new(args("hmm run --dmirror --ram 16M true"), None).unwrap().config;
        assert_eq!((config.has_budget(), config.dmirror, config.devices.len()), (true, true, 1));
        let config = Job::new(args("hmm run --ram 1048576T true"), None).unwrap().config;
        assert_eq!((config.has_budget(), config.dmirror), (true, false), "no size means no budget");
    }

    #[test]
    fn what_cannot_work_fails_before_it_starts() {
        for (line, code, part) in [
            ("hmm run --ram 16383K true", 125, "16 MiB is the least"),
            ("hmm run --ram 16M no-such-program", 127, "not found"),
            ("hmm run --ram 16M --stats /no/such/dir/file true", 125, "cannot write the figures"),
            (
                "hmm run --ram 16M --device lz4 --device lz4 --device lz4 --device lz4 --device lz4 true",
                125,
                "given 5 times",
            ),
        ] {
            let failure = Job::new(args(line), None).expect_err(line);
            assert_eq!(failure.code(), code, "{line}");
            assert!(format!("{failure:?}").contains(part), "{line}: {failure:?}");
        }
    }
}
