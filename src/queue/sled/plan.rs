//! A transaction of sled: what becomes of which key, and the note of one that failed in its middle.
//!
//! ```text
//! STORE/REDO   commits before it, then each change: tree, window, key, value; at last a checksum
//! ```
//! sled applies a transaction tree by tree, and may have to read while it does. If such a read fails, it leaves what it has
//! applied so far, and writes that out when it is dropped. All changes are absolute, so they are noted then, durably and
//! before that, and opening makes all of them again, on the state that they were made for.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
};

use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional};

use super::{
    keys::{self, Tree},
    record::{self, CountsV1},
};

/// The name of the file.
pub(super) const REDO: &str = "REDO";

/// A tree, and if that is `requests`, the window of it.
pub(super) type At = (Tree, (u32, u64));

/// A transaction: the trees that it needs, and what becomes of which key in them.
#[derive(Default)]
pub(super) struct Plan {
    indexes: BTreeMap<At, usize>,
    trees: Vec<(At, sled::Tree)>,
    pub(super) changes: Vec<(usize, Vec<u8>, Option<Vec<u8>>)>,
}

impl Plan {
    pub(super) fn tree(
        &mut self,
        tree: Tree,
        window: (u32, u64),
        handle: impl FnOnce() -> sled::Tree,
    ) -> usize {
        let at = (tree, window);
        *self.indexes.entry(at).or_insert_with(|| {
            self.trees.push((at, handle()));
            self.trees.len() - 1
        })
    }

    /// How many bytes sled is given, with what each change costs it beside them.
    pub(super) fn bytes(&self) -> usize {
        let changes = self.changes.iter();
        let bytes = changes
            .map(|(_, key, value)| CHANGE_BYTES + key.len() + value.as_ref().map_or(0, Vec::len));
        bytes.sum()
    }

    /// Which keys of which trees are changed.
    pub(super) fn changed(&self) -> impl Iterator<Item = (At, &sled::Tree, &[u8])> {
        self.changes.iter().map(|(index, key, _)| {
            let (at, tree) = &self.trees[*index];
            (*at, tree, &key[..])
        })
    }

    /// Does it; what the store counts after it, also in `begun` once some of it may be there. The first tree is `meta`.
    pub(super) fn run(
        &self,
        before: &CountsV1,
        begun: &mut Option<CountsV1>,
    ) -> sled::Result<CountsV1> {
        let trees: Vec<&sled::Tree> = self.trees.iter().map(|(_, tree)| tree).collect();
        let counted = std::cell::RefCell::new(None);
        let result = trees.as_slice().transaction(|views| {
            let mut after = before.clone();
            for (index, key, value) in &self.changes {
                let old = match value {
                    Some(value) => views[*index].insert(key.as_slice(), value.as_slice())?,
                    None => views[*index].remove(key.as_slice())?,
                };
                let ((tree, _), _) = self.trees[*index];
                let count = &mut after.entries[tree as usize];
                match (old, value) {
                    (None, Some(_)) => *count += 1,
                    (Some(_), None) => *count -= 1,
                    _ => {}
                }
            }
            let value = counts(&after)
                .map_err(|error| ConflictableTransactionError::Abort(error.to_string()))?;
            views[0].insert(keys::COUNTS, value)?;
            *counted.borrow_mut() = Some(after.clone());
            Ok(after)
        });
        *begun = counted.take();
        result.map_err(|error| match error {
            TransactionError::Abort(why) => sled::Error::Unsupported(why),
            TransactionError::Storage(error) => error,
        })
    }
}

fn counts(after: &CountsV1) -> crate::error::Result<Vec<u8>> {
    record::encode(keys::COUNTS, after, &[])
}

/// One change of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) at: At,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// Where a transaction that failed in its middle is noted.
#[derive(Debug)]
pub(super) struct Redo(PathBuf);

impl Redo {
    /// The note of the store in this folder.
    pub(super) fn of(store: &std::path::Path) -> Self {
        Self(store.join(REDO))
    }

    /// Notes all of it durably, before sled writes a part of it.
    pub(super) fn note(&self, plan: &Plan, after: &CountsV1) {
        let write = || -> io::Result<()> {
            let counted = counts(after).map_err(io::Error::other)?;
            let mut bytes = (after.commits - 1).to_le_bytes().to_vec();
            for (index, key, value) in &plan.changes {
                encode(&mut bytes, plan.trees[*index].0, key, value.as_deref());
            }
            encode(
                &mut bytes,
                (Tree::Meta, (0, 0)),
                keys::COUNTS,
                Some(&counted),
            );
            let check = crc32fast::hash(&bytes).to_le_bytes();
            let mut file = File::create(&self.0)?;
            file.write_all(&bytes)?;
            file.write_all(&check)?;
            file.sync_all()?;
            self.0
                .parent()
                .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        if let Err(error) = write() {
            tracing::error!(%error, "what a step had begun can't be noted");
        }
    }

    /// How many commits there were before, and all changes; `None` if there is no note, or none that is whole.
    pub(super) fn read(&self) -> io::Result<Option<(u64, Vec<Change>)>> {
        match fs::read(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(decode(&read?)),
        }
    }

    /// It is done, or was for another state.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn encode(bytes: &mut Vec<u8>, (tree, window): At, key: &[u8], value: Option<&[u8]>) {
    bytes.push(tree as u8);
    bytes.extend(window.0.to_le_bytes());
    bytes.extend(window.1.to_le_bytes());
    bytes.extend((key.len() as u64).to_le_bytes());
    bytes.extend(key);
    bytes.extend(
        value
            .map_or(u64::MAX, |value| value.len() as u64)
            .to_le_bytes(),
    );
    bytes.extend(value.unwrap_or_default());
}

fn decode(bytes: &[u8]) -> Option<(u64, Vec<Change>)> {
    let (bytes, check) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(bytes).to_le_bytes() != *check {
        return None;
    }
    let mut rest = Rest(bytes);
    let before = rest.number()?;
    let mut changes = Vec::new();
    while !rest.0.is_empty() {
        let (tree, _) = *Tree::ALL.get(usize::from(rest.take(1)?[0]))?;
        let queue = u32::from_le_bytes(*rest.take(4)?.first_chunk()?);
        let window = (queue, rest.number()?);
        let length = rest.number()?;
        let key = rest.take(length)?.to_vec();
        let value = match rest.number()? {
            u64::MAX => None,
            length => Some(rest.take(length)?.to_vec()),
        };
        let at = (tree, window);
        changes.push(Change { at, key, value });
    }
    Some((before, changes))
}

/// What is still to be decoded.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }
}

/// Whatever is changed, sled writes that much more, as if it had been given it.
const CHANGE_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_again_and_anything_else_is_no_note() {
        let folder = tempfile::tempdir().unwrap();
        let redo = Redo::of(folder.path());
        assert_eq!(redo.read().unwrap(), None);
        let config = sled::Config::new().temporary(true);
        let db = config.open().unwrap();
        let mut plan = Plan::default();
        let meta = plan.tree(Tree::Meta, (0, 0), || db.open_tree("meta").unwrap());
        let window = plan.tree(Tree::Requests, (1, 7), || db.open_tree("window").unwrap());
        plan.changes.push((meta, b"a key".to_vec(), None));
        plan.changes
            .push((window, b"other".to_vec(), Some(b"value".to_vec())));
        let mut begun = None;
        let before = CountsV1 {
            commits: 5,
            ..CountsV1::new()
        };
        let after = plan.run(&before, &mut begun).unwrap();
        assert_eq!(begun, Some(after.clone()));
        redo.note(&plan, &after);
        let (commits, changes) = redo.read().unwrap().expect("a note");
        assert_eq!((commits, changes.len()), (4, 3));
        let expected = Change {
            at: (Tree::Requests, (1, 7)),
            key: b"other".to_vec(),
            value: Some(b"value".to_vec()),
        };
        assert_eq!(changes[1], expected);
        assert_eq!((&changes[0].value, &*changes[2].key), (&None, keys::COUNTS));
        let bytes = fs::read(folder.path().join(REDO)).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "{at}");
            assert_eq!(decode(&bytes[..at]), None, "{at}");
        }
        redo.remove().unwrap();
        redo.remove().unwrap();
        assert_eq!(redo.read().unwrap(), None);
    }
}
