//! What the kernel touches when a thread has ended: it must be resident.
//!
//! As a thread's last act the kernel writes a zero to the word that `pthread_join` waits for, and goes through the mutexes that the
//! thread has left locked (`set_robust_list(2)`). Faults of a thread that ends are no messages: where a page is away the kernel
//! gives up, and who waits there waits for ever (`handle_userfault`, of `PF_EXITING`). So these pages stay:
//!
//! ```text
//!  program's new thread          control thread
//!  keep: ask, poke ----------->  serve: pins the pages of the word, and of the list's head
//!  the thread's own work
//!  its last destructor waits <-  done
//!  brings them home, and the pages of what it has left locked, for which it asks
//! ```
//!
//! A pin goes with the memory, which libc unmaps, or gives to the next thread. On a thread of the program no lock of the engine's
//! may be taken: its stack is managed memory. Nobody asks for threads that are made by a raw system call.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use hmm::core::addr::PageRange;
use hmm::runtime::Runtime;
use hmm::uapi::Errno;
use hmm::uapi::process_vm::read_own;
use hmm::uapi::sys::{Scope, futex_wait, futex_wake};

use crate::MANAGED;
use crate::mailbox::MAILBOX;
use crate::next::Next;

/// The longest that the end of a thread is put off.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often libc calls destructors that want to be called again; others may leave mutexes locked before the last time.
const NR_CALLS: u32 = 4;
/// As many mutexes as the kernel goes through (`ROBUST_LIST_LIMIT`).
const MAX_MUTEXES: usize = 2048;

const NO_KEY: u32 = u32::MAX;
/// What a thread has of its own: its [`Ask`].
static KEY: AtomicU32 = AtomicU32::new(NO_KEY);
/// What is asked for, the latest first.
static ASKED: AtomicPtr<Ask> = AtomicPtr::new(std::ptr::null_mut());

type Routine = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type IntRoutine = unsafe extern "C" fn(*mut c_void) -> c_int;
type Create =
    unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Routine, *mut c_void) -> c_int;
type IntCreate = unsafe extern "C" fn(*mut libc::pthread_t, IntRoutine, *mut c_void) -> c_int;

// SAFETY: the type is that of pthread_create(3).
static CREATE: Next<Create> = unsafe { Next::new(c"pthread_create", no_threads) };
// SAFETY: the type is that of thrd_create(3).
static INT_CREATE: Next<IntCreate> = unsafe { Next::new(c"thrd_create", no_int_threads) };
/// `thrd_error`
const THRD_ERROR: c_int = 2;

unsafe extern "C" fn no_threads(
    _: *mut libc::pthread_t,
    _: *const libc::pthread_attr_t,
    _: Routine,
    _: *mut c_void,
) -> c_int {
    Errno::AGAIN.raw_os_error()
}

const unsafe extern "C" fn no_int_threads(_: *mut libc::pthread_t, _: IntRoutine, _: *mut c_void) -> c_int {
    THRD_ERROR
}

/// Pages that are to stay.
struct Ask {
    next: AtomicPtr<Ask>,
    ranges: [PageRange; 2],
    /// 1 when they are pinned.
    done: AtomicU32,
    /// How often the destructor was called.
    nr_calls: AtomicU32,
}

/// Puts it before the control thread, which reads it until it is done.
fn post(ranges: [PageRange; 2]) -> NonNull<Ask> {
    let (next, done, nr_calls) = (AtomicPtr::default(), AtomicU32::new(0), AtomicU32::new(0));
    let ask = NonNull::from(Box::leak(Box::new(Ask { next, ranges, done, nr_calls })));
    let mut first = ASKED.load(Ordering::Relaxed);
    loop {
        // SAFETY: nobody frees it before it is done.
        unsafe { ask.as_ref() }.next.store(first, Ordering::Relaxed);
        match ASKED.compare_exchange_weak(first, ask.as_ptr(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => first = now,
        }
    }
    MAILBOX.poke();
    ask
}

/// Waits until the pages stay when they are home, and brings them home.
///
/// # Safety
/// It was posted, and is nobody else's.
unsafe fn finish(posted: NonNull<Ask>) {
    // SAFETY: it lives until the end of this function.
    let ask = unsafe { posted.as_ref() };
    while ask.done.load(Ordering::Acquire) == 0 && MAILBOX.is_attended() {
        if futex_wait(&ask.done, Scope::Private, 0, Some(PATIENCE)) == Err(Errno::TIMEDOUT) {
            return;
        }
    }
    for page in ask.ranges.iter().flat_map(|range| range.iter()) {
        // The program may have unmapped it, or have told the kernel nonsense, which that bears.
        let _ = read_own(page.addr(), &mut [0]);
    }
    if ask.done.load(Ordering::Acquire) == 1 {
        // SAFETY: it was leaked by `post`, and the control thread is done with it.
        drop(unsafe { Box::from_raw(posted.as_ptr()) });
    }
}

/// The control thread's side. Gives whether anything was asked for.
pub(crate) fn serve(runtime: &Runtime) -> bool {
    let mut next = ASKED.swap(std::ptr::null_mut(), Ordering::Acquire);
    let any = !next.is_null();
    // SAFETY: what is on the list was posted, and lives until it is done.
    while let Some(ask) = unsafe { next.as_ref() } {
        next = ask.next.load(Ordering::Relaxed);
        ask.ranges.iter().for_each(|range| runtime.engine().pin(*range, true));
        ask.done.store(1, Ordering::Release);
        futex_wake(&ask.done, Scope::Private, 1);
    }
    any
}

/// Before the program has a second thread.
pub(crate) fn install() {
    CREATE.get();
    INT_CREATE.get();
    let mut key = 0;
    // SAFETY: the destructor is what such a function must be, and stays.
    if unsafe { libc::pthread_key_create(&mut key, Some(at_end)) } == 0 {
        KEY.store(key, Ordering::Release);
    }
}

/// Has the calling thread's pages stay from now on.
pub(crate) fn keep() {
    let key = KEY.load(Ordering::Acquire);
    if key == NO_KEY || !MANAGED.load(Ordering::Relaxed) {
        return;
    }
    let ask = post([word(), bytes(head_at(), HEAD_WORDS * size_of::<usize>())]);
    // SAFETY: the key was made; the destructor expects such a value.
    unsafe { libc::pthread_setspecific(key, ask.as_ptr().cast()) };
}

/// The pages of so many bytes; none at 0.
const fn bytes(at: usize, len: usize) -> PageRange {
    let len = if at == 0 { 0 } else { len };
    PageRange::of_bytes(at as u64, (at + len) as u64)
}

/// The word that says that the thread is there. Nothing if the kernel does not tell (`CONFIG_CHECKPOINT_RESTORE`): libc has it
/// beside the list.
fn word() -> PageRange {
    let mut at = 0usize;
    // SAFETY: writes an address to the place given.
    unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &mut at) };
    bytes(at, size_of::<c_int>())
}

/// `struct robust_list_head` of the kernel's: where the list begins, how far a mutex's word is from a link, and what is being locked.
const HEAD_WORDS: usize = 3;

/// Where the thread's list begins; 0 if there is none.
fn head_at() -> usize {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: writes an address and a length to the places given.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &mut head, &mut len) };
    if len == HEAD_WORDS * size_of::<usize>() { head } else { 0 }
}

/// Words at an address of the program's choice: what the kernel reads it may have been told wrongly.
fn words<const NR: usize>(at: usize) -> Option<[usize; NR]> {
    let mut words = [[0; size_of::<usize>()]; NR];
    read_own(at as u64, words.as_flattened_mut()).ok()?;
    Some(words.map(usize::from_ne_bytes))
}

/// Destructor of a thread's value: on that thread, after all that it does, but for other destructors.
unsafe extern "C" fn at_end(value: *mut c_void) {
    let Some(ask) = NonNull::new(value.cast::<Ask>()) else { return };
    // SAFETY: `keep` has set it, and it is freed below only.
    if unsafe { ask.as_ref() }.nr_calls.fetch_add(1, Ordering::Relaxed) + 1 < NR_CALLS {
        // SAFETY: as in `keep`. libc calls us again.
        unsafe { libc::pthread_setspecific(KEY.load(Ordering::Relaxed), value) };
        return;
    }
    // SAFETY: it is this thread's.
    unsafe { finish(ask) };
    keep_mutexes();
}

/// Has the pages of what the thread has left locked stay: who wants them next has to be told that it has ended.
fn keep_mutexes() {
    let at = head_at();
    let Some([first, offset, _]) = words::<HEAD_WORDS>(at) else { return };
    // The lowest bit is a flag.
    let mut link = first & !1;
    for _ in 0..MAX_MUTEXES {
        let word = link.wrapping_add(offset);
        if link == at || read_own(word as u64, &mut [0; size_of::<c_int>()]).is_err() {
            return;
        }
        let Some([next]) = words(link) else { return };
        let ask = post([bytes(link, size_of::<usize>()), bytes(word, size_of::<c_int>())]);
        // SAFETY: just posted.
        unsafe { finish(ask) };
        link = next & !1;
    }
}

/// What a thread begins with: two words, which come back in registers.
#[repr(C)]
struct Begin {
    routine: Routine,
    argument: *mut c_void,
}

impl Begin {
    fn new(routine: Routine, argument: *mut c_void) -> *mut Self {
        Box::into_raw(Box::new(Self { routine, argument }))
    }
}

/// On a new thread, before it begins.
///
/// # Safety
/// `begin` is of [`Begin::new`], and is not used again.
unsafe extern "C" fn prepare(begin: *mut Begin) -> Begin {
    keep();
    // SAFETY: the caller's promise.
    *unsafe { Box::from_raw(begin) }
}

/// Where a thread begins. While it is at what the program wants it to do there is no frame of ours: it may end from anywhere in it
/// (`pthread_exit`, `pthread_cancel`), for which libc unwinds the stack, and through a frame of Rust's there is no way.
///
/// # Safety
/// As of [`prepare`].
#[unsafe(naked)]
unsafe extern "C" fn begin(argument: *mut c_void) -> *mut c_void {
    std::arch::naked_asm!(
        "sub rsp, 8",
        "call {prepare}",
        "add rsp, 8",
        "mov rdi, rdx",
        "jmp rax",
        prepare = sym prepare,
    )
}

/// See `pthread_create(3)`.
///
/// # Safety
/// As of `pthread_create(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    routine: Routine,
    argument: *mut c_void,
) -> c_int {
    let first = Begin::new(routine, argument);
    // SAFETY: the caller's promise; the thread begins with what it expects.
    let status = unsafe { CREATE.get()(thread, attributes, begin, first.cast()) };
    if status != 0 {
        // SAFETY: there is no thread that takes it.
        drop(unsafe { Box::from_raw(first) });
    }
    status
}

/// See `thrd_create(3)`.
///
/// # Safety
/// As of `thrd_create(3)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn thrd_create(
    thread: *mut libc::pthread_t,
    routine: IntRoutine,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: nobody calls it but `begin`, by a jump.
    let first = Begin::new(unsafe { std::mem::transmute::<IntRoutine, Routine>(routine) }, argument);
    // SAFETY: `begin` returns what the routine does, in the register that both types are returned in.
    let begin = unsafe { std::mem::transmute::<Routine, IntRoutine>(begin) };
    // SAFETY: the caller's promise; the thread begins with what it expects.
    let status = unsafe { INT_CREATE.get()(thread, begin, first.cast()) };
    if status != 0 {
        // SAFETY: there is no thread that takes it.
        drop(unsafe { Box::from_raw(first) });
    }
    status
}
