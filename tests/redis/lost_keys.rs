//! Keys of a queue that were deleted by something else.

use std::time::Duration;

use batchyard::{
    Claim, DeadReason, Error, ErrorKind, List, MemoryQueue, NewRequest, Outcome, Page, Queue,
    QueueOptions, RedisQueue, Retries, State, Then, Update,
    transfer::{DumpFrom, Transfer},
};

use crate::server::Server;

fn requests(count: usize) -> Vec<NewRequest> {
    (0..count).map(|i| NewRequest::new(i.to_string())).collect()
}

fn finish(rest: Outcome) -> Update {
    let retries = Retries {
        at: batchyard::Timestamp::EPOCH,
        max_attempts: 3.try_into().unwrap(),
    };
    Update::then(Then::Finish { rest, retries })
}

/// Leaves requests in every state, and idempotency keys.
async fn fill(queue: &RedisQueue) {
    let now = queue.now();
    for rest in [Outcome::done(), Outcome::reject("no")] {
        queue.push(now, requests(5)).await.unwrap();
        let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
        queue.update(now, &lease, finish(rest)).await.unwrap();
    }
    queue.push(now, requests(5)).await.unwrap();
    let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
    let members = queue.read(&lease, Page::first()).await.unwrap();
    let update = Update {
        outcomes: vec![
            (members[0].id, Outcome::retry("busy")),
            (members[1].id, Outcome::done()),
        ],
        ..Update::then(Then::Release)
    };
    queue.update(now, &lease, update).await.unwrap();
    let later = now.after(Duration::from_hours(1));
    let keyed = NewRequest::new("keyed").idempotency_key("k");
    let mut new = vec![NewRequest::new("later").not_before(later), keyed];
    new.extend(requests(5));
    queue.push(now, new).await.unwrap();
}

/// What each verb that does not need a lease answers.
async fn answers(server: &Server, queue: &RedisQueue, name: &str) -> Vec<(&'static str, Error)> {
    let now = queue.now();
    let admin = queue.admin().unwrap();
    let all = [
        ("stats", queue.stats(now).await.map(|_| ())),
        ("push", queue.push(now, requests(1)).await.map(|_| ())),
        ("claim", queue.claim(now, &Claim::new()).await.map(|_| ())),
        (
            "list",
            admin.list(now, &List::new(State::Ready)).await.map(|_| ()),
        ),
        ("dump", queue.dump(now, DumpFrom::Start).await.map(|_| ())),
        (
            "connect",
            server
                .queue_with(name, QueueOptions::default())
                .await
                .map(|_| ()),
        ),
    ];
    let failed = all.into_iter();
    failed
        .map(|(verb, answer)| (verb, answer.expect_err(verb)))
        .collect()
}

#[tokio::test]
async fn a_queue_that_lost_a_key_is_corrupt_and_no_verb_serves_it() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let options = QueueOptions::default().retention(Duration::from_hours(1));
    for lost in [
        "state", "ready", "requests", "due", "delayed", "flight", "offers", "done", "dead",
        "settled", "retained", "keys", "keyed",
    ] {
        let name = format!("lost-{lost}");
        let queue = server.queue_with(&name, options).await.unwrap();
        fill(&queue).await;
        let now = queue.now();
        if lost == "retained" {
            // Done members of open batches are not in there yet, so it is known only without any.
            let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
            queue
                .update(now, &lease, finish(Outcome::done()))
                .await
                .unwrap();
        }
        assert!(queue.stats(now).await.unwrap().adds_up());
        let key = format!("batchyard:{{{name}}}:{lost}");
        let deleted: u64 = server.command(&["DEL", &key]).await;
        assert_eq!(deleted, 1, "{lost} was not there");
        for (verb, error) in answers(&server, &queue, &name).await {
            let said = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{lost}, {verb}: {said}");
            assert!(said.contains(&name), "{lost}, {verb}: {said}");
            assert!(said.contains("backup"), "{lost}, {verb}: {said}");
            assert!(!said.contains("user_script"), "{lost}, {verb}: {said}");
        }
    }
}

#[tokio::test]
async fn a_batch_that_lost_a_key_is_corrupt_when_it_is_offered_read_or_updated() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    for lost in ["batch", "members", "outcomes"] {
        let name = format!("lost-{lost}");
        let queue = server.queue(&name).await;
        fill(&queue).await;
        let now = queue.now();
        let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
        let keys: Vec<String> = server
            .command(&["KEYS", &format!("*{name}*:{lost}:*")])
            .await;
        assert_eq!(keys.len(), 1, "{keys:?}");
        let () = server.command(&["DEL", &keys[0]]).await;
        let late = now.after(Duration::from_hours(100));
        let read = queue.read(&lease, Page::first()).await.map(|_| ());
        let update = queue.update(now, &lease, finish(Outcome::done())).await;
        let claim = queue.claim(late, &Claim::new()).await.map(|_| ());
        let answers = [("read", read), ("update", update), ("claim", claim)];
        for (verb, answer) in answers {
            let error = answer.expect_err(verb);
            // The fence of a lease is in the batch's own key.
            if lost == "batch" && verb != "claim" {
                assert_eq!(error.kind(), ErrorKind::LeaseLost);
                continue;
            }
            let said = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{lost}, {verb}: {said}");
            assert!(said.contains(&keys[0]), "{lost}, {verb}: {said}");
        }
    }
}

#[tokio::test]
async fn what_expired_when_a_batch_was_found_to_lack_a_key_stays_counted() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    for verb in ["claim", "update"] {
        let queue = server.queue(verb).await;
        let now = queue.now();
        queue.push(now, requests(2)).await.unwrap();
        let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
        let late = now.after(Duration::from_hours(100));
        let short = NewRequest::new("short").ttl(Duration::from_hours(1));
        queue.push(now, vec![short]).await.unwrap();
        let members = format!("batchyard:{{{verb}}}:members:*");
        let members: Vec<String> = server.command(&["KEYS", &members]).await;
        let () = server.command(&["RENAME", &members[0], "away"]).await;
        let answer = match verb {
            "claim" => queue.claim(late, &Claim::new()).await.map(|_| ()),
            _ => queue.update(late, &lease, finish(Outcome::done())).await,
        };
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Corrupt, "{verb}");
        let () = server.command(&["RENAME", "away", &members[0]]).await;
        let stats = queue.stats(late).await.unwrap();
        assert!(stats.adds_up(), "{verb}: {stats:?}");
        assert_eq!((stats.expired, stats.in_flight), (1, 2), "{verb}");
        assert_eq!((stats.ready, stats.ready_bytes), (0, 0), "{verb}");
    }
}

#[tokio::test]
async fn what_a_script_stumbles_over_is_corrupt_and_not_told_in_its_language() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("odd").await;
    queue.push(queue.now(), requests(1)).await.unwrap();
    let records = "batchyard:{odd}:requests";
    let ids: Vec<String> = server.command(&["HKEYS", records]).await;
    let () = server.command(&["HDEL", records, &ids[0]]).await;
    let () = server.command(&["HSET", records, "another", "one"]).await;
    let error = queue.stats(queue.now()).await.unwrap_err();
    let said = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{said}");
    assert!(said.contains("batchyard:{odd}:*"), "{said}");
    assert!(!said.contains("user_script"), "{said}");
    assert!(std::error::Error::source(&error).is_none());
}

#[tokio::test]
async fn a_lost_payload_is_one_dead_letter_and_its_batch_goes_on() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("payload").await;
    let pushed = queue.push(queue.now(), requests(3)).await.unwrap();
    let payload = format!("batchyard:{{payload}}:payload:{}", pushed[1].id);
    let deleted: u64 = server.command(&["DEL", &payload]).await;
    assert_eq!(deleted, 1);
    let now = queue.now();
    let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
    for _ in 0..2 {
        let members = queue.read(&lease, Page::first()).await.unwrap();
        let open: Vec<_> = members.iter().filter(|one| one.outcome.is_none()).collect();
        assert_eq!(open.len(), 2);
        let Some(Outcome::Reject { reason, error }) = &members[1].outcome else {
            panic!("{members:?}");
        };
        assert_eq!(*reason, DeadReason::Damaged);
        assert!(error.contains(&payload), "{error}");
    }
    // It is still a member, and still held: nothing was settled or given back by reading.
    let stats = queue.stats(now).await.unwrap();
    assert_eq!((stats.in_flight, stats.offered, stats.dead), (3, 0, 0));
    queue
        .update(now, &lease, finish(Outcome::done()))
        .await
        .unwrap();
    let stats = queue.stats(now).await.unwrap();
    assert_eq!((stats.done, stats.dead), (2, 1));
    let list = List::new(State::Dead).with_payloads();
    let dead = queue.admin().unwrap().list(now, &list).await.unwrap();
    assert_eq!(dead[0].id, pushed[1].id);
    assert_eq!(dead[0].reason, Some(DeadReason::Damaged));
    assert_eq!(dead[0].attempts, 1);

    // What it lost is known, so it keeps nobody from taking the queue elsewhere.
    let memory = MemoryQueue::new(QueueOptions::default());
    let mut restore = memory.restore().await.unwrap();
    let mut from = Some(DumpFrom::Start);
    while let Some(at) = from {
        let page = queue.dump(now, at).await.unwrap();
        restore.add(page.records).await.unwrap();
        from = page.next;
    }
    assert_eq!(memory.stats(now).await.unwrap().dead, 1);
}

#[tokio::test]
async fn a_read_after_the_batch_ended_is_lease_lost_and_rejects_nothing() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("ended").await;
    queue.push(queue.now(), requests(3)).await.unwrap();
    let now = queue.now();
    let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
    queue
        .update(now, &lease, finish(Outcome::done()))
        .await
        .unwrap();
    let error = queue.read(&lease, Page::first()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert_eq!(queue.stats(now).await.unwrap().dead, 0);
}

#[tokio::test]
async fn who_was_connected_is_told_of_a_flush_and_who_connects_later_begins_anew() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue("flushed").await;
    queue.push(queue.now(), requests(2)).await.unwrap();
    let () = server.command(&["FLUSHALL"]).await;
    let now = queue.now();
    let error = queue.stats(now).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = queue.push(now, requests(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // Nothing on the server tells a flushed one from a new one.
    let anew = server.queue("flushed").await;
    assert_eq!(anew.stats(now).await.unwrap().pushed, 0);
}
