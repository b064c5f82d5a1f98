//! The side of the owner: answers calls, and owes nothing to who makes them.

mod lasting;
mod listening;

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use rustix::process::geteuid;
use serde::Serialize;
use tokio::{
    net::UnixStream,
    sync::{Notify, OwnedSemaphorePermit, RwLock, Semaphore},
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::listening::{Listening, Socket};
use super::{
    socket,
    wire::{self, Call, Failed, Opened, PROTOCOL, Verb, Welcome},
};
use crate::{
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
    serve(folder.as_ref(), (store, dispatcher), access, None)
}

/// As [`serve_control`], by a process that needs the store for a while only: it lets another one have it that wants it for
/// itself, as [`ControlServer::wanted`] tells.
///
/// ```no_run
/// # async fn serve(store: std::sync::Arc<batchyard::SledStore>) -> batchyard::Result<()> {
/// use batchyard::{ControlAccess, Store, serve_control_for_now};
///
/// let control = serve_control_for_now("./store", store.clone(), ControlAccess::All)?;
/// tokio::select! {
///     () = control.wanted() => {}
///     () = async { /* what the store is needed for */ } => {}
/// }
/// control.close().await;
/// store.close().await
/// # }
/// ```
///
/// # Errors
/// As [`serve_control`].
///
/// # Panics
/// As [`serve_control`].
pub fn serve_control_for_now(
    folder: impl AsRef<Path>,
    store: Arc<dyn Store>,
    access: ControlAccess,
) -> Result<ControlServer> {
    let wanted = Some(CancellationToken::new());
    serve(folder.as_ref(), (store, None), access, wanted)
}

fn serve(
    folder: &Path,
    (store, dispatcher): (Arc<dyn Store>, Option<DispatcherHandle>),
    access: ControlAccess,
    wanted: Option<CancellationToken>,
) -> Result<ControlServer> {
    let listening = Listening::begin(folder).map_err(|error| {
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
        dumping: RwLock::new(()),
        wanted: wanted.clone(),
        stop: stop.clone(),
    });
    Ok(ControlServer {
        socket: Arc::clone(&listening.socket),
        wanted,
        stop,
        accepting: tokio::spawn(served.accept(listening)),
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
    socket: Arc<Socket>,
    /// Cancelled when somebody wants the store for itself; `None`: it stays.
    wanted: Option<CancellationToken>,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl ControlServer {
    /// Waits until another process wants the store for itself: close this, and then the store. Never, unless it is served by
    /// [`serve_control_for_now`]. Cancel safe.
    pub fn wanted(&self) -> impl Future<Output = ()> + Send + use<> {
        let wanted = self.wanted.clone();
        async move {
            match wanted {
                Some(wanted) => wanted.cancelled().await,
                None => std::future::pending().await,
            }
        }
    }

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
        self.socket.remove();
    }
}

impl fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlServer")
            .field("folder", &self.socket.folder)
            .finish_non_exhaustive()
    }
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
    /// Read by those who take in a dump, or have a moment.
    dumping: RwLock<()>,
    wanted: Option<CancellationToken>,
    stop: CancellationToken,
}

impl Served {
    async fn accept(self: Arc<Self>, mut listening: Listening) {
        let mut clients = JoinSet::new();
        let mut looks = interval(LOOK_AGAIN);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stream = tokio::select! {
                stream = listening.listener.accept() => stream,
                _ = looks.tick() => {
                    listening.mend();
                    continue;
                }
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
        listening.socket.remove();
        drop(listening);
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
            stays: self.wanted.is_none(),
        };
        wire::write(&mut stream, &answer(Ok(welcome))).await?;
        if protocol != PROTOCOL {
            return Ok(());
        }
        while let Some(call) = self.next_call(&mut stream).await? {
            if let Call::To(queue, Verb::Restore) = &call
                && self.access.check(&Verb::Restore).is_ok()
            {
                let _dumping = self.dumping.read().await;
                return self.restore(queue, &mut stream).await;
            }
            match call {
                Call::Moment(now) => {
                    let _dumping = self.dumping.read().await;
                    return self.hold_still(now, &mut stream).await;
                }
                Call::HandOver => return self.hand_over(&mut stream).await,
                Call::Verify => return self.verify(&mut stream).await,
                _ => {}
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
            Call::Hello { .. }
            | Call::HandOver
            | Call::Moment(_)
            | Call::Page(..)
            | Call::Verify => answer::<()>(Err(out_of_place())),
            Call::Damages => answer(self.store.damages().await),
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
const CLOSING: Duration = Duration::from_secs(5);
/// How often it is looked whether the socket is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
