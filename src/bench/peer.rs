//! Embedded stores of others, each used well, at the same durability, behind the same front.
//!
//! Keys are the numbers of the requests. A claim is a record beside them, not a move of rows (but for `moving`, which
//! shows what that would cost); the end of a batch removes its range and that record. One write transaction a group,
//! synced by its commit.

#[cfg(feature = "bench-peers")]
mod fjall;
#[cfg(feature = "bench-peers")]
mod lmdb;
#[cfg(feature = "sled")]
mod moving;
#[cfg(feature = "bench-peers")]
mod redb;
#[cfg(feature = "bench-peers")]
mod sqlite;

use std::{error::Error as StdError, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    contestant::{Contestant, Opening, Reopens, Role, Safety, Setup, row},
    front::{Engine, Front, Range, Reader},
};
use crate::error::{Error, Result};

/// Those of this build.
pub(super) fn contestants() -> Vec<Contestant> {
    use Reopens::Yes;
    #[cfg(feature = "sled")]
    use Role::Moves;
    #[cfg(feature = "bench-peers")]
    use Role::Peer;
    use Safety::Synced;
    #[rustfmt::skip]
    let all = vec![
        #[cfg(feature = "sled")]
        row("sled-moving", Moves, Synced, "sled, flush and fdatasync before the answer; a claim moves its rows to another tree", Yes, open::<moving::Moving>),
        #[cfg(feature = "bench-peers")]
        row("redb", Peer, Synced, "redb 4, Durability::Immediate", Yes, open::<redb::Redb>),
        #[cfg(feature = "bench-peers")]
        row("fjall", Peer, Synced, "fjall 3, PersistMode::SyncData", Yes, open::<fjall::Fjall>),
        #[cfg(feature = "bench-peers")]
        row("lmdb", Peer, Synced, "LMDB (lmdb-rkv), synced by each commit", Yes, open::<lmdb::Lmdb>),
        #[cfg(feature = "bench-peers")]
        row("sqlite", Peer, Synced, "SQLite (rusqlite), WAL, synchronous=FULL", Yes, open::<sqlite::Sqlite>),
    ];
    all
}

fn open<T: Table>(at: Setup) -> Opening {
    Box::pin(Front::open(move || Ordered::<T>::open(&at.folder)))
}

/// A store of numbered payloads. What its calls answer is on stable storage.
trait Table: Send + Sync + Sized + 'static {
    /// Opens it in this folder, made if it is not there.
    fn open(folder: &Path) -> Result<Self>;

    /// The first number that was not claimed, and the first that was not given out.
    fn ends(&self) -> Result<(u64, u64)>;

    /// Adds payloads, numbered from `first` on.
    fn insert(&self, first: u64, payloads: &mut dyn Iterator<Item = &Bytes>) -> Result<()>;

    /// Notes that a range is claimed.
    fn claim(&self, range: Range) -> Result<()>;

    /// Removes a range and its note.
    fn remove(&self, range: Range) -> Result<()>;

    /// Gives each payload of a range to `take`, in order.
    fn read(&self, range: Range, take: &mut dyn FnMut(Bytes)) -> Result<()>;
}

/// Numbers what a table holds.
struct Ordered<T> {
    table: Arc<T>,
    cursor: u64,
    next: u64,
}

impl<T: Table> Ordered<T> {
    fn open(folder: &Path) -> Result<Self> {
        let table = Arc::new(T::open(folder)?);
        let (cursor, next) = table.ends()?;
        Ok(Self {
            table,
            cursor,
            next: next.max(cursor),
        })
    }
}

impl<T: Table> Engine for Ordered<T> {
    type Reader = Arc<T>;

    fn reader(&self) -> Result<Arc<T>> {
        Ok(Arc::clone(&self.table))
    }

    fn commit(&mut self, pushes: &[Vec<Bytes>]) -> Result<()> {
        let mut added = 0;
        let payloads = pushes.iter().flatten();
        let mut counted = payloads.inspect(|_| added += 1);
        self.table.insert(self.next, &mut counted)?;
        self.next += added;
        Ok(())
    }

    fn claim(&mut self, most: u64) -> Result<Option<Range>> {
        let range = Range {
            first: self.cursor,
            end: self.next.min(self.cursor + most),
        };
        if range.len() == 0 {
            return Ok(None);
        }
        self.table.claim(range)?;
        self.cursor = range.end;
        Ok(Some(range))
    }

    fn finish(&mut self, range: Range) -> Result<()> {
        self.table.remove(range)
    }
}

impl<T: Table> Reader for Arc<T> {
    fn read(&self, range: Range, take: &mut dyn FnMut(Vec<Bytes>)) -> Result<()> {
        let mut page = Vec::with_capacity(PAGE);
        T::read(self, range, &mut |payload| {
            page.push(payload);
            if page.len() == PAGE {
                take(std::mem::replace(&mut page, Vec::with_capacity(PAGE)));
            }
        })?;
        take(page);
        Ok(())
    }
}

/// The number that is a key.
fn number(key: &[u8]) -> u64 {
    key.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

fn failed(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::internal("the store").with_source(error)
}

/// The key under which the cursor lies, beside the notes, which have numbers.
#[cfg(feature = "bench-peers")]
const CURSOR: u64 = u64::MAX;
/// As many as a page of ours.
const PAGE: usize = 1000;
/// What a store may keep in memory, where it asks.
const CACHE_BYTES: usize = 256 << 20;
