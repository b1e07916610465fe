//! What the applications took, as a table or as JSON.

use super::app::App;
use crate::machine::Machine;
use crate::report::median;
use crate::system::System;
use std::fmt;

/// One application on one system.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct Run {
    /// How long each repetition took.
    pub(crate) seconds: Vec<f64>,
    /// The median of these.
    pub(crate) median: Option<f64>,
    /// The same over the time in RAM.
    pub(crate) to_ram: Option<f64>,
    /// Runs that the kernel ended for want of memory; each was started again, at most twice a repetition.
    pub(crate) oom_kills: u32,
    /// Why it cannot be measured here.
    pub(crate) skipped: Option<String>,
}

/// One application.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Row {
    /// Which.
    pub(crate) app: App,
    /// What it does.
    pub(crate) what: &'static str,
    /// The most that it has resident when it has enough.
    pub(crate) peak_bytes: u64,
    /// What it gets.
    pub(crate) budget_bytes: u64,
    /// With all its memory.
    pub(crate) ram: Run,
    /// Under hmm.
    pub(crate) hmm: Run,
    /// On zram.
    pub(crate) zram: Run,
    /// Time under hmm over that on zram: less is better.
    pub(crate) hmm_to_zram: Option<f64>,
    /// Why it cannot run here.
    pub(crate) skipped: Option<String>,
    /// What went wrong; other words than with all its memory are among it.
    pub(crate) failures: Vec<String>,
}

impl Row {
    /// Without figures.
    pub(crate) fn new(app: App) -> Self {
        Self {
            app,
            what: app.what(),
            peak_bytes: 0,
            budget_bytes: 0,
            ram: Run::default(),
            hmm: Run::default(),
            zram: Run::default(),
            hmm_to_zram: None,
            skipped: None,
            failures: Vec::new(),
        }
    }

    /// The run on a system; all others count as hmm.
    pub(crate) const fn run_mut(&mut self, system: System) -> &mut Run {
        match system {
            System::Ram => &mut self.ram,
            System::Zram => &mut self.zram,
            System::Hmm
            | System::HmmFits
            | System::HmmInThread
            | System::HmmFile
            | System::Zswap
            | System::Swapfile
            | System::Mmap
            | System::Adapter => &mut self.hmm,
        }
    }

    /// Notes it if the application has said something else than it should.
    pub(crate) fn compare(&mut self, system: System, expected: &[u8], said: &[u8]) {
        if expected == said {
            return;
        }
        let (expected, said) = (String::from_utf8_lossy(expected), String::from_utf8_lossy(said));
        let mut lines = expected.lines().zip(said.lines()).filter(|(one, other)| one != other);
        let what = match lines.next() {
            Some((one, other)) => format!("`{other}` instead of `{one}`"),
            None => format!("{} lines instead of {}", said.lines().count(), expected.lines().count()),
        };
        self.failures.push(format!("{}: wrong result: {what}", system.name()));
    }

    /// Computes what follows from the times.
    pub(crate) fn finish(&mut self) {
        let ram = median(self.ram.seconds.iter().copied());
        for run in [&mut self.ram, &mut self.hmm, &mut self.zram] {
            run.median = median(run.seconds.iter().copied());
            run.to_ram = run.median.zip(ram).map(|(run, ram)| run / ram);
        }
        self.hmm_to_zram = self.hmm.median.zip(self.zram.median).map(|(hmm, zram)| hmm / zram);
    }

    /// Whether something went wrong.
    pub(crate) const fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }
}

/// Everything that a run found out.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    /// Version of hmm.
    pub(crate) version: &'static str,
    /// The command line.
    pub(crate) command: Vec<String>,
    /// The machine.
    pub(crate) machine: Machine,
    /// Runs of each application on each system.
    pub(crate) reps: u32,
    /// Small inputs: the figures mean little.
    pub(crate) quick: bool,
    /// The applications.
    pub(crate) rows: Vec<Row>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let quick = if self.quick { " (quick: too short for the figures to mean much)" } else { "" };
        writeln!(f, "hmm {} bench --applications, {} reps{quick}", self.version, self.reps)?;
        writeln!(f, "command  {}", self.command.join(" "))?;
        let below = if machine.virtual_machine { ", virtual machine" } else { "" };
        writeln!(f, "machine  {}, {} CPUs{below}, Linux {}\n", machine.cpu, machine.nr_cpus, machine.kernel)?;
        writeln!(
            f,
            "{:8}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}  what",
            "", "takes MiB", "gets MiB", "ram s", "hmm", "zram", "hmm:zram"
        )?;
        self.rows.iter().try_for_each(|row| write!(f, "{row}"))?;
        f.write_str(LEGEND)
    }
}

const LEGEND: &str = "
hmm, zram: time over that in RAM; medians of all repetitions, from the start of the program to its end. hmm:zram: the one
over the other; less is better. What every run prints is compared with what the program prints in RAM.
";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.app.name();
        if let Some(why) = &self.skipped {
            return writeln!(f, "{name:8}skipped: {why}");
        }
        let times = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}x"));
        writeln!(
            f,
            "{name:8}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}  {}",
            self.peak_bytes >> 20,
            self.budget_bytes >> 20,
            self.ram.median.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.2}")),
            times(self.hmm.to_ram),
            times(self.zram.to_ram),
            times(self.hmm_to_zram),
            self.what
        )?;
        for (system, run) in [("hmm", &self.hmm), ("zram", &self.zram)] {
            if let Some(why) = &run.skipped {
                writeln!(f, "{:8}{system} skipped: {why}", "")?;
            }
            if run.oom_kills > 0 {
                writeln!(f, "{:8}{system} out of memory: the kernel ended {} runs", "", run.oom_kills)?;
            }
        }
        self.failures.iter().try_for_each(|why| writeln!(f, "{:8}failed: {why}", ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut row = Row::new(App::Sort);
        (row.peak_bytes, row.budget_bytes) = (200 << 20, 100 << 20);
        row.ram.seconds = vec![1.0, 3.0, 2.0];
        row.hmm.seconds = vec![3.0];
        row.zram.seconds = vec![6.0];
        row.finish();
        row
    }

    #[test]
    fn times_are_over_those_in_ram() {
        let text = row().to_string();
        let columns: Vec<&str> = text.split_whitespace().take(7).collect();
        assert_eq!(columns, ["sort", "200", "100", "2.00", "1.50x", "3.00x", "0.50x"]);
    }

    #[test]
    fn other_results_are_failures() {
        let mut row = row();
        row.compare(System::Zram, b"a\nb\n", b"a\nb\n");
        assert!(!row.has_failed());
        row.compare(System::Hmm, b"a\nb\n", b"a\nc\n");
        row.compare(System::Zram, b"a\nb\n", b"a\n");
        assert_eq!(
            row.failures,
            ["hmm: wrong result: `c` instead of `b`", "zram: wrong result: 1 lines instead of 2"]
        );
        assert!(row.to_string().contains("failed: hmm: wrong result"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut row = row();
        row.zram.skipped = Some("needs root".to_owned());
        row.hmm.oom_kills = 2;
        let text = row.to_string();
        assert!(
            text.contains("zram skipped: needs root") && text.contains("the kernel ended 2 runs"),
            "{text}"
        );
        row.skipped = Some("there is no sort here".to_owned());
        assert_eq!(row.to_string(), "sort    skipped: there is no sort here\n");
    }
}
