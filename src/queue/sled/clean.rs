//! The note of a clean close: in which state the store was closed, so that an older one is not taken for it.
//!
//! ```text
//! commits 1204
//! queue 0 pushed 5000 waiting 4200 dead 3 mail
//! ```
//! After the commits, a line for each queue: its number, what was ever pushed to it, how many requests were
//! delayed, ready or in flight, its dead letters, its name. A note without such lines is as good a proof; a
//! repair can only say less of what is missing then.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::{open::unusable, record::QueueV1};
use crate::{
    error::Result,
    fault::{point, step},
};

/// The name of the file.
pub(super) const CLEAN: &str = "CLEAN";

/// In which state a store was closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    /// How many commits the database has had.
    pub(super) commits: u64,
    /// What each queue held.
    pub(super) queues: BTreeMap<u32, Held>,
}

/// What a queue held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) pushed: u64,
    /// Requests that were delayed, ready or in flight.
    pub(super) waiting: u64,
    pub(super) dead: u64,
}

impl Held {
    pub(super) fn of(record: &QueueV1) -> Self {
        Self {
            name: record.name.clone(),
            pushed: record.pushed,
            waiting: record.delayed + record.ready + record.in_flight,
            dead: record.dead,
        }
    }
}

/// Notes in which state a store was closed, all of it durable.
pub(super) fn mark(path: &Path, closed: &Closed) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path.join(CLEAN))?;
        point("sled.mark_made");
        file.write_all(text(closed).as_bytes())?;
        file.sync_all()?;
        File::open(path)?.sync_all()
    };
    write().map_err(|error| unusable(path, "can't be marked as closed", error))
}

/// In which state the store was closed; `None` if it was not, or if nobody can tell.
pub(super) fn read(path: &Path) -> Option<Closed> {
    parse(&fs::read_to_string(path.join(CLEAN)).ok()?)
}

/// From here on, only another clean close makes the store clean.
pub(super) fn unmark(path: &Path) -> Result<()> {
    let remove = || {
        if !step("sled.unmark")? {
            return Ok(());
        }
        match fs::remove_file(path.join(CLEAN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(path)?.sync_all(),
        }
    };
    remove().map_err(|error| unusable(path, "can't be written", error))
}

fn text(closed: &Closed) -> String {
    let queues = closed.queues.iter().map(|(id, held)| {
        let (pushed, waiting, dead) = (held.pushed, held.waiting, held.dead);
        format!(
            "queue {id} pushed {pushed} waiting {waiting} dead {dead} {}\n",
            held.name
        )
    });
    let commits = format!("commits {}\n", closed.commits);
    [commits].into_iter().chain(queues).collect()
}

fn parse(text: &str) -> Option<Closed> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let commits = lines.next()?.strip_prefix("commits ")?.parse().ok()?;
    let queues = lines.map(parse_queue).collect::<Option<_>>()?;
    Some(Closed { commits, queues })
}

fn parse_queue(line: &str) -> Option<(u32, Held)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [
        "queue",
        id,
        "pushed",
        pushed,
        "waiting",
        waiting,
        "dead",
        dead,
        name,
    ] = words[..]
    else {
        return None;
    };
    let held = Held {
        name: name.to_owned(),
        pushed: pushed.parse().ok()?,
        waiting: waiting.parse().ok()?,
        dead: dead.parse().ok()?,
    };
    Some((id.parse().ok()?, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again_and_anything_else_is_no_note() {
        let held = Held {
            name: "mail.a:1".to_owned(),
            pushed: 5_000,
            waiting: 4_200,
            dead: 3,
        };
        let closed = Closed {
            commits: 1_204,
            queues: BTreeMap::from([(0, held)]),
        };
        let text = text(&closed);
        assert_eq!(
            text,
            "commits 1204\nqueue 0 pushed 5000 waiting 4200 dead 3 mail.a:1\n"
        );
        assert_eq!(parse(&text), Some(closed));
        let without_queues = parse("commits 7\n").expect("an older note");
        assert_eq!(
            (without_queues.commits, without_queues.queues.len()),
            (7, 0)
        );
        for cut in 0..text.len() {
            let cut = &text[..cut];
            assert!(
                parse(cut).is_none_or(|_| cut == "commits 1204\n"),
                "{cut:?}"
            );
        }
        for bad in ["commits x\n", "commits 1\nqueue 0\n", "commits 1\n\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
