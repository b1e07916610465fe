//! A change of the root directory: the library that is preloaded has another name behind it.
//!
//! In a run of root's it is found in a directory, by programs of every user. Behind `chroot` that is not to be seen; where there is
//! a `/proc`, root's programs find the library by the supervisor's descriptor, as they do in all other runs. So what this
//! program executes from now on is preloaded from there.

use std::ffi::{OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use hmm::door::{DOOR_ENV, LIBRARY_ENV};
use hmm::uapi::Errno;

use crate::errno::failed;
use crate::next::Next;

const PRELOAD_ENV: &str = "LD_PRELOAD";

type Chroot = unsafe extern "C" fn(*const c_char) -> c_int;

// SAFETY: the type is that of chroot(2).
static CHROOT: Next<Chroot> = unsafe { Next::new(c"chroot", missing) };

unsafe extern "C" fn missing(_: *const c_char) -> c_int {
    failed::<c_int>(Errno::NOSYS)
}

/// See `chroot(2)`.
///
/// # Safety
/// As for `chroot(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn chroot(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { CHROOT.get()(path) };
    if result == 0
        && let Some(value) = preload_by_descriptor()
    {
        // SAFETY: libc's own functions may read the environment while it is changed; so may the program's threads only if
        // they keep to them, as after any `setenv(3)`.
        unsafe { std::env::set_var(PRELOAD_ENV, OsStr::from_bytes(&value)) };
    }
    result
}

/// What to preload, if it is another than before.
fn preload_by_descriptor() -> Option<Vec<u8>> {
    let (door, library) = (std::env::var_os(DOOR_ENV)?, std::env::var_os(LIBRARY_ENV)?);
    let preload = std::env::var_os(PRELOAD_ENV)?;
    let len = preload.as_bytes().iter().position(|byte| *byte == b':').unwrap_or(preload.len());
    let (first, rest) = preload.as_bytes().split_at(len);
    let first = Path::new(OsStr::from_bytes(first));
    let is_ours = first.parent() == Path::new(&door).parent();
    (is_ours && !first.exists() && Path::new(&library).exists()).then(|| [library.as_bytes(), rest].concat())
}
