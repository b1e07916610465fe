//! The command under test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::MIB;
use crate::skip::skipped;

/// Where the `hmm` command is: `HMM_BIN`, else beside the test in the target directory.
///
/// # Panics
/// When there is none.
pub fn hmm_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("HMM_BIN") {
            return std::path::absolute(path).expect("the working directory exists");
        }
        // target/PROFILE/deps/TEST
        let test = std::env::current_exe().expect("tests are files");
        let profile = test.parent().and_then(Path::parent).expect("tests are in target/PROFILE/deps");
        let binary = profile.join("hmm");
        assert!(
            binary.is_file(),
            "there is no {}: run `cargo build -p hmm-cli`, or all tests by `cargo xtask test`, or set HMM_BIN",
            binary.display()
        );
        binary
    })
}

/// Whether `hmm run` works here; if not, the test is skipped.
pub fn can_run() -> bool {
    static CAN_RUN: OnceLock<bool> = OnceLock::new();
    let can_run = *CAN_RUN.get_or_init(|| {
        let doctor = Command::new(hmm_binary()).arg("doctor").stdout(Stdio::null()).status();
        doctor.expect("the command can be started").success()
    });
    if !can_run {
        skipped("`hmm run` does not work here, see `hmm doctor`");
    }
    can_run
}

/// Options of `hmm run`.
#[derive(Clone, Debug)]
pub struct Hmm {
    /// Bytes of `--ram`; `None`: no budget, but the HMM test devices (`--dmirror`).
    pub ram: Option<u64>,
    /// `--per-process`.
    pub per_process: bool,
    /// `--device`.
    pub device: String,
    /// `--on-full`.
    pub on_full: &'static str,
}

impl Hmm {
    /// The smallest budget that the command takes.
    pub const MIN_RAM: u64 = 16 * MIB;

    /// A budget, with the lz4 device.
    pub fn ram(bytes: u64) -> Self {
        Self { ram: Some(bytes), per_process: false, device: "lz4".to_owned(), on_full: "kill" }
    }

    /// No budget, but the HMM test devices.
    pub fn dmirror() -> Self {
        Self { ram: None, per_process: false, device: String::new(), on_full: "kill" }
    }

    /// With that budget for each process.
    #[must_use]
    pub fn per_process(mut self) -> Self {
        self.per_process = true;
        self
    }

    /// With another device.
    #[must_use]
    pub fn device(mut self, spec: &str) -> Self {
        spec.clone_into(&mut self.device);
        self
    }

    /// With the budget growing when the device is full.
    #[must_use]
    pub fn grow(mut self) -> Self {
        self.on_full = "grow";
        self
    }

    /// What comes in front of a program.
    pub(crate) fn prefix(&self, stats: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![hmm_binary().into(), "run".into()];
        match self.ram {
            Some(ram) => {
                words.extend(["--ram".into(), ram.to_string().into()]);
                words.extend(["--device".into(), OsString::from(&self.device)]);
            }
            None => words.push("--dmirror".into()),
        }
        words.extend(self.per_process.then(|| "--per-process".into()));
        words.extend(["--on-full".into(), self.on_full.into(), "--stats".into(), stats.into(), "--".into()]);
        words
    }
}
