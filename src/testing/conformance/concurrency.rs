//! Clauses about many callers at once: each verb is one step.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use super::bench::{Bench, at, claim_up_to, finishing, must, requests, retries};
use crate::{
    batch::{Claim, Outcome, Page, Then, Update},
    error::ErrorKind,
    queue::{Queue, QueueOptions},
    request::NewRequest,
};

/// Runs `calls` of these at the same time; what each answered.
async fn together<T, F>(
    queue: &Arc<dyn Queue>,
    calls: usize,
    call: impl Fn(Arc<dyn Queue>, usize) -> F,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let running: Vec<_> = (0..calls)
        .map(|number| tokio::spawn(call(queue.clone(), number)))
        .collect();
    let mut answers = Vec::new();
    for one in running {
        answers.push(one.await.expect("a concurrent call does not panic"));
    }
    answers
}

pub(super) async fn requests_of_one_push_stay_next_to_each_other(bench: Bench) {
    let queue = bench.queue().await;
    let pushed = together(&queue.queue, 16, |queue, number| async move {
        let new = (0..4).map(|i| NewRequest::new(format!("{number}/{i}")));
        must("push", queue.push(at(0), new.collect()).await)
    });
    let mut ids = BTreeSet::new();
    for pushed in pushed.await {
        let first = pushed[0].id.as_u64();
        for (offset, one) in (0..).zip(&pushed) {
            assert_eq!(one.id.as_u64(), first + offset);
            assert!(ids.insert(one.id), "no id is given twice");
        }
    }
    let lease = queue.take(at(1)).await;
    for part in queue.payloads(&lease).await.chunks(4) {
        let (number, _) = part[0].split_once('/').expect("a slash");
        let expected: Vec<String> = (0..4).map(|i| format!("{number}/{i}")).collect();
        assert_eq!(part, expected);
    }
}

pub(super) async fn concurrent_claims_never_share_a_request(bench: Bench) {
    let queue = bench.queue().await;
    let payloads: Vec<String> = (0..60).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    queue.put(at(0), &texts).await;
    let taken = together(&queue.queue, 8, |queue, _| async move {
        let mut taken = Vec::new();
        while let Some(lease) = must("claim", queue.claim(at(0), &claim_up_to(4)).await) {
            let members = must("read", queue.read(&lease, Page::first()).await);
            taken.extend(members.into_iter().map(|member| member.id));
        }
        taken
    });
    let taken: Vec<_> = taken.await.into_iter().flatten().collect();
    let distinct: BTreeSet<_> = taken.iter().collect();
    assert_eq!((taken.len(), distinct.len()), (60, 60));
}

pub(super) async fn one_of_many_claims_gets_the_orphan(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a"]).await;
    let lease = queue.take(at(0)).await;
    let until = lease.until;
    let claims = together(&queue.queue, 8, |queue, _| async move {
        must("claim", queue.claim(until, &Claim::new()).await)
    });
    let winners: Vec<_> = claims.await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!((winners[0].batch, winners[0].attempt), (lease.batch, 2));
}

pub(super) async fn one_of_many_ends_of_a_batch_wins(bench: Bench) {
    let queue = bench.queue().await;
    queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let ends = together(&queue.queue, 8, |queue, number| {
        let lease = lease.clone();
        async move {
            let then = match number % 4 {
                0 => Then::Release,
                1 => Then::Defer { until: at(500) },
                2 => super::bench::splitting(at(1)),
                _ => Then::Finish {
                    rest: Outcome::done(),
                    retries: retries(at(1)),
                },
            };
            let ended = queue.update(at(1), &lease, Update::then(then)).await;
            ended.map_err(|error| error.kind())
        }
    });
    let ends = ends.await;
    let won = ends.iter().filter(|ended| ended.is_ok()).count();
    assert_eq!(won, 1, "{ends:?}");
    let lost = ends
        .iter()
        .filter(|ended| **ended == Err(ErrorKind::LeaseLost));
    assert_eq!(lost.count(), 7);
    queue.look(at(1)).await;
}

pub(super) async fn one_of_many_outcomes_of_a_member_wins(bench: Bench) {
    let queue = bench.queue().await;
    let ids = queue.put(at(0), &["a", "b"]).await;
    let lease = queue.take(at(0)).await;
    let records = together(&queue.queue, 8, |queue, number| {
        let result = || Outcome::result(number.to_string());
        let outcomes = [(ids[0], result()), (ids[1], result())];
        let (lease, update) = (lease.clone(), super::bench::recording(&lease, &outcomes));
        async move { must("update", queue.update(at(1), &lease, update).await) }
    });
    records.await;
    let members = queue.members(&lease).await;
    assert!(members[0].outcome.is_some());
    assert_eq!(members[0].outcome, members[1].outcome, "updates do not mix");
    assert_eq!(queue.look(at(1)).await.done, 2);
}

pub(super) async fn concurrent_pushes_of_one_key_add_one_request(bench: Bench) {
    let queue = bench.queue().await;
    let pushed = together(&queue.queue, 16, |queue, _| async move {
        let new = vec![NewRequest::new("a").idempotency_key("k")];
        must("push", queue.push(at(0), new).await)[0]
    });
    let pushed = pushed.await;
    let new = pushed.iter().filter(|one| !one.duplicate).count();
    assert_eq!(new, 1);
    assert!(
        pushed.iter().all(|one| one.id == pushed[0].id),
        "{pushed:?}"
    );
    assert_eq!(queue.look(at(0)).await.pushed, 1);
}

pub(super) async fn concurrent_pushes_do_not_exceed_the_bounds(bench: Bench) {
    let queue = bench
        .queue_with(QueueOptions::default().max_requests(10))
        .await;
    let pushes = together(&queue.queue, 16, |queue, _| async move {
        queue.push(at(0), requests(&["a", "b", "c"])).await.is_ok()
    });
    let taken = pushes.await.into_iter().filter(|taken| *taken).count();
    assert_eq!(taken, 3, "three of them fit, and three do go in");
    assert_eq!(queue.look(at(0)).await.ready, 9);
}

pub(super) async fn every_reading_adds_up_while_others_work(bench: Bench) {
    let queue = bench.queue().await;
    let work = together(&queue.queue, 6, |queue, number| async move {
        for round in 0..15 {
            match number % 3 {
                0 => {
                    must("push", queue.push(at(round), requests(&["a", "b"])).await);
                }
                1 => {
                    let claimed = must("claim", queue.claim(at(round), &claim_up_to(3)).await);
                    let Some(lease) = claimed else { continue };
                    let rest = if round % 2 == 0 {
                        Outcome::retry("x")
                    } else {
                        Outcome::done()
                    };
                    let end = finishing(rest, at(round + round % 3));
                    must("update", queue.update(at(round), &lease, end).await);
                }
                _ => {
                    let stats = must("stats", queue.stats(at(round)).await);
                    assert!(stats.adds_up(), "{stats:?}");
                }
            }
        }
    });
    work.await;
    let stats = queue.look(at(20)).await;
    assert_eq!((stats.pushed, stats.in_flight, stats.dead), (60, 0, 0));
}
