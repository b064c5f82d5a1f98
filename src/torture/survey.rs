//! The child: what the store holds, before anything is done with it.

use super::{
    event::{Event, Fate, FoundBatch, FoundRequest, Note, Seen, Whole},
    name::Name,
    workload,
};
use crate::{
    error::{Error, Result},
    queue::{
        Queue,
        transfer::{DumpFrom, Record, StoredRequest},
    },
    request::{DeadReason, State},
};

/// Tells all that the queue holds, a line each, and at last its counters.
///
/// # Errors
/// If it can't be read.
pub(super) async fn tell(queue: &dyn Queue) -> Result<()> {
    let dump = queue
        .transfer()
        .ok_or_else(|| Error::internal("this backend can't be looked into"))?;
    let now = queue.now();
    let mut from = Some(DumpFrom::Start);
    let mut end = None;
    while let Some(at) = from {
        let page = dump.dump(now, at).await?;
        for record in page.records {
            match record {
                Record::Request(request) => workload::tell(&Event::Request(found(&request))),
                Record::Batch(batch) => workload::tell(&Event::Batch(FoundBatch {
                    batch: batch.id,
                    parent: batch.parent,
                    note: batch.checkpoint.as_deref().and_then(Note::parse),
                    context: String::from_utf8_lossy(&batch.context).into_owned(),
                })),
                Record::Queue(queue) => end = Some(queue),
                _ => {}
            }
        }
        from = page.next;
    }
    let end = end.ok_or_else(|| Error::internal("what the store holds has no end"))?;
    workload::tell(&Event::Surveyed(Whole {
        now,
        fence: end.last_fence.0,
        counts: queue.stats(now).await?.into(),
    }));
    Ok(())
}

fn found(request: &StoredRequest) -> FoundRequest {
    let entry = &request.entry;
    let name = Name::of(&entry.attributes);
    let is_intact = |payload| name.map(Name::payload).as_ref() == Some(payload);
    let recorded = request.member.as_ref();
    let recorded = recorded.and_then(|member| member.outcome.as_ref());
    let fate = match entry.state {
        State::Done => Some(Fate::done(entry.result.as_ref(), name)),
        _ => recorded.map(|outcome| Fate::of(outcome, name)),
    };
    let place = request.member.as_ref().and(entry.batch);
    FoundRequest {
        seen: Seen {
            id: entry.id,
            name,
            // Once it is done and its batch has ended, it is kept no longer.
            intact: entry.payload.as_ref().is_none_or(is_intact),
            fate,
        },
        state: entry.state,
        member: place.zip(request.position),
        damaged: entry.reason == Some(DeadReason::Damaged),
    }
}
