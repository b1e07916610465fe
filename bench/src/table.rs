//! The report for people.

use crate::floors::{Floor, Floors};
use crate::latency::Percentiles;
use crate::price::Price;
use crate::report::{Cell, Medians, Ratio, Report};
use crate::size::Size;
use std::fmt::{self, Display, Write};

/// Prints a report for people.
#[derive(Debug)]
pub(crate) struct Table<'a>(pub(crate) &'a Report);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(self.0, f)
    }
}

fn write(report: &Report, out: &mut dyn Write) -> fmt::Result {
    head(report, out)?;
    let mut of_data = None;
    for group in report.cells.chunk_by(|one, other| (one.data, one.workload) == (other.data, other.workload))
    {
        let first = &group[0];
        if of_data.replace(first.data) != Some(first.data) {
            writeln!(out, "\ndata {}", first.data)?;
            titles(out)?;
        }
        group.iter().try_for_each(|cell| row(cell, out))?;
        let ratio =
            report.ratios.iter().find(|ratio| (ratio.data, ratio.workload) == (first.data, first.workload));
        ratio.map_or(Ok(()), |ratio| ratio_line(ratio, out))?;
    }
    report.sweeps.iter().try_for_each(|sweep| write!(out, "{sweep}"))?;
    writeln!(out)?;
    if let Some(others) = &report.others {
        writeln!(out, "{others}")?;
    }
    for skipped in &report.skipped {
        writeln!(out, "{} skipped: {}", skipped.system.name(), skipped.reason)?;
    }
    out.write_str(LEGEND)
}

const LEGEND: &str = "\
Medians of all repetitions, but max: the worst touch of all. Latencies are of a page's first access, where it faulted
(took 1 us longer than a hit), in us; p99all is over all touches, hits too. p50:fl: the median over a bare fault served in
userland and the codec, or the read, of 4 KiB. t:fl: time over that in RAM and, for what cannot be resident, the codec and
MOVE by 2 MiB, or by single faults where touches are random, all by one thread. cpu: seconds of the process; machine: of the
whole machine, so kswapd is in it. s/GiB: seconds of the machine for each GiB moved, beyond what the same takes in RAM.
beside: MiB of RAM that held what was away, not counted in the budget. The price of looking at the clock twice a page, about
20 ns, is in all figures.
";

fn head(report: &Report, out: &mut dyn Write) -> fmt::Result {
    let (machine, setup) = (&report.machine, &report.setup);
    writeln!(out, "hmm {} bench: {} working set over {}", report.version, setup.size_bytes, setup.ram_bytes)?;
    writeln!(out, "command  {}", report.command.join(" "))?;
    let ram_gib = machine.ram_bytes >> 30;
    let below = if machine.virtual_machine { ", virtual machine" } else { "" };
    writeln!(
        out,
        "machine  {}, {} CPUs{below}, {ram_gib} GiB, Linux {}",
        machine.cpu, machine.nr_cpus, machine.kernel
    )?;
    writeln!(
        out,
        "         huge pages {}, swappiness {}, page-cluster {}",
        machine.huge_pages, machine.swappiness, machine.page_cluster
    )?;
    let threads = if setup.threads > 1 { format!(" by {} threads", setup.threads) } else { String::new() };
    let limit = setup.cgroup_limit_bytes;
    writeln!(
        out,
        "setup    {} reps of {} passes{threads}; hmm: budget {}, device {}; zram: lz4, cgroup limit {limit}",
        setup.reps, setup.passes, setup.ram_bytes, setup.device
    )?;
    if let Some(dir) = &setup.dir {
        writeln!(out, "         files to page to in {}", dir.display())?;
    }
    if let Some(adapter) = &setup.adapter {
        writeln!(out, "         adapter: {adapter}")?;
    }
    floors(&report.floors, out)
}

fn floors(floors: &Floors, out: &mut dyn Write) -> fmt::Result {
    writeln!(
        out,
        "floors   memcpy {:.1} GB/s; first touch of fresh memory {:.2} us a page",
        floors.memcpy_gb_per_s,
        floors.first_touch_ns / 1e3
    )?;
    floor("fault served in userland", &floors.fault, out, |fault| {
        let other = fault.other_cpu_ns.map(|ns| format!(", on another {} us", us(ns))).unwrap_or_default();
        format!("on the same CPU {} us{other}", us(fault.same_cpu_ns))
    })?;
    floor("userfaultfd", &floors.verbs, out, |verbs| {
        format!(
            "MOVE of 4 KiB {} us, of 64 KiB {} us, of 2 MiB {} us; COPY of 4 KiB {} us",
            us(verbs.move_4k_ns),
            us(verbs.move_64k_ns),
            us(verbs.move_2m_ns),
            us(verbs.copy_4k_ns)
        )
    })?;
    for lz4 in &floors.lz4 {
        writeln!(
            out,
            "         lz4 of {}, {} data: ratio {:.2}, compress {:.2} GB/s, decompress {:.2} GB/s",
            Size { bytes: lz4.unit_bytes as u64 },
            lz4.data,
            lz4.ratio,
            lz4.compress_gb_per_s,
            lz4.decompress_gb_per_s
        )?;
    }
    let Some(file) = &floors.file else { return Ok(()) };
    floor("file", file, out, |file| {
        format!(
            "direct I/O in {}, by 2 MiB: write {:.2} GB/s, read {:.2} GB/s; read of 4 KiB {} us",
            file.dir.display(),
            file.write_gb_per_s,
            file.read_gb_per_s,
            us(file.read_4k_ns)
        )
    })
}

fn floor<T>(
    name: &str,
    floor: &Floor<T>,
    out: &mut dyn Write,
    tell: impl FnOnce(&T) -> String,
) -> fmt::Result {
    match floor {
        Floor::Measured(floor) => writeln!(out, "         {name}: {}", tell(floor)),
        Floor::Skipped(why) => writeln!(out, "         {name} skipped: {why}"),
    }
}

const WIDTHS: [usize; 16] = [10, 13, 7, 7, 7, 7, 8, 8, 7, 7, 7, 7, 8, 7, 7, 7];

fn line(columns: [&str; WIDTHS.len()], out: &mut dyn Write) -> fmt::Result {
    let mut text = String::new();
    for (index, (column, width)) in columns.into_iter().zip(WIDTHS).enumerate() {
        // Names to the left, figures to the right.
        if index < 2 { write!(text, "{column:<width$}")? } else { write!(text, "{column:>width$}")? }
    }
    writeln!(out, "{}", text.trim_end())
}

fn titles(out: &mut dyn Write) -> fmt::Result {
    line(
        [
            "workload", "", "MB/s", "faults", "p50", "p99", "p99.9", "max", "p99all", "p50:fl", "t:fl",
            "cpu", "machine", "s/GiB", "RSS", "beside",
        ],
        out,
    )
}

fn row(cell: &Cell, out: &mut dyn Write) -> fmt::Result {
    let (workload, system) = (cell.workload.name(), cell.system.name());
    match &cell.median {
        Some(median) => figures((workload, system), median, cell.price.as_ref(), out)?,
        None => writeln!(out, "{workload:<10}{system:<9} no figures")?,
    }
    if cell.oom_kills > 0 {
        let times = cell.oom_kills;
        writeln!(
            out,
            "{:19} out of memory: the kernel killed {times} worker{}",
            "",
            if times == 1 { "" } else { "s" }
        )?;
    }
    let note = cell.repetitions.iter().rev().find_map(|repetition| repetition.note.as_ref());
    note.map_or(Ok(()), |note| writeln!(out, "{:19} {note}", ""))?;
    cell.failures.iter().try_for_each(|why| writeln!(out, "{:19} failed: {why}", ""))
}

fn figures(
    (workload, system): (&str, &str),
    median: &Medians,
    price: Option<&Price>,
    out: &mut dyn Write,
) -> fmt::Result {
    let price =
        |figure: fn(&Price) -> Option<f64>| or_dash(price.and_then(figure).map(|at| format!("{at:.2}")));
    let latency =
        |figure: fn(&Percentiles) -> f64| or_dash(median.fault_latency.as_ref().map(|at| us(figure(at))));
    line(
        [
            workload,
            system,
            &format!("{:.0}", median.mb_per_s),
            &or_dash(median.fault_share.map(|share| format!("{:.1}%", share * 100.0))),
            &latency(|at| at.p50_ns),
            &latency(|at| at.p99_ns),
            &latency(|at| at.p999_ns),
            &latency(|at| at.max_ns),
            &or_dash(median.p99_of_all_ns.map(us)),
            &price(|price| price.p50_to_floor),
            &price(|price| price.time_to_floor),
            &format!("{:.2}", median.cpu_seconds),
            &format!("{:.2}", median.machine_seconds),
            &price(|price| price.cpu_seconds_per_gib_moved),
            &mib(median.max_rss_bytes),
            &or_dash(median.device_bytes.map(mib)),
        ],
        out,
    )
}

fn ratio_line(ratio: &Ratio, out: &mut dyn Write) -> fmt::Result {
    let times = |value: Option<f64>, what: &str| value.map(|value| format!("{value:.2}x {what}"));
    let to_zram = [
        times(ratio.speed_to_zram, "speed"),
        times(ratio.p50_to_zram, "p50"),
        times(ratio.p99_to_zram, "p99"),
        times(ratio.p99_of_all_to_zram, "p99all"),
        times(ratio.cpu_to_zram, "cpu"),
        times(ratio.cpu_of_moving_to_zram, "cpu a GiB moved"),
    ];
    let others = [("zram", to_zram.as_slice()), ("ram", &[times(ratio.speed_to_ram, "speed")])];
    for (system, values) in others {
        let values: Vec<&str> = values.iter().flatten().map(String::as_str).collect();
        if !values.is_empty() {
            writeln!(out, "{:19} hmm to {system}: {}", "", values.join(", "))?;
        }
    }
    if !ratio.speeds.is_empty() {
        let speeds = ratio.speeds.iter();
        let speeds: Vec<String> =
            speeds.map(|at| format!("{:.2}x {} to {}", at.ratio, at.of.name(), at.to.name())).collect();
        writeln!(out, "{:19} speed: {}", "", speeds.join(", "))?;
    }
    Ok(())
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// Nanoseconds in microseconds, with a digit behind the point where it says something.
fn us(ns: f64) -> String {
    let us = ns / 1e3;
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

fn mib(bytes: f64) -> String {
    format!("{:.0}", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn table_is_this() {
        let table = Table(&sample::report()).to_string();
        assert!(table == include_str!("sample.txt"), "src/sample.txt differs from:\n{table}");
    }
}
