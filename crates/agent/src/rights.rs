//! Whoever gives up rights gives up those of the agent's threads, too.
//!
//! To the kernel a change of user is one thread's. libc has all threads of a process change, but for those that it does not know
//! of, and the agent's would stay what they were: who takes over such a process could have them act for him. So they follow,
//! before the function that gives rights up returns:
//!
//! ```text
//!  program's thread              control thread                others of the agent
//!  libc's function: it is another user
//!  gives something up: ask -->   has them stand still          stand still
//!                                lets them go on ----------->  change, go on
//!                                changes
//!  returns   <-----------------  answer
//! ```
//!
//! For what they do they need no rights: their descriptors are open. Who is another user for a moment, as file servers are, can be
//! the first one again, gives nothing up, and is not held up. As libc does, the process is ended if one of its threads cannot
//! follow. Whoever changes by a system call of his own changes one thread.

#![expect(unreachable_pub, reason = "called through the dynamic symbol table")]

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use hmm::control::VerdictKind;
use hmm::runtime::Runtime;
use hmm::uapi::{Errno, any_syscall};
use libc::{gid_t, uid_t};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, get_keep_capabilities, set_capabilities,
    set_keep_capabilities, set_thread_res_gid, set_thread_res_uid,
};

use crate::ending;
use crate::errno::failed;
use crate::mailbox::is_managed;
use crate::next::Next;
use crate::question::Question;
use crate::threads;

/// As many as a process can be in (`NGROUPS_MAX`).
const MAX_GROUPS: c_int = 65_536;
/// How often threads are asked to stand still: each time takes seconds if one of them cannot.
const TRIES: u32 = 3;
const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

/// What a thread may do. Users and groups are real, effective, saved.
#[derive(Clone, Copy)]
struct Rights {
    user: [uid_t; 3],
    group: [gid_t; 3],
    capabilities: CapabilitySets,
    /// Whether a change of user leaves it its capabilities.
    keeps_capabilities: bool,
}

impl Rights {
    const NONE: Self =
        Self { user: [0; 3], group: [0; 3], capabilities: NO_CAPABILITIES, keeps_capabilities: false };

    /// Those of the calling thread.
    fn own() -> Self {
        let mut rights = Self::NONE;
        let [real, effective, saved] = &mut rights.user;
        // SAFETY: writes the three, and cannot fail with addresses that are right.
        unsafe { libc::getresuid(real, effective, saved) };
        let [real, effective, saved] = &mut rights.group;
        // SAFETY: as above.
        unsafe { libc::getresgid(real, effective, saved) };
        rights.capabilities = capabilities(None).unwrap_or(NO_CAPABILITIES);
        rights.keeps_capabilities = get_keep_capabilities().unwrap_or(false);
        rights
    }

    /// Whether something of it is given up by who has those others, and cannot have it again.
    fn is_more_than(&self, other: &Self) -> bool {
        !other.user.contains(&self.user[1])
            || !other.group.contains(&self.group[1])
            || !other.capabilities.permitted.contains(self.capabilities.permitted)
    }

    /// The calling thread has them from now on, and is in those groups.
    fn take(&self, groups: &[gid_t]) -> Result<(), Errno> {
        let mut now = capabilities(None)?;
        now.effective = now.permitted;
        set_capabilities(None, now)?;
        set_groups(groups);
        let [real, effective, saved] = self.group.map(Gid::from_raw);
        set_thread_res_gid(real, effective, saved)?;
        set_keep_capabilities(self.keeps_capabilities)?;
        let [real, effective, saved] = self.user.map(Uid::from_raw);
        set_thread_res_uid(real, effective, saved)?;
        let left = capabilities(None)?.permitted;
        let CapabilitySets { effective, permitted, inheritable } = self.capabilities;
        let sets = CapabilitySets {
            effective: effective & left,
            permitted: permitted & left,
            inheritable: inheritable & left,
        };
        set_capabilities(None, sets)
    }
}

/// Those of the calling thread. Who has no right to do this is in the groups that the process is in.
fn set_groups(groups: &[gid_t]) {
    if let Ok(nr) = usize::try_from(libc::SYS_setgroups) {
        // SAFETY: reads the list.
        let _ = unsafe { any_syscall(nr, [groups.len(), groups.as_ptr().addr(), 0, 0, 0, 0]) };
    }
}

/// What the process may do now, and what the agent's threads may, which began as the thread that started them.
struct Change {
    own: Rights,
    rights: Rights,
    groups: [gid_t; MAX_GROUPS.unsigned_abs() as usize],
    nr_groups: usize,
}

struct Slot {
    question: Question,
    change: UnsafeCell<Change>,
}

// SAFETY: the change is its who has taken the question; from when that is asked until it is answered it is the control thread's to write
// to, when all others of the agent's have read it. Before there are threads it is the only one's.
unsafe impl Sync for Slot {}

static SLOTS: [Slot; 1] = [Slot {
    question: Question::new(),
    change: UnsafeCell::new(Change {
        own: Rights::NONE,
        rights: Rights::NONE,
        groups: [0; MAX_GROUPS.unsigned_abs() as usize],
        nr_groups: 0,
    }),
}];

/// Whether one of the agent's threads could not follow.
static LEFT_BEHIND: AtomicBool = AtomicBool::new(false);

/// Before the agent has threads; also in the child of a fork, whose only thread has asked nothing.
pub(crate) fn reset() {
    for slot in &SLOTS {
        // SAFETY: the process has one thread, see `Slot`.
        unsafe { &mut *slot.change.get() }.own = Rights::own();
        slot.question.free();
    }
}

/// Behind a function that may have changed what the process may do: the agent's threads follow if it has given something up.
fn follow(result: c_int) -> c_int {
    if result != 0 || !is_managed() {
        return result;
    }
    let rights = Rights::own();
    let slot = Question::take(&SLOTS, |slot| &slot.question);
    // SAFETY: the question is taken, and not asked, see `Slot`.
    let change = unsafe { &mut *slot.change.get() };
    if change.own.is_more_than(&rights) {
        change.rights = rights;
        // SAFETY: the list has room for as many as there can be.
        let nr = unsafe { libc::getgroups(MAX_GROUPS, change.groups.as_mut_ptr()) };
        change.nr_groups = usize::try_from(nr).unwrap_or(0);
        slot.question.ask();
    }
    slot.question.free();
    result
}

/// The control thread's side. Never while a fork is arranged.
pub(crate) fn serve(runtime: &Runtime) {
    for slot in SLOTS.iter().filter(|slot| slot.question.is_asked()) {
        let all = (0..TRIES).any(|_| runtime.everywhere(threads::nr() - 1, change));
        if !all || LEFT_BEHIND.load(Ordering::Relaxed) {
            let left = format_args!("it gave up rights, and one of hmm's threads in it could not");
            ending::end(VerdictKind::Defect, left)
        }
        // SAFETY: it is not answered yet, and all others have read it, see `Slot`.
        let change = unsafe { &mut *slot.change.get() };
        change.own = change.rights;
        slot.question.answer();
    }
}

/// On each of the agent's threads.
fn change() {
    let [slot] = &SLOTS;
    // SAFETY: it was asked for, and is not answered yet, see `Slot`.
    let change = unsafe { &*slot.change.get() };
    if change.rights.take(&change.groups[..change.nr_groups]).is_err() {
        LEFT_BEHIND.store(true, Ordering::Relaxed);
    }
}

/// Functions of libc by which a process comes to have other rights.
macro_rules! changes {
    ($($name:ident, $next:ident, $c_name:literal, $type:ty, $($arg:ident)+;)+) => {
        $(
            // SAFETY: the type is that of the function.
            static $next: Next<extern "C" fn($(changes!(@one $arg $type)),+) -> c_int> = unsafe {
                extern "C" fn none($(_: changes!(@one $arg $type)),+) -> c_int {
                    failed(Errno::NOSYS)
                }
                Next::new($c_name, none)
            };

            #[doc = concat!("See `", stringify!($name), "(2)`.")]
            #[unsafe(no_mangle)]
            pub extern "C" fn $name($($arg: $type),+) -> c_int {
                follow($next.get()($($arg),+))
            }
        )+

        /// Looks the functions up, while there is only one thread.
        pub(crate) fn install() {
            $($next.get();)+
        }
    };
    (@one $arg:ident $type:ty) => { $type };
}

changes! {
    setuid, SETUID, c"setuid", uid_t, user;
    seteuid, SETEUID, c"seteuid", uid_t, effective;
    setreuid, SETREUID, c"setreuid", uid_t, real effective;
    setresuid, SETRESUID, c"setresuid", uid_t, real effective saved;
    setgid, SETGID, c"setgid", gid_t, group;
    setegid, SETEGID, c"setegid", gid_t, effective;
    setregid, SETREGID, c"setregid", gid_t, real effective;
    setresgid, SETRESGID, c"setresgid", gid_t, real effective saved;
    capset, CAPSET, c"capset", *mut c_void, header data;
}
