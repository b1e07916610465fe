//! The function that the program would call if we did not stand in front of it.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// Set while a function is looked up, in case that calls one of ours.
static LOOKING: AtomicBool = AtomicBool::new(false);

/// The next definition of a function behind ours: libc's, or that of a library which the program brought along. `F` is
/// the function's type.
pub(crate) struct Next<F> {
    name: &'static CStr,
    /// What to call where there is no other, and while it is being looked up.
    fallback: F,
    found: AtomicPtr<c_void>,
}

impl<F: Copy> Next<F> {
    /// # Safety
    /// Functions of that name have the type `F`, which is a function pointer.
    pub(crate) const unsafe fn new(name: &'static CStr, fallback: F) -> Self {
        assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer");
        Self { name, fallback, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The function. The first call looks it up; it should come before the program has threads.
    pub(crate) fn get(&self) -> F {
        let mut found = self.found.load(Ordering::Acquire);
        if found.is_null() && !LOOKING.swap(true, Ordering::Acquire) {
            // SAFETY: looks a function up by a name that ends with a zero.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.found.store(found, Ordering::Release);
            LOOKING.store(false, Ordering::Release);
        }
        if found.is_null() {
            return self.fallback;
        }
        // SAFETY: a function of that name, whose type is `F` by the contract of `new`.
        unsafe { std::mem::transmute_copy(&found) }
    }
}
