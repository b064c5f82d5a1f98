//! Their section 3.6, its last part: two dispatchers, and the age of a request.

use std::collections::BTreeSet;

use batchyard::{Batch, HandlerError, Policy, Queue, Report, RequestId, Trigger};

use crate::{SECOND, World, claimed, count, ids, policy, push, queue, start, start_with, stats};

#[tokio::test(start_paused = true)]
async fn two_dispatchers_on_one_queue_neither_die_nor_cut_batches_small() {
    for pushes in [vec![100], vec![37; 60], vec![1; 300], vec![3000]] {
        let queue = queue();
        let total: u32 = pushes.iter().sum();
        let batches = World::default();
        let policy = Policy {
            queue_threshold: count(100),
            ..policy()
        };
        let dispatchers = [(), ()].map(|()| {
            let seen = batches.clone();
            start_with(&queue, policy.clone(), move |batch: Batch| {
                let seen = seen.clone();
                async move {
                    let members = ids(&batch).await?;
                    seen.lock().unwrap().insert(batch.id(), members);
                    Ok::<_, HandlerError>(Report::done())
                }
            })
        });
        for requests in pushes {
            push(&*queue, requests).await;
            tokio::task::yield_now().await;
        }
        // The last ones leave by age.
        tokio::time::sleep(2 * SECOND).await;
        for dispatcher in dispatchers {
            dispatcher.shut_down().await.unwrap();
        }
        assert_eq!(stats(&*queue).await.done, u64::from(total));
        let batches: Vec<Vec<RequestId>> = batches.lock().unwrap().values().cloned().collect();
        let small = batches.iter().filter(|members| members.len() < 100).count();
        assert!(
            small <= usize::from(!total.is_multiple_of(100)),
            "{small} small batches of {total}"
        );
        let distinct: BTreeSet<_> = batches.iter().flatten().collect();
        assert_eq!(distinct.len(), total as usize);
        assert_eq!(
            batches.iter().flatten().count(),
            total as usize,
            "none left twice"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_request_after_idle_waits_for_its_own_age() {
    let queue = queue();
    let dispatcher = start(&queue, |_| async { Ok::<_, HandlerError>(Report::done()) });
    let mut events = dispatcher.events();
    tokio::time::sleep(100 * SECOND).await;
    let pushed_at = queue.now();
    push(&*queue, 1).await;
    let (_, requests, trigger) = claimed(&mut events).await;
    assert_eq!((requests, trigger), (1, Some(Trigger::Age)));
    let age = queue.now().since(pushed_at);
    assert!((SECOND..SECOND + SECOND / 50).contains(&age), "{age:?}");
}

#[tokio::test(start_paused = true)]
async fn the_11th_request_at_threshold_10_leaves_at_its_age_not_later() {
    let queue = queue();
    let dispatcher = start(&queue, |_| async { Ok::<_, HandlerError>(Report::done()) });
    let mut events = dispatcher.events();
    let pushed_at = queue.now();
    push(&*queue, 11).await;
    let (_, requests, trigger) = claimed(&mut events).await;
    assert_eq!((requests, trigger), (10, Some(Trigger::Count)));
    assert!(queue.now().since(pushed_at) < SECOND / 50);
    let (_, requests, trigger) = claimed(&mut events).await;
    assert_eq!((requests, trigger), (1, Some(Trigger::Age)));
    let age = queue.now().since(pushed_at);
    assert!((SECOND..SECOND + SECOND / 50).contains(&age), "{age:?}");
}
