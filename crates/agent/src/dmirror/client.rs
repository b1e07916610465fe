//! The caller's side: asks the device thread of whoever opened the device, and waits for the answer.
//!
//! Runs on any thread of any process that has the descriptor, perhaps in a signal handler: nothing here allocates, takes a
//! lock, or touches `errno`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hmm::uapi::Errno;
use hmm_dmirror::Number;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::names;

/// Bytes of a request: what, and two words.
pub(super) const REQUEST_BYTES: usize = 24;
/// Bytes of an answer: an errno, or 0.
pub(super) const ANSWER_BYTES: usize = 4;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A command: the request of the ioctl, and the address of its structure.
    Ioctl { request: u32, addr: u64 },
    /// The descriptor is about to be closed. When the caller has done so he says it over the pair, and hears when whatever
    /// follows from that is done.
    Close,
}

const IOCTL: u64 = 1;
const CLOSE: u64 = 2;

impl Request {
    fn to_bytes(self) -> [u8; REQUEST_BYTES] {
        let words = match self {
            Self::Ioctl { request, addr } => [IOCTL, u64::from(request), addr],
            Self::Close => [CLOSE, 0, 0],
        };
        let mut bytes = [0; REQUEST_BYTES];
        for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *place = word.to_ne_bytes();
        }
        bytes
    }

    /// `None` for what no caller of ours sends.
    pub(super) fn from_bytes(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let word = |index: usize| bytes.as_chunks::<8>().0.get(index).copied().map(u64::from_ne_bytes);
        match (word(0)?, word(1)?, word(2)?) {
            (IOCTL, request, addr) => Some(Self::Ioctl { request: u32::try_from(request).ok()?, addr }),
            (CLOSE, _, _) => Some(Self::Close),
            _ => None,
        }
    }
}

/// Opens a device of this process.
pub(super) fn open(device: Number, close_on_exec: bool) -> Result<OwnedFd, Errno> {
    let flags = if close_on_exec { SocketFlags::CLOEXEC } else { SocketFlags::empty() };
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &names::listener(device)?))?;
    // Reading from the device must not wait for ever: there is nothing to be read.
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Read)?;
    Ok(socket)
}

/// Has a command carried out.
pub(super) fn ioctl(fd: BorrowedFd<'_>, request: u32, addr: u64) -> Result<(), Errno> {
    let pair = ask(fd, Request::Ioctl { request, addr })?;
    answer(&pair)
}

/// Closes a descriptor of a device by `close`. What the end of an open device brings about has happened when this returns.
pub(super) fn close<R>(fd: BorrowedFd<'_>, close: impl FnOnce() -> R) -> R {
    let pair = ask(fd, Request::Close);
    let result = close();
    if let Ok(pair) = pair {
        let closed = rustix::net::send(&pair, &[0], SendFlags::NOSIGNAL);
        if closed.is_ok() {
            let _ = answer(&pair);
        }
    }
    result
}

/// Sends a request, with the way back.
fn ask(fd: BorrowedFd<'_>, request: Request) -> Result<OwnedFd, Errno> {
    let (own, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let fds = [theirs.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let bytes = request.to_bytes();
    let data = [rustix::io::IoSlice::new(&bytes)];
    loop {
        match rustix::net::sendmsg(fd, &data, &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(own),
            Err(Errno::INTR) => {}
            // The program has made the descriptor one that does not wait, which means nothing to a device.
            Err(Errno::AGAIN) => std::thread::yield_now(),
            // Whoever opened the device is gone, and with him the memory that it mirrors.
            Err(_) => return Err(Errno::FAULT),
        }
    }
}

fn answer(pair: &OwnedFd) -> Result<(), Errno> {
    let mut bytes = [0; ANSWER_BYTES];
    let received = rustix::io::retry_on_intr(|| rustix::net::recv(pair, &mut bytes, RecvFlags::empty()));
    match received {
        Ok((_, ANSWER_BYTES)) => match i32::from_ne_bytes(bytes) {
            0 => Ok(()),
            errno => Err(Errno::from_raw_os_error(errno)),
        },
        Ok(_) | Err(_) => Err(Errno::FAULT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_way() {
        for request in [Request::Ioctl { request: 0xc028_4805, addr: u64::MAX }, Request::Close] {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        }
        assert_eq!(Request::from_bytes(&[0; REQUEST_BYTES]), None);
    }
}
