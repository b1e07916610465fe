//! The device in every way in which it works, and what goes wrong with files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmm_device::{Access, Device, DeviceError, DevicePfn, Fetch, PAGE_SIZE, Store, Transfer};
use rustix::fd::AsFd;

use crate::{By, FileConfig, FileDevice, FileError};

mod forks;
mod model;

/// On a disk, where the build is: what is behind the directory for temporary files may be RAM.
fn disk() -> PathBuf {
    let test = std::env::current_exe().expect("tests are files");
    test.parent().expect("it is in a directory").to_owned()
}

fn config(nr_blocks: u64) -> FileConfig {
    FileConfig::new(disk(), nr_blocks * PAGE_SIZE as u64)
}

fn made(config: &FileConfig) -> FileDevice {
    FileDevice::create(config).expect("there is a disk")
}

/// In every way: by io_uring, by `io_submit`, and one by one; through the page cache, and without compression.
fn configs(nr_blocks: u64) -> [FileConfig; 5] {
    let config = config(nr_blocks);
    [
        config.clone(),
        config.clone().with_requests(By::Aio),
        config.clone().with_requests(By::Single),
        config.clone().through_page_cache(),
        config.with_requests(By::Aio).with_compression(false),
    ]
}

hmm_conformance::suite!(conforms, || super::made(&super::configs(1024)[0]));
hmm_conformance::suite!(conforms_by_io_submit, || super::made(&super::configs(1024)[1]));
hmm_conformance::suite!(conforms_one_by_one, || super::made(&super::configs(1024)[2]));
hmm_conformance::suite!(conforms_through_the_page_cache, || super::made(&super::configs(1024)[3]));
hmm_conformance::suite!(conforms_without_compression, || super::made(&super::configs(1024)[4]));

#[test]
fn each_is_what_it_is_called() {
    let device = made(&config(16));
    assert!(device.is_direct(), "no O_DIRECT in {}", disk().display());
    if device.requests() != By::Uring {
        println!("SKIPPED: io_uring is forbidden here: /proc/sys/kernel/io_uring_disabled");
    }
    for by in [By::Aio, By::Single] {
        assert_eq!(made(&config(16).with_requests(by)).requests(), by);
    }
    let through_page_cache = made(&config(16).with_requests(By::Aio).through_page_cache());
    assert_eq!((through_page_cache.is_direct(), through_page_cache.requests()), (false, By::Single));
}

/// Bytes that compress well, if they are not noise.
fn page(number: usize) -> Vec<u8> {
    (0..PAGE_SIZE).map(|byte| u8::try_from((byte * 7 + number * 31) % 256).expect("a byte")).collect()
}

fn pages(numbers: std::ops::Range<usize>) -> Vec<u8> {
    numbers.flat_map(page).collect()
}

fn noise(number: usize) -> Vec<u8> {
    let mut word = number as u64 + 1;
    let words = (0..PAGE_SIZE / 8).flat_map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
    });
    words.collect()
}

fn alloc(device: &FileDevice, nr_frames: usize) -> Vec<DevicePfn> {
    let mut frames = vec![DevicePfn(0); nr_frames];
    assert_eq!(device.alloc(&mut frames), nr_frames);
    frames
}

fn store(device: &FileDevice, frames: &[DevicePfn], bytes: &[u8], access: Access) -> Transfer {
    device.store(Store { frames, bytes, access })
}

/// Frames with what was given, all of it.
fn stored(device: &FileDevice, bytes: &[u8], access: Access) -> Vec<DevicePfn> {
    let frames = alloc(device, bytes.len() / PAGE_SIZE);
    assert_eq!(store(device, &frames, bytes, access), Transfer::complete(frames.len()));
    frames
}

fn fetch(device: &FileDevice, frames: &[DevicePfn]) -> (Transfer, Vec<u8>) {
    let mut bytes = vec![0; frames.len() * PAGE_SIZE];
    (device.fetch(Fetch { frames, bytes: &mut bytes }), bytes)
}

fn used_blocks(device: &FileDevice) -> u64 {
    device.usage().used_bytes / PAGE_SIZE as u64
}

/// The file by another way than the device's.
fn behind_its_back(device: &FileDevice) -> std::fs::File {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", device.file().fd.as_fd().as_raw_fd());
    OpenOptions::new().read(true).write(true).open(path).expect("it is ours")
}

#[test]
fn a_working_set_of_four_times_the_budget_lives_on_a_disk() {
    let disk = Arc::new(made(&config(32 * 1024)));
    let space = hmm::AddressSpace::builder().ram(16 << 20).device(Arc::clone(&disk) as _).build();
    let Ok(space) = space else {
        println!("SKIPPED: no userfaultfd");
        return;
    };
    let mut region = space.alloc(64 << 20).expect("there are addresses");
    let word = |index: usize| (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = region.as_mut_slice::<u64>();
    words.iter_mut().enumerate().for_each(|(index, value)| *value = word(index));
    for _ in 0..2 {
        let wrong = words.iter().enumerate().position(|(index, value)| *value != word(index));
        assert_eq!(wrong, None);
    }
    let stats = space.stats();
    assert!(stats.peak_resident <= stats.budget, "{stats:?}");
    assert!(disk.usage().frames >= 40 << 8, "{:?} of 64 MiB over 16 MiB", disk.usage());
}

#[test]
fn what_is_in_the_file_is_what_was_stored() {
    for config in configs(64) {
        let device = made(&config);
        let frames = stored(&device, &[noise(1), noise(2)].concat(), Access::Stream);
        let file = behind_its_back(&device);
        for (number, pfn) in (1..).zip(&frames) {
            let mut bytes = vec![0; PAGE_SIZE];
            file.read_exact_at(&mut bytes, device.place_of(*pfn).start).expect("it is there");
            assert_eq!(bytes, noise(number));
        }
    }
}

#[test]
fn units_are_one_block_each_and_lie_side_by_side() {
    for access in [Access::Random, Access::Stream] {
        let device = made(&config(1024));
        let frames = stored(&device, &pages(0..64), access);
        let places: Vec<_> = frames.iter().map(|pfn| device.place_of(*pfn)).collect();
        for pair in places.windows(2) {
            let next = pair[0].start + 4096;
            assert!(pair[1] == pair[0] || pair[1].start == next, "{places:?}");
        }
        assert!(places.iter().all(|place| place.end - place.start <= 4096));
        assert!(used_blocks(&device) <= 12, "{} blocks of 64 pages", used_blocks(&device));
        expect_any_part(&device, &frames, &pages(0..64));
        device.free(&frames[1..]);
        assert_eq!(used_blocks(&device), 1, "the first unit has a frame left");
        assert_eq!(fetch(&device, &frames[..1]).1, page(0));
        device.free(&frames);
        assert_eq!(used_blocks(&device), 0);
    }
}

/// Any part, at any place of the caller's.
fn expect_any_part(device: &FileDevice, frames: &[DevicePfn], bytes: &[u8]) {
    for (first, end) in [(0, 64), (0, 16), (3, 16), (5, 7), (15, 17), (1, 63), (40, 41)] {
        for shift in [0, 1, 8] {
            let len = (end - first) * PAGE_SIZE;
            let mut got = vec![0; len + 2 * PAGE_SIZE];
            let start = got.as_ptr().align_offset(PAGE_SIZE) + shift;
            let to = &mut got[start..start + len];
            let transfer = device.fetch(Fetch { frames: &frames[first..end], bytes: to });
            assert_eq!(transfer, Transfer::complete(end - first));
            assert!(to == &bytes[first * PAGE_SIZE..end * PAGE_SIZE], "{first} to {end}, shifted by {shift}");
        }
    }
}

/// Shrinks to two thirds.
fn stubborn(number: usize) -> Vec<u8> {
    let mut bytes = noise(number);
    bytes[..1400].fill(7);
    bytes
}

#[test]
fn streams_that_do_not_shrink_to_a_half_are_compressed_in_wide_units() {
    let device = made(&config(1024));
    let bytes: Vec<u8> = (0..64).flat_map(stubborn).collect();
    let frames = stored(&device, &bytes, Access::Stream);
    assert!((43..56).contains(&used_blocks(&device)), "{} blocks", used_blocks(&device));
    let place = device.place_of(frames[0]);
    assert!(place.end - place.start > 3 * 4096 && place.end - place.start <= 4 * 4096, "{place:?}");
    expect_any_part(&device, &frames, &bytes);
    device.free(&frames);
    // A page in no order is one block to read.
    let frames = stored(&device, &bytes, Access::Random);
    assert_eq!(used_blocks(&device), 64);
    expect_any_part(&device, &frames, &bytes);
}

#[test]
fn pages_of_one_word_take_no_room() {
    for config in configs(16) {
        let device = made(&config);
        let word = |number: usize| (number as u64 * 0x0101_0101_0101_0103).to_le_bytes().repeat(512);
        let bytes: Vec<u8> = (0..100).flat_map(word).collect();
        let frames = stored(&device, &bytes, Access::Stream);
        assert_eq!((device.usage().frames, used_blocks(&device)), (100, 0));
        assert!(fetch(&device, &frames) == (Transfer::complete(100), bytes));
        assert!(device.holds(frames[7], &word(7)) && !device.holds(frames[7], &word(8)));
    }
}

#[test]
fn what_does_not_compress_takes_as_much_as_it_is() {
    for access in [Access::Random, Access::Stream] {
        let device = made(&config(256));
        let bytes: Vec<u8> = (0..64).flat_map(noise).collect();
        let frames = stored(&device, &bytes, access);
        assert_eq!(used_blocks(&device), 64);
        assert!(frames.windows(2).all(|pair| device.place_of(pair[0]).end == device.place_of(pair[1]).start));
        assert!(fetch(&device, &frames) == (Transfer::complete(64), bytes));
    }
}

#[test]
fn a_file_without_room_side_by_side_still_takes_pages() {
    let device = made(&config(128));
    let bytes: Vec<u8> = (0..128).flat_map(noise).collect();
    let frames = stored(&device, &bytes, Access::Random);
    // Half of it is free, a block at a time.
    let (freed, left): (Vec<_>, Vec<_>) = frames.iter().partition(|pfn| pfn.0 % 2 == 0);
    device.free(&freed);
    // Four blocks side by side would be needed for the first.
    let bytes: Vec<u8> = (0..64).flat_map(|it| if it < 12 { stubborn(it) } else { page(it) }).collect();
    let more = stored(&device, &bytes, Access::Stream);
    assert!(fetch(&device, &more) == (Transfer::complete(64), bytes));
    assert!(used_blocks(&device) < 128);
    // It is full when it has no block, and not before.
    let frames = alloc(&device, 128);
    let bytes: Vec<u8> = (1000..1128).flat_map(noise).collect();
    let nr_free = usize::try_from(128 - used_blocks(&device)).expect("a few");
    let transfer = store(&device, &frames, &bytes, Access::Stream);
    assert_eq!(transfer, Transfer::stopped(nr_free, DeviceError::OutOfMemory));
    assert_eq!(used_blocks(&device), 128);
    assert!(fetch(&device, &frames[..nr_free]).1 == bytes[..nr_free * PAGE_SIZE]);
    let left_bytes: Vec<u8> = left.iter().flat_map(|pfn| noise(pfn.0 as usize)).collect();
    assert!(fetch(&device, &left).1 == left_bytes, "what was there has not changed");
}

#[test]
fn bytes_that_changed_on_the_disk_are_not_delivered() {
    for config in configs(64) {
        let device = made(&config);
        let bytes: Vec<u8> = [noise(0), noise(1), noise(2), noise(3)].concat();
        let frames = stored(&device, &bytes, Access::Random);
        let byte = device.place_of(frames[2]).start + 77;
        behind_its_back(&device).write_all_at(b"!", byte).expect("it can be written to");
        let (transfer, got) = fetch(&device, &frames);
        assert_eq!(transfer, Transfer::stopped(2, DeviceError::Corrupt));
        assert_eq!(got[..2 * PAGE_SIZE], bytes[..2 * PAGE_SIZE]);
        assert_eq!(fetch(&device, &frames[3..]).0, Transfer::complete(1), "the one behind it is right");
    }
}

#[test]
fn a_broken_unit_gives_what_is_right_and_nothing_else() {
    let device = made(&config(64));
    let bytes: Vec<u8> = (0..5).flat_map(stubborn).collect();
    let frames = stored(&device, &bytes, Access::Stream);
    let place = device.place_of(frames[0]);
    assert!(frames.iter().all(|pfn| device.place_of(*pfn) == place), "one unit");
    let file = behind_its_back(&device);
    let mut right = vec![0; usize::try_from(place.end - place.start).expect("a few")];
    file.read_exact_at(&mut right, place.start).expect("it is there");
    let mut nr_refused = 0;
    for at in (0..right.len()).filter(|at| at % 5 == 0 || *at < 300) {
        for flip in [1, 0x80, 0xff] {
            let mut wrong = right.clone();
            wrong[at] ^= flip;
            file.write_all_at(&wrong, place.start).expect("it can be written to");
            for first in [0, 2] {
                let frames = &frames[first..];
                let (transfer, got) = fetch(&device, frames);
                let len = transfer.done * PAGE_SIZE;
                assert!(got[..len] == bytes[first * PAGE_SIZE..][..len], "byte {at}");
                match transfer.stop {
                    None => assert_eq!(transfer.done, frames.len()),
                    Some(why) => assert_eq!(why, DeviceError::Corrupt, "byte {at}"),
                }
                nr_refused += usize::from(transfer.stop.is_some());
            }
        }
    }
    assert!(nr_refused > right.len() / 2, "{nr_refused}");
    file.write_all_at(&right, place.start).expect("it can be written to");
    assert!(fetch(&device, &frames) == (Transfer::complete(5), bytes), "right again");
}

#[test]
fn a_file_that_was_truncated_does_not_read_as_zeroes() {
    for config in configs(64) {
        let device = made(&config);
        let bytes: Vec<u8> = [noise(0), noise(1), noise(2), noise(3)].concat();
        let frames = stored(&device, &bytes, Access::Random);
        let file = behind_its_back(&device);
        file.set_len(device.place_of(frames[1]).start + 100).expect("it can be cut");
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(1, DeviceError::Corrupt));
        // And longer again: a hole.
        file.set_len(64 * PAGE_SIZE as u64).expect("it can grow");
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(1, DeviceError::Corrupt));
    }
}

#[test]
fn a_truncated_unit_does_not_read_as_zeroes() {
    for config in &configs(64)[..4] {
        let device = made(config);
        let frames = stored(&device, &pages(0..32), Access::Stream);
        let second = device.place_of(frames[0]).start + 4096;
        let nr_left = frames.iter().take_while(|pfn| device.place_of(**pfn).start < second).count();
        assert!((2..31).contains(&nr_left), "{nr_left}");
        let file = behind_its_back(&device);
        file.set_len(second).expect("it can be cut");
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(nr_left, DeviceError::Corrupt));
        file.set_len(64 * PAGE_SIZE as u64).expect("it can grow");
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(nr_left, DeviceError::Corrupt));
        assert_eq!(fetch(&device, &frames[nr_left + 1..]).0, Transfer::stopped(0, DeviceError::Corrupt));
    }
}

#[test]
fn a_full_file_system_is_a_full_device() {
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").expect("Linux has it");
    for access in [Access::Random, Access::Stream] {
        for config in configs(256) {
            let device = FileDevice::with_file(&config, full.try_clone().expect("a descriptor").into());
            let frames = alloc(&device, 20);
            let transfer = store(&device, &frames, &pages(0..20), access);
            assert_eq!(transfer, Transfer::stopped(0, DeviceError::OutOfMemory));
            // Nothing was stored, and no room is lost.
            assert_eq!(fetch(&device, &frames).0, Transfer::stopped(0, DeviceError::Unsupported));
            assert_eq!(used_blocks(&device), 0);
        }
    }
}

/// A file that is not open for what is asked of it.
#[test]
fn a_lost_file_is_a_lost_device() {
    for config in configs(256) {
        for (read, write) in [(true, false), (false, true)] {
            let path = disk().join(format!("file-lost-{}-{read}", std::process::id()));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
            file.expect("a file").set_len(1 << 20).expect("it can grow");
            let half = OpenOptions::new().read(read).write(write).open(&path).expect("it is there");
            std::fs::remove_file(&path).expect("it is there");
            let device = FileDevice::with_file(&config, half.into());
            let frames = alloc(&device, 20);
            let lost = Transfer::stopped(0, DeviceError::Lost);
            if read {
                assert_eq!(store(&device, &frames, &pages(0..20), Access::Stream), lost);
                assert_eq!(used_blocks(&device), 0);
            } else {
                assert_eq!(store(&device, &frames, &pages(0..20), Access::Stream), Transfer::complete(20));
                assert_eq!(fetch(&device, &frames).0, lost);
            }
        }
    }
}

#[test]
fn a_directory_is_no_memory() {
    // What a disk says that cannot be read: an error that may pass.
    for config in configs(256) {
        let directory = std::fs::File::open(disk()).expect("it is there");
        let device = FileDevice::with_file(&config, directory.into());
        let frames = alloc(&device, 2);
        assert_eq!(device.table().room(&frames).nr_empty, 2);
        let outcome = store(&device, &frames, &pages(0..2), Access::Stream);
        assert!(matches!(outcome.stop, Some(DeviceError::Lost | DeviceError::Io)), "{outcome:?}");
    }
}

#[test]
fn nothing_is_left_in_the_directory() {
    let dir = disk().join(format!("file-device-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let device = FileDevice::create(&FileConfig::new(&dir, 1 << 20)).expect("there is a disk");
    stored(&device, &pages(0..4), Access::Random);
    assert_eq!(std::fs::read_dir(&dir).expect("it is there").count(), 0, "while it is used");
    std::fs::remove_dir(&dir).expect("it is empty");
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let create = |dir: &Path, bytes| FileDevice::create(&FileConfig::new(dir, bytes)).expect_err("refused");
    assert!(matches!(create(&disk(), 0), FileError::Capacity(0)));
    assert!(matches!(create(&disk(), 17 << 40), FileError::Capacity(_)));
    let error = create(Path::new("/nowhere"), 1 << 20).to_string();
    assert!(error.contains("/nowhere") && error.contains("No such file"), "{error}");
    let error = create(Path::new("/dev/null"), 1 << 20).to_string();
    assert!(error.contains("name a directory"), "{error}");
}
