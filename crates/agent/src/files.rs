//! What the engine needs from the kernel: from the kernel itself, or, where that refuses this user, by way of the supervisor's
//! door.

use std::path::PathBuf;
use std::sync::OnceLock;

use hmm::door;
use hmm::mm::Files;
use hmm::open::{OpenFilesError, open_files, open_files_for};
use hmm::uapi::uffd::{Access, Features};

/// Where the supervisor's door is. The environment is the program's, and not to be read on the agent's threads.
static DOOR: OnceLock<PathBuf> = OnceLock::new();

/// Remembers where the door is, before there are threads of ours.
pub(crate) fn set_door(door: PathBuf) {
    let _ = DOOR.set(door);
}

/// Opens them, with more features. For the agent's threads, in their descriptor table.
pub(crate) fn open(more: Features) -> Result<Files, OpenFilesError> {
    let error = match open_files(Access::Full, more) {
        Ok(files) => return Ok(files),
        Err(error) => error,
    };
    match DOOR.get().and_then(|door| door::userfaultfd(door)) {
        Some((uffd, reports_forks)) if reports_forks || !more.contains(Features::EVENT_FORK) => {
            open_files_for(uffd, Access::Full, reports_forks)
        }
        _ => Err(error),
    }
}
