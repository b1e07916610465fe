//! Drivers that hold frames across their steps.

use hmm_core::driver::{RefusedDestination, RemoveError, Select};
use hmm_core::state::{Frame, PageState};
use hmm_core::{HeldFrame, Outcome};
use hmm_device::{Device, Fetch, PAGE_SIZE};
use hmm_model::{Op, Span};

use super::{DATA, Fixture, vpn};

impl Fixture {
    fn frame_of(&self, page: u32) -> Frame {
        let PageState::Device { frame } = self.state(page) else { panic!("page {page} is on the device") };
        frame
    }

    fn hold(&self, page: u32) -> HeldFrame {
        self.engine().hold_frame(self.frame_of(page), self.one.owner).expect("its page is there")
    }
}

#[test]
fn a_frame_that_is_held_outlives_its_page() {
    let world = Fixture::new();
    world.take(DATA);
    let held = world.hold(3);
    let again = world.engine().hold_frame(held.frame(), world.one.owner).expect("it can be held twice");
    assert_eq!(world.engine().fault(vpn(3)), Outcome::Done);
    assert!(!world.is_away(3), "what is held does not keep the page");
    world.scan(DATA);
    assert_eq!(world.one.nr_used(), 1, "the others were freed");
    let mut bytes = [0; PAGE_SIZE];
    let fetch = Fetch { frames: &[held.frame().pfn], bytes: &mut bytes };
    assert_eq!(world.one.device.fetch(fetch).done, 1, "the bytes of that moment are still there");
    world.world.shared().lock().check_page(3, &std::sync::Arc::new(bytes));
    drop(held);
    assert_eq!(world.one.nr_used(), 1);
    drop(again);
    world.verify();
}

#[test]
fn a_page_that_ends_first_leaves_the_frame_to_its_holder() {
    let world = Fixture::new();
    world.take(DATA);
    let held = [2, 9].map(|page| world.hold(page));
    world.world.op(&Op::Unmap { span: DATA });
    assert_eq!(world.one.nr_used(), 2);
    let [first, second] = held;
    drop(first);
    assert_eq!(world.one.nr_used(), 1);
    drop(second);
    assert_eq!(world.one.nr_used(), 0, "freed once, by the last who had it");
}

#[test]
fn the_word_is_the_frames() {
    let world = Fixture::new();
    world.take(Span::new(0, 1));
    let held = world.hold(0);
    assert_eq!(held.word(), 0);
    held.set_word(u64::MAX);
    let frame = held.frame();
    drop(held);
    let held = world.engine().hold_frame(frame, world.one.owner).expect("its page is there");
    assert_eq!(held.word(), u64::MAX, "kept while the frame is in use");
    drop(held);
    world.scan(DATA);
    assert!(world.engine().hold_frame(frame, world.one.owner).is_none(), "nobody's frame cannot be held");
    world.take(Span::new(0, 1));
    assert_eq!((world.frame_of(0), world.hold(0).word()), (frame, 0), "the next page begins anew");
    world.verify();
}

#[test]
fn frames_are_held_by_their_owner_and_hold_their_device() {
    let world = Fixture::new();
    world.take(DATA);
    assert!(world.engine().hold_frame(world.frame_of(0), world.two.owner).is_none(), "another's");
    let held = world.hold(0);
    assert_eq!(world.engine().remove_device(world.one.id), Err(RemoveError::Busy));
    drop(held);
    assert_eq!(world.engine().remove_device(world.one.id), Ok(()));
    world.verify();
}

#[test]
fn a_frame_has_one_page() {
    let world = Fixture::new();
    world.take(Span::new(0, 1));
    let mut migration = world.setup(Span::new(1, 2), Select::SYSTEM, &world.one);
    let frame = world.frame_of(0);
    assert_eq!(migration.set_frame(0, world.one.id, frame.pfn), Err(RefusedDestination::InUse));
    let fresh = world.one.frame();
    assert_eq!(migration.set_frame(0, world.one.id, fresh), Ok(()));
    assert_eq!(migration.set_frame(1, world.one.id, fresh), Err(RefusedDestination::InUse));
    drop(migration);
    assert_eq!(world.one.nr_used(), 1, "freed once");
    world.verify();
}
