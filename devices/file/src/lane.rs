//! Working memory of one call. There are some, so that several threads compress and transfer side by side.

use hmm_codec::lz4::Encoder;
use hmm_uapi::{AddrRange, Errno};

use crate::BLOCK_BYTES;
use crate::entry::MAX_UNIT_PAGES;
use crate::fetch::Plan;
use crate::queue::Queue;
use crate::transfer::BATCH;
use crate::zeroed::Zeroed;

/// Blocks that are under way between the file and a lane.
pub(crate) const LANE_BLOCKS: usize = BATCH;

/// See the module.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) encoder: Encoder,
    /// What is written to the file or was read from it.
    pub(crate) blocks: Zeroed<u8>,
    /// The pages of one unit, of which not all are wanted.
    pub(crate) pages: Zeroed<u8>,
    pub(crate) plan: Plan,
    pub(crate) queue: Queue,
}

impl Lane {
    /// # Errors
    /// There are no addresses left.
    pub(crate) fn new(queue: Queue) -> Result<Self, Errno> {
        Ok(Self {
            encoder: Encoder::new(),
            blocks: Zeroed::new(LANE_BLOCKS * BLOCK_BYTES)?,
            pages: Zeroed::new(MAX_UNIT_PAGES * BLOCK_BYTES)?,
            plan: Plan::new(),
            queue,
        })
    }

    /// Where its memory is that is not the allocator's.
    pub(crate) fn ranges(&self) -> [AddrRange; 2] {
        [self.blocks.range(), self.pages.range()]
    }
}
