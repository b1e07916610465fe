use super::*;

/// Memory of so many blocks under a policy; a touch of a block that is away takes the next one out.
struct Memory {
    policy: Box<dyn Policy>,
    notes: Vec<(Note, bool)>,
    room: usize,
    nr_faults: usize,
}

impl Memory {
    fn new(name: Name, room: usize) -> Self {
        Self { policy: name.policy(), notes: vec![(Note::default(), false); 1000], room, nr_faults: 0 }
    }

    fn touch(&mut self, number: usize) -> bool {
        if self.notes[number].1 {
            return true;
        }
        self.nr_faults += 1;
        if self.policy.nr_blocks() == self.room {
            let victim = self.policy.next().unwrap();
            let (note, is_resident) = &mut self.notes[usize::try_from(victim.block.0).unwrap()];
            assert!(std::mem::replace(is_resident, false), "a block that is away cannot leave");
            self.policy.left(note);
        }
        let (note, is_resident) = &mut self.notes[number];
        self.policy.came(BlockId(number as u64), note);
        *is_resident = true;
        false
    }

    fn touch_all(&mut self, numbers: std::ops::Range<usize>) {
        numbers.for_each(|number| {
            self.touch(number);
        });
    }

    /// How many of the hot blocks are there.
    fn nr_hot(&self) -> usize {
        self.notes[..40].iter().filter(|(_, is_resident)| *is_resident).count()
    }
}

/// Blocks 0 to 39 are used again and again, in memory of 64; then 600 others once each.
fn hot_set_and_scan(name: Name) -> Memory {
    let mut memory = Memory::new(name, 64);
    // They have to leave and come back once before they are known.
    memory.touch_all(0..40);
    memory.touch_all(900..964);
    for _ in 0..4 {
        memory.touch_all(0..40);
    }
    assert_eq!(memory.nr_hot(), 40, "{name}");
    (100..700).for_each(|number| assert!(!memory.touch(number)));
    memory
}

#[test]
fn a_scan_leaves_the_hot_set_alone_under_twice_and_only_there() {
    assert_eq!(hot_set_and_scan(Name::Twice).nr_hot(), 40);
    assert_eq!(hot_set_and_scan(Name::Clock).nr_hot(), 0);
    assert_eq!(hot_set_and_scan(Name::Fifo).nr_hot(), 0);
}

#[test]
fn a_new_hot_set_gets_in_under_twice() {
    let mut memory = hot_set_and_scan(Name::Twice);
    // Another 40 of which not all fit into the tenth that is for newcomers.
    for _ in 0..20 {
        memory.touch_all(700..740);
    }
    assert!((700..740).all(|number| memory.touch(number)), "they stay");
}

#[test]
fn what_is_put_back_is_next_again_and_what_is_forgotten_is_not() {
    for name in Name::ALL {
        let policy = name.policy();
        let mut notes = [Note::default(); 6];
        (0..6).for_each(|number| policy.came(BlockId(number as u64), &mut notes[number]));
        // Two that came again, for the policy that tells them apart.
        for _ in 0..2 {
            let number = usize::try_from(policy.next().unwrap().block.0).unwrap();
            policy.left(&mut notes[number]);
            policy.came(BlockId(number as u64), &mut notes[number]);
        }
        while let Some(victim) = policy.next() {
            policy.put_back(victim);
            let before = policy.nr_blocks();
            assert_eq!(policy.next(), Some(victim), "{name}");
            policy.put_back(victim);
            assert_eq!((0..before).filter_map(|at| policy.block_at(at)).count(), before);
            assert_eq!(policy.block_at(before), None);
            assert!((0..before).any(|at| policy.block_at(at) == Some(victim.block)));
            policy.forget(victim.block);
            assert_eq!(policy.nr_blocks(), before - 1, "{name}");
        }
        assert_eq!(policy.nr_blocks(), 0);
    }
}

/// In one queue of the two is only what stays: it is given out now and then, and the other goes on.
#[test]
fn what_cannot_leave_does_not_keep_others_under_twice() {
    let nr_left = |nr_again: usize, stays: std::ops::Range<usize>| {
        let policy = Twice::new();
        let mut notes = [Note::default(); 64];
        (0..64).for_each(|number| policy.came(BlockId(number as u64), &mut notes[number]));
        for (number, note) in notes.iter_mut().enumerate().take(nr_again) {
            assert_eq!(policy.next().map(|victim| victim.block), Some(BlockId(number as u64)));
            policy.left(note);
            policy.came(BlockId(number as u64), note);
        }
        let mut nr_left = 0;
        for _ in 0..500 {
            let Some(Victim { block, .. }) = policy.next() else { break };
            let number = usize::try_from(block.0).unwrap();
            let note = &mut notes[number];
            if stays.contains(&number) {
                policy.came(block, note);
            } else {
                policy.left(note);
                nr_left += 1;
            }
        }
        nr_left
    };
    assert_eq!(nr_left(58, 0..58), 6);
    assert_eq!(nr_left(20, 20..64), 20);
}

/// What stays for a while is tried again, though the rest stays for ever.
#[test]
fn what_could_not_leave_is_tried_again_under_twice() {
    let policy = Twice::new();
    let mut notes = [Note::default(); 2];
    (0..2).for_each(|number| policy.came(BlockId(number as u64), &mut notes[number]));
    assert_eq!(policy.next().map(|victim| victim.block), Some(BlockId(0)));
    policy.left(&mut notes[0]);
    policy.came(BlockId(0), &mut notes[0]);
    let mut tries = [0; 2];
    for _ in 0..20 {
        let number = usize::try_from(policy.next().unwrap().block.0).unwrap();
        tries[number] += 1;
        policy.came(BlockId(number as u64), &mut notes[number]);
    }
    assert_eq!(tries, [10, 10]);
}

#[test]
fn pages_come_with_a_fault_as_its_stream_goes() {
    let brings = Brings { around: 16, window: 64 };
    assert_eq!(brings.span(20, Stride::UP), (16, 64));
    assert_eq!(brings.span(20, Stride::DOWN), (0, 12), "the block begins there");
    assert_eq!(brings.span(220, Stride::DOWN), (157, 4));
    assert_eq!(brings.span(20, Stride::NONE), (16, 12));
    assert_eq!(brings.span(20, Stride::between(Vpn(0), Vpn(100))), (16, 12));
    assert_eq!(
        [Stride::UP, Stride::DOWN].map(|stride| brings.span_of_holes(220, stride)),
        [(220, 64), (157, 1)]
    );
    assert_eq!(brings.span_of_holes(20, Stride::NONE), (16, 12));
    let alone = Brings { around: 1, window: 1 };
    for stride in [Stride::UP, Stride::DOWN, Stride::NONE] {
        assert_eq!(alone.span(20, stride), (20, 1));
    }
}

#[test]
fn the_plain_one_brings_nothing_ahead() {
    let streams = crate::stream::Streams::new(512);
    streams.fault(Vpn(1), 16);
    let hit = streams.fault(Vpn(2), 16);
    assert!(hit.is_sequential() && hit.window > 1);
    let fault = Fault { page: Vpn(2), cause: Cause::Fetch, hit, together: 16 };
    let alone = Brings { around: 1, window: 1 };
    assert_eq!((Fifo::new().brings(&fault), Fifo::new().ahead(&hit)), (alone, 0));
    let streamed = Brings { around: 16, window: hit.window };
    for name in [Name::Clock, Name::Twice, Name::Round] {
        assert_eq!((name.policy().brings(&fault), name.policy().ahead(&hit)), (streamed, hit.ahead));
    }
}

/// Streams, as the engine tells of them.
fn stream(memory: &Memory, nr_faults: usize) {
    let streams = crate::stream::Streams::new(512);
    for page in 0..nr_faults as u64 {
        let hit = streams.fault(Vpn(page), 16);
        let _ = memory.policy.brings(&Fault { page: Vpn(page), cause: Cause::Fetch, hit, together: 16 });
    }
}

/// Faults of ten rounds through so many blocks in memory of so many.
fn faults_of_rounds(name: Name, nr_blocks: usize, room: usize, is_stream: bool) -> [usize; 10] {
    let mut memory = Memory::new(name, room);
    if is_stream {
        stream(&memory, 100);
    }
    std::array::from_fn(|_| {
        let before = memory.nr_faults;
        memory.touch_all(0..nr_blocks);
        memory.nr_faults - before
    })
}

#[test]
fn who_goes_round_finds_part_of_it_under_round_and_only_there() {
    assert_eq!(faults_of_rounds(Name::Clock, 128, 64, true), [128; 10]);
    assert_eq!(faults_of_rounds(Name::Round, 128, 64, false), [128; 10], "strays are left alone");
    for (nr_blocks, room) in [(70, 64), (96, 64), (128, 64), (256, 64), (280, 256), (512, 256), (900, 256)] {
        let faults = faults_of_rounds(Name::Round, nr_blocks, room, true);
        let away = nr_blocks - room;
        // The second round is the first that can tell.
        assert!(faults[1] < away + room / 2, "{nr_blocks} in {room}: {faults:?}");
        let most = away + away / 7 + 24;
        assert!(faults[2..].iter().all(|nr| (away..=most).contains(nr)), "{nr_blocks} in {room}: {faults:?}");
    }
}

#[test]
fn who_goes_on_to_something_else_gets_room_under_round() {
    let mut memory = Memory::new(Name::Round, 64);
    stream(&memory, 100);
    (0..6).for_each(|_| memory.touch_all(0..128));
    // It would fit; what is there is of no use any more.
    (0..3).for_each(|_| memory.touch_all(500..560));
    let before = memory.nr_faults;
    memory.touch_all(500..560);
    assert_eq!(memory.nr_faults, before);
}

#[test]
fn what_came_once_leaves_room_on_a_tier_that_fills() {
    let usage = |used_bytes| Usage { frames: 1, used_bytes, capacity_bytes: 100 };
    let (once, again) = (Note::default(), Note { left: 1, again: true });
    assert!(Twice::new().passes_by(once, usage(76)) && !Twice::new().passes_by(once, usage(75)));
    assert!(!Twice::new().passes_by(again, usage(99)) && !Clock::new().passes_by(once, usage(99)));
}

#[test]
fn names_are_read_as_they_are_written() {
    for name in Name::ALL {
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(Name::of_number(name as u8), Some(name));
    }
    let error = "lru".parse::<Name>().unwrap_err().to_string();
    assert_eq!(error, "unknown policy 'lru': there are round, clock, fifo and twice");
    assert_eq!(Name::of_number(4), None);
}
