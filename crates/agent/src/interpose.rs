//! Functions of libc that the agent stands in front of, to learn of new memory before the program uses much of it.
//!
//! They are a short cut, not the source of truth: the control thread finds by itself what comes about otherwise. glibc's
//! `malloc` maps memory without calling `mmap`, so its entry points are covered, too: each calls the program's own and then
//! looks whether the heap has grown, or the block lies in a part of the address space not seen before. That costs two
//! loads and two comparisons where nothing is new.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{CStr, c_int, c_long, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use hmm::core::kernel::Kernel;
use hmm::uapi::AddrRange;

use crate::MANAGED;
use crate::control::runtime;
use crate::mailbox::MAILBOX;

/// Blocks from here on may have a mapping of their own: glibc's smallest threshold is larger.
const LARGE_BYTES: usize = 64 << 10;
/// New memory of this size is waited for, and any when memory is short; else it is managed soon.
const WAIT_BYTES: u64 = 1 << 20;
/// glibc's secondary heaps are aligned to their size, 64 MiB.
const HEAP_SHIFT: u32 = 26;
const NR_HEAPS: usize = 1 << (47 - HEAP_SHIFT);

/// One bit for each 64 MiB of addresses in which a small block was seen.
static SEEN: [AtomicU8; NR_HEAPS / 8] = [const { AtomicU8::new(0) }; NR_HEAPS / 8];
static LAST_BREAK: AtomicUsize = AtomicUsize::new(0);

/// A function of the allocator that the program would use without us: glibc's, or one that it brought along, whose `free`
/// knows nothing of glibc's blocks.
struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

/// Set while a function is looked up, in case that allocates.
static LOOKING: AtomicBool = AtomicBool::new(false);

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The function; null while it is being looked up.
    fn get(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Acquire);
        if !found.is_null() || LOOKING.swap(true, Ordering::Acquire) {
            return found;
        }
        // SAFETY: looks a function up by a name that ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.found.store(found, Ordering::Release);
        LOOKING.store(false, Ordering::Release);
        found
    }
}

static NEXT_MALLOC: Next = Next::new(c"malloc");
static NEXT_CALLOC: Next = Next::new(c"calloc");
static NEXT_REALLOC: Next = Next::new(c"realloc");
static NEXT_MEMALIGN: Next = Next::new(c"memalign");

unsafe extern "C" {
    static __curbrk: *mut c_void;
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

/// Tells the control thread of new memory.
fn tell(start: usize, len: usize) {
    let range = AddrRange::new(start as u64, len as u64);
    let number = MAILBOX.ask(range);
    let is_short = runtime().is_none_or(|runtime| {
        let engine = runtime.engine();
        engine.free_pages() < engine.kernel().ledger().budget() / 4
    });
    if range.len() >= WAIT_BYTES || is_short {
        MAILBOX.wait(number);
    }
}

/// Looks at a block that `malloc` returns.
#[inline]
fn check(block: *mut c_void, size: usize) -> *mut c_void {
    if MANAGED.load(Ordering::Relaxed) && !block.is_null() {
        // SAFETY: glibc's own variable, a word that is read whole.
        let heap_end = unsafe { std::ptr::addr_of!(__curbrk).read() }.addr();
        if heap_end != LAST_BREAK.load(Ordering::Relaxed) || size >= LARGE_BYTES {
            new_memory(block, size, heap_end);
        } else {
            check_heap(block.addr());
        }
    }
    block
}

#[inline]
fn check_heap(addr: usize) {
    let heap = addr >> HEAP_SHIFT;
    let bit = 1 << (heap % 8);
    let Some(byte) = SEEN.get(heap / 8) else { return };
    if byte.load(Ordering::Relaxed) & bit == 0 {
        byte.fetch_or(bit, Ordering::Relaxed);
        tell(addr, 1);
    }
}

#[cold]
fn new_memory(block: *mut c_void, size: usize, heap_end: usize) {
    let before = LAST_BREAK.swap(heap_end, Ordering::Relaxed);
    if heap_end > before {
        let grown = if before == 0 { 1 } else { heap_end - before };
        tell(heap_end - grown, grown);
    }
    if size >= LARGE_BYTES {
        tell(block.addr(), size);
    }
}

/// See `malloc(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    let next = NEXT_MALLOC.get();
    let block = if next.is_null() {
        // SAFETY: glibc's malloc, for which any size is good.
        unsafe { __libc_malloc(size) }
    } else {
        // SAFETY: the function of that name has this type.
        let next: extern "C" fn(usize) -> *mut c_void = unsafe { std::mem::transmute(next) };
        next(size)
    };
    check(block, size)
}

/// See `calloc(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let next = NEXT_CALLOC.get();
    let block = if next.is_null() {
        // SAFETY: glibc's calloc, which checks the product.
        unsafe { __libc_calloc(count, size) }
    } else {
        // SAFETY: the function of that name has this type.
        let next: extern "C" fn(usize, usize) -> *mut c_void = unsafe { std::mem::transmute(next) };
        next(count, size)
    };
    check(block, count.saturating_mul(size))
}

/// See `realloc(3)`.
///
/// # Safety
/// `old` is null or a block of `malloc`'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    let next = NEXT_REALLOC.get();
    let block = if next.is_null() {
        // SAFETY: the caller's promise.
        unsafe { __libc_realloc(old, size) }
    } else {
        // SAFETY: the function of that name has this type.
        let next: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void =
            unsafe { std::mem::transmute(next) };
        // SAFETY: the caller's promise.
        unsafe { next(old, size) }
    };
    check(block, size)
}

/// See `memalign(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    let next = NEXT_MEMALIGN.get();
    let block = if next.is_null() {
        // SAFETY: glibc's memalign, which checks the alignment.
        unsafe { __libc_memalign(align, size) }
    } else {
        // SAFETY: the function of that name has this type.
        let next: extern "C" fn(usize, usize) -> *mut c_void = unsafe { std::mem::transmute(next) };
        next(align, size)
    };
    check(block, size)
}

/// See `aligned_alloc(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    memalign(align, size)
}

/// See `posix_memalign(3)`.
///
/// # Safety
/// `block` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(block: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    let result = memalign(align, size);
    if result.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { block.write(result) };
    0
}

/// See `mmap(2)`.
///
/// # Safety
/// As of `mmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
    let result: c_long = unsafe { libc::syscall(libc::SYS_mmap, addr, len, prot, flags, fd, offset) };
    let private = flags & (libc::MAP_ANONYMOUS | libc::MAP_SHARED) == libc::MAP_ANONYMOUS;
    if private && result != -1 && MANAGED.load(Ordering::Relaxed) {
        tell(addr_of(result), len);
    }
    std::ptr::with_exposed_provenance_mut(addr_of(result))
}

#[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits here")]
const fn addr_of(result: c_long) -> usize {
    result.cast_unsigned() as usize
}

/// See `mmap(2)`.
///
/// # Safety
/// As of `mmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the same function on 64-bit systems.
    unsafe { mmap(addr, len, prot, flags, fd, offset) }
}

/// See `madvise(2)`. `MADV_FREE` becomes `MADV_DONTNEED`: it allows that the pages are gone at once, and what the kernel
/// may or may not free later cannot be accounted for.
///
/// # Safety
/// As of `madvise(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    let lazy = advice == libc::MADV_FREE && MANAGED.load(Ordering::Relaxed);
    let advice = if lazy { libc::MADV_DONTNEED } else { advice };
    // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
    let result = unsafe { libc::syscall(libc::SYS_madvise, addr, len, advice) };
    c_int::try_from(result).unwrap_or(-1)
}
