//! The side of the owner: answers calls, and owes nothing to who makes them.

mod budget;
mod calls;
mod exchange;
mod lasting;
mod listening;

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use rustix::process::geteuid;
use tokio::{
    net::UnixStream,
    sync::{Notify, OwnedSemaphorePermit, RwLock, Semaphore},
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    budget::Budget,
    exchange::Asked,
    listening::{Listening, Socket},
};
use super::{
    socket,
    wire::{Call, PROTOCOL, Verb, Welcome},
};
use crate::{
    dispatcher::DispatcherHandle,
    error::{Error, Result},
    queue::{Store, directive},
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
        budget: Budget::new(),
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
/// At most 256 calls are served at the same time; one more takes the place of one that asks for nothing, or waits for it. A call that is
/// not whole after 30 seconds ends its connection, and one that asks for nothing after a minute. A moment that is dumped is given up
/// when no page of it is asked for within ten.
///
/// What all clients send, ask and are told takes at most 864 MiB of memory, whatever they do: 96 MiB for what each may have in any case,
/// 192 MiB each for frames that are being sent, for a call that is being decoded, for calls that are being done, and for answers that are
/// to be read. What is large waits for its part of it. A client that is slower than 10 MiB a second makes way for those, and sees
/// [`Unavailable`](crate::ErrorKind::Unavailable) if its answer was on the way. One call may take up to 192 MiB as it is in memory,
/// and go through the socket with up to 160 MiB; above that it is [`Invalid`](crate::ErrorKind::Invalid). Beside that is what the store
/// takes to make pages, four at the same time: each of up to 1,000 entries with their results, and about 4 MiB of payloads, unless one is larger.
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
    budget: Budget,
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
        let first = timeout(GREETING, self.next_call(&mut stream)).await??;
        let Some(Asked {
            call: Ok(Call::Hello { protocol }),
            ..
        }) = first
        else {
            return Ok(());
        };
        let welcome = Welcome {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            stays: self.wanted.is_none(),
        };
        self.reply(&mut stream, Ok(welcome)).await?;
        if protocol != PROTOCOL {
            return Ok(());
        }
        while let Some(Asked { call, room }) = self.next_call(&mut stream).await? {
            let call = match call {
                Ok(call) => call,
                Err(error) => {
                    self.reply::<()>(&mut stream, Err(error)).await?;
                    continue;
                }
            };
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
            let answer = tokio::select! {
                answer = self.obey(call) => answer,
                () = gone(&stream) => return Ok(()),
            };
            drop(room);
            self.send(&mut stream, answer).await?;
        }
        Ok(())
    }
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
const GREETING: Duration = Duration::from_secs(30);
pub(super) const IDLE: Duration = Duration::from_secs(60);
const CLOSING: Duration = Duration::from_secs(5);
/// How often it is looked whether the socket is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
