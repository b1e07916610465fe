//! Requests to the file, and how one is carried to its end whatever the kernel does half way.

use hmm_device::{DeviceError, DevicePfn, PAGE_SIZE};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// Pages, and so requests, that are given to the kernel at a time.
pub(crate) const BATCH: usize = 64;

/// One way or the other.
#[derive(Debug)]
pub(crate) enum Buffer<'a> {
    /// From the file.
    Read(&'a mut [u8]),
    /// To the file.
    Write(&'a [u8]),
}

impl<'a> Buffer<'a> {
    fn split_at(self, len: usize) -> (Self, Self) {
        match self {
            Self::Read(bytes) => {
                let (front, back) = bytes.split_at_mut(len);
                (Self::Read(front), Self::Read(back))
            }
            Self::Write(bytes) => {
                let (front, back) = bytes.split_at(len);
                (Self::Write(front), Self::Write(back))
            }
        }
    }

    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Read(bytes) => bytes.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }
}

/// Neighbouring frames.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) offset: u64,
    pub(crate) buffer: Buffer<'a>,
    /// Bytes that are transferred.
    pub(crate) done: usize,
    /// What the kernel said instead of going on.
    pub(crate) error: Option<Errno>,
}

impl Request<'_> {
    /// Transfers what is left. A transfer may be short, and be continued; the file may end where it did not before.
    pub(crate) fn finish(&mut self, file: BorrowedFd<'_>) {
        while self.done < self.buffer.len() && self.error.is_none() {
            let at = self.offset + self.done as u64;
            let moved = match &mut self.buffer {
                Buffer::Read(bytes) => rustix::io::pread(file, &mut bytes[self.done..], at),
                Buffer::Write(bytes) => rustix::io::pwrite(file, &bytes[self.done..], at),
            };
            self.note(moved);
        }
    }

    /// Takes notice of what the kernel says of a transfer of what is left.
    pub(crate) fn note(&mut self, moved: Result<usize, Errno>) {
        match moved {
            // The end of the file.
            Ok(0) => self.error = Some(Errno::NODATA),
            Ok(bytes) => self.done += bytes,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => self.error = Some(error),
        }
    }
}

/// The requests for a batch of frames.
#[derive(Debug)]
pub(crate) struct Requests<'a> {
    requests: [Option<Request<'a>>; BATCH],
    len: usize,
}

impl<'a> Requests<'a> {
    /// One for each run of frames that follow each other. At most [`BATCH`] frames, with a page of the buffer each.
    pub(crate) fn new(frames: &[DevicePfn], mut buffer: Buffer<'a>) -> Self {
        let mut this = Self { requests: [const { None }; BATCH], len: 0 };
        let mut frames = frames;
        while let Some(DevicePfn(first)) = frames.first().copied()
            && this.len < BATCH
        {
            let follows =
                |(index, pfn): (usize, &DevicePfn)| u64::from(pfn.0) == u64::from(first) + index as u64;
            let nr_pages = frames.iter().enumerate().take_while(|place| follows(*place)).count();
            let (part, rest) = buffer.split_at(nr_pages * PAGE_SIZE);
            let offset = u64::from(first) * PAGE_SIZE as u64;
            this.requests[this.len] = Some(Request { offset, buffer: part, done: 0, error: None });
            this.len += 1;
            (buffer, frames) = (rest, &frames[nr_pages..]);
        }
        this
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&mut self, index: usize) -> Option<&mut Request<'a>> {
        self.requests.get_mut(index)?.as_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Request<'a>> {
        self.requests.iter_mut().flatten()
    }

    /// How many pages, from the front, are transferred, and why the next is not.
    pub(crate) fn outcome(&self) -> (usize, Option<DeviceError>) {
        let mut nr_pages = 0;
        for request in self.requests.iter().flatten() {
            nr_pages += request.done / PAGE_SIZE;
            if let Some(error) = request.error {
                return (nr_pages, Some(meaning(error)));
            }
        }
        (nr_pages, None)
    }
}

/// What it means for the pages.
fn meaning(error: Errno) -> DeviceError {
    match error {
        Errno::NOSPC | Errno::DQUOT => DeviceError::OutOfMemory,
        Errno::NODEV | Errno::NXIO | Errno::STALE | Errno::SHUTDOWN | Errno::BADF => DeviceError::Lost,
        // The file ends in front of what was written to it.
        Errno::NODATA => DeviceError::Corrupt,
        _ => DeviceError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(numbers: &[u32]) -> Vec<DevicePfn> {
        numbers.iter().copied().map(DevicePfn).collect()
    }

    #[test]
    fn neighbours_are_one_request() {
        let bytes = [0; 6 * PAGE_SIZE];
        let mut requests = Requests::new(&frames(&[3, 4, 5, 9, 8, 9]), Buffer::Write(&bytes));
        let seen: Vec<_> = requests
            .iter_mut()
            .map(|it| (it.offset / PAGE_SIZE as u64, it.buffer.len() / PAGE_SIZE))
            .collect();
        assert_eq!(seen, [(3, 3), (9, 1), (8, 2)]);
        assert_eq!(
            Requests::new(&frames(&[u32::MAX, 0]), Buffer::Write(&bytes)).len(),
            2,
            "no wrapping around"
        );
    }

    #[test]
    fn pages_count_up_to_the_first_that_failed() {
        let bytes = [0; 6 * PAGE_SIZE];
        let mut requests = Requests::new(&frames(&[0, 1, 2, 7, 8, 20]), Buffer::Write(&bytes));
        for (request, moved) in requests.iter_mut().zip([3 * PAGE_SIZE, PAGE_SIZE + 17, PAGE_SIZE]) {
            request.note(Ok(moved));
        }
        requests.iter_mut().nth(1).expect("there are three").note(Err(Errno::NOSPC));
        assert_eq!(requests.outcome(), (4, Some(DeviceError::OutOfMemory)));
    }

    #[test]
    fn an_interruption_is_no_error() {
        let mut requests = Requests::new(&frames(&[0]), Buffer::Write(&[0; PAGE_SIZE]));
        for request in requests.iter_mut() {
            request.note(Err(Errno::INTR));
            assert_eq!((request.done, request.error), (0, None));
            request.note(Ok(0));
        }
        assert_eq!(requests.outcome(), (0, Some(DeviceError::Corrupt)), "the file has ended");
    }
}
