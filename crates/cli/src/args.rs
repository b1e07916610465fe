//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use hmm::PolicyName as Name;
use hmm::control::OnFull;
use hmm::spec::{DeviceSpec, SpecError, parse_size};

use crate::demo::DemoArgs;
use crate::doctor::DoctorArgs;
use crate::replay::ReplayArgs;

/// Runs programs on more memory than the RAM they may use. The rest lives on devices, like RAM that holds it compressed.
#[derive(Debug, Parser)]
#[command(name = "hmm", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "\
To begin with:
  hmm doctor                                  what this machine and this user can do
  hmm demo                                    see it work
  hmm run --ram 512M -- sort --buffer-size=2G big.txt > sorted.txt")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Trace(TraceArgs),
    Replay(ReplayArgs),
    Doctor(DoctorArgs),
    Demo(DemoArgs),
    Bench(hmm_bench::Args),
    Torture(hmm_torture::Args),
    #[command(name = hmm_torture::WorkerArgs::SUBCOMMAND, hide = true)]
    TortureWorker(hmm_torture::WorkerArgs),
    #[command(name = hmm_bench::WorkerArgs::SUBCOMMAND, hide = true)]
    BenchWorker(hmm_bench::WorkerArgs),
    #[command(name = hmm_bench::MirrorWorkerArgs::SUBCOMMAND, hide = true)]
    BenchMirrorWorker(hmm_bench::MirrorWorkerArgs),
    #[command(name = hmm_bench::GraphArgs::SUBCOMMAND, hide = true)]
    BenchGraph(hmm_bench::GraphArgs),
}

/// Run a program within a budget of RAM.
///
/// The program is not changed. Its private memory is managed: at most --ram of it is resident at a time, over all the
/// processes that it starts, or in each of them (--per-process); the rest lives on the device, and comes back when it is
/// touched.
#[derive(Debug, clap::Args)]
#[command(override_usage = "\
hmm run [OPTIONS] --ram <SIZE> [--] PROGRAM [ARGS]...
       hmm run [OPTIONS] --dmirror [--] PROGRAM [ARGS]...")]
#[command(after_help = "\
Examples:
  hmm run --ram 512M -- sort --buffer-size=2G big.txt > sorted.txt
  hmm run --ram 2G --device lz4:cap=4G --stats run.json -- python3 train.py
  hmm run --ram 1.5G --on-full grow -- ./simulate
  hmm run --dmirror -- ./hmm-tests

A SIZE is a number of bytes, or a number with K, M, G or T (powers of 1024), like 512M or 1.5G.

Devices:
  lz4[:cap=SIZE]   compressed RAM. It takes at most SIZE in each process, beside --ram
                   [default: half of the machine's RAM]
  file:path=DIRECTORY[,cap=SIZE][,compress=no]
                   a file without a name in that directory, of at most SIZE in each process, compressed unless told
                   [default: half of what is free there]

Exit status: the program's, and its signal if one ended it; 125 when hmm itself fails, 126 when the program cannot be
executed or not under hmm (statically linked, setuid, for another machine), 127 when it is not found.

Signals that hmm gets are passed on to the program. What the program leaves running stays managed.")]
pub(crate) struct RunArgs {
    /// Memory that may be resident, at least 16M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, required_unless_present = "dmirror")]
    pub(crate) ram: Option<u64>,

    /// Each process may have --ram resident, instead of all of them together.
    #[arg(long, requires = "ram")]
    pub(crate) per_process: bool,

    /// Where the rest lives: lz4[:cap=SIZE] or file:path=DIRECTORY[,cap=SIZE]; of several, pages go to the
    /// first, and move on to the next when it is nearly full [default: lz4].
    #[arg(long = "device", value_name = "SPEC", value_parser = device, requires = "ram")]
    pub(crate) devices: Vec<DeviceSpec>,

    /// What happens when the budget is used up and the devices are full: the process that needs memory is ended, with a
    /// message, or the budget grows.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnFullArg::Kill)]
    pub(crate) on_full: OnFullArg,

    /// Give the program Linux's HMM test devices, /dev/hmm_dmirror0 to 3. Without --ram there is no budget.
    #[arg(long)]
    pub(crate) dmirror: bool,

    /// Who decides what leaves, what comes ahead, and where it goes: round (the order in which pages came, with a second
    /// chance, and streams fetched ahead; of what is gone through over and over a part stays), clock (without that), fifo (the order
    /// alone: nothing comes but what is touched), or twice (what came once leaves before what came again, so that a scan does
    /// not push out the rest).
    #[arg(long, value_name = "NAME", default_value_t = Name::default(), requires = "ram")]
    pub(crate) policy: Name,

    /// Write figures as JSON to this file when the program has ended.
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,

    /// Print a summary at the end even if standard error is no terminal.
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) summary: bool,

    /// Print nothing but errors: neither the live line nor the summary that a terminal gets.
    #[arg(long, short)]
    pub(crate) quiet: bool,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// Run a program as `hmm run` does, and record what happens to its pages.
///
/// The trace has every fault with what was found there, and everything that was fetched ahead, taken out, stored and given
/// up. A touch of a page that is there is seen by nobody: the less memory there is, the more a trace shows. So the default
/// policy here is fifo, which brings nothing but what is touched. It is slow.
#[derive(Debug, clap::Args)]
#[command(override_usage = "hmm trace [OPTIONS] --ram <SIZE> [--] PROGRAM [ARGS]...")]
#[command(after_help = "\
Examples:
  hmm trace --ram 64M -- sort --buffer-size=400M big.txt > sorted.txt
  hmm replay hmm.trace
  hmm replay hmm.trace --policy clock,twice --ram 256M

Exit status: as of `hmm run`.")]
pub(crate) struct TraceArgs {
    /// Memory that may be resident, at least 16M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    ram: u64,

    /// The file to write.
    #[arg(long, short, value_name = "FILE", default_value = "hmm.trace")]
    output: PathBuf,

    /// Where the rest lives, as for `hmm run`.
    #[arg(long = "device", value_name = "SPEC", value_parser = device)]
    devices: Vec<DeviceSpec>,

    /// What happens when the budget is used up and the devices are full.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnFullArg::Kill)]
    on_full: OnFullArg,

    /// The policy to record under: round, clock, fifo or twice.
    #[arg(long, value_name = "NAME", default_value_t = Name::Fifo)]
    policy: Name,

    /// Write figures as JSON to this file when the program has ended.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,

    /// Print a summary at the end even if standard error is no terminal.
    #[arg(long, conflicts_with = "quiet")]
    summary: bool,

    /// Print nothing but errors, and how much of the trace was lost, if any.
    #[arg(long, short)]
    quiet: bool,

    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl TraceArgs {
    /// The run, and the file to write.
    pub(crate) fn into_parts(self) -> (RunArgs, PathBuf) {
        let run = RunArgs {
            ram: Some(self.ram),
            // What is replayed has one memory.
            per_process: false,
            devices: self.devices,
            on_full: self.on_full,
            policy: self.policy,
            dmirror: false,
            stats: self.stats,
            summary: self.summary,
            quiet: self.quiet,
            program: self.program,
        };
        (run, self.output)
    }
}

/// [`OnFull`], as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFullArg {
    /// End the process.
    Kill,
    /// Let the budget grow.
    Grow,
}

impl From<OnFullArg> for OnFull {
    fn from(arg: OnFullArg) -> Self {
        match arg {
            OnFullArg::Kill => Self::Kill,
            OnFullArg::Grow => Self::Grow,
        }
    }
}

fn device(text: &str) -> Result<DeviceSpec, SpecError> {
    DeviceSpec::parse(text, physical_ram_bytes())
}

/// The machine's RAM.
pub(crate) fn physical_ram_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    fn run_args(line: &str) -> RunArgs {
        let Command::Run(args) = parse(line).unwrap().command else { panic!("{line}: another subcommand") };
        args
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_program_begins_where_the_options_end() {
        for line in ["hmm run --ram 512M -- sort --quiet -n", "hmm run --ram 512M sort --quiet -n"] {
            let args = run_args(line);
            assert_eq!(args.program, ["sort", "--quiet", "-n"]);
            assert!(!args.quiet);
            assert_eq!((args.ram, args.on_full), (Some(512 << 20), OnFullArg::Kill));
        }
        assert_eq!(run_args("hmm run --ram 512M -- --odd -n").program, ["--odd", "-n"]);
    }

    #[test]
    fn a_trace_is_a_run_under_the_plain_policy() {
        let line = "hmm trace --ram 32M -o there --quiet -- sort -n";
        let Command::Trace(args) = parse(line).unwrap().command else { panic!("another subcommand") };
        let (run, output) = args.into_parts();
        assert_eq!((run.ram, run.policy, output), (Some(32 << 20), Name::Fifo, PathBuf::from("there")));
        assert!(run.program == ["sort", "-n"] && run.quiet && !run.dmirror);
        assert_eq!(run_args("hmm run --ram 32M sort").policy, Name::Round);
    }

    #[test]
    fn errors_name_the_option_and_the_reason() {
        for (line, part) in [
            ("hmm run sort", "--ram <SIZE>"),
            ("hmm run --ram much sort", "'much' is not a size"),
            ("hmm run --ram 512M", "<PROGRAM>..."),
            ("hmm run --ram 512M --device tape sort", "unknown device 'tape'"),
            ("hmm run --dmirror --device lz4 sort", "--ram <SIZE>"),
            ("hmm run --dmirror --per-process sort", "--ram <SIZE>"),
            ("hmm run --ram 512M --on-full panic sort", "possible values: kill, grow"),
            (
                "hmm run --ram 512M --policy lru sort",
                "unknown policy 'lru': there are round, clock, fifo and twice",
            ),
            ("hmm trace sort", "--ram <SIZE>"),
            ("hmm replay", "<FILE>"),
            ("hmm replay file --policy clock,lru", "unknown policy 'lru'"),
            ("hmm run --ram 512M --quiet --summary sort", "cannot be used with"),
            ("hmm run --ram 512M --frobnicate sort", "unexpected argument '--frobnicate'"),
            ("hmm trace --ram 32M --per-process sort", "unexpected argument '--per-process'"),
        ] {
            let text = parse(line).expect_err(line).to_string();
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}
