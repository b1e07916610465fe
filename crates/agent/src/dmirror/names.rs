//! Names: of the devices, as programs open them, and of the sockets that lead to them.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use hmm::uapi::Errno;
use hmm_dmirror::Number;
use rustix::net::SocketAddrUnix;

/// What the paths of all devices begin with.
const PATH: &[u8] = b"/dev/hmm_dmirror";
/// What the names of their sockets begin with; the number of the device follows.
const SOCKET: &[u8] = b"hmm-dmirror";
/// Prefix, device, two numbers of eight hexadecimal digits.
const NAME_BYTES: usize = SOCKET.len() + 1 + 2 * 9;

/// The process whose listeners these are, and which of the names it could have: a process that had the same number before
/// may have left sockets behind in others.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static TRY: AtomicU32 = AtomicU32::new(0);

/// The device that a path names.
pub(super) fn device_of_path(path: &CStr) -> Option<Number> {
    match path.to_bytes().strip_prefix(PATH)? {
        [digit @ b'0'..=b'9'] => Number::new(digit - b'0'),
        _ => None,
    }
}

/// The device that a descriptor leads to.
pub(super) fn device_of(fd: BorrowedFd<'_>) -> Option<Number> {
    let peer = SocketAddrUnix::try_from(rustix::net::getpeername(fd).ok()??).ok()?;
    device_of_name(peer.abstract_name()?)
}

fn device_of_name(name: &[u8]) -> Option<Number> {
    match name.strip_prefix(SOCKET)? {
        [digit @ b'0'..=b'9', b'/', ..] if name.len() == NAME_BYTES => Number::new(digit - b'0'),
        _ => None,
    }
}

/// Chooses this process's names, another one each time.
pub(super) fn choose(process: u32) {
    PROCESS.store(process, Ordering::Relaxed);
    TRY.fetch_add(1, Ordering::Relaxed);
}

/// Where this process listens for those who open the device.
pub(super) fn listener(device: Number) -> Result<SocketAddrUnix, Errno> {
    let (process, attempt) = (PROCESS.load(Ordering::Relaxed), TRY.load(Ordering::Relaxed));
    SocketAddrUnix::new_abstract_name(&name(device, process, attempt))
}

fn name(device: Number, process: u32, attempt: u32) -> [u8; NAME_BYTES] {
    let mut name = [b'/'; NAME_BYTES];
    name[..SOCKET.len()].copy_from_slice(SOCKET);
    name[SOCKET.len()] = b'0' + device.get();
    put_hex(&mut name[SOCKET.len() + 2..], process);
    put_hex(&mut name[SOCKET.len() + 11..], attempt);
    name
}

fn put_hex(place: &mut [u8], number: u32) {
    for (byte, shift) in place.iter_mut().zip((0..32).step_by(4).rev()) {
        *byte = b"0123456789abcdef"[(number >> shift) as usize & 0xf];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_devices_have_paths() {
        assert_eq!(device_of_path(c"/dev/hmm_dmirror0"), Number::new(0));
        assert_eq!(device_of_path(c"/dev/hmm_dmirror3"), Number::new(3));
        for path in [c"/dev/hmm_dmirror", c"/dev/hmm_dmirror4", c"/dev/hmm_dmirror01", c"hmm_dmirror0", c""] {
            assert_eq!(device_of_path(path), None, "{path:?}");
        }
    }

    #[test]
    fn a_name_tells_the_device() {
        let two = Number::new(2).expect("a device");
        let name = name(two, 0xab_cdef, 7);
        assert_eq!(name, *b"hmm-dmirror2/00abcdef/00000007");
        assert_eq!(device_of_name(&name), Some(two));
        assert_eq!(device_of_name(b"hmm-dmirror9/00abcdef/00000007"), None);
        assert_eq!(device_of_name(b"hmm-dmirror2/"), None);
        assert_eq!(device_of_name(b"other"), None);
    }
}
