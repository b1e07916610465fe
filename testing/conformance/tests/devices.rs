//! Every device of the tree passes the suite.

use hmm::device::decorate::{Throttle, Throttled, WithStats};
use hmm::device::{Null, Ram};
use hmm::lz4::{Lz4, Lz4Config};

hmm_conformance::suite!(ram, || Ram::new(1024));

hmm_conformance::suite!(lz4, || Lz4::new(Lz4Config::new(8 << 20)).expect("the capacity is in range"));

hmm_conformance::suite!(
    lz4_that_verifies,
    || Lz4::new(Lz4Config::new(8 << 20).verify(true)).expect("the capacity is in range"),
    [the_memory_side, pages_go_and_come_back, many_at_once]
);

// A slow one, where everything has time to overtake it.
hmm_conformance::suite!(
    slow,
    || {
        let latency = std::time::Duration::from_micros(200);
        Throttled::new(WithStats::new(Ram::new(1024)), Throttle { latency, bytes_per_s: None })
    },
    [a_touch_brings_home, touched_while_it_leaves, touched_while_it_comes_home, many_at_once]
);

// It forgets what it is given: only what nobody reads again can be looked at.
hmm_conformance::suite!(null, || Null::new(1024), [discarded_pages_read_zero]);
