//! What a userfaultfd can do, and the handshake that switches it on.

use linux_raw_sys::general::{self as raw, uffdio_api};
use linux_raw_sys::ioctl::UFFDIO_API;
use rustix::io::Errno;

use super::{Access, OpenError, Userfaultfd};
use crate::ioc;

bitflags::bitflags! {
    /// Features of userfaultfd, as the kernel numbers them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Write protection of anonymous memory.
        const PAGEFAULT_FLAG_WP = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
        /// fork sends the child's userfaultfd. Enabling it needs `CAP_SYS_PTRACE`.
        const EVENT_FORK = raw::UFFD_FEATURE_EVENT_FORK as u64;
        /// mremap sends an event, after the fact.
        const EVENT_REMAP = raw::UFFD_FEATURE_EVENT_REMAP as u64;
        /// madvise that drops pages sends an event, before it does.
        const EVENT_REMOVE = raw::UFFD_FEATURE_EVENT_REMOVE as u64;
        /// Missing pages of hugetlbfs.
        const MISSING_HUGETLBFS = raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        /// Missing pages of shared memory.
        const MISSING_SHMEM = raw::UFFD_FEATURE_MISSING_SHMEM as u64;
        /// munmap sends an event, after the fact.
        const EVENT_UNMAP = raw::UFFD_FEATURE_EVENT_UNMAP as u64;
        /// A fault raises SIGBUS in the faulting thread instead of a message.
        const SIGBUS = raw::UFFD_FEATURE_SIGBUS as u64;
        /// Fault messages name the thread.
        const THREAD_ID = raw::UFFD_FEATURE_THREAD_ID as u64;
        /// Minor faults of hugetlbfs.
        const MINOR_HUGETLBFS = raw::UFFD_FEATURE_MINOR_HUGETLBFS as u64;
        /// Minor faults of shared memory.
        const MINOR_SHMEM = raw::UFFD_FEATURE_MINOR_SHMEM as u64;
        /// Fault addresses are exact, not cut to the page.
        const EXACT_ADDRESS = raw::UFFD_FEATURE_EXACT_ADDRESS as u64;
        /// Write protection of hugetlbfs and shared memory.
        const WP_HUGETLBFS_SHMEM = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Write protection of holes.
        const WP_UNPOPULATED = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
        /// [`Userfaultfd::poison`].
        const POISON = raw::UFFD_FEATURE_POISON as u64;
        /// A write to a protected page lifts the protection without a message; PAGEMAP_SCAN tells. Brings
        /// [`WP_UNPOPULATED`](Self::WP_UNPOPULATED) along.
        const WP_ASYNC = raw::UFFD_FEATURE_WP_ASYNC as u64;
        /// [`Userfaultfd::move`](Userfaultfd::move). Linux 6.8.
        const MOVE = raw::UFFD_FEATURE_MOVE as u64;
    }
}

/// Why the handshake failed. The userfaultfd is as new, and can be enabled with less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnableError {
    /// This kernel lacks features.
    #[error(
        "this kernel's userfaultfd lacks {missing:?}; UFFDIO_MOVE and all that hmm needs came with Linux 6.8"
    )]
    Unsupported {
        /// Features that were wanted and are not there.
        missing: Features,
    },
    /// [`Features::EVENT_FORK`] without the privilege.
    #[error(
        "following fork needs CAP_SYS_PTRACE (in the initial user namespace); grant it, or do without \
         UFFD_FEATURE_EVENT_FORK"
    )]
    ForkNeedsPrivilege,
    /// Something else; `EINVAL` when the handshake was made before.
    #[error("the handshake with userfaultfd failed ({0}); on a new descriptor it does not")]
    Kernel(Errno),
}

impl Userfaultfd {
    /// The handshake (`UFFDIO_API`): switches features on, all or none, once in the descriptor's life.
    /// Gives the features in force: those wanted, and those they imply.
    ///
    /// # Errors
    /// [`EnableError`]; after one the handshake can be tried again.
    pub fn enable(&self, wanted: Features) -> Result<Features, EnableError> {
        self.handshake(wanted).map_err(|errno| match errno {
            Errno::PERM if wanted.contains(Features::EVENT_FORK) => EnableError::ForkNeedsPrivilege,
            errno => match supported_features() {
                Ok(supported) if !supported.contains(wanted) => {
                    EnableError::Unsupported { missing: wanted - supported }
                }
                _ => EnableError::Kernel(errno),
            },
        })?;
        let implied =
            if wanted.contains(Features::WP_ASYNC) { Features::WP_UNPOPULATED } else { Features::empty() };
        Ok(wanted | implied)
    }

    /// Gives what the kernel supports.
    fn handshake(&self, wanted: Features) -> Result<Features, Errno> {
        let mut arg = uffdio_api { api: u64::from(raw::UFFD_API), features: wanted.bits(), ioctls: 0 };
        // SAFETY: the opcode takes a `uffdio_api` and touches no other memory.
        unsafe { ioc::call(self, UFFDIO_API, &mut arg) }?;
        Ok(Features::from_bits_retain(arg.features))
    }
}

/// The features that this kernel has, whether or not we may use them; asked on a throw-away userfaultfd.
///
/// # Errors
/// When there is no userfaultfd at all: see [`OpenError`].
pub fn supported_features() -> Result<Features, OpenError> {
    // Every kernel's features are the same for both kinds of access, and this one is granted to almost everybody.
    let throw_away = Userfaultfd::open(Access::UserModeOnly)?;
    throw_away.handshake(Features::empty()).map_err(|errno| OpenError::Exhausted { errno })
}
