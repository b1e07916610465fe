//! What is compared.

use serde::Serialize;

/// What a replay came to. Pages, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Touches that the trace has.
    pub touches: u64,
    /// Touches that were faults: the next three together.
    pub faults: u64,
    /// Faults on holes.
    pub first_touches: u64,
    /// Faults on pages that were in memory still, or again.
    pub second_chances: u64,
    /// Faults on pages on a device: those that take time.
    pub device_faults: u64,
    /// Pages that came from a device.
    pub fetched: u64,
    /// Those of them that no fault had asked for.
    pub read_ahead: u64,
    /// Those of these that were touched before they left.
    pub useful: u64,
    /// Those that were not.
    pub useless: u64,
    /// Pages that left the program.
    pub evicted: u64,
    /// Pages that went on to a device.
    pub stored: u64,
    /// Touches of pages that had left, before as many others had left as memory holds: with twice the memory they would have
    /// been there.
    pub came_back_soon: u64,
}
