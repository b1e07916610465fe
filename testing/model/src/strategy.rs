//! Strategies for property tests: operations that shrink to fewer, shorter and simpler ones.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::content::{PAGE_WORDS, Pattern};
use crate::generate::Arena;
use crate::op::{Op, STRIDES};
use crate::span::Span;

/// A run of up to `longest` pages of the arena. Shrinks to its first page.
pub fn span(arena: Arena, longest: u32) -> impl Strategy<Value = Span> {
    (0..arena.nr_pages, 1..=longest)
        .prop_map(move |(first, len)| Span::new(first, len.min(arena.nr_pages - first)))
}

/// One operation, of the program or of the engine.
pub fn op(arena: Arena) -> impl Strategy<Value = Op> {
    prop_oneof![
        28 => engine(),
        25 => read(arena),
        30 => write(arena),
        5 => spans(arena).prop_map(|span| Op::DontNeed { span }),
        4 => mapping(arena),
        4 => remap(arena),
        2 => (spans(arena), any::<bool>()).prop_map(|(span, writable)| Op::Protect { span, writable }),
        1 => spans(arena).prop_map(|span| Op::Hold { span }),
        1 => Just(Op::Release { span: arena.all() }),
    ]
}

/// Up to `nr_ops` operations, after one that maps the whole arena.
pub fn ops(arena: Arena, nr_ops: usize) -> impl Strategy<Value = Vec<Op>> {
    vec(op(arena), 1..=nr_ops).prop_map(move |mut ops| {
        ops.insert(0, Op::Map { span: arena.all() });
        ops
    })
}

fn spans(arena: Arena) -> impl Strategy<Value = Span> {
    prop_oneof![2 => span(arena, 1), 3 => span(arena, 8), 2 => span(arena, 64), 1 => span(arena, arena.nr_pages)]
}

fn engine() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1_u8..=4).prop_map(|steps| Op::Reclaim { steps }),
        1 => (1_u8..=4).prop_map(|steps| Op::ReadAhead { steps }),
    ]
}

fn mapping(arena: Arena) -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => spans(arena).prop_map(|span| Op::Map { span }),
        1 => (spans(arena), 1_u64..).prop_map(|(span, stamp)| Op::Adopt { span, stamp }),
        1 => spans(arena).prop_map(|span| Op::Unmap { span }),
    ]
}

fn remap(arena: Arena) -> impl Strategy<Value = Op> {
    (spans(arena), 0..arena.nr_pages, any::<bool>()).prop_map(move |(source, to, keep_source)| {
        let len = source.len.min(arena.nr_pages - to);
        Op::Remap { from: source.first, to, len, keep_source }
    })
}

fn write(arena: Arena) -> impl Strategy<Value = Op> {
    let pattern = prop_oneof![Just(Pattern::Same), Just(Pattern::Noise)];
    let stamp = prop_oneof![1 => Just(0), 7 => any::<u64>()];
    prop_oneof![
        (0..arena.nr_pages, 0..PAGE_WORDS, any::<u64>()).prop_map(|(page, word, value)| Op::Write {
            page,
            word,
            value
        }),
        (spans(arena), pattern, stamp).prop_map(|(span, pattern, stamp)| Op::Fill { span, pattern, stamp }),
    ]
}

fn read(arena: Arena) -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..arena.nr_pages, 0..PAGE_WORDS).prop_map(|(page, word)| Op::Read { page, word }),
        (spans(arena), proptest::sample::select(&STRIDES[..]))
            .prop_map(|(span, stride)| Op::Scan { span, stride }),
    ]
}
