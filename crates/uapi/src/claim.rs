//! Claims on a file: bytes of it that somebody has locked to be read, by a lock that is the open file's, not the process's
//! (`F_OFD_SETLK`, `fcntl(2)`). They need not be there, and nobody is kept from anything: others can ask which are claimed.
//!
//! A claim ends with the last descriptor of the open file that has made it, however its holders end.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;

use crate::syscall::syscall;

/// Claims a byte.
///
/// # Errors
/// `EBADF`: the file is not open to be read. `EINVAL`, `ENOLCK`: the file system has no such locks.
pub fn claim(file: impl AsFd, at: u64) -> Result<(), Errno> {
    ask(file, raw::F_OFD_SETLK, raw::F_RDLCK, &(at..=at)).map(drop)
}

/// Gives a claim up.
///
/// # Errors
/// As for [`claim`].
pub fn give_up(file: impl AsFd, at: u64) -> Result<(), Errno> {
    ask(file, raw::F_OFD_SETLK, raw::F_UNLCK, &(at..=at)).map(drop)
}

/// One of the bytes that are claimed by others than this open file.
///
/// # Errors
/// As for [`claim`].
pub fn any_claimed(file: impl AsFd, bytes: &RangeInclusive<u64>) -> Result<Option<u64>, Errno> {
    let lock = ask(file, raw::F_OFD_GETLK, raw::F_WRLCK, bytes)?;
    Ok((u32::from(lock.l_type.cast_unsigned()) != raw::F_UNLCK).then_some(lock.l_start.cast_unsigned()))
}

/// Makes one of the requests, and gives what the kernel has made of it.
fn ask(file: impl AsFd, request: u32, kind: u32, bytes: &RangeInclusive<u64>) -> Result<raw::flock, Errno> {
    let signed = |number: u64| i64::try_from(number).map_err(|_| Errno::OVERFLOW);
    let (first, last) = (signed(*bytes.start())?, signed(*bytes.end())?);
    let mut lock = raw::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: 0,
        l_start: first,
        l_len: last.checked_sub(first).and_then(|len| len.checked_add(1)).ok_or(Errno::OVERFLOW)?,
        l_pid: 0,
    };
    let place = std::ptr::from_mut(&mut lock).expose_provenance();
    let fd = file.as_fd().as_raw_fd().cast_unsigned() as usize;
    // SAFETY: the call reads and writes the structure that it is given, which lives until it returns.
    unsafe { syscall(raw::__NR_fcntl, [fd, request as usize, place, 0, 0]) }?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_seen_by_others_and_end_with_their_file() {
        let path = std::env::temp_dir().join(format!("hmm-claims-{}", std::process::id()));
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        let [one, other] = [0; 2].map(|_| std::fs::File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        claim(&one, 7).unwrap();
        claim(&other, 1 << 40).unwrap();
        assert_eq!(any_claimed(&file, &(0..=6)), Ok(None));
        assert_eq!(any_claimed(&file, &(0..=1 << 39)), Ok(Some(7)));
        assert_eq!(any_claimed(&file, &(8..=1 << 41)), Ok(Some(1 << 40)));
        assert_eq!(any_claimed(&one, &(0..=100)), Ok(None), "its own");
        let copy = one.try_clone().unwrap();
        drop(one);
        assert_eq!(any_claimed(&file, &(7..=7)), Ok(Some(7)), "there is a descriptor left");
        drop(copy);
        assert_eq!(any_claimed(&file, &(0..=100)), Ok(None));
        give_up(&other, 1 << 40).unwrap();
        assert_eq!(any_claimed(&file, &(0..=1 << 41)), Ok(None));
        assert_eq!(claim(&file, 7), Err(Errno::BADF), "it is not open to be read");
        assert_eq!(claim(&other, 1 << 63), Err(Errno::OVERFLOW));
    }
}
