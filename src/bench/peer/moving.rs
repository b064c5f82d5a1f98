//! sled with a claim that moves the rows themselves: what the `sled` backend does not do, for comparison.
//!
//! A tree of requests and a tree of claimed batches, both by number. A claim moves its rows from one to the other in
//! one transaction, which is atomic over a crash; the end of the batch removes them.

use std::{fs::File, path::Path};

use bytes::Bytes;
use sled::{
    Batch, Db, IVec, Tree,
    transaction::{TransactionError, Transactional},
};

use super::{CACHE_BYTES, Range, Result, Table, failed, number};

pub(super) struct Moving {
    requests: Tree,
    claimed: Tree,
    db: Db,
    /// sled's flush asks the system to write, and does not wait for the disk.
    file: File,
}

impl Moving {
    fn sync(&self) -> Result<()> {
        self.db.flush().map_err(failed)?;
        self.file.sync_data().map_err(failed)
    }
}

impl Table for Moving {
    fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("sled");
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES as u64)
            .flush_every_ms(None);
        let db = config.open().map_err(failed)?;
        Ok(Self {
            requests: db.open_tree("requests").map_err(failed)?,
            claimed: db.open_tree("claimed").map_err(failed)?,
            file: File::options()
                .write(true)
                .open(path.join("db"))
                .map_err(failed)?,
            db,
        })
    }

    fn ends(&self) -> Result<(u64, u64)> {
        let last = |tree: &Tree| {
            let last = tree.last().map_err(failed)?;
            Ok(last.map_or(0, |(key, _)| number(&key) + 1))
        };
        let claimed = last(&self.claimed)?;
        Ok((claimed, last(&self.requests)?.max(claimed)))
    }

    fn insert(&self, first: u64, payloads: &mut dyn Iterator<Item = &Bytes>) -> Result<()> {
        let mut batch = Batch::default();
        for (number, payload) in (first..).zip(payloads) {
            batch.insert(&number.to_be_bytes(), &payload[..]);
        }
        self.requests.apply_batch(batch).map_err(failed)?;
        self.sync()
    }

    fn claim(&self, range: Range) -> Result<()> {
        let keys = range.first.to_be_bytes()..range.end.to_be_bytes();
        let rows: Vec<(IVec, IVec)> = (self.requests.range(keys))
            .collect::<sled::Result<_>>()
            .map_err(failed)?;
        let moved = (&self.requests, &self.claimed).transaction(|(requests, claimed)| {
            for (key, payload) in &rows {
                requests.remove(key)?;
                claimed.insert(key, payload)?;
            }
            Ok(())
        });
        moved.map_err(|error: TransactionError<std::convert::Infallible>| failed(error))?;
        self.sync()
    }

    fn remove(&self, range: Range) -> Result<()> {
        let mut batch = Batch::default();
        for number in range.first..range.end {
            batch.remove(&number.to_be_bytes());
        }
        self.claimed.apply_batch(batch).map_err(failed)?;
        self.sync()
    }

    fn read(&self, range: Range, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let keys = range.first.to_be_bytes()..range.end.to_be_bytes();
        for entry in self.claimed.range(keys) {
            let (_, payload) = entry.map_err(failed)?;
            take(Bytes::copy_from_slice(&payload));
        }
        Ok(())
    }
}
