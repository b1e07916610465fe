//! What this machine and this process's privileges allow: facts for `hmm doctor`.
//!
//! Unlike the rest of the crate this allocates and reads files: not for the fault path.

mod trial;

use std::fmt;
use std::os::unix::fs::MetadataExt;

use crate::maps::{Maps, Source};
use crate::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use crate::uffd::{Access, EnableError, Features, OpenError, Userfaultfd, supported_features};
use crate::{AddrRange, Errno, PAGE_BYTES};

/// The oldest kernel with `UFFDIO_MOVE`.
const OLDEST_KERNEL: (u32, u32) = (6, 8);

/// How good a fact is for hmm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// As it should be.
    Ok,
    /// hmm works, with less: slower, or some programs will not do.
    Degraded,
    /// hmm does not work.
    Missing,
}

/// One thing found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about; the same on every machine.
    pub name: &'static str,
    /// How good it is.
    pub status: Status,
    /// What was found, and what that means.
    pub detail: String,
    /// What an administrator can do about it.
    pub remedy: Option<String>,
}

impl Fact {
    fn ok(name: &'static str, detail: impl fmt::Display) -> Self {
        Self { name, status: Status::Ok, detail: detail.to_string(), remedy: None }
    }

    fn degraded(name: &'static str, detail: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { name, status: Status::Degraded, detail: detail.to_string(), remedy: Some(remedy.to_string()) }
    }

    fn missing(name: &'static str, detail: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { status: Status::Missing, ..Self::degraded(name, detail, remedy) }
    }
}

/// Finds out everything, in an order to be read in. Changes nothing; takes milliseconds.
pub fn probe() -> Vec<Fact> {
    let mut facts = vec![kernel(), page_size()];
    facts.extend(access());
    facts.extend(features());
    facts.extend([fork(), pagemap_scan(), procmap_query(), huge_pages(), idle_cpus(), trial::fact()]);
    facts
}

fn kernel() -> Fact {
    const NAME: &str = "kernel";
    let upgrade = "run Linux 6.8 or later";
    let release = match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => release.trim().to_owned(),
        Err(why) => return Fact::degraded(NAME, format!("its version cannot be read: {why}"), "mount /proc"),
    };
    match version(&release) {
        Some(version) if version >= OLDEST_KERNEL => Fact::ok(NAME, format!("Linux {release}")),
        Some(_) => Fact::missing(NAME, format!("Linux {release} is too old: no UFFDIO_MOVE"), upgrade),
        None => Fact::degraded(NAME, format!("Linux {release}: a version that says nothing"), upgrade),
    }
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn page_size() -> Fact {
    const NAME: &str = "page size";
    match rustix::param::page_size() as u64 {
        PAGE_BYTES => Fact::ok(NAME, "4096 bytes"),
        other => Fact::missing(
            NAME,
            format!("{other} bytes; hmm supports 4096 only"),
            "boot a kernel with 4 KiB pages",
        ),
    }
}

/// Who may have a userfaultfd, and of which kind.
fn access() -> [Fact; 4] {
    const FULL: &str = "userfaultfd";
    const USER: &str = "userfaultfd, user mode only";
    let full = Userfaultfd::open(Access::Full).map(drop);
    let user = Userfaultfd::open(Access::UserModeOnly).map(drop);
    let user_fact = match user {
        Ok(()) => Fact::ok(USER, "allowed"),
        Err(why) => Fact::missing(USER, "no", why),
    };
    let full_fact = match (full, user) {
        (Ok(()), _) => Fact::ok(FULL, "system calls that touch a page that is away wait for it"),
        (Err(why @ OpenError::Denied { .. }), Ok(())) => Fact::degraded(
            FULL,
            "user mode only: system calls that touch a page that is away fail with EFAULT",
            why,
        ),
        (Err(why), _) => Fact::missing(FULL, "no", why),
    };
    let granted = full.is_ok();
    [full_fact, user_fact, device_node(granted), sysctl(granted)]
}

fn device_node(granted: bool) -> Fact {
    const NAME: &str = "/dev/userfaultfd";
    let detail = match std::fs::metadata(NAME) {
        Ok(node) => format!("owner {}:{}, mode {:04o}", node.uid(), node.gid(), node.mode() & 0o7777),
        Err(why) => why.to_string(),
    };
    if granted {
        Fact::ok(NAME, detail)
    } else {
        Fact::degraded(NAME, detail, "`setfacl -m u:<user>:rw /dev/userfaultfd`, or a udev rule for a group")
    }
}

fn sysctl(granted: bool) -> Fact {
    const NAME: &str = "vm.unprivileged_userfaultfd";
    let detail = match std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd") {
        Ok(value) => value.trim().to_owned(),
        Err(why) => why.to_string(),
    };
    if granted || detail == "1" {
        Fact::ok(NAME, detail)
    } else {
        Fact::degraded(NAME, detail, "`sysctl vm.unprivileged_userfaultfd=1` lets every user have one")
    }
}

/// Features, and what hmm is without each.
const WANTED: [(&str, Features, Status, &str); 7] = [
    ("UFFDIO_MOVE", Features::MOVE, Status::Missing, "pages cannot be taken from the program"),
    (
        "UFFDIO_POISON",
        Features::POISON,
        Status::Degraded,
        "a page lost with its device cannot be told by SIGBUS",
    ),
    ("write protection", Features::PAGEFAULT_FLAG_WP, Status::Missing, "staging cannot be registered"),
    (
        "event of munmap",
        Features::EVENT_UNMAP,
        Status::Missing,
        "unmapping by the program cannot be followed",
    ),
    (
        "event of mremap",
        Features::EVENT_REMAP,
        Status::Missing,
        "moving of mappings by the program cannot be followed",
    ),
    (
        "event of madvise",
        Features::EVENT_REMOVE,
        Status::Missing,
        "dropping of pages by the program cannot be followed",
    ),
    (
        "thread of a fault",
        Features::THREAD_ID,
        Status::Missing,
        "handlers cannot be placed by the faulting thread",
    ),
];

fn features() -> Vec<Fact> {
    let supported = match supported_features() {
        Ok(supported) => supported,
        Err(why) => {
            return vec![Fact::missing("userfaultfd features", "unknown: there is no userfaultfd", why)];
        }
    };
    let fact = |(name, feature, status, loss): (&'static str, Features, Status, &str)| {
        if supported.contains(feature) {
            Fact::ok(name, "supported")
        } else {
            let remedy = "run Linux 6.8 or later, built with CONFIG_PTE_MARKER_UFFD_WP";
            Fact { status, ..Fact::degraded(name, format!("not supported: {loss}"), remedy) }
        }
    };
    WANTED.map(fact).into()
}

fn fork() -> Fact {
    const NAME: &str = "event of fork";
    let loss = "a managed program's fork is refused (EAGAIN) while pages are away";
    // The privilege asked for is the same for both kinds of access.
    let uffd = match Userfaultfd::open(Access::Full).or_else(|_| Userfaultfd::open(Access::UserModeOnly)) {
        Ok(uffd) => uffd,
        Err(why) => return Fact::degraded(NAME, loss, why),
    };
    match uffd.enable(Features::EVENT_FORK) {
        Ok(_) => Fact::ok(NAME, "supported, with the privilege it needs"),
        Err(why @ EnableError::ForkNeedsPrivilege) => {
            Fact::degraded(NAME, format!("no privilege: {loss}"), why)
        }
        Err(why) => Fact::degraded(NAME, loss, why),
    }
}

fn pagemap_scan() -> Fact {
    const NAME: &str = "PAGEMAP_SCAN";
    let mut regions = [PageRegion::default(); 1];
    let place = std::ptr::from_ref(&regions).addr() as u64;
    let page = AddrRange::new(place & !(PAGE_BYTES - 1), PAGE_BYTES);
    let scan = Pagemap::open()
        .and_then(|pagemap| pagemap.scan(page, ScanArgs::any(Categories::PRESENT), &mut regions));
    match scan {
        Ok(_) => Fact::ok(NAME, "works"),
        Err(Errno::NOTTY) => Fact::missing(NAME, "this kernel lacks it", "run Linux 6.8 or later"),
        Err(errno) => Fact::missing(
            NAME,
            format!("/proc/self/pagemap: {errno}"),
            "mount /proc, make the program dumpable",
        ),
    }
}

fn procmap_query() -> Fact {
    const NAME: &str = "PROCMAP_QUERY";
    match Maps::open().map(|maps| maps.source()) {
        Ok(Source::Query) => Fact::ok(NAME, "works"),
        Ok(Source::Text) => Fact::degraded(
            NAME,
            "this kernel lacks it: mappings are looked up by reading all of /proc/self/maps",
            "run Linux 6.11 or later",
        ),
        Err(errno) => {
            Fact::missing(NAME, format!("/proc/self/maps: {errno}"), "mount /proc, make the program dumpable")
        }
    }
}

fn huge_pages() -> Fact {
    const NAME: &str = "transparent huge pages";
    let remedy = "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`";
    let choices = match std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled") {
        Ok(choices) => choices,
        Err(why) => return Fact::degraded(NAME, format!("none: {why}"), remedy),
    };
    match choices.split(['[', ']']).nth(1) {
        Some(mode @ ("always" | "madvise")) => Fact::ok(NAME, mode),
        _ => Fact::degraded(NAME, format!("{}: pages move one by one", choices.trim()), remedy),
    }
}

/// How long an idle CPU of a guest waits before it halts.
const HALT_POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// Serving a fault wakes two threads, as a rule on CPUs that were idle. A virtual machine's kernel can wait for that before
/// it gives an idle CPU back (see the kernel's `virt/guest-halt-polling`).
fn idle_cpus() -> Fact {
    let driver = std::fs::read_to_string("/sys/devices/system/cpu/cpuidle/current_driver");
    idle_cpus_of(driver.as_deref().unwrap_or("none"), std::fs::read_to_string(HALT_POLL).ok().as_deref())
}

fn idle_cpus_of(driver: &str, poll_ns: Option<&str>) -> Fact {
    const NAME: &str = "idle CPUs";
    match (driver.trim(), poll_ns.map(str::trim)) {
        ("haltpoll", Some("0")) => Fact::degraded(
            NAME,
            "a virtual machine's, halted at once: waking one takes many times as long as serving a fault",
            format!("`echo 200000 > {HALT_POLL}` has them wait for so many nanoseconds"),
        ),
        ("haltpoll", Some(poll_ns)) => {
            Fact::ok(NAME, format!("wait for up to {poll_ns} ns before they halt"))
        }
        (driver, _) => Fact::ok(NAME, format!("driver: {driver}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_does_not_wait_before_it_halts_is_told() {
        let status = |driver, poll_ns| idle_cpus_of(driver, poll_ns).status;
        assert_eq!(status("haltpoll\n", Some("0\n")), Status::Degraded);
        assert_eq!(status("haltpoll\n", Some("200000\n")), Status::Ok);
        assert_eq!(status("intel_idle\n", None), Status::Ok);
        assert_eq!(status("none", Some("0\n")), Status::Ok);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("custom"), None);
        assert!(version("6.18") > Some(OLDEST_KERNEL));
        assert!(version("6.7.9") < Some(OLDEST_KERNEL));
    }
}
