//! Which operation is next.
//!
//! Not chosen are operations whose results may differ for good reasons: `MADV_FREE` (the kernel may keep the bytes or
//! not), a move of several mappings, and what Linux 6.12 does not have (the commands 8 and 9). Nor is coherent memory
//! released: 6.12 waits for ever, and unkillably, for any page in it that it cannot evict.

use crate::dmirror::Command;
use crate::region::{HUGE, Prot, Range};
use crate::rng::Rng;

/// One step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    /// `device` counts the open ones. Without a buffer the device gets a null pointer.
    Device {
        command: Command,
        device: usize,
        range: Range,
        buffer: bool,
    },
    Reopen {
        device: usize,
    },
    CpuRead(Range),
    CpuWrite(Range),
    SysRead(Range),
    SysWrite(Range),
    Change(Range, Change),
    Fork,
    EndChild,
}

/// A change of mappings, or of what they hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Map,
    Unmap,
    Protect(Prot),
    Remap { to: usize },
    Advise(Advice),
}

/// What madvise(2) is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Advice {
    DontNeed,
    Cold,
    PopulateRead,
    PopulateWrite,
}

impl Advice {
    pub(crate) fn bits(self) -> libc::c_int {
        match self {
            Self::DontNeed => libc::MADV_DONTNEED,
            Self::Cold => libc::MADV_COLD,
            Self::PopulateRead => libc::MADV_POPULATE_READ,
            Self::PopulateWrite => libc::MADV_POPULATE_WRITE,
        }
    }
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) nr_pages: usize,
    pub(crate) nr_devices: usize,
    pub(crate) huge: bool,
    /// Whether devices are asked to give their memory back.
    pub(crate) release: bool,
    /// Whether devices are opened anew: not by a child. In Linux the last close of a device empties it for all processes.
    pub(crate) opens: bool,
}

/// Commands, as often as they are wanted.
const COMMANDS: [Command; 16] = [
    Command::Read,
    Command::Read,
    Command::Read,
    Command::Write,
    Command::Write,
    Command::Write,
    Command::MigrateToDevice,
    Command::MigrateToDevice,
    Command::MigrateToDevice,
    Command::MigrateToDevice,
    Command::MigrateToSystem,
    Command::MigrateToSystem,
    Command::Exclusive,
    Command::Exclusive,
    Command::CheckExclusive,
    Command::Snapshot,
];

const ADVICES: [Advice; 6] = [
    Advice::DontNeed,
    Advice::DontNeed,
    Advice::DontNeed,
    Advice::Cold,
    Advice::PopulateRead,
    Advice::PopulateWrite,
];

const PROTS: [Prot; 5] = [Prot::ReadWrite, Prot::ReadWrite, Prot::ReadWrite, Prot::Read, Prot::Nothing];

impl World {
    /// The next operation.
    pub(crate) fn choose(self, rng: &mut Rng) -> Op {
        let range = self.range(rng);
        match rng.below(100) {
            0..50 => self.command(rng, range),
            50..62 => Op::CpuRead(range),
            62..74 => Op::CpuWrite(range),
            74..77 => Op::SysRead(range),
            77..80 => Op::SysWrite(range),
            80..84 => Op::Change(range, Change::Map),
            84..86 => Op::Change(range, Change::Unmap),
            86..91 => Op::Change(range, Change::Protect(rng.pick(&PROTS))),
            91..94 => Op::Change(range, Change::Remap { to: self.place(rng, range) }),
            94..97 => Op::Change(range, Change::Advise(rng.pick(&ADVICES))),
            97..99 => Op::Fork,
            _ => Op::EndChild,
        }
    }

    fn command(self, rng: &mut Rng, range: Range) -> Op {
        let device = rng.below(self.nr_devices);
        match rng.below(100) {
            0 if self.opens => Op::Reopen { device },
            // The device ignores the range, but checks it.
            1 if self.release => Op::Device { command: Command::Release, device, range, buffer: true },
            2 => Op::Device { command: rng.pick(&COMMANDS), device, range, buffer: false },
            3 => {
                let range = Range { at: range.at, n: 0 };
                Op::Device { command: rng.pick(&COMMANDS), device, range, buffer: true }
            }
            _ => Op::Device { command: rng.pick(&COMMANDS), device, range, buffer: true },
        }
    }

    /// A few pages; if there are huge ones, also whole ones.
    fn range(self, rng: &mut Rng) -> Range {
        let unit = if self.huge && rng.once_in(2) { HUGE } else { 1 };
        let nr_units = self.nr_pages / unit;
        let at = rng.below(nr_units);
        let n = 1 + rng.below((nr_units - at).min(8));
        Range { at: at * unit, n: n * unit }
    }

    /// Where so many pages have room; huge pages at a huge page's place.
    fn place(self, rng: &mut Rng, range: Range) -> usize {
        let unit = if range.n.is_multiple_of(HUGE) { HUGE } else { 1 };
        rng.below((self.nr_pages - range.n) / unit + 1) * unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_depend_on_the_seed_alone_and_stay_in_the_region() {
        for (nr_pages, huge) in [(24, false), (2 * HUGE, true)] {
            let world = World { nr_pages, nr_devices: 2, huge, release: true, opens: true };
            let choices = |seed| {
                let mut rng = Rng::new(seed);
                (0..2000).map(|_| world.choose(&mut rng)).collect::<Vec<_>>()
            };
            let show = |seed| format!("{:?}", choices(seed));
            assert_eq!(show(1), show(1));
            assert_ne!(show(1), show(2));
            let mut kinds = std::collections::BTreeSet::new();
            for op in choices(3) {
                let text = format!("{op:?}");
                kinds.insert(text.split([' ', '(']).next().unwrap_or_default().to_owned());
                if let Op::CpuRead(range) | Op::Change(range, _) = op {
                    assert!(range.n > 0 && range.at + range.n <= nr_pages, "{text}");
                }
                if let Op::Change(range, Change::Remap { to }) = op {
                    assert!(to + range.n <= nr_pages, "{text}");
                }
            }
            assert_eq!(kinds.len(), 9, "{kinds:?}");
        }
    }
}
