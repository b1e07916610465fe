//! A compute unit: what a kernel does its accesses with.

use std::mem::MaybeUninit;

use hmm_core::addr::{PAGE_SIZE, Vpn};

use crate::buffer::BATCH;
use crate::device::Shared;
use crate::error::{DeviceFault, Why};
use crate::tlb::{Core, Place};
use crate::trap;
use crate::word::{AtomicWord, Change, Ptr, Word};

/// Times that one access may find that its page, just entered, is gone.
const MAX_TRAPS: usize = 64;

/// A page's bytes on the unit's stack, which no device memory and no memory of the program is.
#[repr(align(64))]
struct Bounce(MaybeUninit<[u8; PAGE_SIZE]>);

/// A compute unit of a device, on a thread of its own, for as long as a kernel runs.
///
/// Accesses of words are atomic and unordered, as on a GPU; [`fetch_add`](Self::fetch_add) and its relatives acquire and
/// release. Every access may wait for its page, and may fail ([`DeviceFault`]); a kernel that gives the error back ends.
#[derive(Debug)]
pub struct Unit<'d> {
    device: &'d Shared,
    core: &'d Core,
    id: usize,
    /// Units are bound to their thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl<'d> Unit<'d> {
    pub(crate) fn new(device: &'d Shared, id: usize) -> Self {
        Self { device, core: &device.cores[id], id, _not_send: std::marker::PhantomData }
    }

    /// Number of this unit, from 0.
    pub fn id(&self) -> usize {
        self.id
    }

    /// How many units run the kernel.
    pub fn nr_units(&self) -> usize {
        self.device.cores.len()
    }

    /// This unit's part of `0..nr`: consecutive, and about the same for each unit.
    pub fn share(&self, nr: usize) -> std::ops::Range<usize> {
        let cut = |id: usize| nr / self.nr_units() * id + (nr % self.nr_units()).min(id);
        cut(self.id)..cut(self.id + 1)
    }

    /// Loads a word.
    ///
    /// # Errors
    /// [`DeviceFault`].
    #[inline(always)]
    pub fn load<T: Word>(&self, from: Ptr<T>) -> Result<T, DeviceFault> {
        let mut traps = 0;
        loop {
            match self.core.enter(from.addr(), size_of::<T>(), false) {
                Some(Place::Frame(at)) => {
                    // SAFETY: aligned and inside of a frame, by the TLB; the access window keeps the frame ours, and
                    // units access frames atomically.
                    let value = unsafe { T::load(at) };
                    self.core.leave();
                    return Ok(value);
                }
                // SAFETY: who launched the kernel answers for what it accesses.
                Some(Place::System) => match unsafe { T::load_system(from.addr()) } {
                    Ok(value) => return Ok(value),
                    Err(trap::Trapped) => self.trapped(from.addr(), false, &mut traps)?,
                },
                None => self.miss::<T>(from.addr(), false)?,
            }
        }
    }

    /// Stores a word.
    ///
    /// # Errors
    /// [`DeviceFault`].
    #[inline(always)]
    pub fn store<T: Word>(&self, to: Ptr<T>, value: T) -> Result<(), DeviceFault> {
        let mut traps = 0;
        loop {
            match self.core.enter(to.addr(), size_of::<T>(), true) {
                Some(Place::Frame(at)) => {
                    // SAFETY: as in `load`.
                    unsafe { value.store(at) };
                    self.core.leave();
                    return Ok(());
                }
                // SAFETY: who launched the kernel answers for what it accesses.
                Some(Place::System) => match unsafe { value.store_system(to.addr()) } {
                    Ok(()) => return Ok(()),
                    Err(trap::Trapped) => self.trapped(to.addr(), true, &mut traps)?,
                },
                None => self.miss::<T>(to.addr(), true)?,
            }
        }
    }

    #[inline(always)]
    fn change<T: AtomicWord>(&self, at: Ptr<T>, change: Change<T>) -> Result<T, DeviceFault> {
        let mut traps = 0;
        loop {
            match self.core.enter(at.addr(), size_of::<T>(), true) {
                Some(Place::Frame(frame)) => {
                    // SAFETY: as in `load`.
                    let before = unsafe { T::change(frame, change) };
                    self.core.leave();
                    return Ok(before);
                }
                // SAFETY: who launched the kernel answers for what it accesses.
                Some(Place::System) => match unsafe { T::change_system(at.addr(), change) } {
                    Ok(before) => return Ok(before),
                    Err(trap::Trapped) => self.trapped(at.addr(), true, &mut traps)?,
                },
                None => self.miss::<T>(at.addr(), true)?,
            }
        }
    }

    /// Adds, wrapping; what the word was before. Atomic for units, for other devices and for the CPU.
    ///
    /// # Errors
    /// [`DeviceFault`].
    pub fn fetch_add<T: AtomicWord>(&self, at: Ptr<T>, value: T) -> Result<T, DeviceFault> {
        self.change(at, Change::Add(value))
    }

    /// Replaces; what the word was before. Atomic as [`fetch_add`](Self::fetch_add).
    ///
    /// # Errors
    /// [`DeviceFault`].
    pub fn swap<T: AtomicWord>(&self, at: Ptr<T>, value: T) -> Result<T, DeviceFault> {
        self.change(at, Change::Swap(value))
    }

    /// Replaces a word that is `expected`; what it was before. Atomic as [`fetch_add`](Self::fetch_add).
    ///
    /// # Errors
    /// [`DeviceFault`].
    pub fn compare_exchange<T: AtomicWord>(
        &self,
        at: Ptr<T>,
        expected: T,
        value: T,
    ) -> Result<T, DeviceFault> {
        self.change(at, Change::Cas { expected, value })
    }

    /// Reads words. They may change while that happens; each is read once.
    ///
    /// # Errors
    /// [`DeviceFault`]; `into` is read up to the page that failed.
    pub fn read<T: Word>(&self, from: Ptr<T>, into: &mut [T]) -> Result<(), DeviceFault> {
        let nr = into.len();
        self.chunks(from, nr, |first, words| into[first..first + words.len()].copy_from_slice(words))
    }

    /// Writes words.
    ///
    /// # Errors
    /// [`DeviceFault`]; what lies in front of the page that failed is written.
    pub fn write<T: Word>(&self, to: Ptr<T>, words: &[T]) -> Result<(), DeviceFault> {
        self.pages(to, words.len(), true, |unit, at, range, bounce| {
            let from = words[range.clone()].as_ptr();
            // SAFETY: both have room for the words of a page's part, and the unit's stack is no part of `words`.
            unsafe { std::ptr::copy_nonoverlapping(from, bounce.words(), range.len()) };
            unit.copy_out(at, bounce, range.len() * size_of::<T>())
        })
    }

    /// Gives `nr` words to `work`, page by page: the number of the first word, and a copy of the page's.
    ///
    /// # Errors
    /// [`DeviceFault`]; the pages in front of the one that failed were given.
    pub fn chunks<T: Word>(
        &self,
        from: Ptr<T>,
        nr: usize,
        mut work: impl FnMut(usize, &[T]),
    ) -> Result<(), DeviceFault> {
        self.pages(from, nr, false, |unit, at, range, bounce| {
            unit.copy_in(at, bounce, range.len() * size_of::<T>())?;
            // SAFETY: so many bytes were copied; any bytes are words; nobody else has the unit's stack.
            let words = unsafe { std::slice::from_raw_parts(bounce.words::<T>(), range.len()) };
            work(range.start, words);
            Ok(())
        })
    }

    /// Gives `nr` words to `work`, page by page, and writes back what it makes of them. The page may change meanwhile, and
    /// such changes are overwritten: the words are this unit's alone, or the kernel is wrong.
    ///
    /// # Errors
    /// [`DeviceFault`]; the pages in front of the one that failed were given, and are written.
    pub fn chunks_mut<T: Word>(
        &self,
        at: Ptr<T>,
        nr: usize,
        mut work: impl FnMut(usize, &mut [T]),
    ) -> Result<(), DeviceFault> {
        self.pages(at, nr, true, |unit, at, range, bounce| {
            unit.copy_in(at, bounce, range.len() * size_of::<T>())?;
            // SAFETY: as in `chunks`, and this is the only reference.
            let words = unsafe { std::slice::from_raw_parts_mut(bounce.words::<T>(), range.len()) };
            work(range.start, words);
            unit.copy_out(at, bounce, range.len() * size_of::<T>())
        })
    }

    /// Calls `work` for each page's part of a run of words: its address, the numbers of its words, and a buffer.
    fn pages<T: Word>(
        &self,
        first: Ptr<T>,
        nr: usize,
        write: bool,
        mut work: impl FnMut(&Self, Run, std::ops::Range<usize>, &mut Bounce) -> Result<(), DeviceFault>,
    ) -> Result<(), DeviceFault> {
        if !first.addr().is_multiple_of(size_of::<T>() as u64) {
            return Err(DeviceFault { addr: first.addr(), write, why: Why::Misaligned });
        }
        let last = first.add(nr.saturating_sub(1)).addr();
        let mut bounce = Bounce(MaybeUninit::uninit());
        let mut done = 0;
        while done < nr {
            let addr = first.add(done).addr();
            #[expect(clippy::cast_possible_truncation, reason = "less than a page")]
            let offset = (addr % PAGE_SIZE as u64) as usize;
            let in_page = (PAGE_SIZE - offset) / size_of::<T>();
            let end = nr.min(done + in_page);
            let ahead = (Vpn::of_addr(last).0 - Vpn::of_addr(addr).0).min(BATCH as u64 - 1);
            work(self, Run { addr, write, ahead }, done..end, &mut bounce)?;
            done = end;
        }
        Ok(())
    }

    fn copy_in(&self, run: Run, bounce: &mut Bounce, nr_bytes: usize) -> Result<(), DeviceFault> {
        let mut traps = 0;
        let to = bounce.words::<u8>();
        loop {
            match self.core.enter(run.addr, 1, run.write) {
                Some(Place::Frame(at)) => {
                    // SAFETY: a part of a frame, which the access window keeps ours, and a buffer of a page. A kernel
                    // that writes what another unit reads in this way is wrong, see `Soft::launch`.
                    unsafe { std::ptr::copy_nonoverlapping(at, to, nr_bytes) };
                    self.core.leave();
                    return Ok(());
                }
                Some(Place::System) => {
                    let to = to.expose_provenance() as u64;
                    // SAFETY: who launched the kernel answers for what it accesses; the buffer is a page.
                    match unsafe { trap::copy(to, run.addr, nr_bytes as u64) } {
                        Ok(()) => return Ok(()),
                        Err(trap::Trapped) => self.trapped(run.addr, run.write, &mut traps)?,
                    }
                }
                None => self.device.translate(self.core, run.addr, run.write, run.ahead)?,
            }
        }
    }

    fn copy_out(&self, run: Run, bounce: &mut Bounce, nr_bytes: usize) -> Result<(), DeviceFault> {
        let mut traps = 0;
        let from = bounce.words::<u8>();
        loop {
            match self.core.enter(run.addr, 1, true) {
                Some(Place::Frame(at)) => {
                    // SAFETY: as in `copy_in`.
                    unsafe { std::ptr::copy_nonoverlapping(from, at, nr_bytes) };
                    self.core.leave();
                    return Ok(());
                }
                Some(Place::System) => {
                    let from = from.expose_provenance() as u64;
                    // SAFETY: as in `copy_in`.
                    match unsafe { trap::copy(run.addr, from, nr_bytes as u64) } {
                        Ok(()) => return Ok(()),
                        Err(trap::Trapped) => self.trapped(run.addr, true, &mut traps)?,
                    }
                }
                None => self.device.translate(self.core, run.addr, true, run.ahead)?,
            }
        }
    }

    /// The TLB has no entry, or the address is not aligned.
    #[cold]
    fn miss<T>(&self, addr: u64, write: bool) -> Result<(), DeviceFault> {
        if !addr.is_multiple_of(size_of::<T>() as u64) {
            return Err(DeviceFault { addr, write, why: Why::Misaligned });
        }
        self.device.translate(self.core, addr, write, 0)
    }

    /// The page was entered, and is not there.
    #[cold]
    fn trapped(&self, addr: u64, write: bool, traps: &mut usize) -> Result<(), DeviceFault> {
        *traps += 1;
        self.device.refused(addr);
        if *traps < MAX_TRAPS { Ok(()) } else { Err(DeviceFault { addr, write, why: Why::Vanished }) }
    }
}

/// A page's part that is accessed as a whole.
#[derive(Clone, Copy)]
struct Run {
    addr: u64,
    write: bool,
    /// Pages behind it that are accessed next.
    ahead: u64,
}

impl Bounce {
    fn words<T>(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}
