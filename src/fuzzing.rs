//! What the fuzz targets do: each takes any bytes at all, and panics if something does not hold.
//!
//! | target | what the bytes are | what holds |
//! |---|---|---|
//! | `sled_entries` | keys and values of sled's trees | what can be read is the same when it is written and read again; keys sort as what they are made of |
//! | `journal_values` | events, baselines, headers of groups | the same; the fold of any events can be counted again, and adds up |
//! | `journal_stretches` | pushed requests, and damage to them | none is lost, and none is served that is not what was pushed |
//! | `journal_recovery` | damage to the files of a log | it opens, counts add up, payloads are those that were pushed, and opening it again shows the same |
//! | `lives` | verbs, and crashes between them | the journal answers as a queue in memory does, which did not crash |
//! | `dumps` | lines of `import` | what is taken in is what comes out again |
//! | `answers` | what a command prints | each request has the first answer to it, or its lack is told |
//! | `json_lines` | answers, payloads, `request_kwargs` | nothing is lost on the way |
//! | `redis_replies` | replies of a Redis server | a value or an error |
//! | `remote` | payloads for batch APIs, and what those answer | each member is written or told; each line is one, and says the same when it is read again |
//! | `configuration` | names, times, policies, configuration and FORMAT files | what is accepted is written and read as the same |
//!
//! The same functions run over the stored corpora in `tests/fuzz_corpora.rs`, on the stable compiler: so this is a
//! feature, and not `cfg(fuzzing)`. What a target has found stays in its corpus.

mod answers;
mod configuration;
mod dumps;
mod json_lines;
mod lives;
mod recovery;
mod redis_replies;
mod remote;

use std::future::Future;

use tokio::runtime::Runtime;

pub use self::{
    answers::answers, configuration::configuration, dumps::dumps, json_lines::json_lines,
    lives::lives, recovery::journal_recovery, redis_replies::redis_replies, remote::remote,
};
use crate::queue::journal;

/// What is called with the bytes of an input.
pub type Target = fn(&[u8]);

/// All targets by name, as in `fuzz/fuzz_targets` and `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 11] = [
    ("answers", answers),
    ("configuration", configuration),
    ("dumps", dumps),
    ("journal_recovery", journal_recovery),
    ("journal_stretches", journal_stretches),
    ("journal_values", journal_values),
    ("json_lines", json_lines),
    ("lives", lives),
    ("redis_replies", redis_replies),
    ("remote", remote),
    ("sled_entries", sled_entries),
];

/// Keys and values of sled's trees.
pub fn sled_entries(data: &[u8]) {
    crate::queue::sled::fuzzing::entry(data);
}

/// Events, baselines and headers of the journal.
pub fn journal_values(data: &[u8]) {
    journal::fuzzing::values(data);
}

/// Pushed requests as they lie in the journal, damaged.
pub fn journal_stretches(data: &[u8]) {
    journal::fuzzing::stretch(data);
}

/// Makes one of the mistakes that the journal knows, from here on in this thread: then targets have to fail.
///
/// # Panics
/// If there is none of this name.
pub fn plant(fault: &str) {
    journal::fuzzing::plant(fault);
}

/// Runs this on a runtime of this thread.
fn wait<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
