//! What the dynamic linker knows of libc, and of us.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

type Dladdr1 = unsafe extern "C" fn(*const c_void, *mut libc::Dl_info, *mut *mut c_void, c_int) -> c_int;

/// What is known of an address. The numbers are those of dladdr1(3).
#[derive(Clone, Copy, Debug)]
pub(crate) enum About {
    /// The symbol of the library's table: an `Elf64_Sym`.
    Symbol = 1,
    /// The library: what `<link.h>` calls `link_map`.
    Library = 2,
}

/// The handle of libc, which is loaded.
pub(crate) fn libc_handle() -> Option<*mut c_void> {
    // SAFETY: looks for a library that is loaded, by a name that ends with a zero.
    let libc = unsafe { libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    (!libc.is_null()).then_some(libc)
}

/// What is known of an address in a library; it stays as long as the library does.
pub(crate) fn about(address: *const c_void, what: About) -> Option<*mut c_void> {
    // Old versions of libc have it in another library: looked up, so that we can be loaded there, too.
    // SAFETY: looks a function up by a name that ends with a zero.
    let dladdr1 = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"dladdr1".as_ptr()) };
    if dladdr1.is_null() || address.is_null() {
        return None;
    }
    // SAFETY: the type is that of dladdr1(3).
    let dladdr1: Dladdr1 = unsafe { std::mem::transmute(dladdr1) };
    let (mut info, mut known) = (MaybeUninit::<libc::Dl_info>::uninit(), std::ptr::null_mut());
    // SAFETY: writes to the two places.
    let found = unsafe { dladdr1(address, info.as_mut_ptr(), &raw mut known, what as c_int) };
    (found != 0 && !known.is_null()).then_some(known)
}
