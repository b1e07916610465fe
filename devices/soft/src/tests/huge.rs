//! Huge pages on a fake address space.

use super::*;

/// Stores the page's number, plus something, to each page.
fn store_all(soft: &Soft, pages: PageRange, plus: u64) {
    run(soft, |unit| pages.iter().try_for_each(|page| unit.store(word(page, 1), page.0 + plus))).unwrap();
}

#[test]
fn a_huge_page_comes_and_goes_as_one() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map_huge();
    let block = pages.start.block();
    let soft = device(&fake, 4096, 1);
    for round in 1..=3 {
        run(&soft, |unit| unit.store(word(block.page(300), 0), round)).unwrap();
        let stats = soft.stats();
        assert_eq!((stats.migrated, stats.faults, stats.huge), (512 * round, round, round), "{stats:?}");
        assert!(fake.is_huge(block) && fake.where_is(pages.start) == Some(soft.index()));
        store_all(&soft, pages, round);
        assert_eq!(soft.stats().faults, round, "there is one entry for all of it");
        assert_eq!(soft.evict(pages.start.addr(), 512 * PAGE_SIZE), 512);
        assert!(fake.is_huge(block) && fake.where_is(pages.start).is_none());
        assert!(pages.iter().all(|page| cpu(&fake, word(page, 1)) == page.0 + round));
        assert!(fake.is_huge(block), "touching what is there takes nothing apart");
    }
    assert_eq!(soft.resident_pages(), 0);
}

#[test]
fn a_huge_page_of_which_a_part_goes_keeps_the_others() {
    let fake = Arc::new(Fake::default());
    let (mapping, pages) = fake.map_huge();
    let block = pages.start.block();
    let soft = device(&fake, 4096, 1);
    store_all(&soft, pages, 0);
    let faults = soft.stats().faults;
    run(&soft, |unit| {
        // In the middle of a kernel, which has the page in its TLB.
        assert_eq!(cpu(&fake, word(block.page(7), 1)), block.page(7).0);
        fake.unmap(&mapping, PageRange::new(block.page(100), 2), true);
        assert!(!fake.is_huge(block));
        for page in [6, 8, 99, 102, 511].map(|index| block.page(index)) {
            unit.store(word(page, 2), 1)?;
            assert_eq!(unit.load(word(page, 1)), Ok(page.0));
        }
        assert_eq!(soft.stats().faults, faults, "they are where they were");
        assert_eq!(unit.load(word(block.page(7), 1)), Ok(block.page(7).0));
        assert_eq!(soft.stats().faults, faults + 1);
        assert_eq!(unit.load(word(block.page(100), 1)).unwrap_err().why, Why::NoMapping);
        Ok(())
    })
    .unwrap();
    assert_eq!(fake.where_is(block.page(8)), Some(soft.index()));
}

#[test]
fn a_huge_page_in_place_is_entered_as_one() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map_huge();
    let soft = device(&fake, 4096, 1);
    run(&soft, |unit| pages.iter().try_for_each(|page| unit.load(word(page, 0)).map(|_| ()))).unwrap();
    let stats = soft.stats();
    assert_eq!((stats.faults, stats.huge, stats.in_place, stats.migrated), (1, 1, 512, 0), "{stats:?}");
    // The first write is a fault, as of small pages, and takes it.
    store_all(&soft, pages, 5);
    let stats = soft.stats();
    assert_eq!((stats.faults, stats.huge, stats.in_place, stats.migrated), (2, 2, 512, 512), "{stats:?}");
    assert!(pages.iter().all(|page| cpu(&fake, word(page, 1)) == page.0 + 5));
}

#[test]
fn hints_take_a_huge_page_apart() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map_huge();
    let block = pages.start.block();
    let soft = device(&fake, 4096, 1);
    let stays = PageRange::new(block.page(256), 256);
    fake.hints.advise(stays, Advice::Preferred(Some(Preferred::System)));
    run(&soft, |unit| unit.load(word(block.page(0), 0))).unwrap();
    assert_eq!(soft.stats().huge, 0, "not all of it may be written in place");
    store_all(&soft, pages, 1);
    assert_eq!(fake.where_is(block.page(255)), Some(soft.index()));
    assert!(stays.iter().all(|page| fake.where_is(page).is_none()));
    assert!(pages.iter().all(|page| cpu(&fake, word(page, 1)) == page.0 + 1));
}

#[test]
fn a_huge_page_is_too_much_for_a_small_device() {
    let fake = Arc::new(Fake::default());
    let (_mapping, pages) = fake.map_huge();
    let soft = device(&fake, 600, 1);
    store_all(&soft, pages, 1);
    assert!(pages.iter().all(|page| cpu(&fake, word(page, 1)) == page.0 + 1));
    assert_eq!(soft.stats().huge, 0);
}
