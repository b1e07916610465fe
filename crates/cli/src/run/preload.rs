//! The agent's library: part of this binary, handed to the program as a memory file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags};

/// Built by `build.rs`.
pub(super) const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libhmm_agent.so"));

/// What the dynamic linker reads.
pub(super) const PRELOAD_ENV: &str = "LD_PRELOAD";

/// A memory file with the library in it, which nobody can change.
pub(super) fn library() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // The flag keeps the file from being executed, not from being mapped as code. Kernels before 6.3 do not know it,
    // some administrators insist on it.
    let fd = rustix::fs::memfd_create(c"libhmm_agent.so", flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(c"libhmm_agent.so", flags))?;
    let mut file = File::from(fd);
    file.write_all(LIBRARY)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// How other processes reach a descriptor of this one, as long as it lives.
///
/// # Errors
/// `/proc` is missing, or is that of other processes than ours.
pub(super) fn path_of(fd: &OwnedFd) -> io::Result<PathBuf> {
    let path = path_from(std::process::id(), fd.as_raw_fd());
    let seen = rustix::fs::stat(&path)?;
    let mine = rustix::fs::fstat(fd)?;
    if (seen.st_dev, seen.st_ino) == (mine.st_dev, mine.st_ino) {
        Ok(path)
    } else {
        Err(io::Error::other(format!("{} is another process's", path.display())))
    }
}

fn path_from(pid: u32, fd: RawFd) -> PathBuf {
    format!("/proc/{pid}/fd/{fd}").into()
}

/// The value of `LD_PRELOAD`: ours first, then what was there.
pub(super) fn with_inherited(library: &OsStr, inherited: Option<OsString>) -> OsString {
    let mut value = library.to_owned();
    if let Some(rest) = inherited.filter(|rest| !rest.is_empty()) {
        value.push(":");
        value.push(rest);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_an_elf_file_that_stays_as_it_is() {
        let fd = library().unwrap();
        let path = path_of(&fd).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert!(content.starts_with(b"\x7fELF"));
        assert_eq!(content, LIBRARY);
        assert!(File::options().append(true).open(&path).and_then(|mut file| file.write_all(b"x")).is_err());
    }

    #[test]
    fn what_was_preloaded_before_stays() {
        let ours = OsStr::new("/proc/1/fd/3");
        assert_eq!(with_inherited(ours, None), "/proc/1/fd/3");
        assert_eq!(with_inherited(ours, Some("".into())), "/proc/1/fd/3");
        assert_eq!(with_inherited(ours, Some("a.so:b.so".into())), "/proc/1/fd/3:a.so:b.so");
    }
}
