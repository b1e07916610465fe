//! The verbs that answer faults, on the real kernel.

mod common;

#[cfg(test)]
mod tests {
    use hmm_uapi::mapping::Advice;
    use hmm_uapi::uffd::{CopyMode, Event, FaultAccess, Features, Modes, MoveMode, Outcome};
    use hmm_uapi::{Errno, Mapping, sys};

    use crate::common::*;

    const BOTH: Modes = Modes::MISSING.union(Modes::WRITE_PROTECT);
    const COMPLETE: CopyMode = CopyMode::empty();

    fn stopped(pages: usize, why: Errno) -> Outcome {
        Outcome { done_bytes: (pages * PAGE) as u64, stop: Some(why) }
    }

    fn complete(pages: usize) -> Outcome {
        Outcome { done_bytes: (pages * PAGE) as u64, stop: None }
    }

    fn move_pages(memory: &Managed, dst: u64, src: u64, pages: usize, mode: MoveMode) -> Outcome {
        // SAFETY: the source is memory of the test, which nobody refers to.
        unsafe { memory.uffd.r#move(dst, src, (pages * PAGE) as u64, mode) }
    }

    #[test]
    fn copy_answers_a_fault() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::THREAD_ID, Modes::MISSING, 4) else { return };
        let source = filled(1, 7);
        let reader = read(memory.page(2) + 5);
        let Event::Fault { addr, access, tid } = event(&memory.uffd) else { panic!("a fault is expected") };
        assert_eq!((addr, access), (memory.page(2), FaultAccess::Read));
        assert!(tid != 0 && tid != u32::try_from(sys::gettid()).unwrap());
        assert!(reader.is_waiting());
        assert_eq!(memory.uffd.copy(source.range().start, addr, PAGE as u64, COMPLETE), complete(1));
        assert_eq!(reader.get(), 7);
    }

    #[test]
    fn copy_stops_at_a_page_that_is_there_and_tells_what_it_did() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 8) else { return };
        let source = filled(8, 1);
        let src = source.range().start;
        assert!(memory.uffd.zero(memory.pages(3, 1)).is_complete());
        let outcome = memory.uffd.copy(src, memory.page(0), 8 * PAGE as u64, COMPLETE);
        assert_eq!(outcome, stopped(3, Errno::EXIST));
        let outcome = memory.uffd.copy(src, memory.page(3), PAGE as u64, COMPLETE);
        assert_eq!(outcome, stopped(0, Errno::EXIST));
        let outcome = memory.uffd.copy(src + 4 * PAGE as u64, memory.page(4), 4 * PAGE as u64, COMPLETE);
        assert_eq!(outcome, complete(4));
        for (index, value) in [1, 2, 3, 0, 5, 6, 7, 8].into_iter().enumerate() {
            assert_eq!(read(memory.page(index)).get(), value);
        }
    }

    #[test]
    fn copy_refuses_what_it_cannot_do() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 2) else { return };
        let source = filled(1, 1);
        let src = source.range().start;
        let other = Mapping::anonymous(PAGE).unwrap();
        let nowhere = Mapping::reserve(2 * PAGE).unwrap();
        let page = PAGE as u64;
        let copy = |src, dst| memory.uffd.copy(src, dst, page, COMPLETE);
        assert_eq!(copy(src, other.range().start), stopped(0, Errno::NOENT));
        assert_eq!(copy(src, memory.page(0) + 1), stopped(0, Errno::INVAL));
        assert_eq!(copy(nowhere.range().start, memory.page(0)), stopped(0, Errno::FAULT));
        // Half of the source can be read: what can be done is done.
        nowhere.commit(0, PAGE).unwrap();
        let outcome = memory.uffd.copy(nowhere.range().start, memory.page(0), 2 * page, COMPLETE);
        assert_eq!(outcome, stopped(1, Errno::FAULT));
    }

    #[test]
    fn copy_works_in_read_only_mappings() {
        let _turn = one_at_a_time();
        let Some(uffd) = userfaultfd(Features::empty()) else { return };
        let memory = Mapping::anonymous(PAGE).unwrap();
        register(&uffd, memory.range(), Modes::MISSING);
        // SAFETY: the mapping is the test's.
        let status = unsafe { libc::mprotect(memory.as_ptr().cast(), PAGE, libc::PROT_READ) };
        assert_eq!(status, 0);
        let source = filled(1, 9);
        assert_eq!(uffd.copy(source.range().start, memory.range().start, PAGE as u64, COMPLETE), complete(1));
        assert_eq!(read(memory.range().start).get(), 9);
    }

    #[test]
    fn zero_fills_holes_up_to_a_page() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 4) else { return };
        assert_eq!(memory.uffd.zero(memory.pages(2, 1)), complete(1));
        assert_eq!(memory.uffd.zero(memory.pages(0, 4)), stopped(2, Errno::EXIST));
        assert_eq!(memory.uffd.zero(memory.pages(3, 1)), complete(1));
        write(memory.page(3), 3).get();
        assert_eq!(read(memory.page(0)).get(), 0);
        assert_eq!(read(memory.page(3)).get(), 3);
    }

    #[test]
    fn without_a_wake_the_reader_waits_on() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 1) else { return };
        let source = filled(1, 4);
        let reader = read(memory.page(0));
        assert!(matches!(event(&memory.uffd), Event::Fault { .. }));
        let outcome = memory.uffd.copy(source.range().start, memory.page(0), PAGE as u64, CopyMode::DONTWAKE);
        assert_eq!(outcome, complete(1));
        assert!(reader.is_waiting());
        memory.uffd.wake(memory.pages(0, 1)).unwrap();
        assert_eq!(reader.get(), 4);
        assert_eq!(memory.uffd.wake(memory.pages(0, 0)), Err(Errno::INVAL));
    }

    /// Pages go out to staging and come home with their bytes; a touch in between waits.
    #[test]
    fn moves_pages_out_and_home() {
        let _turn = one_at_a_time();
        let Some(uffd) = userfaultfd(Features::MOVE) else { return };
        let program = filled(8, 1);
        let memory = Managed { uffd, program };
        register(&memory.uffd, memory.program.range(), Modes::MISSING);
        let staging = Mapping::anonymous(8 * PAGE).unwrap();
        register(&memory.uffd, staging.range(), Modes::WRITE_PROTECT);
        let bay = staging.range().start;
        assert_eq!(move_pages(&memory, bay, memory.page(0), 8, MoveMode::empty()), complete(8));

        let reader = read(memory.page(5));
        assert!(matches!(event(&memory.uffd), Event::Fault { addr, .. } if addr == memory.page(5)));
        assert!(reader.is_waiting());
        let src = bay + 4 * PAGE as u64;
        assert_eq!(move_pages(&memory, memory.page(4), src, 3, MoveMode::empty()), complete(3));
        assert_eq!(reader.get(), 6);
        // Two of the rest are holes now on one side, and there on the other.
        let why = move_pages(&memory, memory.page(0), bay, 8, MoveMode::empty());
        assert_eq!(why, stopped(4, Errno::EXIST));
        for index in [0u8, 1, 2, 3, 4, 5, 6] {
            assert_eq!(read(memory.page(usize::from(index))).get(), index + 1);
        }
    }

    #[test]
    fn holes_of_the_source_stop_a_move_unless_allowed() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::MOVE, Modes::MISSING, 4) else { return };
        let source = filled(4, 1);
        let src = source.range().start;
        source.advise(PAGE, 2 * PAGE, Advice::DontNeed).unwrap();
        let strict = move_pages(&memory, memory.page(0), src, 4, MoveMode::empty());
        assert_eq!(strict, stopped(1, Errno::NOENT));
        let lenient = move_pages(
            &memory,
            memory.page(1),
            src + PAGE as u64,
            3,
            MoveMode::ALLOW_SRC_HOLES | MoveMode::DONTWAKE,
        );
        assert_eq!(lenient, complete(3));
        assert_eq!(read(memory.page(0)).get(), 1);
        assert_eq!(read(memory.page(3)).get(), 4);
        // What was a hole is one still.
        assert_eq!(memory.uffd.zero(memory.pages(1, 2)), complete(2));
    }

    #[test]
    fn moves_only_between_like_memory() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::MOVE, Modes::MISSING, 4) else { return };
        let source = filled(1, 1);
        let src = source.range().start;
        let elsewhere = Mapping::anonymous(PAGE).unwrap();
        let page = MoveMode::empty();
        assert_eq!(move_pages(&memory, elsewhere.range().start, src, 1, page), stopped(0, Errno::INVAL));
        // SAFETY: the mapping is the test's.
        assert_eq!(unsafe { libc::mprotect(source.as_ptr().cast(), PAGE, libc::PROT_READ) }, 0);
        assert_eq!(move_pages(&memory, memory.page(0), src, 1, page), stopped(0, Errno::INVAL));
        assert_eq!(read(src).get(), 1);
    }

    #[test]
    fn a_page_shared_by_fork_is_busy_until_written() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::MOVE, Modes::MISSING, 3) else { return };
        let source = filled(3, 1);
        let src = source.range().start;
        assert_eq!(in_child(|| 0).end(), Ok(0));
        assert_eq!(move_pages(&memory, memory.page(0), src, 3, MoveMode::empty()), stopped(0, Errno::BUSY));
        sys::populate_write(source.range()).unwrap();
        assert_eq!(move_pages(&memory, memory.page(0), src, 3, MoveMode::empty()), complete(3));
        assert_eq!(read(memory.page(2)).get(), 3);
    }

    /// By who answers faults, too.
    #[test]
    fn sharing_ends_without_a_fault_that_somebody_has_to_answer() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::PAGEFAULT_FLAG_WP, BOTH, 4) else { return };
        let source = filled(3, 1);
        let src = source.range().start;
        let there = memory.uffd.copy(src, memory.page(0), 2 * PAGE as u64, COMPLETE);
        assert_eq!(there, complete(2));
        let protected = memory.uffd.copy(src, memory.page(2), PAGE as u64, CopyMode::WRITE_PROTECT);
        assert_eq!(protected, complete(1));
        assert_eq!(in_child(|| 0).end(), Ok(0));
        assert_eq!(
            move_pages(&memory, memory.page(3), memory.page(0), 1, MoveMode::empty()),
            stopped(0, Errno::BUSY)
        );
        let results = [0, 1, 2, 3].map(|page| sys::write_nothing(memory.page(page)));
        assert_eq!(results, [Ok(()), Ok(()), Err(Errno::FAULT), Err(Errno::FAULT)]);
        assert_eq!(move_pages(&memory, memory.page(3), memory.page(0), 1, MoveMode::empty()), complete(1));
        assert_eq!(read(memory.page(3)).get(), 1);
        assert_eq!(read(memory.page(1)).get(), 2);
        // SAFETY: the mapping is the test's.
        assert_eq!(unsafe { libc::mprotect(source.as_ptr().cast(), PAGE, libc::PROT_READ) }, 0);
        assert_eq!(sys::write_nothing(src), Err(Errno::FAULT));
        assert_eq!(sys::write_nothing(0), Err(Errno::FAULT));
    }

    #[test]
    fn write_protection_reports_writers_until_lifted() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::PAGEFAULT_FLAG_WP, BOTH, 2) else { return };
        let source = filled(1, 1);
        let outcome =
            memory.uffd.copy(source.range().start, memory.page(0), PAGE as u64, CopyMode::WRITE_PROTECT);
        assert_eq!(outcome, complete(1));
        assert_eq!(read(memory.page(0)).get(), 1);
        let writer = write(memory.page(0), 2);
        let Event::Fault { addr, access, .. } = event(&memory.uffd) else { panic!("a fault is expected") };
        assert_eq!((addr, access), (memory.page(0), FaultAccess::WriteProtect));
        assert!(writer.is_waiting());
        assert_eq!(read(memory.page(0)).get(), 1);
        memory.uffd.write_protect(memory.pages(0, 1), false).unwrap();
        writer.get();
        assert_eq!(read(memory.page(0)).get(), 2);

        memory.uffd.write_protect(memory.pages(0, 1), true).unwrap();
        let writer = write(memory.page(0), 3);
        assert!(matches!(event(&memory.uffd), Event::Fault { access: FaultAccess::WriteProtect, .. }));
        memory.uffd.write_protect(memory.pages(0, 1), false).unwrap();
        writer.get();

        let other = Mapping::anonymous(PAGE).unwrap();
        assert_eq!(memory.uffd.write_protect(other.range(), true), Err(Errno::NOENT));
    }

    #[test]
    fn a_write_to_a_hole_says_so() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::EXACT_ADDRESS, Modes::MISSING, 1) else { return };
        let writer = write(memory.page(0) + 17, 2);
        let Event::Fault { addr, access, tid } = event(&memory.uffd) else { panic!("a fault is expected") };
        assert_eq!((addr, access, tid), (memory.page(0) + 17, FaultAccess::Write, 0));
        assert_eq!(memory.uffd.zero(memory.pages(0, 1)), complete(1));
        writer.get();
        assert_eq!(read(addr).get(), 2);
    }

    #[test]
    fn system_calls_wait_as_well() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 1) else { return };
        let (into, from) = (memory.page(0), filled(1, 8));
        let pipe = rustix::pipe::pipe().unwrap();
        let writer = elsewhere(move || {
            let away = std::ptr::with_exposed_provenance::<libc::c_void>(usize::try_from(into).unwrap());
            // SAFETY: the kernel reads one byte of the test's memory.
            let nr_written = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&pipe.1), away, 1) };
            (pipe, nr_written)
        });
        assert!(matches!(event(&memory.uffd), Event::Fault { .. }));
        assert_eq!(memory.uffd.copy(from.range().start, into, PAGE as u64, COMPLETE), complete(1));
        let (pipe, nr_written) = writer.get();
        assert_eq!(nr_written, 1);
        let mut byte = [0];
        rustix::io::read(&pipe.0, &mut byte).unwrap();
        assert_eq!(byte, [8]);
    }

    #[test]
    fn poison_kills_by_sigbus() {
        let _turn = one_at_a_time();
        let Some(uffd) = userfaultfd(Features::POISON | Features::EVENT_REMOVE) else { return };
        drop(uffd);
        // The child has a userfaultfd of its own: registrations do not survive a fork unless followed.
        let child = in_child(|| {
            let Some(memory) = Managed::new(Features::POISON, Modes::MISSING, 2) else { return 1 };
            if !memory.uffd.zero(memory.pages(1, 1)).is_complete() {
                return 2;
            }
            let outcome = memory.uffd.poison(memory.pages(0, 2));
            if outcome != stopped(1, Errno::EXIST) {
                return 3;
            }
            // SAFETY: resets the signal that the standard library may have taken, in the child.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            // SAFETY: inside of the mapping.
            unsafe { memory.program.as_ptr().read_volatile() }
        });
        assert_eq!(child.end(), Err(libc::SIGBUS));
    }

    #[test]
    fn unregistering_lets_waiters_find_zeroes() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 1) else { return };
        let reader = read(memory.page(0));
        assert!(matches!(event(&memory.uffd), Event::Fault { .. }));
        memory.uffd.unregister(memory.pages(0, 1)).unwrap();
        assert_eq!(reader.get(), 0);
    }

    #[test]
    fn a_range_has_one_userfaultfd() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 1) else { return };
        let Some(second) = userfaultfd(Features::empty()) else { return };
        // SAFETY: it fails.
        assert_eq!(unsafe { second.register(memory.pages(0, 1), Modes::MISSING) }, Err(Errno::BUSY));
        // SAFETY: it fails.
        let unaligned = unsafe { second.register(hmm_uapi::AddrRange::new(1, 4096), Modes::MISSING) };
        assert_eq!(unaligned, Err(Errno::INVAL));
    }
}
