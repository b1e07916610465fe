//! What the tests of the library share.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use hmm::AddressSpace;
use hmm::device::Device;

pub(crate) const MIB: usize = 1 << 20;

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

/// An address space with a budget of `ram` bytes.
pub(crate) fn space(ram: usize, device: Arc<dyn Device>) -> AddressSpace {
    AddressSpace::builder().ram(ram as u64).device(device).build().expect("userfaultfd can be had")
}
