//! Operations that are made smaller, or others, because their results may differ for good reasons: `README.md` has these, under
//! "Not compared". It depends on nothing but what was done, and on snapshots, which are compared.

use crate::dmirror::{Command, FIRST_COHERENT};
use crate::op::{Change, Op};
use crate::region::{Prot, Range, Region};
use crate::run::Runner;

/// A page in the memory of the device that was asked, which is private: these bits, of [`KIND`].
const PRIVATE: u8 = 0x20;
/// The bits of a snapshot that say where a page is.
const KIND: u8 = 0xf0;
/// A page in the memory of a coherent device, of the one that was asked or of another.
const COHERENT: [u8; 2] = [0x40, 0x50];
/// What a snapshot says of an exclusive page.
const NOTHING: u8 = 0;

impl Runner {
    /// What is done instead of an operation.
    pub(crate) fn limit(&self, op: Op) -> Op {
        if let Op::Device { command, device, range, buffer } = op
            && range.n > 0
        {
            let (command, range) = self.limit_command(command, device, range);
            return Op::Device { command, device, range, buffer };
        }
        // It makes copies of what is shared, which in read-only mappings is not noticed.
        if let Op::SysRead(range) = op
            && self.has_child()
            && self.front_outside_frames(range) < range.n
        {
            return Op::CpuRead(range);
        }
        // Linux keeps the page exclusive, but for nobody.
        if let Op::Change(range, Change::Remap { .. }) = op
            && self.is_exclusive(range)
        {
            return Op::CpuRead(range);
        }
        // From then on the page can be read only in Linux, until the CPU has written to it.
        if let Op::Change(range, Change::Protect(prot)) = op
            && self.region.first_to_protect(range, prot).is_some()
            && (self.is_exclusive(range) || prot != Prot::Read && self.is_private(range))
        {
            return Op::CpuRead(range);
        }
        op
    }

    fn limit_command(&self, command: Command, device: usize, range: Range) -> (Command, Range) {
        let has_child = self.has_child();
        let is_coherent = self.devices[device].0 >= FIRST_COHERENT;
        let writable = Range { n: self.region.writable_front(range).max(1), ..range };
        match command {
            // It moves the other process's pages, too.
            Command::MigrateToDevice if self.who == "child" || has_child && is_coherent => {
                (Command::Read, range)
            }
            // All of it, or nothing of it.
            Command::Exclusive => match self.front_outside_frames(writable) {
                0 => (Command::Read, range),
                n => (command, Range { n, ..range }),
            },
            Command::Write if has_child => (command, self.faulted(device, writable)),
            Command::Read | Command::Write => (command, self.faulted(device, range)),
            Command::MigrateToDevice
            | Command::MigrateToSystem
            | Command::Snapshot
            | Command::CheckExclusive
            | Command::Release => (command, range),
        }
    }

    /// Whether there are two processes.
    fn has_child(&self) -> bool {
        self.child.is_some() || self.who == "child"
    }

    /// The pages at the front of a range that are in no coherent device's memory.
    fn front_outside_frames(&self, range: Range) -> usize {
        let is_in_frame = |page: usize| self.seen.iter().any(|seen| COHERENT.contains(&(seen[page] & KIND)));
        range.pages().take_while(|&page| !is_in_frame(page)).count()
    }

    /// A fault takes home what is behind it in the same mapping.
    fn faulted(&self, device: usize, range: Range) -> Range {
        if self.seen.get(device).is_some_and(|seen| has_private(seen, range)) {
            Range { n: self.region.front_in_one(range), ..range }
        } else {
            range
        }
    }

    fn is_exclusive(&self, range: Range) -> bool {
        self.exclusive[range.pages()].contains(&true)
    }

    /// Whether a page is in the memory of a private device that is open.
    fn is_private(&self, range: Range) -> bool {
        self.seen.iter().any(|seen| has_private(seen, range))
    }

    /// Takes notice of pages that are not exclusive any more.
    pub(crate) fn forget_shared(&mut self) {
        for seen in &self.seen {
            for (exclusive, byte) in self.exclusive.iter_mut().zip(seen) {
                *exclusive &= *byte == NOTHING;
            }
        }
    }

    /// Makes all memory writable, and brings home what is on a device.
    pub(crate) fn bring_home(&mut self) {
        let all = self.region.all();
        while let Some(range) = self
            .region
            .mapped()
            .into_iter()
            .find_map(|run| self.region.first_to_protect(run, Prot::ReadWrite))
        {
            if self.region.protect(range, Prot::ReadWrite).is_err() {
                break;
            }
        }
        for (_, device) in &self.devices {
            for run in self.region.mapped() {
                let _ = device.ask(Command::MigrateToSystem, Region::addr(run.at), run.n, None);
            }
        }
        self.region.read(all);
    }

    /// Has each process have its own pages.
    pub(crate) fn unshare(&self) {
        for run in self.region.mapped() {
            let _ = self.region.advise(run, libc::MADV_POPULATE_WRITE);
        }
    }
}

/// Whether a device has said of a page of the range that it is in its own private memory.
fn has_private(seen: &[u8], range: Range) -> bool {
    seen[range.pages()].iter().any(|byte| byte & KIND == PRIVATE)
}
