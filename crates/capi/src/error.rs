//! What went wrong, for `hmm_last_error`: one text for each thread.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::fmt::Display;

use hmm_soft::{DeviceFault, Why};

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Notes an error, and returns its code.
pub(crate) fn failed(code: c_int, error: &dyn Display) -> c_int {
    let text = error.to_string().replace('\0', " ");
    LAST.with(|last| last.replace(CString::new(text).unwrap_or_default()));
    code
}

/// The text of the last error of this thread.
pub(crate) fn last() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// The errno of a fault.
pub(crate) fn fault_code(fault: &DeviceFault) -> c_int {
    -match fault.why {
        Why::Permission => libc::EACCES,
        Why::NoMemory => libc::ENOMEM,
        Why::Misaligned => libc::EINVAL,
        // The enum may grow.
        Why::NoMapping | Why::Vanished | _ => libc::EFAULT,
    }
}
