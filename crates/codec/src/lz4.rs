//! The codec: blocks of lz4 by the C library, in memory that the caller provides. It allocates nothing, keeps no
//! thread-local state, and has no way to fail but the ones below.

use std::ffi::{c_char, c_int};

use hmm_device::DeviceError;
// Links the library, whose functions for reused states the crate does not declare.
use lz4_sys as _;

/// Bytes that can be compressed at once.
pub const MAX_BYTES: usize = 2 << 20;

/// Words of the library's working memory: `LZ4_STREAM_MINSIZE`, 16 KiB and 32 bytes.
const STATE_WORDS: usize = (16 * 1024 + 32) / 8;

unsafe extern "C" {
    fn LZ4_initStream(state: *mut u64, size: usize) -> *mut u64;
    fn LZ4_compress_fast_extState_fastReset(
        state: *mut u64,
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        dst_capacity: c_int,
        acceleration: c_int,
    ) -> c_int;
    fn LZ4_decompress_safe(
        src: *const c_char,
        dst: *mut c_char,
        compressed_size: c_int,
        dst_capacity: c_int,
    ) -> c_int;
    fn LZ4_decompress_safe_partial(
        src: *const c_char,
        dst: *mut c_char,
        compressed_size: c_int,
        target_size: c_int,
        dst_capacity: c_int,
    ) -> c_int;
}

/// A length as C has it; nothing above [`MAX_BYTES`] fits.
fn c_len(len: usize) -> Option<c_int> {
    c_int::try_from(len).ok().filter(|_| len <= MAX_BYTES)
}

/// The same of compressed bytes, which may be a little more.
fn c_packed_len(len: usize) -> Option<c_int> {
    c_int::try_from(len).ok()
}

/// Working memory of a compression, 16 KiB.
pub struct Encoder {
    state: [u64; STATE_WORDS],
    /// Whether the state is one that the library has left behind after a success.
    ready: bool,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Working memory that is set up on its first use.
    pub const fn new() -> Self {
        Self { state: [0; STATE_WORDS], ready: false }
    }

    /// Compresses the bytes into `out` and returns to how many. `None`: they do not fit, which is found out early, or
    /// there are more than [`MAX_BYTES`] of them.
    pub fn compress(&mut self, bytes: &[u8], out: &mut [u8]) -> Option<usize> {
        let (src_size, dst_capacity) = (c_len(bytes.len())?, c_packed_len(out.len())?);
        let state = self.state.as_mut_ptr();
        if !self.ready {
            // SAFETY: the state is writable memory of the size given, aligned to 8.
            self.ready = !unsafe { LZ4_initStream(state, size_of_val(&self.state)) }.is_null();
        }
        if !self.ready {
            return None;
        }
        // SAFETY: the state was initialised by `LZ4_initStream`, or left behind by a call that succeeded; source and
        // destination are valid for the sizes given, and do not overlap, because one of them is borrowed mutably.
        let len = unsafe {
            LZ4_compress_fast_extState_fastReset(
                state,
                bytes.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                src_size,
                dst_capacity,
                1,
            )
        };
        // A call that fails leaves a state of no defined content.
        self.ready = len > 0;
        usize::try_from(len).ok().filter(|len| *len > 0)
    }
}

/// Fills `out` with the bytes that were compressed.
///
/// # Errors
/// `Corrupt`: they were not compressed from exactly so many bytes.
pub fn decompress(bytes: &[u8], out: &mut [u8]) -> Result<(), DeviceError> {
    let (Some(size), Some(capacity)) = (c_packed_len(bytes.len()), c_len(out.len())) else {
        return Err(DeviceError::Corrupt);
    };
    // SAFETY: source and destination are valid for the sizes given and do not overlap; the function reads and writes
    // nothing else, whatever the source contains.
    let len = unsafe { LZ4_decompress_safe(bytes.as_ptr().cast(), out.as_mut_ptr().cast(), size, capacity) };
    if len == capacity { Ok(()) } else { Err(DeviceError::Corrupt) }
}

/// Fills `out` with the first of the bytes that were compressed, without going on to the others.
///
/// # Errors
/// `Corrupt`: they were compressed from fewer bytes, or not at all.
pub fn decompress_front(bytes: &[u8], out: &mut [u8]) -> Result<(), DeviceError> {
    let (Some(size), Some(capacity)) = (c_packed_len(bytes.len()), c_len(out.len())) else {
        return Err(DeviceError::Corrupt);
    };
    // SAFETY: as in `decompress`.
    let len = unsafe {
        LZ4_decompress_safe_partial(bytes.as_ptr().cast(), out.as_mut_ptr().cast(), size, capacity, capacity)
    };
    if len == capacity { Ok(()) } else { Err(DeviceError::Corrupt) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_device::PAGE_SIZE;

    unsafe extern "C" {
        safe fn LZ4_sizeofState() -> c_int;
    }

    /// Half of it compressible.
    fn page() -> [u8; PAGE_SIZE] {
        std::array::from_fn(|index| if index % 16 < 8 { 7 } else { (index * index / 7).to_le_bytes()[0] })
    }

    #[test]
    fn the_state_is_as_large_as_the_library_wants() {
        assert_eq!(usize::try_from(LZ4_sizeofState()).unwrap(), STATE_WORDS * 8);
    }

    #[test]
    fn a_failure_does_not_spoil_what_follows() {
        let mut encoder = Encoder::new();
        let mut out = [0; PAGE_SIZE];
        let len = encoder.compress(&page(), &mut out).unwrap();
        let first = out[..len].to_vec();
        for capacity in 0..len {
            assert_eq!(encoder.compress(&page(), &mut out[..capacity]), None);
            if capacity % 64 == 0 {
                assert_eq!(encoder.compress(&page(), &mut out), Some(len));
                assert_eq!(out[..len], first);
            }
        }
        assert_eq!(encoder.compress(&page(), &mut out[..len]), Some(len), "exactly enough");
        assert_eq!(encoder.compress(&vec![0; MAX_BYTES + 1], &mut out), None);
    }

    #[test]
    fn only_what_was_made_from_a_page_becomes_one() {
        let (mut encoder, mut out, mut back) = (Encoder::new(), [0; PAGE_SIZE], [0; PAGE_SIZE]);
        let len = encoder.compress(&page(), &mut out).unwrap();
        let bytes = &out[..len];
        decompress(bytes, &mut back).unwrap();
        assert_eq!(back, page());
        assert_eq!(decompress(bytes, &mut back[1..]), Err(DeviceError::Corrupt));
        assert_eq!(decompress(bytes, &mut [0; PAGE_SIZE + 1]), Err(DeviceError::Corrupt));
        assert_eq!(decompress(&bytes[..len - 1], &mut back), Err(DeviceError::Corrupt));
        assert_eq!(decompress(&[], &mut back), Err(DeviceError::Corrupt));
        assert_eq!(decompress_front(bytes, &mut [0; PAGE_SIZE + 1]), Err(DeviceError::Corrupt));
    }

    #[test]
    fn any_front_can_be_had_alone() {
        let (mut encoder, mut out) = (Encoder::new(), [0; PAGE_SIZE]);
        let len = encoder.compress(&page(), &mut out).unwrap();
        for front in [1, 2, 17, 1000, PAGE_SIZE - 1, PAGE_SIZE] {
            let mut back = vec![0; front];
            decompress_front(&out[..len], &mut back).unwrap();
            assert_eq!(back, page()[..front], "{front} bytes");
        }
    }

    #[test]
    fn broken_bytes_harm_nobody() {
        let (mut encoder, mut out) = (Encoder::new(), [0; PAGE_SIZE]);
        let len = encoder.compress(&page(), &mut out).unwrap();
        // Guards around the destination, to see it written over.
        let mut guarded = [0xEE; PAGE_SIZE + 128];
        for index in 0..len {
            for flip in [1, 0x80, 0xFF] {
                let mut broken = out[..len].to_vec();
                broken[index] ^= flip;
                let _ = decompress(&broken, &mut guarded[64..PAGE_SIZE + 64]);
                let _ = decompress_front(&broken, &mut guarded[64..2064]);
                assert!(guarded[..64].iter().chain(&guarded[PAGE_SIZE + 64..]).all(|byte| *byte == 0xEE));
            }
        }
    }
}
