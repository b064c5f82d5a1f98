//! Their section 2.3: each row of what their batch handler does, as ours does it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use batchyard::{
    Batch, BatchId, Claim, Dispatcher, HandlerError, Outcome, Policy, Queue, Report, Stats, Then,
    Update,
};

use crate::{
    SECOND, claimed, count, done, drained, ids, policy, push, queue, settle, start, start_with,
    stats,
};

/// Their process function: `on_results`, which fails so many times first.
async fn processed(failures: u32) -> (Stats, Vec<BatchId>, u32) {
    let queue = queue();
    push(&*queue, 10).await;
    let (handled, calls) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let (counted, seen) = (handled.clone(), calls.clone());
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(policy())
        .handler(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            done_after(SECOND)
        })
        .on_results(move |batch: Batch| {
            let seen = seen.clone();
            async move {
                tokio::time::sleep(SECOND).await;
                let call = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(batch.id());
                    seen.len()
                };
                if call <= failures as usize {
                    return Err(HandlerError::transient("the database is locked"));
                }
                Ok(())
            }
        })
        .build()
        .unwrap()
        .start();
    let stats = drained(&queue, dispatcher).await;
    let calls = calls.lock().unwrap().clone();
    (stats, calls, handled.load(Ordering::SeqCst))
}

async fn done_after(time: Duration) -> Result<Report, HandlerError> {
    tokio::time::sleep(time).await;
    Ok(Report::done())
}

#[tokio::test(start_paused = true)]
async fn an_async_process_function_is_awaited() {
    let (stats, calls, _) = processed(0).await;
    assert_eq!((stats.done, calls.len()), (10, 1));
}

#[tokio::test(start_paused = true)]
async fn a_process_function_that_raises_is_called_again_before_the_batch_ends() {
    let (stats, calls, handled) = processed(2).await;
    assert_eq!((stats.done, stats.dead), (10, 0));
    assert_eq!(calls, [calls[0]; 3]);
    assert_eq!(handled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_refused_once_is_tried_again_and_burns_no_attempt() {
    let queue = queue();
    push(&*queue, 10).await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let stats = settle(&queue, move |batch: Batch| {
        let mut seen = seen.lock().unwrap();
        seen.push((batch.id(), batch.attempt()));
        let refused = seen.len() == 1;
        async move {
            if refused {
                return Err(HandlerError::outage("503"));
            }
            Ok(Report::done())
        }
    })
    .await;
    assert_eq!(stats.done, 10);
    let attempts = attempts.lock().unwrap().clone();
    assert_eq!(attempts, [(attempts[0].0, 1); 2]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_status_of_one_batch_delays_that_batch_alone() {
    let queue = queue();
    push(&*queue, 40).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    let calls = AtomicU32::new(0);
    let stats = settle(&queue, move |batch: Batch| {
        let is_odd = calls.fetch_add(1, Ordering::SeqCst) == 0;
        let seen = seen.clone();
        async move {
            if is_odd {
                return Err(HandlerError::transient("status \"paused\" is not known"));
            }
            seen.lock().unwrap().push(batch.attempt());
            Ok(Report::done())
        }
    })
    .await;
    assert_eq!((stats.done, stats.dead), (40, 0));
    assert_eq!(*order.lock().unwrap(), [1, 1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_job_is_submitted_again_and_its_new_id_is_kept() {
    let queue = queue();
    push(&*queue, 10).await;
    let submitted = Arc::new(AtomicU32::new(0));
    let counted = submitted.clone();
    let stats = settle(&queue, move |batch: Batch| {
        let submitted = counted.clone();
        async move {
            let submit = || format!("job-{}", submitted.fetch_add(1, Ordering::SeqCst));
            match batch.checkpoint().as_deref() {
                // The status of the first one is "failed", and that may pass.
                None | Some(b"job-0") => batch.save_checkpoint(submit()).await?,
                Some(job) => return Ok(Report::rest(Outcome::result(job.to_vec()))),
            }
            Err(HandlerError::transient("not completed"))
        }
    })
    .await;
    assert_eq!(stats.done, 10);
    assert_eq!(submitted.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn what_expired_at_the_provider_leaves_again_in_a_later_batch_and_nothing_else() {
    let queue = queue();
    let pushed = push(&*queue, 10).await;
    let batches = Arc::new(Mutex::new(Vec::new()));
    let seen = batches.clone();
    let expired = pushed[6..].to_vec();
    let stats = settle(&queue, move |batch: Batch| {
        let (seen, expired) = (seen.clone(), expired.clone());
        async move {
            let members = ids(&batch).await?;
            seen.lock().unwrap().push(members.clone());
            let mut report = Report::done();
            for id in expired.into_iter().filter(|_| members.len() == 10) {
                report = report.with(id, Outcome::retry("expired"));
            }
            Ok::<_, HandlerError>(report)
        }
    })
    .await;
    assert_eq!((stats.done, stats.dead), (10, 0));
    assert_eq!(*batches.lock().unwrap(), [&pushed[..], &pushed[6..]]);
}

#[tokio::test(start_paused = true)]
async fn all_waiting_batches_start_in_order_as_many_at_once_as_is_set() {
    for limit in [1, 2, 4, 8] {
        let queue = queue();
        push(&*queue, 80).await;
        let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (now_running, peak) = (running.clone(), most.clone());
        let policy = Policy {
            max_in_flight: count(limit),
            ..policy()
        };
        let dispatcher = start_with(&queue, policy, move |_| {
            let running = now_running.clone();
            peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            async move {
                let report = done_after(SECOND).await;
                running.fetch_sub(1, Ordering::SeqCst);
                report
            }
        });
        let mut events = dispatcher.events();
        let started_at = queue.now();
        let mut batches = Vec::new();
        for _ in 0..8 {
            batches.push(claimed(&mut events).await.0);
        }
        assert!(batches.is_sorted(), "{batches:?}");
        let took = queue.now().since(started_at);
        assert!(
            took < (8 / limit) * SECOND,
            "no slot is left empty: {took:?}"
        );
        assert_eq!(drained(&queue, dispatcher).await.done, 80);
        assert_eq!(most.load(Ordering::SeqCst), limit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cancelled_in_flight_does_not_come_back() {
    let queue = queue();
    let pushed = push(&*queue, 10).await;
    let (admin, cancelled) = (queue.clone(), pushed[3]);
    let stats = settle(&queue, move |batch: Batch| {
        let admin = admin.clone();
        async move {
            if batch.len() < 10 {
                assert!(!ids(&batch).await?.contains(&cancelled));
                return Ok(Report::done());
            }
            let now = admin.now();
            admin.admin().unwrap().cancel(now, &[cancelled]).await?;
            Ok::<_, HandlerError>(Report::rest(Outcome::retry("try all again")))
        }
    })
    .await;
    assert_eq!((stats.done, stats.cancelled), (9, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stored_batch_that_can_not_be_read_costs_only_itself() {
    let queue = queue();
    push(&*queue, 10).await;
    let junk = Claim {
        context: "not one of ours".into(),
        ..Claim::new()
    };
    let lease = queue.claim(queue.now(), &junk).await.unwrap().unwrap();
    let release = Update::then(Then::Release);
    queue.update(queue.now(), &lease, release).await.unwrap();
    push(&*queue, 5).await;
    let dispatcher = start(&queue, done);
    dispatcher.drain().await.unwrap();
    let stats = stats(&*queue).await;
    assert_eq!((stats.done, stats.dead), (5, 10), "{stats:?}");
}
