//! Functions of libc that the agent stands in front of, to learn of new memory before the program uses much of it.
//!
//! They are a short cut, not the source of truth: the control thread finds by itself what comes about otherwise. But what is
//! found so was touched before it could be charged. Therefore whoever maps memory waits until it is managed.
//!
//! libc's own calls of `mmap` and `brk` come here, too (`bodies`). Where they do not, the functions of `malloc` notice what
//! they can: each calls the program's own and then looks whether the heap has grown, or the block lies in a part of the
//! address space not seen before. By then parts of it may have been touched.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use hmm::core::notifier::Cause;
use hmm::uapi::{AddrRange, Errno};

use crate::announce::around;
use crate::errno::failed;
use crate::mailbox::MAILBOX;
use crate::next::Next;
use crate::{MANAGED, bodies, brk, inherit, withhold};

/// Blocks from here on may have a mapping of their own: glibc's smallest threshold is larger.
const LARGE_BYTES: usize = 64 << 10;
/// glibc's secondary heaps are aligned to their size, 64 MiB.
const HEAP_SHIFT: u32 = 26;
/// Of Linux 6.13.
const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;
const NR_HEAPS: usize = 1 << (47 - HEAP_SHIFT);

/// One bit for each 64 MiB of addresses in which a small block was seen.
static SEEN: [AtomicU8; NR_HEAPS / 8] = [const { AtomicU8::new(0) }; NR_HEAPS / 8];
static LAST_BREAK: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

type Malloc = unsafe extern "C" fn(usize) -> *mut c_void;
type TwoSizes = unsafe extern "C" fn(usize, usize) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;

// The allocator is the program's: one that it brought along has a `free` that knows nothing of glibc's blocks.
// SAFETY: the type is that of malloc(3).
static MALLOC: Next<Malloc> = unsafe { Next::new(c"malloc", __libc_malloc) };
// SAFETY: the type is that of calloc(3).
static CALLOC: Next<TwoSizes> = unsafe { Next::new(c"calloc", __libc_calloc) };
// SAFETY: the type is that of realloc(3).
static REALLOC: Next<Realloc> = unsafe { Next::new(c"realloc", __libc_realloc) };
// SAFETY: the type is that of memalign(3).
static MEMALIGN: Next<TwoSizes> = unsafe { Next::new(c"memalign", __libc_memalign) };

/// Looks the program's allocator up, while there is only one thread: two that did it at once would mix allocators.
pub(crate) fn install() {
    MALLOC.get();
    CALLOC.get();
    REALLOC.get();
    MEMALIGN.get();
    crate::dmirror::install();
    crate::thread_end::install();
    crate::references::install();
    crate::rights::install();
    crate::limits::install();
}

/// Tells the control thread of new memory, and waits until it is managed.
pub(crate) fn tell(start: usize, len: usize) {
    if !crate::control::has_budget() {
        return;
    }
    let number = MAILBOX.ask(AddrRange::new(start as u64, len as u64));
    MAILBOX.wait(number);
}

/// Looks at a block that `malloc` returns.
#[inline]
fn check(block: *mut c_void, size: usize) -> *mut c_void {
    if !bodies::are_replaced() && MANAGED.load(Ordering::Relaxed) && !block.is_null() {
        let heap_end = brk::current_break();
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
    // SAFETY: any size is good.
    check(unsafe { MALLOC.get()(size) }, size)
}

/// See `calloc(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    // SAFETY: calloc checks the product.
    check(unsafe { CALLOC.get()(count, size) }, count.saturating_mul(size))
}

/// See `realloc(3)`.
///
/// # Safety
/// `old` is null or a block of `malloc`'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    check(unsafe { REALLOC.get()(old, size) }, size)
}

/// See `memalign(3)`.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    // SAFETY: memalign checks the alignment.
    check(unsafe { MEMALIGN.get()(align, size) }, size)
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

/// See `mmap(2)`. `MAP_POPULATE` is left out where the memory will be managed: what is populated by the kernel is resident
/// before it can be charged. The flag is a wish, which the kernel need not fulfil either.
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
    if crate::dmirror::is_on() {
        // SAFETY: the caller's promise.
        let mapped = unsafe { crate::dmirror::map(addr, len, prot, flags, fd, offset) };
        if let Some(mapped) = mapped {
            return mapped;
        }
    }
    let private = flags & (libc::MAP_ANONYMOUS | libc::MAP_SHARED) == libc::MAP_ANONYMOUS;
    let managed = private && MANAGED.load(Ordering::Relaxed) && crate::control::has_budget();
    let flags = if managed { flags & !libc::MAP_POPULATE } else { flags };
    let map = || {
        // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
        unsafe { libc::syscall(libc::SYS_mmap, addr, len, prot, flags, fd, offset) }
    };
    // What was there before goes.
    let replaces = flags & libc::MAP_FIXED != 0;
    let result: c_long = if replaces { around(addr.addr(), len, Cause::Unmap, map) } else { map() };
    if managed && result != -1 {
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
/// may or may not free later cannot be accounted for. Guard pages there are none, as in Linux before 6.13: a verb that
/// fills a hole fills a guard, too, and nobody would notice.
///
/// # Safety
/// As of `madvise(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    let managed = MANAGED.load(Ordering::Relaxed);
    if managed && matches!(advice, MADV_GUARD_INSTALL | MADV_GUARD_REMOVE) {
        return failed(Errno::INVAL);
    }
    inherit::note(advice);
    let lazy = advice == libc::MADV_FREE && managed;
    let advice = if lazy { libc::MADV_DONTNEED } else { advice };
    let advise = || {
        // SAFETY: the system call, with the caller's arguments; libc's wrapper sets errno.
        unsafe { libc::syscall(libc::SYS_madvise, addr, len, advice) }
    };
    let takes_pages = matches!(advice, libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE);
    let result = if takes_pages { around(addr.addr(), len, Cause::Clear, advise) } else { advise() };
    if result == 0 {
        withhold::tell(addr.addr(), len, advice);
    }
    c_int::try_from(result).unwrap_or(-1)
}
