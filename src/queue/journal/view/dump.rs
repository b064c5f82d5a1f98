//! All that is stored of a queue, as records.

use std::ops::Bound;

use super::pages::outcome_of;
use crate::{
    batch::{BatchId, Fence},
    clock::Timestamp,
    error::Result,
    queue::{
        journal::{
            fold::DONE,
            state::{NEVER, Stand},
            step::{Loaded, Step},
        },
        transfer::{
            DumpFrom, DumpPage, KnownKey, OpenBatch, PAGE_BYTES, PAGE_RECORDS, QueueEnd, Record,
            StoredMember, StoredRequest,
        },
    },
    request::{Bookmark, Position, RequestId, State},
};

impl Step<'_> {
    pub(in crate::queue::journal) fn dump(
        &mut self,
        now: Timestamp,
        from: DumpFrom,
    ) -> Result<DumpPage> {
        self.advance(now)?;
        match from {
            DumpFrom::Start => self.dump_requests(0),
            DumpFrom::Request(after) => self.dump_requests(after.as_u64()),
            DumpFrom::Batches => self.dump_batches(),
            DumpFrom::Settled(after) => {
                let page = self.results(now, after, SETTLED)?;
                let ids: Vec<_> = page.entries.iter().map(|entry| entry.id).collect();
                Ok(DumpPage {
                    damaged: Vec::new(),
                    records: (!ids.is_empty())
                        .then_some(Record::Settled(ids))
                        .into_iter()
                        .collect(),
                    next: Some(match page.next {
                        Some(next) => DumpFrom::Settled(Some(next)),
                        None => DumpFrom::Keys(None),
                    }),
                })
            }
            DumpFrom::Keys(after) => {
                let after = after.map_or(Bound::Unbounded, Bound::Excluded);
                let page = self.queue()?.stored.keys.range((after, Bound::Unbounded));
                let page: Vec<_> = page.take(PAGE_RECORDS).collect();
                let last = page.last().map(|(key, _)| DumpFrom::Keys(Some(**key)));
                let known = page.into_iter().map(|(key, known)| KnownKey {
                    key: *key,
                    id: RequestId::from_u64(known.id),
                    payload: known.payload,
                    expires_at: Timestamp::from_nanos(known.expires_at),
                });
                Ok(DumpPage {
                    damaged: Vec::new(),
                    records: known.map(Record::Key).collect(),
                    next: Some(last.unwrap_or(DumpFrom::Bookmarks)),
                })
            }
            DumpFrom::Bookmarks => self.dump_end(),
        }
    }

    fn dump_requests(&self, mut after: u64) -> Result<DumpPage> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        loop {
            let stretch = {
                let mut next = self.queue()?.stretches_between(after, NEVER);
                next.next().map(|(_, stretch)| *stretch)
            };
            let Some(stretch) = stretch else {
                return Ok(DumpPage {
                    damaged,
                    records,
                    next: Some(DumpFrom::Batches),
                });
            };
            let loaded = self.stretch(&stretch)?;
            for found in loaded.requests.iter().filter(|found| found.id > after) {
                if let Some(mut request) = self.dumped(found.id, &loaded)? {
                    bytes += request.bytes();
                    // Of a done request an error says that its result is damaged, and no backend stores that.
                    let is_done = request.entry.state == State::Done;
                    if is_done && request.entry.error.take().is_some() {
                        damaged.push(request.entry.id);
                    }
                    records.push(Record::Request(Box::new(request)));
                }
                if records.len() >= PAGE_RECORDS || bytes >= PAGE_BYTES {
                    let next = RequestId::from_u64(found.id);
                    return Ok(DumpPage {
                        damaged,
                        records,
                        next: Some(DumpFrom::Request(next)),
                    });
                }
            }
            after = stretch.last;
        }
    }

    fn dumped(&self, id: u64, loaded: &Loaded) -> Result<Option<StoredRequest>> {
        let Some(entry) = self.entry(id, loaded, true)? else {
            return Ok(None);
        };
        let queue = self.queue()?;
        let stored = &queue.stored;
        let time = |at: u64| (at != NEVER).then(|| Timestamp::from_nanos(at));
        let position = |at: u64| Some(Position::from_u64(at));
        let mut request = StoredRequest {
            entry,
            position: None,
            expires_at: None,
            member: None,
            kept_until: None,
        };
        let batch = request.entry.batch.map(|batch| batch.halves().0);
        let member = match stored.places.get(&id) {
            Some(Stand::Delayed(at)) => {
                request.position = position(at.1);
                let moved = stored.delayed.get(at);
                request.expires_at = moved.and_then(|moved| time(moved.expires_at));
                None
            }
            Some(Stand::Ready(at)) => {
                request.position = position(*at);
                let moved = stored.moved.get(at);
                request.expires_at = moved.and_then(|moved| time(moved.expires_at));
                None
            }
            Some(Stand::Member((_, at))) => Some(*at),
            Some(Stand::Done(_) | Stand::Dead(())) => None,
            None => match request.entry.state {
                State::Ready => {
                    request.position = position(id);
                    request.expires_at = expires_at(id, loaded)?;
                    None
                }
                _ => batch
                    .filter(|batch| stored.open.contains_key(batch))
                    .map(|_| id),
            },
        };
        if request.entry.state == State::Done && member.is_none() {
            let ended = batch.and_then(|batch| stored.ended.get(&batch));
            request.kept_until = ended.map(|ended| Timestamp::from_nanos(ended.until));
        }
        if let (Some(at), Some(batch)) = (member, batch)
            && let Some(open) = stored.open.get(&batch)
        {
            request.position = position(at);
            let moved = open.members.moved.get(&at);
            request.expires_at = match moved {
                Some(moved) => time(moved.expires_at),
                None => expires_at(id, loaded)?,
            };
            let failed = open.recorded.get(&at).is_some_and(|kind| *kind != DONE);
            let outcome = if failed {
                self.outcome_in(open, at, id)?.map(outcome_of)
            } else {
                None
            };
            request.member = Some(StoredMember {
                attempts_before: moved.map_or(0, |moved| moved.attempts),
                is_cancelled: open.cancelled.contains(&id),
                outcome,
            });
            if request.entry.payload.is_none() {
                let original = loaded.original(id)?;
                request.entry.payload = original.and_then(|original| original.payload.ok());
            }
        }
        Ok(Some(request))
    }

    fn dump_batches(&self) -> Result<DumpPage> {
        let queue = self.queue()?;
        let batches = queue.stored.open.iter().map(|(batch, open)| {
            let offered_from = (!open.held && open.until > 0).then_some(open.until);
            Record::Batch(OpenBatch {
                id: queue.batch_id(*batch),
                parent: open.parent.map(|parent| queue.batch_id(parent)),
                attempt: open.attempt,
                attempts_before: open.prior,
                formed_at: Timestamp::from_nanos(open.formed_at),
                offered_from: offered_from.map(Timestamp::from_nanos),
                context: open.context.clone(),
                checkpoint: open.checkpoint.clone(),
            })
        });
        Ok(DumpPage {
            damaged: Vec::new(),
            records: batches.collect(),
            next: Some(DumpFrom::Settled(None)),
        })
    }

    fn dump_end(&self) -> Result<DumpPage> {
        let stored = &self.queue()?.stored;
        let bookmarks = stored.bookmarks.iter().map(|(source, value)| Bookmark {
            source: source.clone(),
            value: value.clone(),
        });
        let mut records: Vec<_> = bookmarks.map(Record::Bookmark).collect();
        records.push(Record::Queue(QueueEnd {
            last_position: Position::from_u64(stored.last_position),
            last_batch: BatchId::new(stored.last_batch, stored.salt),
            last_fence: Fence(stored.last_fence),
            pushed: stored.counts.pushed,
            done: stored.counts.done,
            expired: stored.counts.expired,
            cancelled: stored.counts.cancelled,
            purged: stored.counts.purged,
        }));
        Ok(DumpPage {
            damaged: Vec::new(),
            records,
            next: None,
        })
    }
}

/// When a request that stands where its id says expires.
fn expires_at(id: u64, loaded: &Loaded) -> Result<Option<Timestamp>> {
    let at = loaded.find(id).map(|found| found.expires_at(&loaded.bytes));
    Ok(at.transpose()?.flatten().map(Timestamp::from_nanos))
}

const SETTLED: std::num::NonZeroU32 = std::num::NonZeroU32::new(1000).expect("not zero");
