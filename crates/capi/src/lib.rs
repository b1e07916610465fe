//! The C interface of hmm. What each function does, its errors and units are told once, in `include/hmm.h`.
//!
//! Handles are boxes whose addresses C holds. Every allocation of this library is in memory that is never managed
//! ([`hmm::heap::Private`]), so a device may have any pointer of the program's, its heap included.

#![expect(unreachable_pub, reason = "called from C")]
#![expect(clippy::missing_safety_doc, reason = "the header tells what callers promise")]

mod access;
mod error;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

use hmm::AddressSpace;
use hmm::core::addr::PageRange;
use hmm::core::hints::{Advice, Preferred};
use hmm_soft::Soft;

pub use access::Unit;
use error::{failed, fault_code};

#[global_allocator]
static ALLOCATOR: hmm::heap::Private = hmm::heap::Private;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// `hmm_space`
#[derive(Debug)]
pub struct Space(AddressSpace);

/// `hmm_device`
#[derive(Debug)]
pub struct Device {
    soft: Soft,
    space: AddressSpace,
}

/// `hmm_kernel`
type Kernel = unsafe extern "C" fn(*mut Unit<'_>, *mut c_void) -> c_int;

/// What C hands to a kernel, which runs on several threads.
#[derive(Clone, Copy)]
struct Argument(*mut c_void);

// SAFETY: only the kernel looks at it; who launches it has promised that its units are like threads of the program.
unsafe impl Sync for Argument {}

/// A box's address, or null and the error.
fn handle<T, E: std::fmt::Display>(made: Result<T, E>, code: c_int) -> *mut T {
    match made {
        Ok(made) => Box::into_raw(Box::new(made)),
        Err(error) => {
            failed(code, &error);
            std::ptr::null_mut()
        }
    }
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn hmm_version() -> *const c_char {
    VERSION.as_ptr()
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn hmm_last_error() -> *const c_char {
    error::last()
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub extern "C" fn hmm_space_new() -> *mut Space {
    handle(AddressSpace::builder().build().map(Space), -libc::EPERM)
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_space_free(space: *mut Space) {
    if !space.is_null() {
        // SAFETY: from `hmm_space_new`, and not used any more.
        drop(unsafe { Box::from_raw(space) });
    }
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_soft_new(
    space: *const Space,
    memory_bytes: usize,
    nr_units: c_uint,
) -> *mut Device {
    // SAFETY: from `hmm_space_new`, and not freed yet; or null.
    let Some(Space(space)) = (unsafe { space.as_ref() }) else {
        failed(-libc::EINVAL, &"the space is NULL: give one of hmm_space_new");
        return std::ptr::null_mut();
    };
    let soft = Soft::builder(space).and_then(|builder| {
        builder.memory(memory_bytes).units(usize::try_from(nr_units).unwrap_or(usize::MAX)).build()
    });
    handle(soft.map(|soft| Device { soft, space: space.clone() }), -libc::ENOMEM)
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_device_free(device: *mut Device) {
    if !device.is_null() {
        // SAFETY: from `hmm_soft_new`, and not used any more.
        drop(unsafe { Box::from_raw(device) });
    }
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_launch(
    device: *const Device,
    kernel: Option<Kernel>,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: from `hmm_soft_new`, and not freed yet; or null.
    let (Some(device), Some(kernel)) = (unsafe { device.as_ref() }, kernel) else {
        return failed(-libc::EINVAL, &"the device or the kernel is NULL");
    };
    let argument = Argument(argument);
    let first: Mutex<Option<(c_int, String)>> = Mutex::new(None);
    let run = |unit: &hmm_soft::Unit<'_>| {
        let argument = &argument;
        let mut unit = Unit::new(unit);
        // SAFETY: the kernel's own promises are those of `Soft::launch`, which the caller has given.
        let code = unsafe { kernel(&raw mut unit, argument.0) };
        if code != 0 {
            let why = unit.why(code);
            first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert((code, why));
        }
        Ok(())
    };
    // SAFETY: the caller treats the units as threads of its own, as the header says.
    if let Err(error) = unsafe { device.soft.launch(run) } {
        return failed(-libc::EAGAIN, &error);
    }
    match first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some((code, why)) => failed(code, &why),
        None => 0,
    }
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_prefetch(device: *const Device, start: *const c_void, nr_bytes: usize) -> usize {
    // SAFETY: from `hmm_soft_new`, and not freed yet; or null.
    unsafe { device.as_ref() }.map_or(0, |device| device.soft.prefetch(address(start), nr_bytes))
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_evict(device: *const Device, start: *const c_void, nr_bytes: usize) -> usize {
    // SAFETY: from `hmm_soft_new`, and not freed yet; or null.
    unsafe { device.as_ref() }.map_or(0, |device| device.soft.evict(address(start), nr_bytes))
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_resident_pages(device: *const Device) -> usize {
    // SAFETY: from `hmm_soft_new`, and not freed yet; or null.
    let pages = unsafe { device.as_ref() }.map_or(0, |device| device.soft.resident_pages());
    usize::try_from(pages).unwrap_or(usize::MAX)
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_advise(
    device: *const Device,
    start: *const c_void,
    nr_bytes: usize,
    advice: c_uint,
) -> c_int {
    // SAFETY: from `hmm_soft_new`, and not freed yet; or null.
    let Some(device) = (unsafe { device.as_ref() }) else {
        return failed(-libc::EINVAL, &"the device is NULL: give one of hmm_soft_new");
    };
    let index = device.soft.index();
    let advice = match advice {
        0 => Advice::Nothing,
        1 => Advice::Preferred(Some(Preferred::System)),
        2 => Advice::Preferred(Some(Preferred::Device(index))),
        3 => Advice::ReadMostly(true),
        4 => Advice::AccessedBy(index),
        other => return failed(-libc::EINVAL, &format_args!("{other} is no advice: see enum hmm_advice")),
    };
    let Some(end) = address(start).checked_add(nr_bytes as u64) else {
        return failed(-libc::EINVAL, &"the range ends behind the last address");
    };
    device.space.advise(PageRange::of_bytes(address(start), end), advice);
    0
}

fn address(pointer: *const c_void) -> u64 {
    pointer.expose_provenance() as u64
}
