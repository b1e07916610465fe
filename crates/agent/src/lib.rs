//! The library that `hmm run` preloads into a program that knows nothing of it.
//!
//! # The protocol
//!
//! Before `main`, `init` finds the supervisor's control page by the environment, starts the agent's threads and waits
//! until they manage the memory that is there. From then on three things happen:
//!
//! - *handlers* and the *reclaimer* do the engine's work ([`hmm::runtime::Runtime`]);
//! - the *control thread* (`control`) looks for new memory, when an interposed function has said that there is some
//!   (`interpose`, `brk`) and now and then without being asked, arranges forks (`fork`, `reserve`), tells drivers of
//!   changes of mappings (`mappings`, `announce`), has the pages stay that the kernel needs at a thread's end
//!   (`thread_end`), has the agent's threads give up the rights that the program does (`rights`), and says of what pieces a
//!   mapping is that moves (`relocate`), and which mappings are the program's (`lock_all`). libc's own calls come to the
//!   interposed functions, too (`bodies`);
//! - the *device thread* is there only if the run has test devices (`dmirror`).
//!
//! What all of this stands on is out of the program's reach, and never managed (I6): the threads are raw, with stacks
//! of ours, all signals blocked and a descriptor table of their own; memory comes from our own allocator ([`hmm::heap`]).
//! No thread-local is used on any of them, but by a panic, which ends the process (`ending`). The program's exit, crash or
//! exec needs nothing from us.

mod announce;
mod binding;
mod birth;
mod bodies;
mod books;
mod brk;
mod child;
mod confine;
mod control;
mod descriptors;
mod devices;
mod dl;
mod dmirror;
mod ending;
mod errno;
mod files;
mod fork;
mod homecoming;
mod inherit;
mod interpose;
mod libc_forks;
mod limits;
mod locals;
mod lock_all;
mod mailbox;
mod mappings;
mod namespace;
mod next;
mod protection;
mod question;
mod references;
mod refusal;
mod relocate;
mod reserve;
mod rights;
mod root;
mod thread_end;
mod threads;
mod why;
mod withhold;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use hmm::control::{
    By, CONFIG_ENV, CONTROL_ENV, ConfigError, Control, Figures, ProcessId, RunConfig, Slot, SlotState, Text,
    Verdict, VerdictKind,
};
use hmm::door::DOOR_ENV;
use hmm::uapi::procfs::Procfs;

#[global_allocator]
static ALLOCATOR: hmm::heap::Private = hmm::heap::Private;

/// Whether the program's memory is managed. Interposed functions do nothing but their own work before.
static MANAGED: AtomicBool = AtomicBool::new(false);

/// Exit status when the program cannot be managed, as `env` and `timeout` have it for their own failures.
const EXIT_FAILED: i32 = 125;

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

/// Called by the dynamic loader before the program's `main`, on its only thread.
extern "C" fn init() {
    let before = limits::sizes();
    interpose::install();
    let Some(path) = std::env::var_os(CONTROL_ENV) else { return };
    let door = std::env::var_os(DOOR_ENV).map(PathBuf::from);
    let config = match run_config() {
        Ok(config) => config,
        Err(why) if Control::is_there(Path::new(&path), door.as_deref()) => refuse(&why),
        Err(_) => return,
    };
    let (control, by) = match Control::find(Path::new(&path), door.as_deref(), config) {
        Ok(found) => found,
        // The supervisor is gone: this program was started by a child of its child. It runs without us.
        Err(_) => return,
    };
    door.into_iter().for_each(files::set_door);
    let Some(slot) = own_slot(control) else { return };
    // Before there are our threads.
    binding::bind_to_libc();
    bodies::replace();
    ending::install();
    match (control::start(control, slot), by) {
        (Ok(()), _) => {
            limits::note_own(before);
            fork::install();
            MANAGED.store(true, Ordering::Release);
            thread_end::keep();
        }
        // Where another user's program cannot be managed it runs all the same, as one that could not be preloaded.
        (Err(text), By::Door) => {
            control.set_why_unmanaged(&Text::format(format_args!("{text}")));
            slot.set_state(SlotState::Unmanaged);
        }
        (Err(text), By::Path) => fail(control, VerdictKind::AgentFailed, &text),
    }
}

fn run_config() -> Result<RunConfig, ConfigError> {
    std::env::var_os(CONFIG_ENV).unwrap_or_default().to_string_lossy().parse()
}

/// Ends a process that has us in its environment, but not what the run is like.
fn refuse(why: &ConfigError) -> ! {
    let text = format!("hmm: {why}; whoever executes programs has to leave HMM_ variables as they are\n");
    // SAFETY: writes bytes that are there.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: ends the process before it has done anything.
    unsafe { libc::_exit(EXIT_FAILED) }
}

fn own_slot(control: Control) -> Option<&'static Slot> {
    let (process, name) = ProcessId::of_self(&Procfs::open().ok()?).ok()?;
    control.claim_slot_of(process, &name)
}

/// Ends the process because it cannot be managed, before it has done anything.
fn fail(control: Control, kind: VerdictKind, text: &str) -> ! {
    let pid = std::process::id();
    let text = Text::format(format_args!("{text}"));
    control.set_verdict(&Verdict { kind, pid, errno: 0, figures: Figures::default(), text });
    // SAFETY: ends the process; nothing of it is needed any more.
    unsafe { libc::_exit(EXIT_FAILED) }
}
