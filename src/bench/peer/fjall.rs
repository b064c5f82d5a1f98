//! fjall: a log-structured merge tree with a journal.

use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};

use super::{CACHE_BYTES, CURSOR, Range, Result, Table, failed, number};

pub(super) struct Fjall {
    database: Database,
    requests: Keyspace,
    notes: Keyspace,
}

impl Fjall {
    fn batch(&self) -> OwnedWriteBatch {
        self.database
            .batch()
            .durability(Some(PersistMode::SyncData))
    }
}

impl Table for Fjall {
    fn open(folder: &Path) -> Result<Self> {
        let builder = Database::builder(folder.join("fjall")).cache_size(CACHE_BYTES as u64);
        let database = builder.open().map_err(failed)?;
        let keyspace = |name| database.keyspace(name, KeyspaceCreateOptions::default);
        Ok(Self {
            requests: keyspace("requests").map_err(failed)?,
            notes: keyspace("notes").map_err(failed)?,
            database,
        })
    }

    fn ends(&self) -> Result<(u64, u64)> {
        let cursor = self.notes.get(CURSOR.to_be_bytes()).map_err(failed)?;
        let last = self.requests.last_key_value();
        let last = last.map(|last| last.key().map_err(failed)).transpose()?;
        let next = last.map_or(0, |key| number(&key) + 1);
        Ok((cursor.map_or(0, |cursor| number(&cursor)), next))
    }

    fn insert(&self, first: u64, payloads: &mut dyn Iterator<Item = &Bytes>) -> Result<()> {
        let mut batch = self.batch();
        for (number, payload) in (first..).zip(payloads) {
            batch.insert(&self.requests, number.to_be_bytes(), &payload[..]);
        }
        batch.commit().map_err(failed)
    }

    fn claim(&self, range: Range) -> Result<()> {
        let mut batch = self.batch();
        let (first, end) = (range.first.to_be_bytes(), range.end.to_be_bytes());
        batch.insert(&self.notes, first, end);
        batch.insert(&self.notes, CURSOR.to_be_bytes(), end);
        batch.commit().map_err(failed)
    }

    fn remove(&self, range: Range) -> Result<()> {
        let mut batch = self.batch();
        for number in range.first..range.end {
            // Each was inserted once: its tombstone goes as soon as it meets it.
            batch.remove_weak(&self.requests, number.to_be_bytes());
        }
        batch.remove(&self.notes, range.first.to_be_bytes());
        batch.commit().map_err(failed)
    }

    fn read(&self, range: Range, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let keys = range.first.to_be_bytes()..range.end.to_be_bytes();
        for entry in self.requests.range(keys) {
            let payload = entry.value().map_err(failed)?;
            take(payload.into());
        }
        Ok(())
    }
}
