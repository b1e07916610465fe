//! Everything that a run depends on. The same setup and operations give the same run.

use hmm_core::kernel::Stop;
use hmm_core::policy::Name;
use hmm_core::{Config, HomeBy};
use hmm_device::DeviceError;
use hmm_model::{Arena, Entropy, Op, Seeded};

use crate::device::DeviceSetup;
use crate::failure::Failure;

/// How much happens at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// Once in so many calls that the engine makes under its locks, a thread of the program does something; 0 is never.
    pub program: u32,
    /// Once in so many device transfers, the engine is called by other threads meanwhile; 0 is never.
    pub engine: u32,
}

impl Noise {
    /// One thing after the other.
    pub const NONE: Self = Self { program: 0, engine: 0 };
}

/// What other threads do in the middle of one transfer of a device.
#[derive(Clone, Debug)]
pub struct Meanwhile {
    /// The transfer, counted from the first of the run, from 0.
    pub transfer: usize,
    /// Begun one after the other. Events are read at once, and the program's threads go on when all are begun: a discard
    /// has been told of then, and its pages are still there.
    pub ops: Vec<Op>,
}

/// Everything that a run depends on but the operations.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Decides all that happens by chance, behind the end of the schedule.
    pub seed: u64,
    /// Decides what happens by chance first: nothing, unless a fuzzer says.
    pub schedule: Vec<u8>,
    /// The program's part of the address space.
    pub arena: Arena,
    /// Pages that may be resident.
    pub budget_pages: u64,
    /// The engine's configuration.
    pub config: Config,
    /// The devices, in the engine's order.
    pub devices: Vec<DeviceSetup>,
    /// Devices of drivers, each with a driver of its own that migrates pages of the program there and back.
    pub drivers: Vec<DeviceSetup>,
    /// How much happens at the same time.
    pub noise: Noise,
    /// Calls of the kernel door that fail.
    pub kernel_failures: Vec<Failure<Stop>>,
    /// Calls of devices that fail.
    pub device_failures: Vec<Failure<DeviceError>>,
    /// What happens in the middle of transfers, on order.
    pub meanwhile: Vec<Meanwhile>,
    /// Once in so many calls that can fail, one does by chance; 0 is never.
    pub failure_rarity: u32,
    /// Once in so many calls of the kernel door, somebody else reads some of our memory; 0 is never.
    pub peek_rarity: u32,
}

impl Setup {
    /// A small world with room enough, in which one thing happens after the other.
    pub fn calm(seed: u64) -> Self {
        let budget_pages = 96;
        Self {
            seed,
            schedule: Vec::new(),
            arena: Arena { nr_pages: 700 },
            budget_pages,
            config: Config {
                nr_bays: 4,
                low_pages: 8,
                high_pages: 16,
                home_by: HomeBy::Move,
                max_window: 64,
                first_touch_pages: 4,
                zero_page: false,
                reuses_memory: false,
                policy: Name::default(),
            },
            devices: vec![DeviceSetup {
                capacity_pages: 4096,
                keeps_copies: true,
                is_coherent: false,
                may_hang: false,
            }],
            drivers: Vec::new(),
            noise: Noise::NONE,
            kernel_failures: Vec::new(),
            device_failures: Vec::new(),
            meanwhile: Vec::new(),
            failure_rarity: 0,
            peek_rarity: 0,
        }
    }

    /// A world so small that a short program makes use of everything, and a run takes little time.
    pub fn small(seed: u64, noise: Noise) -> Self {
        let calm = Self::calm(seed);
        let config = Config {
            nr_bays: 3,
            home_by: if seed.is_multiple_of(2) { HomeBy::Move } else { HomeBy::Copy },
            ..calm.config
        };
        let devices = vec![
            DeviceSetup { capacity_pages: 12, keeps_copies: true, is_coherent: false, may_hang: false },
            DeviceSetup { capacity_pages: 64, keeps_copies: true, is_coherent: false, may_hang: false },
        ];
        Self { arena: Arena { nr_pages: 48 }, budget_pages: 24, config, devices, noise, ..calm }
    }

    /// A world that follows from the seed: tight or wide, with one device or several, calm or noisy.
    pub fn from_seed(seed: u64) -> Self {
        let mut entropy = Seeded::new(!seed);
        let mut pick =
            |choices: &[u32]| choices[entropy.below(u32::try_from(choices.len()).unwrap_or(1)) as usize];
        let arena = Arena { nr_pages: pick(&[40, 600, 1100, 1600]) };
        let budget_pages = u64::from(pick(&[12, 40, 80, 300, 700, 1300]));
        let config = Config {
            nr_bays: pick(&[2, 3, 4, 8]),
            low_pages: budget_pages / 8,
            high_pages: budget_pages / 4,
            home_by: if pick(&[0, 1]) == 0 { HomeBy::Move } else { HomeBy::Copy },
            max_window: pick(&[4, 16, 64, 512]),
            first_touch_pages: pick(&[1, 4, 16]),
            zero_page: false,
            reuses_memory: pick(&[0, 0, 1]) == 1,
            policy: match seed % 4 {
                0 => Name::Clock,
                1 => Name::Fifo,
                2 => Name::Round,
                _ => Name::Twice,
            },
        };
        let keeps_copies = pick(&[0, 1, 1]) == 1;
        let roomy = DeviceSetup { capacity_pages: 4096, keeps_copies, is_coherent: false, may_hang: false };
        let tight = DeviceSetup {
            capacity_pages: pick(&[30, 200]),
            keeps_copies,
            is_coherent: false,
            may_hang: false,
        };
        let devices = match pick(&[0, 1, 2, 3]) {
            0 => vec![tight, DeviceSetup { keeps_copies: false, ..roomy }],
            1 => vec![tight],
            _ => vec![roomy],
        };
        let noise = Noise { program: pick(&[0, 3, 10, 40]), engine: pick(&[0, 1, 3, 10]) };
        let drivers = match pick(&[0, 1, 2]) {
            0 => vec![],
            1 => vec![DeviceSetup { is_coherent: pick(&[0, 1]) == 1, ..roomy }],
            _ => vec![
                DeviceSetup { is_coherent: pick(&[0, 1]) == 1, ..roomy },
                DeviceSetup { is_coherent: pick(&[0, 1]) == 1, ..tight },
            ],
        };
        let hangs = pick(&[0, 0, 1, 2]);
        let devices =
            (1..).zip(devices).map(|(number, device)| DeviceSetup { may_hang: number == hangs, ..device });
        Self {
            seed,
            schedule: Vec::new(),
            arena,
            budget_pages,
            config,
            devices: devices.collect(),
            drivers,
            noise,
            kernel_failures: Vec::new(),
            device_failures: Vec::new(),
            meanwhile: Vec::new(),
            failure_rarity: 0,
            peek_rarity: 0,
        }
    }
}
