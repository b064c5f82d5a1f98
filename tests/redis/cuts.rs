//! The connection is cut at every command of a queue's life, in every place: before the server heard of it, in its
//! middle, and in the middle or in front of the reply. Whoever asks again is answered as if nothing had been cut;
//! whoever is gone for good leaves a queue that its successor finishes.

use batchyard::{ErrorKind, NewRequest, Queue, RedisQueue, testing::proof};

use crate::{
    life::{Life, chosen, drain, options, push_again, start},
    proxy::{Cut, Proxy},
    server::Server,
};

/// Everything of a life anew; the server knows none of its scripts.
async fn live(server: &Server, proxy: &Proxy, name: &str) -> batchyard::Result<Vec<String>> {
    let () = server.command(&["SCRIPT", "FLUSH"]).await;
    let queue = connect(&proxy.url(), name).await?;
    let copy = connect(&proxy.url(), &format!("{name}-copy")).await?;
    let mut life = Life::default();
    life.live(&queue, &copy).await?;
    Ok(life.answers)
}

/// Connects; a cut while the server is looked at for the first time is an error, and then asks again.
async fn connect(url: &str, name: &str) -> batchyard::Result<RedisQueue> {
    let name = name.parse().unwrap();
    let connected = RedisQueue::connect_with(url, &name, options()).await;
    match connected {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            RedisQueue::connect_with(url, &name, options()).await
        }
        connected => connected,
    }
}

/// A life that nothing disturbs: its answers, and how many commands it takes.
async fn undisturbed(server: &Server, proxy: &Proxy) -> (Vec<String>, usize) {
    let answers = live(server, proxy, "undisturbed").await.unwrap();
    (answers, proxy.seen())
}

#[tokio::test]
async fn a_life_cut_at_any_command_answers_as_if_it_were_not() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let proxy = Proxy::start(server.socket()).await;
    let (expected, commands) = undisturbed(&server, &proxy).await;
    let mut cuts = 0;
    for at in chosen(commands, 16) {
        for how in Cut::ALL {
            proxy.cut_after(at, how);
            let name = format!("cut-{at}-{how:?}");
            let answers = live(&server, &proxy, &name).await.unwrap();
            assert!(proxy.is_spent(), "command {at}, {how:?}: not cut");
            assert_same(&answers, &expected, &format!("command {at}, {how:?}"));
            cuts += 1;
        }
        let () = server.command(&["FLUSHALL"]).await;
    }

    // The same check finds out when the server does not keep what it answered.
    let mut caught = false;
    for at in commands / 2..commands {
        proxy.cut_after(at, Cut::Forgotten);
        let answers = live(&server, &proxy, &format!("forgotten-{at}")).await;
        caught = !answers.is_ok_and(|answers| answers == expected);
        if caught {
            break;
        }
    }
    assert!(caught, "a command that took effect twice was not seen");
    proof(
        "G2 G3 G4 G5",
        "redis",
        format!("{cuts} cuts"),
        &["forgotten replies"],
    );
}

fn assert_same(answers: &[String], expected: &[String], what: &str) {
    for (answer, expected) in answers.iter().zip(expected) {
        assert_eq!(answer, expected, "{what}: expected on the right");
    }
    assert_eq!(answers.len(), expected.len(), "{what}");
}

#[tokio::test]
async fn whoever_is_cut_off_for_good_at_any_command_leaves_a_queue_that_another_finishes() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let proxy = Proxy::start(server.socket()).await;
    let (_, commands) = undisturbed(&server, &proxy).await;
    let mut cuts = 0;
    for at in chosen(commands, 16) {
        for how in [Cut::HalfSent, Cut::Unanswered] {
            // A way of its own, which nobody takes again.
            let proxy = Proxy::start(server.socket()).await;
            proxy.end_after(at, how);
            let name = format!("left-{at}-{how:?}");
            tokio::select! {
                biased;
                () = proxy.is_cut() => {}
                _ = live(&server, &proxy, &name) => {}
            }
            assert!(proxy.is_spent(), "command {at}, {how:?}: not cut");
            let next = connect(&server.url(), &name).await.unwrap();
            push_again(&next).await;
            drain(&next).await;
            cuts += 1;
        }
        let () = server.command(&["FLUSHALL"]).await;
    }
    proof("G2 G3 G4 G5", "redis", format!("{cuts} clients lost"), &[]);
}

#[tokio::test]
async fn a_large_push_cut_at_any_command_adds_its_requests_once() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let proxy = Proxy::start(server.socket()).await;
    let queue = connect(&proxy.url(), "large").await.unwrap();
    let large = vec![NewRequest::new(vec![7; 1 << 20]); 5];
    let before = proxy.seen();
    queue.push(start(), large.clone()).await.unwrap();
    let commands = proxy.seen() - before;
    let mut pushed = 5;
    for at in 0..commands {
        for how in Cut::ALL {
            proxy.cut_after(at, how);
            queue.push(start(), large.clone()).await.unwrap();
            pushed += 5;
            let stats = queue.stats(start()).await.unwrap();
            assert_eq!(
                (stats.pushed, stats.ready_bytes),
                (pushed, pushed << 20),
                "{at}, {how:?}"
            );
            assert!(
                proxy.is_spent() || commands - at < 3,
                "command {at}, {how:?}: not cut"
            );
        }
    }
    let staged: Vec<String> = server.command(&["KEYS", "*:stage:*"]).await;
    assert!(staged.is_empty(), "{staged:?}");
}
