//! Faults that are planted, and that the books find: a proof that never fails proves nothing.
//!
//! A sync that is left out is none of them: what was written survives a kill without it.

use crate::{
    books::Books,
    chain::{Chain, kill_at},
    life::Length,
    server::Server,
};

/// What is found on each backend, as the tests below show.
pub(crate) const ON_SLED: [&str; 6] = [
    "answer before the write",
    "claim not stored",
    "checkpoint not stored",
    "outcomes after the end",
    "update in two steps",
    "marked as closed too early",
];
pub(crate) const ON_THE_JOURNAL: [&str; 7] = [
    "answer before the write",
    "claim not stored",
    "checkpoint not stored",
    "outcomes after the end",
    "update in two steps",
    "baseline dropped",
    "root not stored",
];
pub(crate) const ON_REDIS: [&str; 3] = [
    "checkpoint not stored",
    "outcomes after the end",
    "update in two steps",
];

/// Fails unless something was found wrong, and that one of these.
fn assert_caught(chain: &Chain, words: &[&str]) {
    assert!(
        is_caught(chain, words),
        "not caught: {:#?}",
        chain.books.wrong
    );
}

fn is_caught(chain: &Chain, words: &[&str]) -> bool {
    let is_told = |what: &&String| words.iter().any(|words| what.contains(words));
    let found = chain.books.wrong.iter().find(is_told);
    if let Some(found) = found {
        println!("{}: {found}", chain.place.backend);
    }
    found.is_some()
}

/// How often a child passes one point before it first passes the other.
fn passages_before(backend: &'static str, point: &str, other: &str) -> usize {
    let mut chain = Chain::new(backend, None, Length::Short);
    chain.run(&kill_at(other, 1));
    chain
        .passed
        .iter()
        .filter(|passed| *passed == point)
        .count()
}

/// Leaves out all writes after so many, and kills at a point that follows; then goes on without either.
fn leave_out(chain: &mut Chain, write: &str, after: usize, kill: &str) {
    let killed = chain.run(&format!("{write}={after}*off->return(skip);{kill}"));
    assert!(killed, "no life passes {kill}");
    chain.finish();
}

#[test]
fn an_answer_before_the_write_is_caught() {
    for (backend, write, answered) in [
        ("sled", "sled.write", "sled.answered"),
        ("journal", "journal.write", "journal.answered"),
    ] {
        // The queue is made, one push is written; those after it are not.
        let mut chain = Chain::new(backend, None, Length::Short);
        leave_out(&mut chain, write, 3, &kill_at(answered, 5));
        assert_caught(&chain, &["was acknowledged, and is gone"]);
    }
}

#[test]
fn a_claim_that_is_not_stored_before_the_handler_is_called_is_caught() {
    for (backend, write) in [("sled", "sled.write"), ("journal", "journal.write")] {
        let writes = passages_before(backend, write, "dispatcher.claimed");
        let mut chain = Chain::new(backend, None, Length::Short);
        leave_out(
            &mut chain,
            write,
            writes - 1,
            &kill_at("dispatcher.handle", 1),
        );
        assert_caught(&chain, &["neither ended nor offered again"]);
    }
}

/// Each backend that is there, with its server.
fn backends(server: Option<&Server>) -> Vec<(&'static str, Option<String>)> {
    let redis = server.map(|server| ("redis", Some(server.url())));
    let folders = [("sled", None), ("journal", None)];
    folders.into_iter().chain(redis).collect()
}

#[test]
fn a_checkpoint_that_is_not_stored_is_caught() {
    let server = Server::start();
    for (backend, url) in backends(server.as_ref()) {
        let mut chain = Chain::new(backend, url.as_deref(), Length::Short);
        chain.plant = "NoCheckpoint";
        assert!(chain.run(&kill_at("handler.recorded", 1)));
        chain.plant = "";
        chain.finish();
        assert_caught(&chain, &["answered were"]);
    }
}

#[test]
fn outcomes_that_are_stored_after_the_end_are_caught() {
    let server = Server::start();
    for (backend, url) in backends(server.as_ref()) {
        let mut chain = Chain::new(backend, url.as_deref(), Length::Short);
        chain.plant = "OutcomesLate";
        chain.run(&kill_at("dispatcher.finished", 1));
        chain.plant = "";
        chain.finish();
        assert_caught(
            &chain,
            &["handled again", "was done", "shows other outcomes"],
        );
    }
}

#[test]
fn an_update_in_two_steps_is_caught() {
    let server = Server::start();
    for (backend, url) in backends(server.as_ref()) {
        let point = match backend {
            "sled" => "sled.answered",
            "journal" => "journal.answered",
            _ => "redis.called",
        };
        // Between the two steps of the first page of outcomes with a checkpoint.
        let mut chain = Chain::new(backend, url.as_deref(), Length::Short);
        chain.plant = "HalfUpdate";
        chain.run(&kill_at("handler.recorded", 3));
        let calls = chain
            .passed
            .iter()
            .filter(|passed| *passed == point)
            .count();
        let caught = (0..4).any(|back| {
            let mut chain = Chain::new(backend, url.as_deref(), Length::Short);
            chain.plant = "HalfUpdate";
            chain.run(&kill_at(point, calls - back));
            chain.plant = "";
            chain.finish();
            chain
                .books
                .wrong
                .iter()
                .any(|what| what.contains("answered were"))
        });
        assert!(caught, "not caught on {backend}");
    }
}

#[test]
fn a_baseline_that_is_dropped_and_a_root_that_is_not_stored_are_caught() {
    for point in ["journal.baseline", "journal.root"] {
        // How often segments are freed depends on when the writer comes to it.
        let caught = (1..=6).rev().any(|passage| {
            let mut chain = Chain::new("journal", None, Length::Long);
            let kill = kill_at("journal.freed", passage);
            let killed = chain.run(&format!("{point}=return(skip);{kill}"));
            chain.finish();
            let words = ["was acknowledged, and is gone", "damaged", "is gone"];
            let caught = is_caught(&chain, &words);
            println!("{point}, {passage}: killed {killed}, caught {caught}");
            killed && caught
        });
        assert!(caught, "{point} is not caught");
    }
}

#[test]
fn a_mark_of_a_clean_close_before_the_last_write_is_caught() {
    let mut chain = Chain::new("sled", None, Length::Short);
    chain.finish();
    chain.check("no point");
    // The mark of that close stays, and another queue is filled.
    (chain.place.queue, chain.books) = ("other".into(), Books::default());
    assert!(chain.run("sled.unmark=return(skip);dispatcher.handle=1*return(kill)"));
    chain.finish();
    assert_caught(&chain, &["not in the state in which it was closed"]);
}
