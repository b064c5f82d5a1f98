//! Taking in what another queue dumped: under a number that is no queue's, which becomes the queue's at the end.
//!
//! ```text
//!   meta   'q' N                     the queue, which nothing was ever pushed to
//!          'i' N'                    what is under N' is not a queue yet: opening, or the next restore, deletes it
//!   other trees, with N' in front    requests, batches, keys … as they come, in many commits
//!   the end, one commit              'q' N' with N's name; 'q' N and 'i' N' are gone
//! ```
//! Requests come in order of their ids and rows are written in order of their positions, so those that got
//! another position wait in memory until it is reached: payloads of up to 1 KiB, larger ones are in parts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use super::{SLICE, Step, reason_number, result_of, shortened, update::verdict};
use crate::{
    batch::{BatchId, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        sled::{
            db::Db,
            keys::{self, Note, PartOf, Tree},
            record::{
                BatchV1, BookmarkV1, DeadV1, KeyExpiryV1, KeyV1, MarkV1, NoteV1, OutcomeV1,
                PlaceV1, QueueV1, RequestV1, VerdictV1,
            },
            state::QueueState,
            write::Write,
        },
        transfer::{
            KnownKey, OneQueue, OpenBatch, Order, QueueEnd, Record, StoredMember, StoredRequest,
            check_sums, check_unused, is_being_restored, no_batch, no_members, unfit, unordered,
        },
    },
    request::{DeadReason, Position, RequestId, State},
    stats::Stats,
};

/// What was taken in so far; nobody else sees it.
#[derive(Debug)]
pub(in crate::queue::sled) struct Incoming {
    queue: QueueState,
    rest: Rest,
    /// Whoever has it is the one that restores this queue.
    _turn: Arc<()>,
}

/// What is still to be put together.
#[derive(Debug, Default)]
struct Rest {
    order: Order,
    of: OneQueue,
    /// Batches that are still to come, as their members say.
    batches: BTreeMap<u128, Members>,
    /// Rows whose turn is to come, by position.
    moved: BTreeMap<u64, (RequestV1, Vec<u8>)>,
    /// Done requests by the time until which they are kept.
    kept: BTreeMap<u64, Vec<u64>>,
    /// The batch whose time was noted last.
    noted: Option<u128>,
    /// Settled requests whose place in the order of settling is still to come.
    unordered: u64,
    first_ready: Option<u64>,
    end: bool,
}

#[derive(Debug)]
struct Members {
    first: RequestId,
    batch: BatchV1,
}

impl Step<'_> {
    /// Deletes a slice of what an earlier restore left, so that other verbs come between two of them; whether
    /// there was one.
    pub(in crate::queue::sled) fn clear_before_restore(&mut self) -> Result<bool> {
        self.check_restore()?;
        clear_slice(self.db, keys::apart(self.queue.id))
    }

    fn check_restore(&self) -> Result<()> {
        self.check_unused()?;
        self.check_space()?;
        if self.queue.turn.strong_count() > 0 {
            return Err(is_being_restored());
        }
        Ok(())
    }

    /// Begins to take in a dump.
    pub(in crate::queue::sled) fn begin_restore(&mut self) -> Result<Incoming> {
        self.check_restore()?;
        let id = keys::apart(self.queue.id);
        // Only what another restore began and left since the last slice is there.
        clear(self.db, id)?;
        self.write.put_key(Tree::Meta, keys::incoming(id));
        self.db.commit(self.write)?;
        let turn = Arc::new(());
        self.queue.turn = Arc::downgrade(&turn);
        let record = QueueV1::new(&self.queue.record.name);
        let live = self.queue.live.clone();
        Ok(Incoming {
            queue: QueueState::new(id, record, self.queue.options, live),
            rest: Rest::default(),
            _turn: turn,
        })
    }

    fn check_unused(&self) -> Result<()> {
        let (from, to) = (
            keys::text(self.queue.id, b""),
            keys::text(self.queue.id, &[0xff]),
        );
        let bookmark = self.db.first(Tree::Bookmarks, from, to)?;
        check_unused(self.queue.record.pushed, bookmark.is_some())
    }

    /// Takes in the next records; with the last one, the queue is what they say, and there is no more to take in.
    pub(in crate::queue::sled) fn take_in(
        &mut self,
        mut incoming: Incoming,
        records: Vec<Record>,
    ) -> Result<Option<Incoming>> {
        self.check_space()?;
        let taken = self.take_in_apart(&mut incoming, records);
        if let Err(error) = taken {
            // The rest of it is under a number that the next restore clears.
            *self.write = Write::default();
            return Err(error);
        }
        self.db.commit(self.write)?;
        if incoming.rest.end {
            return self.become_queue(incoming.queue).map(|()| None);
        }
        Ok(Some(incoming))
    }

    fn take_in_apart(&mut self, incoming: &mut Incoming, records: Vec<Record>) -> Result<()> {
        let Incoming { queue, rest, .. } = incoming;
        let mut apart = Step {
            db: self.db,
            write: self.write,
            queue,
            low_space: self.low_space,
        };
        rest.order.check(&records)?;
        for record in records {
            apart.take_in_one(rest, record)?;
            if apart.write.is_large() {
                apart.db.commit(apart.write)?;
            }
        }
        if rest.end {
            self.check_unused()?;
        }
        Ok(())
    }

    fn take_in_one(&mut self, rest: &mut Rest, record: Record) -> Result<()> {
        match record {
            Record::Request(request) => self.take_in_request(rest, *request),
            Record::Batch(batch) => self.take_in_batch(rest, &batch),
            Record::Settled(ids) => self.take_in_settled(rest, &ids),
            Record::Key(key) => self.take_in_key(&key),
            Record::Bookmark(bookmark) => {
                let key = keys::text(self.queue.id, bookmark.source.as_bytes());
                self.write
                    .put(Tree::Bookmarks, key, &BookmarkV1 {}, &bookmark.value)
            }
            Record::Queue(end) => self.end_restore(rest, &end),
        }
    }

    fn take_in_request(&mut self, rest: &mut Rest, mut stored: StoredRequest) -> Result<()> {
        let entry = &stored.entry;
        let (id, state) = (entry.id.as_u64(), entry.state);
        let position = stored.position.map_or(id, Position::as_u64);
        entry.batch.map(|id| rest.of.formed(id)).transpose()?;
        let is_done = state == State::Done;
        if is_done {
            self.put_recorded(&stored, VerdictV1::Done)?;
            rest.unordered += 1;
            if stored.member.is_none() {
                return self.take_in_kept(rest, &stored);
            }
        }
        let payload = stored.entry.payload.take().unwrap_or_default();
        let (parts, body) = self.put_parts(id, PartOf::Payload, &payload)?;
        let bytes = payload.len() as u64;
        let request = row(&stored, bytes, parts);
        if state == State::Dead {
            rest.unordered += 1;
            return self.put_dead(&stored, request, body);
        }
        if !is_done {
            self.queue.record.held_bytes += bytes;
        }
        if let (State::Delayed | State::Ready, Some(at)) = (state, request.expires_at) {
            let key = self.key(&[at, id]);
            self.write.put_key(Tree::Expiry, key);
        }
        match (state, &stored.member, stored.entry.batch) {
            (State::Delayed, ..) => self.delay(request.ready_at, position, &request, body),
            (State::Ready, ..) => {
                let first = rest.first_ready.get_or_insert(position);
                *first = position.min(*first);
                self.queue.record.ready += 1;
                self.queue.record.ready_bytes += bytes;
                self.put_row(rest, position, request, body)
            }
            (_, Some(member), Some(batch)) => {
                self.take_in_member(rest, (&stored, member), (batch, position), bytes)?;
                self.put_row(rest, position, request, body)
            }
            _ => Err(unfit(stored.entry.id, "has no place")),
        }
    }

    /// Writes the row of a request once that of every smaller position is.
    fn put_row(
        &mut self,
        rest: &mut Rest,
        position: u64,
        request: RequestV1,
        body: &[u8],
    ) -> Result<()> {
        let id = RequestId::from_u64(request.id);
        if position < request.id {
            return Err(unfit(id, "has a position before its id"));
        }
        if rest.moved.contains_key(&position) {
            return Err(unfit(id, "has the position of another one"));
        }
        if position > request.id {
            let place = self.key(&[request.id]);
            self.write
                .put(Tree::Places, place, &PlaceV1::At(position), &[])?;
            rest.moved.insert(position, (request, body.to_vec()));
            return Ok(());
        }
        self.put_moved(rest, position)?;
        let key = self.key(&[position]);
        self.write.put_ready(&key, &request, body)
    }

    /// Writes the rows that waited, as far as their positions are smaller.
    fn put_moved(&mut self, rest: &mut Rest, before: u64) -> Result<()> {
        while let Some(first) = rest.moved.first_entry()
            && *first.key() < before
        {
            let (position, (request, body)) = first.remove_entry();
            let key = self.key(&[position]);
            self.write.put_ready(&key, &request, &body)?;
            if self.write.is_large() {
                self.db.commit(self.write)?;
            }
        }
        Ok(())
    }

    /// Counts a member of a batch that is still to come, and writes what is known of it beside its row.
    fn take_in_member(
        &mut self,
        rest: &mut Rest,
        (stored, member): (&StoredRequest, &StoredMember),
        (batch, position): (BatchId, u64),
        bytes: u64,
    ) -> Result<()> {
        let id = stored.entry.id;
        let members = rest.batches.entry(batch.as_u128());
        let members = members.or_insert_with(|| Members {
            first: id,
            batch: untold(),
        });
        let batch = &mut members.batch;
        (batch.first, batch.last) = (batch.first.min(position), batch.last.max(position));
        batch.requests += 1;
        batch.bytes += bytes;
        batch.marks += u32::from(member.is_cancelled);
        let is_done = stored.entry.state == State::Done;
        if member.outcome.is_some() {
            batch.verdicts += 1;
            batch.verdict_bytes += bytes;
        } else if !is_done {
            batch.open += 1;
            batch.open_bytes += bytes;
        }
        self.queue.record.in_flight += u64::from(!is_done);
        if let Some(outcome) = &member.outcome {
            self.put_recorded(stored, verdict(outcome))?;
        }
        if member.is_cancelled {
            let key = self.key(&[id.as_u64()]);
            self.write.put(Tree::Marks, key, &MarkV1 {}, &[])?;
        }
        Ok(())
    }

    /// Writes the outcome of a member or of a done request; its place in the order of settling comes later.
    fn put_recorded(&mut self, stored: &StoredRequest, verdict: VerdictV1) -> Result<()> {
        let entry = &stored.entry;
        let outcome = OutcomeV1 {
            batch: entry.batch.map_or(0, BatchId::as_u128),
            at: entry.at.as_nanos(),
            verdict,
            result: None,
            attempts: entry.attempts,
            pushed_at: entry.pushed_at.as_nanos(),
            attributes: entry.attributes.clone(),
            sequence: 0,
        };
        let done = Outcome::Done {
            result: entry.result.clone(),
        };
        self.put_outcome(entry.id.as_u64(), outcome, result_of(&done))
    }

    fn put_dead(&mut self, stored: &StoredRequest, request: RequestV1, body: &[u8]) -> Result<()> {
        let entry = &stored.entry;
        let key = self.key(&[request.id]);
        self.queue.record.dead += 1;
        let dead = DeadV1 {
            request,
            at: entry.at.as_nanos(),
            batch: entry.batch.map(BatchId::as_u128),
            reason: reason_number(entry.reason.unwrap_or(DeadReason::Rejected)),
            sequence: 0,
        };
        self.write.put(Tree::Dead, key, &dead, body)
    }

    /// Takes in until when a done request is kept.
    fn take_in_kept(&mut self, rest: &mut Rest, stored: &StoredRequest) -> Result<()> {
        let entry = &stored.entry;
        let until = stored.kept_until.map_or(u64::MAX, Timestamp::as_nanos);
        let batch = entry.batch.map_or(0, BatchId::as_u128);
        if rest.noted.replace(batch) != Some(batch) {
            self.note_kept(batch, until)?;
        }
        let ids = rest.kept.entry(until).or_default();
        ids.push(entry.id.as_u64());
        if ids.len() >= SLICE {
            let ids = std::mem::take(ids);
            let number = self.settling().sequence;
            self.keep(until, number, ids)?;
        }
        Ok(())
    }

    fn take_in_batch(&mut self, rest: &mut Rest, told: &OpenBatch) -> Result<()> {
        let id = told.id.as_u128();
        rest.of.formed(told.id)?;
        told.parent.map(|id| rest.of.formed(id)).transpose()?;
        let members = rest.batches.remove(&id);
        let members = members.ok_or_else(|| no_members(told.id))?;
        let batch = BatchV1 {
            formed_at: told.formed_at.as_nanos(),
            parent: told.parent.map(BatchId::as_u128),
            prior: told.attempts_before,
            attempt: told.attempt,
            until: told.offered_from.map_or(0, Timestamp::as_nanos),
            checkpoint: told.checkpoint.is_some(),
            context: !told.context.is_empty(),
            ..members.batch
        };
        let context = Some(&told.context).filter(|context| !context.is_empty());
        for (note, bytes) in [
            (Note::Context, context),
            (Note::Checkpoint, told.checkpoint.as_ref()),
        ] {
            if let Some(bytes) = bytes {
                let key = keys::note(self.queue.id, id, note);
                self.write.put(Tree::Notes, key, &NoteV1 {}, bytes)?;
            }
        }
        self.put_batch(id, &batch)?;
        self.queue.open.insert(id, batch);
        Ok(())
    }

    fn take_in_settled(&mut self, rest: &mut Rest, ids: &[RequestId]) -> Result<()> {
        for ids in ids.chunks(SLICE) {
            let mut settling = self.settling();
            for id in ids {
                self.order_settled(*id, settling.sequence)?;
                settling.ids.push(id.as_u64());
                rest.unordered = rest.unordered.saturating_sub(1);
                if self.write.is_large() {
                    self.db.commit(self.write)?;
                }
            }
            self.put_settled(settling)?;
        }
        Ok(())
    }

    /// Gives a settled request its place in the order of settling.
    fn order_settled(&mut self, id: RequestId, sequence: u64) -> Result<()> {
        let key = self.key(&[id.as_u64()]);
        if let Some((dead, body)) = self.load::<DeadV1>(Tree::Dead, &key)?
            && dead.sequence == 0
        {
            let dead = DeadV1 { sequence, ..dead };
            return self.write.put(Tree::Dead, key, &dead, &body);
        }
        if let Some((done, body)) = self.load::<OutcomeV1>(Tree::Outcomes, &key)?
            && done.verdict == VerdictV1::Done
            && done.sequence == 0
        {
            let done = OutcomeV1 { sequence, ..done };
            return self.write.put(Tree::Outcomes, key, &done, &body);
        }
        Err(unfit(id, "is not settled, or twice"))
    }

    fn take_in_key(&mut self, key: &KnownKey) -> Result<()> {
        let (id, expires_at) = (key.id.as_u64(), key.expires_at.as_nanos());
        let known = KeyV1 {
            id,
            payload: key.payload,
            expires_at,
        };
        let known_as = keys::text(self.queue.id, &key.key);
        self.write.put(Tree::Keys, known_as, &known, &[])?;
        let at = self.key(&[expires_at, id]);
        let expiry = KeyExpiryV1 { key: key.key };
        self.write.put(Tree::KeyExpiry, at, &expiry, &[])
    }

    /// Writes what is left, and checks that all is there.
    fn end_restore(&mut self, rest: &mut Rest, end: &QueueEnd) -> Result<()> {
        rest.of.formed(end.last_batch)?;
        if let Some((batch, members)) = rest.batches.first_key_value() {
            return Err(no_batch(members.first, BatchId::from_u128(*batch)));
        }
        if rest.unordered > 0 {
            return Err(unordered(rest.unordered));
        }
        self.put_moved(rest, u64::MAX)?;
        for (until, ids) in std::mem::take(&mut rest.kept) {
            if !ids.is_empty() {
                let number = self.settling().sequence;
                self.keep(until, number, ids)?;
            }
        }
        let record = &mut self.queue.record;
        record.cursor = check_ranges(&self.queue.open, rest.first_ready)?;
        record.last_position = end.last_position.as_u64();
        (record.last_batch, record.salt) = end.last_batch.halves();
        record.last_fence = end.last_fence.0;
        (record.pushed, record.done) = (end.pushed, end.done);
        (record.expired, record.cancelled) = (end.expired, end.cancelled);
        record.purged = end.purged;
        rest.end = true;
        check_sums(&Stats {
            pushed: record.pushed,
            delayed: record.delayed,
            ready: record.ready,
            in_flight: record.in_flight,
            done: record.done,
            dead: record.dead,
            expired: record.expired,
            cancelled: record.cancelled,
            purged: record.purged,
            ..Stats::default()
        })
    }

    /// Becomes what was taken in, in one commit.
    fn become_queue(&mut self, apart: QueueState) -> Result<()> {
        let before = self.queue.id;
        *self.queue = QueueState {
            options: self.queue.options,
            wake: true,
            turn: Weak::new(),
            ..apart
        };
        self.write.delete(Tree::Meta, keys::incoming(self.queue.id));
        self.write.delete(Tree::Meta, keys::queue_record(before));
        self.commit()?;
        self.queue.find_directives(self.db)?;
        self.queue.find_oldest(self.db)?;
        self.queue.find_next(self.db)
    }
}

/// Deletes all that is under a number which is no queue's.
pub(in crate::queue::sled) fn clear(db: &Db, queue: u32) -> Result<()> {
    while clear_slice(db, queue)? {}
    Ok(())
}

/// Deletes a slice of it, in one commit; whether there was one.
fn clear_slice(db: &Db, queue: u32) -> Result<bool> {
    let mut write = Write::default();
    for chunk in db.chunks((queue, 0), (queue, u64::MAX)).take(SLICE) {
        write.delete_chunk(&chunk?);
    }
    let (from, to) = (keys::key(queue, &[]), keys::key(queue, &[u64::MAX; 80]));
    for (tree, _) in Tree::ALL {
        if matches!(tree, Tree::Meta | Tree::Requests) || !write.is_empty() {
            continue;
        }
        for entry in db.range(tree, from.clone(), to.clone()) {
            write.delete(tree, entry?.0.to_vec());
            if write.is_large() {
                break;
            }
        }
    }
    let is_any = !write.is_empty();
    db.commit(&mut write)?;
    Ok(is_any)
}

/// The last position of any batch: each is a range of positions for itself, before all ready requests.
fn check_ranges(open: &BTreeMap<u128, BatchV1>, first_ready: Option<u64>) -> Result<u64> {
    let mut ranges: Vec<_> = open
        .values()
        .map(|batch| (batch.first, batch.last))
        .collect();
    ranges.sort_unstable();
    let last = ranges.last().map_or(0, |(_, last)| *last);
    let apart = ranges.is_sorted_by(|one, next| one.1 < next.0);
    if !apart || first_ready.is_some_and(|first| first <= last) {
        return Err(Error::invalid(
            "the dump has batches whose positions are not apart from those of other requests",
        ));
    }
    Ok(last)
}

/// A request's row, without its payload.
fn row(stored: &StoredRequest, bytes: u64, parts: u32) -> RequestV1 {
    let entry = &stored.entry;
    let member = stored.member.as_ref();
    RequestV1 {
        id: entry.id.as_u64(),
        pushed_at: entry.pushed_at.as_nanos(),
        ready_at: entry.at.as_nanos(),
        expires_at: stored.expires_at.map(Timestamp::as_nanos),
        attempts: member.map_or(entry.attempts, |member| member.attempts_before),
        error: entry.error.clone().map(shortened),
        attributes: entry.attributes.clone(),
        bytes,
        parts,
    }
}

/// A batch of which only members are known.
fn untold() -> BatchV1 {
    BatchV1 {
        first: u64::MAX,
        last: 0,
        requests: 0,
        bytes: 0,
        formed_at: 0,
        parent: None,
        prior: 0,
        attempt: 0,
        fence: 0,
        held: false,
        until: 0,
        open: 0,
        open_bytes: 0,
        verdicts: 0,
        verdict_bytes: 0,
        marks: 0,
        checkpoint: false,
        context: false,
        staging: false,
        ending: None,
    }
}
