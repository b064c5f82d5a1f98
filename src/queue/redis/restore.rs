//! Taking in what another queue dumped: what is to be written is decided here, the scripts write it.

use std::{collections::BTreeMap, mem};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    RedisQueue,
    codec::{Row, damaged, decimal, digits, hex, outcome, parse_decimal, parse_hex, time},
    connection::token,
    push::{MAX_INLINE_BYTES, OVERHEAD_BYTES},
    script::{SCRIPTS, Script},
};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    error::Result,
    fault::point,
    queue::transfer::{
        KnownKey, OneQueue, OpenBatch, Order, QueueEnd, Record, Restore, StoredMember,
        StoredRequest, check_sums, check_unused, is_being_restored, is_over, no_batch, no_members,
        unfit, unordered,
    },
    request::{Position, RequestId, State},
    stats::Stats,
};

/// A queue that takes in records.
pub(super) struct Restoring<'a> {
    queue: &'a RedisQueue,
    /// Tells it from other restores of the queue.
    name: Bytes,
    incoming: Option<Incoming>,
}

/// What was taken in so far.
#[derive(Default)]
struct Incoming {
    order: Order,
    of: OneQueue,
    /// Members whose batches are still to come, by the formed halves of those.
    members: BTreeMap<u64, Members>,
    /// Settled requests whose place in the order of settling is still to come.
    unordered: u64,
    counts: Stats,
    /// Writes and payloads that are not sent yet.
    writes: Vec<Bytes>,
    payloads: Vec<(RequestId, Bytes)>,
}

struct Members {
    first: RequestId,
    requests: u64,
    open: u64,
    bytes: u64,
}

impl<'a> Restoring<'a> {
    pub(super) async fn begin(queue: &'a RedisQueue) -> Result<Self> {
        let name = Bytes::from(token());
        loop {
            let args = [name.clone()];
            let reply = queue
                .calls
                .change(&SCRIPTS.restore_begin, Timestamp::EPOCH, &args);
            match &reply.await?[..] {
                [status] if status == "more" => {}
                reply => {
                    check(reply)?;
                    return Ok(Self {
                        queue,
                        name,
                        incoming: Some(Incoming::default()),
                    });
                }
            }
        }
    }

    /// Runs a script on what was taken in.
    async fn run(&self, script: &Script, args: Vec<Bytes>) -> Result<()> {
        let _open = self.queue.calls.check_open().await?;
        let args = [vec![self.name.clone()], args].concat();
        let key = self.queue.calls.keys.restoring();
        let now = time(Timestamp::EPOCH);
        let link = &self.queue.calls.shared.link;
        check(&link.eval_once(script, &key, now, &args).await?)?;
        point("redis.taken_in");
        Ok(())
    }

    /// Sends what is to be written; payloads after that which names them, so that the next restore finds
    /// all of a part.
    async fn flush(&self, incoming: &mut Incoming) -> Result<()> {
        let writes = mem::take(&mut incoming.writes);
        if !writes.is_empty() {
            self.run(&SCRIPTS.restore_take, writes).await?;
        }
        let mut payloads = mem::take(&mut incoming.payloads).into_iter().peekable();
        while payloads.peek().is_some() {
            let mut args = Vec::new();
            let mut bytes = 0;
            while bytes < MAX_INLINE_BYTES
                && let Some((id, payload)) = payloads.next()
            {
                bytes += payload.len() as u64 + OVERHEAD_BYTES;
                args.extend(["p".into(), hex(id.as_u64()), payload]);
            }
            self.run(&SCRIPTS.restore_take, args).await?;
        }
        Ok(())
    }

    async fn end(&self, incoming: &mut Incoming, end: &QueueEnd) -> Result<()> {
        incoming.check_end(end)?;
        let (last_batch, salt) = end.last_batch.halves();
        let counts = &incoming.counts;
        let numbers = [
            end.pushed,
            end.done,
            end.expired,
            end.cancelled,
            end.purged,
            counts.ready_bytes,
            counts.held_bytes,
        ];
        let mut args = vec![
            self.name.clone(),
            hex(salt),
            hex(end.last_position.as_u64()),
            hex(last_batch),
            hex(end.last_fence.0),
        ];
        args.extend(numbers.iter().map(decimal));
        let reply = self
            .queue
            .calls
            .change(&SCRIPTS.restore_end, Timestamp::EPOCH, &args);
        check(&reply.await?)
    }
}

#[async_trait]
impl Restore for Restoring<'_> {
    async fn add(&mut self, records: Vec<Record>) -> Result<()> {
        // What fails is forgotten.
        let mut incoming = self.incoming.take().ok_or_else(is_over)?;
        incoming.order.check(&records)?;
        for record in records {
            match record {
                Record::Request(request) => incoming.take_in_request(*request)?,
                Record::Batch(batch) => incoming.take_in_batch(batch)?,
                Record::Settled(ids) => {
                    self.flush(&mut incoming).await?;
                    for ids in ids.chunks(SLICE) {
                        let args = ids.iter().map(|id| hex(id.as_u64())).collect();
                        self.run(&SCRIPTS.restore_settled, args).await?;
                    }
                    incoming.unordered = incoming.unordered.saturating_sub(ids.len() as u64);
                }
                Record::Key(key) => incoming.take_in_key(&key),
                Record::Bookmark(bookmark) => {
                    let source = Bytes::from(bookmark.source);
                    incoming.set("bookmarks", source, bookmark.value);
                }
                Record::Queue(end) => {
                    self.flush(&mut incoming).await?;
                    return self.end(&mut incoming, &end).await;
                }
            }
        }
        self.flush(&mut incoming).await?;
        self.incoming = Some(incoming);
        Ok(())
    }
}

impl Incoming {
    /// A field of a hash.
    fn set(&mut self, key: impl Into<Bytes>, field: Bytes, value: Bytes) {
        self.writes.extend(["h".into(), key.into(), field, value]);
    }

    /// A member of an ordered set.
    fn add(&mut self, key: impl Into<Bytes>, member: &[&[u8]]) {
        self.writes
            .extend(["z".into(), key.into(), member.concat().into()]);
    }

    fn take_in_request(&mut self, mut stored: StoredRequest) -> Result<()> {
        let payload = stored.entry.payload.take();
        let entry = &stored.entry;
        let (id, state) = (entry.id, entry.state);
        let batch = entry.batch.map(|batch| self.of.formed(batch)).transpose()?;
        let position = stored.position.map_or(id.as_u64(), Position::as_u64);
        let bytes = payload.as_ref().map_or(0, Bytes::len) as u64;
        let row = Row {
            stored: &stored,
            position,
            batch: batch.unwrap_or(0),
            bytes,
        };
        self.set("requests", hex(id.as_u64()), row.encode()?);
        let (member, place) = (hex(id.as_u64()), hex(position));
        let size: Bytes = format!("{bytes:08x}").into();
        if let (State::Delayed | State::Ready, Some(at)) = (state, stored.expires_at) {
            self.add("expiry", &[&time(at), &member]);
        }
        match state {
            State::Delayed => {
                self.counts.delayed += 1;
                self.add("delayed", &[&member]);
                self.add("due", &[&time(entry.at), &place, &member]);
            }
            State::Ready => {
                self.counts.ready += 1;
                self.counts.ready_bytes += bytes;
                if position != id.as_u64() {
                    self.add("moved", &[&member]);
                }
                self.add("ready", &[&place, &member, &size]);
            }
            State::Dead => {
                self.counts.dead += 1;
                self.unordered += 1;
                self.add("dead", &[&member]);
            }
            State::InFlight | State::Done => {
                let is_done = state == State::Done;
                if is_done {
                    self.unordered += 1;
                    self.add("done", &[&member]);
                }
                if let (Some(of), Some(batch)) = (&stored.member, batch) {
                    let key = format!("members:{batch:016x}");
                    self.add(key, &[&place, &member, &size]);
                    self.take_in_member(&stored, of, batch, bytes);
                } else {
                    let until = stored.kept_until.unwrap_or(Timestamp::MAX);
                    self.add("retained", &[&time(until), &member]);
                }
            }
            State::Expired | State::Cancelled => return Err(unfit(id, "has no place")),
        }
        if matches!(state, State::Delayed | State::Ready | State::InFlight) {
            self.counts.held_bytes += bytes;
        }
        let is_held = stored.member.is_some() || state != State::Done;
        self.payloads
            .extend(payload.filter(|_| is_held).map(|payload| (id, payload)));
        Ok(())
    }

    /// Counts a member of a batch that is still to come, and takes in its outcome.
    fn take_in_member(
        &mut self,
        stored: &StoredRequest,
        member: &StoredMember,
        batch: u64,
        bytes: u64,
    ) {
        let id = stored.entry.id;
        let is_done = stored.entry.state == State::Done;
        if !self.members.contains_key(&batch) {
            self.add("batches", &[&hex(batch)]);
        }
        let members = self.members.entry(batch).or_insert(Members {
            first: id,
            requests: 0,
            open: 0,
            bytes: 0,
        });
        members.requests += 1;
        members.open += u64::from(!is_done && member.outcome.is_none());
        members.bytes += bytes;
        if !is_done {
            self.counts.in_flight += 1;
            self.add("flight", &[&hex(id.as_u64()), &hex(batch)]);
        }
        let recorded = match &member.outcome {
            _ if is_done => Some(format!("d{:08x}", member.attempts_before).into()),
            recorded => recorded.as_ref().map(outcome),
        };
        if let Some(recorded) = recorded {
            let key = format!("outcomes:{batch:016x}");
            self.set(key, hex(id.as_u64()), recorded);
        }
    }

    fn take_in_batch(&mut self, batch: OpenBatch) -> Result<()> {
        let id = self.of.formed(batch.id)?;
        let parent = batch.parent.map(|parent| self.of.formed(parent));
        let parent = parent.transpose()?;
        let members = self.members.remove(&id);
        let members = members.ok_or_else(|| no_members(batch.id))?;
        let until = time(batch.offered_from.unwrap_or(Timestamp::EPOCH));
        self.add("offers", &[&until, &hex(id)]);
        let fields = [
            ("parent", parent.map_or(Bytes::new(), hex)),
            ("fence", Bytes::new()),
            ("attempt", decimal(&batch.attempt)),
            ("prior", decimal(&batch.attempts_before)),
            ("requests", decimal(&members.requests)),
            ("open", decimal(&members.open)),
            ("bytes", decimal(&members.bytes)),
            ("formed_at", time(batch.formed_at)),
            ("until", until),
            ("context", batch.context),
        ];
        let checkpoint = batch.checkpoint.map(|bytes| ("checkpoint", bytes));
        let key = Bytes::from(format!("batch:{id:016x}"));
        for (field, value) in fields.into_iter().chain(checkpoint) {
            self.set(key.clone(), field.into(), value);
        }
        Ok(())
    }

    fn take_in_key(&mut self, key: &KnownKey) {
        let (known_as, expires) = (digits(&key.key), time(key.expires_at));
        let id = hex(key.id.as_u64());
        self.add("keyed", &[&expires, &known_as]);
        self.add("keys", &[&known_as, &id, &expires, &digits(&key.payload)]);
    }

    /// Checks that all is there.
    fn check_end(&mut self, end: &QueueEnd) -> Result<()> {
        self.of.formed(end.last_batch)?;
        if let Some((batch, members)) = self.members.first_key_value() {
            let batch = BatchId::new(*batch, end.last_batch.halves().1);
            return Err(no_batch(members.first, batch));
        }
        if self.unordered > 0 {
            return Err(unordered(self.unordered));
        }
        check_sums(&Stats {
            pushed: end.pushed,
            done: end.done,
            expired: end.expired,
            cancelled: end.cancelled,
            purged: end.purged,
            ..self.counts
        })
    }
}

/// What the scripts of a restore answer.
fn check(reply: &[Bytes]) -> Result<()> {
    match reply {
        [status] if status == "ok" => Ok(()),
        [status] if status == "lost" => Err(is_being_restored()),
        // Without requests there are bookmarks.
        [status, pushed] if status == "used" => check_unused(parse_decimal(pushed)?, true),
        [status, id] if status == "unfit" => {
            let id = RequestId::from_u64(parse_hex(id)?);
            Err(unfit(id, "is not settled, or twice"))
        }
        _ => Err(damaged("a reply")),
    }
}

/// So many ids get their place in one step.
const SLICE: usize = 1000;
