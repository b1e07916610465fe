//! A child of a fork sees what its parent had: every page that is not in the program can be read without touching it.

use std::collections::BTreeSet;

use hmm_core::{Engine, Peeked};
use hmm_model::PAGE_SIZE;

use crate::kernel::SimKernel;
use crate::machine::Machine;
use crate::setup::Noise;
use crate::shared::Shared;

pub(crate) fn check(shared: &Shared, engine: &Engine<SimKernel>) {
    let noise = std::mem::replace(&mut shared.lock().setup.noise, Noise::NONE);
    let mut absent = BTreeSet::new();
    engine.for_each_absent(&mut |vpn| {
        let page = shared.lock().page(vpn).unwrap_or_else(|| panic!("{vpn:?} is not in the arena"));
        absent.insert(page);
    });
    for page in &absent {
        let mut bytes = [0; PAGE_SIZE];
        let peeked = engine.peek(Machine::vpn(*page), &mut bytes);
        check_page(&shared.lock(), *page, peeked, &bytes);
    }
    let mut machine = shared.lock();
    machine.setup.noise = noise;
    for (page, mapped) in machine.model.pages() {
        let is_there = machine.memory.is_present(page) || absent.contains(&page);
        let reads_zero =
            mapped.content.as_ref().is_some_and(|content| content.difference(&[0; PAGE_SIZE]).is_none());
        assert!(is_there || reads_zero, "page {page} is neither in the program nor absent");
    }
}

fn check_page(machine: &Machine, page: u32, peeked: Peeked, bytes: &[u8; PAGE_SIZE]) {
    assert!(!machine.memory.is_present(page), "page {page} is in the program and said to be absent");
    match (peeked, machine.model.content(page)) {
        (Peeked::Bytes, Some(content)) => {
            if let Some(difference) = content.difference(bytes) {
                panic!("page {page} looks wrong to a child: {difference:x?}");
            }
        }
        (Peeked::Bytes, None) => panic!("page {page} was lost, and a child can read it"),
        (Peeked::Lost, Some(content)) => {
            assert!(
                machine.may_fail() || machine.may_be_lost(content),
                "page {page} is lost to a child, and no device failed"
            )
        }
        (Peeked::Lost, None) => {}
    }
}
