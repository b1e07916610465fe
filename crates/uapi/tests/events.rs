//! What the kernel tells of changed mappings, and what the verbs do meanwhile.

mod common;

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use hmm_uapi::uffd::{CopyMode, EnableError, Event, EventBuffer, FaultAccess, Features, Modes};
    use hmm_uapi::{AddrRange, Errno, Mapping, sys};

    use crate::common::*;

    const EVENTS: Features = Features::EVENT_REMAP.union(Features::EVENT_REMOVE).union(Features::EVENT_UNMAP);

    fn pointer(addr: u64) -> *mut libc::c_void {
        std::ptr::with_exposed_provenance_mut(usize::try_from(addr).unwrap())
    }

    /// Memory whose owner unmaps it itself.
    fn leaked(nr_pages: usize) -> AddrRange {
        let memory = Mapping::anonymous(nr_pages * PAGE).unwrap();
        let range = memory.range();
        Box::leak(Box::new(memory));
        range
    }

    #[test]
    fn munmap_tells_the_range() {
        let _turn = one_at_a_time();
        let Some(uffd) = userfaultfd(EVENTS) else { return };
        let range = leaked(4);
        register(&uffd, range, Modes::MISSING);
        let start = range.start + PAGE as u64;
        // SAFETY: nobody uses the test's memory.
        let unmap = elsewhere(move || unsafe { libc::munmap(pointer(start), 2 * PAGE) });
        let Event::Unmap(gone) = event(&uffd) else { panic!("an unmap is expected") };
        assert_eq!(gone, AddrRange::new(start, 2 * PAGE as u64));
        assert_eq!(unmap.get(), 0);
    }

    #[test]
    fn madvise_tells_the_range_before_it_acts_and_the_verbs_wait() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(EVENTS | Features::MOVE, Modes::MISSING, 4) else { return };
        let source = filled(1, 5);
        let src = source.range().start;
        assert!(memory.uffd.copy(src, memory.page(1), PAGE as u64, CopyMode::empty()).is_complete());
        let start = memory.page(0);
        // SAFETY: nobody refers to the test's memory.
        let drop_pages =
            elsewhere(move || unsafe { libc::madvise(pointer(start), 2 * PAGE, libc::MADV_DONTNEED) });
        await_events(&memory.uffd);

        // The event is unread: nothing is resolved, and the reason is told.
        let changing = hmm_uapi::uffd::Outcome { done_bytes: 0, stop: Some(Errno::AGAIN) };
        assert_eq!(memory.uffd.copy(src, memory.page(3), PAGE as u64, CopyMode::empty()), changing);
        assert_eq!(memory.uffd.zero(memory.pages(3, 1)), changing);
        // SAFETY: the source is the test's.
        let moved = unsafe { memory.uffd.r#move(memory.page(3), src, PAGE as u64, Default::default()) };
        assert_eq!(moved, changing);
        assert!(memory.uffd.is_changing());
        assert_eq!(read(memory.page(1)).get(), 5);
        assert!(drop_pages.is_waiting());

        let Event::Remove(range) = event(&memory.uffd) else { panic!("a remove is expected") };
        assert_eq!(range, memory.pages(0, 2));
        assert_eq!(drop_pages.get(), 0);
        assert!(!memory.uffd.is_changing());
        assert!(memory.uffd.copy(src, memory.page(3), PAGE as u64, CopyMode::empty()).is_complete());
        // The page is a hole again, and still ours.
        assert!(memory.uffd.zero(memory.pages(1, 1)).is_complete());
        let gone = elsewhere(move || drop(memory.program));
        assert!(matches!(event(&memory.uffd), Event::Unmap(_)));
        gone.get();
    }

    #[test]
    fn mremap_tells_where_to_and_the_registration_comes_along() {
        let _turn = one_at_a_time();
        let Some(uffd) = userfaultfd(EVENTS) else { return };
        let (from, to) = (leaked(2), leaked(2));
        register(&uffd, from, Modes::MISSING);
        assert!(!uffd.is_changing());
        let moving = elsewhere(move || {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: nobody uses the test's memory, neither here nor there.
            let at =
                unsafe { libc::mremap(pointer(from.start), 2 * PAGE, 2 * PAGE, flags, pointer(to.start)) };
            at.expose_provenance() as u64
        });
        let mut told = Vec::new();
        while told.len() < 2 {
            told.extend(events(&uffd));
            // Between the two as well: the second is queued when its thread runs again.
            assert!(told.len() == 2 || uffd.is_changing());
        }
        let [Event::Remap { from: old, to: new, len }, Event::Unmap(gone)] = told[..] else {
            panic!("a remap and an unmap are expected: {told:?}")
        };
        assert_eq!((old, new, len), (from.start, to.start, 2 * PAGE as u64));
        assert_eq!(gone, from);
        assert_eq!(moving.get(), to.start);
        let reader = read(to.start);
        assert!(matches!(event(&uffd), Event::Fault { addr, .. } if addr == to.start));
        assert!(uffd.zero(to).is_complete());
        assert_eq!(reader.get(), 0);
    }

    #[test]
    fn fork_brings_the_childs_userfaultfd() {
        let _turn = one_at_a_time();
        let features = EVENTS | Features::EVENT_FORK;
        let Some(memory) = Managed::new(features, Modes::MISSING, 2) else { return };
        let source = filled(1, 6);
        let start = memory.page(0);
        // SAFETY: the child reads one byte of the test's memory.
        let forking =
            elsewhere(move || in_child(|| unsafe { pointer(start).cast::<u8>().read_volatile() }).end());
        let Event::Fork { uffd: of_child } = event(&memory.uffd) else { panic!("a fork is expected") };
        let Event::Fault { addr, access, .. } = event(&of_child) else { panic!("a fault is expected") };
        assert_eq!((addr, access), (start, FaultAccess::Read));
        assert!(of_child.copy(source.range().start, addr, PAGE as u64, CopyMode::empty()).is_complete());
        assert_eq!(forking.get(), Ok(6));
        // The parent's page is a hole as before.
        assert!(memory.uffd.zero(memory.pages(0, 1)).is_complete());
        // The child is gone, and with it its address space.
        let late = of_child.copy(source.range().start, start, PAGE as u64, CopyMode::empty());
        assert_eq!(late.stop, Some(Errno::SRCH));
        release(memory);
    }

    #[test]
    fn forks_that_nobody_takes_are_closed() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::EVENT_FORK, Modes::MISSING, 1) else { return };
        let forking = elsewhere(move || in_child(|| 0).end());
        await_events(&memory.uffd);
        // The lowest free descriptor is what the event would take.
        let free = rustix::io::dup(&memory.uffd).unwrap().as_raw_fd();
        let mut buffer = EventBuffer::new();
        drop(memory.uffd.read_events(&mut buffer).unwrap());
        assert_eq!(forking.get(), Ok(0));
        let now_free = rustix::io::dup(&memory.uffd).unwrap().as_raw_fd();
        assert_eq!(free, now_free, "the descriptor of the fork leaks");
    }

    #[test]
    fn faults_of_several_threads_are_told_once_each() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 4) else { return };
        let readers: Vec<_> = (0..4).map(|index| read(memory.page(index))).collect();
        let mut pages = Vec::new();
        while pages.len() < 4 {
            pages.extend(events(&memory.uffd).into_iter().map(|event| {
                let Event::Fault { addr, .. } = event else { panic!("a fault is expected, not {event:?}") };
                addr
            }));
        }
        pages.sort_unstable();
        assert_eq!(pages, (0..4).map(|index| memory.page(index)).collect::<Vec<_>>());
        assert_eq!(memory.uffd.read_events(&mut EventBuffer::new()).map(drop), Err(Errno::AGAIN));
        assert!(memory.uffd.zero(memory.pages(0, 4)).is_complete());
        readers.into_iter().for_each(|reader| assert_eq!(reader.get(), 0));
    }

    #[test]
    fn a_reader_can_wait() {
        let _turn = one_at_a_time();
        let Some(memory) = Managed::new(Features::empty(), Modes::MISSING, 1) else { return };
        memory.uffd.set_nonblocking(false).unwrap();
        let page = memory.page(0);
        let server = elsewhere(move || {
            let mut buffer = EventBuffer::new();
            let nr_events = memory.uffd.read_events(&mut buffer).unwrap().count();
            assert!(memory.uffd.zero(memory.pages(0, 1)).is_complete());
            (memory, nr_events)
        });
        assert!(server.is_waiting());
        assert_eq!(read(page).get(), 0);
        assert_eq!(server.get().1, 1);
    }

    #[test]
    fn the_handshake_names_what_is_missing() {
        let _turn = one_at_a_time();
        let Ok(uffd) = hmm_uapi::Userfaultfd::open(hmm_uapi::uffd::Access::UserModeOnly) else {
            eprintln!("SKIPPED: no userfaultfd");
            return;
        };
        let mut buffer = EventBuffer::new();
        assert_eq!(uffd.read_events(&mut buffer).map(drop), Err(Errno::INVAL));
        let unknown = Features::from_bits_retain(1 << 62);
        assert_eq!(uffd.enable(unknown), Err(EnableError::Unsupported { missing: unknown }));
        let enabled = uffd.enable(Features::WP_ASYNC).unwrap();
        assert_eq!(enabled, Features::WP_ASYNC | Features::WP_UNPOPULATED);
        assert!(matches!(uffd.enable(Features::empty()), Err(EnableError::Kernel(Errno::INVAL))));
    }

    #[test]
    fn user_mode_only_fails_system_calls() {
        let _turn = one_at_a_time();
        let Ok(uffd) = hmm_uapi::Userfaultfd::open(hmm_uapi::uffd::Access::UserModeOnly) else {
            eprintln!("SKIPPED: no userfaultfd");
            return;
        };
        uffd.enable(Features::empty()).unwrap();
        let memory = Managed { uffd, program: Mapping::anonymous(PAGE).unwrap() };
        register(&memory.uffd, memory.pages(0, 1), Modes::MISSING);
        let start = memory.page(0);
        let kernel_read = elsewhere(move || {
            // SAFETY: the kernel reads one byte of the test's memory, or fails.
            let status = unsafe { libc::write(2, pointer(start), 1) };
            (status, std::io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(kernel_read.get(), (-1, Some(libc::EFAULT)));
        let reader = read(start);
        assert!(matches!(event(&memory.uffd), Event::Fault { .. }));
        assert!(memory.uffd.zero(memory.pages(0, 1)).is_complete());
        assert_eq!(reader.get(), 0);
        assert_ne!(sys::gettid(), 0);
    }

    /// Unmapping is an event, too: somebody has to read it.
    fn release(memory: Managed) {
        let Managed { uffd, program } = memory;
        let gone = elsewhere(move || drop(program));
        assert!(matches!(event(&uffd), Event::Unmap(_)));
        gone.get();
    }
}
