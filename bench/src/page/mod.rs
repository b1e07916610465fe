//! The report as one page for a browser: it needs nothing else, no network and no script.

mod chart;
mod scale;
mod text;

use crate::data::Data;
use crate::report::{Cell, Medians, Report};
use crate::sweep::{Axis, Sweep};
use crate::table::Table;
use crate::workload::Workload;
use chart::{Bars, Lines, Series};
use text::escape;

const STYLE: &str = include_str!("style.css");
const GIB: f64 = (1_u64 << 30) as f64;

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let title = format!(
        "hmm bench: a working set of {} in {} of RAM",
        report.setup.size_bytes, report.setup.ram_bytes
    );
    let title = escape(&title);
    let mut body = head(report);
    body += &section(
        "Throughput",
        "Bytes worked on in a second, in medians of all repetitions. More is better; the axis is logarithmic.",
        &throughput(report),
    );
    body += &section(
        "Distance to the best that can be",
        "Time over that in RAM and, for what cannot be resident, the codec (or the file) and UFFDIO_MOVE by 2 MiB, or by single \
         faults where touches are random, all of it by one thread and as measured in the same run. 1 is the floor.",
        &distances(report),
    );
    body += &section(
        "How long touches take",
        "The first access to each page: which part of all of them takes longer than a time. Lower and more to the left is \
         better. What is below the line's left end was there at once (took less than 1 us longer than a hit).",
        &latencies(report),
    );
    for sweep in &report.sweeps {
        body += &section(heading(sweep.axis), &explanation(sweep), &charts_of(sweep));
    }
    let table = escape(&Table(report).to_string());
    body += &format!("<h2>All figures</h2>\n<pre>{table}</pre>\n");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

/// On what machine, by which command, and what could not be measured.
fn head(report: &Report) -> String {
    let (machine, setup) = (&report.machine, &report.setup);
    let below = if machine.virtual_machine { ", virtual machine" } else { "" };
    let mut lines = vec![
        ("command".to_owned(), report.command.join(" ")),
        (
            "machine".to_owned(),
            format!(
                "{}, {} CPUs{below}, {} GiB of RAM, Linux {}",
                machine.cpu,
                machine.nr_cpus,
                machine.ram_bytes >> 30,
                machine.kernel
            ),
        ),
        (
            "measured".to_owned(),
            format!(
                "{} repetitions of {} passes over {}, with {} of RAM; hmm {}, device {}",
                setup.reps, setup.passes, setup.size_bytes, setup.ram_bytes, report.version, setup.device
            ),
        ),
    ];
    lines.extend(report.others.iter().map(|others| ("not idle".to_owned(), others.to_string())));
    let skipped = |at: &crate::report::Skipped| (format!("{} skipped", at.system.name()), at.reason.clone());
    lines.extend(report.skipped.iter().map(skipped));
    let lines: String = lines
        .iter()
        .map(|(name, text)| format!("<dt>{}</dt><dd><code>{}</code></dd>\n", escape(name), escape(text)))
        .collect();
    format!("<dl>\n{lines}</dl>\n")
}

/// Charts under a heading; nothing without charts.
fn section(title: &str, what: &str, charts: &str) -> String {
    if charts.is_empty() {
        return String::new();
    }
    format!("<h2>{}</h2>\n<p>{}</p>\n<div class=\"charts\">\n{charts}</div>\n", escape(title), escape(what))
}

fn works(cells: &[Cell]) -> impl Iterator<Item = &[Cell]> {
    cells.chunk_by(|one, next| (one.data, one.workload) == (next.data, next.workload))
}

fn throughput(report: &Report) -> String {
    bars(report, "MB/s", |cell| Some(cell.median.as_ref()?.mb_per_s))
}

fn distances(report: &Report) -> String {
    bars(report, "time over the floor", |cell| cell.price.as_ref()?.time_to_floor)
}

/// A chart for each kind of data, of one figure of every cell that has it.
fn bars(report: &Report, label: &str, figure: impl Fn(&Cell) -> Option<f64>) -> String {
    let of_data = |cells: &[Cell]| {
        let groups = works(cells).map(|work| {
            let bar = |cell: &Cell| Some((cell.system, figure(cell)?));
            (work[0].workload.name(), work.iter().filter_map(bar).collect::<Vec<_>>())
        });
        let title = format!("Data that lz4 compresses {}", cells[0].data);
        let groups = groups.filter(|group| !group.1.is_empty());
        Bars { title: &title, label, groups: groups.collect() }.to_html()
    };
    report.cells.chunk_by(|one, next| one.data == next.data).map(of_data).collect()
}

fn latencies(report: &Report) -> String {
    let chart = |work: &[Cell]| {
        let series = work.iter().map(|cell| Series { system: cell.system, points: slower_than(cell) });
        Lines {
            title: &format!("{}, data {}", work[0].workload.name(), work[0].data),
            x_label: "time of a touch, us",
            y_label: "part of touches that take longer",
            x_suffix: "",
            x_is_chosen: false,
            marked: false,
            series: series.filter(|series| !series.points.is_empty()).collect(),
        }
        .to_html()
    };
    works(&report.cells).map(chart).collect()
}

/// Times in us, and which part of all touches of all repetitions took longer.
fn slower_than(cell: &Cell) -> Vec<(f64, f64)> {
    let workers = || cell.repetitions.iter().map(|repetition| &repetition.worker);
    let mut slow: Vec<(f64, u64)> =
        workers().flat_map(|worker| worker.slow_touches.iter().copied()).collect();
    slow.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let nr_touches: u64 = workers().map(|worker| worker.touches).sum();
    let mut nr_slower: u64 = slow.iter().map(|bucket| bucket.1).sum();
    let mut points = Vec::with_capacity(slow.len());
    for (ns, count) in slow {
        points.push((ns / 1e3, nr_slower as f64 / nr_touches as f64));
        nr_slower -= count;
    }
    points
}

fn heading(axis: Axis) -> &'static str {
    match axis {
        Axis::Size => "As the working set grows",
        Axis::Threads => "As threads grow",
    }
}

fn explanation(sweep: &Sweep) -> String {
    let ram = sweep.ram_bytes;
    match sweep.axis {
        Axis::Size => format!("The same RAM, {ram}, and a working set of half to many times that."),
        Axis::Threads => {
            format!(
                "A working set of twice the RAM, which is {ram}, shared by threads: what they do together, and its price."
            )
        }
    }
}

fn charts_of(sweep: &Sweep) -> String {
    let mut charts = String::new();
    for (data, workload) in sweep.works() {
        charts += &sweep_chart(sweep, (data, workload), "MB/s", |median, _| median.mb_per_s);
        if sweep.axis == Axis::Threads {
            let label = "seconds of CPU time for each GiB of work";
            charts += &sweep_chart(sweep, (data, workload), label, |median, bytes| {
                median.machine_seconds / (bytes / GIB)
            });
        }
    }
    charts
}

fn sweep_chart(
    sweep: &Sweep,
    work: (Data, Workload),
    label: &str,
    figure: impl Fn(&Medians, f64) -> f64,
) -> String {
    let point = |cell: &Cell| {
        let bytes = cell.repetitions.first()?.worker.bytes as f64;
        Some(figure(cell.median.as_ref()?, bytes))
    };
    let series = sweep.systems().into_iter().map(|system| {
        let of = |cells: &[Cell]| {
            let same = |cell: &&Cell| (cell.data, cell.workload, cell.system) == (work.0, work.1, system);
            cells.iter().find(same).and_then(point)
        };
        let points = sweep.points.iter().filter_map(|at| Some((at.x, of(&at.cells)?)));
        Series { system, points: points.collect() }
    });
    let (x_label, x_suffix) = match sweep.axis {
        Axis::Size => ("working set over RAM", "x"),
        Axis::Threads => ("threads", ""),
    };
    Lines {
        title: &format!("{}, data {}: {label}", work.1.name(), work.0),
        x_label,
        y_label: label,
        x_suffix,
        x_is_chosen: true,
        marked: true,
        series: series.filter(|series| !series.points.is_empty()).collect(),
    }
    .to_html()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_page_has_everything_and_needs_nothing() {
        let page = page(&sample::report());
        for part in [
            "hmm bench --reps",
            "Some CPU",
            "zram skipped",
            "needs root",
            "quicksort",
            "As the working set grows",
        ] {
            assert!(page.contains(part), "no {part} in {page}");
        }
        for outside in ["http", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside} in {page}");
        }
        assert!(page.contains("&lt;MARKUP&gt;") && !page.contains("<MARKUP>"), "names are not markup");
        let nr_charts = page.matches("<svg").count();
        // Throughput; distance to the floor; touches of seqrmw; two of sizes.
        assert_eq!((nr_charts, page.matches("</svg>").count()), (5, 5), "{page}");
    }

    #[test]
    fn the_distribution_ends_with_the_slowest() {
        let report = sample::report();
        let points = slower_than(&report.cells[2]);
        // Three repetitions, in each of which half of the touches took 4 us, but for one that took 400.
        let nr_touches = f64::from(3 << 18);
        assert_eq!(points.len(), 6);
        assert_eq!(points[0], (4.0, 0.5));
        assert_eq!(points[5], (400.0, 1.0 / nr_touches));
    }
}
