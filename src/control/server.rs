//! The side of the owner: answers calls, and owes nothing to who makes them.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::geteuid;
use serde::Serialize;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    address, socket,
    wire::{self, Call, Failed, Opened, PROTOCOL, Verb, Welcome},
};
use crate::{
    clock::Timestamp,
    dispatcher::DispatcherHandle,
    error::{Error, Result},
    queue::{Administration, Queue, Store, Transfer, directive},
    request::QueueName,
};

/// Serves an open store at the socket in its folder, until it is closed or dropped.
///
/// Every queue of the store is served, whoever opened it, as far as `access` allows. With the handle of a dispatcher its queues
/// can be explained as well.
///
/// ```no_run
/// # async fn serve(dispatcher: batchyard::RunningDispatcher) -> batchyard::Result<()> {
/// use std::sync::Arc;
/// use batchyard::{ControlAccess, SledStore, Store};
///
/// let store: Arc<dyn Store> = Arc::new(SledStore::open("./store").await?);
/// let (served, handle) = (Arc::clone(&store), Some(dispatcher.handle()));
/// let control = batchyard::serve_control("./store", served, handle, ControlAccess::All)?;
/// // ... later, and then the store itself
/// control.close().await;
/// store.close().await
/// # }
/// ```
///
/// # Errors
/// [`Unavailable`](crate::ErrorKind::Unavailable): the file system of the folder has no sockets, or the folder can't be written.
///
/// # Panics
/// Outside a tokio runtime.
pub fn serve_control(
    folder: impl AsRef<Path>,
    store: Arc<dyn Store>,
    dispatcher: Option<DispatcherHandle>,
    access: ControlAccess,
) -> Result<ControlServer> {
    let folder = folder.as_ref();
    let listener = listen(folder).map_err(|error| {
        let text = format!("{} can't be listened at", socket(folder).display());
        Error::unavailable(text).with_source(error)
    })?;
    let stop = CancellationToken::new();
    let served = Arc::new(Served {
        store,
        dispatcher,
        access,
        frames: Arc::new(Semaphore::new(FRAME_UNITS)),
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        crowded: Notify::new(),
        stop: stop.clone(),
    });
    Ok(ControlServer {
        path: socket(folder),
        stop,
        accepting: tokio::spawn(served.accept(listener)),
    })
}

/// What others may do to a store that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlAccess {
    /// Whatever its owner may.
    All,
    /// Look, explain, pause, resume and flush: the owner counts on it that what is in there is its own.
    Look,
}

impl ControlAccess {
    /// Fails if this verb is not for others.
    fn check(self, verb: &Verb) -> Result<()> {
        let changes = match verb {
            Verb::PushFrom(_, requests, bookmark) => {
                !requests.is_empty() || !directive::is_one(&bookmark.source)
            }
            Verb::Push(..)
            | Verb::Claim(..)
            | Verb::Update(..)
            | Verb::Cancel(..)
            | Verb::Redrive(..)
            | Verb::Purge(..)
            | Verb::Release(..)
            | Verb::Restore => true,
            _ => false,
        };
        if changes && self == Self::Look {
            return Err(Error::invalid(
                "the process that has this store open is the only one to change what is in it; it may be looked at, paused, resumed and flushed",
            ));
        }
        Ok(())
    }
}

/// A control socket that is served.
///
/// At most 256 calls are served at the same time; one more takes the place of one that asks for nothing, or waits for it. What clients are
/// sending in frames of 1 MiB and more takes at most 320 MiB of memory. A call that is not whole after 30 seconds ends its connection, and
/// one that asks for nothing after a minute. A moment that is dumped is given up when no page of it is asked for within ten.
///
/// Dropping it cuts off the clients, and removes the socket.
pub struct ControlServer {
    path: PathBuf,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl ControlServer {
    /// Takes no more calls, and waits up to 5 seconds for those under way.
    pub async fn close(mut self) {
        self.stop.cancel();
        // It catches its own panics' worth: what it served is gone either way.
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.cancel();
        self.accepting.abort();
        // One that stays is a socket where nobody listens, which the next owner replaces.
        let _ = fs::remove_file(&self.path);
    }
}

impl fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlServer")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Listens in place of whoever did before: the caller has the store, so nobody else does.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    let path = socket(folder);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (address, _folder) = address(folder)?;
    let listener = UnixListener::bind(address)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

struct Served {
    store: Arc<dyn Store>,
    dispatcher: Option<DispatcherHandle>,
    access: ControlAccess,
    /// For frames that are large, in units.
    frames: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Somebody waits for a connection: one that asks for nothing ends.
    crowded: Notify,
    stop: CancellationToken,
}

impl Served {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let mut clients = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = self.stop.cancelled() => break,
            };
            while clients.try_join_next().is_some() {}
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Such as too many open files, which passes.
                    tracing::warn!(%error, "a client of the control socket can't be let in");
                    sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            if let Err(error) = check_user(&stream) {
                tracing::warn!(%error, "a client of the control socket is refused");
                continue;
            }
            let permit = tokio::select! {
                permit = self.connection() => permit,
                () = self.stop.cancelled() => break,
            };
            let served = Arc::clone(&self);
            clients.spawn(async move {
                let _permit = permit;
                if let Err(error) = served.converse(stream).await {
                    tracing::debug!(%error, "a client of the control socket was left");
                }
            });
        }
        drop(listener);
        // Those that take longer are cut off.
        let _ = timeout(CLOSING, async {
            while clients.join_next().await.is_some() {}
        })
        .await;
    }

    /// A place for one more client.
    async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        let connections = Arc::clone(&self.connections);
        if let Ok(permit) = Arc::clone(&connections).try_acquire_owned() {
            return Some(permit);
        }
        self.crowded.notify_one();
        connections.acquire_owned().await.ok()
    }

    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let Some(Call::Hello { protocol }) =
            timeout(GREETING, self.next_call(&mut stream)).await??
        else {
            return Ok(());
        };
        let welcome = Welcome {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        };
        wire::write(&mut stream, &answer(Ok(welcome))).await?;
        if protocol != PROTOCOL {
            return Ok(());
        }
        while let Some(call) = self.next_call(&mut stream).await? {
            if let Call::To(queue, Verb::Restore) = &call
                && self.access.check(&Verb::Restore).is_ok()
            {
                return self.restore(queue, &mut stream).await;
            }
            if let Call::Moment(now) = call {
                return self.hold_still(now, &mut stream).await;
            }
            let frame = tokio::select! {
                frame = self.obey(call) => frame,
                () = gone(&stream) => return Ok(()),
            };
            wire::write(&mut stream, &frame).await?;
        }
        Ok(())
    }

    /// The next call; `None` if there is none, or this client is not waited for any longer.
    async fn next_call(&self, stream: &mut UnixStream) -> io::Result<Option<Call>> {
        let first = tokio::select! {
            first = wire::read_first(stream) => first?,
            () = self.stop.cancelled() => self.say_bye(stream).await?,
            () = self.crowded.notified() => self.say_bye(stream).await?,
            () = sleep(IDLE) => self.say_bye(stream).await?,
        };
        let Some(first) = first else {
            return Ok(None);
        };
        self.rest_of(stream, first).await
    }

    /// The call that begins so; it comes soon, and makes way as long as it is not whole.
    async fn rest_of(&self, stream: &mut UnixStream, first: u8) -> io::Result<Option<Call>> {
        let whole = async {
            let length = wire::read_length(stream, first).await?;
            let _room = self.room(length).await;
            wire::read_body(stream, length).await
        };
        let body = tokio::select! {
            body = timeout(FRAME, whole) => Some(body??),
            () = self.crowded.notified() => None,
        };
        match body {
            Some(body) => wire::decode(&body).map(Some),
            None => self.say_bye(stream).await.map(|_| None),
        }
    }

    /// Keeps a moment for as long as its pages are asked for.
    async fn hold_still(&self, now: Timestamp, stream: &mut UnixStream) -> io::Result<()> {
        let begun = tokio::select! {
            begun = self.store.moment(now) => begun,
            () = gone(stream) => return Ok(()),
        };
        let moment = match begun {
            Ok(Some(moment)) => moment,
            Ok(None) => {
                let none: Result<Option<Vec<QueueName>>> = Ok(None);
                return wire::write(stream, &answer(none)).await;
            }
            Err(error) => return wire::write(stream, &answer::<()>(Err(error))).await,
        };
        wire::write(stream, &answer(Ok(Some(moment.queues())))).await?;
        // It keeps from being freed what it holds: who does not want it any more must not keep it.
        while let Ok(call) = timeout(ABANDONED, self.next_part(stream)).await {
            let Some(call) = call? else { return Ok(()) };
            let frame = match call {
                Call::Page(queue, from) => tokio::select! {
                    page = moment.dump(&queue, from) => answer(page),
                    () = gone(stream) => return Ok(()),
                },
                _ => answer::<()>(Err(out_of_place())),
            };
            wire::write(stream, &frame).await?;
        }
        self.say_bye(stream).await.map(drop)
    }

    /// The next part of a dump, for however long it takes to come.
    async fn next_part(&self, stream: &mut UnixStream) -> io::Result<Option<Call>> {
        let first = tokio::select! {
            first = wire::read_first(stream) => first?,
            () = self.stop.cancelled() => self.say_bye(stream).await?,
        };
        match first {
            Some(first) => self.rest_of(stream, first).await,
            None => Ok(None),
        }
    }

    /// Tells a client that nothing more is read.
    async fn say_bye(&self, stream: &mut UnixStream) -> io::Result<Option<u8>> {
        wire::write(stream, &wire::BYE).await.map(|()| None)
    }

    /// Room in memory for a frame; small ones need none.
    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes / FRAME_UNIT_BYTES).unwrap_or(u32::MAX);
        if units == 0 {
            return None;
        }
        Arc::clone(&self.frames)
            .acquire_many_owned(units)
            .await
            .ok()
    }

    /// The frame of a call's result.
    async fn obey(&self, call: Call) -> Vec<u8> {
        match call {
            Call::Hello { .. } | Call::Moment(_) | Call::Page(..) => {
                answer::<()>(Err(out_of_place()))
            }
            Call::Queues(prefix) => answer(self.store.queues(&prefix).await),
            Call::Open(name) => answer(self.open(&name).await),
            Call::To(name, verb) => match self.allowed(&name, &verb).await {
                Ok(queue) => self.ask(&*queue, verb).await,
                Err(error) => answer::<()>(Err(error)),
            },
        }
    }

    async fn allowed(&self, name: &QueueName, verb: &Verb) -> Result<Arc<dyn Queue>> {
        self.access.check(verb)?;
        self.store.queue(name).await
    }

    async fn open(&self, name: &QueueName) -> Result<Opened> {
        let queue = self.store.queue(name).await?;
        Ok(Opened {
            capabilities: queue.capabilities(),
            has_transfer: queue.transfer().is_some(),
            changes: queue.pushed().map(|changes| *changes.borrow()),
        })
    }

    async fn ask(&self, queue: &dyn Queue, verb: Verb) -> Vec<u8> {
        match verb {
            Verb::Push(now, requests) => answer(queue.push(now, requests).await),
            Verb::PushFrom(now, requests, bookmark) => {
                answer(queue.push_from(now, requests, bookmark).await)
            }
            Verb::Bookmark(source) => answer(queue.bookmark(&source).await),
            Verb::Stats(now) => answer(queue.stats(now).await),
            Verb::Claim(now, claim) => answer(queue.claim(now, &claim).await),
            Verb::Read(lease, page) => answer(queue.read(&lease, page).await),
            Verb::Update(now, lease, update) => answer(queue.update(now, &lease, update).await),
            Verb::Changed(seen) => answer(self.changed(queue, seen).await),
            Verb::Explain => answer(self.explain(&queue.name()).await),
            Verb::Dump(now, from) => answer(match transfer(queue) {
                Ok(transfer) => transfer.dump(now, from).await,
                Err(error) => Err(error),
            }),
            Verb::Restore | Verb::Add(_) => answer::<()>(Err(out_of_place())),
            verb => match queue.admin() {
                Some(admin) => administer(admin, verb).await,
                None => answer::<()>(Err(Error::invalid("this backend has no administration"))),
            },
        }
    }

    /// Waits until the counter of changes is another than the one that was seen, or somebody else needs the connection.
    async fn changed(&self, queue: &dyn Queue, seen: u64) -> Result<u64> {
        let ended = || Error::closed("the queue was closed");
        let mut changes = queue.pushed().ok_or_else(ended)?;
        tokio::select! {
            moved = changes.wait_for(|count| *count != seen) => {
                moved.map(|count| *count).map_err(|_| ended())
            }
            () = self.crowded.notified() => {
                // For when this one is idle, in a moment.
                self.crowded.notify_one();
                Ok(seen)
            }
            () = self.stop.cancelled() => Err(ended()),
        }
    }

    async fn explain(&self, queue: &QueueName) -> Result<crate::dispatcher::Explanation> {
        let none = || {
            Error::not_found(
                "the process that has the store open serves no queue with a dispatcher",
            )
        };
        let dispatcher = self.dispatcher.as_ref().ok_or_else(none)?;
        dispatcher.explain(queue).await
    }

    /// Takes in a dump, as long as its parts come.
    async fn restore(&self, name: &QueueName, stream: &mut UnixStream) -> io::Result<()> {
        let opened = self.store.queue(name).await;
        let queue = match opened {
            Ok(queue) => queue,
            Err(error) => return wire::write(stream, &answer::<()>(Err(error))).await,
        };
        let begun = match transfer(&*queue) {
            Ok(transfer) => transfer.restore().await,
            Err(error) => Err(error),
        };
        let mut restore = match begun {
            Ok(restore) => restore,
            Err(error) => return wire::write(stream, &answer::<()>(Err(error))).await,
        };
        wire::write(stream, &answer(Ok(()))).await?;
        while let Some(call) = self.next_part(stream).await? {
            let added = match call {
                Call::To(queue, Verb::Add(records)) if queue == *name => restore.add(records).await,
                _ => Err(out_of_place()),
            };
            wire::write(stream, &answer(added)).await?;
        }
        Ok(())
    }
}

/// What is asked of the administration of a queue.
async fn administer(admin: &dyn Administration, verb: Verb) -> Vec<u8> {
    match verb {
        Verb::Status(now, id) => answer(admin.status(now, id).await),
        Verb::List(now, list) => answer(admin.list(now, &list).await),
        Verb::Results(now, after, most) => answer(admin.results(now, after, most).await),
        Verb::Cancel(now, ids) => answer(admin.cancel(now, &ids).await),
        Verb::Redrive(now, ids) => answer(admin.redrive(now, &ids).await),
        Verb::Purge(now, ids) => answer(admin.purge(now, &ids).await),
        Verb::Batch(now, id) => answer(admin.batch(now, id).await),
        Verb::Batches(now, after, most) => answer(admin.batches(now, after, most).await),
        Verb::Release(now, ids) => answer(admin.release(now, &ids).await),
        _ => answer::<()>(Err(out_of_place())),
    }
}

fn transfer(queue: &dyn Queue) -> Result<&dyn Transfer> {
    queue
        .transfer()
        .ok_or_else(|| Error::invalid("this backend can't be exported or imported"))
}

/// The frame of a result.
fn answer<T: Serialize>(result: Result<T>) -> Vec<u8> {
    let result = result.map_err(|error| Failed::new(&error));
    wire::encode(&result).unwrap_or_else(|error| {
        // It says that it is too large, and is small itself.
        let failed: std::result::Result<(), Failed> = Err(Failed::new(&error));
        wire::encode(&failed).unwrap_or_default()
    })
}

fn out_of_place() -> Error {
    Error::internal("the control socket was asked for something out of place")
}

/// The user of this process and root may ask for anything, and nobody else for anything at all.
fn check_user(stream: &UnixStream) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user == 0 || user == geteuid().as_raw() {
        return Ok(());
    }
    let text = format!("it belongs to user {user}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Waits until a client that was promised an answer does not want it any more.
async fn gone(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It has ended, or says something before it was answered, which ends it.
            _ => return,
        }
    }
}

const CONNECTIONS: usize = 256;
const FRAME_UNIT_BYTES: usize = 1 << 20;
/// Two of the largest frames.
const FRAME_UNITS: usize = 2 * wire::MAX_FRAME_BYTES / FRAME_UNIT_BYTES;
const GREETING: Duration = Duration::from_secs(30);
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// How long a frame may take from its first byte to its last.
const FRAME: Duration = Duration::from_secs(30);
/// Of a moment nobody may ask for nothing for so long.
const ABANDONED: Duration = Duration::from_mins(10);
const CLOSING: Duration = Duration::from_secs(5);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
