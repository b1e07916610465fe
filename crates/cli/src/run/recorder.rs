//! `hmm trace`: writes down what happens to pages, while it happens.
//!
//! A thread of the supervisor takes records out of the ring in the control page and puts them into the file. It waits for
//! nobody, and nobody waits for it: what it is too late for is counted as lost. When the file cannot be written the recording
//! ends, and the program goes on.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hmm::control::{Control, Trace};
use hmm_replay::file::{Header, Writer};

use crate::failure::{Attempt, Failure};
use crate::output;

/// Between two looks. The ring has room for what happens in some fifty of them.
const PAUSE: Duration = Duration::from_millis(2);
/// A record that is not complete after this is of a process that was killed or stopped in the middle of it.
const PATIENCE: Duration = Duration::from_millis(500);
const BUFFER_BYTES: usize = 1 << 18;

/// The file of a trace, open for writing before anything has started.
#[derive(Debug)]
pub(super) struct TraceFile {
    path: PathBuf,
    file: File,
}

impl TraceFile {
    pub(super) fn create(path: PathBuf) -> Result<Self, Failure> {
        let file = File::create(&path).attempt(format_args!("write the trace to {}", path.display()))?;
        Ok(Self { path, file })
    }
}

/// A recording under way.
#[derive(Debug)]
pub(super) struct Recorder {
    path: PathBuf,
    trace: &'static Trace,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<[u64; 2]>>,
}

impl Recorder {
    /// Begins to write down what the trace has; that has been [begun](Trace::begin).
    pub(super) fn start(to: TraceFile, control: Control) -> Result<Self, Failure> {
        let TraceFile { path, file } = to;
        let config = control.config();
        let header = Header { ram_pages: config.ram_pages, policy: config.policy };
        let (trace, is_over) = (control.trace(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&is_over);
        let thread = std::thread::Builder::new().name("hmm-recorder".to_owned());
        let thread = thread.spawn(move || {
            let written = write_down(file, header, trace, &seen);
            trace.end();
            written
        });
        Ok(Self { path, trace, is_over, thread: thread.attempt("start a thread")? })
    }

    /// Ends the recording, and says what has come of it. Says nothing when all is well and `quiet`.
    pub(super) fn finish(self, quiet: bool) {
        self.trace.end();
        self.is_over.store(true, Ordering::Release);
        let path = self.path.display();
        match self.thread.join() {
            Ok(Ok([_, 0])) if quiet => {}
            Ok(Ok([nr_records, 0])) => output::note(format_args!("{nr_records} events are in {path}")),
            Ok(Ok([nr_records, nr_lost])) => output::note(format_args!(
                "{nr_records} events are in {path}; {nr_lost} were lost: more happened than could be written"
            )),
            Ok(Err(error)) => {
                output::note(format_args!("the trace in {path} is not complete: cannot write it: {error}"));
            }
            // A panic ends the process.
            Err(_) => {}
        }
    }
}

/// Returns how many events are written, and how many lost.
fn write_down(file: File, header: Header, trace: &Trace, is_over: &AtomicBool) -> io::Result<[u64; 2]> {
    let (ring, mut nr_lost) = (trace.ring(), 0);
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, file), header)?;
    let mut last = Instant::now();
    loop {
        // Before the ring is looked at: what was put in until then is written.
        let is_last_round = is_over.load(Ordering::Acquire);
        while let Some(words) = ring.take() {
            writer.record(words)?;
            last = Instant::now();
        }
        let lost_now = ring.nr_lost();
        writer.lost(lost_now - std::mem::replace(&mut nr_lost, lost_now))?;
        if ring.is_behind() {
            if last.elapsed() > PATIENCE {
                ring.skip();
                last = Instant::now();
            }
        } else if is_last_round {
            break;
        } else {
            last = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
    let sums = [writer.nr_records(), writer.nr_lost()];
    writer.end()?;
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use hmm::control::{OnFull, RunConfig};
    use hmm_core::addr::Vpn;
    use hmm_core::trace::{Event, What};

    use super::*;

    fn control() -> Control {
        let config = RunConfig {
            ram_pages: 77,
            per_process: false,
            on_full: OnFull::Kill,
            devices: Vec::new(),
            dmirror: false,
            policy: hmm::PolicyName::Twice,
        };
        Control::create(&config).unwrap().1
    }

    fn record(control: &Control, page: u64) {
        let event = Event { what: What::Fetch, page: Vpn(page), nr_pages: 1, before: 0, detail: 0 };
        control.trace().record(5, event);
    }

    #[test]
    fn what_is_recorded_is_in_the_file() {
        let path = std::env::temp_dir().join(format!("hmm-recorder-{}", std::process::id()));
        let control = control();
        control.trace().begin();
        record(&control, 1);
        let recorder = Recorder::start(TraceFile::create(path.clone()).unwrap(), control).unwrap();
        (2..20_000).for_each(|page| record(&control, page));
        recorder.finish(true);
        assert!(!control.trace().is_on());
        let trace = hmm_replay::file::Trace::read(io::BufReader::new(File::open(&path).unwrap())).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(trace.header, Header { ram_pages: 77, policy: hmm::PolicyName::Twice });
        let pages: Vec<u64> = trace.records.iter().map(|record| record.event.page.0).collect();
        assert_eq!((pages, trace.nr_lost), ((1..20_000).collect(), 0));
        assert!(trace.records.iter().all(|record| record.process == 5));
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_the_recording() {
        let control = control();
        control.trace().begin();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let file = TraceFile { path: "/dev/full".into(), file: full };
        let recorder = Recorder::start(file, control).unwrap();
        (0..30_000).for_each(|page| record(&control, page));
        while control.trace().is_on() {
            std::thread::sleep(PAUSE);
        }
        let outcome = recorder.thread.join().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
