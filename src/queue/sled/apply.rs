//! The verbs as steps of the writer: decide on what is in memory, collect what to write, commit.
//!
//! A request's entry is in exactly one of `requests`, `delayed` and `dead`, and moves as a whole; a
//! payload above [`INLINE_BYTES`] lies in `parts` under the request's id and never moves. A step checks
//! everything that can be wrong with its arguments before it changes anything, so whatever fails later
//! is the disk, and poisons the store.

mod admin;
mod advance;
mod claim;
mod push;
mod restore;
mod settle;
mod update;

use std::collections::BTreeMap;

use super::{
    db::{self, Db},
    keys::{self, PartOf, Tree},
    record::{DeadV1, OutcomeV1, PartV1, PlaceV1, Record, RequestV1, ResultV1, SettledV1},
    state::QueueState,
    write::{Collected, Write},
};
pub(super) use crate::queue::stored::reason;
use crate::queue::stored::{reason_number, shortened};
use crate::{
    batch::{Lease, Outcome},
    clock::Timestamp,
    error::{Error, Result},
    request::DeadReason,
};

pub(super) use self::{
    claim::formed,
    push::{Keyed, PushPlan},
    restore::{Incoming, clear},
};

/// Payloads and results up to this size lie in their record; larger ones in parts.
pub(super) const INLINE_BYTES: usize = 1 << 10;
/// The largest part. sled keeps pages of up to 17 values in its log only while they are under a
/// quarter of a segment of 8 MiB; what is larger goes to files that it never syncs.
pub(super) const PART_BYTES: usize = 60 << 10;
/// How many requests one transaction moves.
const SLICE: usize = 256;

/// One verb on one queue, on the writer's thread.
pub(super) struct Step<'a> {
    pub(super) db: &'a Db,
    pub(super) write: &'a mut Write,
    pub(super) queue: &'a mut QueueState,
    /// Why there is no room on the disk, if so.
    pub(super) low_space: Option<&'a str>,
}

/// A waiting request's entry: where it is, and what it says.
struct Waiting {
    tree: Tree,
    key: Vec<u8>,
    request: RequestV1,
}

/// Ids settled in one step, to be written as one entry of `settled`.
struct Settling {
    sequence: u64,
    ids: Vec<u64>,
}

impl Step<'_> {
    /// Writes what was collected, and the queue's record with it.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.put_queue();
        self.db.commit(self.write)
    }

    fn put_queue(&mut self) {
        self.write.put_queue(self.queue.id, &self.queue.record);
    }

    fn key(&self, numbers: &[u64]) -> Vec<u8> {
        keys::key(self.queue.id, numbers)
    }

    /// A record as this step sees it: what it collected, else what is stored.
    fn load<R: Record>(&self, tree: Tree, key: &[u8]) -> Result<Option<(R, sled::IVec)>> {
        match self.write.get(tree, key) {
            Collected::Nothing => self.db.load(tree, key),
            Collected::Deleted => Ok(None),
            Collected::Value(value) => db::read(tree, key, &sled::IVec::from(value)).map(Some),
        }
    }

    fn next_position(&self, now: Timestamp) -> u64 {
        now.as_nanos()
            .max(self.queue.record.last_position.saturating_add(1))
    }

    /// Where a request is that waits or is a member.
    fn place(&self, id: u64) -> Result<PlaceV1> {
        let place = self.load::<PlaceV1>(Tree::Places, &self.key(&[id]))?;
        Ok(place.map_or(PlaceV1::At(id), |(place, _)| place))
    }

    /// The entry of a request that is ready or delayed.
    fn waiting(&self, id: u64) -> Result<Option<Waiting>> {
        let (tree, key) = match self.place(id)? {
            PlaceV1::At(position) if position <= self.queue.record.cursor => return Ok(None),
            PlaceV1::At(position) => (Tree::Requests, self.key(&[position])),
            PlaceV1::Delayed(due, position) => (Tree::Delayed, self.key(&[due, position])),
        };
        let entry = self.load::<RequestV1>(tree, &key)?;
        let entry = entry.filter(|(request, _)| request.id == id);
        Ok(entry.map(|(request, _)| Waiting { tree, key, request }))
    }

    /// Takes a waiting request out of the queue: its entry, its payload, and its share of the counts.
    fn take_waiting(&mut self, waiting: Waiting) -> Result<()> {
        let Waiting { tree, key, request } = waiting;
        let record = &mut self.queue.record;
        if tree == Tree::Requests {
            record.ready -= 1;
            record.ready_bytes -= request.bytes;
        } else {
            record.delayed -= 1;
        }
        record.held_bytes -= request.bytes;
        if tree == Tree::Requests {
            self.delete_row(key)?;
        } else {
            self.write.delete(tree, key);
        }
        self.forget_place(request.id);
        self.delete_parts(request.id, PartOf::Payload, request.parts);
        Ok(())
    }

    /// Takes a row out of `requests`, from between others that stay: what is left of its chunk is written anew.
    fn delete_row(&mut self, key: Vec<u8>) -> Result<()> {
        if let Some(chunk) = self.db.chunk_of(&key)? {
            self.write.edits(chunk);
        }
        self.write.delete(Tree::Requests, key);
        Ok(())
    }

    /// Puts a request at the tail, ready.
    pub(super) fn make_ready(
        &mut self,
        now: Timestamp,
        ready_at: u64,
        mut request: RequestV1,
        body: &[u8],
    ) -> Result<()> {
        request.ready_at = ready_at;
        let position = self.next_position(now);
        let record = &mut self.queue.record;
        record.last_position = position;
        record.ready += 1;
        record.ready_bytes += request.bytes;
        if self.queue.oldest.is_none() {
            self.queue.oldest = Some((position, ready_at));
        }
        let place = self.key(&[request.id]);
        self.write
            .put(Tree::Places, place, &PlaceV1::At(position), &[])?;
        let key = self.key(&[position]);
        self.write.put_ready(&key, &request, body)
    }

    /// Puts a request among the delayed, ordered by when it is due, then by the position it had.
    fn delay(&mut self, due: u64, position: u64, request: &RequestV1, body: &[u8]) -> Result<()> {
        self.queue.record.delayed += 1;
        self.queue.next.due = self.queue.next.due.min(due);
        let place = self.key(&[request.id]);
        self.write
            .put(Tree::Places, place, &PlaceV1::Delayed(due, position), &[])?;
        let key = self.key(&[due, position]);
        self.write.put(Tree::Delayed, key, request, body)
    }

    /// Dead-letters a request that is nowhere else any more.
    fn bury(
        &mut self,
        settling: &mut Settling,
        (at, batch): (u64, Option<u128>),
        (mut request, body): (RequestV1, &[u8]),
        (reason, error): (DeadReason, String),
    ) -> Result<()> {
        request.error = Some(shortened(error));
        self.queue.record.dead += 1;
        self.forget_place(request.id);
        settling.ids.push(request.id);
        let key = self.key(&[request.id]);
        let dead = DeadV1 {
            request,
            at,
            batch,
            reason: reason_number(reason),
            sequence: settling.sequence,
        };
        self.write.put(Tree::Dead, key, &dead, body)
    }

    /// Dead-letters one request, outside of any batch.
    pub(super) fn bury_alone(
        &mut self,
        request: RequestV1,
        reason: (DeadReason, String),
    ) -> Result<()> {
        let mut settling = self.settling();
        let at = request.ready_at;
        self.bury(&mut settling, (at, None), (request, &[]), reason)?;
        self.put_settled(settling)
    }

    /// Moved requests have a place of their own; nothing is written for the others.
    fn forget_place(&mut self, id: u64) {
        let key = self.key(&[id]);
        self.write.delete(Tree::Places, key);
    }

    /// The next entry of `settled`.
    fn settling(&mut self) -> Settling {
        self.queue.record.last_settled += 1;
        Settling {
            sequence: self.queue.record.last_settled,
            ids: Vec::new(),
        }
    }

    fn put_settled(&mut self, settling: Settling) -> Result<()> {
        let Settling { sequence, ids } = settling;
        if ids.is_empty() {
            return Ok(());
        }
        let kept = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let key = self.key(&[sequence]);
        self.write
            .put(Tree::Settled, key, &SettledV1 { kept, ids }, &[])
    }

    /// Takes requests off `settled`: so many of each entry.
    fn unsettle(&mut self, counts: BTreeMap<u64, u32>) -> Result<()> {
        for (sequence, gone) in counts {
            let key = self.key(&[sequence]);
            let Some((mut settled, _)) = self.load::<SettledV1>(Tree::Settled, &key)? else {
                continue;
            };
            settled.kept = settled.kept.saturating_sub(gone);
            if settled.kept == 0 {
                self.write.delete(Tree::Settled, key);
            } else {
                self.write.put(Tree::Settled, key, &settled, &[])?;
            }
        }
        Ok(())
    }

    /// Splits what is too large for a record into parts; returns the parts and what is left as body.
    fn put_parts<'b>(&mut self, id: u64, of: PartOf, bytes: &'b [u8]) -> Result<(u32, &'b [u8])> {
        if bytes.len() <= INLINE_BYTES {
            return Ok((0, bytes));
        }
        let mut count = 0;
        for part in bytes.chunks(PART_BYTES) {
            let key = keys::part(self.queue.id, id, of, count);
            self.write.put(Tree::Parts, key, &PartV1 {}, part)?;
            count += 1;
        }
        Ok((count, &[]))
    }

    fn delete_parts(&mut self, id: u64, of: PartOf, parts: u32) {
        for number in 0..parts {
            self.write
                .delete(Tree::Parts, keys::part(self.queue.id, id, of, number));
        }
    }

    /// Writes the outcome of a member, and its result.
    fn put_outcome(
        &mut self,
        id: u64,
        mut outcome: OutcomeV1,
        result: Option<&[u8]>,
    ) -> Result<()> {
        let mut body: &[u8] = &[];
        if let Some(result) = result {
            let (parts, rest) = self.put_parts(id, PartOf::Result, result)?;
            outcome.result = Some(ResultV1 {
                bytes: result.len() as u64,
                parts,
            });
            body = rest;
        }
        let key = self.key(&[id]);
        self.write.put(Tree::Outcomes, key, &outcome, body)
    }

    fn delete_outcome(&mut self, id: u64, outcome: &OutcomeV1) {
        self.delete_parts(
            id,
            PartOf::Result,
            outcome.result.map_or(0, |result| result.parts),
        );
        let key = self.key(&[id]);
        self.write.delete(Tree::Outcomes, key);
    }

    /// Fails if the queue can't hold so much more.
    fn check_bounds(&self, requests: u64, bytes: u64) -> Result<()> {
        let record = &self.queue.record;
        let held = record.delayed + record.ready + record.in_flight;
        self.queue
            .options
            .check_room((held, record.held_bytes), (requests, bytes))
    }

    /// Fails if the disk is nearly full.
    fn check_space(&self) -> Result<()> {
        match self.low_space {
            None => Ok(()),
            Some(why) => Err(Error::queue_full(why)),
        }
    }

    /// Fails unless this lease still holds its batch.
    fn held(&self, lease: &Lease) -> Result<u128> {
        check_lease(self.queue, lease)
    }
}

/// The batch of a lease that still holds it.
pub(super) fn check_lease(queue: &QueueState, lease: &Lease) -> Result<u128> {
    let id = lease.batch.as_u128();
    let batch = queue.open.get(&id);
    match batch.filter(|batch| batch.held && batch.fence == lease.fence.0) {
        Some(_) => Ok(id),
        None => Err(lease.lost()),
    }
}

/// The result in an outcome.
fn result_of(outcome: &Outcome) -> Option<&[u8]> {
    match outcome {
        Outcome::Done { result } => result.as_deref(),
        Outcome::Retry { .. } | Outcome::Reject { .. } => None,
    }
}
