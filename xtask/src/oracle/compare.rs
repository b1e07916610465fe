//! Comparing two logs of the oracle's client.
//!
//! A log has lines of `key=value` words, and each line begins with `seed=N`. Lines of a seed are compared in their order,
//! word by word. A difference that has a reason to be is *explained*: a rule names it, and its reason, and it is counted.
//! Any other is a divergence; the rest of its seed is not looked at, because the two sides are not in the same state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Lines of each seed.
pub(super) type Log = BTreeMap<u64, Vec<String>>;

/// Sorts lines by their seeds; lines without one are not of the client.
pub(super) fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Log {
    let mut log = Log::new();
    for line in lines {
        let seed = line.strip_prefix("seed=").and_then(|rest| rest.split(' ').next()?.parse().ok());
        if let Some(seed) = seed {
            log.entry(seed).or_default().push(line.trim_end().to_owned());
        }
    }
    log
}

/// A difference without an explanation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Divergence {
    pub(super) seed: u64,
    /// `None` where one log ends before the other.
    pub(super) kernel: Option<String>,
    pub(super) ours: Option<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |line: &Option<String>| line.clone().unwrap_or_else(|| "(no more lines)".to_owned());
        writeln!(f, "seed {} diverges:", self.seed)?;
        writeln!(f, "  kernel: {}", show(&self.kernel))?;
        write!(f, "  ours:   {}", show(&self.ours))
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) nr_seeds: usize,
    pub(super) nr_lines: usize,
    /// The first divergence of each seed that has one.
    pub(super) divergences: Vec<Divergence>,
    /// How often each rule explained a difference.
    pub(super) explained: BTreeMap<&'static str, usize>,
}

/// Compares all seeds of both.
pub(super) fn compare(kernel: &Log, ours: &Log) -> Comparison {
    let mut result = Comparison::default();
    let seeds: BTreeSet<u64> = kernel.keys().chain(ours.keys()).copied().collect();
    for seed in seeds {
        result.nr_seeds += 1;
        let of = |log: &Log| log.get(&seed).cloned().unwrap_or_default();
        let (kernel, ours) = (of(kernel), of(ours));
        let mut past = Past::default();
        for at in 0..kernel.len().max(ours.len()) {
            result.nr_lines += 1;
            match lines(kernel.get(at), ours.get(at), &mut past) {
                Ok(rules) => {
                    rules.into_iter().for_each(|rule| *result.explained.entry(rule).or_default() += 1)
                }
                Err(()) => {
                    let (kernel, ours) = (kernel.get(at).cloned(), ours.get(at).cloned());
                    result.divergences.push(Divergence { seed, kernel, ours });
                    break;
                }
            }
        }
    }
    result
}

/// What of earlier steps of a seed matters for the rules.
#[derive(Debug, Default)]
struct Past {
    /// There is a child.
    forked: bool,
    /// Pages that one side sees as read-only, and the other perhaps as writable: after a fork; and on a device, from where they
    /// come home so. Those of this line, and of the one before.
    softened: BTreeSet<usize>,
    before: BTreeSet<usize>,
}

impl Past {
    /// Begins a line.
    fn begin(&mut self, line: &str) {
        self.before = std::mem::take(&mut self.softened);
        for (_, bytes) in
            line.split(' ').filter_map(|word| word.split_once('=')).filter(|(key, _)| is_of_device(key))
        {
            let bytes = (0..).zip(pages(bytes).unwrap_or_default());
            self.softened.extend(bytes.filter(|(_, byte)| *byte == PRIVATE | READ).map(|(page, _)| page));
        }
    }
}

/// Whether a word is what a device says of all pages.
fn is_of_device(key: &str) -> bool {
    key.strip_prefix('s').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The rules that explain all differences of two lines; an error if there are none.
fn lines(kernel: Option<&String>, ours: Option<&String>, past: &mut Past) -> Result<Vec<&'static str>, ()> {
    let (Some(kernel), Some(ours)) = (kernel, ours) else { return Err(()) };
    let (kernel_words, ours_words) = (kernel.split(' '), ours.split(' '));
    if kernel_words.clone().count() != ours_words.clone().count() {
        return Err(());
    }
    let op = kernel.split(' ').find_map(|word| word.strip_prefix("op=")).unwrap_or_default();
    past.forked = op != "end-child" && (past.forked || op == "fork" || kernel.contains(" who=child "));
    past.begin(kernel);
    let different = kernel_words.zip(ours_words).filter(|(kernel, ours)| kernel != ours);
    let at = kernel.split(' ').find_map(|word| word.strip_prefix("at=")?.parse().ok()).unwrap_or(0);
    different.map(|(kernel, ours)| explain((op, at), kernel, ours, past).ok_or(())).collect()
}

/// Linux 6.12 makes a range exclusive as a whole or says `EBUSY`. Later versions, which ours follows, go page by page, and
/// say what was wrong with the first that failed.
const EXCLUSIVE_FAILS: &str = "exclusive: 6.12 says EBUSY for any failure";
/// Linux 6.12 splits a huge page when it migrates; later versions, which ours follows, keep it.
const HUGE_IS_SPLIT: &str = "huge pages: 6.12 splits them when they migrate";
/// When one side of a fork has got its own copy of a page, the other's entry stays read-only until the next write. User space
/// sees that the page is no longer shared, but not the entry's bit.
const WRITABLE_SOON: &str =
    "after a fork: user space cannot tell that an unshared page is still mapped read-only";

/// The rule that explains two different words of a step at a page, if there is one.
fn explain((op, at): (&str, usize), kernel: &str, ours: &str, past: &mut Past) -> Option<&'static str> {
    let (key, kernel) = kernel.split_once('=')?;
    let ours = ours.strip_prefix(key)?.strip_prefix('=')?;
    let of_device = is_of_device(key);
    let snapshot = of_device || (op, key) == ("snapshot", "bytes");
    match (op, key) {
        ("exclusive", "ret") if kernel == "EBUSY" && matches!(ours, "EFAULT" | "EOPNOTSUPP") => {
            Some(EXCLUSIVE_FAILS)
        }
        // What was entered when it looked writable needs no fault; and what looks writable now is another page.
        (_, "faults") if past.forked && are_one_apart(kernel, ours) => Some(WRITABLE_SOON),
        _ if snapshot => {
            let (kernel, ours) = (pages(kernel)?, pages(ours)?);
            if kernel.len() != ours.len() {
                return None;
            }
            let first = if of_device { 0 } else { at };
            let mut pairs =
                (first..).zip(kernel.into_iter().zip(ours)).filter(|(_, (kernel, ours))| kernel != ours);
            if pairs
                .clone()
                .all(|(_, (kernel, ours))| kernel != ERROR && ours != ERROR && kernel ^ ours == HUGE)
            {
                return Some(HUGE_IS_SPLIT);
            }
            let is_soft = |(page, (kernel, ours)): (usize, (u8, u8))| {
                let is_pair = kernel ^ ours == READ ^ WRITE && kernel & READ != 0;
                let may_be = kernel & KIND != PRIVATE && past.forked || past.before.contains(&page);
                if is_pair && may_be {
                    past.softened.insert(page);
                }
                is_pair && may_be
            };
            pairs.all(is_soft).then_some(WRITABLE_SOON)
        }
        _ => None,
    }
}

/// What a snapshot says of a page: it cannot be mirrored; it is system memory, mapped read-only or writable; the bit for
/// a huge mapping; the bits for a frame of the asking device, which the CPU cannot reach.
const ERROR: u8 = 0xff;
const READ: u8 = 0x01;
const WRITE: u8 = 0x02;
const HUGE: u8 = 0x04;
const PRIVATE: u8 = 0x20;
/// The bits that say where a page is.
const KIND: u8 = 0xf0;

fn are_one_apart(kernel: &str, ours: &str) -> bool {
    let numbers = (kernel.parse::<u64>(), ours.parse::<u64>());
    matches!(numbers, (Ok(kernel), Ok(ours)) if kernel.abs_diff(ours) == 1)
}

/// The bytes of a snapshot (`11*4,02`), one for each page. `None` if it is none.
fn pages(runs: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for run in runs.split(',') {
        let (byte, count) = run.split_once('*').unwrap_or((run, "1"));
        let byte = u8::from_str_radix(byte, 16).ok()?;
        bytes.extend(std::iter::repeat_n(byte, count.parse().ok()?));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
== kernel
seed=1 step=1 who=parent op=dev-read dev=0 at=3 n=2 ret=0 cpages=2 faults=1 bytes=0*2 s0=11*2,00*3
seed=2 step=1 who=parent op=exclusive dev=0 at=3 n=2 ret=EBUSY cpages=- faults=- s0=00*5
seed=1 step=2 who=parent op=cpu-read at=0 n=1 bytes=8d51e0aa s0=11*2,00*3
seed=2 step=2 who=parent op=check-exclusive dev=0 at=3 n=2 ret=0 cpages=0 faults=0 s0=00*5
seed=2 step=3 who=parent op=to-dev dev=0 at=0 n=5 ret=0 cpages=5 faults=0 bytes=0*5 s0=22*5
";

    fn compared(altered: &str) -> Comparison {
        compare(&parse(LOG.lines()), &parse(altered.lines()))
    }

    #[test]
    fn equal_logs_are_equal() {
        let result = compared(LOG);
        assert_eq!((result.nr_seeds, result.nr_lines), (2, 5));
        assert!(result.divergences.is_empty() && result.explained.is_empty(), "{result:?}");
    }

    #[test]
    fn any_altered_word_is_a_divergence() {
        for (from, to, seed) in [
            ("bytes=8d51e0aa", "bytes=8d51e0ab", 1),
            ("faults=1", "faults=2", 1),
            ("cpages=2", "cpages=1", 1),
            ("s0=22*5", "s0=22*4,00", 2),
            ("s0=22*5", "s0=EBUSY", 2),
            ("s0=22*5", "s0=22*5 all=0*5", 2),
            ("ret=EBUSY", "ret=0", 2),
            ("ret=0 cpages=0 faults=0", "ret=EPERM cpages=- faults=-", 2),
        ] {
            let result = compared(&LOG.replacen(from, to, 1));
            assert_eq!(result.divergences.len(), 1, "{from} {to}");
            assert_eq!(result.divergences[0].seed, seed, "{from} {to}");
            assert!(result.divergences[0].to_string().contains(to), "{from} {to}");
        }
    }

    #[test]
    fn the_first_divergence_of_a_seed_is_told() {
        let altered = LOG.replacen("cpages=2", "cpages=1", 1).replacen("8d51e0aa", "0", 1);
        let result = compared(&altered);
        assert_eq!(result.divergences.len(), 1);
        assert!(
            result.divergences[0].ours.as_ref().is_some_and(|line| line.contains("step=1 ")),
            "{result:?}"
        );
    }

    #[test]
    fn missing_lines_and_seeds_are_divergences() {
        let nr_lines = LOG.lines().count();
        for nr_kept in 1..nr_lines {
            let altered: Vec<&str> = LOG.lines().take(nr_kept).collect();
            let result = compared(&altered.join("\n"));
            assert!(!result.divergences.is_empty(), "{nr_kept}");
            assert!(result.divergences.iter().all(|divergence| divergence.ours.is_none()), "{nr_kept}");
        }
    }

    #[test]
    fn what_is_explained_is_counted() {
        let altered = LOG.replacen("ret=EBUSY", "ret=EFAULT", 1).replacen("s0=22*5", "s0=26*3,22*2", 1);
        let result = compared(&altered);
        assert!(result.divergences.is_empty(), "{result:?}");
        let expected = [(EXCLUSIVE_FAILS, 1), (HUGE_IS_SPLIT, 1)];
        assert_eq!(result.explained, expected.into());
    }

    #[test]
    fn a_page_may_look_writable_while_there_is_a_child() {
        let log = |before: &str, op: &str, what: &str| {
            format!("seed=1 step=1 op={before} s0=01*3\nseed=1 step=2 op={op} {what}\n")
        };
        let nr_divergences = |before: &str, op: &str, kernel: &str, ours: &str| {
            let (kernel, ours) = (log(before, op, kernel), log(before, op, ours));
            compare(&parse(kernel.lines()), &parse(ours.lines())).divergences.len()
        };
        for (kernel, ours) in [("s0=01*3", "s0=01,02*2"), ("s0=41*3", "s0=42,41*2"), ("faults=1", "faults=0")]
        {
            assert_eq!(nr_divergences("fork", "map", kernel, ours), 0, "{kernel}");
            assert_eq!(nr_divergences("map", "map", kernel, ours), 1, "{kernel}");
            assert_eq!(nr_divergences("fork", "end-child", kernel, ours), 1, "{kernel}");
        }
        assert_eq!(
            nr_divergences("fork", "map", "faults=0", "faults=1"),
            0,
            "what looks writable is another page"
        );
        assert_eq!(nr_divergences("fork", "map", "faults=2", "faults=0"), 1, "more than one");
        assert_eq!(nr_divergences("fork", "map", "s0=01,02*2", "s0=01*3"), 1, "the other way round");
        assert_eq!(nr_divergences("fork", "map", "s0=21*3", "s0=21,22*2"), 1, "it was not seen before");
        assert_eq!(nr_divergences("fork", "map", "s0=01*3", "s0=01,42*2"), 1, "another place");
    }

    #[test]
    fn what_was_read_only_goes_to_a_device_and_comes_home() {
        let nr_divergences = |kernel: [&str; 2], ours: [&str; 2]| {
            let log = |[first, last]: [&str; 2]| {
                format!("seed=1 step=1 op=fork s0={first}*2\nseed=1 step=2 op=map s0={last}*2\n")
            };
            compare(&parse(log(kernel).lines()), &parse(log(ours).lines())).divergences.len()
        };
        assert_eq!(nr_divergences(["01", "21"], ["02", "22"]), 0);
        assert_eq!(nr_divergences(["21", "01"], ["21", "02"]), 0);
        assert_eq!(nr_divergences(["22", "21"], ["22", "22"]), 1);
    }
}
