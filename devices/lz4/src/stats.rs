//! What the device has in it, and what that takes.

use hmm_device::PAGE_SIZE;

/// A snapshot; its figures are from about one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lz4Stats {
    /// Pages stored as nothing but the 64-bit word that they repeat.
    pub same_pages: u64,
    /// Incompressible pages, stored as they are.
    pub raw_pages: u64,
    /// Compressed pages, alone or in stream units.
    pub compressed_pages: u64,
    /// Bytes of the raw pages and the compressed units, exactly.
    pub stored_bytes: u64,
    /// Bytes of the slots in which they lie.
    pub slot_bytes: u64,
    /// Resident bytes of slabs: slots in use or not, and what is left over between them.
    pub slab_bytes: u64,
    /// All resident bytes: slabs, tables, working memory. At most `capacity_bytes`.
    pub resident_bytes: u64,
    /// Bytes that may be resident.
    pub capacity_bytes: u64,
}

impl Lz4Stats {
    /// Bytes of the stored pages before compression.
    pub const fn logical_bytes(&self) -> u64 {
        (self.same_pages + self.raw_pages + self.compressed_pages) * PAGE_SIZE as u64
    }

    /// The part of the slabs' resident bytes that holds nothing, in percent, rounded down: what rounding up to slot
    /// sizes and slots not in use waste.
    pub const fn fragmentation_percent(&self) -> u64 {
        match (self.slab_bytes - self.stored_bytes).checked_mul(100) {
            Some(wasted) if self.slab_bytes > 0 => wasted / self.slab_bytes,
            _ => 0,
        }
    }
}
