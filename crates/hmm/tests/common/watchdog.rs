//! A limit on the time that a test takes.

use std::sync::mpsc;
use std::time::Duration;

/// Runs the test on a thread of its own: a fault that is never served must fail the test, not hang it.
pub(crate) fn within(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(seconds)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs for {seconds} s"),
        _ => thread.join().expect("the test's own assertion failed"),
    }
}
