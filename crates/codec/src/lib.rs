//! What devices need that compress pages: the [codec](lz4), what a page's [content] says without being compressed, and
//! [working memory](lanes) for several threads.
//!
//! All of it can live in a foreign process: it allocates nothing but in constructors, keeps nothing thread-local, prints
//! nothing and does not panic.

pub mod content;
pub mod lanes;
pub mod lz4;
