//! A directory for what programs of other users have to reach by a name: the agent's library, and the door.
//!
//! There is one only if the run is root's: nobody else's programs can become another user's. It belongs to root, in a directory
//! in which nobody but root can replace it, and cannot be listed. What is in it cannot be changed by others.
//!
//! It is there as long as the supervisor is, which removes it at its end. If the supervisor is killed the front does. Both
//! hold a lock on it, of one open file; so where both are killed the lock is free, and the next run of root's removes it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, StatVfsMountFlags, flock, statvfs};

use super::preload;

/// Where it may be. The first that will do is taken; where programs may not be mapped (noexec) none would be preloaded.
const BASES: [&str; 4] = ["/run", "/dev/shm", "/tmp", "/var/tmp"];
const PREFIX: &str = "hmm-";
const LIBRARY: &str = "libhmm_agent.so";
const DOOR: &str = "door";
/// How long the random part of its name is.
const NR_DIGITS: usize = 32;

const OTHERS_WRITE: u32 = 0o022;
const OTHERS_ENTER: u32 = 0o001;
const STICKY: u32 = 0o1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// The directory, locked.
    lock: File,
}

impl Place {
    /// Makes one, if this run needs one and there is where it can be; and removes those that were left behind.
    pub(super) fn create() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        BASES.iter().for_each(|base| sweep(Path::new(base)));
        let suited = BASES.iter().filter(|base| is_suited(Path::new(base)).is_ok_and(|suits| suits));
        // Who sweeps may take what is not locked yet for left behind.
        suited.flat_map(|base| [base; 3]).find_map(|base| Self::create_in(Path::new(base)).ok())
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        let path = base.join(format!("{PREFIX}{}", random_digits()?));
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = open_directory(&path)?;
        let this = Self { path, lock };
        this.fill().inspect_err(|_| this.remove())?;
        Ok(this)
    }

    fn fill(&self) -> io::Result<()> {
        flock(&self.lock, FlockOperation::NonBlockingLockExclusive)?;
        let mut library = File::options().write(true).create_new(true).mode(0o600).open(self.library())?;
        io::Write::write_all(&mut library, preload::LIBRARY)?;
        library.set_permissions(fs::Permissions::from_mode(0o444))?;
        // Last: from now on others may look.
        self.lock.set_permissions(fs::Permissions::from_mode(0o711))
    }

    /// Where the library is.
    pub(super) fn library(&self) -> PathBuf {
        self.path.join(LIBRARY)
    }

    /// Where the door is to be.
    pub(super) fn door(&self) -> PathBuf {
        self.path.join(DOOR)
    }

    /// Removes it, with all that is in it.
    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    for name in [DOOR, LIBRARY] {
        let _may_be_gone = fs::remove_file(path.join(name));
    }
    let _may_be_gone = fs::remove_dir(path);
}

/// Whether others can come here, but not put something else into the place of ours; and code can be mapped.
fn is_suited(base: &Path) -> io::Result<bool> {
    let (metadata, mount) = (fs::symlink_metadata(base)?, statvfs(base)?);
    let forbidden = StatVfsMountFlags::NOEXEC | StatVfsMountFlags::RDONLY;
    Ok(is_safe(&metadata) && !mount.f_flag.intersects(forbidden))
}

fn is_safe(metadata: &Metadata) -> bool {
    let mode = metadata.mode();
    metadata.is_dir()
        && metadata.uid() == 0
        && mode & OTHERS_ENTER != 0
        && (mode & OTHERS_WRITE == 0 || mode & STICKY != 0)
}

/// Removes what runs have left behind of which nobody is left.
fn sweep(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    for path in entries.filter(|entry| is_name(&entry.file_name())).map(|entry| entry.path()) {
        let Ok(directory) = open_directory(&path) else { continue };
        // Another's is another's business.
        let is_ours = directory.metadata().is_ok_and(|metadata| metadata.uid() == 0);
        if is_ours && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(&path);
        }
    }
}

fn is_name(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    digits.is_some_and(|digits| {
        digits.len() == NR_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

fn random_digits() -> io::Result<String> {
    let mut bytes = [0; NR_DIGITS / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Base(PathBuf);

    impl Base {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hmm-base-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self(path)
        }

        fn entries(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Base {
        fn drop(&mut self) {
            let _best_effort = fs::remove_dir_all(&self.0);
        }
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn others_may_read_the_library_and_change_nothing() {
        if !is_root() {
            return;
        }
        let base = Base::new("rights");
        let place = Place::create_in(&base.0).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&place.path), mode(&place.library())), (0o711, 0o444));
        assert_eq!(fs::read(place.library()).unwrap(), preload::LIBRARY);
        place.remove();
        assert_eq!(base.entries(), 0);
    }

    #[test]
    fn what_was_left_behind_is_removed_and_what_is_used_is_not() {
        if !is_root() {
            return;
        }
        let base = Base::new("sweep");
        let (used, left) = (Place::create_in(&base.0).unwrap(), Place::create_in(&base.0).unwrap());
        fs::create_dir(base.0.join("hmm-of-somebody-else")).unwrap();
        let path = left.path.clone();
        // As if all who held it were killed.
        drop(left);
        sweep(&base.0);
        assert!(!path.exists() && used.library().exists());
        assert_eq!(base.entries(), 2);
    }

    #[test]
    fn where_others_could_replace_it_there_is_none() {
        if !is_root() {
            return;
        }
        let base = Base::new("unsafe");
        for (mode, suits) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false), (0o700, false)] {
            fs::set_permissions(&base.0, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_suited(&base.0).unwrap(), suits, "{mode:o}");
        }
        std::os::unix::fs::chown(&base.0, Some(65534), None).unwrap();
        fs::set_permissions(&base.0, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!is_suited(&base.0).unwrap(), "another's");
    }
}
