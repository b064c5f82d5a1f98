//! Push: rows at the tail, visible when the queue's record has moved its last position over them.

use std::collections::HashMap;

use super::Step;
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::{
        sled::{
            keys::{self, PartOf, Tree},
            record::{BookmarkV1, KeyExpiryV1, KeyV1, RequestV1},
        },
        transfer::Digest,
    },
    request::{Bookmark, NewRequest, Pushed, RequestId, key_conflict},
};

/// What is to be pushed, with the digests that its caller has computed.
#[derive(Debug)]
pub(in crate::queue::sled) struct PushPlan {
    pub(in crate::queue::sled) requests: Vec<NewRequest>,
    /// For each request with an idempotency key: its digests.
    pub(in crate::queue::sled) keyed: Vec<Option<Keyed>>,
    pub(in crate::queue::sled) bookmark: Option<Bookmark>,
}

/// Digests of an idempotency key and of the payload that came with it.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue::sled) struct Keyed {
    pub(in crate::queue::sled) key: Digest,
    pub(in crate::queue::sled) payload: Digest,
}

impl Step<'_> {
    /// Adds requests, or says why not; several pushes may be collected before one commit.
    pub(in crate::queue::sled) fn push(
        &mut self,
        now: Timestamp,
        plan: &PushPlan,
    ) -> Result<Vec<Pushed>> {
        self.advance(now)?;
        let first = self.next_position(now);
        let pushed = self.name_ids(now, first, plan)?;
        let new = |(_, pushed): &(&NewRequest, &Pushed)| !pushed.duplicate;
        let added = || plan.requests.iter().zip(&pushed).filter(new);
        let count = added().count() as u64;
        let bytes = added()
            .map(|(request, _)| request.payload.len() as u64)
            .sum();
        if count > 0 {
            first
                .checked_add(count)
                .ok_or_else(|| Error::invalid("`now` leaves no positions for this push"))?;
            self.check_bounds(count, bytes)?;
            self.check_space()?;
        }
        for (request, pushed) in added() {
            self.stage(now, pushed.id.as_u64(), request)?;
        }
        if count > 0 {
            self.queue.record.last_position = first + count - 1;
        }
        self.queue.record.pushed += count;
        self.queue.record.held_bytes += bytes;
        for ((request, pushed), keyed) in plan.requests.iter().zip(&pushed).zip(&plan.keyed) {
            if !pushed.duplicate {
                self.index(now, pushed.id.as_u64(), request, keyed.as_ref())?;
            }
        }
        if let Some(bookmark) = &plan.bookmark {
            let key = keys::text(self.queue.id, bookmark.source.as_bytes());
            self.write
                .put(Tree::Bookmarks, key, &BookmarkV1 {}, &bookmark.value)?;
            let Bookmark { source, value } = bookmark;
            self.queue.directives.note(source, value);
        }
        if count > 0 || plan.bookmark.is_some() {
            self.queue.wake = true;
            self.put_queue();
        }
        Ok(pushed)
    }

    /// The id that each request gets, or has if its key is known.
    fn name_ids(&self, now: Timestamp, first: u64, plan: &PushPlan) -> Result<Vec<Pushed>> {
        let mut next = first;
        let mut earlier: HashMap<Digest, (u64, Digest)> = HashMap::new();
        let mut pushed = Vec::with_capacity(plan.requests.len());
        for (request, keyed) in plan.requests.iter().zip(&plan.keyed) {
            if let Some(Keyed { key, payload }) = keyed {
                let known = match earlier.get(key) {
                    Some(known) => Some(*known),
                    None => self.known_key(now, key)?,
                };
                if let Some((id, with)) = known {
                    let id = RequestId::from_u64(id);
                    if with != *payload {
                        let key = request.idempotency_key.as_deref().unwrap_or_default();
                        return Err(key_conflict(key, id));
                    }
                    pushed.push(Pushed {
                        id,
                        duplicate: true,
                    });
                    continue;
                }
                earlier.insert(*key, (next, *payload));
            }
            pushed.push(Pushed {
                id: RequestId::from_u64(next),
                duplicate: false,
            });
            next = next.saturating_add(1);
        }
        Ok(pushed)
    }

    fn known_key(&self, now: Timestamp, key: &Digest) -> Result<Option<(u64, Digest)>> {
        let known = self.load::<KeyV1>(Tree::Keys, &keys::text(self.queue.id, key))?;
        Ok(known
            .filter(|(known, _)| known.expires_at > now.as_nanos())
            .map(|(known, _)| (known.id, known.payload)))
    }

    /// Writes a request's entry and payload past the last position, where nobody looks yet. A large
    /// push commits here in between; what a crash leaves there is cleared when the store is opened.
    fn stage(&mut self, now: Timestamp, id: u64, new: &NewRequest) -> Result<()> {
        let (parts, body) = self.put_parts(id, PartOf::Payload, &new.payload)?;
        if due(now, new).is_none() {
            let key = self.key(&[id]);
            self.write
                .put_ready(&key, &row(now, id, new, parts), body)?;
        }
        if self.write.is_large() {
            self.db.commit(self.write)?;
        }
        Ok(())
    }

    /// Counts a new request, and writes what else is to be known of it.
    fn index(
        &mut self,
        now: Timestamp,
        id: u64,
        new: &NewRequest,
        keyed: Option<&Keyed>,
    ) -> Result<()> {
        let bytes = new.payload.len();
        if let Some(due) = due(now, new) {
            let inline = bytes <= super::INLINE_BYTES;
            let parts = if inline {
                0
            } else {
                bytes.div_ceil(super::PART_BYTES)
            };
            let body: &[u8] = if inline { &new.payload } else { &[] };
            let request = row(now, id, new, u32::try_from(parts).unwrap_or(u32::MAX));
            self.delay(due, id, &request, body)?;
        } else {
            self.queue.record.ready += 1;
            self.queue.record.ready_bytes += bytes as u64;
            if self.queue.oldest.is_none() {
                self.queue.oldest = Some((id, now.as_nanos()));
            }
        }
        if let Some(at) = new.ttl.map(|ttl| now.after(ttl).as_nanos()) {
            let key = self.key(&[at, id]);
            self.write.put_key(Tree::Expiry, key);
            self.queue.next.expiry = self.queue.next.expiry.min(at);
        }
        if let Some(Keyed { key, payload }) = keyed {
            let expires_at = now.after(self.queue.options.idempotency_window).as_nanos();
            let record = KeyV1 {
                id,
                payload: *payload,
                expires_at,
            };
            self.write
                .put(Tree::Keys, keys::text(self.queue.id, key), &record, &[])?;
            let at = self.key(&[expires_at, id]);
            self.write
                .put(Tree::KeyExpiry, at, &KeyExpiryV1 { key: *key }, &[])?;
            self.queue.next.key = self.queue.next.key.min(expires_at);
        }
        Ok(())
    }
}

/// When a new request is due, if that is later.
fn due(now: Timestamp, new: &NewRequest) -> Option<u64> {
    new.not_before
        .filter(|due| *due > now)
        .map(Timestamp::as_nanos)
}

fn row(now: Timestamp, id: u64, new: &NewRequest, parts: u32) -> RequestV1 {
    RequestV1 {
        id,
        pushed_at: now.as_nanos(),
        ready_at: now.as_nanos(),
        expires_at: new.ttl.map(|ttl| now.after(ttl).as_nanos()),
        attempts: 0,
        error: None,
        attributes: new.attributes.clone(),
        bytes: new.payload.len() as u64,
        parts,
    }
}
