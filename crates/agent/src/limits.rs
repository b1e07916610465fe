//! Limits that the program sets to its own memory (`RLIMIT_AS`, `RLIMIT_DATA`) are for what is its own.
//!
//! hmm has reserved gigabytes of addresses in it, and the kernel counts those: a program that allows itself one gigabyte could
//! not map a page more. So what is set is raised by as much as our start took, and what was set so is told as the program has
//! said it. What was set before the program was executed is told as it is.

use std::ffi::c_int;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hmm::uapi::Errno;

use crate::errno::failed;
use crate::next::Next;

type Prlimit = unsafe extern "C" fn(libc::pid_t, c_int, *const libc::rlimit, *mut libc::rlimit) -> c_int;

// SAFETY: the type is that of prlimit(2).
static PRLIMIT: Next<Prlimit> = unsafe { Next::new(c"prlimit", missing) };

unsafe extern "C" fn missing(
    _: libc::pid_t,
    _: c_int,
    _: *const libc::rlimit,
    _: *mut libc::rlimit,
) -> c_int {
    failed(Errno::NOSYS)
}

/// A limit that our memory counts for.
struct Limit {
    /// Bytes of ours; 0 until we are there.
    own: AtomicU64,
    /// Whether the program has set it.
    is_set: AtomicBool,
}

static ADDRESSES: Limit = Limit { own: AtomicU64::new(0), is_set: AtomicBool::new(false) };
static DATA: Limit = Limit { own: AtomicU64::new(0), is_set: AtomicBool::new(false) };

/// Looks up what we stand in front of.
pub(crate) fn install() {
    PRLIMIT.get();
}

/// What our threads in children may need later.
const ROOM: u64 = 16 << 20;

/// What the process has mapped, in bytes, and what of that is private and writable. Allocates nothing: our allocator's memory
/// is among what is looked for.
pub(crate) fn sizes() -> [u64; 2] {
    let mut text = [0; 256];
    let len = File::open("/proc/self/statm").and_then(|mut file| file.read(&mut text)).unwrap_or(0);
    let text = std::str::from_utf8(&text[..len]).unwrap_or_default();
    [0, 5].map(|field| {
        let nr_pages = text.split_ascii_whitespace().nth(field).and_then(|word| word.parse::<u64>().ok());
        nr_pages.map_or(0, |nr| nr * 4096)
    })
}

/// Takes note of what our start has taken, by the [sizes] before it.
pub(crate) fn note_own([addresses, data]: [u64; 2]) {
    let [addresses_now, data_now] = sizes();
    ADDRESSES.own.store(addresses_now.saturating_sub(addresses) + ROOM, Ordering::Relaxed);
    DATA.own.store(data_now.saturating_sub(data) + ROOM, Ordering::Relaxed);
}

/// What is a limit at all, changed.
fn changed(limit: libc::rlimit, change: impl Fn(u64) -> u64) -> libc::rlimit {
    let change = |bytes| if bytes == libc::RLIM_INFINITY { bytes } else { change(bytes) };
    libc::rlimit { rlim_cur: change(limit.rlim_cur), rlim_max: change(limit.rlim_max) }
}

impl Limit {
    /// The one of that name in this process, if there is any of ours in it.
    fn of(pid: libc::pid_t, resource: c_int) -> Option<&'static Self> {
        let limit = match resource.cast_unsigned() {
            libc::RLIMIT_AS => &ADDRESSES,
            libc::RLIMIT_DATA => &DATA,
            _ => return None,
        };
        let is_here = pid == 0 || pid == hmm::uapi::sys::getpid();
        (is_here && limit.own.load(Ordering::Relaxed) > 0).then_some(limit)
    }

    fn raised(&self, limit: libc::rlimit) -> libc::rlimit {
        changed(limit, |bytes| bytes.saturating_add(self.own.load(Ordering::Relaxed)))
    }

    /// What the program is told of the kernel's.
    fn told(&self, limit: libc::rlimit) -> libc::rlimit {
        let own = if self.is_set.load(Ordering::Relaxed) { self.own.load(Ordering::Relaxed) } else { 0 };
        changed(limit, |bytes| bytes.saturating_sub(own))
    }

    /// Sets it, raised; only as far as may be, if the program may set what it has said.
    fn set(&self, wanted: libc::rlimit, resource: c_int) -> c_int {
        let raised = self.raised(wanted);
        // SAFETY: reads the limit.
        let mut result = unsafe { PRLIMIT.get()(0, resource, &raw const raised, std::ptr::null_mut()) };
        if result != 0 {
            let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: writes to the place.
            let got = unsafe { PRLIMIT.get()(0, resource, std::ptr::null(), &raw mut now) };
            let told = self.told(now);
            if got == 0 && wanted.rlim_cur <= wanted.rlim_max && wanted.rlim_max <= told.rlim_max {
                let at_most = |bytes: u64| bytes.min(now.rlim_max);
                let (rlim_cur, rlim_max) = (at_most(raised.rlim_cur), at_most(raised.rlim_max));
                let most = libc::rlimit { rlim_cur, rlim_max };
                // SAFETY: reads the limit.
                result = unsafe { PRLIMIT.get()(0, resource, &raw const most, std::ptr::null_mut()) };
            }
        }
        if result == 0 {
            self.is_set.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// See `prlimit(2)`.
///
/// # Safety
/// As for `prlimit(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit(
    pid: libc::pid_t,
    resource: c_int,
    new: *const libc::rlimit,
    old: *mut libc::rlimit,
) -> c_int {
    let Some(limit) = Limit::of(pid, resource) else {
        // SAFETY: the caller's promise.
        return unsafe { PRLIMIT.get()(pid, resource, new, old) };
    };
    // The old one first: both may be at the same place.
    // SAFETY: the caller's promise.
    let wanted = unsafe { new.as_ref() }.copied();
    // SAFETY: as above.
    if let Some(old) = unsafe { old.as_mut() } {
        // SAFETY: writes to the place.
        let result = unsafe { PRLIMIT.get()(pid, resource, std::ptr::null(), &raw mut *old) };
        if result != 0 {
            return result;
        }
        *old = limit.told(*old);
    }
    wanted.map_or(0, |wanted| limit.set(wanted, resource))
}

/// See `prlimit(2)`.
///
/// # Safety
/// As for `prlimit(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prlimit64(
    pid: libc::pid_t,
    resource: c_int,
    new: *const libc::rlimit,
    old: *mut libc::rlimit,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(pid, resource, new, old) }
}

/// See `setrlimit(2)`.
///
/// # Safety
/// As for `setrlimit(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setrlimit(resource: c_int, new: *const libc::rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, new, std::ptr::null_mut()) }
}

/// See `setrlimit(2)`.
///
/// # Safety
/// As for `setrlimit(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setrlimit64(resource: c_int, new: *const libc::rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, new, std::ptr::null_mut()) }
}

/// See `getrlimit(2)`.
///
/// # Safety
/// As for `getrlimit(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrlimit(resource: c_int, old: *mut libc::rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, std::ptr::null(), old) }
}

/// See `getrlimit(2)`.
///
/// # Safety
/// As for `getrlimit(2)`.
#[expect(unreachable_pub, reason = "called through the dynamic symbol table")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrlimit64(resource: c_int, old: *mut libc::rlimit) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { prlimit(0, resource, std::ptr::null(), old) }
}
