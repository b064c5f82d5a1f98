//! Dumping and restoring a queue on a Redis server.
//!
//! A restore takes in a queue beside the one that is there, under keys that begin with `restore:`; its end
//! renames them, in one step, whatever the depth. Payloads are written where they will be, which nobody sees:
//! no request has their ids. What a restore that did not end leaves on the server is deleted by the next one.

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    RedisQueue,
    codec::{
        Record as Columns, damaged, decimal, digits, hex, parse_count, parse_decimal, parse_digits,
        parse_hex, parse_outcome, parse_time,
    },
    restore::Restoring,
    script::SCRIPTS,
};
use crate::{
    batch::{BatchId, Fence, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        Administration,
        transfer::{
            Digest, DumpFrom, DumpPage, KnownKey, OpenBatch, PAGE_BYTES, PAGE_RECORDS, QueueEnd,
            Record, Restore, StoredMember, StoredRequest, Transfer,
        },
    },
    request::{Bookmark, DeadReason, Position, RequestId, State},
};

#[async_trait]
impl Transfer for RedisQueue {
    async fn dump(&self, now: Timestamp, from: DumpFrom) -> Result<DumpPage> {
        match from {
            DumpFrom::Start => self.dump_requests(now, Bytes::new()).await,
            DumpFrom::Request(after) => self.dump_requests(now, hex(after.as_u64())).await,
            DumpFrom::Batches => self.dump_batches(now).await,
            DumpFrom::Settled(after) => {
                let page = self.results(now, after, SETTLED).await?;
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
            DumpFrom::Keys(after) => self.dump_keys(now, after).await,
            DumpFrom::Bookmarks => self.dump_end(now).await,
        }
    }

    async fn restore(&self) -> Result<Box<dyn Restore + '_>> {
        Ok(Box::new(Restoring::begin(self).await?))
    }
}

impl RedisQueue {
    async fn dump_page(
        &self,
        now: Timestamp,
        what: &'static str,
        after: Bytes,
    ) -> Result<Vec<Bytes>> {
        let args = [
            what.into(),
            after,
            decimal(&PAGE_RECORDS),
            decimal(&PAGE_BYTES),
        ];
        self.calls.ask(&SCRIPTS.dump, now, &args).await
    }

    async fn dump_requests(&self, now: Timestamp, after: Bytes) -> Result<DumpPage> {
        let reply = self.dump_page(now, "requests", after).await?;
        let [_, last, values @ ..] = &reply[..] else {
            return Err(damaged("a page of a dump"));
        };
        let mut next = match &last[..] {
            b"" => DumpFrom::Batches,
            last => DumpFrom::Request(RequestId::from_u64(parse_hex(last)?)),
        };
        let (mut page, mut bytes) = (Vec::new(), 0);
        for values in values.chunks_exact(6) {
            let (request, size) = self.parse_stored(values)?;
            bytes += size;
            if bytes > PAGE_BYTES as u64
                && let Some((StoredRequest { entry, .. }, _)) = page.last()
            {
                next = DumpFrom::Request(entry.id);
                break;
            }
            page.push((request, size));
        }
        let with_payload = |request: &StoredRequest| {
            request.member.is_some() || request.entry.state != State::Done
        };
        let held = page.iter().filter(|(request, _)| with_payload(request));
        let ids: Vec<RequestId> = held.map(|(request, _)| request.entry.id).collect();
        let mut payloads = self.payloads(&ids).await?.into_iter();
        let mut records = Vec::with_capacity(page.len());
        for (mut request, _) in page {
            if with_payload(&request) {
                let id = request.entry.id;
                request.entry.payload = match payloads.next().flatten() {
                    None if is_damaged(&request) => Some(Bytes::new()),
                    None => return Err(changed(id)),
                    payload => payload,
                };
            }
            records.push(Record::Request(Box::new(request)));
        }
        Ok(DumpPage {
            damaged: Vec::new(),
            records,
            next: Some(next),
        })
    }

    /// A request without its payload, and the bytes of that.
    fn parse_stored(&self, values: &[Bytes]) -> Result<(StoredRequest, u64)> {
        let columns = Columns::parse(values[2].clone())?;
        let entry = columns.entry(
            RequestId::from_u64(parse_hex(&values[0])?),
            values[1].first().copied().unwrap_or_default(),
            &values[3],
            parse_decimal(&values[4])?,
            self.calls.salt(),
        )?;
        let (state, recorded) = (entry.state, &values[5][..]);
        let member = match (state, recorded) {
            (State::InFlight, b"") => Some((columns.attempts()?, None)),
            (State::InFlight, recorded) => {
                Some((columns.attempts()?, Some(parse_outcome(recorded)?)))
            }
            (State::Done, [b'd', earlier @ ..]) => Some((parse_count(earlier)?, None)),
            _ => None,
        };
        let is_kept = state == State::Done && member.is_none();
        let is_placed = member.is_some() || matches!(state, State::Delayed | State::Ready);
        let stored = StoredRequest {
            position: is_placed.then(|| columns.position()).transpose()?,
            expires_at: if is_placed {
                columns.expires_at()?
            } else {
                None
            },
            member: member.map(|(attempts_before, outcome)| StoredMember {
                attempts_before,
                is_cancelled: columns.is_marked(),
                outcome,
            }),
            kept_until: is_kept.then(|| columns.kept_until()).transpose()?,
            entry,
        };
        let size = if is_kept { 0 } else { columns.size()? };
        Ok((stored, size))
    }

    async fn dump_batches(&self, now: Timestamp) -> Result<DumpPage> {
        let reply = self.dump_page(now, "batches", Bytes::new()).await?;
        let mut batches = Vec::new();
        for values in reply[1..].chunks_exact(9) {
            let batch = |half: &Bytes| Ok(BatchId::new(parse_hex(half)?, self.calls.salt()));
            let given = |value: &Bytes| Some(value.clone()).filter(|value| !value.is_empty());
            batches.push(OpenBatch {
                id: batch(&values[0])?,
                parent: given(&values[1]).map(|parent| batch(&parent)).transpose()?,
                attempt: parse_decimal(&values[2])?,
                attempts_before: parse_decimal(&values[3])?,
                formed_at: parse_time(&values[4])?,
                offered_from: given(&values[5]).map(|at| parse_time(&at)).transpose()?,
                context: values[6].clone(),
                checkpoint: (values[7] == "1").then(|| values[8].clone()),
            });
        }
        batches.sort_unstable_by_key(|batch| batch.id);
        Ok(DumpPage {
            damaged: Vec::new(),
            records: batches.into_iter().map(Record::Batch).collect(),
            next: Some(DumpFrom::Settled(None)),
        })
    }

    async fn dump_keys(&self, now: Timestamp, after: Option<Digest>) -> Result<DumpPage> {
        let after = after.map_or(Bytes::new(), |key| digits(&key));
        let reply = self.dump_page(now, "keys", after).await?;
        let [_, last, known @ ..] = &reply[..] else {
            return Err(damaged("a page of a dump"));
        };
        let known = known.iter().map(|known| {
            if known.len() != 96 {
                return Err(damaged("an idempotency key"));
            }
            Ok(Record::Key(KnownKey {
                key: parse_digits(&known[..32])?,
                id: RequestId::from_u64(parse_hex(&known[32..48])?),
                expires_at: parse_time(&known[48..64])?,
                payload: parse_digits(&known[64..])?,
            }))
        });
        Ok(DumpPage {
            damaged: Vec::new(),
            records: known.collect::<Result<_>>()?,
            next: Some(match &last[..] {
                b"" => DumpFrom::Bookmarks,
                last => DumpFrom::Keys(Some(parse_digits(last)?)),
            }),
        })
    }

    async fn dump_end(&self, now: Timestamp) -> Result<DumpPage> {
        let reply = self.dump_page(now, "end", Bytes::new()).await?;
        let [
            _,
            last,
            last_batch,
            fence,
            pushed,
            done,
            expired,
            cancelled,
            purged,
            bookmarks @ ..,
        ] = &reply[..]
        else {
            return Err(damaged("the end of a dump"));
        };
        let mut all = Vec::new();
        for bookmark in bookmarks.chunks_exact(2) {
            all.push(Bookmark {
                source: String::from_utf8(bookmark[0].to_vec())
                    .map_err(|error| damaged("the source of a bookmark").with_source(error))?,
                value: bookmark[1].clone(),
            });
        }
        all.sort_unstable_by(|one, other| one.source.cmp(&other.source));
        let mut records: Vec<_> = all.into_iter().map(Record::Bookmark).collect();
        records.push(Record::Queue(QueueEnd {
            last_position: Position::from_u64(parse_hex(last)?),
            last_batch: BatchId::new(parse_hex(last_batch)?, self.calls.salt()),
            last_fence: Fence(parse_hex(fence)?),
            pushed: parse_decimal(pushed)?,
            done: parse_decimal(done)?,
            expired: parse_decimal(expired)?,
            cancelled: parse_decimal(cancelled)?,
            purged: parse_decimal(purged)?,
        }));
        Ok(DumpPage {
            damaged: Vec::new(),
            records,
            next: None,
        })
    }
}

/// Whether it is known that its payload is gone.
fn is_damaged(request: &StoredRequest) -> bool {
    let member = request.member.as_ref();
    let recorded = match member.and_then(|member| member.outcome.as_ref()) {
        Some(Outcome::Reject { reason, .. }) => Some(*reason),
        _ => None,
    };
    recorded.or(request.entry.reason) == Some(DeadReason::Damaged)
}

/// A payload was not there any more when it was asked for.
fn changed(id: RequestId) -> Error {
    Error::unavailable(format!(
        "request {id} was settled while the queue was dumped, or something else deleted its payload; dump it when nothing else uses it"
    ))
}

/// So many ids of settled requests are one record.
const SETTLED: std::num::NonZeroU32 = std::num::NonZeroU32::new(1000).expect("not zero");
