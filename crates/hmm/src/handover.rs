//! Descriptors on their way from one process to another, over a socket: a message of a few bytes each, with a descriptor or
//! without.

use std::os::fd::{AsFd, BorrowedFd};

use hmm_uapi::{Errno, Fd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Sends some bytes, with a descriptor or without.
///
/// # Errors
/// What `sendmsg(2)` says; then there is nobody any more who would read it, or not soon.
pub fn send(end: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    let data = [rustix::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(end, &data, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Waits for a message, if the socket waits: how many bytes there are in `bytes` then, none if there is nobody any more who could
/// send some; and the descriptor that came along.
///
/// # Errors
/// What `recvmsg(2)` says; `EAGAIN`: there is none yet.
pub fn receive(end: impl AsFd, bytes: &mut [u8]) -> Result<(usize, Option<Fd>), Errno> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [rustix::io::IoSliceMut::new(bytes)];
    let message = rustix::net::recvmsg(end, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None }
    });
    Ok((message.bytes, fd.map(Fd::from)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_come_with_a_descriptor_and_without() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut bytes = [0; 8];
        send(&one, b"ab", None).unwrap();
        assert!(matches!(receive(&other, &mut bytes), Ok((2, None))));
        send(&one, b"c", Some(one.as_fd())).unwrap();
        let (len, fd) = receive(&other, &mut bytes).unwrap();
        assert_eq!((len, &bytes[..2], fd.is_some()), (1, &b"cb"[..], true));
        drop((one, fd));
        assert!(matches!(receive(&other, &mut bytes), Ok((0, None))));
    }
}
