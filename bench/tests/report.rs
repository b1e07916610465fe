//! `hmm bench --report` on the real kernel: the page is there, with a chart for everything that was measured.
//!
//! The bench is the example of this package, because a bench starts its own executable again as worker.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "everything in this file is a test"
)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    // .../debug/deps/report-0123 to .../debug/examples/bench
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples/bench");
    assert!(path.exists(), "build it by `cargo build -p hmm-bench --examples`: {}", path.display());
    Command::new("timeout").arg("120").arg(path).arg("bench").args(args).output().unwrap()
}

/// A file of this test's own, which goes with it.
struct Page(PathBuf);

impl Drop for Page {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn the_page_shows_what_was_measured() {
    let page = Page(std::env::temp_dir().join(format!("hmm-bench-page-{}.html", std::process::id())));
    let to = page.0.to_str().unwrap();
    let choices = ["--quick", "--ram=8M", "--systems=ram", "--workloads=seqread,quicksort", "--data=1:1"];
    let output = bench(&[&choices[..], &["--json", "--report", to]].concat());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sweeps = report["sweeps"].as_array().unwrap();
    assert_eq!(sweeps.len(), 2);
    for (sweep, (axis, nr_points)) in sweeps.iter().zip([("size", 3), ("threads", 2)]) {
        assert_eq!(sweep["axis"], axis);
        let points = sweep["points"].as_array().unwrap();
        assert_eq!(points.len(), nr_points, "{axis}");
        let measured = |point: &Value| {
            let cells = point["cells"].as_array().unwrap();
            cells.len() == 2 && cells.iter().all(|cell| cell["median"]["mb_per_s"].as_f64().unwrap() > 1.0)
        };
        assert!(points.iter().all(measured), "{sweep:#}");
    }
    let html = std::fs::read_to_string(&page.0).unwrap();
    // Throughput; sizes for two kinds of work; threads for two, speed and price. Touches in RAM may all have been hits.
    let nr_charts = html.matches("<svg").count();
    assert!((7..=8).contains(&nr_charts), "{nr_charts} charts");
    assert!(html.ends_with("</html>\n") && html.contains("--workloads=seqread,quicksort"), "{html}");
}

#[test]
fn a_page_that_cannot_be_written_is_told_before_anything_is_measured() {
    let output = bench(&["--report", "/nowhere/page.html"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("cannot write /nowhere/page.html"), "{said}");
}

/// The worker's memory is the library's, and its threads serve their own faults: it needs no `hmm run`, and no privilege.
#[test]
fn the_library_is_measured_with_threads_that_serve_their_own_faults() {
    let choices = ["--ram=16M", "--size=32M", "--reps=1", "--passes=1", "--data=3:1", "--json"];
    let output = bench(&[&choices[..], &["--systems=hmm-in-thread", "--workloads=rand2,mergesort"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cells = report["cells"].as_array().unwrap();
    let random = &cells[0]["repetitions"][0];
    assert!(random["space"]["stored_bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert!(random["run"]["moved_bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert!(random["device_bytes"].as_u64().unwrap() > 0, "{report:#}");
    let why = cells[1]["failures"][0].as_str().unwrap();
    assert!(why.contains("beside the working set"), "{why}");
}
