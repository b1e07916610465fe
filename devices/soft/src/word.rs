//! What a unit loads and stores, and the typed addresses by which it does.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::trap::{self, Trapped};

/// An address of the program, of a value of type `T`. It owns nothing and proves nothing: what a kernel does with it is
/// answered for by who launches the kernel ([`Soft::launch`](crate::Soft::launch)).
///
/// It has the layout of a pointer, so a kernel can load pointers that the program stored.
#[repr(transparent)]
pub struct Ptr<T> {
    addr: u64,
    to: PhantomData<*mut T>,
}

// SAFETY: a number.
unsafe impl<T> Send for Ptr<T> {}
// SAFETY: a number.
unsafe impl<T> Sync for Ptr<T> {}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ptr<T> {}

impl<T> PartialEq for Ptr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.addr == other.addr
    }
}

impl<T> Eq for Ptr<T> {}

impl<T> std::fmt::Debug for Ptr<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ptr({:#x})", self.addr)
    }
}

impl<T> Ptr<T> {
    /// The value at an address.
    pub const fn new(addr: u64) -> Self {
        Self { addr, to: PhantomData }
    }

    /// What a pointer of the program points to.
    pub fn from_raw(pointer: *const T) -> Self {
        Self::new(pointer.expose_provenance() as u64)
    }

    /// The first element of a slice that the kernel reads.
    pub fn of(slice: &[T]) -> Self {
        Self::from_raw(slice.as_ptr())
    }

    /// The first element of a slice that the kernel writes.
    pub fn of_mut(slice: &mut [T]) -> Self {
        Self::from_raw(slice.as_mut_ptr())
    }

    /// The address.
    pub const fn addr(self) -> u64 {
        self.addr
    }

    /// Whether it is the null pointer.
    pub const fn is_null(self) -> bool {
        self.addr == 0
    }

    /// The value so many values behind this one.
    #[inline(always)]
    pub const fn add(self, nr: usize) -> Self {
        Self::new(self.addr.wrapping_add((nr as u64).wrapping_mul(size_of::<T>() as u64)))
    }

    /// The field at an offset (`std::mem::offset_of!`) of the structure that this points to.
    #[inline(always)]
    pub const fn field<F>(self, offset_bytes: usize) -> Ptr<F> {
        Ptr::new(self.addr.wrapping_add(offset_bytes as u64))
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Types that a unit loads and stores at once: numbers of 1, 2, 4 and 8 bytes, and [`Ptr`].
pub trait Word: Copy + sealed::Sealed + 'static {
    /// Loads from a frame of the device.
    ///
    /// # Safety
    /// `at` is aligned, and memory of the device that is accessed atomically only, or by nobody else.
    #[doc(hidden)]
    unsafe fn load(at: *mut u8) -> Self;

    /// Stores to a frame of the device.
    ///
    /// # Safety
    /// As for `load`.
    #[doc(hidden)]
    unsafe fn store(self, at: *mut u8);

    /// Loads from the program's memory, if it is there.
    ///
    /// # Safety
    /// If there is memory, it may be read as a thread of the program would.
    #[doc(hidden)]
    unsafe fn load_system(at: u64) -> Result<Self, Trapped>;

    /// Stores to the program's memory, if it is there.
    ///
    /// # Safety
    /// If there is memory, it may be written as a thread of the program would.
    #[doc(hidden)]
    unsafe fn store_system(self, at: u64) -> Result<(), Trapped>;
}

macro_rules! words {
    ($($word:ty, $atomic:ident, $load:ident, $store:ident,
       |$bits:ident| $from:expr, |$value:ident| $to:expr, [$($generic:ident)?];)+) => {$(
        impl$(<$generic: 'static>)? sealed::Sealed for $word {}

        impl$(<$generic: 'static>)? Word for $word {
            #[inline(always)]
            unsafe fn load(at: *mut u8) -> Self {
                // SAFETY: aligned and valid by the caller; others access it atomically.
                let $bits = unsafe { $atomic::from_ptr(at.cast()) }.load(Ordering::Relaxed);
                $from
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut u8) {
                let $value = self;
                // SAFETY: as for `load`.
                unsafe { $atomic::from_ptr(at.cast()) }.store($to, Ordering::Relaxed);
            }

            #[inline(always)]
            unsafe fn load_system(at: u64) -> Result<Self, Trapped> {
                // SAFETY: promised by the caller.
                unsafe { trap::$load(at) }.map(|$bits| $from)
            }

            #[inline(always)]
            unsafe fn store_system(self, at: u64) -> Result<(), Trapped> {
                let $value = self;
                // SAFETY: promised by the caller.
                unsafe { trap::$store(at, $to) }
            }
        }
    )+};
}

words! {
    u8, AtomicU8, load_u8, store_u8, |bits| bits, |value| value, [];
    i8, AtomicU8, load_u8, store_u8, |bits| bits.cast_signed(), |value| value.cast_unsigned(), [];
    u16, AtomicU16, load_u16, store_u16, |bits| bits, |value| value, [];
    i16, AtomicU16, load_u16, store_u16, |bits| bits.cast_signed(), |value| value.cast_unsigned(), [];
    u32, AtomicU32, load_u32, store_u32, |bits| bits, |value| value, [];
    i32, AtomicU32, load_u32, store_u32, |bits| bits.cast_signed(), |value| value.cast_unsigned(), [];
    f32, AtomicU32, load_u32, store_u32, |bits| f32::from_bits(bits), |value| value.to_bits(), [];
    u64, AtomicU64, load_u64, store_u64, |bits| bits, |value| value, [];
    i64, AtomicU64, load_u64, store_u64, |bits| bits.cast_signed(), |value| value.cast_unsigned(), [];
    f64, AtomicU64, load_u64, store_u64, |bits| f64::from_bits(bits), |value| value.to_bits(), [];
    Ptr<T>, AtomicU64, load_u64, store_u64, |bits| Ptr::new(bits), |value| value.addr, [T];
}

/// Words with atomic operations, for the CPU and for devices: `u32` and `u64`.
pub trait AtomicWord: Word + PartialEq {
    /// Changes a frame's word; what it was before.
    ///
    /// # Safety
    /// As [`Word::load`].
    #[doc(hidden)]
    unsafe fn change(at: *mut u8, change: Change<Self>) -> Self;

    /// Changes a word of the program's memory, if it is there; what it was before.
    ///
    /// # Safety
    /// As [`Word::store_system`].
    #[doc(hidden)]
    unsafe fn change_system(at: u64, change: Change<Self>) -> Result<Self, Trapped>;
}

/// An atomic change.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub enum Change<W> {
    /// Adds, wrapping.
    Add(W),
    /// Replaces.
    Swap(W),
    /// Replaces what is expected.
    Cas { expected: W, value: W },
}

macro_rules! atomic_words {
    ($($word:ty, $atomic:ident, $add:ident, $swap:ident, $cas:ident;)+) => {$(
        impl AtomicWord for $word {
            #[inline(always)]
            unsafe fn change(at: *mut u8, change: Change<Self>) -> Self {
                // SAFETY: aligned and valid by the caller; others access it atomically.
                let word = unsafe { $atomic::from_ptr(at.cast()) };
                match change {
                    Change::Add(value) => word.fetch_add(value, Ordering::AcqRel),
                    Change::Swap(value) => word.swap(value, Ordering::AcqRel),
                    Change::Cas { expected, value } => word
                        .compare_exchange(expected, value, Ordering::AcqRel, Ordering::Acquire)
                        .unwrap_or_else(|found| found),
                }
            }

            #[inline(always)]
            unsafe fn change_system(at: u64, change: Change<Self>) -> Result<Self, Trapped> {
                match change {
                    // SAFETY: promised by the caller.
                    Change::Add(value) => unsafe { trap::$add(at, value) },
                    // SAFETY: promised by the caller.
                    Change::Swap(value) => unsafe { trap::$swap(at, value) },
                    // SAFETY: promised by the caller.
                    Change::Cas { expected, value } => unsafe { trap::$cas(at, expected, value) },
                }
            }
        }
    )+};
}

atomic_words! {
    u32, AtomicU32, add_u32, swap_u32, cas_u32;
    u64, AtomicU64, add_u64, swap_u64, cas_u64;
}
