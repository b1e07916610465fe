//! The handler of SIGSEGV and SIGBUS.
//!
//! It runs on whatever thread faulted, at any point: it takes no lock, allocates nothing and touches no memory but its
//! stack, the exception table and what was there before it was installed, which does not change afterwards.

use std::ffi::c_int;
use std::sync::OnceLock;

use libc::{SIGBUS, SIGSEGV, c_void, sigaction, siginfo_t, ucontext_t};
use rustix::io::Errno;

/// An entry of the exception table.
#[repr(C)]
struct Entry {
    /// From this field to the instruction.
    instruction: i32,
    /// From this field to where to go on.
    fixup: i32,
}

unsafe extern "C" {
    // Made by the linker, because the section's name is an identifier.
    static __start_hmm_soft_traps: [Entry; 0];
    static __stop_hmm_soft_traps: [Entry; 0];
}

/// What was there before.
struct Before {
    segv: sigaction,
    bus: sigaction,
}

static BEFORE: OnceLock<Before> = OnceLock::new();

/// Addresses in the program's code, of all instructions that may fault, each with its fix-up.
fn table() -> impl Iterator<Item = (u64, u64)> {
    let start = (&raw const __start_hmm_soft_traps).cast::<Entry>();
    let stop = (&raw const __stop_hmm_soft_traps).cast::<Entry>();
    let nr = (stop.addr() - start.addr()) / size_of::<Entry>();
    let at = |field: &i32| (std::ptr::from_ref(field).addr() as u64).wrapping_add_signed(i64::from(*field));
    // SAFETY: the linker puts the two symbols around the section, which holds whole entries only, and is never written.
    let entries = unsafe { std::slice::from_raw_parts(start, nr) };
    entries.iter().map(move |entry| (at(&entry.instruction), at(&entry.fixup)))
}

fn action_of(signal: c_int) -> Result<sigaction, Errno> {
    // SAFETY: all zeroes are a value of this structure of numbers and optional pointers.
    let mut action: sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only, and the place for the answer is valid.
    let result = unsafe { sigaction(signal, std::ptr::null(), &raw mut action) };
    if result == 0 { Ok(action) } else { Err(Errno::INVAL) }
}

fn set_action(signal: c_int, action: &sigaction) -> Result<(), Errno> {
    // SAFETY: the action is one that the kernel gave us, or our handler, which keeps a handler's contract.
    let result = unsafe { sigaction(signal, action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

/// Installs the handler for both signals. Called once.
pub(super) fn install() -> Result<(), Errno> {
    // Known before the first signal can arrive.
    BEFORE.get_or_init(|| Before {
        segv: action_of(SIGSEGV).unwrap_or_else(|_| default_action()),
        bus: action_of(SIGBUS).unwrap_or_else(|_| default_action()),
    });
    let mut ours = default_action();
    ours.sa_sigaction = handle_addr();
    // On the alternate stack where a thread has one: what is chained to may be the check for its overflow.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    set_action(SIGSEGV, &ours)?;
    set_action(SIGBUS, &ours)
}

/// Whether both signals still come to us.
pub(super) fn in_place() -> bool {
    [SIGSEGV, SIGBUS]
        .iter()
        .all(|signal| action_of(*signal).is_ok_and(|action| action.sa_sigaction == handle_addr()))
}

/// Has both signals delivered to this thread.
pub(super) fn unblock() {
    // SAFETY: all zeroes are a value of this structure of numbers; it is made an empty set below.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for a set.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in [SIGSEGV, SIGBUS] {
        // SAFETY: a valid set, and a valid signal.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: a valid set; the old one is not asked for. It cannot fail with a valid verb.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}

fn handle_addr() -> usize {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    handler as usize
}

fn default_action() -> sigaction {
    // SAFETY: all zeroes are a value of this structure of numbers and optional pointers, and mean the default action.
    unsafe { std::mem::zeroed() }
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid context, for as long as it runs, and to it alone.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize].cast_unsigned();
    let found = table().find(|(instruction, _)| *instruction == rip);
    match found {
        Some((_, fixup)) => {
            registers[libc::REG_RIP as usize] = fixup.cast_signed();
            registers[libc::REG_RDX as usize] = 1;
        }
        None => chain(signal, info, context),
    }
}

/// Does what would have been done without us.
fn chain(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let before = BEFORE.get().map(|before| if signal == SIGBUS { &before.bus } else { &before.segv });
    let handler = before.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    let with_info = before.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The instruction faults again, and ends the process as it would have. A fault cannot be ignored.
        let _ = set_action(signal, &default_action());
    } else if with_info {
        // SAFETY: it was installed as a handler with three arguments, and any other address was excluded above.
        let handler = unsafe {
            std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(handler)
        };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, with one argument.
        let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
        handler(signal);
    }
}
