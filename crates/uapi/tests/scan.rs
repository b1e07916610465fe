//! PAGEMAP_SCAN tells what pages are, and which were written to.

mod common;

#[cfg(test)]
mod tests {
    use hmm_uapi::pagemap::{Categories, PageRegion, ScanArgs, ScanFlags};
    use hmm_uapi::uffd::{Features, Modes};
    use hmm_uapi::{AddrRange, Errno, Mapping, Pagemap};

    use crate::common::*;

    fn scan(range: AddrRange, args: ScanArgs) -> Vec<PageRegion> {
        let mut regions = [PageRegion::default(); 16];
        let scanned = Pagemap::open().unwrap().scan(range, args, &mut regions).unwrap();
        assert_eq!(scanned.walk_end, range.end);
        regions[..scanned.nr_regions].to_vec()
    }

    fn pages(memory: &Mapping, first: usize, nr_pages: usize, categories: Categories) -> PageRegion {
        let start = memory.range().start + (first * PAGE) as u64;
        PageRegion::new(AddrRange::new(start, (nr_pages * PAGE) as u64), categories)
    }

    fn touch(memory: &Mapping, page: usize) {
        poke(memory, page, 1);
    }

    #[test]
    fn tells_present_and_zero_pages_and_holes() {
        let memory = Mapping::anonymous(8 * PAGE).unwrap();
        touch(&memory, 1);
        touch(&memory, 2);
        assert_eq!(peek(&memory, 5), 0);
        let zero = Categories::PRESENT | Categories::PFNZERO;
        let found = scan(memory.range(), ScanArgs::any(zero));
        assert_eq!(found, [pages(&memory, 1, 2, Categories::PRESENT), pages(&memory, 5, 1, zero)]);

        let holes = ScanArgs {
            inverted: Categories::PRESENT,
            all_of: Categories::PRESENT,
            tell: Categories::PRESENT,
            ..ScanArgs::default()
        };
        let nothing = Categories::empty();
        let found = scan(memory.range(), holes);
        assert_eq!(
            found,
            [pages(&memory, 0, 1, nothing), pages(&memory, 3, 2, nothing), pages(&memory, 6, 2, nothing)]
        );
    }

    #[test]
    fn goes_on_where_the_buffer_was_full() {
        let memory = Mapping::anonymous(8 * PAGE).unwrap();
        [0, 2, 4, 6].into_iter().for_each(|page| touch(&memory, page));
        let pagemap = Pagemap::open().unwrap();
        let mut regions = [PageRegion::default(); 3];
        let mut range = memory.range();
        let mut counts = Vec::new();
        while !range.is_empty() {
            let scanned = pagemap.scan(range, ScanArgs::any(Categories::PRESENT), &mut regions).unwrap();
            assert!(scanned.walk_end > range.start);
            range.start = scanned.walk_end;
            counts.push(scanned.nr_regions);
        }
        assert_eq!(counts, [3, 1]);
        let two_pages = ScanArgs { max_pages: 2, ..ScanArgs::any(Categories::PRESENT) };
        let scanned = pagemap.scan(memory.range(), two_pages, &mut regions).unwrap();
        assert_eq!(scanned.nr_regions, 2);
        assert!(scanned.walk_end < memory.range().end);
    }

    #[test]
    fn files_are_files() {
        let shared = hmm_uapi::SharedMapping::create(c"scan", PAGE).unwrap();
        // SAFETY: inside of the mapping.
        unsafe { shared.as_ptr().write_volatile(1) };
        let both = Categories::PRESENT | Categories::FILE;
        assert_eq!(scan(shared.range(), ScanArgs::any(both)), [PageRegion::new(shared.range(), both)]);
    }

    #[test]
    fn finds_written_pages_and_protects_them_again() {
        let wanted = Features::WP_ASYNC | Features::PAGEFAULT_FLAG_WP;
        let Some(memory) = Managed::new(wanted, Modes::WRITE_PROTECT, 8) else { return };
        memory.uffd.write_protect(memory.pages(0, 8), true).unwrap();
        [2, 3, 7].into_iter().for_each(|page| touch(&memory.program, page));
        let written = ScanArgs {
            flags: ScanFlags::WP_MATCHING | ScanFlags::CHECK_WPASYNC,
            ..ScanArgs::any(Categories::WRITTEN)
        };
        let expected = [
            pages(&memory.program, 2, 2, Categories::WRITTEN),
            pages(&memory.program, 7, 1, Categories::WRITTEN),
        ];
        assert_eq!(scan(memory.program.range(), written), expected);
        assert_eq!(scan(memory.program.range(), written), []);
        touch(&memory.program, 3);
        assert_eq!(
            scan(memory.program.range(), written),
            [pages(&memory.program, 3, 1, Categories::WRITTEN)]
        );
    }

    #[test]
    fn refuses_to_track_what_is_not_registered() {
        let memory = filled(1, 1);
        let mut regions = [PageRegion::default(); 1];
        let checked = ScanArgs {
            flags: ScanFlags::WP_MATCHING | ScanFlags::CHECK_WPASYNC,
            ..ScanArgs::any(Categories::WRITTEN)
        };
        let pagemap = Pagemap::open().unwrap();
        assert_eq!(pagemap.scan(memory.range(), checked, &mut regions), Err(Errno::PERM));
        let unaligned = AddrRange::new(memory.range().start + 1, PAGE as u64);
        assert_eq!(
            pagemap.scan(unaligned, ScanArgs::any(Categories::PRESENT), &mut regions),
            Err(Errno::INVAL)
        );
    }
}
