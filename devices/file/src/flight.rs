//! Requests on their way. All are given to the kernel at once, where it takes more than one, and awaited one by one, in any order:
//! what one has brought is made use of while the others are under way.

use hmm_device::DeviceError;

use crate::queue::Queue;
use crate::transfer::{Requests, Stretch};

/// See the module. It ends when the kernel has ended with all of their buffers.
pub(crate) struct Flight<'f, 'b> {
    queue: &'f mut Queue,
    requests: Requests<'b>,
    /// Requests that the kernel has.
    nr_out: usize,
}

/// Has requests on their way while `during` is called; waits for all of them in any case.
pub(crate) fn fly<R>(
    queue: &mut Queue,
    mut requests: Requests<'_>,
    during: impl FnOnce(&mut Flight<'_, '_>) -> R,
) -> R {
    // One alone costs less without.
    let nr_out = if requests.len() > 1 {
        // SAFETY: buffers and files are borrowed by `requests`, which the flight has; nobody but this function can end or lose it, and it
        // does not end before it has reaped as many.
        unsafe { queue.submit(&mut requests) }
    } else {
        0
    };
    during(&mut Flight { queue, requests, nr_out })
}

impl Flight<'_, '_> {
    /// Waits until something is transferred.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn wait(&mut self, stretch: Stretch) -> Result<(), DeviceError> {
        if stretch.is_empty() {
            return Ok(());
        }
        while self.requests.get(stretch.piece).is_some_and(|request| request.is_out) {
            self.reap();
        }
        let request = self.requests.get(stretch.piece).ok_or(DeviceError::Io)?;
        // What the kernel did not take, or not all of it.
        request.finish();
        request.outcome(stretch)
    }

    /// The last bytes of what was awaited, so many.
    pub(crate) fn bytes(&self, stretch: Stretch, len: usize) -> &[u8] {
        self.requests.bytes(stretch, len)
    }

    fn reap(&mut self) {
        self.nr_out -= self.queue.reap(&mut self.requests);
    }
}

impl Drop for Flight<'_, '_> {
    fn drop(&mut self) {
        while self.nr_out > 0 {
            self.reap();
        }
    }
}
