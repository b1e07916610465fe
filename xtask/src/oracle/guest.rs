//! A machine that has Linux's own HMM test device: a small kernel, built once from Debian's source package, under QEMU
//! without help of the processor (TCG), with an initramfs that holds a few programs.
//!
//! Everything is in `oracle` in the target directory. No file of the kernel is ever in the tree.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;

/// What has to be installed: a file that shows it, and the Debian package that has it.
const NEEDED: [(&str, &str); 9] = [
    (SOURCE, "linux-source-6.12"),
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/cpio", "cpio"),
    ("/usr/bin/bc", "bc"),
    ("/usr/bin/flex", "flex"),
    ("/usr/bin/bison", "bison"),
    ("/usr/include/libelf.h", "libelf-dev"),
    ("/usr/include/openssl/opensslv.h", "libssl-dev"),
];
const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// What is repaired of Linux 6.12's test device.
const FILE: &str = "lib/test_hmm.c";
/// The words and their replacements:
/// 1. The device reads a private page of its own through the page's descriptor instead of its memory, and the kernel dies
///    of it.
/// 2. The device takes the end of an invalidated range for its last page, and forgets the page behind it, too: an accident
///    of addresses, which would hide what we look for.
const REPAIRS: [(&str, &str); 2] = [
    ("\tentry = page;", "\tentry = BACKING_PAGE(page);"),
    ("\t\t\t  end >> PAGE_SHIFT)", "\t\t\t  (end - 1) >> PAGE_SHIFT)"),
];

/// Where coherent device memory is in the guest, and what to do when the kernel fails. One CPU with a periodic tick: with
/// two, or without the tick, the guest sometimes sleeps and never wakes on a busy machine.
const KERNEL_ARGS: &str = "console=ttyS0 panic=-1 oops=panic reboot=t quiet nohz=off highres=off tsc=reliable \
    memmap=256M$0x50000000 memmap=256M$0x60000000 \
    test_hmm.spm_addr_dev0=0x50000000 test_hmm.spm_addr_dev1=0x60000000";

/// What is needed to boot.
#[derive(Debug)]
pub(super) struct Guest {
    dir: PathBuf,
    source: PathBuf,
}

/// Says exactly what is missing.
pub(super) fn check_packages() -> Result<()> {
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    ensure!(
        missing.is_empty(),
        "not installed: {0}. As root: apt-get install --no-install-recommends {0}",
        missing.join(" ")
    );
    Ok(())
}

impl Guest {
    /// Builds the kernel, if this has not been done yet with this configuration.
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        let config = cargo::root()?.join("testing/oracle/guest/kernel.config");
        let stamp_file = dir.join("kernel.stamp");
        let wanted = format!("{}{REPAIRS:?}", fs::read_to_string(&config)?);
        let guest = Self { source: dir.join("linux-source-6.12"), dir };
        if fs::read_to_string(&stamp_file).is_ok_and(|built| built == wanted) {
            return Ok(guest);
        }
        eprintln!("xtask: building a kernel in {}: minutes, but only once", guest.source.display());
        if !guest.source.join("Makefile").exists() {
            fs::create_dir_all(&guest.dir)?;
            run(Command::new("tar").arg("xf").arg(SOURCE).current_dir(&guest.dir))?;
        }
        guest.repair()?;
        let config = config.to_string_lossy().into_owned();
        let cpus = std::thread::available_parallelism()?;
        for command in [
            "make tinyconfig".to_owned(),
            format!("scripts/kconfig/merge_config.sh -m .config '{config}'"),
            "make olddefconfig".to_owned(),
            format!("make -j{cpus} bzImage"),
        ] {
            let log = fs::File::create(guest.dir.join("build.log"))?;
            let mut shell = Command::new("sh");
            shell.args(["-c", &command]).current_dir(&guest.source).stderr(log.try_clone()?).stdout(log);
            run(&mut shell).with_context(|| format!("see {}", guest.dir.join("build.log").display()))?;
        }
        guest.check_config(&config)?;
        fs::write(stamp_file, wanted)?;
        Ok(guest)
    }

    fn repair(&self) -> Result<()> {
        let file = self.source.join(FILE);
        let mut text = fs::read_to_string(&file)?;
        for (from, to) in REPAIRS {
            if text.contains(to) {
                continue;
            }
            ensure!(
                text.matches(from).count() == 1,
                "{} is not the one we know: it has another version, or was repaired by others. See REPAIRS in {}",
                file.display(),
                file!()
            );
            text = text.replace(from, to);
            fs::write(&file, &text)?;
        }
        Ok(())
    }

    /// An option that was dropped in silence would be missed later, and at a worse place.
    fn check_config(&self, wanted: &str) -> Result<()> {
        let has = fs::read_to_string(self.source.join(".config"))?;
        let wanted = fs::read_to_string(wanted)?;
        let missing: Vec<&str> = wanted
            .lines()
            .filter(|line| line.starts_with("CONFIG_") && !has.lines().any(|other| other == *line))
            .collect();
        ensure!(missing.is_empty(), "the kernel did not take {}", missing.join(" "));
        Ok(())
    }

    /// Compiles Linux's own HMM tests, as they are.
    pub(super) fn hmm_tests(&self) -> Result<PathBuf> {
        let binary = self.dir.join("hmm-tests");
        let mut gcc = Command::new("gcc");
        gcc.args(["-static", "-O2", "-w", "-I", "../../../..", "-I", "../../../../usr/include", "-o"]);
        gcc.arg(&binary).args(["hmm-tests.c", "-lpthread"]);
        run(gcc.current_dir(self.source.join("tools/testing/selftests/mm")))?;
        Ok(binary)
    }

    /// Boots with these files (where they go, where they are), and returns what came through the second serial port.
    pub(super) fn boot(
        &self,
        files: &[(String, PathBuf)],
        config: &str,
        timeout: Duration,
    ) -> Result<String> {
        let initramfs = self.initramfs(files, config)?;
        let (console, log) = (self.dir.join("console.log"), self.dir.join("guest.log"));
        let mut qemu = Command::new("timeout");
        qemu.arg(timeout.as_secs().to_string());
        qemu.args([
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-M",
            "q35",
            "-smp",
            "2",
        ]);
        qemu.args(["-m", "2G", "-display", "none", "-no-reboot", "-append", KERNEL_ARGS]);
        for file in [&console, &log] {
            qemu.arg("-serial").arg(format!("file:{}", file.display()));
        }
        qemu.arg("-kernel").arg(self.source.join("arch/x86/boot/bzImage")).arg("-initrd").arg(initramfs);
        let status = qemu.stdin(Stdio::null()).status().context("cannot start timeout(1)")?;
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if !status.success() || !text.lines().any(|line| line == "== end") {
            let last = text.lines().last().unwrap_or("nothing");
            bail!(
                "the guest did not end well ({status}; 124 is the timeout of {timeout:?}). \
                 The last line of its log ({}): {last}\nIts console: {}",
                log.display(),
                console.display()
            );
        }
        Ok(text)
    }

    fn initramfs(&self, files: &[(String, PathBuf)], config: &str) -> Result<PathBuf> {
        let root = self.dir.join("initramfs");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        fs::write(root.join("oracle.conf"), config)?;
        let init = cargo::root()?.join("testing/oracle/guest/init");
        let own = [("init", init), ("bin/busybox", "/usr/bin/busybox".into())];
        let own = own.into_iter().map(|(to, from)| (to.to_owned(), from));
        for (to, from) in own.chain(files.iter().cloned()) {
            let to = root.join(to.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        }
        let archive = self.dir.join("initramfs.gz");
        let pack = format!("find . | cpio -o -H newc --quiet | gzip -1 > '{}'", archive.display());
        run(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
        Ok(archive)
    }
}

/// Runs a command that must succeed.
pub(super) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
