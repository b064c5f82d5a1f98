//! Several processes on one queue: what LangBatch's shared Redis list got wrong (two dispatchers took
//! each other's requests, died of empty batches and sent undersized ones), and orphans.

use std::{collections::HashSet, time::Duration};

use batchyard::{
    Claim, Due, ErrorKind, NewRequest, Outcome, Page, Queue, QueueOptions, RedisQueue, RequestId,
    Retries, Then, Update,
};

use crate::server::Server;

fn finish(rest: Outcome) -> Update {
    Update::then(Then::Finish {
        rest,
        retries: Retries {
            at: batchyard::Timestamp::EPOCH,
            max_attempts: 3.try_into().unwrap(),
        },
    })
}

/// Looks whether a batch is full, then claims, as fast as it can, until everything is done.
async fn dispatch(queue: RedisQueue, threshold: u32, total: u64) -> Vec<Vec<RequestId>> {
    let claim = Claim {
        max_requests: threshold.try_into().unwrap(),
        due: Some(Due {
            requests: threshold.into(),
            bytes: u64::MAX,
            oldest_at: None,
        }),
        ..Claim::new()
    };
    let mut batches = Vec::new();
    loop {
        let stats = queue.stats(queue.now()).await.unwrap();
        if stats.done == total {
            return batches;
        }
        if stats.ready < u64::from(threshold) {
            tokio::task::yield_now().await;
            continue;
        }
        let Some(lease) = queue.claim(queue.now(), &claim).await.unwrap() else {
            continue;
        };
        let members = queue.read(&lease, Page::first()).await.unwrap();
        batches.push(members.iter().map(|member| member.id).collect());
        queue
            .update(queue.now(), &lease, finish(Outcome::done()))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_dispatchers_never_get_an_empty_or_undersized_or_overlapping_batch() {
    let Some(server) = Server::start() else {
        return;
    };
    let (total, threshold) = (3_000, 100);
    let producer = server.queue("raced").await;
    let racers: Vec<_> = futures_util::future::join_all((0..3).map(|_| server.queue("raced")))
        .await
        .into_iter()
        .map(|queue| tokio::spawn(dispatch(queue, threshold, total)))
        .collect();
    for part in 0..60 {
        let requests = (0..50)
            .map(|i| NewRequest::new(format!("{part}-{i}")))
            .collect();
        producer.push(producer.now(), requests).await.unwrap();
    }
    let mut seen = HashSet::new();
    for racer in racers {
        for batch in racer.await.unwrap() {
            assert_eq!(batch.len(), threshold as usize);
            for id in batch {
                assert!(seen.insert(id), "{id} was in two batches");
            }
        }
    }
    assert_eq!(seen.len() as u64, total);
    let stats = producer.stats(producer.now()).await.unwrap();
    assert!(stats.adds_up() && stats.batches == 0, "{stats:?}");
}

#[tokio::test]
async fn an_orphan_is_taken_over_under_its_id_and_its_late_holder_is_fenced_off() {
    let Some(server) = Server::start() else {
        return;
    };
    let (late, next) = (server.queue("orphan").await, server.queue("orphan").await);
    let now = late.now();
    let requests = (0..10).map(|i| NewRequest::new(i.to_string())).collect();
    late.push(now, requests).await.unwrap();
    let claim = Claim {
        lease_duration: Duration::from_secs(50),
        ..Claim::new()
    };
    let held = late.claim(now, &claim).await.unwrap().unwrap();
    let members = late.read(&held, Page::first()).await.unwrap();
    let mut progress = Update::then(Then::Hold { until: held.until });
    progress.outcomes = vec![(members[0].id, Outcome::result("42"))];
    progress.checkpoint = Some("half".into());
    late.update(now, &held, progress).await.unwrap();

    assert!(next.claim(now, &claim).await.unwrap().is_none());
    let taken = next.claim(held.until, &claim).await.unwrap().unwrap();
    assert_eq!(
        (taken.batch, taken.attempt, taken.unsettled),
        (held.batch, 2, 9)
    );
    assert!(taken.fence > held.fence);
    assert_eq!(taken.checkpoint.as_deref(), Some(&b"half"[..]));

    let error = late.read(&held, Page::first()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    let error = late
        .update(now, &held, finish(Outcome::reject("late")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);

    let again = next.read(&taken, Page::first()).await.unwrap();
    let ids =
        |members: &[batchyard::Member]| members.iter().map(|member| member.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&members));
    assert_eq!(again[0].outcome, Some(Outcome::result("42")));
    next.update(held.until, &taken, finish(Outcome::done()))
        .await
        .unwrap();
    let stats = late.stats(held.until).await.unwrap();
    assert_eq!((stats.done, stats.dead), (10, 0));
}

#[tokio::test]
async fn pushes_that_wait_go_together_and_each_has_an_answer_of_its_own() {
    let Some(server) = Server::start() else {
        return;
    };
    let options = QueueOptions::default().max_requests(50);
    let queue = server.queue_with("gathered", options).await.unwrap();
    let keyed = |key: &str, payload: &'static str| NewRequest::new(payload).idempotency_key(key);
    let asked = [
        // None of these two, since the second has the key of another payload.
        vec![keyed("a", "one")],
        vec![keyed("b", "two"), keyed("a", "another")],
        vec![keyed("b", "three"), keyed("a", "one")],
        // More than there is room for, then as many as there is.
        vec![NewRequest::new("many"); 49],
        vec![NewRequest::new("some"); 48],
        vec![NewRequest::new("one too many")],
        vec![keyed("b", "three")],
    ];
    let calls = async || {
        let all: String = server.command(&["INFO", "commandstats"]).await;
        let line = all
            .lines()
            .find(|line| line.starts_with("cmdstat_evalsha:"));
        let calls = line.and_then(|line| line.split(['=', ',']).nth(1).map(str::to_owned));
        calls.map_or(0, |calls| calls.parse::<u32>().unwrap())
    };
    // The script is known, so that no call is repeated.
    queue.push(queue.now(), Vec::new()).await.unwrap();
    let before = calls().await;
    let now = queue.now();
    let all = asked.map(|requests| queue.push(now, requests));
    let answers = futures_util::future::join_all(all).await;
    assert_eq!(calls().await - before, 1, "one call for all of them");
    let told: Vec<Result<Vec<bool>, ErrorKind>> = answers
        .iter()
        .map(|answer| match answer {
            Ok(pushed) => Ok(pushed.iter().map(|one| one.duplicate).collect()),
            Err(error) => Err(error.kind()),
        })
        .collect();
    assert_eq!(
        told,
        [
            Ok(vec![false]),
            Err(ErrorKind::Invalid),
            Ok(vec![false, true]),
            Err(ErrorKind::QueueFull),
            Ok(vec![false; 48]),
            Err(ErrorKind::QueueFull),
            Ok(vec![true]),
        ]
    );
    let ids = |answer: usize| -> Vec<RequestId> {
        let pushed = answers[answer].as_ref().unwrap();
        pushed.iter().map(|pushed| pushed.id).collect()
    };
    assert_eq!((ids(0)[0], ids(6)[0]), (ids(2)[1], ids(2)[0]));
    let stats = queue.stats(now).await.unwrap();
    assert_eq!(
        (stats.pushed, stats.ready, stats.ready_bytes),
        (50, 50, 3 + 5 + 48 * 4)
    );
    let lease = queue.claim(now, &Claim::new()).await.unwrap().unwrap();
    let members = queue.read(&lease, Page::first()).await.unwrap();
    let read: Vec<(RequestId, &[u8])> = members
        .iter()
        .map(|member| (member.id, &member.payload[..]))
        .collect();
    let mut pushed = vec![(ids(0)[0], &b"one"[..]), (ids(2)[0], b"three")];
    pushed.extend(ids(4).into_iter().map(|id| (id, &b"some"[..])));
    assert_eq!(read, pushed);
}

#[tokio::test]
async fn a_push_of_many_requests_takes_its_room_once_from_those_that_go_with_it() {
    let Some(server) = Server::start() else {
        return;
    };
    let options = QueueOptions::default().max_requests(2_000);
    let queue = server.queue_with("many", options).await.unwrap();
    let now = queue.now();
    let all = [1_500, 1, 500, 499, 1].map(|count| {
        let requests = vec![NewRequest::new("one of many"); count];
        queue.push(now, requests)
    });
    let answers = futures_util::future::join_all(all).await;
    let told: Vec<Result<usize, ErrorKind>> = answers
        .into_iter()
        .map(|answer| match answer {
            Ok(pushed) => Ok(pushed.len()),
            Err(error) => Err(error.kind()),
        })
        .collect();
    assert_eq!(
        told,
        [
            Ok(1_500),
            Ok(1),
            Err(ErrorKind::QueueFull),
            Ok(499),
            Err(ErrorKind::QueueFull),
        ]
    );
    assert_eq!(queue.stats(now).await.unwrap().ready, 2_000);
}

#[tokio::test]
async fn a_push_that_nobody_waits_for_any_more_is_left_out_if_it_was_not_sent() {
    let Some(server) = Server::start() else {
        return;
    };
    let queue = server.queue("left").await;
    let now = queue.now();
    let mut first = Box::pin(queue.push(now, vec![NewRequest::new("first")]));
    let mut left = Box::pin(queue.push(now, vec![NewRequest::new("left")]));
    let last = queue.push(now, vec![NewRequest::new("last")]);
    // Both wait; nothing was sent, since nobody else has run.
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut left).is_pending());
    drop(left);
    let (first, last) = tokio::join!(first, last);
    assert_eq!((first.unwrap().len(), last.unwrap().len()), (1, 1));
    assert_eq!(queue.stats(now).await.unwrap().pushed, 2);
}

#[test]
fn a_push_ends_though_the_runtime_that_sends_it_runs_no_more() {
    let Some(server) = Server::start() else {
        return;
    };
    let idle = runtime(false);
    let (queue, mut first) = idle.block_on(async {
        let queue = std::sync::Arc::new(server.queue("idle").await);
        let pushing = queue.clone();
        let mut first = Box::pin(async move {
            pushing
                .push(pushing.now(), vec![NewRequest::new("first")])
                .await
        });
        // Whoever sends it was begun here, and does not get to run.
        assert!(futures_util::poll!(&mut first).is_pending());
        (queue, first)
    });
    let error = runtime(true)
        .block_on(queue.push(queue.now(), vec![NewRequest::new("second")]))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("may have been made"), "{error}");

    // It goes on when that runtime does, without the push that was given up.
    idle.block_on(&mut first).unwrap();
    let stats = idle.block_on(queue.stats(queue.now())).unwrap();
    assert_eq!(stats.pushed, 1);
}

#[test]
fn a_push_that_was_not_sent_when_its_sender_ended_was_not_made() {
    let Some(server) = Server::start() else {
        return;
    };
    let ended = runtime(false);
    let queue = ended.block_on(server.queue("unsent"));
    let mut push = Box::pin(queue.push(queue.now(), vec![NewRequest::new("unsent")]));
    ended.block_on(async { assert!(futures_util::poll!(&mut push).is_pending()) });
    drop(ended);
    let error = runtime(false).block_on(push).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("was not made"), "{error}");
}

/// A runtime of one thread, which runs only while it is waited in; its clock jumps to what is waited for if `is_paused`.
fn runtime(is_paused: bool) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(is_paused)
        .build()
        .unwrap()
}
