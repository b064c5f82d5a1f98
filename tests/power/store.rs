//! The stores under test, and what they hold.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use batchyard::{
    JournalStore, MemoryQueue, Queue, QueueName, QueueOptions, Result, SledStore, Store, Timestamp,
    transfer::{DumpFrom, Record},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sled,
    Journal,
}

impl Backend {
    pub(crate) const ALL: [Self; 2] = [Self::Sled, Self::Journal];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Journal => "journal",
        }
    }

    /// Opens a store and its queue.
    pub(crate) async fn open(self, path: &Path) -> Result<Opened> {
        self.open_with(path, How::default()).await
    }

    pub(crate) async fn open_with(self, path: &Path, how: How) -> Result<Opened> {
        let name = QueueName::default();
        match self {
            Self::Sled => {
                let store = SledStore::options()
                    .low_space_mark(how.low_space_mark)
                    .cache_bytes(how.cache_bytes)
                    .offer_held(how.offer_held)
                    .open_timeout(Duration::from_mins(1))
                    .open(path)
                    .await?;
                let queue = store.queue_with(&name, options()).await;
                Opened::new(Box::new(store), queue.map(|queue| Arc::new(queue) as _)).await
            }
            Self::Journal => {
                let store = JournalStore::options()
                    .low_space_mark(how.low_space_mark)
                    .offer_held(how.offer_held)
                    .segment_bytes(SEGMENT_BYTES)
                    .open(path)
                    .await?;
                let damage = store
                    .report()
                    .iter()
                    .find(|line| line.starts_with("damaged"));
                assert_eq!(damage, None, "nothing was damaged: it was only not synced");
                let queue = store.queue_with(&name, options()).await;
                Opened::new(Box::new(store), queue.map(|queue| Arc::new(queue) as _)).await
            }
        }
    }
}

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Below which a disk has too little space.
    pub(crate) low_space_mark: u64,
    /// What sled keeps in memory.
    pub(crate) cache_bytes: u64,
    /// Whether batches that were held are offered at once.
    pub(crate) offer_held: bool,
}

impl Default for How {
    fn default() -> Self {
        Self {
            low_space_mark: 0,
            cache_bytes: 4 << 20,
            offer_held: true,
        }
    }
}

/// Small, so that a life goes through many.
const SEGMENT_BYTES: u32 = 128 << 10;

/// An open store.
pub(crate) struct Opened {
    pub(crate) store: Box<dyn Store>,
    pub(crate) queue: Arc<dyn Queue>,
}

impl Opened {
    async fn new(store: Box<dyn Store>, queue: Result<Arc<dyn Queue>>) -> Result<Self> {
        match queue {
            Ok(queue) => Ok(Self { store, queue }),
            Err(error) => {
                let _ = store.close().await;
                Err(error)
            }
        }
    }

    /// Ends it, however the disk is; nothing of it is running any more.
    pub(crate) async fn end(self) -> Result<()> {
        let Self { store, queue } = self;
        drop(queue);
        in_time("closing", store.close()).await
    }
}

fn options() -> QueueOptions {
    QueueOptions::default().retention(Duration::from_hours(1))
}

/// A queue that says what must be.
pub(crate) fn oracle() -> Arc<dyn Queue> {
    Arc::new(MemoryQueue::new(options()))
}

/// One that goes on from what a queue holds; nobody has a lease.
pub(crate) async fn oracle_of(queue: &dyn Queue, now: Timestamp) -> Arc<dyn Queue> {
    let oracle = oracle();
    let restore = oracle.transfer().unwrap().restore().await;
    restore
        .unwrap()
        .add(records(queue, now).await.unwrap())
        .await
        .unwrap();
    oracle
}

/// All that a queue holds, a line a record.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Held(Vec<String>);

impl Held {
    pub(crate) async fn of(queue: &dyn Queue, now: Timestamp) -> Result<Self> {
        let records = records(queue, now).await?;
        let Some(Record::Queue(end)) = records.last() else {
            panic!("a dump ends with its queue");
        };
        // The lower half of all batch ids is one number that every queue draws for itself.
        let salt = format!("{:032x}", end.last_batch.as_u128()).split_off(16);
        let lines = records.iter().map(|record| line(record).replace(&salt, ""));
        Ok(Self(lines.collect()))
    }

    pub(crate) fn difference(&self, other: &Self) -> String {
        let short = |line: &String| line.chars().take(600).collect::<String>();
        let lacks = self.0.iter().filter(|line| !other.0.contains(line));
        let has = other.0.iter().filter(|line| !self.0.contains(line));
        let lacks: Vec<_> = lacks.take(3).map(short).collect();
        let has: Vec<_> = has.take(3).map(short).collect();
        format!("\n  lacks {lacks:#?}\n  has {has:#?}")
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records", self.0.len())
    }
}

/// A record, with a checksum for a payload.
fn line(record: &Record) -> String {
    let mut record = record.clone();
    if let Record::Request(request) = &mut record
        && let Some(payload) = &mut request.entry.payload
    {
        *payload = format!("{:08x}", crc32fast::hash(payload)).into();
    }
    format!("{record:?}")
}

/// The records of a queue.
async fn records(queue: &dyn Queue, now: Timestamp) -> Result<Vec<Record>> {
    let transfer = queue.transfer().expect("it can be dumped");
    let (mut records, mut from) = (Vec::new(), Some(DumpFrom::default()));
    while let Some(next) = from {
        let page = in_time("a dump", transfer.dump(now, next)).await?;
        records.extend(page.records);
        from = page.next;
    }
    Ok(records)
}

/// Nothing may hang, whatever the disk does.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_mins(2), future).await;
    done.unwrap_or_else(|_| panic!("{what} hangs"))
}
