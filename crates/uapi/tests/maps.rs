//! Both ways to ask for mappings give the same, and that is what is there.

mod common;

#[cfg(test)]
mod tests {
    use hmm_uapi::maps::{Perms, Source};
    use hmm_uapi::{Mapping, Maps, SharedMapping, Vma, VmaKind};

    use crate::common::{PAGE, one_at_a_time};

    fn all(source: Source) -> Vec<Vma> {
        Maps::open_with(source).unwrap().iter_from(0).collect::<Result<_, _>>().unwrap()
    }

    fn has_query() -> bool {
        let has = Maps::open().unwrap().source() == Source::Query;
        if !has {
            eprintln!("SKIPPED: no PROCMAP_QUERY (Linux 6.11)");
        }
        has
    }

    #[test]
    fn query_and_text_agree() {
        let _turn = one_at_a_time();
        if !has_query() {
            return;
        }
        // A long path: its name does not fit.
        let dir = std::env::temp_dir().join(format!("hmm-uapi-{}-{}", std::process::id(), "x".repeat(180)));
        std::fs::write(&dir, [0; PAGE]).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        let file = SharedMapping::from_fd(std::os::fd::OwnedFd::from(file).into()).unwrap();

        // Other threads of the test harness may map memory in between: until two looks in a row are the same.
        for _ in 0..100 {
            let (before, text, query) = (all(Source::Text), all(Source::Text), all(Source::Query));
            if before == text && text == all(Source::Text) {
                assert_eq!(text, query);
                assert!(query.iter().any(|vma| vma.range() == file.range() && vma.kind == VmaKind::File));
                assert!(query.is_sorted_by(|a, b| a.end <= b.start));
                return;
            }
        }
        panic!("the mappings never stand still");
    }

    #[test]
    fn kinds_and_permissions_are_as_mapped() {
        let _turn = one_at_a_time();
        let reserved = Mapping::reserve(4 * PAGE).unwrap();
        reserved.commit(PAGE, PAGE).unwrap();
        let shared = SharedMapping::create(c"maps", 2 * PAGE).unwrap();
        // A sanitizer's `malloc` asks for none of it.
        // SAFETY: makes the heap larger, which others expect of each other.
        assert_ne!(unsafe { libc::sbrk(PAGE.try_into().unwrap()) }.addr(), usize::MAX);
        for source in [Source::Query, Source::Text] {
            if source == Source::Query && !has_query() {
                continue;
            }
            let maps = Maps::open_with(source).unwrap();
            let at = |addr| maps.next_vma(addr).unwrap().unwrap();
            let start = reserved.range().start + PAGE as u64;
            let committed = at(start + 7);
            assert_eq!((committed.start, committed.end), (start, start + PAGE as u64));
            assert_eq!(committed.kind, VmaKind::Anonymous);
            assert_eq!(committed.perms, Perms::READ | Perms::WRITE);
            assert_eq!((committed.inode, committed.page_size), (0, 4096));
            assert_eq!(at(committed.end).perms, Perms::empty());

            let memfd = at(shared.range().start);
            assert_eq!(memfd.range(), shared.range());
            assert_eq!(memfd.kind, VmaKind::File);
            assert_eq!(memfd.perms, Perms::READ | Perms::WRITE | Perms::SHARED);
            assert_ne!(memfd.inode, 0);

            let code: fn() -> bool = has_query;
            let code = at(code as usize as u64);
            assert!(code.perms.contains(Perms::EXEC) && code.kind == VmaKind::File);

            let kinds: Vec<_> = all(source).into_iter().map(|vma| vma.kind).collect();
            for kind in [VmaKind::Heap, VmaKind::Stack, VmaKind::Special] {
                assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
            }
            assert_eq!(maps.next_vma(u64::MAX - 1).unwrap(), None);
        }
    }

    #[test]
    fn a_gap_gives_the_next_mapping() {
        let _turn = one_at_a_time();
        let first = Maps::open().unwrap().next_vma(0).unwrap().unwrap();
        assert_eq!(Maps::open_with(Source::Text).unwrap().next_vma(0).unwrap(), Some(first));
        assert_eq!(Maps::open().unwrap().next_vma(first.start - 1).unwrap(), Some(first));
        assert_ne!(Maps::open().unwrap().next_vma(first.end).unwrap(), Some(first));
    }
}
