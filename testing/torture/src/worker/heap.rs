//! The heap and the stacks of threads, which are memory like other memory, but come and go by libc's own calls.

use super::finding::{Finding, found};
use super::signals;
use super::thread::Thread;

const MAX_BLOCKS: usize = 24;
const MAX_BYTES: usize = 1 << 20;
/// Of a thread that does nothing but fill its stack.
const STACK_BYTES: usize = 256 << 10;

/// Blocks, whose words count from a number of their own.
#[derive(Debug, Default)]
pub(crate) struct Heap(Vec<(u64, Vec<u64>)>);

impl Heap {
    fn check_block(first: u64, block: &[u64]) -> Result<(), Finding> {
        for (word, must) in block.iter().zip(first..) {
            if *word != must {
                return found(format_args!(
                    "wrong bytes in the heap: {word:#x} instead of {must:#x} at {word:p}, in {} words",
                    block.len()
                ));
            }
        }
        Ok(())
    }

    /// Looks at all blocks.
    pub(crate) fn check(&self) -> Result<(), Finding> {
        self.0.iter().try_for_each(|(first, block)| Self::check_block(*first, block))
    }
}

/// Blocks are made, grow, shrink, and go.
pub(super) fn heap(thread: &mut Thread<'_>) -> Result<(), Finding> {
    if signals::may_lose() {
        return Ok(());
    }
    let (chance, blocks) = (&mut thread.chance, &mut thread.heap.0);
    let most = chance.one_of(&[64, 4096, 64 << 10, MAX_BYTES]);
    let nr_words = 1 + chance.below(most / 8);
    let at = chance.below(MAX_BLOCKS);
    let Some((first, block)) = blocks.get_mut(at) else {
        let first = chance.bits() >> 1;
        blocks.push((first, (first..).take(nr_words).collect()));
        return Ok(());
    };
    Heap::check_block(*first, block)?;
    if chance.one_in(3) {
        blocks.swap_remove(at);
    } else if nr_words < block.len() {
        block.truncate(nr_words);
        block.shrink_to_fit();
    } else {
        let behind = *first + block.len() as u64;
        let more = nr_words - block.len();
        block.reserve_exact(more);
        block.extend((behind..).take(more));
    }
    Ok(())
}

/// A thread that fills its stack comes and goes.
pub(super) fn stack(thread: &mut Thread<'_>) -> Result<(), Finding> {
    if signals::may_lose() || thread.depth > 0 {
        return Ok(());
    }
    let first = thread.chance.bits() >> 1;
    let spawned = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || descend(first, 24));
    match spawned.map(std::thread::JoinHandle::join) {
        Ok(Ok(true)) => Ok(()),
        Ok(_) => found("wrong bytes on the stack of a thread"),
        Err(error) => found(format_args!("a thread: {error}")),
    }
}

/// Fills a part of the stack, goes deeper, and looks whether it is still there.
fn descend(first: u64, depth: u64) -> bool {
    let mut words = [0; 512];
    words.iter_mut().zip(first..).for_each(|(word, value)| *word = value);
    let words = std::hint::black_box(words);
    let below = depth == 0 || descend(first.wrapping_add(depth), depth - 1);
    std::thread::yield_now();
    below && words.iter().zip(first..).all(|(word, value)| *word == value)
}
