//! Opening what the engine's door to the kernel needs.

use hmm_uapi::maps::Maps;
use hmm_uapi::pagemap::Pagemap;
use hmm_uapi::procfs::Procfs;
use hmm_uapi::uffd::{Features, Userfaultfd};
use rustix::io::Errno;

/// The features of userfaultfd that the engine stands on.
pub fn features() -> Features {
    Features::EVENT_REMAP
        | Features::EVENT_REMOVE
        | Features::EVENT_UNMAP
        | Features::PAGEFAULT_FLAG_WP
        | Features::POISON
        | Features::MOVE
        | Features::THREAD_ID
}

/// Opens what an [`Mm`](crate::mm::Mm) needs. `more` are features beyond those that the engine needs.
///
/// # Errors
/// See [`OpenFilesError`].
pub fn open_files(
    access: hmm_uapi::uffd::Access,
    more: Features,
) -> Result<crate::mm::Files, OpenFilesError> {
    let uffd = Userfaultfd::open(access)?;
    let enabled = uffd.enable(features() | more)?;
    open_files_for(uffd, access, enabled.contains(Features::EVENT_FORK))
}

/// As [`open_files`], with a userfaultfd that is there, and enabled.
///
/// # Errors
/// [`OpenFilesError::Proc`].
pub fn open_files_for(
    uffd: Userfaultfd,
    access: hmm_uapi::uffd::Access,
    reports_forks: bool,
) -> Result<crate::mm::Files, OpenFilesError> {
    let procfs = Procfs::open().map_err(OpenFilesError::Proc)?;
    Ok(crate::mm::Files {
        uffd,
        access,
        reports_forks,
        pagemap: Pagemap::open_in(&procfs).map_err(OpenFilesError::Proc)?,
        maps: Maps::open_in(&procfs).map_err(OpenFilesError::Proc)?,
        procfs,
    })
}

/// Why the kernel does not let us manage memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenFilesError {
    /// No userfaultfd.
    #[error(transparent)]
    Open(#[from] hmm_uapi::uffd::OpenError),
    /// A userfaultfd that cannot do what is needed.
    #[error(transparent)]
    Enable(#[from] hmm_uapi::uffd::EnableError),
    /// No view of this process in /proc.
    #[error("cannot read /proc/self: {0}; mount procfs")]
    Proc(Errno),
}
