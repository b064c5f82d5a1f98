//! What a store holds beside what it owes.

use std::collections::BTreeMap;

use super::{Counted, Kind, Ledger, Request, Standing};
use crate::{
    batch::BatchId,
    clock::Timestamp,
    request::{Position, RequestId, State},
    torture::{
        backend::RETENTION,
        event::{Claimed, Counts, FoundBatch, FoundRequest, Next, Seen, Verb, Whole},
    },
};

type Batches = BTreeMap<BatchId, Claimed>;
type Found = BTreeMap<RequestId, FoundRequest>;

impl Ledger {
    /// The store has told all that it holds, and nothing has been done with it since it was opened.
    pub(super) fn compare(&mut self, whole: Whole) {
        let (requests, batches) = std::mem::take(&mut self.found);
        let told = requests.len();
        for request in &requests {
            self.saw(&request.seen);
        }
        let found: Found = requests
            .into_iter()
            .map(|request| (request.seen.id, request))
            .collect();
        if found.len() != told {
            let what = format!("{told} requests were told, with {} ids", found.len());
            self.damaged(Kind::Duplicated, what);
        }
        let batches = batches_of(&found, batches);
        let claims = self.decide_all(&found, &batches);
        let open = batches.len() as u64;
        self.compare_batches(&found, batches, claims);
        let gone = self.compare_requests(&found, whole.now);
        self.compare_counts(&found, open, &gone, &whole);
        self.start_again(&found, gone, whole);
    }

    /// Decides every call that was not answered; how many of them were claims.
    fn decide_all(&mut self, found: &Found, batches: &Batches) -> usize {
        // One that happened was seen.
        self.pushes.retain(|_, push| push.first.is_some());
        let gone = |id: &RequestId| !found.contains_key(id);
        self.decide_if(
            |_| true,
            |step| match batches.get(&step.batch) {
                Some(batch) => step.then == Next::On && Some(step.note) <= batch.note,
                None => step.then != Next::On,
            },
        );
        let mut claims = 0;
        for open in std::mem::take(&mut self.open).into_values() {
            match open.verb {
                Verb::Claim => claims += 1,
                Verb::Push { .. } | Verb::Update(_) => {}
                Verb::Redrive(ids) => self.redriven(&ids),
                // It may be done for some of them.
                Verb::Purge(mut ids) => {
                    ids.retain(gone);
                    self.purged(&ids);
                }
                Verb::Cancel(ids) => {
                    for id in ids {
                        if let Some(request) = self.requests.get_mut(&id) {
                            request.is_marked = true;
                        }
                    }
                }
            }
        }
        claims
    }

    fn compare_batches(&mut self, found: &Found, batches: Batches, claims: usize) {
        let members = found.values().filter(|found| found.member.is_some());
        let of_batches = batches.values().map(|batch| batch.members.len());
        if members.count() != of_batches.sum::<usize>() {
            let what = "there are members of batches that are not there".to_owned();
            self.damaged(Kind::Changed, what);
        }
        let open = self.batches.iter().filter(|(_, batch)| !batch.has_ended);
        let missing = open.filter(|(id, _)| !batches.contains_key(id));
        let missing: Vec<_> = missing
            .map(|(id, batch)| (*id, batch.members.len()))
            .collect();
        for (id, members) in missing {
            let what = format!("batch {id} of {members} is gone, and nobody ended it");
            self.damaged(Kind::Changed, what);
        }
        let mut formed = 0;
        for (id, claimed) in batches {
            if self.batches.contains_key(&id) {
                self.like(&claimed, true);
                continue;
            }
            formed += usize::from(claimed.parent.is_none());
            self.begins(claimed);
        }
        if formed > claims {
            let what = format!("{formed} batches were formed by {claims} claims without an answer");
            self.damaged(Kind::Changed, what);
        }
        let left = std::mem::take(&mut self.halves);
        for (parent, half) in left {
            for half in half {
                let what = format!("the half {half:?} of batch {parent} is gone");
                self.damaged(Kind::Changed, what);
            }
        }
    }

    /// Every request in the book is where it may be; those that may be gone, and are.
    fn compare_requests(&mut self, found: &Found, now: Timestamp) -> Vec<(RequestId, Gone)> {
        let mut gone = Vec::new();
        let mut wrong = Vec::new();
        for (id, request) in &self.requests {
            match found.get(id) {
                Some(found) => {
                    if let Some(kind) = misplaced(request, found, now) {
                        wrong.push((kind, *id, request.clone(), Some(found.clone())));
                    }
                }
                None => match why_gone(request, now) {
                    Some(why) => gone.push((*id, why)),
                    None => wrong.push((Kind::Lost, *id, request.clone(), None)),
                },
            }
        }
        for (kind, id, request, found) in wrong {
            let is = match found {
                None => "is gone".to_owned(),
                Some(found) => format!("is {}: {found:?}", found.state),
            };
            let what = format!(
                "request {id} ({}, pushed at {}) was {:?}, and {is} at {now}",
                request.name, request.pushed_at, request.standing
            );
            self.damaged(kind, what);
        }
        gone
    }

    fn compare_counts(
        &mut self,
        found: &Found,
        batches: u64,
        gone: &[(RequestId, Gone)],
        whole: &Whole,
    ) {
        let of = |state| found.values().filter(|found| found.state == state).count() as u64;
        let left = |why| gone.iter().filter(|(_, is)| *is == why).count() as u64;
        let (counts, was) = (whole.counts, self.counted);
        // A request that may have been cancelled and may have expired counts as either.
        let (expired, either) = (was.expired + left(Gone::Expired), left(Gone::Either));
        let cancelled = was.cancelled + left(Gone::Cancelled);
        let is_expired = counts.expired.clamp(expired, expired + either);
        let expected = Counts {
            pushed: was.pushed,
            delayed: of(State::Delayed),
            ready: of(State::Ready),
            in_flight: of(State::InFlight),
            batches,
            done: was.done + left(Gone::Done) + of(State::Done),
            dead: of(State::Dead),
            expired: is_expired,
            cancelled: cancelled + expired + either - is_expired,
            purged: was.purged + left(Gone::Purged),
            adds_up: true,
        };
        if counts != expected {
            let what = format!("the store counts {counts:?}, and should {expected:?}");
            self.damaged(Kind::Wrong, what);
        }
        if whole.fence < self.fence {
            let what = format!(
                "the last fence is {}, and {} was given",
                whole.fence, self.fence
            );
            self.damaged(Kind::Wrong, what);
        }
    }

    /// From here on what was found is owed; what is gone has left the book.
    fn start_again(&mut self, found: &Found, gone: Vec<(RequestId, Gone)>, whole: Whole) {
        for (id, why) in gone {
            let request = self.requests.remove(&id);
            let push = request.map_or(0, |request| request.name.push);
            if let Some(known) = self.pushes.get_mut(&push) {
                known.left -= 1;
                if known.left == 0 {
                    self.pushes.remove(&push);
                }
            }
            match why {
                Gone::Done => self.counted.done += 1,
                Gone::Purged => self.counted.purged += 1,
                Gone::Cancelled | Gone::Expired | Gone::Either => {}
            }
        }
        self.counted = Counted {
            cancelled: whole.counts.cancelled,
            expired: whole.counts.expired,
            ..self.counted
        };
        self.batches.retain(|_, batch| !batch.has_ended);
        for (id, request) in &mut self.requests {
            if request.standing == Standing::Held
                && found
                    .get(id)
                    .is_some_and(|found| found.state == State::Dead)
            {
                request.standing = Standing::Dead;
            }
        }
    }
}

/// What became of a request that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    Done,
    Purged,
    Cancelled,
    Expired,
    /// Cancelled or expired: nobody was told which.
    Either,
}

fn why_gone(request: &Request, now: Timestamp) -> Option<Gone> {
    let expires = request.name.ttl().map(|ttl| request.pushed_at.after(ttl));
    match request.standing {
        Standing::Done(_, at) if at.after(RETENTION) <= now => Some(Gone::Done),
        Standing::Purged => Some(Gone::Purged),
        Standing::Cancelled => Some(Gone::Cancelled),
        Standing::Held => match (request.is_marked, expires.is_some_and(|at| at <= now)) {
            (true, true) => Some(Gone::Either),
            (true, false) => Some(Gone::Cancelled),
            (false, true) => Some(Gone::Expired),
            (false, false) => None,
        },
        Standing::Done(..) | Standing::Dead => None,
    }
}

/// What is wrong about where it is, if anything.
fn misplaced(request: &Request, found: &FoundRequest, now: Timestamp) -> Option<Kind> {
    let due = request
        .name
        .delay()
        .map(|delay| request.pushed_at.after(delay));
    let kind = match (request.standing, found.state) {
        _ if found.damaged => Kind::Lost,
        (Standing::Held, State::InFlight) if found.member.is_none() => Kind::Changed,
        (Standing::Held, State::Ready) if due.is_some_and(|due| due > now) => Kind::Wrong,
        (Standing::Held, State::Delayed | State::Ready | State::InFlight | State::Dead)
        | (Standing::Dead, State::Dead) => return None,
        (Standing::Done(fate, _), State::Done) if found.seen.fate == Some(fate) => return None,
        (Standing::Held, _) => Kind::Wrong,
        (Standing::Dead | Standing::Done(..), _) => Kind::Lost,
        (Standing::Cancelled | Standing::Purged, _) => Kind::Duplicated,
    };
    Some(kind)
}

/// The batches that are there, each with its members in order.
fn batches_of(found: &Found, batches: Vec<FoundBatch>) -> Batches {
    let mut members: BTreeMap<BatchId, Vec<(Position, Seen)>> = BTreeMap::new();
    for request in found.values() {
        if let Some((batch, position)) = request.member {
            let of = members.entry(batch).or_default();
            of.push((position, request.seen));
        }
    }
    let claimed = |batch: FoundBatch| {
        let mut members = members.remove(&batch.batch).unwrap_or_default();
        members.sort_by_key(|(position, _)| *position);
        let claimed = Claimed {
            batch: batch.batch,
            parent: batch.parent,
            fence: 0,
            note: batch.note,
            context: batch.context,
            members: members.into_iter().map(|(_, seen)| seen).collect(),
        };
        (batch.batch, claimed)
    };
    batches.into_iter().map(claimed).collect()
}
