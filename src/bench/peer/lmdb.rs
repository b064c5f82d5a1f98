//! LMDB: a copy-on-write tree in mapped memory. Through lmdb-rkv, whose `open` needs no `unsafe`.

use std::path::Path;

use bytes::Bytes;
use lmdb::{Cursor, Database, DatabaseFlags, Environment, Transaction, WriteFlags};

use super::{CURSOR, Range, Result, Table, failed};

pub(super) struct Lmdb {
    environment: Environment,
    requests: Database,
    notes: Database,
}

impl Table for Lmdb {
    fn open(folder: &Path) -> Result<Self> {
        let environment = Environment::new()
            .set_max_dbs(2)
            .set_map_size(MAP_BYTES)
            .open(folder)
            .map_err(failed)?;
        let database = |name| environment.create_db(Some(name), DatabaseFlags::empty());
        Ok(Self {
            requests: database("requests").map_err(failed)?,
            notes: database("notes").map_err(failed)?,
            environment,
        })
    }

    fn ends(&self) -> Result<(u64, u64)> {
        let read = self.environment.begin_ro_txn().map_err(failed)?;
        let cursor = match read.get(self.notes, &CURSOR.to_be_bytes()) {
            Ok(cursor) => number(cursor),
            Err(lmdb::Error::NotFound) => 0,
            Err(error) => return Err(failed(error)),
        };
        let requests = read.open_ro_cursor(self.requests).map_err(failed)?;
        let next = match requests.get(None, None, LAST) {
            Ok((key, _)) => key.map_or(0, |key| number(key) + 1),
            Err(lmdb::Error::NotFound) => 0,
            Err(error) => return Err(failed(error)),
        };
        Ok((cursor, next))
    }

    fn insert(&self, first: u64, payloads: &mut dyn Iterator<Item = &Bytes>) -> Result<()> {
        let mut write = self.environment.begin_rw_txn().map_err(failed)?;
        for (number, payload) in (first..).zip(payloads) {
            let key = number.to_be_bytes();
            let put = write.put(self.requests, &key, payload, WriteFlags::APPEND);
            put.map_err(failed)?;
        }
        write.commit().map_err(failed)
    }

    fn claim(&self, range: Range) -> Result<()> {
        let mut write = self.environment.begin_rw_txn().map_err(failed)?;
        let (first, end) = (range.first.to_be_bytes(), range.end.to_be_bytes());
        for key in [first, CURSOR.to_be_bytes()] {
            let put = write.put(self.notes, &key, &end, WriteFlags::empty());
            put.map_err(failed)?;
        }
        write.commit().map_err(failed)
    }

    fn remove(&self, range: Range) -> Result<()> {
        let mut write = self.environment.begin_rw_txn().map_err(failed)?;
        for number in range.first..range.end {
            let deleted = write.del(self.requests, &number.to_be_bytes(), None);
            deleted.map_err(failed)?;
        }
        let deleted = write.del(self.notes, &range.first.to_be_bytes(), None);
        deleted.map_err(failed)?;
        write.commit().map_err(failed)
    }

    fn read(&self, range: Range, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let read = self.environment.begin_ro_txn().map_err(failed)?;
        let mut requests = read.open_ro_cursor(self.requests).map_err(failed)?;
        for entry in requests.iter_from(range.first.to_be_bytes()) {
            let (key, payload) = entry.map_err(failed)?;
            if number(key) >= range.end {
                break;
            }
            take(Bytes::copy_from_slice(payload));
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// Address space, not disk.
const MAP_BYTES: usize = 64 << 30;
/// `MDB_LAST`: the last key.
const LAST: u32 = 6;
