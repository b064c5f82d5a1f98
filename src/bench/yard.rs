//! What every contestant can do, whatever it is: push, claim, read, finish.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::front::Range;
use crate::{
    batch::Lease,
    error::{Error, Result},
    queue::{Queue, Store},
};

/// An open contestant. What its calls answer is as durable as its row in the table of contestants says.
#[async_trait]
pub trait Yard: Send + Sync {
    /// Adds requests with these payloads, all or none.
    async fn push(&self, payloads: Vec<Bytes>) -> Result<()>;

    /// Takes a batch of at most so many requests, if any is ready.
    async fn claim(&self, most: u32) -> Result<Option<Held>>;

    /// Streams every payload of a batch, in pages.
    async fn read(&self, held: &Held) -> Result<Tally>;

    /// Ends a batch: all of its members are done.
    async fn finish(&self, held: Held) -> Result<()>;

    /// The queue behind it, if it is one of ours.
    fn queue(&self) -> Option<Arc<dyn Queue>> {
        None
    }

    /// The store behind it, if it is one of ours.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// The server that it started, whose memory counts as well.
    fn server(&self) -> Option<u32> {
        None
    }

    /// Closes it; what it still holds goes when it is dropped.
    async fn close(&self) -> Result<()>;
}

/// A claimed batch.
#[derive(Clone, Debug)]
pub enum Held {
    /// Of one of our queues.
    Lease(Lease),
    /// Of another store.
    Range(Range),
}

impl Held {
    /// How many members it has.
    pub fn requests(&self) -> u64 {
        match self {
            Self::Lease(lease) => lease.requests.into(),
            Self::Range(range) => range.len(),
        }
    }

    pub(super) fn lease(&self) -> Result<&Lease> {
        match self {
            Self::Lease(lease) => Ok(lease),
            Self::Range(_) => Err(Error::internal("a range is no lease")),
        }
    }

    pub(super) fn range(&self) -> Result<Range> {
        match self {
            Self::Range(range) => Ok(*range),
            Self::Lease(_) => Err(Error::internal("a lease is no range")),
        }
    }
}

/// What was read: proof that every payload arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many payloads.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The sum of the last byte of each.
    pub check: u64,
}

impl Tally {
    /// Counts a page.
    pub fn page<'a>(&mut self, payloads: impl Iterator<Item = &'a Bytes>) {
        for payload in payloads {
            self.requests += 1;
            self.bytes += payload.len() as u64;
            self.check += u64::from(payload.last().copied().unwrap_or_default());
        }
    }

    /// Adds what another page or batch had.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.check += other.check;
    }
}
