//! The device in every way in which it works, and what goes wrong with files.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmm_device::{Access, Device, DeviceError, DevicePfn, Fetch, PAGE_SIZE, Store, Transfer};
use rustix::fd::AsFd;

use crate::{FileConfig, FileDevice, FileError};

/// On a disk, where the build is: what is behind the directory for temporary files may be RAM.
fn disk() -> PathBuf {
    let test = std::env::current_exe().expect("tests are files");
    test.parent().expect("it is in a directory").to_owned()
}

fn device(nr_frames: u64) -> FileDevice {
    FileDevice::create(&FileConfig::new(disk(), nr_frames * PAGE_SIZE as u64)).expect("there is a disk")
}

fn without_io_uring(nr_frames: u64) -> FileDevice {
    let config = FileConfig::new(disk(), nr_frames * PAGE_SIZE as u64).without_io_uring();
    FileDevice::create(&config).expect("there is a disk")
}

fn through_the_page_cache(nr_frames: u64) -> FileDevice {
    let config = FileConfig::new(disk(), nr_frames * PAGE_SIZE as u64).through_page_cache();
    FileDevice::create(&config).expect("there is a disk")
}

hmm_conformance::suite!(conforms, || super::device(1024));
hmm_conformance::suite!(conforms_without_io_uring, || super::without_io_uring(1024));
hmm_conformance::suite!(conforms_through_the_page_cache, || super::through_the_page_cache(1024));

#[test]
fn each_is_what_it_is_called() {
    let device = device(16);
    assert!(device.is_direct(), "no O_DIRECT in {}", disk().display());
    if !device.has_io_uring() {
        println!("SKIPPED: io_uring is forbidden here: /proc/sys/kernel/io_uring_disabled");
    }
    assert!(!without_io_uring(16).has_io_uring());
    assert!(!through_the_page_cache(16).is_direct());
}

fn page(number: usize) -> Vec<u8> {
    (0..PAGE_SIZE).map(|byte| u8::try_from((byte * 7 + number * 31) % 256).expect("a byte")).collect()
}

/// Four frames with four pages.
fn stored(device: &FileDevice) -> [DevicePfn; 4] {
    let mut frames = [DevicePfn(0); 4];
    assert_eq!(device.alloc(&mut frames), 4);
    let bytes: Vec<u8> = (0..4).flat_map(page).collect();
    let transfer = device.store(Store { frames: &frames, bytes: &bytes, access: Access::Random });
    assert_eq!(transfer, Transfer::complete(4));
    frames
}

fn fetch(device: &FileDevice, frames: &[DevicePfn]) -> (Transfer, Vec<u8>) {
    let mut bytes = vec![0; frames.len() * PAGE_SIZE];
    (device.fetch(Fetch { frames, bytes: &mut bytes }), bytes)
}

/// The file by another way than the device's.
fn behind_its_back(device: &FileDevice) -> std::fs::File {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", device.file().fd.as_fd().as_raw_fd());
    OpenOptions::new().read(true).write(true).open(path).expect("it is ours")
}

#[test]
fn a_working_set_of_four_times_the_budget_lives_on_a_disk() {
    let disk = Arc::new(device(32 * 1024));
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
fn frame_n_is_at_n_pages() {
    for device in [device(16), without_io_uring(16), through_the_page_cache(16)] {
        let frames = stored(&device);
        let file = behind_its_back(&device);
        for (number, pfn) in frames.iter().enumerate() {
            let mut bytes = vec![0; PAGE_SIZE];
            file.read_exact_at(&mut bytes, u64::from(pfn.0) * PAGE_SIZE as u64).expect("it is there");
            assert_eq!(bytes, page(number));
        }
    }
}

#[test]
fn bytes_that_changed_on_the_disk_are_not_delivered() {
    for device in [device(16), without_io_uring(16), through_the_page_cache(16)] {
        let frames = stored(&device);
        let byte = u64::from(frames[2].0) * PAGE_SIZE as u64 + 77;
        behind_its_back(&device).write_all_at(b"!", byte).expect("it can be written to");
        let (transfer, bytes) = fetch(&device, &frames);
        assert_eq!(transfer, Transfer::stopped(2, DeviceError::Corrupt));
        assert_eq!(bytes[..2 * PAGE_SIZE], [page(0), page(1)].concat());
        assert_eq!(fetch(&device, &frames[3..]).0, Transfer::complete(1), "the one behind it is right");
    }
}

#[test]
fn a_file_that_was_truncated_does_not_read_as_zeroes() {
    for device in [device(16), without_io_uring(16), through_the_page_cache(16)] {
        let frames = stored(&device);
        let file = behind_its_back(&device);
        file.set_len(u64::from(frames[1].0) * PAGE_SIZE as u64 + 100).expect("it can be cut");
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(1, DeviceError::Corrupt));
        // And longer again: a hole.
        file.set_len(16 * PAGE_SIZE as u64).expect("it can grow");
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(1, DeviceError::Corrupt));
    }
}

#[test]
fn a_full_file_system_is_a_full_device() {
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").expect("Linux has it");
    for config in [FileConfig::new("", 1 << 20), FileConfig::new("", 1 << 20).without_io_uring()] {
        let device = FileDevice::with_file(&config, full.try_clone().expect("a descriptor").into());
        let mut frames = [DevicePfn(0); 2];
        assert_eq!(device.alloc(&mut frames), 2);
        let bytes = [page(0), page(1)].concat();
        let transfer = device.store(Store { frames: &frames, bytes: &bytes, access: Access::Random });
        assert_eq!(transfer, Transfer::stopped(0, DeviceError::OutOfMemory));
        // Nothing was stored.
        assert_eq!(fetch(&device, &frames).0, Transfer::stopped(0, DeviceError::Unsupported));
    }
}

#[test]
fn nothing_is_left_in_the_directory() {
    let dir = disk().join(format!("file-device-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let device = FileDevice::create(&FileConfig::new(&dir, 1 << 20)).expect("there is a disk");
    stored(&device);
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
