//! The engine's parts, and what all of its work shares: accounts, queues, frames.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use hmm_device::{Device, DevicePfn};

use crate::addr::{BlockId, SlotRun, Vpn};
use crate::copies::CopyPolicy;
use crate::demote::Demotion;
use crate::events::Discards;
use crate::fetch::{DEMAND_PAGES, FETCH_PAGES, Moved};
use crate::flights::Flights;
use crate::hints::Hints;
use crate::kernel::Kernel;
use crate::notifier::{Cause, Change, Notifiers};
use crate::policy::{Name, Policy};
use crate::read_ahead::Jobs;
use crate::registry::{Held, MAX_DEVICES, Registry};
use crate::staging::{Left, Staging, Which};
use crate::state::{Frame, PageState, Ticket};
use crate::stats::Stats;
use crate::stream::Streams;
use crate::table::{States, Table};

/// How pages come home. Which is cheaper depends on the machine: a move flushes other CPUs' TLBs, a copy has the kernel
/// allocate a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HomeBy {
    /// The staging slot's own page goes to the program.
    Move,
    /// The kernel copies the slot into a page of its own.
    Copy,
}

/// Bays of an address space without a budget: 256 MiB of memory that pages left is kept for those that come home, until
/// nobody has used any for a while.
const MIRROR_BAYS: u32 = 128;

/// Sizes and choices that are fixed for an engine's life.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bays of staging memory, each the size of a block; the kernel has that many.
    pub nr_bays: u32,
    /// Reclaim starts when fewer pages than this are free.
    pub low_pages: u64,
    /// Reclaim stops when this many pages are free.
    pub high_pages: u64,
    /// How pages come home but for those that come alone, which are copied.
    pub home_by: HomeBy,
    /// Largest run that a stream is fetched ahead by, in pages; 0 means 1.
    pub max_window: u32,
    /// Pages that the first touch of a place brings, a power of two.
    pub first_touch_pages: u32,
    /// Whether holes are filled as the kernel would: one at a time, and one that is read gets the zero page, which everybody
    /// shares, instead of memory of its own.
    pub zero_page: bool,
    /// Whether the memory that a page leaves behind is used for others, until [`Engine::stop_reusing_memory`].
    pub reuses_memory: bool,
    /// Who decides what leaves, what comes ahead, and where it goes.
    pub policy: Name,
}

impl Config {
    /// Defaults for a budget: an eighth of it may wait in staging, a sixty-fourth is kept free.
    pub fn for_budget(budget_pages: u64) -> Self {
        let block = crate::addr::BLOCK_PAGES as u64;
        let low_pages = (budget_pages / 64).clamp(32, 1024);
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        Self {
            nr_bays: (budget_pages / 8 / block).clamp(4, 32) as u32,
            low_pages,
            high_pages: low_pages * 2,
            home_by: HomeBy::Move,
            max_window: (budget_pages / 32).clamp(16, block) as u32,
            first_touch_pages: 16,
            zero_page: false,
            reuses_memory: true,
            policy: Name::default(),
        }
    }

    /// Pages of one transfer: not so many that a small budget has no room for them.
    pub fn ahead_pages(&self) -> usize {
        (self.max_window as usize / 4).clamp(DEMAND_PAGES, FETCH_PAGES)
    }

    /// Pages of one transfer with one that was asked for, of a window of so many. Where a stream with a large window has to
    /// wait it goes on faster than what is fetched ahead: then what counts is how soon all of it is there.
    pub fn demand_pages(&self, window: usize) -> usize {
        window.min((window / 4).clamp(DEMAND_PAGES, self.ahead_pages()))
    }

    /// For an address space that is only mirrored: holes are filled as the kernel would fill them.
    pub fn for_mirror(budget_pages: u64) -> Self {
        let nr_bays = MIRROR_BAYS;
        Self { nr_bays, first_touch_pages: 1, zero_page: true, ..Self::for_budget(budget_pages) }
    }
}

/// What [`Engine::peek`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// The page's bytes.
    Bytes,
    /// They are lost.
    Lost,
}

/// See the [crate] documentation.
#[derive(Debug)]
pub struct Engine<K> {
    pub(crate) kernel: K,
    pub(crate) registry: Registry,
    pub(crate) config: Config,
    pub(crate) gate: RwLock<()>,
    pub(crate) notifiers: Arc<Notifiers>,
    pub(crate) hints: Hints,
    pub(crate) table: Table,
    pub(crate) staging: Staging,
    pub(crate) streams: Streams,
    pub(crate) jobs: Jobs,
    pub(crate) discards: Discards,
    pub(crate) copies: CopyPolicy,
    pub(crate) flights: Flights,
    pub(crate) demotion: Demotion,
    /// Pages that the program moved while they were being fetched.
    pub(crate) moved: Mutex<Vec<Moved>>,
    /// Frames of pages that were given up while they were being fetched, and whose place another page has taken.
    pub(crate) orphans: Mutex<Vec<(Ticket, Frame)>>,
    /// Has the blocks with resident pages, and says which of them leaves next.
    pub(crate) policy: Box<dyn Policy>,
    tickets: AtomicU32,
    /// Pages in [`PageState::Exclusive`].
    pub(crate) nr_exclusive: AtomicU64,
    /// Our part of what was asked of the ledger.
    pub(crate) own_asked: AtomicU64,
    /// What the others had asked when we last gave something.
    pub(crate) others_asked: AtomicU64,
    /// How stock was used until it was last looked at, and how often it was found not to have been since.
    /// Set while no page may leave the program.
    pub(crate) all_stay: AtomicBool,
    pub(crate) idle: Mutex<(usize, u32)>,
}

/// Drivers that still watch learn that there is nothing to mirror any more.
impl<K> Drop for Engine<K> {
    fn drop(&mut self) {
        let range = crate::addr::PageRange { start: Vpn(0), end: crate::table::END };
        drop(self.notifiers.invalidate(Change { range, cause: Cause::Release, owner: None }));
    }
}

impl<K: Kernel> Engine<K> {
    /// An engine that manages nothing yet. `tiers` are the devices that reclaim evicts to; without any it cannot evict.
    ///
    /// # Panics
    /// With more than sixteen devices, or with fewer than two bays.
    pub fn new(kernel: K, tiers: Vec<Arc<dyn Device>>, config: Config) -> Self {
        Self::with_policy(kernel, tiers, config, config.policy.policy())
    }

    /// The same, with a policy of the caller's; the configuration's is not asked.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with_policy(
        kernel: K,
        tiers: Vec<Arc<dyn Device>>,
        config: Config,
        policy: Box<dyn Policy>,
    ) -> Self {
        assert!(tiers.len() <= MAX_DEVICES, "an engine has at most sixteen devices");
        assert!(config.nr_bays >= 2, "staging has at least two bays");
        let flights = Flights::new();
        (0..).zip(&tiers).for_each(|(number, tier)| flights.expect_patience(number, tier));
        Self {
            kernel,
            flights,
            demotion: Demotion::new(&tiers),
            registry: Registry::new(tiers),
            config,
            gate: RwLock::new(()),
            notifiers: Arc::default(),
            hints: Hints::default(),
            table: Table::new(),
            staging: Staging::new(config.nr_bays, config.reuses_memory),
            streams: Streams::new(config.max_window),
            jobs: Jobs::new(),
            discards: Discards::new(),
            copies: CopyPolicy::new(),
            moved: Mutex::new(Vec::new()),
            orphans: Mutex::new(Vec::new()),
            policy,
            tickets: AtomicU32::new(0),
            nr_exclusive: AtomicU64::new(0),
            own_asked: AtomicU64::new(0),
            others_asked: AtomicU64::new(0),
            all_stay: AtomicBool::new(false),
            idle: Mutex::default(),
        }
    }

    /// The kernel it works on.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The tiers, in the order in which they are filled.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        self.registry.tiers()
    }

    /// What the program says of its memory.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }

    /// The drivers that mirror the address space.
    pub fn notifiers(&self) -> &Arc<Notifiers> {
        &self.notifiers
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state of a page. For tools and tests; it may have changed when the caller looks at it.
    pub fn state(&self, page: Vpn) -> PageState {
        self.table.get(page.block()).map_or(PageState::None, |block| block.lock().get(page.index()))
    }

    /// Copies a page that is not in the program, wherever its bytes are, and changes nothing: for a child of a fork,
    /// which has the page, too. The caller keeps everybody else from the engine meanwhile, and has devices give back
    /// what is theirs alone ([`revoke`](Self::revoke)).
    pub fn peek(&self, page: Vpn, bytes: &mut [u8; crate::addr::PAGE_SIZE]) -> Peeked {
        match self.state(page) {
            PageState::Device { frame } | PageState::Fetching { frame, .. } => {
                let request = hmm_device::Fetch { frames: &[frame.pfn], bytes };
                let Ok(pass) = self.flights.begin(frame.device) else { return Peeked::Lost };
                let fetched = self.device(frame).is_some_and(|device| device.fetch(request).stop.is_none());
                if fetched && pass.land() { Peeked::Bytes } else { Peeked::Lost }
            }
            PageState::Staged { slot, .. } | PageState::Storing { slot } | PageState::Exclusive { slot } => {
                self.kernel
                    .with_slots(SlotRun { start: slot, len: 1 }, &mut |page| bytes.copy_from_slice(page));
                Peeked::Bytes
            }
            PageState::Poisoned => Peeked::Lost,
            PageState::None
            | PageState::System { .. }
            | PageState::Coherent { .. }
            | PageState::Dropped { .. } => {
                bytes.fill(0);
                Peeked::Bytes
            }
        }
    }

    /// Calls `each` for every page whose bytes are not in the program. It must not call the engine.
    pub fn for_each_absent(&self, each: &mut dyn FnMut(Vpn)) {
        self.for_each_state(&mut |page, state| match state {
            PageState::None
            | PageState::System { .. }
            | PageState::Coherent { .. }
            | PageState::Dropped { .. } => {}
            PageState::Fetching { .. }
            | PageState::Staged { .. }
            | PageState::Storing { .. }
            | PageState::Device { .. }
            | PageState::Exclusive { .. }
            | PageState::Poisoned => each(page),
        });
    }

    /// Calls `each` for every page whose bytes the engine has to bring. It must not call the engine.
    pub fn for_each_kept(&self, each: &mut dyn FnMut(Vpn)) {
        self.for_each_state(&mut |page, state| {
            let is_kept = matches!(
                state,
                PageState::Fetching { .. }
                    | PageState::Staged { .. }
                    | PageState::Storing { .. }
                    | PageState::Device { .. }
                    | PageState::Exclusive { .. }
            );
            if is_kept {
                each(page);
            }
        });
    }

    /// Calls `each` for every page whose only bytes are on the tier of that number. It must not call the engine.
    pub fn for_each_on(&self, tier: u8, each: &mut dyn FnMut(Vpn)) {
        self.for_each_state(&mut |page, state| {
            if matches!(state, PageState::Device { frame } if frame.device == tier) {
                each(page);
            }
        });
    }

    fn for_each_state(&self, each: &mut dyn FnMut(Vpn, PageState)) {
        let everything = crate::addr::PageRange { start: Vpn(0), end: crate::table::END };
        for (id, block, part) in self.table.used_blocks(everything) {
            let states = block.lock();
            part.for_each(|index| each(id.page(index), states.get(index)));
        }
    }

    /// Allocates what serving faults of the range needs: from then on it allocates nothing, as far as policy and devices
    /// do not.
    pub fn prepare(&self, range: crate::addr::PageRange) {
        for (id, _) in range.blocks().take_while(|(id, _)| crate::table::covers(id.page(0))) {
            let _ = self.table.block(id);
        }
        self.policy.expect(self.table.nr_blocks());
        self.demotion.expect(self.table.nr_blocks());
    }

    /// Bytes of the engine's own tables.
    pub fn metadata_bytes(&self) -> u64 {
        self.table.bytes()
    }

    /// Pages of staging that hold memory without meaning: free memory that is charged.
    pub fn nr_stock(&self) -> u64 {
        (self.staging.nr_stock() + self.staging.nr_spent()) as u64
    }

    /// Brings the gauges that are too dear to keep at all times up to date.
    pub fn refresh_gauges(&self) {
        let stats = self.stats();
        for (gauge, device) in stats.tiers.iter().zip(self.devices()) {
            gauge.store(device.usage());
        }
        stats.metadata_bytes.store(self.metadata_bytes(), Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> &Stats {
        self.kernel.stats()
    }

    pub(crate) fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the memory that a page leaves behind goes back to the system, and others get fresh memory. To be called
    /// before the program has the kernel refer to its pages otherwise than by their addresses, without pinning them: by
    /// `vmsplice(2)`, by sending with `MSG_ZEROCOPY`, by an io_uring that does such things. What is in a pipe or in a packet would
    /// be overwritten there. It costs the kernel's making and clearing that memory: about as much again as a page that streams.
    pub fn stop_reusing_memory(&self) {
        self.staging.stop_reusing();
    }

    /// Charges pages, all or none. What is spent is given back for them: it is free, but for the call.
    pub(crate) fn try_charge(&self, pages: usize) -> bool {
        while !self.kernel.share().try_charge(pages as u64) {
            let any_spent = self.staging.nr_spent() > 0;
            let Some(surplus) = any_spent.then(|| self.staging.take_surplus(Which::Most)).flatten() else {
                return false;
            };
            self.release(surplus);
        }
        true
    }

    pub(crate) fn charge_found(&self, pages: usize) {
        self.kernel.share().charge_found(pages as u64);
    }

    pub(crate) fn uncharge(&self, pages: usize) {
        if pages > 0 {
            self.kernel.share().uncharge(pages as u64);
        }
    }

    pub(crate) fn add_away(&self, pages: usize) {
        self.stats().away.fetch_add(pages as u64, Ordering::Relaxed);
    }

    pub(crate) fn sub_away(&self, pages: usize) {
        self.stats().away.fetch_sub(pages as u64, Ordering::Relaxed);
    }

    /// The device that a frame is on. `None`: it is not there any more.
    pub(crate) fn device(&self, frame: Frame) -> Option<Held<'_>> {
        self.registry.get(frame.device)
    }

    pub(crate) fn free_frame(&self, frame: Frame) {
        self.free_frames(frame.device, &[frame.pfn]);
    }

    /// Gives up the engine's part in frames of one device.
    pub(crate) fn free_frames(&self, device: u8, frames: &[DevicePfn]) {
        if frames.is_empty() {
            return;
        }
        match self.registry.get(device) {
            Some(Held::Tier(tier)) => tier.free(frames),
            Some(Held::Driver(member)) => member.free(frames),
            None => {}
        }
    }

    pub(crate) fn new_ticket(&self) -> Ticket {
        Ticket::new(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// Sees to it that a block with resident pages is found by reclaim. The caller holds the block's lock.
    pub(crate) fn note_resident(&self, id: BlockId, states: &mut States) {
        if states.nr_system() > 0 && !states.queued {
            states.queued = true;
            self.policy.came(id, &mut states.note);
        }
    }

    /// Lends staging memory for up to `want` pages: stock, else blank slots as far as the budget goes.
    pub(crate) fn take_slots(&self, want: usize) -> Option<SlotRun> {
        self.take_slots_of(want).map(|(slots, _)| slots)
    }

    /// The same, and says what is in them: [`Left::Memory`] of stock, [`Left::Nothing`] of blank slots, which are charged.
    pub(crate) fn take_slots_of(&self, want: usize) -> Option<(SlotRun, Left)> {
        if let Some(run) = self.staging.take_stock(want) {
            return Some((run, Left::Memory));
        }
        let want = want.min(usize::try_from(self.kernel.ledger().free()).unwrap_or(usize::MAX)).max(1);
        if !self.try_charge(want) {
            return None;
        }
        let run = self.staging.take_blank(want);
        self.uncharge(want - run.map_or(0, |run| run.len));
        run.map(|run| (run, Left::Nothing))
    }

    /// Takes them back as they were lent.
    pub(crate) fn put_slots_back(&self, slots: SlotRun, left: Left) {
        self.staging.put(slots, left);
        if left == Left::Nothing {
            self.uncharge(slots.len);
        }
    }
}
