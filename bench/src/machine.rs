//! On what machine the figures were made: without that they mean nothing.

use std::fs::read_to_string;

/// The facts that figures of paging depend on most.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Machine {
    /// Name of the processor.
    pub(crate) cpu: String,
    /// Processors that this process may use.
    pub(crate) nr_cpus: usize,
    /// Whether a hypervisor is below: there, waking another processor is most of a fault.
    pub(crate) virtual_machine: bool,
    /// All memory, in bytes.
    pub(crate) ram_bytes: u64,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// When anonymous memory gets huge pages: always, madvise or never.
    pub(crate) huge_pages: String,
    /// The kernel's inclination to swap, which zram swap follows.
    pub(crate) swappiness: String,
    /// log2 of how many pages the kernel reads ahead from swap.
    pub(crate) page_cluster: String,
}

impl Machine {
    /// Asks the kernel. What it does not tell is called unknown.
    pub(crate) fn look() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            nr_cpus: std::thread::available_parallelism().map_or(1, usize::from),
            virtual_machine: field(&cpuinfo, "flags").is_some_and(|flags| flags.contains(" hypervisor")),
            ram_bytes: meminfo_bytes("MemTotal").unwrap_or(0),
            kernel: line("/proc/sys/kernel/osrelease"),
            huge_pages: chosen(&line("/sys/kernel/mm/transparent_hugepage/enabled")).to_owned(),
            swappiness: line("/proc/sys/vm/swappiness"),
            page_cluster: line("/proc/sys/vm/page-cluster"),
        }
    }
}

/// Memory that could be had without swapping, in bytes; `None` when the kernel does not tell.
pub(crate) fn available_bytes() -> Option<u64> {
    meminfo_bytes("MemAvailable")
}

fn meminfo_bytes(name: &str) -> Option<u64> {
    let kib: u64 =
        field(&read_to_string("/proc/meminfo").ok()?, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn line(path: &str) -> String {
    read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The value of the first `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// Of several choices the one in brackets.
fn chosen(choices: &str) -> &str {
    let bracketed = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or(choices, |(choice, _)| choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_files() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: fpu hypervisor lahf_lm\n";
        assert_eq!(field(cpuinfo, "model name"), Some("Some CPU: fast"));
        assert_eq!(field(cpuinfo, "bogomips"), None);
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("unknown"), "unknown");
    }

    #[test]
    fn this_machine_has_what_every_machine_has() {
        let machine = Machine::look();
        assert!(machine.nr_cpus > 0);
        assert!(machine.ram_bytes > available_bytes().unwrap());
        assert!(machine.kernel.starts_with(|c: char| c.is_ascii_digit()), "{}", machine.kernel);
    }
}
