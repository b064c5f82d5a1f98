//! Several processes on one queue: what LangBatch's shared Redis list got wrong (two dispatchers took
//! each other's requests, died of empty batches and sent undersized ones), and orphans.

use std::{collections::HashSet, time::Duration};

use batchyard::{
    Claim, Due, ErrorKind, NewRequest, Outcome, Page, Queue, RedisQueue, RequestId, Retries, Then,
    Update,
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
