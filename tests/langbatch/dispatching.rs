//! Their section 2.1: each row of what their dispatcher does, as ours does it.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use batchyard::{
    Batch, Dispatcher, ErrorKind, HandlerError, MemoryQueue, NewRequest, Policy, Queue,
    QueueOptions, Report, RequestsType, Trigger,
};

use crate::{
    SECOND, claimed, count, done, drained, ids, policy, push, queue, settle, start, start_with,
    stats,
};

#[tokio::test(start_paused = true)]
async fn it_can_be_flushed_and_stopped() {
    let queue = queue();
    let dispatcher = start(&queue, done);
    push(&*queue, 3).await;
    dispatcher.flush().await.unwrap();
    dispatcher.drain().await.unwrap();
    let report = dispatcher.shut_down().await.unwrap();
    assert_eq!((report.ended, report.released), (1, 0));
    push(&*queue, 10).await;
    assert_eq!(
        stats(&*queue).await.ready,
        10,
        "nothing leaves once it has stopped"
    );
}

#[tokio::test(start_paused = true)]
async fn a_backlog_leaves_at_once_in_full_batches_and_the_rest_at_its_age() {
    let queue = queue();
    push(&*queue, 45).await;
    let started_at = queue.now();
    let dispatcher = start(&queue, done);
    let mut events = dispatcher.events();
    for _ in 0..4 {
        assert_eq!(claimed(&mut events).await.1, 10);
        assert!(queue.now().since(started_at) < SECOND / 50);
    }
    let (_, requests, trigger) = claimed(&mut events).await;
    assert_eq!((requests, trigger), (5, Some(Trigger::Age)));
}

#[tokio::test(start_paused = true)]
async fn the_trigger_the_size_of_a_batch_and_the_bound_of_a_queue_are_three_settings() {
    let options = QueueOptions::default().max_requests(12);
    let queue = Arc::new(MemoryQueue::new(options));
    let policy = Policy {
        max_batch_requests: Some(count(4)),
        ..policy()
    };
    let dispatcher = start_with(&queue, policy, done);
    let mut events = dispatcher.events();
    push(&*queue, 9).await;
    let refused = queue.push(queue.now(), vec![NewRequest::new(""); 4]).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::QueueFull);
    push(&*queue, 1).await;
    let (_, requests, trigger) = claimed(&mut events).await;
    assert_eq!((requests, trigger), (4, Some(Trigger::Count)));
    assert_eq!(drained(&queue, dispatcher).await.done, 10);
}

#[test]
fn no_setting_can_kill_it() {
    assert!(
        NonZeroU32::new(0).is_none(),
        "no threshold of zero can be written"
    );
    let zero = Duration::ZERO;
    for policy in [
        Policy {
            time_interval: zero,
            ..policy()
        },
        Policy {
            heartbeat_interval: zero,
            ..policy()
        },
        Policy {
            max_backoff: zero,
            ..policy()
        },
    ] {
        let builder = Dispatcher::builder(queue()).policy(policy).handler(done);
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_stepped_back_holds_no_request_for_longer_than_its_age() {
    let queue = queue();
    let dispatcher = start(&queue, done);
    let mut events = dispatcher.events();
    let pushed_at = queue.now();
    let tomorrow = pushed_at.after(86_400 * SECOND);
    let request = vec![NewRequest::new("{}")];
    queue.push(tomorrow, request).await.unwrap();
    claimed(&mut events).await;
    let age = queue.now().since(pushed_at);
    assert!((SECOND..SECOND + SECOND / 50).contains(&age), "{age:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_leave_in_the_order_of_their_push() {
    let queue = queue();
    let mut pushed = Vec::new();
    for requests in [1, 7, 20, 2] {
        pushed.extend(push(&*queue, requests).await);
    }
    let left = Arc::new(Mutex::new(Vec::new()));
    let seen = left.clone();
    let policy = Policy {
        max_in_flight: count(1),
        ..policy()
    };
    let dispatcher = start_with(&queue, policy, move |batch: Batch| {
        let seen = seen.clone();
        async move {
            let members = ids(&batch).await?;
            seen.lock().unwrap().extend(members);
            Ok::<_, HandlerError>(Report::done())
        }
    });
    drained(&queue, dispatcher).await;
    assert_eq!(*left.lock().unwrap(), pushed);
}

#[tokio::test(start_paused = true)]
async fn partial_requests_get_the_kwargs_and_their_own_fields_win() {
    let queue = queue();
    let payloads = [r#"{"input":"a"}"#, r#"{"input":"b","model":"own"}"#];
    let requests = payloads.map(NewRequest::new).into();
    queue.push(queue.now(), requests).await.unwrap();
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    let dispatcher = Dispatcher::builder(queue.clone())
        .requests_type(RequestsType::Partial)
        .request_kwargs(r#"{"model":"m","unknown":[1]}"#)
        .handler(move |batch: Batch| {
            let seen = seen.clone();
            async move {
                let members = batch.load().await?;
                let bodies = members.into_iter().map(|member| member.payload);
                seen.lock().unwrap().extend(bodies);
                Ok::<_, HandlerError>(Report::done())
            }
        })
        .build()
        .unwrap()
        .start();
    drained(&queue, dispatcher).await;
    let want = [
        r#"{"model":"m","unknown":[1],"input":"a"}"#,
        r#"{"unknown":[1],"input":"b","model":"own"}"#,
    ];
    assert_eq!(*bodies.lock().unwrap(), want);
}

#[test]
fn a_misspelt_requests_type_is_refused_and_so_are_kwargs_that_would_be_ignored() {
    assert!("parital".parse::<RequestsType>().is_err());
    let builder = Dispatcher::builder(queue()).handler(done);
    let full = builder
        .requests_type(RequestsType::Full)
        .request_kwargs(r#"{"model":"m"}"#);
    assert_eq!(full.build().unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_does_not_end_the_dispatcher() {
    let queue = queue();
    push(&*queue, 30).await;
    let calls = AtomicU32::new(0);
    let stats = settle(&queue, move |_| {
        let call = calls.fetch_add(1, Ordering::SeqCst);
        async move {
            assert!(call != 1, "KeyError");
            Ok::<_, HandlerError>(Report::done())
        }
    })
    .await;
    assert_eq!((stats.done, stats.dead), (30, 0));
}
