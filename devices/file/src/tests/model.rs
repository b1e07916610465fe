//! The device against a model, with what it does chosen by chance: stores of any runs, fetches of any frames, frees in any
//! order, bytes of the file that change.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Blocks of the file: few, so that it is full now and then.
const BLOCKS: u64 = 96;

/// What is done to the device; numbers choose from what there is.
#[derive(Clone, Debug)]
enum Action {
    Store {
        kinds: Vec<u8>,
        access: Access,
    },
    Fetch {
        first: usize,
        nr_frames: usize,
        step: usize,
        shift: usize,
    },
    Free {
        first: usize,
        nr_frames: usize,
        step: usize,
    },
    /// A byte of a frame's place changes, is looked at, and is put right again.
    Corrupt {
        frame: usize,
        byte: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let access = prop_oneof![Just(Access::Random), Just(Access::Stream)];
    let kind = prop_oneof![6 => 0..4_u8, 2 => 4..5_u8, 1 => 5..6_u8];
    let alike = (kind.clone(), 1..90_usize).prop_map(|(kind, nr_pages)| vec![kind; nr_pages]);
    let kinds = prop_oneof![proptest::collection::vec(kind, 1..90), alike];
    prop_oneof![
        4 => (kinds, access).prop_map(|(kinds, access)| Action::Store { kinds, access }),
        4 => (any::<usize>(), 1..150_usize, 1..4_usize, prop_oneof![Just(0), Just(8)])
            .prop_map(|(first, nr_frames, step, shift)| Action::Fetch { first, nr_frames, step, shift }),
        3 => (any::<usize>(), 1..60_usize, 1..20_usize)
            .prop_map(|(first, nr_frames, step)| Action::Free { first, nr_frames, step }),
        2 => (any::<usize>(), any::<u64>()).prop_map(|(frame, byte)| Action::Corrupt { frame, byte }),
    ]
}

/// A page of a kind: compressible to a different degree, noise, one word.
fn bytes_of(kind: u8, number: usize) -> Vec<u8> {
    match kind {
        4 => noise(number),
        5 => (number as u64).to_le_bytes().repeat(512),
        _ => {
            let mut bytes = page(number);
            // Some noise in front.
            let nr_noise = usize::from(kind) * 900;
            bytes[..nr_noise].copy_from_slice(&noise(number)[..nr_noise]);
            bytes
        }
    }
}

struct Model {
    device: FileDevice,
    file: std::fs::File,
    /// What each frame holds.
    held: BTreeMap<u32, Vec<u8>>,
    number: usize,
}

impl Model {
    fn new(config: &FileConfig) -> Self {
        let device = made(config);
        let file = behind_its_back(&device);
        Self { device, file, held: BTreeMap::new(), number: 0 }
    }

    /// Frames that hold something, every `step`th, going round.
    fn some(&self, first: usize, nr_frames: usize, step: usize) -> Vec<DevicePfn> {
        let all: Vec<u32> = self.held.keys().copied().collect();
        let nr_frames = nr_frames.min(all.len().div_ceil(step));
        (0..nr_frames).map(|index| DevicePfn(all[(first % all.len() + index * step) % all.len()])).collect()
    }

    fn expected(&self, frames: &[DevicePfn]) -> Vec<u8> {
        frames.iter().flat_map(|pfn| self.held[&pfn.0].iter().copied()).collect()
    }

    fn store(&mut self, kinds: &[u8], access: Access) {
        let bytes: Vec<u8> =
            kinds.iter().zip(self.number..).flat_map(|(kind, it)| bytes_of(*kind, it)).collect();
        self.number += kinds.len();
        let mut frames = vec![DevicePfn(0); kinds.len()];
        let granted = self.device.alloc(&mut frames);
        let nr_free = BLOCKS - used_blocks(&self.device);
        let transfer = store(&self.device, &frames[..granted], &bytes[..granted * PAGE_SIZE], access);
        if transfer.stop.is_some() {
            assert_eq!(transfer.stop, Some(DeviceError::OutOfMemory));
            assert_eq!(used_blocks(&self.device), BLOCKS, "refused with room left");
        }
        assert!(transfer.stop.is_none() || transfer.done as u64 >= nr_free, "less than without compression");
        for (pfn, bytes) in frames[..transfer.done].iter().zip(bytes.chunks_exact(PAGE_SIZE)) {
            assert!(self.held.insert(pfn.0, bytes.to_vec()).is_none(), "{pfn:?} was handed out twice");
            assert!(self.device.holds(*pfn, bytes));
        }
        self.device.free(&frames[transfer.done..granted]);
    }

    fn fetch(&self, frames: &[DevicePfn], shift: usize) {
        let len = frames.len() * PAGE_SIZE;
        let mut bytes = vec![0; len + 2 * PAGE_SIZE];
        let start = bytes.as_ptr().align_offset(PAGE_SIZE) + shift;
        let to = &mut bytes[start..start + len];
        assert_eq!(self.device.fetch(Fetch { frames, bytes: to }), Transfer::complete(frames.len()));
        assert!(to == self.expected(frames), "wrong bytes");
    }

    fn corrupt(&self, frame: DevicePfn, byte: u64) {
        let place = self.device.place_of(frame);
        if place.is_empty() {
            return;
        }
        let at = place.start + byte % (place.end - place.start);
        let mut right = [0];
        self.file.read_exact_at(&mut right, at).expect("it is there");
        self.file.write_all_at(&[right[0] ^ 0x55], at).expect("it can be written to");
        let all: Vec<DevicePfn> = self.held.keys().copied().map(DevicePfn).collect();
        for frames in all.chunks(50) {
            let (transfer, bytes) = fetch(&self.device, frames);
            assert!(bytes[..transfer.done * PAGE_SIZE] == self.expected(&frames[..transfer.done]));
            assert!(matches!(transfer.stop, None | Some(DeviceError::Corrupt)), "{transfer:?}");
            if let Some(wrong) = frames.get(transfer.done) {
                assert_eq!(self.device.place_of(*wrong), place, "another unit than that which is broken");
            }
        }
        self.file.write_all_at(&right, at).expect("it can be written to");
    }

    fn check(&self) {
        let usage = self.device.usage();
        assert_eq!(usage.frames, self.held.len() as u64);
        assert!(usage.used_bytes <= usage.capacity_bytes);
        let mut blocks = std::collections::BTreeSet::new();
        for place in self.held.keys().map(|pfn| self.device.place_of(DevicePfn(*pfn))) {
            blocks.extend(place.start / 4096..place.end.div_ceil(4096));
        }
        assert_eq!(blocks.len() as u64, used_blocks(&self.device), "blocks that nobody has, or several");
        assert!(blocks.iter().all(|block| *block < BLOCKS));
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Store { kinds, access } => self.store(kinds, *access),
            _ if self.held.is_empty() => {}
            Action::Fetch { first, nr_frames, step, shift } => {
                self.fetch(&self.some(*first, *nr_frames, *step), *shift);
            }
            Action::Free { first, nr_frames, step } => {
                let frames = self.some(*first, *nr_frames, *step);
                self.device.free(&frames);
                self.held.retain(|pfn, _| !frames.contains(&DevicePfn(*pfn)));
            }
            Action::Corrupt { frame, byte } => self.corrupt(self.some(*frame, 1, 1)[0], *byte),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_whatever_is_done(way in 0..5_usize, actions in proptest::collection::vec(action(), 1..60)) {
        let mut model = Model::new(&configs(BLOCKS)[way]);
        for action in &actions {
            model.act(action);
            model.check();
        }
        let all: Vec<DevicePfn> = model.held.keys().copied().map(DevicePfn).collect();
        model.fetch(&all, 0);
        model.device.free(&all);
        prop_assert_eq!((model.device.usage().frames, used_blocks(&model.device)), (0, 0));
    }
}
