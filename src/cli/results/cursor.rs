//! Places among the results of a queue, as text.

use std::{fmt, str::FromStr};

use batchyard::{Entry, RequestId, ResultCursor, Timestamp};

/// A line that was printed: the page that it was on begins behind a place, and there it is the request that was settled
/// at a time.
///
/// Queues tell where pages begin, and not where each of their entries is. What is on a page only ever becomes
/// less: if the entry is still there, those behind it are new; if not, all of the page may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    page: ResultCursor,
    id: RequestId,
    at: Timestamp,
}

impl Cursor {
    /// Of this entry, on the page that begins there.
    pub(super) fn new(page: Option<ResultCursor>, entry: &Entry) -> Self {
        Self {
            page: page.unwrap_or(ResultCursor(0, 0)),
            id: entry.id,
            at: entry.at,
        }
    }

    /// Behind it.
    pub(super) fn place(self) -> Place {
        let is_start = self.page == ResultCursor(0, 0);
        Place {
            after: (!is_start).then_some(self.page),
            seen: Some((self.id, self.at)),
        }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResultCursor(one, two) = self.page;
        write!(f, "{one:x}-{two:x}-{}-{:x}", self.id, self.at.as_nanos())
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let mut parts = text.split('-');
            let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
            let cursor = Self {
                page: ResultCursor(number()?, number()?),
                id: RequestId::from_u64(number()?),
                at: Timestamp::from_nanos(number()?),
            };
            parts.next().is_none().then_some(cursor)
        };
        parsed().ok_or_else(|| "a cursor is what a line of results ends with".to_owned())
    }
}

/// How far somebody is among the results of a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The next page begins behind this.
    pub(super) after: Option<ResultCursor>,
    /// The last of it that is known, and when it was settled; so are those before it.
    seen: Option<(RequestId, Timestamp)>,
}

impl Place {
    /// What is not known yet of the next page.
    pub(super) fn unseen<'e>(&mut self, page: &'e [Entry]) -> &'e [Entry] {
        let Some((id, at)) = self.seen.take() else {
            return page;
        };
        let last = page
            .iter()
            .position(|entry| entry.id == id && entry.at == at);
        last.map_or(page, |last| &page[last + 1..])
    }
}

#[cfg(test)]
mod tests {
    use batchyard::{Attributes, State};

    use super::*;

    fn entry(id: u64, at: u64) -> Entry {
        Entry {
            id: RequestId::from_u64(id),
            state: State::Dead,
            attempts: 1,
            pushed_at: Timestamp::EPOCH,
            at: Timestamp::from_nanos(at),
            attributes: Attributes::new(),
            bytes: 0,
            payload: None,
            batch: None,
            result: None,
            reason: None,
            error: None,
        }
    }

    #[test]
    fn a_cursor_survives_text() {
        for page in [None, Some(ResultCursor(7, u64::MAX))] {
            let cursor = Cursor::new(page, &entry(26, 17));
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
            assert_eq!(cursor.place().after, page);
        }
        for text in ["", "1", "1-2-3", "1-2-3-4-5", "1-2-3-x", "1-2-3-"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    /// A dead letter that was redriven and died again stands elsewhere, and what is before it there is new.
    #[test]
    fn what_is_behind_a_line_is_new_and_if_that_is_gone_all_of_its_page_is() {
        let ids = |page: &[Entry]| {
            page.iter()
                .map(|entry| entry.id.as_u64())
                .collect::<Vec<_>>()
        };
        for (page, new) in [
            (vec![entry(1, 5), entry(2, 5), entry(3, 6)], vec![3]),
            (vec![entry(2, 5)], vec![]),
            (vec![entry(1, 5), entry(3, 6)], vec![1, 3]),
            (vec![entry(1, 5), entry(3, 6), entry(2, 7)], vec![1, 3, 2]),
        ] {
            let mut place = Cursor::new(None, &entry(2, 5)).place();
            assert_eq!(ids(place.unseen(&page)), new);
            assert_eq!(
                place.unseen(&page).len(),
                page.len(),
                "only on its own page"
            );
        }
    }
}
