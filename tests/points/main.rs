//! `kill -9` at every named point of a batch's life, then at random moments, on every durable backend.
//!
//! A child leads a [life](life) and [tells](told) what it asks for and what it is answered; it is killed at a point of
//! `src/fault.rs`, and others go on from there, some of them killed as well, while they recover. The [books](books) say
//! what the store must show. What a kill can't show: whether anything was synced, since what was written survives in the
//! system's cache; that is for the proofs that take the power away.
#![expect(
    clippy::unwrap_used,
    reason = "what can't be unwrapped fails the test that asked"
)]

mod books;
mod chain;
mod life;
mod planted;
mod program;
#[path = "../redis/server.rs"]
#[expect(dead_code, reason = "the tests of the Redis backend use more of it")]
mod server;
mod server_killed;
mod sweep;
mod told;
mod torn;

use std::{env, time::Duration};

use self::{
    life::{Length, Place},
    planted::{ON_SLED, ON_THE_JOURNAL},
    sweep::{Passed, is_long, kill_at_random, kill_twice, lives, show},
    told::Plant,
};

/// What a [`chain::Chain`] starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a child of the other tests"]
async fn child_that_leads_a_life() {
    batchyard::fault::begin();
    let get = |name| env::var(format!("POINTS_{name}")).unwrap();
    let backend = match &*get("BACKEND") {
        "sled" => "sled",
        "journal" => "journal",
        _ => "redis",
    };
    let place = Place {
        backend,
        store: get("STORE").into(),
        queue: get("QUEUE"),
        length: serde_json::from_str(&get("LENGTH")).unwrap(),
    };
    let ahead = match backend {
        "redis" => Duration::from_secs(get("AHEAD").parse().unwrap()),
        // Their held batches are offered when they are opened.
        _ => Duration::ZERO,
    };
    let life = life::live(&place, ahead, Plant::from_name(&get("PLANT")));
    let ended = tokio::time::timeout(Duration::from_mins(3), life).await;
    ended.expect("a life comes to its end");
}

/// What was written, and what opening again passes.
const SLED_OPENS: [&str; 10] = [
    "sled.locked",
    "sled.snapshot_kept",
    "sled.snapshot_made",
    "sled.opened",
    "sled.proved",
    "sled.unmarked",
    "sled.unstaged",
    "sled.recovered",
    "sled.folder_synced",
    "sled.write",
];

const JOURNAL_OPENS: [&str; 8] = [
    "journal.mend",
    "journal.root_opened",
    "journal.cleared",
    "journal.written_again",
    "journal.headers_mended",
    "journal.written",
    "journal.offered",
    "journal.open",
];

#[test]
fn sled_is_killed_at_every_point() {
    let passed = Passed::find("sled", None);
    let mut kills = passed.kill_in_chains("sled", None);
    kills += kill_twice("sled", Length::Long, &["sled.staged"], &["sled.unstaged"]);
    if is_long() {
        kills += passed.kill_one_by_one("sled", None);
        let first = [
            "sled.format",
            "sled.database_folder",
            "sled.proved",
            "sled.written",
            "sled.claimed",
            "sled.slice",
            "sled.dropped",
        ];
        kills += kill_twice("sled", Length::Short, &first, &SLED_OPENS);
        kills += kill_twice(
            "sled",
            Length::Long,
            &["sled.staged", "sled.ended"],
            &SLED_OPENS,
        );
    }
    show("sled", kills, &ON_SLED);
}

#[test]
fn the_journal_is_killed_at_every_point() {
    let passed = Passed::find("journal", None);
    let mut kills = passed.kill_in_chains("journal", None);
    if is_long() {
        kills += passed.kill_one_by_one("journal", None);
        let first = [
            "journal.format",
            "journal.log_made",
            "journal.make",
            "journal.begin",
            "journal.header",
            "journal.written",
            "journal.synced",
        ];
        kills += kill_twice("journal", Length::Short, &first, &JOURNAL_OPENS);
        let first = ["journal.carried", "journal.baseline", "journal.rooted"];
        let second = ["journal.cleared", "journal.written_again", "journal.open"];
        kills += kill_twice("journal", Length::Long, &first, &second);
    }
    show("journal", kills, &ON_THE_JOURNAL);
}

#[test]
fn sled_is_killed_at_random_moments() {
    let kills = kill_at_random("sled", None, lives(2, 15));
    show("sled", kills, &ON_SLED);
}

#[test]
fn the_journal_is_killed_at_random_moments() {
    let kills = kill_at_random("journal", None, lives(2, 15));
    show("journal", kills, &ON_THE_JOURNAL);
}
