//! Lines of a dump, as `import` reads them: what is taken in comes out again, and nothing else does.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::wait;
use crate::{
    batch::{Claim, Outcome, Page, Retries, Then, Update},
    clock::Timestamp,
    error::Result,
    queue::{
        Queue, QueueOptions,
        journal::fuzzing::{Image, Simulated},
        memory::MemoryQueue,
        transfer::{DumpFrom, Record, lines},
    },
    request::NewRequest,
};

/// Lines, of which those that are none are left out.
pub fn dumps(data: &[u8]) {
    let lines = data.split_inclusive(|byte| *byte == b'\n').take(RECORDS);
    let records: Vec<Record> = lines.filter_map(record).collect();
    let memory = Arc::new(MemoryQueue::new(QueueOptions::default()));
    let options = QueueOptions::default();
    let mut store = Simulated::open(Image::new(), options).expect("an empty disk");
    let journal = store.queue();
    let taken = wait(take_in(&*memory, &records));
    check(&taken, || wait(dumped(&*memory)));
    wait(go_on(&*memory));
    let taken = store.wait(take_in(&*journal, &records));
    check(&taken, || store.wait(dumped(&*journal)));
    store.wait(go_on(&*journal));
}

/// The record of a line, which is the same once it was written and read again.
fn record(line: &[u8]) -> Option<Record> {
    let (queue, record) = lines::decode(line).ok()?;
    let mut written = Vec::new();
    lines::encode(&queue, &record, &mut written).expect("a record is JSON");
    let first_break = written.iter().position(|byte| *byte == b'\n');
    assert_eq!(first_break, Some(written.len() - 1), "one line");
    let again = lines::decode(&written).expect("what was written can be read");
    assert_eq!(again, (queue, record));
    Some(again.1)
}

/// The records up to the end, if there is one: what comes behind it is refused, and changes nothing.
async fn take_in<'r>(queue: &dyn Queue, records: &'r [Record]) -> Result<&'r [Record]> {
    let transfer = queue.transfer().expect("all have it");
    let mut restore = transfer.restore().await?;
    let mut taken = 0;
    for some in records.chunks(3) {
        restore.add(some.to_vec()).await?;
        taken += some.len();
        if matches!(some.last(), Some(Record::Queue(_))) {
            let (whole, behind) = records.split_at(taken);
            let more = restore.add(behind.to_vec()).await;
            assert!(behind.is_empty() || more.is_err(), "there was an end");
            return Ok(whole);
        }
    }
    Ok(&[])
}

async fn dumped(queue: &dyn Queue) -> Result<Vec<Record>> {
    let transfer = queue.transfer().expect("all have it");
    let mut records = Vec::new();
    let mut from = Some(DumpFrom::Start);
    while let Some(next) = from {
        let page = transfer.dump(Timestamp::EPOCH, next).await?;
        records.extend(page.records);
        assert_ne!(page.next, from, "a dump goes on and on");
        from = page.next;
    }
    Ok(records)
}

/// Uses what was taken in: whatever it was, the counts go on to add up.
async fn go_on(queue: &dyn Queue) {
    let mut now = Timestamp::from_millis(1_800_000_000_000);
    for round in 0..4 {
        // What leaves no room for more is refused.
        let _ = queue.push(now, vec![NewRequest::new("one more")]).await;
        let Ok(Some(lease)) = queue.claim(now, &Claim::new()).await else {
            break;
        };
        let _ = queue.read(&lease, Page::first()).await;
        let retries = Retries {
            at: now,
            max_attempts: NonZeroU32::MAX,
        };
        let then = match round {
            0 => Then::Release,
            1 => Then::Split { retries },
            _ => Then::Finish {
                rest: Outcome::retry("again"),
                retries,
            },
        };
        let _ = queue.update(now, &lease, Update::then(then)).await;
        now = now.after(Duration::from_secs(1));
    }
    let stats = queue.stats(Timestamp::MAX).await.expect("it can be told");
    assert!(stats.adds_up(), "{stats:?}");
}

/// All of it is there, or nothing.
fn check(taken: &Result<&[Record]>, dumped: impl FnOnce() -> Result<Vec<Record>>) {
    let dumped = dumped().expect("it can be dumped");
    match taken {
        Ok(whole) if !whole.is_empty() => assert_eq!(sorted(&dumped), sorted(whole)),
        _ => assert_eq!(dumped.len(), 1, "after {taken:?} there is {dumped:?}"),
    }
}

/// Ids in the order of settling come in lists of any length.
fn sorted(records: &[Record]) -> (Vec<&Record>, Vec<crate::RequestId>) {
    let settled = records.iter().filter_map(|record| match record {
        Record::Settled(ids) => Some(ids),
        _ => None,
    });
    let others = records
        .iter()
        .filter(|record| !matches!(record, Record::Settled(_)));
    (others.collect(), settled.flatten().copied().collect())
}

const RECORDS: usize = 200;
