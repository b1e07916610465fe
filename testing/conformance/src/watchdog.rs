//! A test that waits for ever fails, and says where it was.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use hmm::core::state::PageState;

/// Says what there is to say when a test hangs.
pub type Dump = Box<dyn Fn() -> String + Send>;

/// What is looked at when the test hangs, filled in by the test.
#[derive(Clone, Default)]
pub struct Watched(Arc<Mutex<Vec<Dump>>>);

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Watched {
    /// Looks at one thing more. `dump` must touch no managed memory.
    pub fn add(&self, dump: Dump) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(dump);
    }

    /// Prints everything. Each thing by a thread of its own, because looking may hang as well.
    #[expect(clippy::print_stderr, reason = "it is what the dump is for")]
    fn dump(&self) {
        for dump in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let (done, wait) = mpsc::channel();
            std::thread::spawn(move || done.send(dump()));
            match wait.recv_timeout(Duration::from_secs(2)) {
                Ok(text) => eprintln!("{text}"),
                Err(_) => eprintln!("(looking hangs, too: a block's lock is held)"),
            }
        }
    }
}

/// Runs the test on a thread of its own, which has so long.
///
/// # Panics
/// If the test does, or if the time is over: then after everything that is watched was printed.
pub fn within(limit: Duration, name: &str, test: impl FnOnce(&Watched) + Send + 'static) {
    let watched = Watched::default();
    let (done, wait) = mpsc::channel();
    let thread = {
        let watched = watched.clone();
        std::thread::spawn(move || {
            test(&watched);
            let _ = done.send(());
        })
    };
    match wait.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            watched.dump();
            panic!("{name} hangs for {limit:?}");
        }
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The states of a range, equal ones together.
pub fn states(space: &AddressSpace, range: PageRange) -> String {
    let mut text = format!("states of {range:?}:");
    let mut last: Option<String> = None;
    for (number, page) in range.iter().enumerate() {
        let state = name_of(space.state(page));
        if last.as_ref() != Some(&state) {
            text.push_str(&format!(" {number}:{state}"));
            last = Some(state);
        }
    }
    text
}

fn name_of(state: PageState) -> String {
    match state {
        PageState::None => "none".into(),
        PageState::System { .. } => "system".into(),
        PageState::Fetching { ticket, .. } => format!("fetching({ticket:?})"),
        PageState::Dropped { ticket, .. } => format!("dropped({ticket:?})"),
        PageState::Staged { .. } => "staged".into(),
        PageState::Storing { .. } => "storing".into(),
        PageState::Device { frame } => format!("device{}", frame.device),
        PageState::Coherent { frame, .. } => format!("coherent{}", frame.device),
        PageState::Exclusive { .. } => "exclusive".into(),
        PageState::Poisoned => "poisoned".into(),
    }
}
