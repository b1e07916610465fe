//! Huge pages move whole, and in parts.

mod common;

#[cfg(test)]
mod tests {
    use hmm_uapi::mapping::Advice;
    use hmm_uapi::pagemap::{Categories, PageRegion, ScanArgs};
    use hmm_uapi::uffd::{Features, Modes, MoveMode, Outcome};
    use hmm_uapi::{AddrRange, Mapping, Pagemap, Userfaultfd};

    use crate::common::*;

    fn is_huge(pagemap: &Pagemap, range: AddrRange) -> bool {
        let mut regions = [PageRegion::default(); 4];
        let args = ScanArgs::any(Categories::HUGE);
        let scanned = pagemap.scan(range, args, &mut regions).unwrap();
        regions[..scanned.nr_regions].iter().map(|region| region.range().len()).sum::<u64>() == range.len()
    }

    fn huge_page() -> Option<(Mapping, Pagemap)> {
        let memory = Mapping::reserve_aligned(HUGE, HUGE).unwrap();
        memory.commit(0, HUGE).unwrap();
        let pagemap = Pagemap::open().unwrap();
        let asked = memory.advise(0, HUGE, Advice::HugePage);
        fill(&memory, 1);
        let huge = asked.is_ok() && is_huge(&pagemap, memory.range());
        if !huge {
            eprintln!("SKIPPED: no huge page to be had");
        }
        huge.then_some((memory, pagemap))
    }

    fn move_whole(uffd: &Userfaultfd, dst: AddrRange, src: AddrRange) -> Outcome {
        // SAFETY: the source is memory of the test, which nobody refers to.
        unsafe { uffd.r#move(dst.start, src.start, src.len(), MoveMode::empty()) }
    }

    #[test]
    fn a_huge_page_stays_one_out_and_home() {
        let Some(uffd) = userfaultfd(Features::MOVE) else { return };
        let Some((program, pagemap)) = huge_page() else { return };
        register(&uffd, program.range(), Modes::MISSING);
        let staging = Mapping::reserve_aligned(HUGE, HUGE).unwrap();
        staging.commit(0, HUGE).unwrap();
        register(&uffd, staging.range(), Modes::WRITE_PROTECT);

        assert!(move_whole(&uffd, staging.range(), program.range()).is_complete());
        assert!(is_huge(&pagemap, staging.range()));
        assert!(!is_huge(&pagemap, program.range()));
        assert!(move_whole(&uffd, program.range(), staging.range()).is_complete());
        assert!(is_huge(&pagemap, program.range()));
        assert_eq!(read(program.range().start + 100 * PAGE as u64).get(), 101);
    }

    #[test]
    fn a_page_of_a_huge_page_moves_alone_and_splits_it() {
        let Some(uffd) = userfaultfd(Features::MOVE) else { return };
        let Some((program, pagemap)) = huge_page() else { return };
        let staging = Mapping::anonymous(PAGE).unwrap();
        register(&uffd, staging.range(), Modes::WRITE_PROTECT);
        let page = AddrRange::new(program.range().start + 9 * PAGE as u64, PAGE as u64);
        assert!(move_whole(&uffd, staging.range(), page).is_complete());
        assert!(!is_huge(&pagemap, program.range()));
        assert_eq!(read(staging.range().start).get(), 10);
        assert_eq!(read(page.start + PAGE as u64).get(), 11);
    }
}
