//! What a command prints, and what becomes of the requests that it was given.

use std::{collections::BTreeMap, sync::Arc};

use super::wait;
use crate::{
    batch::{Claim, Member, Outcome, Page, Then, Update},
    clock::Timestamp,
    error::Result,
    format::json_lines::decode_answer_line,
    handler::{Batch, BatchOptions, command::fuzzing::answer},
    queue::{Queue, QueueOptions, memory::MemoryQueue},
    request::{NewRequest, RequestId},
};

/// ```text
/// requests and flags  which of them have an outcome before  then: what the command prints
/// ```
/// The ids of the requests are 1000, 1001 and so on.
pub fn answers(data: &[u8]) {
    let [flags, settled, stdout @ ..] = data else {
        return;
    };
    let is_plain = flags & 8 == 8;
    let most_bytes = (flags & 16 == 16).then_some(u64::from(*settled));
    wait(async {
        let (queue, batch) = batch(1 + (flags & 7), *settled).await.expect("a batch");
        let before = members(&queue, &batch).await;
        let wrong = answer(&batch, is_plain, stdout, most_bytes).await;
        let after = members(&queue, &batch).await;
        let told = match &wrong {
            // It was stopped: nothing of what it said counts.
            Err(_) => Some(BTreeMap::new()),
            Ok(_) if is_plain => plain(&before, stdout),
            Ok(_) => Some(json(&before, stdout)),
        };
        let none = BTreeMap::new();
        let told_outcomes = told.as_ref().unwrap_or(&none);
        for (before, after) in before.iter().zip(&after) {
            let expected = before.outcome.as_ref().or(told_outcomes.get(&before.id));
            assert_eq!(after.outcome.as_ref(), expected, "request {}", after.id);
        }
        let missing = after.iter().any(|member| member.outcome.is_none());
        if let Ok(wrong) = wrong {
            assert!(
                !missing || wrong.is_some(),
                "nobody is told what is missing"
            );
            assert_eq!(told.is_none(), is_plain && wrong.is_some());
        }
    });
}

/// A batch of so many requests, of which some have an outcome.
async fn batch(requests: u8, settled: u8) -> Result<(Arc<MemoryQueue>, Batch)> {
    let queue = Arc::new(MemoryQueue::new(QueueOptions::default()));
    let now = Timestamp::from_nanos(0x1000);
    let new = (0..requests).map(|number| NewRequest::new(vec![b'0' + number]));
    let pushed = queue.push(now, new.collect()).await?;
    let lease = queue.claim(now, &Claim::new()).await?.expect("a batch");
    let some = (0..8).filter(|bit| settled >> bit & 1 == 1);
    let some = some.filter_map(|index: usize| pushed.get(index));
    let update = Update {
        outcomes: some
            .map(|some| (some.id, Outcome::reject("before")))
            .collect(),
        ..Update::then(Then::Hold { until: now })
    };
    queue.update(now, &lease, update).await?;
    let batch = Batch::new(queue.clone(), lease, BatchOptions::default())?;
    Ok((queue, batch))
}

async fn members(queue: &MemoryQueue, batch: &Batch) -> Vec<Member> {
    let members = queue.read(batch.lease(), Page::first()).await;
    members.expect("the lease is good")
}

/// The first answer to each.
fn json(members: &[Member], stdout: &[u8]) -> BTreeMap<RequestId, Outcome> {
    let mut told = BTreeMap::new();
    for line in stdout.split(|byte| *byte == b'\n') {
        if let Ok((id, outcome)) = decode_answer_line(line)
            && members.iter().any(|member| member.id == id)
        {
            told.entry(id).or_insert(outcome);
        }
    }
    told
}

/// One line each, or nothing counts.
fn plain(members: &[Member], stdout: &[u8]) -> Option<BTreeMap<RequestId, Outcome>> {
    let mut lines: Vec<&[u8]> = stdout.split(|byte| *byte == b'\n').collect();
    // What is behind the last line break is a line only if there is something.
    lines.pop_if(|last| last.is_empty());
    let open: Vec<_> = members
        .iter()
        .filter(|member| member.outcome.is_none())
        .collect();
    (open.len() == lines.len()).then(|| {
        let results = lines.iter().map(|line| Outcome::result(line.to_vec()));
        open.iter().map(|member| member.id).zip(results).collect()
    })
}
