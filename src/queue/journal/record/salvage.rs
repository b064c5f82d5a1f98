//! Reading a stretch that is damaged.

use std::collections::{BTreeMap, BTreeSet};

use super::{Found, Known, Loss, PIECE_HEADER, Pieces, REQUEST_HEADER, Roster, TRAILER};
use crate::queue::journal::state::Stretch;

/// A part of a stretch: a piece, or all in front of the first that can be told.
#[derive(Debug)]
struct Part {
    from: usize,
    end: usize,
    /// `None`: as many as no other part has.
    requests: Option<usize>,
    roster: Option<Vec<(u64, u64)>>,
}

/// What the trailer of a piece says.
struct Trailer {
    back: usize,
    requests: u32,
    roster: Vec<(u64, u64)>,
    end: usize,
}

/// A request, and where it lies.
type Spanned = (Found, usize, usize);

impl Pieces<'_> {
    /// All requests of a stretch, as far as they are legible, and the others by what else is known of them.
    pub(super) fn salvage(&self, stretch: &Stretch, known: &Known) -> Vec<Found> {
        let mut lists = self.lists(stretch);
        let found = lists.iter().flat_map(|list| &list.found);
        let mut ids: BTreeSet<u64> = found.map(|(found, ..)| found.id).collect();
        // Some are known by where they stand now.
        for list in &mut lists {
            let named = known.real.range(list.first..=list.last.max(list.first));
            let named: Vec<u64> = named.copied().filter(|id| !ids.contains(id)).collect();
            list.name(&named, &mut ids, Loss::Header);
        }
        // As many are ready as are counted, and the others lie before the cursor.
        let next = known.cursor.saturating_add(1);
        let ready = ids.range(next..).filter(|id| !known.is_elsewhere(**id));
        let mut ready = (stretch.ready as usize).saturating_sub(ready.count());
        for list in lists.iter_mut().rev() {
            let some = list.gaps((next, u64::MAX), ready.min(list.missing), (&ids, known));
            ready -= some.len();
            list.name(&some, &mut ids, Loss::Id);
        }
        for range in [(0, known.cursor), (0, u64::MAX)] {
            for list in &mut lists {
                let some = list.gaps(range, list.missing, (&ids, known));
                list.name(&some, &mut ids, Loss::Id);
            }
        }
        // Where ids may belong to either of two parts, one has taken what only the other could: then any will do.
        for list in &mut lists {
            let is_free = |id: &u64| !ids.contains(id) && !known.is_elsewhere(*id);
            let free = (stretch.first..=stretch.last).filter(is_free);
            let some: Vec<u64> = free.take(list.missing).collect();
            list.name(&some, &mut ids, Loss::Id);
        }
        let all = lists.into_iter().flat_map(|list| list.found);
        let mut all: Vec<Found> = all.map(|(found, ..)| found).collect();
        all.sort_by_key(|found| found.id);
        all
    }

    /// What is found in each part, and how many are missing there.
    fn lists(&self, stretch: &Stretch) -> Vec<List> {
        let parts = self.parts(stretch.tail as usize);
        let counted: usize = parts.iter().filter_map(|part| part.requests).sum();
        let left = (stretch.requests as usize).saturating_sub(counted);
        let mut last = stretch.first.saturating_sub(1);
        let mut lists: Vec<List> = Vec::new();
        for part in parts {
            let mut found = self.search(&part, (last, stretch.last));
            let missing = match &part.roster {
                Some(roster) => {
                    found = listed(roster, &found);
                    0
                }
                None => part.requests.unwrap_or(left).saturating_sub(found.len()),
            };
            let first = last.saturating_add(1);
            last = found.last().map_or(last, |(found, ..)| found.id);
            lists.push(List {
                found,
                missing,
                first,
                last: stretch.last,
                bytes: (part.from, part.end),
            });
        }
        // What is missing of one lies before the first of the next.
        let mut before = stretch.last;
        for list in lists.iter_mut().rev() {
            list.last = before;
            if let Some((first, ..)) = list.found.first() {
                before = first.id.saturating_sub(1);
            }
        }
        lists
    }

    /// The parts in order, from the last one backwards as far as they can be told.
    fn parts(&self, tail: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        let (mut at, mut limit) = (tail, self.bytes.len());
        loop {
            let from = at + PIECE_HEADER;
            let trailer = self.trailer(at, limit);
            let (back, part) = match (self.header(at), trailer) {
                (_, Some(trailer)) => {
                    let part = Part {
                        from,
                        end: trailer.end,
                        requests: Some(trailer.requests as usize),
                        roster: Some(trailer.roster),
                    };
                    (trailer.back, part)
                }
                (Some((back, bytes, requests)), None) => {
                    let is_whole = bytes > 0 && at + bytes <= limit;
                    let end = if is_whole { at + bytes } else { limit };
                    let mut part = Part {
                        from: from.min(end),
                        end,
                        requests: Some(requests as usize),
                        roster: None,
                    };
                    if !is_whole {
                        // It grows, or has grown since: what is there of it was not damaged yet.
                        part.requests = Some(self.search(&part, (0, u64::MAX)).len());
                    }
                    (back, part)
                }
                (None, None) => {
                    parts.push(Part {
                        from: 0,
                        end: limit,
                        requests: None,
                        roster: None,
                    });
                    break;
                }
            };
            parts.push(part);
            match at.checked_sub(back) {
                Some(before) if back > 0 => (at, limit) = (before, at),
                _ => break,
            }
        }
        parts.reverse();
        parts
    }

    /// The trailer of the piece that begins at `from` and ends at `to` or before.
    fn trailer(&self, from: usize, to: usize) -> Option<Trailer> {
        let least = from + PIECE_HEADER + TRAILER;
        (least..=to).rev().find_map(|end| {
            let at = end - TRAILER;
            let trailer = self.bytes.get(at..end)?;
            let number = |from: usize| Some(u32::from_le_bytes(*trailer[from..].first_chunk()?));
            if number(4)? as usize != end - from {
                return None;
            }
            let begins = at.checked_sub(number(12)? as usize)?;
            let roster = self.bytes.get(begins..at)?;
            let check = self.anchor.behind(at).check(&[roster, &trailer[..16]]);
            if begins < from + PIECE_HEADER || check != number(16)? {
                return None;
            }
            Some(Trailer {
                back: number(0)? as usize,
                requests: number(8)?,
                roster: Roster::read(roster, number(8)?)?,
                end,
            })
        })
    }

    /// Looks for whole headers, byte by byte, of ids past `after` up to `last`.
    fn search(&self, part: &Part, (after, last): (u64, u64)) -> Vec<Spanned> {
        let mut all: Vec<Spanned> = Vec::new();
        let (mut at, mut before) = (part.from, after);
        while at + REQUEST_HEADER <= part.end {
            match Found::at(self.bytes, at, self.anchor) {
                Some((found, end)) if end <= part.end && before < found.id && found.id <= last => {
                    before = found.id;
                    all.push((found, at, end));
                    at = end;
                }
                _ => at += 1,
            }
        }
        all
    }
}

/// All that a roster lists, found or not.
fn listed(roster: &[(u64, u64)], found: &[Spanned]) -> Vec<Spanned> {
    let found: BTreeMap<u64, Spanned> = found.iter().map(|one| (one.0.id, *one)).collect();
    let listed = roster.iter().map(|(id, bytes)| {
        let lost = (Found::lost(*id, *bytes, Loss::Header), 0, 0);
        let one = found.get(id).copied();
        one.filter(|(found, ..)| found.bytes == *bytes)
            .unwrap_or(lost)
    });
    listed.collect()
}

/// What is found in a part.
struct List {
    found: Vec<Spanned>,
    missing: usize,
    /// Between which all its ids are.
    first: u64,
    last: u64,
    /// Between which they lie.
    bytes: (usize, usize),
}

impl List {
    /// Adds some of those that are missing.
    fn name(&mut self, some: &[u64], ids: &mut BTreeSet<u64>, loss: Loss) {
        for id in some.iter().take(self.missing) {
            ids.insert(*id);
            self.found.push((Found::lost(*id, 0, loss), 0, 0));
        }
        self.missing -= some.len().min(self.missing);
    }

    /// Ids in this range that nobody has: where most bytes are missing between those that were found, the last
    /// ones first.
    fn gaps(
        &self,
        (from, to): (u64, u64),
        count: usize,
        (ids, known): (&BTreeSet<u64>, &Known),
    ) -> Vec<u64> {
        let mut gaps = Vec::new();
        let (mut end, mut next) = (self.bytes.0, self.first);
        for (found, begins, ends) in self.found.iter().filter(|(.., ends)| *ends > 0) {
            gaps.push((begins.saturating_sub(end), next, found.id.saturating_sub(1)));
            (end, next) = (*ends, found.id.saturating_add(1));
        }
        gaps.push((self.bytes.1.saturating_sub(end), next, self.last));
        gaps.sort_by_key(|(bytes, ..)| std::cmp::Reverse(*bytes));
        let ranges = gaps
            .into_iter()
            .map(|(_, first, last)| first.max(from)..=last.min(to));
        let free = |id: &u64| !ids.contains(id) && !known.is_elsewhere(*id);
        let all = ranges.flat_map(|range| range.rev().filter(free));
        all.take(count).collect()
    }
}
