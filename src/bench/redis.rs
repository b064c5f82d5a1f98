//! Redis as a contestant: our queue on it, and what the server does without our queue.
//!
//! `rpush` is LangBatch's own path: a list, one RPUSH for each push; it has no claim, so that a batch is
//! read and then trimmed away. `redis-pipelined` is the best that this server does with the same bytes:
//! whatever waits goes into one RPUSH.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Client, Cmd, Connection, FromRedisValue, aio::MultiplexedConnection};

use super::{
    backend,
    contestant::{Contestant, Opening, Reopens, Role, Safety, Setup, row},
    front::{Engine, Front, Range, Reader},
    server::{DEFAULT, DURABLE, Server},
    yard::{Held, Tally, Yard},
};
use crate::{
    error::{Error, Result},
    queue::redis::RedisStore,
};

/// Those of a machine with a `redis-server`; a server is started for each run.
pub(super) fn contestants() -> [Contestant; 4] {
    use Role::{Backend, Redis};
    use Safety::{Later, Synced};
    let no = Reopens::No;
    #[rustfmt::skip]
    let all = [
        row("redis", Backend, Synced, "appendonly yes, appendfsync always", no,
            |at| queue(at, DURABLE, Synced)),
        row("redis-default", Backend, Later, "default settings: snapshots after minutes, an answer may be lost", no,
            |at| queue(at, DEFAULT, Later)),
        row("rpush", Redis, Synced, "appendonly yes, appendfsync always; no claim: a batch is read, then trimmed", no,
            |at| Box::pin(Rpush::open(at))),
        row("redis-pipelined", Redis, Synced, "appendonly yes, appendfsync always; no claim: a batch is read, then trimmed", no,
            |at| Box::pin(Front::open(move || Pipelined::open(&at)))),
    ];
    all.map(|contestant| Contestant {
        needs_server: true,
        ..contestant
    })
}

fn queue(at: Setup, settings: &'static [&'static str], safety: Safety) -> Opening {
    Box::pin(async move {
        let server = Server::start(&at.folder, settings)?;
        let store = RedisStore::connect(&server.url()).await?;
        backend::open(store.with_options(at.queue), server, safety).await
    })
}

/// A list on a server, with one connection that all callers share.
struct Rpush {
    connection: MultiplexedConnection,
    taken: AtomicU64,
    trimmed: AtomicU64,
    server: Server,
}

impl Rpush {
    async fn open(at: Setup) -> Result<Box<dyn Yard>> {
        let server = Server::start(&at.folder, DURABLE)?;
        let client = Client::open(server.url()).map_err(failed)?;
        let connection = client.get_multiplexed_async_connection().await;
        Ok(Box::new(Self {
            connection: connection.map_err(failed)?,
            taken: AtomicU64::new(0),
            trimmed: AtomicU64::new(0),
            server,
        }))
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(failed)
    }
}

#[async_trait]
impl Yard for Rpush {
    async fn push(&self, payloads: Vec<Bytes>) -> Result<()> {
        let _: u64 = self.query(&rpush(payloads.iter())).await?;
        Ok(())
    }

    async fn claim(&self, most: u32) -> Result<Option<Held>> {
        let length: u64 = self.query(redis::cmd("LLEN").arg(KEY)).await?;
        let end = self.trimmed.load(Ordering::Relaxed) + length;
        let first = self.taken.load(Ordering::Relaxed);
        let range = Range {
            first,
            end: end.min(first + u64::from(most)),
        };
        self.taken.store(range.end, Ordering::Relaxed);
        Ok((range.len() > 0).then_some(Held::Range(range)))
    }

    async fn read(&self, held: &Held) -> Result<Tally> {
        let range = held.range()?;
        let mut tally = Tally::default();
        for (first, last) in pages(range, self.trimmed.load(Ordering::Relaxed)) {
            let page: Vec<Bytes> = self.query(&lrange(first, last)).await?;
            tally.page(page.iter());
        }
        Ok(tally)
    }

    async fn finish(&self, held: Held) -> Result<()> {
        let range = held.range()?;
        let _: () = self.query(&ltrim(range)).await?;
        self.trimmed.store(range.end, Ordering::Relaxed);
        Ok(())
    }

    fn server(&self) -> Option<u32> {
        Some(self.server.process())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A list on a server, filled by one thread with all that waits.
struct Pipelined {
    connection: Connection,
    next: u64,
    taken: u64,
    trimmed: Arc<AtomicU64>,
    server: Server,
}

struct ListReader {
    connection: Mutex<Connection>,
    trimmed: Arc<AtomicU64>,
}

impl Pipelined {
    fn open(at: &Setup) -> Result<Self> {
        let server = Server::start(&at.folder, DURABLE)?;
        Ok(Self {
            connection: connect(&server)?,
            next: 0,
            taken: 0,
            trimmed: Arc::default(),
            server,
        })
    }
}

impl Engine for Pipelined {
    type Reader = ListReader;

    fn reader(&self) -> Result<ListReader> {
        Ok(ListReader {
            connection: Mutex::new(connect(&self.server)?),
            trimmed: Arc::clone(&self.trimmed),
        })
    }

    fn commit(&mut self, pushes: &[Vec<Bytes>]) -> Result<()> {
        let command = rpush(pushes.iter().flatten());
        self.next = command.query(&mut self.connection).map_err(failed)?;
        self.next += self.trimmed.load(Ordering::Relaxed);
        Ok(())
    }

    fn claim(&mut self, most: u64) -> Result<Option<Range>> {
        let range = Range {
            first: self.taken,
            end: self.next.min(self.taken + most),
        };
        self.taken = range.end;
        Ok((range.len() > 0).then_some(range))
    }

    fn finish(&mut self, range: Range) -> Result<()> {
        let trimmed = ltrim(range).exec(&mut self.connection);
        trimmed.map_err(failed)?;
        self.trimmed.store(range.end, Ordering::Relaxed);
        Ok(())
    }
}

impl Reader for ListReader {
    fn read(&self, range: Range, take: &mut dyn FnMut(Vec<Bytes>)) -> Result<()> {
        let connection = self.connection.lock();
        let mut connection = connection.unwrap_or_else(PoisonError::into_inner);
        for (first, last) in pages(range, self.trimmed.load(Ordering::Relaxed)) {
            take(
                lrange(first, last)
                    .query(&mut *connection)
                    .map_err(failed)?,
            );
        }
        Ok(())
    }
}

fn connect(server: &Server) -> Result<Connection> {
    let client = Client::open(server.url()).map_err(failed)?;
    client.get_connection().map_err(failed)
}

fn rpush<'a>(payloads: impl Iterator<Item = &'a Bytes>) -> Cmd {
    let mut command = redis::cmd("RPUSH");
    command.arg(KEY);
    for payload in payloads {
        command.arg(&payload[..]);
    }
    command
}

fn lrange(first: u64, last: u64) -> Cmd {
    let mut command = redis::cmd("LRANGE");
    command.arg(KEY).arg(first).arg(last);
    command
}

/// Removes the first so many.
fn ltrim(range: Range) -> Cmd {
    let mut command = redis::cmd("LTRIM");
    command.arg(KEY).arg(range.len()).arg(-1);
    command
}

/// The first and the last index of each page of a range.
fn pages(range: Range, trimmed: u64) -> impl Iterator<Item = (u64, u64)> {
    let (first, end) = (range.first - trimmed, range.end - trimmed);
    (first..end)
        .step_by(PAGE)
        .map(move |at| (at, end.min(at + PAGE as u64) - 1))
}

fn failed(error: redis::RedisError) -> Error {
    Error::unavailable("the Redis server").with_source(error)
}

const KEY: &str = "list";
const PAGE: usize = 1000;
