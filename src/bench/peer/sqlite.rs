//! `rusqlite`: a tree in pages, with a write-ahead log that each commit syncs.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rusqlite::Connection;

use super::{CURSOR, Range, Result, Table, failed};

pub(super) struct Sqlite {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

impl Sqlite {
    fn connect(folder: &Path) -> Result<Mutex<Connection>> {
        let connection = Connection::open(folder.join("sqlite")).map_err(failed)?;
        connection.execute_batch(SETTINGS).map_err(failed)?;
        Ok(Mutex::new(connection))
    }
}

impl Table for Sqlite {
    fn open(folder: &Path) -> Result<Self> {
        let writer = Self::connect(folder)?;
        lock(&writer).execute_batch(TABLES).map_err(failed)?;
        Ok(Self {
            writer,
            reader: Self::connect(folder)?,
        })
    }

    fn ends(&self) -> Result<(u64, u64)> {
        let ends = lock(&self.reader).query_row(
            "SELECT (SELECT past FROM notes WHERE first = ?1), (SELECT max(number) FROM requests)",
            [signed(CURSOR)],
            |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)),
        );
        let (cursor, last) = ends.map_err(failed)?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok((
            cursor.map_or(0, number),
            last.map_or(0, |last| number(last) + 1),
        ))
    }

    fn insert(&self, first: u64, payloads: &mut dyn Iterator<Item = &Bytes>) -> Result<()> {
        let mut writer = lock(&self.writer);
        let write = writer.transaction().map_err(failed)?;
        let sql = "INSERT INTO requests VALUES (?1, ?2)";
        let mut insert = write.prepare_cached(sql).map_err(failed)?;
        for (number, payload) in (first..).zip(payloads) {
            let inserted = insert.execute((signed(number), &payload[..]));
            inserted.map_err(failed)?;
        }
        drop(insert);
        write.commit().map_err(failed)
    }

    fn claim(&self, range: Range) -> Result<()> {
        let mut writer = lock(&self.writer);
        let write = writer.transaction().map_err(failed)?;
        for first in [range.first, CURSOR] {
            let sql = "INSERT OR REPLACE INTO notes VALUES (?1, ?2)";
            let mut insert = write.prepare_cached(sql).map_err(failed)?;
            let inserted = insert.execute((signed(first), signed(range.end)));
            inserted.map_err(failed)?;
        }
        write.commit().map_err(failed)
    }

    fn remove(&self, range: Range) -> Result<()> {
        let mut writer = lock(&self.writer);
        let write = writer.transaction().map_err(failed)?;
        let ends = (signed(range.first), signed(range.end));
        let sql = "DELETE FROM requests WHERE number >= ?1 AND number < ?2";
        write.execute(sql, ends).map_err(failed)?;
        let sql = "DELETE FROM notes WHERE first = ?1";
        write.execute(sql, [ends.0]).map_err(failed)?;
        write.commit().map_err(failed)
    }

    fn read(&self, range: Range, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let reader = lock(&self.reader);
        let sql = "SELECT payload FROM requests WHERE number >= ?1 AND number < ?2 ORDER BY number";
        let mut select = reader.prepare_cached(sql).map_err(failed)?;
        let rows = select.query((signed(range.first), signed(range.end)));
        let mut rows = rows.map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let payload = row.get_ref(0).map_err(failed)?;
            take(Bytes::copy_from_slice(payload.as_blob().map_err(failed)?));
        }
        Ok(())
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers fit; the cursor's key becomes -1.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// The write-ahead log is carried over every 32 MiB rather than every 4: fewer stalls.
const SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
    PRAGMA wal_autocheckpoint = 8192; PRAGMA cache_size = -65536; PRAGMA mmap_size = 1073741824;";
const TABLES: &str = "CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, payload BLOB); \
    CREATE TABLE IF NOT EXISTS notes (first INTEGER PRIMARY KEY, past INTEGER);";
