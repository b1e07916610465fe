//! What a run came to: as a few lines for people, and as JSON.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::time::Duration;

use hmm::control::{Control, OnFull, RunConfig, Verdict};
use hmm::device::Usage;
use hmm::spec::{Backing, ByteSize, DeviceSpec};
use serde::Serialize;
use serde_json::{Map, Value};

use super::channel::Ending;
use super::signals;
use super::strays::{Stray, Strays};
use super::totals::{Gauges, Totals};
use super::watch::Watch;
use crate::pages::{bytes, pages};

/// Nanoseconds, shown in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Microseconds(pub(super) u64);

impl fmt::Display for Microseconds {
    #[expect(clippy::cast_precision_loss, reason = "two or three digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0 as f64 / 1000.0;
        let decimals = usize::from(us < 99.95);
        write!(f, "{us:.decimals$} us")
    }
}

/// What a device keeps pages in.
fn where_it_is(device: &DeviceSpec) -> &'static str {
    if matches!(device.backing, Backing::File { .. }) { "a file" } else { "RAM" }
}

/// Each device, and how full it is.
pub(super) fn by_device<'a>(
    config: &'a RunConfig,
    gauges: &Gauges,
) -> impl Iterator<Item = (&'a DeviceSpec, Usage)> + use<'a> {
    config.devices.iter().zip(gauges.devices)
}

/// The devices' names, for a line of text.
pub(super) fn device_names(config: &RunConfig) -> String {
    config.devices.iter().map(|device| device.name()).collect::<Vec<_>>().join("+")
}

/// Counters of forks that were refused, and what they say.
const REFUSALS: [(&str, &str); 5] = [
    ("fork_no_place", "there were 128 processes, or no descriptors"),
    ("fork_no_room", "the devices were full"),
    ("fork_away", "pages were in a file that a child cannot have, or away without CAP_SYS_PTRACE"),
    ("fork_restless", "hmm's threads did not come to rest"),
    ("fork_useless", "other threads were changing mappings all the time"),
];

/// Everything that is known at the end.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) command_line: Vec<OsString>,
    pub(super) config: RunConfig,
    pub(super) ending: Ending,
    pub(super) wall: Duration,
    pub(super) user: Duration,
    pub(super) system: Duration,
    peak_pages: u64,
    peaks: Gauges,
    nr_processes: u64,
    nr_unmanaged: u64,
    /// Some of those that were not managed, by name.
    strays: Vec<Stray>,
    /// What the last of them said that could not be managed.
    why_unmanaged: String,
    totals: Totals,
    verdict: Option<Verdict>,
}

impl Summary {
    pub(super) fn new(
        command_line: Vec<OsString>,
        ending: Ending,
        wall: Duration,
        control: &Control,
        (watch, strays): (&Watch, &Strays),
    ) -> Self {
        let (user, system) = cpu_time_of_children();
        Self {
            command_line,
            config: control.config().clone(),
            ending,
            wall,
            user,
            system,
            peak_pages: control.peak(),
            peaks: watch.peaks().clone(),
            nr_processes: control.nr_processes(),
            nr_unmanaged: watch.nr_unmanaged() + control.nr_turned_away() + strays.nr_uncounted(),
            strays: strays.told().to_vec(),
            why_unmanaged: control.why_unmanaged().as_str().to_owned(),
            totals: Totals::of(control),
            verdict: control.verdict(),
        }
    }

    /// What to tell the user in any case.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        // Without a start there is nothing to wonder about.
        if self.nr_processes + self.nr_unmanaged == 0 && self.verdict.is_none() {
            warnings.push(
                "warning: the program ran without hmm: the dynamic linker did not load the agent (is it built for an \
                 older C library?)"
                    .to_owned(),
            );
        }
        if self.nr_unmanaged > 0 {
            warnings.push(format!(
                "warning: {} processes ran without hmm, and {} with it",
                self.nr_unmanaged, self.nr_processes
            ));
        }
        warnings.extend(self.strays.iter().map(|stray| format!("  without hmm: {stray}")));
        if !self.why_unmanaged.is_empty() {
            warnings.push(format!("  the last that could not be managed said: {}", self.why_unmanaged));
        }
        warnings.extend(self.refused_forks());
        if self.peak_pages > self.config.ram_pages {
            warnings.push(format!(
                "warning: the budget of {} was exceeded: {} were resident at the peak",
                pages(self.config.ram_pages),
                pages(self.peak_pages)
            ));
        }
        warnings
    }

    /// What the program was told by `EAGAIN`, and why.
    fn refused_forks(&self) -> Option<String> {
        let refused = REFUSALS.iter().map(|(name, why)| (self.totals.get(name), why));
        let refused: Vec<_> = refused.filter(|(nr, _)| *nr > 0).collect();
        let nr: u64 = refused.iter().map(|(nr, _)| nr).sum();
        let whys = refused.iter().map(|(nr, why)| format!("{nr} because {why}"));
        let whys = whys.collect::<Vec<_>>().join(", ");
        (nr > 0).then(|| format!("warning: {nr} forks were refused (EAGAIN): {whys}"))
    }

    fn show_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  RAM       {} at the peak, of {}{}",
            pages(self.peak_pages),
            pages(self.config.ram_pages),
            if self.config.per_process { " in each process" } else { "" }
        )?;
        for ((device, peak), demoted) in by_device(&self.config, &self.peaks).zip(self.totals.demoted) {
            let went_down = match demoted {
                0 => String::new(),
                _ => format!("; {} moved down", pages(demoted)),
            };
            writeln!(
                f,
                "  {:9} {} at the peak, in {} of {} (at most {} a process){went_down}",
                device.name(),
                pages(peak.frames),
                ByteSize(peak.used_bytes),
                where_it_is(device),
                ByteSize(device.capacity_bytes())
            )?;
        }
        Ok(())
    }

    fn unmanaged(&self) -> Vec<String> {
        let said = Some(&self.why_unmanaged).filter(|text| !text.is_empty()).cloned();
        self.strays.iter().map(ToString::to_string).chain(said).collect()
    }

    fn name(&self) -> String {
        self.command_line.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// As JSON, with a line break at the end.
    pub(super) fn write_json(&self, mut to: impl Write) -> std::io::Result<()> {
        serde_json::to_writer_pretty(&mut to, &Json::of(self))?;
        to.write_all(b"\n")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wall, user, system) =
            (self.wall.as_secs_f64(), self.user.as_secs_f64(), self.system.as_secs_f64());
        let (name, ending) = (self.name(), self.ending);
        writeln!(f, "hmm: {name}: {ending} after {wall:.2} s (user {user:.2} s, system {system:.2} s)")?;
        if self.config.has_budget() {
            self.show_memory(f)?;
        }
        let count = |name| self.totals.get(name);
        write!(f, "  faults    {}, {} of them served by a device", count("pgfault"), count("pgmajfault"))?;
        let latency = &self.totals.latency;
        if latency.count() > 0 {
            let (p50, p99) = (Microseconds(latency.quantile(0.5)), Microseconds(latency.quantile(0.99)));
            write!(f, "; p50 {p50}, p99 {p99}")?;
        }
        writeln!(
            f,
            "\n  pages     {} taken out, {} stored, {} left unchanged, {} fetched, {} fetched ahead",
            count("pgsteal"),
            count("pgstore"),
            count("pgclean"),
            count("pgfetch"),
            count("pgprefetch")
        )
    }
}

/// The file of `--stats`. Sizes are in bytes, times in seconds or as named; peaks other than that of RAM are samples.
#[derive(Debug, Serialize)]
struct Json {
    hmm: &'static str,
    command: Vec<String>,
    exit_status: Option<u8>,
    signal: Option<String>,
    wall_seconds: f64,
    user_seconds: f64,
    system_seconds: f64,
    /// `None` without a budget.
    budget_bytes: Option<u64>,
    /// Whether that is each process's. Then the peak is of the process that had most.
    per_process: bool,
    on_full: &'static str,
    policy: &'static str,
    peak_resident_bytes: u64,
    devices: Vec<DeviceJson>,
    away_bytes: u64,
    device_bytes: u64,
    device_capacity_bytes: u64,
    metadata_bytes: u64,
    processes: u64,
    unmanaged_processes: u64,
    /// The first of them by name and pid, with the reason, and what the last said that could not be managed.
    unmanaged: Vec<String>,
    fault_latency: LatencyJson,
    counters: Map<String, Value>,
    verdict: Option<VerdictJson>,
}

#[derive(Debug, Serialize)]
struct LatencyJson {
    count: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
}

/// A device, and the highest of each figure.
#[derive(Debug, Serialize)]
struct DeviceJson {
    device: String,
    /// Of the program's memory: what is away, and what came home and has not changed since.
    held_bytes: u64,
    /// Of the device's memory.
    used_bytes: u64,
    /// The most that it may use, of all processes.
    capacity_bytes: u64,
    /// Pages that moved from it to the next, in all.
    demoted_pages: u64,
}

#[derive(Debug, Serialize)]
struct VerdictJson {
    kind: String,
    pid: u32,
    errno: i32,
    text: String,
    resident_bytes: u64,
    away_bytes: u64,
    device_bytes: u64,
    device_capacity_bytes: u64,
}

impl Json {
    fn of(summary: &Summary) -> Self {
        let (exit_status, signal) = match summary.ending {
            Ending::Exited(code) => (Some(code), None),
            Ending::Signaled(signal) => (None, Some(signals::name(signal.into()))),
        };
        let latency = &summary.totals.latency;
        let usage = summary.peaks.usage();
        Self {
            hmm: env!("CARGO_PKG_VERSION"),
            command: summary.command_line.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            exit_status,
            signal,
            wall_seconds: summary.wall.as_secs_f64(),
            user_seconds: summary.user.as_secs_f64(),
            system_seconds: summary.system.as_secs_f64(),
            budget_bytes: summary.config.has_budget().then(|| bytes(summary.config.ram_pages)),
            per_process: summary.config.per_process,
            on_full: match summary.config.on_full {
                OnFull::Kill => "kill",
                OnFull::Grow => "grow",
            },
            policy: summary.config.policy.as_str(),
            peak_resident_bytes: bytes(summary.peak_pages),
            devices: by_device(&summary.config, &summary.peaks)
                .zip(summary.totals.demoted)
                .map(|((device, peak), demoted)| DeviceJson::of(device, peak, demoted))
                .collect(),
            away_bytes: bytes(summary.peaks.away_pages),
            device_bytes: usage.used_bytes,
            device_capacity_bytes: usage.capacity_bytes,
            metadata_bytes: summary.peaks.metadata_bytes,
            processes: summary.nr_processes,
            unmanaged_processes: summary.nr_unmanaged,
            unmanaged: summary.unmanaged(),
            fault_latency: LatencyJson {
                count: latency.count(),
                p50_ns: latency.quantile(0.5),
                p90_ns: latency.quantile(0.9),
                p99_ns: latency.quantile(0.99),
                p999_ns: latency.quantile(0.999),
                max_ns: latency.quantile(1.0),
            },
            counters: counters(&summary.totals),
            verdict: summary.verdict.as_ref().map(VerdictJson::of),
        }
    }
}

impl DeviceJson {
    fn of(device: &DeviceSpec, peak: Usage, demoted: u64) -> Self {
        Self {
            device: device.to_string(),
            held_bytes: bytes(peak.frames),
            used_bytes: peak.used_bytes,
            capacity_bytes: peak.capacity_bytes,
            demoted_pages: demoted,
        }
    }
}

fn counters(totals: &Totals) -> Map<String, Value> {
    totals.counters.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect()
}

impl VerdictJson {
    fn of(verdict: &Verdict) -> Self {
        Self {
            kind: format!("{:?}", verdict.kind),
            pid: verdict.pid,
            errno: verdict.errno,
            text: verdict.text.as_str().to_owned(),
            resident_bytes: bytes(verdict.figures.charged_pages),
            away_bytes: bytes(verdict.figures.away_pages),
            device_bytes: verdict.figures.device_bytes,
            device_capacity_bytes: verdict.figures.device_capacity_bytes,
        }
    }
}

/// User and system time of all processes that were waited for.
fn cpu_time_of_children() -> (Duration, Duration) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call writes the structure.
    let _zero = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    // SAFETY: zeroes are a valid value of it, if the call should have failed.
    let usage = unsafe { usage.assume_init() };
    let time = |value: libc::timeval| {
        let seconds = u64::try_from(value.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
    };
    (time(usage.ru_utime), time(usage.ru_stime))
}

#[cfg(test)]
mod tests {
    use hmm::control::{SlotState, Text};

    use super::*;

    const PAGES: u64 = 16 << 8;

    fn control() -> Control {
        let devices = vec![Backing::Lz4 { capacity_bytes: 1 << 30 }.into()];
        Control::create(&RunConfig {
            ram_pages: PAGES,
            per_process: false,
            on_full: OnFull::Kill,
            devices,
            dmirror: false,
            policy: hmm::PolicyName::default(),
        })
        .unwrap()
        .1
    }

    fn summary(control: &Control, ending: Ending) -> Summary {
        Summary::new(
            vec!["sort".into()],
            ending,
            Duration::from_millis(1500),
            control,
            (&Watch::new(*control), &Strays::default()),
        )
    }

    #[test]
    fn a_program_that_ran_without_hmm_is_told() {
        let control = control();
        let warnings = summary(&control, Ending::Exited(0)).warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("ran without hmm"), "{warnings:?}");
        control.claim_slot(std::process::id()).unwrap();
        assert_eq!(summary(&control, Ending::Exited(0)).warnings(), Vec::<String>::new());
    }

    #[test]
    fn what_could_not_be_managed_is_told_with_the_reason() {
        let control = control();
        let slot = control.claim_slot(std::process::id()).unwrap();
        assert_eq!(slot.state(), SlotState::Starting);
        control.set_why_unmanaged(&Text::format(format_args!("no userfaultfd")));
        let summary = summary(&control, Ending::Exited(0));
        assert!(summary.warnings().iter().any(|line| line.contains("no userfaultfd")));
        let mut json = Vec::new();
        summary.write_json(&mut json).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["unmanaged"], serde_json::json!(["no userfaultfd"]));
    }

    #[test]
    fn a_budget_that_was_exceeded_is_told() {
        let control = control();
        let slot = control.claim_slot(std::process::id()).unwrap();
        control.share(slot).charge_found(PAGES + 256);
        let warnings = summary(&control, Ending::Exited(0)).warnings();
        assert_eq!(
            warnings,
            ["warning: the budget of 16 MiB was exceeded: 17 MiB were resident at the peak"]
        );
    }

    #[test]
    fn what_is_in_files_is_not_called_ram() {
        let text = |spec| where_it_is(&DeviceSpec::parse(spec, 1 << 30).unwrap());
        assert_eq!([text("lz4"), text("file:path=/tmp,cap=1G")], ["RAM", "a file"]);
    }

    #[test]
    fn the_lines_have_the_figures() {
        let control = control();
        let slot = control.claim_slot(std::process::id()).unwrap();
        control.share(slot).charge_found(PAGES);
        let stats = slot.stats();
        stats.pgfault.store(7, std::sync::atomic::Ordering::Relaxed);
        stats.demoted[0].store(512, std::sync::atomic::Ordering::Relaxed);
        let text = summary(&control, Ending::Signaled(15)).to_string();
        assert!(text.starts_with("hmm: sort: ended by SIGTERM after 1.50 s (user "), "{text}");
        for part in [
            "16 MiB at the peak, of 16 MiB",
            "at most 1 GiB a process); 2 MiB moved down\n",
            "7, 0 of them served by a device\n",
        ] {
            assert!(text.contains(part), "no '{part}' in: {text}");
        }
        stats.latency.record(10_000);
        let text = summary(&control, Ending::Exited(0)).to_string();
        assert!(text.contains("; p50 1"), "{text}");
    }
}
