//! A full disk drains, and takes pushes again when there is space.

use std::{num::NonZeroU32, time::Duration};

use batchyard::{
    Claim, ErrorKind, NewRequest, Outcome, Queue, Retries, Then, Timestamp, Update, testing::proof,
};

use crate::{
    Disk,
    store::{Backend, How, in_time},
};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

#[tokio::test]
async fn a_full_disk_drains_and_takes_pushes_again_when_space_returns() {
    let Some(disk) = Disk::new() else { return };
    let empty = disk.forgetful.keep();
    for (backend, space, mark) in [
        (Backend::Sled, 96 << 20, 32 << 20),
        (Backend::Journal, 8 << 20, 2 << 20),
    ] {
        disk.forgetful.go_back(&empty);
        disk.forgetful.set_space(Some(space));
        let how = How {
            low_space_mark: mark,
            ..How::default()
        };
        let opened = backend.open_with(&disk.store(), how).await.unwrap();
        let queue = &*opened.queue;
        let pushed = push_until_full(queue).await;
        assert!(pushed > 10, "{backend:?}: {pushed} requests fit");
        let mut settled = 0;
        while let Some(lease) = in_time("a claim", queue.claim(NOW, &claim()))
            .await
            .unwrap()
        {
            settled += u64::from(lease.requests);
            queue.update(NOW, &lease, finish()).await.unwrap();
        }
        assert_eq!(
            settled, pushed,
            "{backend:?}: all that was paid for is settled"
        );
        disk.forgetful.set_space(Some(2 * space));
        in_time("a push with space again", push_again(queue)).await;
        opened.end().await.unwrap();
        proof(
            "G10",
            backend.name(),
            format!("{pushed} requests on a full disk"),
            &[],
        );
    }
}

/// Whoever looks after the space has to notice first.
async fn push_again(queue: &dyn Queue) {
    while let Err(error) = queue.push(NOW, vec![NewRequest::new("again")]).await {
        assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
        tokio::task::yield_now().await;
    }
}

async fn push_until_full(queue: &dyn Queue) -> u64 {
    for pushed in 0..100_000 {
        let request = NewRequest::new(fastrand::u64(..).to_be_bytes().repeat(2_000));
        if let Err(error) = in_time("a push", queue.push(NOW, vec![request])).await {
            assert_eq!(error.kind(), ErrorKind::QueueFull, "{error}");
            return pushed;
        }
    }
    panic!("a full disk takes everything");
}

fn claim() -> Claim {
    Claim {
        max_requests: NonZeroU32::new(50).unwrap(),
        lease_duration: Duration::from_mins(1),
        ..Claim::new()
    }
}

fn finish() -> Update {
    Update::then(Then::Finish {
        rest: Outcome::result("done"),
        retries: Retries {
            at: NOW,
            max_attempts: NonZeroU32::MIN,
        },
    })
}
