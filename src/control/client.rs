//! The side of everybody else: the store of another process, as a store.

mod dumps;

use std::{
    fmt, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::Handle,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::dumps::ControlMoment;
use super::{
    address, server, socket,
    wire::{self, Call, Failed, Opened, PROTOCOL, Verb, Welcome},
};
use crate::{
    batch::{BatchId, Claim, Lease, Member, Page, Update},
    clock::Timestamp,
    dispatcher::Explanation,
    error::{Error, ErrorKind, Result},
    queue::{
        Administration, BatchEntry, Cancelled, Capabilities, Entry, List, Moment, Queue,
        ResultCursor, SettledPage, Store, Transfer,
    },
    request::{Bookmark, NewRequest, Pushed, QueueName, RequestId},
    stats::Stats,
};

/// A store that another process has open, through the socket in its folder.
///
/// What it answers is as durable as the owner's answers are. Options of queues are the owner's.
///
/// # Errors
/// Every verb fails with [`Unavailable`](crate::ErrorKind::Unavailable) when the owner is gone; the error says whether the verb had
/// no effect, or whether that is unknown.
///
/// # Cancel safety
/// As [`Queue`] says: a verb whose future is dropped is given up by the owner as well, unless it has taken effect.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> batchyard::Result<()> {
/// use batchyard::{ControlStore, Store};
/// let store = ControlStore::connect("./store").await?;
/// println!("{:?}, served by {}", store.queues("").await?, store.pid());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ControlStore {
    owner: Arc<Owner>,
    pid: u32,
}

impl ControlStore {
    /// Connects to the process that has the store in this folder open.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): nobody serves it. [`Unavailable`](crate::ErrorKind::Unavailable): who does, answers
    /// nothing within 30 seconds, refuses this user, or is of a version that speaks otherwise.
    pub async fn connect(folder: impl AsRef<Path>) -> Result<Self> {
        let owner = Owner {
            folder: folder.as_ref().to_owned(),
            idle: Mutex::default(),
            is_closed: AtomicBool::new(false),
            ending: Mutex::default(),
        };
        let (connection, welcome) = owner.dial().await?;
        owner.put_back(connection);
        Ok(Self {
            owner: Arc::new(owner),
            pid: welcome.pid,
        })
    }

    /// The process that has the store open.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Why nothing has gone yet from a queue, and when it will, as the owner's dispatcher says.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): no dispatcher of the owner serves the queue. And as
    /// [`RunningDispatcher::explain`](crate::RunningDispatcher::explain).
    pub async fn explain(&self, queue: &QueueName) -> Result<Explanation> {
        self.owner
            .call(&Call::To(queue.clone(), Verb::Explain))
            .await
    }
}

#[async_trait]
impl Store for ControlStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        let opened: Opened = self.owner.call(&Call::Open(name.clone())).await?;
        let capabilities = Capabilities {
            // Whatever the owner's is by itself: here are two.
            shared: true,
            ..opened.capabilities
        };
        Ok(Arc::new(ControlQueue {
            owner: Arc::clone(&self.owner),
            name: name.clone(),
            capabilities,
            has_transfer: opened.has_transfer,
            first_seen: opened.changes,
            changes: OnceLock::new(),
            is_closed: AtomicBool::new(false),
        }))
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>> {
        self.owner.call(&Call::Queues(prefix.to_owned())).await
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>> {
        let moment = ControlMoment::begin(&self.owner, now).await?;
        Ok(moment.map(|moment| Box::new(moment) as _))
    }

    /// Refuses new calls through this handle; the owner's store stays open.
    async fn close(&self) -> Result<()> {
        self.owner.is_closed.store(true, Ordering::Release);
        Ok(())
    }
}

/// A queue of a [`ControlStore`].
#[derive(Debug)]
pub struct ControlQueue {
    owner: Arc<Owner>,
    name: QueueName,
    capabilities: Capabilities,
    has_transfer: bool,
    /// Its counter of changes when it was opened, if it has one.
    first_seen: Option<u64>,
    changes: OnceLock<Changes>,
    is_closed: AtomicBool,
}

impl ControlQueue {
    async fn ask<T: DeserializeOwned>(&self, verb: Verb) -> Result<T> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::closed(format!("queue {:?} was closed", self.name)));
        }
        self.owner.call(&Call::To(self.name.clone(), verb)).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Queue for ControlQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.ask(Verb::Push(now, requests)).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        self.ask(Verb::Stats(now)).await
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        self.ask(Verb::Claim(now, claim.clone())).await
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        self.ask(Verb::Read(lease.clone(), page)).await
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        self.ask(Verb::Update(now, lease.clone(), update)).await
    }

    fn now(&self) -> Timestamp {
        crate::clock::now()
    }

    fn name(&self) -> QueueName {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        let first_seen = self.first_seen?;
        let watch = || Changes::watch(&self.owner, &self.name, first_seen);
        Some(self.changes.get_or_init(watch).seen.clone())
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        self.ask(Verb::PushFrom(now, requests, bookmark)).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        self.ask(Verb::Bookmark(source.to_owned())).await
    }

    fn admin(&self) -> Option<&dyn Administration> {
        self.capabilities.administration.then_some(self as _)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        self.has_transfer.then_some(self as _)
    }

    /// Refuses new calls through this handle; the owner's queue stays open.
    async fn close(&self) -> Result<()> {
        self.is_closed.store(true, Ordering::Release);
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Administration for ControlQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        self.ask(Verb::Status(now, id)).await
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        self.ask(Verb::List(now, *list)).await
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        self.ask(Verb::Results(now, after, max_requests)).await
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        self.ask(Verb::Cancel(now, ids.to_owned())).await
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.ask(Verb::Redrive(now, ids.to_owned())).await
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        self.ask(Verb::Purge(now, ids.to_owned())).await
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        self.ask(Verb::Batch(now, id)).await
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        self.ask(Verb::Batches(now, after, max_batches)).await
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        self.ask(Verb::Release(now, ids.to_owned())).await
    }
}

/// Follows the counter of changes of a queue.
#[derive(Debug)]
struct Changes {
    seen: watch::Receiver<u64>,
    following: JoinHandle<()>,
}

impl Changes {
    fn watch(owner: &Arc<Owner>, name: &QueueName, seen: u64) -> Self {
        let (sender, receiver) = watch::channel(seen);
        let (owner, name) = (Arc::clone(owner), name.clone());
        let following = tokio::spawn(async move {
            let mut seen = seen;
            // When it fails the owner is gone, and the channel ends.
            while let Ok(count) = owner
                .call(&Call::To(name.clone(), Verb::Changed(seen)))
                .await
            {
                seen = count;
                sender.send_replace(count);
            }
        });
        Self {
            seen: receiver,
            following,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// The process that has the store open.
struct Owner {
    folder: PathBuf,
    /// Connections that wait for a call.
    idle: Mutex<Vec<Connection>>,
    /// By its user; the owner's store stays open.
    is_closed: AtomicBool,
    /// Dumps that were given up, until the owner has seen it.
    ending: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A connection that has greeted; dropped in the middle of a call, it gives that up.
struct Connection {
    stream: UnixStream,
    used: Instant,
}

impl Connection {
    /// Ends it, and waits until the owner has.
    async fn end(mut self) {
        let ended = async {
            self.stream.shutdown().await?;
            self.stream.read_to_end(&mut Vec::new()).await
        };
        // If nothing is heard the owner is gone, or as good as that.
        let _ = timeout(GREETING, ended).await;
    }

    /// Whether the owner has not ended it, such as to make room for another client.
    fn is_open(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The body of the answer to a call; `None` if the owner had said bye before it read the call.
    async fn exchange(&mut self, frame: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let written = wire::write(&mut self.stream, frame).await;
        // An answer takes as long as it takes; a bye is there even if nothing can be written any more.
        let first = match wire::read_first(&mut self.stream).await {
            Ok(Some(first)) => first,
            nothing => {
                written?;
                nothing?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let length = wire::read_length(&mut self.stream, first).await?;
        if length == 0 {
            return Ok(None);
        }
        let answer = wire::read_body(&mut self.stream, length).await?;
        self.used = Instant::now();
        Ok(Some(answer))
    }
}

impl Owner {
    async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
        let frame = wire::encode(call)?;
        self.check_open()?;
        loop {
            let mut connection = match self.take() {
                Some(connection) => connection,
                None => self.dial_again().await?,
            };
            if let Some(answer) = self.ask(&mut connection, &frame).await? {
                self.put_back(connection);
                return answer;
            }
        }
    }

    /// The result of a call; `None` if the owner had said bye. An error if the connection can't be used any more.
    async fn ask<T: DeserializeOwned>(
        &self,
        connection: &mut Connection,
        frame: &[u8],
    ) -> Result<Option<Result<T>>> {
        let answer = connection.exchange(frame).await;
        let Some(answer) = answer.map_err(|error| self.lost(error))? else {
            return Ok(None);
        };
        let result: Result<T, Failed> = wire::decode(&answer).map_err(|error| self.lost(error))?;
        Ok(Some(result.map_err(Failed::into_error)))
    }

    /// Ends what goes on by this connection; who begins something of the kind waits until the owner has seen it.
    fn end(&self, connection: Option<Connection>) {
        if let (Some(connection), Ok(runtime)) = (connection, Handle::try_current()) {
            held(&self.ending).push(runtime.spawn(connection.end()));
        }
    }

    /// A dump that this process has given up is in no other's way.
    async fn wait_for_those_that_end(&self) {
        let ending = std::mem::take(&mut *held(&self.ending));
        for ended in ending {
            // It does not panic, and is not stopped.
            let _ = ended.await;
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            let text = format!("the store in {} was closed", self.folder.display());
            return Err(Error::closed(text));
        }
        Ok(())
    }

    fn said_bye(&self) -> Error {
        let text = format!(
            "the process that has {} open is closing it",
            self.folder.display()
        );
        Error::unavailable(text)
    }

    fn lost(&self, error: io::Error) -> Error {
        let text = format!(
            "the process that has {} open is gone, or does not answer any more; whether it did what it was asked for is unknown",
            self.folder.display()
        );
        Error::unavailable(text).with_source(error)
    }

    /// A new connection to an owner that was there.
    async fn dial_again(&self) -> Result<Connection> {
        match self.dial().await {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::unavailable(format!(
                "the process that had {} open is gone, or closes it; this call had no effect",
                self.folder.display()
            ))
            .with_source(error)),
            dialled => dialled.map(|(connection, _)| connection),
        }
    }

    async fn dial(&self) -> Result<(Connection, Welcome)> {
        let silent = |_| {
            let socket = socket(&self.folder);
            Error::unavailable(format!("who serves {} does not answer", socket.display()))
        };
        let greeting = timeout(GREETING, self.greet()).await;
        let (connection, welcome) = greeting.map_err(silent)??;
        if welcome.protocol == PROTOCOL {
            return Ok((connection, welcome));
        }
        Err(Error::unavailable(format!(
            "{} is open in the process with pid {}, which is batchyard {} and speaks another version of the control protocol than this one, {}; use the same version of the program",
            self.folder.display(),
            welcome.pid,
            welcome.version,
            env!("CARGO_PKG_VERSION")
        )))
    }

    /// A new connection, as soon as there is a place for it.
    async fn greet(&self) -> Result<(Connection, Welcome)> {
        let hello = wire::encode(&Call::Hello { protocol: PROTOCOL })?;
        loop {
            let stream = self.connect().await.map_err(|error| self.nobody(error))?;
            let mut connection = Connection {
                stream,
                used: Instant::now(),
            };
            // Who ends before the welcome is about to be gone.
            let answer = connection.exchange(&hello).await;
            let Some(answer) = answer.map_err(|error| self.nobody(error))? else {
                continue;
            };
            let welcome: Result<Welcome, Failed> =
                wire::decode(&answer).map_err(|error| self.lost(error))?;
            return Ok((connection, welcome.map_err(Failed::into_error)?));
        }
    }

    fn nobody(&self, error: io::Error) -> Error {
        let socket = socket(&self.folder);
        let socket = socket.display();
        let failed = match error.kind() {
            io::ErrorKind::PermissionDenied => Error::unavailable(format!(
                "{socket} answers nobody but the user who serves it, and root"
            )),
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Error::not_found(format!("nobody serves {socket}")),
            _ => Error::unavailable(format!("{socket} can't be connected to")),
        };
        failed.with_source(error)
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let (address, _folder) = address(&self.folder)?;
        UnixStream::connect(address).await
    }

    /// A connection that waits for a call, and that the owner has not given up meanwhile.
    fn take(&self) -> Option<Connection> {
        let mut idle = held(&self.idle);
        let is_fresh = |connection: &Connection| connection.used.elapsed() < FRESH;
        idle.pop()
            .filter(|connection| is_fresh(connection) && connection.is_open())
    }

    fn put_back(&self, connection: Connection) {
        let mut idle = held(&self.idle);
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const GREETING: Duration = Duration::from_secs(30);
/// Well before the owner gives one up.
const FRESH: Duration = server::IDLE.checked_div(2).expect("not zero");
const MAX_IDLE: usize = 8;
