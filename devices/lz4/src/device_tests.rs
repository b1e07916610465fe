use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};

use hmm_device::conformance;
use proptest::prelude::*;

use super::*;
use crate::test_pool::ProbedPool;

const MIB: usize = 1 << 20;

fn device(capacity_bytes: usize) -> Lz4 {
    Lz4::new(Lz4Config::new(capacity_bytes)).unwrap()
}

/// A page of a kind that is of interest here: compressible to about `percent` of its size; 0 is same-filled.
fn page(seed: u64, percent: usize) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    fill_same(&mut page, seed);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for slot in page[..PAGE_SIZE * percent / 100 / 8 * 8].chunks_exact_mut(8) {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let mixed = (state ^ (state >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        slot.copy_from_slice(&(mixed ^ (mixed >> 32)).to_le_bytes());
    }
    page
}

fn pages(seed: u64, percents: &[usize]) -> Vec<u8> {
    (seed..).zip(percents).flat_map(|(seed, percent)| page(seed, *percent)).collect()
}

fn put(device: &Lz4, bytes: &[u8], access: Access) -> Vec<DevicePfn> {
    let mut frames = vec![DevicePfn(0); bytes.len() / PAGE_SIZE];
    assert_eq!(device.alloc(&mut frames), frames.len());
    assert_eq!(device.store(Store { frames: &frames, bytes, access }), Transfer::complete(frames.len()));
    frames
}

fn get(device: &Lz4, frames: &[DevicePfn]) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; frames.len() * PAGE_SIZE];
    device.fetch(Fetch { frames, bytes: &mut bytes }).stop.map_or(Ok(bytes), Err)
}

/// Stores noise until the device is full; returns the frames.
fn fill(device: &Lz4, percent: usize) -> Vec<DevicePfn> {
    let mut all = Vec::new();
    for seed in 1.. {
        let mut frame = [DevicePfn(0)];
        if device.alloc(&mut frame) == 0 {
            break;
        }
        let outcome =
            device.store(Store { frames: &frame, bytes: &page(seed, percent), access: Access::Random });
        if outcome.stop.is_some() {
            device.free(&frame);
            break;
        }
        all.extend(frame);
    }
    all
}

#[test]
fn conforms() {
    for verify in [false, true] {
        conformance::check(|| Lz4::new(Lz4Config::new(4 * MIB).verify(verify)).unwrap());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Store { percents: Vec<usize>, access: Access },
    Fetch { at: usize, len: usize },
    Free { at: usize, len: usize },
    Holds { at: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let percents = prop::collection::vec(prop_oneof![Just(0_usize), 1..40_usize, 0..=100_usize], 1..14);
    let access = prop_oneof![Just(Access::Random), Just(Access::Stream)];
    prop_oneof![
        3 => (percents, access).prop_map(|(percents, access)| Op::Store { percents, access }),
        3 => (0..1000_usize, 1..9_usize).prop_map(|(at, len)| Op::Fetch { at, len }),
        2 => (0..1000_usize, 1..20_usize).prop_map(|(at, len)| Op::Free { at, len }),
        1 => (0..1000_usize).prop_map(|at| Op::Holds { at }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a map of what was stored, on a device that is often full.
    #[test]
    fn behaves_like_a_map(ops in prop::collection::vec(op(), 1..400), verify: bool) {
        let device = Lz4::new(Lz4Config::new(3 * MIB / 2).verify(verify)).unwrap();
        let mut model: HashMap<DevicePfn, Vec<u8>> = HashMap::new();
        // Frames in the order in which they were stored, so that runs meet units.
        let mut order: Vec<DevicePfn> = Vec::new();
        for (step, op) in ops.into_iter().enumerate() {
            let run = |at: usize, len: usize| {
                let start = at % order.len().max(1);
                start..(start + len).min(order.len())
            };
            match op {
                Op::Store { percents, access } => {
                    let bytes = pages(step as u64 * 1000, &percents);
                    let mut frames = vec![DevicePfn(0); percents.len()];
                    let granted = device.alloc(&mut frames);
                    let bytes = &bytes[..granted * PAGE_SIZE];
                    let outcome = device.store(Store { frames: &frames[..granted], bytes, access });
                    prop_assert!(matches!(outcome.stop, None | Some(DeviceError::OutOfMemory)));
                    for (frame, page) in frames.iter().zip(bytes.chunks(PAGE_SIZE)).take(outcome.done) {
                        prop_assert!(model.insert(*frame, page.to_vec()).is_none(), "handed out twice");
                        order.push(*frame);
                    }
                    device.free(&frames[outcome.done..granted]);
                }
                Op::Fetch { at, len } => {
                    let frames = &order[run(at, len)];
                    let want: Vec<u8> = frames.iter().flat_map(|frame| model[frame].clone()).collect();
                    prop_assert!(get(&device, frames).unwrap() == want);
                }
                Op::Free { at, len } => {
                    let ended: Vec<DevicePfn> = order.drain(run(at, len)).collect();
                    device.free(&ended);
                    ended.iter().for_each(|frame| _ = model.remove(frame));
                }
                Op::Holds { at } => {
                    if let Some(frame) = order.get(at % order.len().max(1)) {
                        prop_assert!(device.holds(*frame, &model[frame]));
                        let mut other = model[frame].clone();
                        other[at * 4] ^= 1;
                        prop_assert!(!device.holds(*frame, &other));
                    }
                }
            }
            let (usage, stats) = (device.usage(), device.stats());
            prop_assert_eq!(usage.frames, model.len() as u64);
            prop_assert_eq!(stats.logical_bytes(), (model.len() * PAGE_SIZE) as u64);
            prop_assert!(usage.used_bytes <= usage.capacity_bytes);
            prop_assert!(stats.stored_bytes <= stats.slot_bytes && stats.slot_bytes <= stats.slab_bytes);
        }
        for (frame, bytes) in &model {
            prop_assert!(get(&device, &[*frame]).unwrap() == *bytes);
        }
        device.free(&order);
        let stats = device.stats();
        prop_assert_eq!((stats.stored_bytes, stats.slot_bytes, stats.slab_bytes), (0, 0, 0));
        prop_assert_eq!(stats.logical_bytes(), 0);
    }
}

#[test]
fn the_capacity_bounds_what_is_resident() {
    for (percent, capacity) in [(100, 8 * MIB), (30, 8 * MIB), (6, 4 * MIB)] {
        let config = Lz4Config::new(capacity);
        let (pool, probe) = ProbedPool::new(config.pool_bytes());
        let device = Lz4::in_memory(pool, config).unwrap();
        let before = (device.usage().used_bytes, probe.resident_bytes());
        let frames = fill(&device, percent);
        let (stats, resident) = (device.stats(), probe.resident_bytes() as u64);
        assert!(stats.resident_bytes <= capacity as u64);
        // What is charged is what the system says, apart from the working memory and the table of slabs.
        let charged = stats.resident_bytes - before.0;
        assert!(resident <= charged, "{percent} %: {resident} bytes resident, {charged} charged");
        assert!(
            charged - resident <= charged / 200 + 4096,
            "{percent} %: {resident} resident, {charged} charged"
        );
        assert!(
            charged >= (capacity as u64 - before.0) / 100 * 97,
            "{percent} %: full at {charged} of {capacity}"
        );
        device.free(&frames);
        assert!(device.usage().used_bytes <= before.0 + 64 * 1024, "most of it is given back");
        assert!(probe.resident_bytes() <= before.1 + 64 * 1024, "to the system, too");
    }
}

#[test]
fn little_is_lost_to_fragmentation() {
    let device = device(16 * MIB);
    let percents: Vec<usize> = (0..1500).map(|index| 10 + index * 37 % 80).collect();
    let frames = put(&device, &pages(1, &percents), Access::Random);
    let stats = device.stats();
    assert!(stats.fragmentation_percent() <= 5, "fresh: {stats:?}");
    // Two of three end, others of other sizes come: at most a third is lost, and nothing grows without end.
    for round in 0..20 {
        let ended: Vec<DevicePfn> = frames
            .iter()
            .copied()
            .enumerate()
            .filter(|(index, _)| index % 3 > 0)
            .map(|(_, frame)| frame)
            .collect();
        if round == 0 {
            device.free(&ended);
        }
        let percents: Vec<usize> = (0..900).map(|index| 5 + (index * 13 + round * 7) % 90).collect();
        let more = put(&device, &pages(1000 * round as u64, &percents), Access::Random);
        let stats = device.stats();
        assert!(stats.fragmentation_percent() <= 33, "round {round}: {stats:?}");
        device.free(&more);
    }
}

#[test]
fn same_filled_pages_take_their_frame_and_nothing_else() {
    let device = device(2 * MIB);
    let frames = put(&device, &pages(7, &[0; 1000]), Access::Stream);
    let stats = device.stats();
    assert_eq!((stats.same_pages, stats.slab_bytes, stats.stored_bytes), (1000, 0, 0));
    assert_eq!(get(&device, &frames[500..503]).unwrap(), pages(507, &[0; 3]));
}

#[test]
fn incompressible_pages_do_not_expand() {
    let device = device(2 * MIB);
    put(&device, &pages(1, &[100; 64]), Access::Stream);
    let stats = device.stats();
    assert_eq!((stats.raw_pages, stats.stored_bytes, stats.slab_bytes), (64, 64 * 4096, 64 * 4096));
}

#[test]
fn what_is_not_compressed_is_not_worth_having_twice() {
    let device = device(MIB);
    for access in [Access::Random, Access::Stream] {
        let frames = put(&device, &pages(1, &[0, 40, 100, 40]), access);
        let worth: Vec<_> = frames.iter().map(|frame| device.is_worth_keeping(*frame)).collect();
        assert_eq!(worth, [true, true, false, true], "{access:?}");
        let unit = put(&device, &pages(1, &[40; 4]), access);
        assert!(unit.iter().all(|frame| device.is_worth_keeping(*frame)), "{access:?}");
    }
    assert!(!device.is_worth_keeping(DevicePfn(4000)), "nothing was stored there");
}

#[test]
fn a_stream_unit_ends_with_its_last_page() {
    let device = device(2 * MIB);
    let bytes = pages(1, &[30, 20, 25, 10]);
    let frames = put(&device, &bytes, Access::Stream);
    let stats = device.stats();
    assert_eq!(stats.compressed_pages, 4);
    for (ended, left) in [(2, vec![0, 1, 3]), (0, vec![1, 3]), (3, vec![1])] {
        device.free(&[frames[ended]]);
        assert_eq!(get(&device, &[frames[ended]]), Err(DeviceError::Unsupported));
        for index in left {
            let want = &bytes[index * PAGE_SIZE..][..PAGE_SIZE];
            assert!(get(&device, &[frames[index]]).unwrap() == want && device.holds(frames[index], want));
        }
        assert_eq!(device.stats().slot_bytes, stats.slot_bytes);
    }
    device.free(&frames[1..2]);
    assert_eq!((device.stats().slot_bytes, device.stats().stored_bytes), (0, 0));
}

#[test]
fn streams_take_less_than_single_pages() {
    let words: Vec<u8> =
        (0_u32..).flat_map(|word| (word * 7 % 1000).to_le_bytes()).take(256 * PAGE_SIZE).collect();
    let stored = [Access::Random, Access::Stream].map(|access| {
        let device = device(4 * MIB);
        put(&device, &words, access);
        device.stats().stored_bytes
    });
    assert!(stored[1] * 100 <= stored[0] * 95, "{stored:?}");
}

#[test]
fn with_verification_no_wrong_byte_is_delivered() {
    let config = Lz4Config::new(4 * MIB).verify(true);
    let (pool, probe) = ProbedPool::new(config.pool_bytes());
    let device = Lz4::in_memory(pool, config).unwrap();
    let bytes = pages(1, &[100, 30, 60, 5, 40, 20, 30, 10]);
    let frames = put(&device, &bytes, Access::Random);
    let streamed = put(&device, &bytes[4 * PAGE_SIZE..], Access::Stream);
    let slabs_at = config.nr_frames() * size_of::<crate::entry::Entry>();
    let mut corrupt = 0;
    for offset in (0..config.region_bytes()).step_by(61) {
        if !probe.flip(slabs_at + offset) {
            continue;
        }
        for (frame, page) in frames
            .iter()
            .chain(&streamed)
            .zip(bytes.chunks(PAGE_SIZE).chain(bytes[4 * PAGE_SIZE..].chunks(PAGE_SIZE)))
        {
            match get(&device, &[*frame]) {
                Ok(got) => assert!(got == page, "wrong bytes delivered after byte {offset} changed"),
                Err(why) => {
                    assert_eq!(why, DeviceError::Corrupt);
                    corrupt += 1;
                }
            }
        }
        probe.flip(slabs_at + offset);
    }
    assert!(corrupt > 100, "changes must have been seen: {corrupt}");
}

/// Lets the other threads go, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A caller that frees what others fetch breaks the contract; no fetch may see bytes of another page even so.
#[test]
fn a_fetch_that_races_with_free_sees_one_page_or_none() {
    const FRAMES: usize = 8;
    let device = device(2 * MIB);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                let mut seen = 0_u64;
                let mut bytes = vec![0; PAGE_SIZE];
                while !stop.load(Ordering::Relaxed) || seen == 0 {
                    let frame = DevicePfn(u32::try_from((seen + reader) % FRAMES as u64).unwrap());
                    let outcome = device.fetch(Fetch { frames: &[frame], bytes: &mut bytes });
                    if outcome.stop.is_none() {
                        let seed = u64::from_le_bytes(bytes[PAGE_SIZE - 8..].try_into().unwrap());
                        let percent = (seed % 100) as usize;
                        assert!(bytes == page(seed, percent), "a mixture of pages");
                    }
                    seen += 1;
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        for round in 1..3000_u64 {
            // Seeds end in their percentage; the last word of such a page is its seed.
            let percents: Vec<usize> =
                (0..FRAMES as u64).map(|index| ((round * 8 + index) * 7 % 95) as usize).collect();
            let bytes: Vec<u8> = (0_u64..)
                .zip(&percents)
                .flat_map(|(index, percent)| page((round * 8 + index) * 100 + *percent as u64, *percent))
                .collect();
            let access = if round % 2 == 0 { Access::Stream } else { Access::Random };
            let mut frames = [DevicePfn(0); FRAMES];
            let granted = device.alloc(&mut frames);
            let run = Store { frames: &frames[..granted], bytes: &bytes[..granted * PAGE_SIZE], access };
            assert_eq!(device.store(run).done, granted);
            device.free(&frames[..granted]);
        }
    });
    let stats = device.stats();
    assert_eq!((device.usage().frames, stats.slot_bytes, stats.stored_bytes), (0, 0, 0));
}

/// As above, where the word is the whole page: it is in the table, which the free list uses as well.
#[test]
fn a_fetch_of_a_same_filled_page_that_races_with_free_sees_its_word_or_none() {
    const MARK: u64 = 0x5A5A_5A5A << 32;
    let device = device(2 * MIB);
    let (stop, nr_seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..2 {
            let (device, stop, nr_seen) = (&device, &stop, &nr_seen);
            scope.spawn(move || {
                let mut bytes = vec![0; PAGE_SIZE];
                while !stop.load(Ordering::Relaxed) {
                    if device.fetch(Fetch { frames: &[DevicePfn(0)], bytes: &mut bytes }).stop.is_none() {
                        let word = same_filled(&bytes).unwrap();
                        assert!(word & MARK == MARK, "not a page that was stored: {word:#x}");
                        nr_seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for round in 0.. {
            if round >= 50_000 && nr_seen.load(Ordering::Relaxed) > 0 {
                break;
            }
            let mut page = [0; PAGE_SIZE];
            fill_same(&mut page, MARK | round);
            device.free(&put(&device, &page, Access::Random));
        }
    });
    assert_eq!((device.usage().frames, device.stats().same_pages), (0, 0));
}

#[test]
fn of_two_stores_to_a_frame_one_succeeds() {
    let device = device(2 * MIB);
    for round in 0..500 {
        let frames = put(&device, &[], Access::Random);
        assert!(frames.is_empty());
        let mut frame = [DevicePfn(0)];
        assert_eq!(device.alloc(&mut frame), 1);
        let stored: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|thread| {
                    let (device, frame) = (&device, &frame);
                    let bytes = page(round * 2 + thread, 50);
                    scope.spawn(move || {
                        device.store(Store { frames: frame, bytes: &bytes, access: Access::Random }).done
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(stored.iter().sum::<usize>(), 1);
        let winner = u64::from(stored[1] == 1);
        assert!(get(&device, &frame).unwrap() == page(round * 2 + winner, 50));
        device.free(&frame);
    }
    assert_eq!(device.stats().slot_bytes, 0);
}

#[test]
fn unusable_configurations_say_what_to_do() {
    let small = Lz4::new(Lz4Config::new(1000)).unwrap_err();
    assert_eq!(small, Lz4Error::Capacity(1000));
    assert!(small.to_string().contains("from 1 MiB"));
    assert!(matches!(Lz4::new(Lz4Config::new(usize::MAX)), Err(Lz4Error::Capacity(_))));
    let config = Lz4Config::new(MIB);
    let (pool, _) = ProbedPool::new(config.pool_bytes() - 4096);
    let given = config.pool_bytes() - 4096;
    assert_eq!(
        Lz4::in_memory(pool, config).unwrap_err(),
        Lz4Error::PoolTooSmall { needed: given + 4096, given }
    );
}
