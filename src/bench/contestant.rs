//! The table of contestants: who is measured, and what an answer of each is worth.
//!
//! A new one is one row of [`contestants`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{
    backend,
    front::Front,
    raw_log::{Kind, RawLog},
    yard::Yard,
};
use crate::{
    error::{Error, Result},
    queue::{QueueOptions, memory::MemoryStore},
};

/// What an answered call survives; only equal ones are compared without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Safety {
    /// Power loss: its bytes were synced before the answer.
    Synced,
    /// Nothing, at first: it is written some time after the answer.
    Later,
    /// Nothing beyond its process, ever.
    Process,
}

/// What a contestant is here for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A backend of ours.
    Backend,
    /// What files can do: a log and nothing else.
    RawLog,
    /// An embedded store of others.
    Peer,
    /// One of them whose claim moves rows: it takes part in that only.
    Moves,
    /// A Redis server without our queue.
    Redis,
}

/// What is left of a contestant once it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopens {
    /// Its folder can be opened again.
    Yes,
    /// It can't, but what it reads lies in files, whose cache can be dropped.
    Files,
    /// It can't, and it reads from its memory.
    No,
}

/// One of those that are measured.
#[derive(Clone, Copy, Debug)]
pub struct Contestant {
    /// Its name.
    pub name: &'static str,
    /// What it is here for.
    pub role: Role,
    /// What its answers are worth.
    pub safety: Safety,
    /// The same in words.
    pub durability: &'static str,
    /// Whether it can be opened again.
    pub reopens: Reopens,
    /// Whether it starts a `redis-server`.
    pub needs_server: bool,
    /// Whether it can be opened with every checksum verified.
    pub verifies: bool,
    pub(super) open: fn(Setup) -> Opening,
}

/// How a contestant is opened.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A folder of its own.
    pub folder: PathBuf,
    /// The options of its queue, if it has one.
    pub queue: QueueOptions,
    /// About how many bytes it will be given, for those that make room beforehand.
    pub bytes: u64,
    /// How large the segments of a raw log are.
    pub segment_bytes: u64,
    /// Whether every checksum is verified, by those that can.
    pub verify: bool,
}

impl Setup {
    /// In this folder, as at full scale: no results kept, segments of 64 MiB.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            queue: QueueOptions::default().retention(Duration::ZERO),
            bytes: 0,
            segment_bytes: 64 << 20,
            verify: false,
        }
    }
}

pub(super) type Opening = BoxFuture<'static, Result<Box<dyn Yard>>>;

impl Contestant {
    /// Opens it.
    ///
    /// # Errors
    /// As its own open.
    pub async fn open(&self, setup: Setup) -> Result<Box<dyn Yard>> {
        let opened = (self.open)(setup).await;
        opened.map_err(|error| error.context(self.name))
    }

    /// The one of this name.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): there is none in this build; naming those there are.
    pub fn named(name: &str) -> Result<Self> {
        let all = contestants();
        let found = all.iter().find(|contestant| contestant.name == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|contestant| contestant.name).collect();
            let names = names.join(", ");
            Error::invalid(format!(
                "no backend {name:?} in this build, which has {names}; the features redis and bench-peers add more"
            ))
        })
    }

    /// Whether ratios to this one are meant when a figure is compared with the raw log.
    pub fn is_yardstick(&self) -> bool {
        self.name == YARDSTICK
    }
}

/// All of this build, in the order in which they are shown.
pub fn contestants() -> Vec<Contestant> {
    use Reopens::{Files, No};
    use Role::{Backend, RawLog};
    use Safety::{Process, Synced};
    #[rustfmt::skip]
    let mut all = vec![
        row("memory", Backend, Process, "lost with the process", No,
            |at| Box::pin(backend::open(MemoryStore::new(at.queue), (), Process))),
        #[cfg(feature = "sled")]
        row("sled", Backend, Synced, "flush and fdatasync before the answer", Reopens::Yes,
            |at| Box::pin(async move {
                let store = crate::queue::sled::SledStore::options().queues(at.queue).open(&at.folder).await?;
                backend::open(store, (), Synced).await
            })),
        #[cfg(feature = "journal")]
        Contestant {
            verifies: true,
            ..row("journal", Backend, Synced, "fdatasync before the answer", Reopens::Yes,
                |at| Box::pin(async move {
                    let options = crate::queue::journal::JournalStore::options().queues(at.queue);
                    let store = options.verify(at.verify).open(&at.folder).await?;
                    backend::open(store, (), Synced).await
                }))
        },
        row(YARDSTICK, RawLog, Synced, "fdatasync before the answer; segments zeroed ahead by a background thread", Files,
            |at| raw(at, Kind::Zeroed)),
        row("raw-before", RawLog, Synced, "fdatasync before the answer; segments zeroed before the clock starts", Files,
            |at| raw(at, Kind::ZeroedBefore)),
        row("raw-never", RawLog, Synced, "fdatasync before the answer; segments allocated, never zeroed", Files,
            |at| raw(at, Kind::Allocated)),
        row("raw-growing", RawLog, Synced, "fdatasync before the answer; files that grow", Files,
            |at| raw(at, Kind::Growing)),
    ];
    let others: Vec<Vec<Contestant>> = vec![
        #[cfg(feature = "redis")]
        super::redis::contestants().to_vec(),
        #[cfg(any(feature = "sled", feature = "bench-peers"))]
        super::peer::contestants(),
    ];
    all.extend(others.into_iter().flatten());
    all
}

/// A row of the table.
pub(super) fn row(
    name: &'static str,
    role: Role,
    safety: Safety,
    durability: &'static str,
    reopens: Reopens,
    open: fn(Setup) -> Opening,
) -> Contestant {
    Contestant {
        name,
        role,
        safety,
        durability,
        reopens,
        needs_server: false,
        verifies: false,
        open,
    }
}

fn raw(at: Setup, kind: Kind) -> Opening {
    Box::pin(Front::open(move || RawLog::create(&at, kind)))
}

/// The raw log that ratios are taken to: what a journal could be at best, if its segments are new.
pub const YARDSTICK: &str = "raw";

/// A folder for a contestant below another folder.
pub(super) fn own_folder(below: &Path, name: &str) -> Result<PathBuf> {
    let folder = below.join(name);
    std::fs::create_dir_all(&folder).map_err(|error| {
        Error::internal(format!("{}: can't be made", folder.display())).with_source(error)
    })?;
    Ok(folder)
}
