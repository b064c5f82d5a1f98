//! Cut connections, restarts, refusals, and keys that something else wrote to.

use std::time::Duration;

use batchyard::{
    Claim, Durability, ErrorKind, List, NewRequest, Outcome, Page, Queue, QueueOptions, RedisQueue,
    RedisStore, Retries, State, Store, Then, Update, WhenFull,
};

use crate::{proxy::Proxy, server::Server};

fn finish() -> Update {
    Update::then(Then::Finish {
        rest: Outcome::done(),
        retries: Retries {
            at: batchyard::Timestamp::EPOCH,
            max_attempts: 3.try_into().unwrap(),
        },
    })
}

fn requests(count: usize) -> Vec<NewRequest> {
    (0..count).map(|i| NewRequest::new(i.to_string())).collect()
}

async fn shuts_down(url: &str) -> ErrorKind {
    RedisQueue::connect(url).await.unwrap_err().kind()
}

#[tokio::test]
async fn a_call_whose_connection_is_cut_after_it_ran_takes_effect_once() {
    let Some(server) = Server::start() else {
        return;
    };
    let proxy = Proxy::start(server.socket()).await;
    let queue = RedisQueue::connect(&proxy.url()).await.unwrap();
    queue.stats(queue.now()).await.unwrap();

    proxy.cut(2);
    let pushed = queue.push(queue.now(), requests(3)).await.unwrap();
    assert!(proxy.is_spent());
    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.pushed, stats.ready), (3, 3));

    proxy.cut(1);
    let lease = queue
        .claim(queue.now(), &Claim::new())
        .await
        .unwrap()
        .unwrap();
    assert!(proxy.is_spent());
    assert_eq!((lease.attempt, lease.requests), (1, 3));
    let members = queue.read(&lease, Page::first()).await.unwrap();
    assert_eq!(members.len(), 3);
    assert_eq!(members[0].id, pushed[0].id);

    proxy.cut(1);
    queue.update(queue.now(), &lease, finish()).await.unwrap();
    assert!(proxy.is_spent());
    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.done, stats.batches), (3, 0));
}

#[tokio::test]
async fn a_large_push_whose_connection_is_cut_adds_its_requests_once() {
    let Some(server) = Server::start() else {
        return;
    };
    let proxy = Proxy::start(server.socket()).await;
    let queue = RedisQueue::connect(&proxy.url()).await.unwrap();
    queue.push(queue.now(), vec![]).await.unwrap();
    proxy.cut(1);
    let large = vec![NewRequest::new(vec![7; 3 << 20]); 3];
    queue.push(queue.now(), large).await.unwrap();
    assert!(proxy.is_spent());
    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.ready, stats.ready_bytes), (3, 9 << 20));
    let staged: Vec<String> = server.command(&["KEYS", "*:stage:*"]).await;
    assert!(staged.is_empty(), "{staged:?}");
}

#[tokio::test]
async fn killed_connections_and_forgotten_scripts_are_mended() {
    let Some(server) = Server::start() else {
        return;
    };
    let queue = server.queue("mended").await;
    let mut wakes = queue.pushed().unwrap();
    queue.push(queue.now(), requests(1)).await.unwrap();
    let killed: u64 = server.command(&["CLIENT", "KILL", "SKIPME", "yes"]).await;
    assert!(killed > 0);
    queue.push(queue.now(), requests(1)).await.unwrap();
    let () = server.command(&["SCRIPT", "FLUSH"]).await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    assert_eq!(queue.stats(queue.now()).await.unwrap().ready, 3);

    // Wake-ups are heard again as well.
    let other = server.queue("mended").await;
    wakes.mark_unchanged();
    other.push(other.now(), requests(1)).await.unwrap();
    wakes.changed().await.unwrap();
}

#[tokio::test]
async fn a_batch_in_flight_survives_a_server_that_is_killed() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let queue = server.queue("killed").await;
    queue.push(queue.now(), requests(5)).await.unwrap();
    let lease = queue
        .claim(queue.now(), &Claim::new())
        .await
        .unwrap()
        .unwrap();
    server.kill_and_start();
    // The same handle goes on with the same lease.
    assert_eq!(queue.read(&lease, Page::first()).await.unwrap().len(), 5);
    queue.update(queue.now(), &lease, finish()).await.unwrap();
    assert_eq!(queue.stats(queue.now()).await.unwrap().done, 5);
}

#[tokio::test]
async fn a_server_that_is_gone_is_unavailable() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let queue = server.queue("gone").await;
    server.kill();
    let error = queue.push(queue.now(), requests(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(shuts_down(&server.url()).await, ErrorKind::Unavailable);
    assert_eq!(shuts_down("redis//nonsense").await, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_server_that_could_drop_the_queue_is_refused() {
    let Some(server) = Server::start() else {
        return;
    };
    for (policy, fits) in [
        ("allkeys-lru", false),
        ("allkeys-random", false),
        ("volatile-lru", false),
        ("noeviction", true),
    ] {
        let () = server
            .command(&["CONFIG", "SET", "maxmemory-policy", policy])
            .await;
        match RedisQueue::connect(&server.url()).await {
            Ok(_) => assert!(fits, "{policy}"),
            Err(error) => {
                assert!(!fits && error.to_string().contains(policy), "{error}");
                assert_eq!(error.kind(), ErrorKind::Invalid);
            }
        }
    }
}

#[tokio::test]
async fn durability_is_what_the_server_is_set_to() {
    let Some(server) = Server::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    else {
        return;
    };
    let can = server.queue("durable").await.capabilities();
    let policy = "appendonly yes, appendfsync always".to_owned();
    assert_eq!(can.durability, Durability::Server { policy });
    assert!(can.survives_restart && can.shared);

    let () = server.command(&["CONFIG", "SET", "appendonly", "no"]).await;
    let can = server.queue("durable").await.capabilities();
    let policy = "appendonly no".to_owned();
    assert_eq!(can.durability, Durability::Server { policy });
    assert!(!can.survives_restart);

    // A user who may not ask is not refused; the policy is unknown.
    let () = server
        .command(&[
            "ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-config",
        ])
        .await;
    let url = format!("{}?user=limited&pass=secret", server.url());
    let can = RedisQueue::connect(&url).await.unwrap().capabilities();
    let policy = "unknown".to_owned();
    assert_eq!(can.durability, Durability::Server { policy });
    let wrong = format!("{}?user=limited&pass=wrong", server.url());
    let error = RedisQueue::connect(&wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
}

#[tokio::test]
async fn a_key_that_something_else_wrote_to_is_corrupt_and_named() {
    let Some(server) = Server::start() else {
        return;
    };
    let queue = server.queue("typed").await;
    queue.push(queue.now(), requests(2)).await.unwrap();
    let () = server
        .command(&["SET", "batchyard:{typed}:flight", "oops"])
        .await;
    let error = queue.claim(queue.now(), &Claim::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("batchyard:{typed}:flight"),
        "{error}"
    );
    let error = server
        .queue_with("typed", QueueOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let () = server.command(&["DEL", "batchyard:{typed}:flight"]).await;
    assert_eq!(queue.stats(queue.now()).await.unwrap().ready, 2);
}

#[tokio::test]
async fn a_newer_format_is_refused_untouched() {
    let Some(server) = Server::start() else {
        return;
    };
    drop(server.queue("newer").await);
    let () = server
        .command(&["HSET", "batchyard:{newer}:state", "format", "2"])
        .await;
    let error = server
        .queue_with("newer", QueueOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[tokio::test]
async fn a_server_without_memory_still_drains() {
    let Some(server) = Server::start() else {
        return;
    };
    let queue = server.queue("full").await;
    queue.push(queue.now(), requests(100)).await.unwrap();
    let () = server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for push in [requests(1), vec![NewRequest::new(vec![0; 5 << 20])]] {
        let error = queue.push(queue.now(), push).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
    }
    let lease = queue
        .claim(queue.now(), &Claim::new())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(queue.read(&lease, Page::first()).await.unwrap().len(), 100);
    queue.update(queue.now(), &lease, finish()).await.unwrap();
    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.pushed, stats.done), (100, 100));
}

#[tokio::test]
async fn the_largest_payload_and_a_large_push_are_whole() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("large").await;
    let largest = vec![0xa5; batchyard::MAX_PAYLOAD_BYTES];
    queue
        .push(queue.now(), vec![NewRequest::new(largest.clone())])
        .await
        .unwrap();
    let pushed = queue.push(queue.now(), requests(50_000)).await.unwrap();
    assert_eq!(pushed[49_999].id.as_u64() - pushed[0].id.as_u64(), 49_999);

    let lease = queue
        .claim(queue.now(), &Claim::new())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(lease.requests, 50_000);
    let mut page = Page::first();
    let members = queue.read(&lease, page).await.unwrap();
    assert_eq!(members.len(), 1);
    assert!(members[0].payload == largest);
    page = page.after(members[0].position);
    let mut read = 1;
    loop {
        let members = queue.read(&lease, page).await.unwrap();
        let Some(last) = members.last() else {
            break;
        };
        for member in &members {
            assert_eq!(member.payload, (read - 1).to_string());
            read += 1;
        }
        page = page.after(last.position);
    }
    assert_eq!(read, 50_000);
    queue.update(queue.now(), &lease, finish()).await.unwrap();
    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.done, stats.ready, stats.held_bytes), (50_000, 1, 5));
    let payloads: Vec<String> = server.command(&["KEYS", "*:payload:*"]).await;
    assert_eq!(payloads.len(), 1);
}

#[tokio::test]
async fn nothing_is_left_of_requests_that_are_gone() {
    let Some(server) = Server::start() else {
        return;
    };
    let options = QueueOptions::default().retention(Duration::from_secs(10));
    let queue = server.queue_with("tidy", options).await.unwrap();
    let now = queue.now();
    let request = |n: u8| NewRequest::new(vec![n]).ttl(Duration::from_secs(3_500));
    queue
        .push(now, (0..40).map(request).collect())
        .await
        .unwrap();
    let later = now.after(Duration::from_secs(5));
    queue
        .push(
            now,
            vec![request(99).not_before(later), request(98).not_before(later)],
        )
        .await
        .unwrap();
    let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
    let members = queue.read(&lease, Page::first()).await.unwrap();
    let mut update = finish();
    update.outcomes = vec![
        (members[0].id, Outcome::reject("no")),
        (members[1].id, Outcome::retry("busy")),
        (members[2].id, Outcome::done()),
    ];
    queue.update(now, &lease, update).await.unwrap();
    let admin = queue.admin().unwrap();
    admin.purge(now, &[members[0].id]).await.unwrap();
    let waiting = admin.list(later, &List::new(State::Ready)).await.unwrap();
    let ids: Vec<_> = waiting.iter().map(|entry| entry.id).collect();
    assert_eq!(admin.cancel(later, &ids).await.unwrap().len(), 3);
    let end = now.after(Duration::from_secs(10));
    let stats = queue.stats(end).await.unwrap();
    assert_eq!((stats.done, stats.purged, stats.cancelled), (38, 1, 3));
    let mut keys: Vec<String> = server.command(&["KEYS", "batchyard:{tidy}:*"]).await;
    keys.retain(|key| !key.contains(":reply:"));
    assert_eq!(keys, ["batchyard:{tidy}:state"]);
}

#[tokio::test]
async fn a_blocked_push_hears_of_room_made_by_another_process() {
    let Some(server) = Server::start() else {
        return;
    };
    let options = QueueOptions::default()
        .max_requests(1)
        .when_full(WhenFull::Block {
            timeout: Duration::from_secs(50),
        });
    let queue = server.queue_with("room", options).await.unwrap();
    let other = server.queue_with("room", options).await.unwrap();
    queue.push(queue.now(), requests(1)).await.unwrap();
    let drain = async {
        let lease = other
            .claim(other.now(), &Claim::new())
            .await
            .unwrap()
            .unwrap();
        other.update(other.now(), &lease, finish()).await.unwrap();
    };
    let (pushed, ()) = tokio::join!(queue.push(queue.now(), requests(1)), drain);
    assert_eq!(pushed.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_tells_of_queues_that_others_make() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let store = store.with_options(QueueOptions::default().max_requests(1));
    let mut created = store.created().unwrap();
    let queue = store.queue(&"mail.a".parse().unwrap()).await.unwrap();
    let mut wakes = queue.pushed().unwrap();
    created.mark_unchanged();
    let other = server.queue("mail.b").await;
    created.changed().await.unwrap();
    assert_eq!(store.queues("mail.").await.unwrap().len(), 2);
    assert!(store.queues("web").await.unwrap().is_empty());

    let same = server.queue("mail.a").await;
    wakes.mark_unchanged();
    same.push(same.now(), requests(1)).await.unwrap();
    wakes.changed().await.unwrap();
    let full = queue.push(queue.now(), requests(1)).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::QueueFull);

    store.close().await.unwrap();
    let error = queue.stats(queue.now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(
        store.queues("").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(other.stats(other.now()).await.unwrap().ready, 0);
}
