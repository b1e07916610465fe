//! What a kernel in C accesses memory by.

use std::ffi::{c_char, c_int, c_uint, c_void};

use hmm_soft::{DeviceFault, Ptr, Word};

use crate::fault_code;

/// `hmm_unit`: a compute unit, for as long as a kernel runs on it.
#[derive(Debug)]
pub struct Unit<'d> {
    unit: &'d hmm_soft::Unit<'d>,
    /// The last access that failed.
    fault: Option<DeviceFault>,
}

impl<'d> Unit<'d> {
    pub(crate) fn new(unit: &'d hmm_soft::Unit<'d>) -> Self {
        Self { unit, fault: None }
    }

    /// Why a kernel ended with this code.
    pub(crate) fn why(&self, code: c_int) -> String {
        match self.fault.filter(|fault| fault_code(fault) == code) {
            Some(fault) => fault.to_string(),
            None => format!("the kernel ended with {code} on unit {}", self.unit.id()),
        }
    }

    /// The code of an access.
    fn code<T>(&mut self, result: Result<T, DeviceFault>, then: impl FnOnce(T)) -> c_int {
        match result {
            Ok(value) => {
                then(value);
                0
            }
            Err(fault) => {
                self.fault = Some(fault);
                fault_code(&fault)
            }
        }
    }

    /// Loads a word.
    ///
    /// # Safety
    /// `value` can be written to.
    unsafe fn load<T: Word>(&mut self, from: *const T, value: *mut T) -> c_int {
        let loaded = self.unit.load(Ptr::from_raw(from));
        // SAFETY: the caller's promise.
        self.code(loaded, |loaded| unsafe { value.write(loaded) })
    }

    fn store<T: Word>(&mut self, to: *mut T, value: T) -> c_int {
        let stored = self.unit.store(Ptr::from_raw(to), value);
        self.code(stored, |()| ())
    }
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_unit_id(unit: *const Unit<'_>) -> c_uint {
    // SAFETY: what the kernel was given.
    let unit = unsafe { &*unit };
    c_uint::try_from(unit.unit.id()).unwrap_or(c_uint::MAX)
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_unit_count(unit: *const Unit<'_>) -> c_uint {
    // SAFETY: what the kernel was given.
    let unit = unsafe { &*unit };
    c_uint::try_from(unit.unit.nr_units()).unwrap_or(c_uint::MAX)
}

macro_rules! words {
    ($($word:ty: $load:ident, $store:ident;)+) => {
        $(
            /// See `hmm.h`.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $load(unit: *mut Unit<'_>, from: *const $word, value: *mut $word) -> c_int {
                // SAFETY: what the kernel was given, on its thread.
                let unit = unsafe { &mut *unit };
                // SAFETY: the caller's promise.
                unsafe { unit.load(from, value) }
            }

            /// See `hmm.h`.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $store(unit: *mut Unit<'_>, to: *mut $word, value: $word) -> c_int {
                // SAFETY: what the kernel was given, on its thread.
                let unit = unsafe { &mut *unit };
                unit.store(to, value)
            }
        )+
    };
}

words! {
    u32: hmm_load_u32, hmm_store_u32;
    u64: hmm_load_u64, hmm_store_u64;
    f32: hmm_load_f32, hmm_store_f32;
    f64: hmm_load_f64, hmm_store_f64;
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_load_ptr(
    unit: *mut Unit<'_>,
    from: *const *mut c_void,
    value: *mut *mut c_void,
) -> c_int {
    // SAFETY: a pointer is a word of 64 bits, and the promises are the same.
    unsafe { hmm_load_u64(unit, from.cast(), value.cast()) }
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_store_ptr(
    unit: *mut Unit<'_>,
    to: *mut *mut c_void,
    value: *mut c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe { hmm_store_u64(unit, to.cast(), value.expose_provenance() as u64) }
}

macro_rules! adds {
    ($($word:ty: $add:ident;)+) => {
        $(
            /// See `hmm.h`.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $add(
                unit: *mut Unit<'_>,
                at: *mut $word,
                value: $word,
                before: *mut $word,
            ) -> c_int {
                // SAFETY: what the kernel was given, on its thread.
                let unit = unsafe { &mut *unit };
                let added = unit.unit.fetch_add(Ptr::from_raw(at), value);
                unit.code(added, |was| {
                    if !before.is_null() {
                        // SAFETY: the caller's promise.
                        unsafe { before.write(was) };
                    }
                })
            }
        )+
    };
}

adds! {
    u32: hmm_add_u32;
    u64: hmm_add_u64;
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_read(
    unit: *mut Unit<'_>,
    from: *const c_void,
    into: *mut c_void,
    nr_bytes: usize,
) -> c_int {
    // SAFETY: what the kernel was given, on its thread.
    let unit = unsafe { &mut *unit };
    let read = unit.unit.chunks(Ptr::<u8>::from_raw(from.cast()), nr_bytes, |first, bytes| {
        // SAFETY: `into` has room for all bytes, by the caller.
        let at = unsafe { into.cast::<u8>().add(first) };
        // SAFETY: the same; the copy of a page is nobody else's.
        unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    });
    unit.code(read, |()| ())
}

/// See `hmm.h`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hmm_write(
    unit: *mut Unit<'_>,
    to: *mut c_void,
    bytes: *const c_void,
    nr_bytes: usize,
) -> c_int {
    // SAFETY: what the kernel was given, on its thread.
    let unit = unsafe { &mut *unit };
    let bytes = if nr_bytes == 0 {
        &[]
    } else {
        // SAFETY: the kernel's own memory, which nobody changes meanwhile.
        unsafe { std::slice::from_raw_parts(bytes.cast::<c_char>().cast::<u8>(), nr_bytes) }
    };
    let written = unit.unit.write(Ptr::from_raw(to.cast::<u8>()), bytes);
    unit.code(written, |()| ())
}
