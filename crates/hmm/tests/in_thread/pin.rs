//! System calls on memory whose faults are served by the threads that have them.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use hmm::PinError;
use hmm::mirror::pages;

use crate::common::{MIB, space, within};
use crate::{Random, filled, lz4, pattern};

const EFAULT: Option<i32> = Some(14);

#[test]
fn a_system_call_fails_on_what_is_away_and_works_on_what_is_pinned() {
    within(60, || {
        let space = space(16 * MIB, lz4());
        let mut region = filled(&space, 4 * MIB);
        let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
        assert!(space.evict(&region) > 0);
        let bytes = region.as_mut_slice::<u8>();
        let refused = writer.write(&bytes[8192..8192 + 4096]).expect_err("it is away");
        assert_eq!(refused.raw_os_error(), EFAULT);
        let pinned = space.pin(&bytes[8192..8192 + 4096]).expect("it can be");
        writer.write_all(&bytes[8192..8192 + 4096]).expect("it is there");
        drop(pinned);

        assert!(space.evict(&region) > 0);
        let bytes = region.as_mut_slice::<u8>();
        let to = 3 * MIB..3 * MIB + 4096;
        let refused = reader.read(&mut bytes[to.clone()]).expect_err("it is away");
        assert_eq!(refused.raw_os_error(), EFAULT);
        let pinned = space.pin(&bytes[to.clone()]).expect("it can be");
        reader.read_exact(&mut bytes[to.clone()]).expect("it is there");
        drop(pinned);
        let words = region.as_slice::<u64>();
        assert!(words[to.start / 8..to.end / 8].iter().all(|word| *word == pattern(2, 0)));
    });
}

/// It stays while all else comes and goes, and leaves when it may.
#[test]
fn what_is_pinned_stays() {
    within(120, || {
        let space = space(16 * MIB, lz4());
        let mut region = filled(&space, 64 * MIB);
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let over = AtomicBool::new(false);
        let (pinned_part, rest) = region.as_mut_slice::<u8>().split_at_mut(2 * MIB);
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut &reader, &mut std::io::sink()));
            scope.spawn(|| {
                let mut random = Random(5);
                while !over.load(Ordering::Relaxed) {
                    rest[random.below(rest.len())] = 1;
                }
            });
            let first = space.pin(&pinned_part[..MIB]).expect("it can be");
            let second = space.pin(&pinned_part[MIB / 2..MIB + MIB / 2]).expect("also twice");
            for _ in 0..50 {
                writer.write_all(&pinned_part[..MIB + MIB / 2]).expect("all is there");
            }
            drop(first);
            for _ in 0..50 {
                writer.write_all(&pinned_part[MIB / 2..MIB + MIB / 2]).expect("the second's is there");
            }
            drop(second);
            drop(writer);
            over.store(true, Ordering::Relaxed);
        });
        assert!(space.evict(&region) > 0);
        let (_reader, mut writer) = std::io::pipe().expect("a pipe");
        let refused = writer.write(&region.as_slice::<u8>()[..4096]).expect_err("it may leave again");
        assert_eq!(refused.raw_os_error(), EFAULT);
    });
}

#[test]
fn what_cannot_be_pinned_is_refused() {
    let space = space(16 * MIB, lz4());
    let region = filled(&space, 32 * MIB);
    let others = vec![0u8; 8192];
    assert_eq!(space.pin(&others).expect_err("it is not ours"), PinError::NotManaged);
    let bytes = region.as_slice::<u8>();
    assert_eq!(space.pin(&bytes[..9 * MIB]).expect_err("more than half"), PinError::TooMuch { limit: 2048 });
    let half = space.pin(&bytes[..8 * MIB]).expect("half of it");
    assert!(matches!(space.pin(&bytes[16 * MIB..17 * MIB]), Err(PinError::TooMuch { .. })));
    drop(half);
    let other = space.pin(&bytes[16 * MIB..17 * MIB]).expect("there is room again");
    // Nothing is left of a pin when the memory goes.
    let was = pages(bytes);
    drop(region);
    let again = space.alloc(32 * MIB).expect("allocates");
    if pages(again.as_slice::<u8>()) == was {
        assert!(again.as_slice::<u8>().iter().all(|byte| *byte == 0));
    }
    drop(other);
}
