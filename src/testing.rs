//! For those who test against queues: the conformance suite, and queues that help a test.
//!
//! A queue of your own is tested by one line, [`conformance!`](crate::conformance): every promise of the
//! contract of [`Queue`](crate::Queue) is a named clause and becomes a test of its own.

pub mod conformance;
mod random;

pub use self::{conformance::Harness, random::differential};
