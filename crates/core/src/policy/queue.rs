//! Blocks in the order in which they came.

use std::collections::VecDeque;

use crate::addr::BlockId;

#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<BlockId>);

impl Queue {
    pub(super) const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// From now on so many blocks are taken without allocating.
    pub(super) fn reserve(&mut self, nr_blocks: usize) {
        self.0.reserve(nr_blocks.saturating_sub(self.0.len()));
    }

    pub(super) fn push(&mut self, block: BlockId) {
        self.0.push_back(block);
    }

    pub(super) fn pop(&mut self) -> Option<BlockId> {
        self.0.pop_front()
    }

    pub(super) fn put_back(&mut self, block: BlockId) {
        self.0.push_front(block);
    }

    /// The newest one but for so many.
    pub(super) fn take_newest(&mut self, but_for: usize) -> Option<BlockId> {
        self.0.len().checked_sub(but_for + 1).and_then(|position| self.0.remove(position))
    }

    /// What `take_newest` gave goes back to its place.
    pub(super) fn put_back_newest(&mut self, but_for: usize, block: BlockId) {
        self.0.insert(self.0.len().saturating_sub(but_for), block);
    }

    pub(super) fn forget(&mut self, block: BlockId) {
        self.0.retain(|queued| *queued != block);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, position: usize) -> Option<BlockId> {
        self.0.get(position).copied()
    }
}
