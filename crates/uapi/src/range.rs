//! Runs of bytes of the address space.

/// Half-open run of addresses. The kernel wants both ends page aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddrRange {
    /// First byte.
    pub start: u64,
    /// Byte behind the last.
    pub end: u64,
}

impl AddrRange {
    /// The run of `len_bytes` from `start`; one that would wrap around ends at the last address.
    pub const fn new(start: u64, len_bytes: u64) -> Self {
        Self { start, end: start.saturating_add(len_bytes) }
    }

    /// Length in bytes; 0 when the ends are the wrong way round.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether no byte is in it.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether the byte is in it.
    pub const fn contains(self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }
}
