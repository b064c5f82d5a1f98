//! All that is stored of a queue, as records.

use std::num::NonZeroU32;

use bytes::Bytes;
use sled::IVec;

use super::View;
use crate::{
    batch::{BatchId, Fence},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        Entry,
        sled::{
            db,
            keys::{self, Note, Tree},
            range::Range,
            record::{
                BatchV1, BookmarkV1, DeadV1, KeyV1, MarkV1, NoteV1, OutcomeV1, PlaceV1, RequestV1,
                VerdictV1,
            },
        },
        transfer::{
            Digest, DumpFrom, DumpPage, KnownKey, OpenBatch, PAGE_RECORDS, QueueEnd, Record,
            StoredMember, StoredRequest,
        },
    },
    request::{Bookmark, Position, RequestId, State},
};

impl View<'_> {
    /// A page of it, with at most so many requests, that ends behind so many bytes of them.
    pub(in crate::queue::sled) fn dump(
        &self,
        from: DumpFrom,
        most: (usize, usize),
    ) -> Result<DumpPage> {
        match from {
            DumpFrom::Start => self.dump_requests(0, most),
            DumpFrom::Request(after) => self.dump_requests(after.as_u64().saturating_add(1), most),
            DumpFrom::Batches => self.dump_batches(),
            DumpFrom::Settled(after) => {
                let page = self.results(after, SETTLED)?;
                let ids: Vec<_> = page.entries.iter().map(|entry| entry.id).collect();
                let records = (!ids.is_empty()).then_some(Record::Settled(ids));
                Ok(DumpPage {
                    damaged: Vec::new(),
                    records: records.into_iter().collect(),
                    next: Some(match page.next {
                        Some(next) => DumpFrom::Settled(Some(next)),
                        None => DumpFrom::Keys(None),
                    }),
                })
            }
            DumpFrom::Keys(after) => self.dump_keys(after),
            DumpFrom::Bookmarks => self.dump_end(),
        }
    }

    /// Merges what is where it was pushed with what has a place of its own, is done or is dead. A member
    /// that is done is in two of them.
    fn dump_requests(&self, from: u64, (most, most_bytes): (usize, usize)) -> Result<DumpPage> {
        let ids = |tree| {
            Ids::new(
                self.db
                    .range(tree, self.key(&[from]), self.key(&[u64::MAX])),
            )
        };
        let (mut rows, mut places) = (ids(Tree::Requests)?, ids(Tree::Places)?);
        let (mut outcomes, mut dead) = (ids(Tree::Outcomes)?, ids(Tree::Dead)?);
        let mut records = Vec::new();
        let mut bytes = 0;
        loop {
            let next = [&rows, &places, &outcomes, &dead];
            let Some(id) = next.into_iter().filter_map(Ids::id).min() else {
                return Ok(DumpPage {
                    damaged: Vec::new(),
                    records,
                    next: Some(DumpFrom::Batches),
                });
            };
            let key = self.key(&[id]);
            let row = read_some::<RequestV1>(Tree::Requests, &key, rows.take(id)?)?;
            let row = row.filter(|(request, _)| request.id == id);
            let place = read_some::<PlaceV1>(Tree::Places, &key, places.take(id)?)?;
            let outcome = read_some::<OutcomeV1>(Tree::Outcomes, &key, outcomes.take(id)?)?;
            let dead = read_some::<DeadV1>(Tree::Dead, &key, dead.take(id)?)?;
            let request = match (dead, row, place) {
                (Some((dead, body)), ..) => Some(settled(self.dead_entry(dead, &body, true)?)),
                (None, Some(row), _) => {
                    Some(self.dumped_waiting(id, PlaceV1::At(id), row, outcome)?)
                }
                (None, None, Some((place, _))) => {
                    let row = self.row_at(id, place)?;
                    Some(self.dumped_waiting(id, place, row, outcome)?)
                }
                (None, None, None) => outcome
                    .filter(|(outcome, _)| outcome.verdict == VerdictV1::Done)
                    .map(|(outcome, body)| self.dumped_done(id, outcome, &body))
                    .transpose()?,
            };
            let Some(request) = request else { continue };
            bytes += request.bytes();
            records.push(Record::Request(Box::new(request)));
            if records.len() >= most || bytes >= most_bytes {
                return Ok(DumpPage {
                    damaged: Vec::new(),
                    records,
                    next: Some(DumpFrom::Request(RequestId::from_u64(id))),
                });
            }
        }
    }

    /// The entry of a request that is not where it was pushed.
    fn row_at(&self, id: u64, place: PlaceV1) -> Result<(RequestV1, IVec)> {
        let (tree, key) = match place {
            PlaceV1::At(position) => (Tree::Requests, self.key(&[position])),
            PlaceV1::Delayed(due, position) => (Tree::Delayed, self.key(&[due, position])),
        };
        let row = self.db.load::<RequestV1>(tree, &key)?;
        row.filter(|(request, _)| request.id == id).ok_or_else(|| {
            let id = RequestId::from_u64(id);
            Error::corrupt(format!(
                "request {id} is not where its place says; run `repair` to save what can be read"
            ))
        })
    }

    /// A delayed or ready request, or a member of an open batch.
    fn dumped_waiting(
        &self,
        id: u64,
        place: PlaceV1,
        (request, body): (RequestV1, IVec),
        outcome: Option<(OutcomeV1, IVec)>,
    ) -> Result<StoredRequest> {
        let expires_at = request.expires_at.map(Timestamp::from_nanos);
        let (position, state) = match place {
            PlaceV1::Delayed(due, position) => (position, (State::Delayed, due)),
            PlaceV1::At(position) if position > self.queue.record.cursor => {
                (position, (State::Ready, request.ready_at))
            }
            PlaceV1::At(position) => {
                let member = self.dumped_member(position, (request, body), outcome)?;
                return Ok(StoredRequest {
                    expires_at,
                    ..member
                });
            }
        };
        debug_assert_eq!(request.id, id);
        Ok(StoredRequest {
            position: Some(Position::from_u64(position)),
            expires_at,
            ..settled(self.entry(request, &body, state, true)?)
        })
    }

    fn dumped_member(
        &self,
        position: u64,
        (request, body): (RequestV1, IVec),
        outcome: Option<(OutcomeV1, IVec)>,
    ) -> Result<StoredRequest> {
        let (id, attempts_before) = (request.id, request.attempts);
        let (batch_id, batch) = self.batch_of(id, position)?;
        let mark = self.key(&[id]);
        let is_cancelled = batch.marks > 0 && self.db.load::<MarkV1>(Tree::Marks, &mark)?.is_some();
        let at = (State::InFlight, batch.formed_at);
        let mut entry = self.entry(request, &body, at, true)?;
        entry.attempts += batch.prior + batch.attempt;
        entry.batch = Some(BatchId::from_u128(batch_id));
        let mut failed = None;
        match outcome {
            Some((outcome, body)) if outcome.verdict == VerdictV1::Done => {
                let payload = entry.payload.take();
                entry = Entry {
                    payload,
                    ..self.done_entry(id, outcome, &body)?
                };
            }
            Some((outcome, body)) => failed = Some(self.outcome(id, outcome, &body)?),
            None => {}
        }
        Ok(StoredRequest {
            position: Some(Position::from_u64(position)),
            member: Some(StoredMember {
                attempts_before,
                is_cancelled,
                outcome: failed,
            }),
            ..settled(entry)
        })
    }

    /// A done request whose batch has ended.
    fn dumped_done(&self, id: u64, outcome: OutcomeV1, body: &IVec) -> Result<StoredRequest> {
        let note = self.note(outcome.batch, Note::KeptUntil)?;
        let until = note.and_then(|until| until.first_chunk().copied());
        // Without a note it is about to be forgotten.
        let until = until.map_or(outcome.at, u64::from_be_bytes);
        Ok(StoredRequest {
            kept_until: Some(Timestamp::from_nanos(until)),
            ..settled(self.done_entry(id, outcome, body)?)
        })
    }

    pub(super) fn note(&self, batch: u128, note: Note) -> Result<Option<IVec>> {
        let key = keys::note(self.queue.id, batch, note);
        let note = self.db.load::<NoteV1>(Tree::Notes, &key)?;
        Ok(note.map(|(_, bytes)| bytes))
    }

    fn dump_batches(&self) -> Result<DumpPage> {
        let batches = self.queue.open.iter();
        let records = batches.map(|(id, batch)| self.dumped_batch(*id, batch).map(Record::Batch));
        Ok(DumpPage {
            damaged: Vec::new(),
            records: records.collect::<Result<_>>()?,
            next: Some(DumpFrom::Settled(None)),
        })
    }

    /// The checkpoint and the context of a batch.
    pub(super) fn notes(&self, id: u128, batch: &BatchV1) -> Result<(Option<Bytes>, Bytes)> {
        let note = |there: bool, note| -> Result<Option<Bytes>> {
            let note = if there { self.note(id, note)? } else { None };
            Ok(note.map(|bytes| Bytes::copy_from_slice(&bytes)))
        };
        let checkpoint = note(batch.checkpoint, Note::Checkpoint)?;
        let context = note(batch.context, Note::Context)?;
        Ok((checkpoint, context.unwrap_or_default()))
    }

    fn dumped_batch(&self, id: u128, batch: &BatchV1) -> Result<OpenBatch> {
        let (checkpoint, context) = self.notes(id, batch)?;
        let offered_from = (!batch.held && batch.until > 0).then_some(batch.until);
        Ok(OpenBatch {
            id: BatchId::from_u128(id),
            parent: batch.parent.map(BatchId::from_u128),
            attempt: batch.attempt,
            attempts_before: batch.prior,
            formed_at: Timestamp::from_nanos(batch.formed_at),
            offered_from: offered_from.map(Timestamp::from_nanos),
            context,
            checkpoint,
        })
    }

    fn dump_keys(&self, after: Option<Digest>) -> Result<DumpPage> {
        let from = keys::text(self.queue.id, &after.unwrap_or_default());
        let to = keys::text(self.queue.id, &[0xff; 16]);
        let (mut records, mut next) = (Vec::new(), DumpFrom::Bookmarks);
        for entry in self.db.range(Tree::Keys, from, to) {
            let (key, value) = entry?;
            let known_as: Digest = key[4..].try_into().map_err(|_| {
                Error::corrupt("a key is too short; run `repair` to save what can be read")
            })?;
            if after == Some(known_as) {
                continue;
            }
            if records.len() >= PAGE_RECORDS {
                break;
            }
            let (known, _) = db::read::<KeyV1>(Tree::Keys, &key, &value)?;
            records.push(Record::Key(KnownKey {
                key: known_as,
                id: RequestId::from_u64(known.id),
                payload: known.payload,
                expires_at: Timestamp::from_nanos(known.expires_at),
            }));
            next = DumpFrom::Keys(Some(known_as));
        }
        Ok(DumpPage {
            damaged: Vec::new(),
            records,
            next: Some(next),
        })
    }

    fn dump_end(&self) -> Result<DumpPage> {
        let from = keys::text(self.queue.id, b"");
        // No UTF-8 has such a byte.
        let to = keys::text(self.queue.id, &[0xff]);
        let mut records = Vec::new();
        for entry in self.db.range(Tree::Bookmarks, from, to) {
            let (key, value) = entry?;
            let (_, value) = db::read::<BookmarkV1>(Tree::Bookmarks, &key, &value)?;
            records.push(Record::Bookmark(Bookmark {
                source: String::from_utf8_lossy(&key[4..]).into_owned(),
                value: Bytes::copy_from_slice(&value),
            }));
        }
        let record = &self.queue.record;
        records.push(Record::Queue(QueueEnd {
            last_position: Position::from_u64(record.last_position),
            last_batch: BatchId::new(record.last_batch, record.salt),
            last_fence: Fence(record.last_fence),
            pushed: record.pushed,
            done: record.done,
            expired: record.expired,
            cancelled: record.cancelled,
            purged: record.purged,
        }));
        Ok(DumpPage {
            damaged: Vec::new(),
            records,
            next: None,
        })
    }
}

/// A request of which there is nothing to be said beside its entry.
fn settled(entry: Entry) -> StoredRequest {
    StoredRequest {
        entry,
        position: None,
        expires_at: None,
        member: None,
        kept_until: None,
    }
}

fn read_some<R: crate::queue::sled::record::Record>(
    tree: Tree,
    key: &[u8],
    value: Option<IVec>,
) -> Result<Option<(R, IVec)>> {
    value.map(|value| db::read(tree, key, &value)).transpose()
}

/// The entries of a tree by the ids or positions that their keys are.
struct Ids<'a> {
    entries: Range<'a>,
    next: Option<(u64, IVec)>,
}

impl<'a> Ids<'a> {
    fn new(entries: Range<'a>) -> Result<Self> {
        let mut ids = Self {
            entries,
            next: None,
        };
        ids.step()?;
        Ok(ids)
    }

    fn id(&self) -> Option<u64> {
        self.next.as_ref().map(|(id, _)| *id)
    }

    /// The value of this id, if it is the next one.
    fn take(&mut self, id: u64) -> Result<Option<IVec>> {
        if self.id() != Some(id) {
            return Ok(None);
        }
        let taken = self.next.take().map(|(_, value)| value);
        self.step()?;
        Ok(taken)
    }

    fn step(&mut self) -> Result<()> {
        let next = self.entries.next().transpose()?;
        self.next = next.map(|(key, value)| (keys::number(&key, 0), value));
        Ok(())
    }
}

/// So many ids of settled requests are one record.
const SETTLED: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
