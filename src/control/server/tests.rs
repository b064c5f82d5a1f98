use std::num::NonZeroU64;

use futures_util::{FutureExt, poll};
use tokio::io::AsyncReadExt;

use super::*;
use crate::{
    batch::Page,
    clock::Timestamp,
    control::wire,
    error::ErrorKind,
    queue::{QueueOptions, memory::MemoryStore},
    request::{NewRequest, QueueName},
};

fn served() -> Served {
    Served {
        store: Arc::new(MemoryStore::new(QueueOptions::default())),
        dispatcher: None,
        access: ControlAccess::All,
        budget: Budget::new(),
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        crowded: Notify::new(),
        dumping: RwLock::new(()),
        wanted: None,
        stop: CancellationToken::new(),
    }
}

/// The frame of a push of so many requests without anything in them: five bytes each, and more than a hundred in memory.
fn push(requests: usize) -> Vec<u8> {
    let requests = vec![NewRequest::new(""); requests];
    let verb = Verb::Push(Timestamp::from_millis(1), requests);
    wire::encode(&Call::To(QueueName::default(), verb)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn calls_that_take_more_than_their_frames_wait_for_room() {
    let served = served();
    // It is small for a frame, and takes half of what there is for calls.
    let large = push(130_000);
    assert!(large.len() < 1 << 20);
    let decode = || served.decoded(&large[4..]).map(Result::unwrap);
    let (first, second) = (decode().await, decode().await);
    assert!(first.call.is_ok() && second.call.is_ok());
    let mut third = std::pin::pin!(decode());
    assert!(poll!(&mut third).is_pending(), "there is no room for it");
    // What a connection has in any case does not wait behind it.
    let small = push(100);
    let small = served.decoded(&small[4..]).await.unwrap();
    assert!(small.call.is_ok());
    drop(first);
    assert!(third.await.call.is_ok());
}

#[tokio::test]
async fn a_call_that_never_fits_is_refused_and_the_next_one_served() {
    let served = served();
    let refused = served.decoded(&push(320_000)[4..]).await.unwrap();
    let error = refused.call.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("use smaller pieces"), "{error}");
    let next = served.decoded(&push(1)[4..]).await.unwrap();
    assert!(next.call.is_ok());
}

#[tokio::test]
async fn a_frame_that_does_not_come_makes_way_for_those_that_do() {
    let served = served();
    let call = Call::To(QueueName::default(), Verb::Bookmark("x".repeat(100 << 20)));
    let frame = wire::encode(&call).unwrap();
    // Both would be more than there is for frames; the first one does not go on.
    let (mut hanging, mut slow) = UnixStream::pair().unwrap();
    wire::write(&mut hanging, &frame[..100]).await.unwrap();
    let serving = &served;
    let mut hangs = std::pin::pin!(async move { serving.next_call(&mut slow).await });
    let frames = &served.budget.frames;
    while poll!(std::pin::pin!(frames.take(frame.len()))).is_ready() {
        assert!(poll!(&mut hangs).is_pending());
        tokio::task::yield_now().await;
    }
    let (mut client, mut quick) = UnixStream::pair().unwrap();
    let mut others = std::pin::pin!(async {
        tokio::join!(
            wire::write(&mut client, &frame),
            served.next_call(&mut quick)
        )
    });
    while frames.waiting() == 0 {
        assert!(poll!(&mut others).is_pending());
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    assert!(hangs.await.unwrap().is_none(), "it was waited for");
    tokio::time::resume();
    let mut told = Vec::new();
    hanging.read_to_end(&mut told).await.unwrap();
    assert_eq!(told, wire::BYE, "so it may be sent again");
    let (written, asked) = others.await;
    written.unwrap();
    assert!(asked.unwrap().unwrap().call.is_ok());
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_make_way_for_those_that_are_read() {
    let served = served();
    let page = "x".repeat(100 << 20);
    let (_hanging, mut stream) = UnixStream::pair().unwrap();
    let first = served.answer(Ok(&page)).await;
    let mut unread = std::pin::pin!(served.send(&mut stream, first));
    // It may take as long as it takes while nobody waits.
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(poll!(&mut unread).is_pending());
    let mut second = std::pin::pin!(served.answer(Ok(&page)));
    assert!(poll!(&mut second).is_pending(), "there is no room for it");
    let small = served.answer(Ok(7)).await;
    assert_eq!(unread.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    tokio::time::resume();
    let (mut client, mut stream) = UnixStream::pair().unwrap();
    let second = second.await;
    let mut read = Vec::new();
    let (sent, ()) = tokio::join!(served.send(&mut stream, second), async {
        while read.len() < page.len() {
            client.read_buf(&mut read).await.unwrap();
        }
    });
    sent.unwrap();
    served.send(&mut stream, small).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_no_answer_makes_way_for_one_that_waits_to_be_let_in() {
    let served = served();
    let (_hanging, mut stream) = UnixStream::pair().unwrap();
    let answer = served.answer(Ok(vec![7_u8; 1 << 20])).await;
    let mut unread = std::pin::pin!(served.send(&mut stream, answer));
    assert!(poll!(&mut unread).is_pending());
    served.crowded.notify_one();
    assert_eq!(unread.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_page_of_members_is_no_larger_than_usual_whatever_is_asked_for() {
    let served = served();
    let queue = served.store.queue(&QueueName::default()).await.unwrap();
    let now = Timestamp::from_millis(1);
    let requests = vec![NewRequest::new("a"); 2_500];
    queue.push(now, requests).await.unwrap();
    let claim = crate::batch::Claim::new();
    let lease = queue.claim(now, &claim).await.unwrap().unwrap();
    let page = Page {
        max_requests: std::num::NonZeroU32::MAX,
        max_bytes: NonZeroU64::MAX,
        ..Page::first()
    };
    let answer = served
        .obey(Call::To(queue.name(), Verb::Read(lease, page)))
        .await;
    let members: std::result::Result<Vec<crate::batch::Member>, wire::Failed> =
        wire::decode(&answer.frame[4..]).unwrap();
    assert_eq!(members.map(|members| members.len()).ok(), Some(1_000));
}
