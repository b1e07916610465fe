//! Migration of a lot of memory to a device and back, a block in each call, against a copy of the same bytes.

use super::figure::Figure;
use super::flat::Flat;
use super::memory::{Memory, PageKind};
use super::sample::{Found, Sampler, gb_per_s, time};
use super::space::space;
use anyhow::{Context, Result, ensure};
use hmm::AddressSpace;
use hmm::core::DeviceId;
use hmm::core::addr::PageRange;
use hmm::core::driver::Select;
use hmm::core::notifier::Owner;
use hmm::device::Device as _;
use std::hint::black_box;
use std::sync::Arc;

const MINE: Owner = Owner(0x0062_656e_6368);
const BLOCK_BYTES: usize = 2 << 20;

struct Driver {
    space: AddressSpace,
    device: Arc<Flat>,
    id: DeviceId,
    compound: bool,
}

fn blocks(range: PageRange) -> impl Iterator<Item = PageRange> {
    range.blocks().map(move |(block, _)| block.pages().intersect(range))
}

impl Driver {
    fn new(nr_pages: usize, kind: PageKind) -> Result<Self> {
        let space = space()?;
        let device = Arc::new(Flat::new(nr_pages, kind)?);
        let id = space.add_device(Arc::clone(&device) as _, MINE)?;
        Ok(Self { space, device, id, compound: kind == PageKind::Huge })
    }

    fn select(&self, which: Select) -> Select {
        if self.compound { which | Select::COMPOUND } else { which }
    }

    /// Returns how many pages went.
    fn take(&self, range: PageRange) -> Result<usize> {
        let mut nr = 0;
        for block in blocks(range) {
            let mut migration = self.space.migrate_setup(block, self.select(Select::SYSTEM), MINE)?;
            migration.store(self.id)?;
            nr += migration.pages().finalize();
        }
        Ok(nr)
    }

    /// Returns how many pages came.
    fn bring(&self, range: PageRange) -> Result<usize> {
        let mut nr = 0;
        for block in blocks(range) {
            let mut migration = self.space.migrate_setup(block, self.select(Select::PRIVATE), MINE)?;
            migration.fetch();
            nr += migration.pages().finalize();
        }
        Ok(nr)
    }

    fn used(&self) -> usize {
        usize::try_from(self.device.usage().frames).unwrap_or(usize::MAX)
    }
}

fn copy(to: &mut Memory, from: &Memory) {
    let from = from.words().chunks(BLOCK_BYTES / 8);
    for (to, from) in to.words_mut().chunks_mut(BLOCK_BYTES / 8).zip(from) {
        black_box(to).copy_from_slice(black_box(from));
    }
}

/// Measures both directions.
///
/// # Errors
/// Pages that did not go, or wrong bytes.
pub(crate) fn measure(kind: PageKind, nr_bytes: usize, rounds: u64) -> Result<Found> {
    let (out, home) = match kind {
        PageKind::Small => (Figure::ToDevice4k, Figure::ToSystem4k),
        PageKind::Huge => (Figure::ToDeviceHuge, Figure::ToSystemHuge),
    };
    let mut found = Sampler::default();
    let mut other = Memory::filled(nr_bytes, kind, 0)?;
    // Once in vain, so that device, staging and states are touched.
    let driver = Driver::new(other.nr_pages(), kind)?;
    let mut are_huge = 1.0_f64;
    for round in 0..=rounds {
        // Each round has memory of its own: what came home as small pages would stay so.
        let memory = Memory::filled(nr_bytes, kind, round)?;
        if kind == PageKind::Huge && memory.huge_share()? < 1.0 {
            return Ok(Found::Unavailable(
                "the kernel gives no huge pages here: `echo madvise > \
                 /sys/kernel/mm/transparent_hugepage/enabled`, and have enough free memory"
                    .to_owned(),
            ));
        }
        let floor = gb_per_s(memory.len(), time(|| copy(&mut other, &memory)));
        let (nr, taken) = timed(|| driver.take(memory.pages()))?;
        ensure!(nr == memory.nr_pages(), "{nr} of {} pages went to the device", memory.nr_pages());
        ensure!(driver.used() == nr, "{} frames are in use for {nr} pages", driver.used());
        let (nr, brought) = timed(|| driver.bring(memory.pages()))?;
        ensure!(nr == memory.nr_pages(), "{nr} of {} pages came home", memory.nr_pages());
        ensure!(driver.used() == 0, "{} frames are still in use", driver.used());
        are_huge = are_huge.min(memory.huge_share()?);
        memory.verify(round, 0)?;
        if round > 0 {
            found.add(out, gb_per_s(memory.len(), taken), floor);
            found.add(home, gb_per_s(memory.len(), brought), floor);
        }
    }
    if kind == PageKind::Huge && are_huge < 1.0 {
        found.note(
            home,
            format!("huge pages come home as small ones: {:.0}% are huge again", are_huge * 100.0),
        );
    }
    Ok(found.end())
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let mut result = None;
    let seconds = time(|| result = Some(work()));
    Ok((result.context("it has run")??, seconds))
}
