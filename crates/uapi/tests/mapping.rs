//! Memory of our own.

mod common;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use hmm_uapi::mapping::Advice;
    use hmm_uapi::{Errno, Mapping, Maps, SharedMapping};

    use crate::common::*;

    #[test]
    fn a_mapping_is_given_back() {
        let _turn = one_at_a_time();
        // In a process without other threads, which could map something else at the same place.
        let child = in_child(|| {
            let Ok(mapping) = Mapping::anonymous(3 * PAGE) else { return 1 };
            let range = mapping.range();
            drop(mapping);
            match Maps::open().and_then(|maps| maps.next_vma(range.start)) {
                Ok(next) if next.is_none_or(|vma| vma.start >= range.end) => 0,
                _ => 2,
            }
        });
        assert_eq!(child.end(), Ok(0));
    }

    #[test]
    fn an_aligned_mapping_has_exactly_its_length() {
        let _turn = one_at_a_time();
        let mapping = Mapping::reserve_aligned(PAGE + 1, HUGE).unwrap();
        mapping.commit(0, 2 * PAGE).unwrap();
        assert_eq!(mapping.len(), 2 * PAGE);
        assert!(mapping.range().start.is_multiple_of(HUGE as u64));
        assert!(matches!(Mapping::reserve_aligned(PAGE, 3), Err(Errno::INVAL)));
        assert!(matches!(Mapping::reserve_aligned(usize::MAX, HUGE), Err(Errno::NOMEM)));
        assert!(matches!(Mapping::reserve(0), Err(Errno::INVAL)));
    }

    #[test]
    fn advice_stays_inside() {
        let _turn = one_at_a_time();
        let mapping = filled(2, 1);
        mapping.advise(PAGE, PAGE, Advice::DontNeed).unwrap();
        assert_eq!([0, 1].map(|page| peek(&mapping, page)), [1, 0]);
        assert_eq!(mapping.advise(PAGE, 2 * PAGE, Advice::DontNeed), Err(Errno::INVAL));
        assert_eq!(mapping.commit(usize::MAX, PAGE), Err(Errno::INVAL));
        assert_eq!(mapping.advise(1, PAGE, Advice::DontNeed), Err(Errno::INVAL));
    }

    #[test]
    fn guard_pages_kill() {
        let _turn = one_at_a_time();
        let mapping = filled(2, 1);
        mapping.protect(PAGE, PAGE).unwrap();
        let touch = |page: usize| {
            in_child(|| {
                // SAFETY: gives the child the signal's default back.
                unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
                peek(&mapping, page)
            })
        };
        assert_eq!(touch(0).end(), Ok(1));
        assert_eq!(touch(1).end(), Err(libc::SIGSEGV));
    }

    #[test]
    fn advice_on_fork_reaches_the_child() {
        let _turn = one_at_a_time();
        let mapping = filled(2, 1);
        mapping.advise(0, PAGE, Advice::WipeOnFork).unwrap();
        let child = in_child(|| peek(&mapping, 0) * 10 + peek(&mapping, 1));
        assert_eq!(child.end(), Ok(2));
    }

    #[test]
    fn shared_memory_is_shared_and_sealed() {
        let _turn = one_at_a_time();
        let shared = SharedMapping::create(c"test", 2 * PAGE).unwrap();
        let again = SharedMapping::from_fd(shared.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
        assert_eq!((again.len(), again.is_empty()), (2 * PAGE, false));
        assert_ne!(again.range(), shared.range());
        let last = 2 * PAGE - 1;
        // SAFETY: inside of the mapping.
        unsafe { shared.as_ptr().wrapping_add(last).write_volatile(3) };
        // SAFETY: inside of the mapping.
        let seen = unsafe { again.as_ptr().wrapping_add(last).read_volatile() };
        assert_eq!(seen, 3);
        let place = shared.as_ptr();
        let child = in_child(|| {
            // SAFETY: inside of the mapping.
            unsafe { place.write_volatile(4) };
            0
        });
        assert_eq!(child.end(), Ok(0));
        // SAFETY: inside of the mapping.
        assert_eq!(unsafe { again.as_ptr().read_volatile() }, 4);
        assert_eq!(rustix::fs::ftruncate(&shared, 0), Err(Errno::PERM));
        assert!(matches!(SharedMapping::create(c"empty", 0), Err(Errno::INVAL)));
    }
}
