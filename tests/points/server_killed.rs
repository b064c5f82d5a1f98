//! Redis: the client is killed at its points, the server at any moment, and started again on its append-only file.

use crate::{
    chain::Chain,
    life::Length,
    planted::ON_REDIS,
    server::Server,
    sweep::{Passed, is_long, kill_at_random, lives, random, show},
};

#[test]
fn a_client_of_redis_is_killed_at_every_point() {
    let Some(server) = Server::start() else {
        return;
    };
    let url = server.url();
    let passed = Passed::find("redis", Some(&url));
    let mut kills = passed.kill_in_chains("redis", Some(&url));
    if is_long() {
        kills += passed.kill_one_by_one("redis", Some(&url));
    }
    show("redis", kills, &ON_REDIS);
}

#[test]
fn a_client_of_redis_is_killed_at_random_moments() {
    let Some(server) = Server::start() else {
        return;
    };
    let kills = kill_at_random("redis", Some(&server.url()), lives(2, 15));
    show("redis", kills, &ON_REDIS);
}

/// Kills the server between what its client hears, some clients as well; how often the server was killed.
fn kill_the_server(server: &mut Server, chain: &mut Chain, random: &mut fastrand::Rng) -> usize {
    let mut kills = 0;
    for _ in 0..random.usize(1..4) {
        let mut child = chain.start("");
        for _ in 0..random.usize(1..6) {
            let most = random.usize(1..40);
            if !(0..most).all(|_| child.hear()) {
                break;
            }
            server.kill_and_start();
            kills += 1;
        }
        if random.bool() {
            child.kill();
        }
        // One whose server was killed as it connected may give up.
        child.end();
    }
    kills
}

#[test]
fn a_redis_server_is_killed_at_random_moments() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let mut random = random();
    let mut kills = 0;
    for life in 0..lives(3, 20) {
        let length = if life % 2 == 0 {
            Length::Long
        } else {
            Length::Short
        };
        let mut chain = Chain::new("redis", Some(&server.url()), length);
        kills += kill_the_server(&mut server, &mut chain, &mut random);
        chain.finish();
        chain.check(&format!("moments of the server, life {life}"));
    }
    show("redis", kills, &["no append-only file"]);
}

#[test]
fn a_server_that_answers_before_it_writes_is_caught() {
    let Some(mut server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let mut chain = Chain::new("redis", Some(&server.url()), Length::Short);
    let mut child = chain.start("");
    assert!((0..30).all(|_| child.hear()));
    server.kill_and_start();
    child.kill();
    child.end();
    chain.finish();
    let wrong = &chain.books.wrong;
    assert!(
        wrong
            .iter()
            .any(|what| what.contains("was acknowledged, and is gone")),
        "{wrong:?}"
    );
}
