//! Reading all that an open store holds, in slices beside its writer.
//!
//! ```text
//!   tree by tree: a slice of entries ─ checksums, and which rows have parts ─▶ are all parts there? ─▶ the next slice
//!                 └ nothing is written meanwhile                                └ and between two of them it is
//! ```
//! An entry that comes or goes between two slices is seen or not; one that is seen is whole. Entries are counted, and the count
//! is compared if nothing was written to the store from the first to the last entry of a tree.

use std::{thread, time::Duration};

use super::super::{
    db::Db,
    handle::Core,
    keys::{self, PartOf, Tree},
    record::{DeadV1, OutcomeV1, RequestV1, decode},
};
use crate::{
    error::{ErrorKind, Result},
    queue::{
        progress::Pulse,
        verified::{Finding, Verified, VerifyPhase},
    },
};

/// Reads all of it.
pub(in crate::queue::sled) fn verify_open(core: &Core, pulse: &Pulse) -> Result<Verified> {
    let mut walk = Walk {
        core,
        pulse,
        findings: Vec::new(),
        bytes: 0,
        uncounted: Vec::new(),
    };
    pulse.begin(VerifyPhase::Reading, walk.slice(|db| Ok(db.entries()))?);
    for (tree, name) in Tree::ALL {
        match walk.tree(tree) {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Poisoned) => {
                let found = Finding::damaged(format!("reading {name:?}: {error}"), super::REFUSED);
                walk.findings.push(found.in_file(Some("sled".into())));
                if core.health.get().is_some() {
                    // Nothing more of it is read.
                    break;
                }
            }
            read => read?,
        }
    }
    let mut not_looked_at = vec![
        "sled's own log and snapshots, of which only an opening reads all".into(),
        "whether it would open".into(),
    ];
    if !walk.uncounted.is_empty() {
        let names = walk.uncounted.join(", ");
        not_looked_at.push(format!(
            "whether there are as many entries as were written, in what changed meanwhile: {names}"
        ).into());
    }
    let Walk {
        mut findings,
        bytes,
        ..
    } = walk;
    let gate = core.read_gate();
    let mut held = 0;
    for queue in gate.queues.values() {
        let record = &queue.record;
        held += record.delayed + record.ready + record.in_flight + record.dead;
        let settled = record.done + record.expired + record.cancelled + record.purged;
        let states = record.delayed + record.ready + record.in_flight + record.dead + settled;
        if states != record.pushed {
            let what = format!(
                "{} requests were pushed, and its states have {states}",
                record.pushed
            );
            findings.push(Finding {
                queue: Some(record.name.clone()),
                ..Finding::damaged(what, super::REFUSED)
            });
        }
    }
    Ok(Verified {
        queues: gate.queues.len() as u64,
        held,
        bytes,
        findings,
        not_looked_at,
    })
}

struct Walk<'a> {
    core: &'a Core,
    pulse: &'a Pulse,
    findings: Vec<Finding>,
    bytes: u64,
    /// Trees that changed while they were walked through.
    uncounted: Vec<&'static str>,
}

/// What a slice of a tree came to.
#[derive(Default)]
struct Slice {
    entries: u64,
    bytes: u64,
    /// Where the next one begins; `None`: this was the last.
    next: Option<Vec<u8>>,
    parts: Vec<Parts>,
    findings: Vec<Finding>,
}

/// Parts that should be there.
struct Parts {
    /// Which entry says so.
    of: (Tree, Vec<u8>),
    id: u64,
    what: PartOf,
    count: u32,
}

impl Walk<'_> {
    /// Reads something while nothing is written.
    fn slice<T>(&self, read: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
        let gate = self.core.read_gate();
        let db = gate.db.as_ref().ok_or_else(|| self.core.closed())?;
        db.check()?;
        read(db)
    }

    fn tree(&mut self, tree: Tree) -> Result<()> {
        let before = self.slice(|db| Ok(db.counted(tree)))?;
        let mut found = self.slice(|db| db.noted(tree))?;
        let mut next = Some(Vec::new());
        while let Some(from) = next {
            let slice = self.slice(|db| match tree {
                Tree::Requests => rows(db, &from),
                _ => entries(db, tree, from),
            })?;
            next = slice.next;
            found += slice.entries;
            self.bytes += slice.bytes;
            self.findings.extend(slice.findings);
            for parts in slice.parts {
                self.look_for(&parts)?;
            }
            self.pulse.add(slice.entries)?;
            // Whoever waits for the writer goes first.
            thread::sleep(REST);
        }
        let after = self.slice(|db| Ok(db.counted(tree)))?;
        if before != after {
            self.uncounted.push(tree.name());
        } else if found != after.1 {
            let what = format!(
                "{:?} holds {found} entries where {} were written",
                tree.name(),
                after.1
            );
            let finding = Finding::damaged(what, super::REFUSED);
            self.findings.push(finding.in_file(Some("sled/db".into())));
        }
        Ok(())
    }

    /// Whether parts are there, unless what they are parts of is gone.
    fn look_for(&mut self, parts: &Parts) -> Result<()> {
        let (tree, key) = &parts.of;
        let queue = keys::queue(key);
        for first in (0..parts.count).step_by(PARTS.into()) {
            let last = parts.count.min(first.saturating_add(PARTS.into()));
            let missing = self.slice(|db| {
                for number in first..last {
                    let part = keys::part(queue, parts.id, parts.what, number);
                    if db.get(Tree::Parts, &part)?.is_none() {
                        return Ok(db.get(*tree, key)?.is_some());
                    }
                }
                Ok(false)
            })?;
            if missing {
                let name = tree.name();
                let id = crate::request::RequestId::from_u64(parts.id);
                let what = format!("of request {id}, an entry of {name:?}, a part is missing");
                self.findings.push(Finding {
                    request: Some(id),
                    ..Finding::damaged(what, super::NEEDED).in_file(Some("sled/db".into()))
                });
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Entries of a tree from this key on.
fn entries(db: &Db, tree: Tree, from: Vec<u8>) -> Result<Slice> {
    let mut slice = Slice::default();
    for entry in db.range(tree, from, vec![u8::MAX; LONGEST_KEY]) {
        let (key, value) = entry?;
        if slice.bytes >= SLICE_BYTES || slice.entries >= SLICE_ENTRIES {
            slice.next = Some(key.to_vec());
            break;
        }
        // Its own record is not counted, and the store's and what is coming in are no queue's.
        let is_own = tree == Tree::Meta && &*key == keys::COUNTS;
        slice.entries += u64::from(!is_own);
        slice.bytes += value.len() as u64;
        if tree != Tree::Meta || key.first() == Some(&b'q') {
            slice.look(tree, (&key, &value));
        }
    }
    Ok(slice)
}

/// Chunks of rows from this key on.
fn rows(db: &Db, from: &[u8]) -> Result<Slice> {
    let mut slice = Slice::default();
    let start = if from.is_empty() {
        (0, 0)
    } else {
        (keys::queue(from), keys::number(from, 0))
    };
    let end = (u32::MAX, u64::MAX);
    for chunk in db.chunks(start, end) {
        let chunk = chunk?;
        if slice.bytes >= SLICE_BYTES {
            slice.next = Some(keys::key(chunk.queue, &[chunk.first]));
            break;
        }
        slice.entries += 1;
        for (key, value) in chunk.rows_within((0, 0), end) {
            slice.bytes += value.len() as u64;
            slice.look(Tree::Requests, (&key, &value));
        }
    }
    Ok(slice)
}

impl Slice {
    fn look(&mut self, tree: Tree, (key, value): (&[u8], &[u8])) {
        if let Some(finding) = super::check(tree, (key, value)) {
            self.findings.push(finding);
            return;
        }
        let parts = match tree {
            Tree::Requests | Tree::Delayed => decode::<RequestV1>(tree, key, value)
                .ok()
                .map(|(request, _)| (request.id, PartOf::Payload, request.parts)),
            Tree::Dead => decode::<DeadV1>(tree, key, value)
                .ok()
                .map(|(dead, _)| (dead.request.id, PartOf::Payload, dead.request.parts)),
            Tree::Outcomes => decode::<OutcomeV1>(tree, key, value)
                .ok()
                .and_then(|(outcome, _)| outcome.result)
                .map(|result| (keys::number(key, 0), PartOf::Result, result.parts)),
            _ => None,
        };
        if let Some((id, what, count)) = parts.filter(|(.., count)| *count > 0) {
            self.parts.push(Parts {
                of: (tree, key.to_vec()),
                id,
                what,
                count,
            });
        }
    }
}

/// The writer waits for no more than this to be read.
const SLICE_BYTES: u64 = 256 << 10;
const SLICE_ENTRIES: u64 = 512;
const PARTS: u8 = 4;
const REST: Duration = Duration::from_millis(1);
/// No key is as long.
const LONGEST_KEY: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        queue::{
            Store,
            sled::{SledStore, write::Write},
        },
        request::{NewRequest, QueueName},
    };

    #[tokio::test]
    async fn what_is_amiss_in_an_open_store_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = SledStore::open(folder.path()).await.unwrap();
        let queue = store.queue(&QueueName::default()).await.unwrap();
        let large = NewRequest::new(vec![7; 600_000]);
        let pushed = queue.push(queue.now(), vec![large]).await.unwrap();
        let small = (0..2000).map(|_| NewRequest::new("small")).collect();
        queue.push(queue.now(), small).await.unwrap();
        let core = &store.handle.core;
        let whole = verify_open(core, &Pulse::default()).unwrap();
        assert_eq!(whole.findings, []);
        assert_eq!((whole.queues, whole.held), (1, 2001));
        assert!(whole.bytes > 600_000, "{whole:?}");
        assert!(
            !whole
                .not_looked_at
                .iter()
                .any(|what| what.contains("entries")),
            "{whole:?}"
        );
        let id = pushed[0].id;
        {
            let gate = core.read_gate();
            let number = *gate.queues.keys().next().unwrap();
            let mut write = Write::default();
            let part = keys::part(number, id.as_u64(), PartOf::Payload, 5);
            write.delete(Tree::Parts, part);
            write.put_raw(Tree::Marks, &keys::key(number, &[1]), b"no record");
            gate.db.as_ref().unwrap().commit(&mut write).unwrap();
        }
        let found = verify_open(core, &Pulse::default()).unwrap();
        let named = found
            .findings
            .iter()
            .any(|finding| finding.request == Some(id));
        assert!(named, "{found:?}");
        let marks = |finding: &Finding| finding.what.contains("\"marks\"");
        assert!(found.findings.iter().any(marks), "{found:?}");
        assert_eq!(found.findings.len(), 2, "{found:?}");
        store.close().await.unwrap();
        let error = verify_open(core, &Pulse::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
}
