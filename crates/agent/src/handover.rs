//! Descriptors on their way from a process to the child of its fork, over a socket pair: one byte each, with a descriptor or
//! without.

use std::os::fd::{AsFd, BorrowedFd};

use hmm::uapi::Fd;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Sends a descriptor, or that there is none. If it fails there is nobody any more who would read it.
pub(crate) fn send(end: impl AsFd, fd: Option<BorrowedFd<'_>>) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    let data = [rustix::io::IoSlice::new(&[0u8])];
    let _ = rustix::net::sendmsg(end, &data, &mut control, SendFlags::NOSIGNAL);
}

/// Waits for a descriptor. `None` if there is none, or nobody any more who could send one.
pub(crate) fn receive(end: impl AsFd) -> Option<Fd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    let mut data = [rustix::io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(end, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fd = control.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None }
    });
    fd.map(Fd::from)
}
