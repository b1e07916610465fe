//! What a block remembers of the stream that came through it when it was here last.
//!
//! A stream begins with small windows, because two touches side by side may be all there is. Where a whole block was gone
//! through before, it is likely to be again, and the rest of it is brought as soon as there is a stream. A touch alone is
//! none: it brings its page, and two of them have the past forgotten. What is brought so is mapped, and not seen to be
//! used; so the past is used once, and has to be shown again by a fault further on.

use crate::addr::{BLOCK_PAGES, Vpn};
use crate::stream::{Hit, Streams};
use crate::stride::Stride;

/// A stream that has come through so many pages is expected to come again.
const LONG_STREAM: usize = 64;
/// Touches of no stream that have it forgotten: the first touch of a stream is one.
const STRAYS_TO_FORGET: u8 = 2;

/// See the module. A block that is used for the first time has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Strays that it outlasts.
    left: u8,
}

impl Past {
    /// A stream is in the block.
    pub const fn note(&mut self, hit: Hit) {
        if hit.stride.is_up() && hit.ahead >= LONG_STREAM {
            self.left = STRAYS_TO_FORGET;
        }
    }

    /// A fault at the page has to be served by a device. Returns what is known of its stream by the past, too; `together` pages
    /// come with the fault.
    pub fn foresee(&mut self, streams: &Streams, page: Vpn, hit: Hit, together: usize) -> Hit {
        let rest = BLOCK_PAGES - page.index();
        if !hit.is_sequential() {
            self.left = self.left.saturating_sub(1);
        } else if hit.stride == Stride::UP && self.left > 0 && hit.window < rest {
            self.left = 0;
            return streams.goes_on(hit, rest.saturating_sub(together));
        }
        self.note(hit);
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked() -> (Streams, Past) {
        let (streams, mut past) = (Streams::new(512), Past::default());
        for page in 0..LONG_STREAM as u64 {
            past.note(streams.fault(Vpn(page), 1));
        }
        // Elsewhere.
        streams.fault(Vpn(1 << 20), 1);
        (streams, past)
    }

    fn fault(streams: &Streams, past: &mut Past, page: u64) -> Hit {
        past.foresee(streams, Vpn(page), streams.fault(Vpn(page), 1), 128)
    }

    #[test]
    fn the_rest_of_a_block_comes_as_soon_as_there_is_a_stream_again() {
        let (streams, mut past) = walked();
        let first = fault(&streams, &mut past, 200);
        assert_eq!((first.window, first.ahead), (1, 0), "a touch brings its page");
        let second = fault(&streams, &mut past, 201);
        assert_eq!((second.window, second.ahead), (512, BLOCK_PAGES - 201 - 128), "no more than the block");
        assert_eq!(past, Past::default(), "it is not known whether that was right");
        streams.fault(Vpn(1 << 21), 1);
        fault(&streams, &mut past, 300);
        assert_eq!(fault(&streams, &mut past, 301).window, 4);
    }

    #[test]
    fn strays_have_it_forgotten() {
        let (streams, mut past) = walked();
        fault(&streams, &mut past, 300);
        fault(&streams, &mut past, 150);
        fault(&streams, &mut past, 400);
        assert_eq!(fault(&streams, &mut past, 401).window, 4);
    }

    #[test]
    fn a_short_stream_is_not_remembered() {
        let (streams, mut past) = (Streams::new(512), Past::default());
        (0..8).for_each(|page| past.note(streams.fault(Vpn(page), 1)));
        assert_eq!(past, Past::default());
    }
}
