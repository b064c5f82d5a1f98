//! For those who test against queues: the conformance suite, and queues that help a test.
//!
//! A queue of your own is tested by one line, [`conformance!`](crate::conformance): every promise of the
//! contract of [`Queue`](crate::Queue) is a named clause and becomes a test of its own. The example
//! `custom_queue` is such a queue from its first line to its last.
//!
//! `cargo test lists_what_it_skips -- --nocapture` prints each clause that a backend skips, and why. A
//! random life that failed names its seed: `BATCHYARD_SEED=7 cargo test a_random_life` repeats it.
//!
//! [`differential`] drives two queues with the same random verbs and compares what they answer;
//! [`WithNow`] sets a queue's clock; [`Faulty`] counts calls and fails at the chosen ones.

pub mod conformance;
mod faulty;
mod proof;
pub(crate) mod random;
mod with_now;

pub use self::{
    conformance::Harness,
    faulty::{Faulty, Verb},
    proof::proof,
    random::differential,
    with_now::WithNow,
};
