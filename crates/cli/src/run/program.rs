//! Finds the program as `execvp` would, and says before it starts whether the agent can be preloaded into it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use thiserror::Error;

use super::elf::Image;
use crate::failure::{CANNOT_EXECUTE, NOT_FOUND};

/// Where `execvp` looks when there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The kernel follows this many scripts that are read by scripts.
const MAX_SCRIPTS: usize = 5;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;

/// Why the program will not be started.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("{}: not found{}", name.display(), if name.as_bytes().contains(&b'/') { "" } else { " in PATH" })]
    NotFound { name: OsString },
    #[error("{}: its interpreter {interpreter} does not exist", script.display())]
    NoInterpreter { script: PathBuf, interpreter: String },
    #[error("{}: cannot be executed: {source}", path.display())]
    NotExecutable { path: PathBuf, source: Errno },
    #[error("{}: is a {what}, not a program", path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("{}: cannot be read, so hmm cannot tell whether its memory can be managed: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: scripts that are read by scripts, too many of them", path.display())]
    TooManyScripts { path: PathBuf },
    #[error("{}: {why}", path.display())]
    Unsuited { path: PathBuf, why: Unsuited },
}

impl Refusal {
    /// As `env` would exit.
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } | Self::NoInterpreter { .. } => NOT_FOUND,
            Self::NotExecutable { .. }
            | Self::NotAFile { .. }
            | Self::Unreadable { .. }
            | Self::TooManyScripts { .. }
            | Self::Unsuited { .. } => CANNOT_EXECUTE,
        }
    }
}

/// Why the agent cannot be preloaded into a program.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum Unsuited {
    #[error(
        "is statically linked: hmm reaches a program's memory through a library that the dynamic linker preloads, and \
         this program has none. Use a dynamically linked build of it"
    )]
    Static,
    #[error(
        "has the {0} bit: the dynamic linker preloads nothing of a user's into a program with other rights than the \
         user's. Use a copy without the bit, or run as hmm what this program would start"
    )]
    PrivilegeBit(&'static str),
    #[error(
        "has file capabilities: the dynamic linker preloads nothing of a user's into a program with other rights than \
         the user's. Use a copy of it (a copy has none), as a user who has the rights"
    )]
    FileCapabilities,
    #[error(
        "is built for {machine}, this hmm for {}: use the program's build for this machine",
        std::env::consts::ARCH
    )]
    Foreign { machine: String },
    #[error(
        "is linked with musl ({interpreter}): the library that hmm preloads needs glibc. Use a build for glibc"
    )]
    Musl { interpreter: String },
    #[error("is no program that this machine can run: its ELF headers are damaged")]
    Broken,
}

/// A program that may be started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its file.
    pub(super) path: PathBuf,
}

impl Program {
    /// Finds `name` and looks at it.
    pub(super) fn find(name: &OsStr, path_variable: Option<&OsStr>) -> Result<Self, Refusal> {
        let path = search(name, path_variable)?;
        check(&path)?;
        Ok(Self { path })
    }
}

/// The file that `execvp` would execute. One that exists but cannot be executed is remembered, in case there is none
/// further on.
fn search(name: &OsStr, path_variable: Option<&OsStr>) -> Result<PathBuf, Refusal> {
    let not_found = || Refusal::NotFound { name: name.to_owned() };
    if name.is_empty() {
        return Err(not_found());
    }
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match may_execute(&path) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(not_found()),
            Err(source) => Err(Refusal::NotExecutable { path, source }),
        };
    }
    let mut denied = None;
    for directory in path_variable.unwrap_or(DEFAULT_PATH.as_ref()).as_bytes().split(|byte| *byte == b':') {
        // An empty entry is the current directory.
        let directory = if directory.is_empty() { b"." } else { directory };
        let path = Path::new(OsStr::from_bytes(directory)).join(name);
        match may_execute(&path) {
            Ok(()) => return Ok(path),
            Err(source @ Errno::ACCESS) => denied = denied.or(Some(Refusal::NotExecutable { path, source })),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(not_found))
}

fn may_execute(path: &Path) -> Result<(), Errno> {
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    // Search permission on a directory is no permission to execute it.
    if path.is_dir() { Err(Errno::ACCESS) } else { Ok(()) }
}

/// Whether the agent can be preloaded into what executing the file ends in.
fn check(path: &Path) -> Result<(), Refusal> {
    let mut path = path.to_owned();
    for _ in 0..=MAX_SCRIPTS {
        match look_at(&path)? {
            Image::Dynamic { interpreter } if interpreter.contains("ld-musl") => {
                return Err(Refusal::Unsuited { path, why: Unsuited::Musl { interpreter } });
            }
            Image::Dynamic { .. } => return check_privileges(path),
            Image::Static => return Err(Refusal::Unsuited { path, why: Unsuited::Static }),
            Image::Foreign { machine } => {
                return Err(Refusal::Unsuited { path, why: Unsuited::Foreign { machine } });
            }
            Image::Broken => return Err(Refusal::Unsuited { path, why: Unsuited::Broken }),
            Image::Script { interpreter } => path = interpreter_of(path, interpreter)?,
            // `execvp` gives what the kernel does not know to the shell.
            Image::Other => path = interpreter_of(path, "/bin/sh".to_owned())?,
        }
    }
    Err(Refusal::TooManyScripts { path })
}

fn interpreter_of(script: PathBuf, interpreter: String) -> Result<PathBuf, Refusal> {
    match may_execute(Path::new(&interpreter)) {
        Ok(()) => Ok(interpreter.into()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Refusal::NoInterpreter { script, interpreter }),
        Err(source) => Err(Refusal::NotExecutable { path: interpreter.into(), source }),
    }
}

fn look_at(path: &Path) -> Result<Image, Refusal> {
    let unreadable = |source| Refusal::Unreadable { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    // Opening a pipe or a device could wait or do harm.
    if let Some(what) = other_than_file(&metadata) {
        return Err(Refusal::NotAFile { path: path.to_owned(), what });
    }
    File::open(path).and_then(|file| Image::of_file(&file)).map_err(unreadable)
}

fn other_than_file(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("directory"),
        () if kind.is_fifo() => Some("pipe"),
        () if kind.is_socket() => Some("socket"),
        () => Some("device"),
    }
}

/// A program that gets other rights than its caller's is started in secure mode, in which the dynamic linker ignores
/// what hmm asks for. Scripts have no such rights, only what reads them.
fn check_privileges(path: PathBuf) -> Result<(), Refusal> {
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(source) => return Err(Refusal::Unreadable { path, source }),
    };
    let mode = metadata.mode();
    let why = if mode & SETUID != 0 {
        Unsuited::PrivilegeBit("setuid")
    } else if mode & SETGID != 0 && mode & GROUP_EXECUTE != 0 {
        Unsuited::PrivilegeBit("setgid")
    } else if has_capabilities(&path) {
        Unsuited::FileCapabilities
    } else {
        return Ok(());
    };
    Err(Refusal::Unsuited { path, why })
}

fn has_capabilities(path: &Path) -> bool {
    // As long as it may get in the kernel.
    let mut value = [0_u8; 64];
    match rustix::fs::getxattr(path, "security.capability", &mut value) {
        Ok(len) => len > 0,
        Err(error) => error == Errno::RANGE,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hmm-program-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        fn copy_of(&self, program: &str, mode: u32) -> PathBuf {
            let path = self.0.join("copy");
            std::fs::copy(program, &path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        fn find(&self, name: &str) -> Result<Program, Refusal> {
            Program::find(name.as_ref(), Some(self.0.as_os_str()))
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn code_and_text(result: Result<Program, Refusal>) -> (u8, String) {
        let refusal = result.expect_err("refused");
        (refusal.exit_code(), refusal.to_string())
    }

    #[test]
    fn the_first_executable_in_the_path_is_it() {
        let dir = Dir::new("first");
        let script = dir.file("tool", "#!/bin/sh\n", 0o755);
        let path = format!("/nowhere:{}:/bin", dir.0.display());
        assert_eq!(Program::find("tool".as_ref(), Some(path.as_ref())).unwrap().path, script);
        assert_eq!(Program::find("sh".as_ref(), Some(path.as_ref())).unwrap().path, Path::new("/bin/sh"));
        assert_eq!(Program::find("sh".as_ref(), None).unwrap().path, Path::new("/bin/sh"));
    }

    #[test]
    fn what_is_not_there_is_127() {
        let dir = Dir::new("absent");
        for name in ["no-such-tool", "/no/such/tool", "", "/bin/sh/tool"] {
            let (code, text) = code_and_text(dir.find(name));
            assert_eq!(code, 127, "{text}");
            assert!(text.contains("not found"), "{text}");
        }
        dir.file("script", "#!/no/such/interpreter -x\n", 0o755);
        let (code, text) = code_and_text(dir.find("script"));
        assert_eq!(code, 127);
        assert!(text.contains("interpreter /no/such/interpreter does not exist"), "{text}");
    }

    #[test]
    fn what_cannot_be_executed_is_126() {
        let dir = Dir::new("denied");
        dir.file("text", "hello", 0o644);
        std::fs::create_dir(dir.0.join("directory")).unwrap();
        for name in ["text", "directory"] {
            let (code, text) = code_and_text(dir.find(name));
            assert_eq!(code, 126, "{text}");
            assert!(text.contains("cannot be executed"), "{text}");
        }
        // A later executable of the same name wins.
        let path = format!("{}:/bin", dir.0.display());
        dir.file("sh", "", 0o644);
        assert_eq!(Program::find("sh".as_ref(), Some(path.as_ref())).unwrap().path, Path::new("/bin/sh"));
    }

    #[test]
    fn scripts_are_as_good_as_what_reads_them() {
        let dir = Dir::new("scripts");
        let inner = dir.file("inner", "#!/bin/sh\n", 0o755);
        dir.file("outer", &format!("#!{}\n", inner.display()), 0o755);
        dir.find("outer").unwrap();
        dir.file("plain", "echo no interpreter\n", 0o755);
        dir.find("plain").unwrap();

        let this_test = std::env::current_exe().unwrap();
        let Image::Dynamic { interpreter: linker } = look_at(&this_test).unwrap() else {
            panic!("not dynamic")
        };
        dir.file("static", &format!("#!{linker}\n"), 0o755);
        let (code, text) = code_and_text(dir.find("static"));
        assert_eq!(code, 126);
        assert!(text.contains(&linker) && text.contains("statically linked"), "{text}");

        let endless = dir.0.join("endless");
        dir.file("endless", &format!("#!{}\n", endless.display()), 0o755);
        let (code, text) = code_and_text(dir.find("endless"));
        assert_eq!(code, 126);
        assert!(text.contains("too many"), "{text}");
    }

    #[test]
    fn programs_with_other_rights_are_refused() {
        let dir = Dir::new("setuid");
        for (mode, what) in [(0o4755, "setuid"), (0o2755, "setgid"), (0o6711, "setuid")] {
            dir.copy_of("/bin/true", mode);
            let (code, text) = code_and_text(dir.find("copy"));
            assert_eq!(code, 126);
            assert!(text.contains(&format!("has the {what} bit")), "{text}");
        }
        // Without the right to execute, the group bit means mandatory locking.
        dir.copy_of("/bin/true", 0o2745);
        dir.find("copy").unwrap();
    }

    #[test]
    fn rubbish_with_an_elf_magic_is_refused() {
        let dir = Dir::new("broken");
        dir.file("broken", "\x7fELF", 0o755);
        let (code, text) = code_and_text(dir.find("broken"));
        assert_eq!(code, 126);
        assert!(text.contains("damaged"), "{text}");
    }
}
