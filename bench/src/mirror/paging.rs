//! What it takes to bring memory home, against what its parts take alone: the bare fault, the codec, the move.

use super::figure::Figure;
use super::sample::{Found, Sampler};
use super::space::{Lacking, bounded};
use crate::data::{Data, Generator, PAGE_BYTES, PAGE_WORDS, Page, Random};
use crate::floors::{Lz4Floor, lz4_floors, userland_floors};
use crate::latency::Touches;
use crate::report::median;
use anyhow::{Context, Result, ensure};
use hmm::{AddressSpace, Region};
use hmm_uapi::AddrRange;
use hmm_uapi::pagemap::{Categories, PageRegion, Pagemap, ScanArgs};
use std::hint::black_box;
use std::time::Instant;

const BLOCK_PAGES: usize = 512;
const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_BYTES;
const DATA: Data = Data::Compressible;
/// The working set is so many times the budget.
const TIMES: usize = 4;
/// The fewest faults and blocks that a median is taken of.
const FEWEST: usize = 8;

/// Measures touches of single pages at random, and of whole blocks from front to back, in memory of which most is away.
///
/// # Errors
/// Wrong bytes, or memory that does not leave.
pub(crate) fn measure(ram_bytes: usize, rounds: u64) -> Result<Found> {
    let mut found = Sampler::default();
    let space = bounded(ram_bytes)?;
    let mut region = space.alloc(TIMES * ram_bytes).context("no memory to measure on")?;
    let generator = Generator::new(DATA, 5);
    for (number, page) in region.as_mut_slice::<u64>().as_chunks_mut().0.iter_mut().enumerate() {
        generator.fill(number, 0, page);
    }
    let nr_pages = region.len() / PAGE_BYTES;
    let mut random = Random::new(3);
    for round in 0..=rounds {
        let floors = Parts::measure()?;
        let page_ns = touch_pages(&region, &mut random, nr_pages)?;
        let block_ns = touch_blocks(&region, &mut random)?;
        if round > 0 {
            found.add(Figure::FaultHome4k, page_ns / 1e3, floors.page_ns / 1e3);
            found.add(Figure::FaultHome2m, block_ns / 1e3, floors.block_ns / 1e3);
        }
    }
    verify(&region, &generator)?;
    let stats = space.stats();
    ensure!(
        stats.fetched > 0 && stats.poisoned == 0,
        "no page came from the device, or one was lost: {stats:?}"
    );
    found.note(
        Figure::FaultHome2m,
        "every page of a block touched in order, from the first until all are there".to_owned(),
    );
    Ok(found.end())
}

/// The floors, measured beside the figures.
struct Parts {
    page_ns: f64,
    block_ns: f64,
}

impl Parts {
    fn measure() -> Result<Self> {
        let (fault, verbs) = userland_floors().map_err(|why| Lacking::new(format!("{why:#}")))?;
        let lz4 = lz4_floors(DATA)?;
        let decompress_ns = |unit_bytes: usize| {
            let floor: Option<&Lz4Floor> = lz4.iter().find(|floor| floor.unit_bytes == unit_bytes);
            floor.map(|floor| unit_bytes as f64 / floor.decompress_gb_per_s).context("lz4 was not measured")
        };
        Ok(Self {
            page_ns: fault.same_cpu_ns + decompress_ns(PAGE_BYTES)?,
            block_ns: verbs.move_2m_ns + decompress_ns(BLOCK_BYTES)?,
        })
    }
}

fn pages(region: &Region) -> &[Page] {
    region.as_slice::<u64>().as_chunks::<PAGE_WORDS>().0
}

/// Median over the touches that faulted.
fn touch_pages(region: &Region, random: &mut Random, nr_touches: usize) -> Result<f64> {
    let (pages, mut touches) = (pages(region), Touches::calibrate());
    for _ in 0..nr_touches {
        let page = &pages[random.below(pages.len())];
        touches.time(|| black_box(page)[0]);
    }
    let (nr, median) = (touches.nr_faulted(), touches.percentiles());
    let median = median.filter(|_| nr >= FEWEST as u64);
    median.map(|at| at.p50_ns).with_context(|| format!("only {nr} of {nr_touches} touches faulted"))
}

/// Median over blocks of which no page was there: of the first half, each once, after all have been read in order.
fn touch_blocks(region: &Region, random: &mut Random) -> Result<f64> {
    let pages = pages(region);
    let pagemap = Pagemap::open().context("cannot open /proc/self/pagemap")?;
    let touch = |block: &[Page]| {
        for page in block {
            black_box(black_box(page)[0]);
        }
    };
    touch(pages);
    let mut blocks: Vec<&[Page]> = pages[..pages.len() / 2].chunks_exact(BLOCK_PAGES).collect();
    let (nr_blocks, mut times) = (blocks.len(), Vec::new());
    while !blocks.is_empty() {
        let block = blocks.swap_remove(random.below(blocks.len()));
        if is_here(&pagemap, block)? {
            continue;
        }
        let begin = Instant::now();
        touch(block);
        times.push(begin.elapsed().as_nanos() as f64);
    }
    ensure!(times.len() >= FEWEST, "only {} of {nr_blocks} blocks were away as a whole", times.len());
    median(times.into_iter()).context("no time was taken")
}

/// Whether any page of the block is mapped.
fn is_here(pagemap: &Pagemap, block: &[Page]) -> Result<bool> {
    let addrs = AddrRange::new(block.as_ptr().expose_provenance() as u64, BLOCK_BYTES as u64);
    let mut regions = [PageRegion::default(); 1];
    let scanned =
        pagemap.scan(addrs, ScanArgs::any(Categories::PRESENT), &mut regions).context("PAGEMAP_SCAN")?;
    Ok(scanned.nr_regions > 0)
}

fn verify(region: &Region, generator: &Generator) -> Result<()> {
    let mut predicted = [0; PAGE_WORDS];
    for (number, page) in pages(region).iter().enumerate() {
        generator.fill(number, 0, &mut predicted);
        ensure!(*page == predicted, "wrong bytes in page {number}");
    }
    Ok(())
}

/// Measures work on memory that is a small part of what is managed, against the same work when nothing else is.
///
/// # Errors
/// Wrong bytes, or addresses that the kernel does not give.
pub(crate) fn sparse(touched_bytes: usize, rounds: u64) -> Result<Found> {
    const MANAGED_BYTES: usize = 1 << 40;
    let mut found = Sampler::default();
    for round in 0..=rounds {
        let dense = spread(touched_bytes, touched_bytes)?;
        let sparse = spread(MANAGED_BYTES, touched_bytes)?;
        if round > 0 {
            let speed = |seconds: f64| super::sample::gb_per_s(touched_bytes, seconds);
            found.add(Figure::SparseWork, speed(sparse.seconds), speed(dense.seconds));
            found.add(Figure::SparseTables, sparse.tables_mib, dense.tables_mib);
        }
    }
    found.note(
        Figure::SparseWork,
        "2 MiB at a time, evenly spread; half of what is touched may be resident".to_owned(),
    );
    Ok(found.end())
}

struct Spread {
    seconds: f64,
    tables_mib: f64,
}

/// Fills blocks that are spread over managed memory, changes every word of them once more, and checks it.
fn spread(managed_bytes: usize, touched_bytes: usize) -> Result<Spread> {
    let space: AddressSpace = bounded(touched_bytes / 2)?;
    let mut region = space.alloc(managed_bytes).map_err(|why| {
        Lacking::new(format!("the kernel gives no {} GiB of addresses: {why}", managed_bytes >> 30))
    })?;
    let nr_blocks = touched_bytes / BLOCK_BYTES;
    let block_words = BLOCK_BYTES / 8;
    let stride = region.len() / 8 / nr_blocks;
    let words = region.as_mut_slice::<u64>();
    let begin = Instant::now();
    for number in 0..nr_blocks {
        let block = &mut words[number * stride..][..block_words];
        block.iter_mut().enumerate().for_each(|(index, word)| *word = content(number, index));
    }
    for number in 0..nr_blocks {
        words[number * stride..][..block_words].iter_mut().for_each(|word| *word = word.wrapping_add(1));
    }
    let seconds = begin.elapsed().as_secs_f64();
    for number in 0..nr_blocks {
        let block = &words[number * stride..][..block_words];
        let wrong = (0..).zip(block).find(|(index, word)| **word != content(number, *index).wrapping_add(1));
        ensure!(wrong.is_none(), "wrong bytes in block {number}: {wrong:x?}");
    }
    let stats = space.stats();
    ensure!(stats.stored > 0, "nothing was stored: {stats:?}");
    Ok(Spread { seconds, tables_mib: stats.metadata_bytes as f64 / f64::from(1 << 20) })
}

/// Words of which lz4 makes about a third.
const fn content(block: usize, index: usize) -> u64 {
    let number = (block * BLOCK_BYTES / 8 + index) as u64;
    if index.is_multiple_of(4) { number.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { number >> 8 }
}
