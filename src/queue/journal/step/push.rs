//! Pushing: ids, keys, bounds, and the bytes into the piece at the end of the group.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::Step;
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    queue::journal::{
        event::{Later, Pushed as Piece, What},
        fold::{STRETCH_BYTES, STRETCH_REQUESTS, takes_a_piece},
        record::Draft,
        state::{Key, NEVER},
    },
    request::{Bookmark, NewRequest, Pushed, RequestId, key_conflict},
};

/// A push, with all that can be made ready before the lock is had.
#[derive(Debug)]
pub(in crate::queue::journal) struct Plan {
    drafts: Vec<Draft>,
    /// One for each request, if any has a key.
    keys: Vec<Option<Keyed>>,
    bookmark: Option<Bookmark>,
    bytes: usize,
    has_keys: bool,
}

impl Plan {
    pub(in crate::queue::journal) fn new(
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Option<Bookmark>,
    ) -> Result<Self> {
        requests.iter().try_for_each(NewRequest::validate)?;
        bookmark.as_ref().map_or(Ok(()), Bookmark::validate)?;
        let has_keys = requests
            .iter()
            .any(|request| request.idempotency_key.is_some());
        let mut keys = Vec::new();
        let mut drafts = Vec::with_capacity(requests.len());
        for mut request in requests {
            if has_keys {
                let key = request.idempotency_key.take();
                keys.push(key.map(|key| Keyed {
                    digest: digest(key.as_bytes()),
                    payload: digest(&request.payload),
                    key,
                }));
            }
            let due = request.not_before.filter(|due| *due > now);
            let due = due.map(Timestamp::as_nanos);
            let expires_at = request.ttl.map(|ttl| now.after(ttl).as_nanos());
            drafts.push(Draft::new(request, due, expires_at));
        }
        let bytes = drafts.iter().map(Draft::bytes).sum();
        if bytes > MAX_PUSH_BYTES {
            return Err(Error::invalid(format!(
                "one push has {bytes} bytes, and at most {MAX_PUSH_BYTES} are allowed: push fewer requests at a time"
            )));
        }
        Ok(Self {
            drafts,
            keys,
            bookmark,
            bytes,
            has_keys,
        })
    }
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(bytes)[..16]);
    short
}

/// An idempotency key, its digest, and that of the payload that came with it.
#[derive(Debug)]
struct Keyed {
    key: String,
    digest: [u8; 16],
    payload: [u8; 16],
}

/// What a push comes to: the answers, and what is added.
struct Decided {
    pushed: Vec<Pushed>,
    keys: BTreeMap<[u8; 16], Key>,
    added: u64,
    added_bytes: u64,
}

impl Step<'_> {
    pub(in crate::queue::journal) fn push(
        &mut self,
        now: Timestamp,
        plan: &Plan,
    ) -> Result<Vec<Pushed>> {
        self.advance(now)?;
        let decided = self.decide_push(now, plan)?;
        if decided.added > 0 {
            self.check_space()?;
            self.core.origin.check_space(plan.bytes as u64)?;
        }
        let queue = self.queue()?;
        queue.check_room(decided.added, decided.added_bytes)?;
        let notes = plan
            .bookmark
            .as_ref()
            .map_or(0, |bookmark| bookmark.source.len() + bookmark.value.len());
        let pieces =
            plan.bytes / STRETCH_BYTES as usize + plan.drafts.len() / STRETCH_REQUESTS as usize;
        let later = plan
            .drafts
            .iter()
            .filter(|draft| draft.due.is_some())
            .count();
        self.reserve(
            plan.bytes + notes + 256 * (pieces + 1) + 40 * later + 64 * decided.keys.len(),
        )?;
        self.put_drafts(now, plan, &decided.pushed)?;
        if plan.bookmark.is_some() || !decided.keys.is_empty() {
            self.event(What::Pushed(Piece {
                keys: decided.keys,
                bookmarks: (plan.bookmark.iter())
                    .map(|bookmark| (bookmark.source.clone(), bookmark.value.clone()))
                    .collect(),
                ..Piece::default()
            }));
        }
        if decided.added > 0 || plan.bookmark.is_some() {
            self.touch(true);
        }
        Ok(decided.pushed)
    }

    /// Fails if the disk is nearly full.
    pub(super) fn check_space(&self) -> Result<()> {
        match &self.inner.no_room {
            None => Ok(()),
            Some(why) => Err(Error::queue_full(why.clone())),
        }
    }

    fn decide_push(&self, now: Timestamp, plan: &Plan) -> Result<Decided> {
        let queue = self.queue()?;
        let first = queue.stored.last_position.checked_add(1);
        let first = first.map(|first| first.max(now.as_nanos()));
        let fits = |first: &u64| first.checked_add(plan.drafts.len() as u64).is_some();
        let mut next = first
            .filter(fits)
            .ok_or_else(|| Error::invalid("`now` leaves no positions for this push"))?;
        let mut decided = Decided {
            pushed: Vec::with_capacity(plan.drafts.len()),
            keys: BTreeMap::new(),
            added: 0,
            added_bytes: 0,
        };
        let window = queue.options.idempotency_window;
        for (index, draft) in plan.drafts.iter().enumerate() {
            if plan.has_keys
                && let Some(Keyed {
                    key,
                    digest,
                    payload,
                }) = &plan.keys[index]
            {
                let known = queue
                    .stored
                    .keys
                    .get(digest)
                    .or_else(|| decided.keys.get(digest));
                if let Some(known) = known {
                    let id = RequestId::from_u64(known.id);
                    if known.payload != *payload {
                        return Err(key_conflict(key, id));
                    }
                    decided.pushed.push(Pushed {
                        id,
                        duplicate: true,
                    });
                    continue;
                }
                let known = Key {
                    id: next,
                    payload: *payload,
                    expires_at: now.after(window).as_nanos(),
                };
                decided.keys.insert(*digest, known);
            }
            decided.pushed.push(Pushed {
                id: RequestId::from_u64(next),
                duplicate: false,
            });
            next += 1;
            decided.added += 1;
            decided.added_bytes += draft.payload.len() as u64;
        }
        Ok(decided)
    }

    /// Writes the requests that are new into pieces, and folds them part by part.
    fn put_drafts(&mut self, now: Timestamp, plan: &Plan, pushed: &[Pushed]) -> Result<()> {
        let mut part = Part::default();
        for (draft, pushed) in plan.drafts.iter().zip(pushed) {
            if pushed.duplicate {
                continue;
            }
            let id = pushed.id.as_u64();
            if part.requests == 0 || part.is_full(self.inner.filling.place().offset) {
                self.fold_part(&mut part)?;
                self.begin_part(&mut part, id)?;
            }
            let filling = &mut self.inner.filling;
            filling.put_request(draft, id, now.as_nanos());
            part.add(id, now, draft);
        }
        self.fold_part(&mut part)
    }

    /// Goes on with the piece at the end, or begins another.
    fn begin_part(&mut self, part: &mut Part, id: u64) -> Result<()> {
        let last = self.queue()?.stored.stretches.last_key_value();
        let last = last.map(|(_, stretch)| *stretch);
        let cursor = self.queue()?.stored.cursor;
        let filling = &mut self.inner.filling;
        let fits = |offset: u32, requests: u32, from: u32| {
            offset - from < STRETCH_BYTES && requests < STRETCH_REQUESTS
        };
        let grows = filling.grows(self.id)
            && last.is_some_and(|last| fits(filling.place().offset, last.requests, last.offset));
        if !grows {
            filling.end_piece();
            let place = filling.place();
            let follows = last.filter(|last| takes_a_piece(last, place) && last.last > cursor);
            let back = follows.map_or(0, |last| place.offset - last.offset - last.tail);
            filling.begin_piece(self.id, back);
            (part.stretch, part.requests_before) =
                follows.map_or((place.offset, 0), |last| (last.offset, last.requests));
        } else if let Some(last) = last {
            (part.stretch, part.requests_before) = (last.offset, last.requests);
        }
        part.is_new_piece = !grows;
        part.first = id;
        Ok(())
    }

    fn fold_part(&mut self, part: &mut Part) -> Result<()> {
        let done = std::mem::take(part);
        if done.requests == 0 {
            return Ok(());
        }
        let filling = &mut self.inner.filling;
        let Some((place, bytes)) = filling.piece() else {
            return Err(Error::internal("a part without a piece"));
        };
        let mut pushed = done.pushed;
        pushed.runs = vec![(done.first, u64::from(done.requests))];
        pushed.bytes = bytes;
        if let Some(queue) = self.inner.state.queues.get_mut(&self.id) {
            queue.add_pushed(&pushed, place, done.is_new_piece);
        }
        filling.grow_piece(pushed, done.first, done.requests);
        Ok(())
    }
}

/// Requests of one push that go into one piece.
#[derive(Debug, Default)]
struct Part {
    pushed: Piece,
    is_new_piece: bool,
    first: u64,
    requests: u32,
    /// Where its stretch begins, and how many requests that had before.
    stretch: u32,
    requests_before: u32,
}

impl Part {
    fn is_full(&self, end: u32) -> bool {
        end - self.stretch >= STRETCH_BYTES
            || self.requests_before + self.requests >= STRETCH_REQUESTS
    }

    fn add(&mut self, id: u64, now: Timestamp, draft: &Draft) {
        let bytes = draft.payload.len() as u64;
        let pushed = &mut self.pushed;
        self.requests += 1;
        pushed.held_bytes += bytes;
        pushed.largest = pushed.largest.max(bytes);
        if let Some(due) = draft.due {
            pushed.later.push(Later {
                id,
                due,
                bytes,
                expires_at: draft.expires_at.unwrap_or(NEVER),
            });
            return;
        }
        if pushed.ready == 0 {
            (pushed.head, pushed.ready_at) = (id, now.as_nanos());
        }
        pushed.ready += 1;
        pushed.ready_bytes += bytes;
        pushed.expires_at = pushed.expires_at.into_iter().chain(draft.expires_at).min();
    }
}

/// The most bytes of one push: its group is one write.
const MAX_PUSH_BYTES: usize = 1 << 30;
