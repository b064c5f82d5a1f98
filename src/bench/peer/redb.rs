//! redb: a copy-on-write tree.

use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{CACHE_BYTES, CURSOR, Range, Result, Table, failed};

pub(super) struct Redb(Database);

const REQUESTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("requests");
const NOTES: TableDefinition<'_, u64, u64> = TableDefinition::new("notes");

impl Table for Redb {
    fn open(folder: &Path) -> Result<Self> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create(folder.join("redb")).map_err(failed)?;
        let begin = database.begin_write().map_err(failed)?;
        begin.open_table(REQUESTS).map_err(failed)?;
        begin.open_table(NOTES).map_err(failed)?;
        begin.commit().map_err(failed)?;
        Ok(Self(database))
    }

    fn ends(&self) -> Result<(u64, u64)> {
        let read = self.0.begin_read().map_err(failed)?;
        let notes = read.open_table(NOTES).map_err(failed)?;
        let cursor = notes.get(CURSOR).map_err(failed)?;
        let requests = read.open_table(REQUESTS).map_err(failed)?;
        let last = requests.last().map_err(failed)?;
        let next = last.map_or(0, |(number, _)| number.value() + 1);
        Ok((cursor.map_or(0, |cursor| cursor.value()), next))
    }

    fn insert(&self, first: u64, payloads: &mut dyn Iterator<Item = &Bytes>) -> Result<()> {
        let write = self.0.begin_write().map_err(failed)?;
        let mut requests = write.open_table(REQUESTS).map_err(failed)?;
        for (number, payload) in (first..).zip(payloads) {
            requests.insert(number, &payload[..]).map_err(failed)?;
        }
        drop(requests);
        write.commit().map_err(failed)
    }

    fn claim(&self, range: Range) -> Result<()> {
        let write = self.0.begin_write().map_err(failed)?;
        let mut notes = write.open_table(NOTES).map_err(failed)?;
        notes.insert(range.first, range.end).map_err(failed)?;
        notes.insert(CURSOR, range.end).map_err(failed)?;
        drop(notes);
        write.commit().map_err(failed)
    }

    fn remove(&self, range: Range) -> Result<()> {
        let write = self.0.begin_write().map_err(failed)?;
        let mut requests = write.open_table(REQUESTS).map_err(failed)?;
        let removed = requests.retain_in(range.first..range.end, |_, _| false);
        removed.map_err(failed)?;
        drop(requests);
        let mut notes = write.open_table(NOTES).map_err(failed)?;
        notes.remove(range.first).map_err(failed)?;
        drop(notes);
        write.commit().map_err(failed)
    }

    fn read(&self, range: Range, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let read = self.0.begin_read().map_err(failed)?;
        let requests = read.open_table(REQUESTS).map_err(failed)?;
        for entry in requests.range(range.first..range.end).map_err(failed)? {
            let (_, payload) = entry.map_err(failed)?;
            take(Bytes::copy_from_slice(payload.value()));
        }
        Ok(())
    }
}
