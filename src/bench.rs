//! Measures queues, and what else could be used in their place: `batchyard bench` and `cargo bench`.
//!
//! ```text
//!   Plan ─▶ Part, Part, Part ... ─▶ workload::run ─▶ Point ─▶ Report ─▶ table, JSON, Markdown, SVG
//!    │      (round by round over         │            (pure from here on)
//!    │       all contestants)            ▼
//!    └─ contestant: the table ─▶ Yard: push, claim, read, finish
//!                                  ├ backend   a queue of ours
//!                                  ├ front     a channel and one writer thread
//!                                  │   ├ raw_log   the yardstick
//!                                  │   └ peer      embedded stores of others
//!                                  └ redis     a server without our queue
//! ```
//! - **A workload is written once**, over [`Yard`](yard::Yard). A new backend is one row of
//!   [`contestants`](contestant::contestants).
//! - **A part is a process of its own** where `batchyard bench` runs it: what one contestant leaves in
//!   memory is not counted as another's.
//! - **Only equal durability is compared without a word.** Each contestant says what an answered push
//!   survives, and a queue of ours is held to it when it is opened.
//! - **The device is asked what reached it**: sectors of the block device below the folder.

mod backend;
pub mod contestant;
mod front;
pub mod machine;
pub mod payload;
#[cfg(any(feature = "sled", feature = "bench-peers"))]
mod peer;
pub mod plan;
mod raw_log;
#[cfg(feature = "redis")]
mod redis;
pub mod render;
pub mod report;
#[cfg(feature = "redis")]
mod server;
pub mod statistics;
pub mod workload;
pub mod yard;
