//! Servers in trouble, and servers that somebody gets in the way of: flushed, full, busy, stalled, loading, refusing.

use std::{fs, time::Duration};

use batchyard::{
    Claim, Durability, Error, ErrorKind, List, NewRequest, Outcome, Page, Queue, QueueOptions,
    RedisQueue, Result, State,
    testing::proof,
    transfer::{DumpFrom, Transfer},
};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::{
    life::{Life, drain, finish, keyed, options, push_again, start},
    proxy::Proxy,
    server::Server,
};

async fn connect(url: &str, name: &str) -> Result<RedisQueue> {
    RedisQueue::connect_with(url, &name.parse().unwrap(), options()).await
}

fn requests(count: usize) -> Vec<NewRequest> {
    (0..count).map(|n| NewRequest::new(n.to_string())).collect()
}

/// What every verb that needs no lease answers.
async fn answers(queue: &RedisQueue) -> Vec<(&'static str, Result<()>)> {
    let now = queue.now();
    let admin = queue.admin().unwrap();
    let list = List::new(State::Ready);
    vec![
        ("stats", queue.stats(now).await.map(drop)),
        ("push", queue.push(now, requests(1)).await.map(drop)),
        ("bookmark", queue.bookmark("input").await.map(drop)),
        ("claim", queue.claim(now, &Claim::new()).await.map(drop)),
        ("list", admin.list(now, &list).await.map(drop)),
        (
            "results",
            admin
                .results(now, None, 9.try_into().unwrap())
                .await
                .map(drop),
        ),
        ("purge", admin.purge(now, &[]).await.map(drop)),
        ("dump", queue.dump(now, DumpFrom::Start).await.map(drop)),
        ("restore", queue.restore().await.map(drop)),
    ]
}

#[tokio::test]
async fn a_queue_that_is_flushed_or_swapped_away_while_a_batch_is_held_says_so() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    for command in [&["FLUSHALL"][..], &["FLUSHDB"], &["SWAPDB", "0", "1"]] {
        let queue = server.queue("gone").await;
        queue.push(queue.now(), requests(3)).await.unwrap();
        let lease = queue
            .claim(queue.now(), &Claim::new())
            .await
            .unwrap()
            .unwrap();
        let () = server.command(command).await;
        for (verb, answer) in answers(&queue).await {
            let error = answer.expect_err(verb);
            assert_eq!(
                error.kind(),
                ErrorKind::Corrupt,
                "{command:?}, {verb}: {error}"
            );
            assert!(
                error.to_string().contains("connect again"),
                "{verb}: {error}"
            );
        }
        let told = |answer: Result<()>| answer.unwrap_err().kind();
        let read = queue.read(&lease, Page::first()).await.map(drop);
        assert_eq!(told(read), ErrorKind::LeaseLost);
        let update = queue
            .update(queue.now(), &lease, finish(Outcome::done()))
            .await;
        assert_eq!(told(update), ErrorKind::Corrupt);

        // Somebody begins anew. Whoever held a batch of before has lost it, and goes on with the new queue.
        let anew = server.queue("gone").await;
        anew.push(anew.now(), requests(2)).await.unwrap();
        let fresh = anew
            .claim(anew.now(), &Claim::new())
            .await
            .unwrap()
            .unwrap();
        let update = queue
            .update(queue.now(), &lease, finish(Outcome::reject("late")))
            .await;
        assert_eq!(told(update), ErrorKind::LeaseLost);
        assert_eq!(queue.stats(queue.now()).await.unwrap().in_flight, 2);
        anew.update(anew.now(), &fresh, finish(Outcome::done()))
            .await
            .unwrap();
        if command[0] == "SWAPDB" {
            // What was swapped away comes back whole, with the batch that is held.
            let () = server.command(command).await;
            assert_eq!(
                queue
                    .read(&lease, Page::first())
                    .await
                    .map(|page| page.len())
                    .ok(),
                Some(3)
            );
            queue
                .update(queue.now(), &lease, finish(Outcome::done()))
                .await
                .unwrap();
            assert_eq!(queue.stats(queue.now()).await.unwrap().done, 3);
        }
        let () = server.command(&["FLUSHALL"]).await;
    }
    proof("G4 G8", "redis", "3 ways to lose all keys", &[]);
}

#[tokio::test]
async fn what_a_server_is_set_to_is_looked_at_again_with_every_connection() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("set").await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    let () = server
        .command(&[
            "CONFIG",
            "SET",
            "appendonly",
            "yes",
            "appendfsync",
            "everysec",
        ])
        .await;
    let () = server
        .command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    let _: u64 = server.command(&kill).await;
    let error = queue.push(queue.now(), requests(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("allkeys-lru"), "{error}");

    let () = server
        .command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    let can = queue.capabilities();
    let policy = "appendonly yes, appendfsync everysec".to_owned();
    assert_eq!(can.durability, Durability::Server { policy });
    assert_eq!(queue.stats(queue.now()).await.unwrap().ready, 3);
}

#[tokio::test]
async fn a_server_that_is_full_takes_in_who_comes_to_drain_it() {
    let Some(server) = Server::start_with(&["--appendonly", "no", "--maxmemory", "4mb"]) else {
        return;
    };
    let queue = server.queue("full").await;
    let mut pushed = 0;
    let full = loop {
        match queue
            .push(queue.now(), vec![NewRequest::new(vec![0; 20_000]); 4])
            .await
        {
            Ok(all) => pushed += all.len() as u64,
            Err(error) => break error,
        }
        assert!(pushed < 1_000);
    };
    assert_eq!(full.kind(), ErrorKind::QueueFull, "{full}");
    // Neither a queue that is there nor a new one is refused, nor any verb that takes away.
    let next = server.queue("full").await;
    let _new = server.queue("new").await;
    let now = next.now();
    let admin = next.admin().unwrap();
    let ready = admin.list(now, &List::new(State::Ready)).await.unwrap();
    admin.cancel(now, &[ready[0].id]).await.unwrap();
    let () = server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let lease = next.claim(now, &Claim::new()).await.unwrap().unwrap();
    next.read(&lease, Page::first()).await.unwrap();
    next.update(now, &lease, finish(Outcome::reject("no")))
        .await
        .unwrap();
    let dead = admin.list(now, &List::new(State::Dead)).await.unwrap();
    let ids: Vec<_> = dead.iter().map(|entry| entry.id).collect();
    assert_eq!(admin.redrive(now, &ids[..1]).await.unwrap(), 1);
    assert_eq!(admin.purge(now, &ids).await.unwrap(), pushed - 2);
    drain(&next).await;
    let () = server.command(&["CONFIG", "SET", "maxmemory", "4mb"]).await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    proof("G10", "redis", format!("{pushed} requests drained"), &[]);
}

#[tokio::test]
async fn calls_to_a_server_that_stalls_end_together_and_what_they_did_is_found_out() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let proxy = Proxy::start(server.socket()).await;
    let queue = connect(&proxy.url(), "stalled").await.unwrap();
    queue.push(queue.now(), requests(5)).await.unwrap();
    // Time runs on to whatever is waited for next from here on, and no reply comes.
    proxy.hold(true);
    tokio::time::pause();
    let began = Instant::now();
    let now = queue.now();
    let pushes = join_all((0..40).map(|n| queue.push(now, keyed(&format!("part {n}"), 2))));
    let stats = join_all((0..40).map(|_| queue.stats(now)));
    let claim = Claim::new();
    let (added, stats, claimed) = tokio::join!(pushes, stats, queue.claim(now, &claim));
    let took = began.elapsed();
    let failed = (added.into_iter().map(|one| one.map(drop)))
        .chain(stats.into_iter().map(|one| one.map(drop)))
        .chain([claimed.map(drop)]);
    for answer in failed {
        let error: Error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert!(
        took <= Duration::from_secs(45),
        "some waited for others: {took:?}"
    );
    // Who comes later finds no connection, and does not wait for all the others to try.
    let began = Instant::now();
    let late = join_all((0..40).map(|_| queue.stats(now))).await;
    assert!(late.iter().all(Result::is_err));
    let took = began.elapsed();
    assert!(
        took <= Duration::from_secs(20),
        "they tried one after the other: {took:?}"
    );
    tokio::time::resume();
    proxy.hold(false);
    proxy.sever();

    // Whoever pushes again under the same keys finds out; a batch that was claimed is offered when its lease ends.
    let repeated = join_all((0..40).map(|n| queue.push(now, keyed(&format!("part {n}"), 2)))).await;
    assert!(repeated.iter().all(Result::is_ok));
    assert_eq!(queue.stats(now).await.unwrap().pushed, 85);
    drain(&queue).await;
    proof("G2 G3 G5", "redis", "81 calls without an answer", &[]);
}

#[tokio::test]
async fn a_script_of_somebody_else_that_does_not_end_is_waited_for() {
    let Some(server) = Server::start_with(&["--appendonly", "no", "--busy-reply-threshold", "1"])
    else {
        return;
    };
    let queue = server.queue("busy").await;
    let mut other = server.connection().await;
    let endless = tokio::spawn(async move {
        let mut command = redis::cmd("EVAL");
        command.arg("while true do end").arg(0);
        command.query_async::<()>(&mut other).await
    });
    let mut asks = server.connection().await;
    while redis::cmd("PING")
        .query_async::<String>(&mut asks)
        .await
        .is_ok()
    {}
    let pushing = queue.push(queue.now(), requests(3));
    let ending = async {
        let () = redis::cmd("SCRIPT")
            .arg("KILL")
            .query_async(&mut asks)
            .await
            .unwrap();
    };
    let (pushed, ()) = tokio::join!(pushing, ending);
    assert_eq!(pushed.unwrap().len(), 3);
    assert!(endless.await.unwrap().is_err());
    assert_eq!(queue.stats(queue.now()).await.unwrap().pushed, 3);
}

#[tokio::test]
async fn a_server_that_is_still_loading_is_waited_for() {
    let settings = [
        "--appendonly",
        "yes",
        "--aof-use-rdb-preamble",
        "yes",
        "--key-load-delay",
    ];
    let Some(mut server) = Server::start_with(&[&settings[..], &["3000"]].concat()) else {
        return;
    };
    let queue = server.queue("loading").await;
    queue.push(queue.now(), requests(300)).await.unwrap();
    let () = server
        .command(&["CONFIG", "SET", "appendfsync", "always"])
        .await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    server.kill();
    server.start_again();
    let mut asks = server.connection().await;
    let ping = redis::cmd("PING").query_async::<String>(&mut asks).await;
    let was_loading = ping.is_err_and(|error| error.code() == Some("LOADING"));
    let connected = connect(&server.url(), "loading").await.unwrap();
    assert_eq!(queue.stats(queue.now()).await.unwrap().ready, 301);
    assert_eq!(connected.stats(queue.now()).await.unwrap().ready, 301);
    println!("loading when asked: {was_loading}");
}

#[tokio::test]
async fn scripts_that_are_flushed_all_the_time_take_effect_once() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let mut lives = Vec::new();
    for is_flushed in [false, true] {
        let name = format!("flushed-{is_flushed}");
        let queue = connect(&server.url(), &name).await.unwrap();
        let copy = connect(&server.url(), &format!("{name}-copy"))
            .await
            .unwrap();
        let mut life = Life::default();
        let mut other = server.connection().await;
        let flushing = async {
            if !is_flushed {
                std::future::pending::<()>().await;
            }
            loop {
                let flush = redis::cmd("SCRIPT").arg("FLUSH").to_owned();
                let () = flush.query_async(&mut other).await.unwrap();
            }
        };
        tokio::select! {
            answer = life.live(&queue, &copy) => answer.unwrap(),
            () = flushing => unreachable!(),
        }
        push_again(&queue).await;
        drain(&queue).await;
        lives.push(life.answers);
    }
    assert_eq!(lives[0], lives[1]);
    proof("G2 G5", "redis", format!("{} answers", lives[0].len()), &[]);
}

#[tokio::test]
async fn a_user_who_may_not_do_all_is_refused_before_anything_is_half_done() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let allowed = [
        "ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-zadd",
    ];
    let () = server.command(&allowed).await;
    let url = format!("{}?user=limited&pass=secret", server.url());
    let error = connect(&url, "denied").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("ZADD"), "{error}");
    let () = server
        .command(&["ACL", "SETUSER", "limited", "+zadd"])
        .await;
    let queue = connect(&url, "denied").await.unwrap();
    queue.push(start(), requests(1)).await.unwrap();
    // A password that is changed shows with the next connection.
    let () = server
        .command(&["ACL", "SETUSER", "limited", "resetpass", ">another"])
        .await;
    let _: u64 = server.command(&["CLIENT", "KILL", "USER", "limited"]).await;
    let error = queue.push(start(), requests(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_server_that_can_not_save_refuses_and_goes_on_when_it_can() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("unsaved").await;
    queue.push(queue.now(), requests(2)).await.unwrap();
    let () = server
        .command(&["CONFIG", "SET", "save", "3600 1000000"])
        .await;
    // A folder where its file is to be.
    let in_the_way = server.directory().join("dump.rdb");
    fs::create_dir(&in_the_way).unwrap();
    fs::write(in_the_way.join("file"), "").unwrap();
    save(&server, "err").await;
    let refused = [
        queue.push(queue.now(), requests(1)).await.map(drop),
        queue.claim(queue.now(), &Claim::new()).await.map(drop),
    ];
    for answer in refused {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("refuses to write"), "{error}");
    }
    fs::remove_dir_all(&in_the_way).unwrap();
    save(&server, "ok").await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    assert_eq!(queue.stats(queue.now()).await.unwrap().ready, 3);
}

/// Saves in the background, and waits for it to end so.
async fn save(server: &Server, status: &str) {
    let _: redis::Value = server.command(&["BGSAVE"]).await;
    let status = format!("rdb_last_bgsave_status:{status}");
    loop {
        let info: String = server.command(&["INFO", "persistence"]).await;
        if info.contains(&status) && info.contains("rdb_bgsave_in_progress:0") {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_queue_whose_bounds_are_reached_is_another_full_than_the_servers() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let bounded = QueueOptions::default().max_requests(2);
    let queue = server.queue_with("bounded", bounded).await.unwrap();
    let own = queue.push(queue.now(), requests(3)).await.unwrap_err();
    let () = server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let servers = queue.push(queue.now(), requests(1)).await.unwrap_err();
    assert_eq!(
        (own.kind(), servers.kind()),
        (ErrorKind::QueueFull, ErrorKind::QueueFull)
    );
    assert!(servers.to_string().contains("maxmemory"), "{servers}");
    assert!(!own.to_string().contains("maxmemory"), "{own}");
}
