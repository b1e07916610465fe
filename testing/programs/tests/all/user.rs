//! An ordinary user, with and without the right to open /dev/userfaultfd; and root's programs that execute others as another
//! user.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hmm_programs::command::hmm_binary;
use hmm_programs::skip::{has_programs, is_root, skipped};
use hmm_programs::{Hmm, Job, MIB, TempDir, assert_same_output, can_run};

const DEVICE: &str = "/dev/userfaultfd";
/// nobody's, with a group that nobody else has: it is only in this test's processes.
const USER: &str = "65534";
const GROUP: u32 = 64_321;

/// The device with other rights, for as long as this lives. A test that is killed leaves it to a group without members.
struct Granted {
    group: u32,
    mode: u32,
}

impl Granted {
    fn to_group(group: u32) -> Self {
        use std::os::unix::fs::MetadataExt;
        let before = std::fs::metadata(DEVICE).unwrap();
        let this = Self { group: before.gid(), mode: before.mode() & 0o7777 };
        std::os::unix::fs::chown(DEVICE, None, Some(group)).unwrap();
        std::fs::set_permissions(DEVICE, PermissionsExt::from_mode(0o660)).unwrap();
        this
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        let _best_effort = std::os::unix::fs::chown(DEVICE, None, Some(self.group));
        let _best_effort = std::fs::set_permissions(DEVICE, PermissionsExt::from_mode(self.mode));
    }
}

/// hmm as an ordinary user of a group; the command is copied to where he may look.
fn hmm(dir: &TempDir, group: u32, args: &[&str]) -> Job {
    let hmm = dir.join("hmm");
    if !hmm.exists() {
        std::fs::copy(hmm_binary(), &hmm).unwrap();
        std::fs::set_permissions(&hmm, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let user = [format!("--reuid={USER}"), format!("--regid={group}"), "--clear-groups".to_owned()];
    Job::new("setpriv").args(user).arg(hmm).args(args)
}

/// `hmm run --ram 16M`, with python on 64 MiB.
fn job(dir: &TempDir, group: u32) -> Job {
    let script = "b = bytearray(64 << 20)\nfor k in range(3):\n  for i in range(0, len(b), 4096): b[i] = k + i // 4096 % 200\nprint(sum(b))\nopen('/dev/null', 'wb').write(b)\nimport os; r, w = os.pipe(); os.write(w, memoryview(b)[:4096]); print(os.read(r, 4096)[:3])";
    hmm(dir, group, &["run", "--ram", "16M", "--", "/usr/bin/python3", "-c", script])
}

/// `hmm torture`, shortly.
fn torture(dir: &TempDir, group: u32) -> Job {
    hmm(
        dir,
        group,
        &["torture", "--seed", "1", "--minutes", "0.05", "--policy", "twice", "--patience", "120"],
    )
}

/// Both in one test: they change the same device.
#[test]
fn an_ordinary_user_needs_the_right_and_no_more() {
    if !can_run() || !is_root() || !has_programs(&["setpriv", "/usr/bin/python3"]) {
        return;
    }
    if !Path::new(DEVICE).exists() {
        skipped("there is no /dev/userfaultfd");
        return;
    }
    let dir = TempDir::new();
    let granted = Granted::to_group(GROUP);
    let done = job(&dir, GROUP).alone();
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""));
    let sum: u64 = (0..64 << 8).map(|page| 2 + page % 200).sum();
    assert_eq!(done.stdout(), format!("{sum}\nb'\\x02\\x00\\x00'\n"));

    let done = torture(&dir, GROUP).alone();
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""), "{}", done.stdout());
    assert!(!done.stdout().contains(" 0 pages stored"), "{}", done.stdout());

    // Another group, so not.
    let done = [job(&dir, GROUP + 1).alone(), torture(&dir, GROUP + 1).alone()];
    drop(granted);
    let anybody = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    if anybody.trim() == "1" {
        skipped("without the right: vm.unprivileged_userfaultfd gives it to everybody");
        return;
    }
    for done in done {
        assert_eq!(done.code(), 125, "{done:?}");
        assert_eq!(done.stdout(), "");
        assert!(done.stderr.contains(DEVICE), "{}", done.stderr);
    }
}

/// Changes all of 64 MiB several times, in system calls, too, and in a child.
const WORK: &str = "import os
b = bytearray(64 << 20)
for k in range(3):
  for i in range(0, len(b), 4096): b[i] = (k + i // 4096) % 200
pid = os.fork()
if pid == 0:
  for i in range(0, len(b), 4096): b[i] = b[i] + 1
  os.write(1, b'child %d %d\\n' % (os.getuid(), sum(b)))
  os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
open('/dev/null', 'wb').write(b)
r, w = os.pipe()
os.write(w, memoryview(b)[4095:8191])
os.write(1, b'%d %d %r\\n' % (os.getuid(), sum(b), os.read(r, 4)))
";

/// Root's program and another user's, one budget.
#[test]
fn what_is_executed_as_another_user_is_managed() {
    if !can_run() || !is_root() || !has_programs(&["setpriv", "/usr/bin/python3"]) {
        return;
    }
    let work = "/usr/bin/python3 -c \"$0\"";
    let user = format!("setpriv --reuid={USER} --regid={GROUP} --clear-groups");
    // Both at the same time; what they say comes in order.
    let script = format!("own=$({work}) & {user} {work} && wait && {user} sh -c 'exec {work}' \"$0\"");
    let job = Job::sh(&script).arg(WORK);
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(32 * MIB)));
    assert!(alone.status.success(), "{}", alone.stderr);
    assert_same_output(&managed, &alone);
    let stats = managed.stats();
    assert!(stats.get("processes") >= 7, "{stats}");
    assert_eq!(stats.get("unmanaged_processes"), 0, "{stats}");
    assert!(stats.get("peak_resident_bytes") <= 32 * MIB, "the budget was exceeded: {stats}");
    assert!(stats.count("pgstore") * 4096 >= 64 * MIB, "hardly anything left: {stats}");
}

/// Behind another root directory there is no library where it was, but the supervisor's in `/proc`.
#[test]
fn what_is_executed_behind_another_root_is_managed() {
    if !can_run() || !is_root() || !has_programs(&["unshare", "mount", "chroot", "/usr/bin/python3"]) {
        return;
    }
    let script = "mount --rbind / \"$1\" || exit 9
mount -t tmpfs none \"$1$(dirname $(dirname ${HMM_DOOR:-/run/x/door}))\" || exit 9
exec chroot \"$1\" /usr/bin/python3 -c \"$0\"";
    let dir = TempDir::new();
    let job = Job::new("unshare").args(["--mount", "sh", "-c", script, WORK]).arg(dir.path());
    let alone = job.alone();
    if alone.status.code() == Some(9) {
        skipped("no mounts here");
        return;
    }
    let managed = job.under(&Hmm::ram(32 * MIB));
    assert_same_output(&managed, &alone);
    let stats = managed.stats();
    assert_eq!(stats.get("unmanaged_processes"), 0, "{stats}");
    assert!(stats.count("pgstore") * 4096 >= 32 * MIB, "hardly anything left: {stats}");
}
