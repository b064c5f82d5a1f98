//! A store that many verbs use at the same time: one of them has it open and serves it, and when that one ends another goes on.
//!
//! ```text
//!              ┌ free ───────▶ own: open, and served at its socket ─┐ wanted by `dispatch` or `run`
//!   nobody's ──┤                                                    ├──▶ nobody's, until the next call
//!              └ open there ─▶ served: every call goes to its owner ┘ its owner is gone
//! ```
//! A call whose owner is gone is made again, by this process or through the next owner:
//!
//! - One that had no effect, or only looks, is simply made again.
//! - A push of which nobody knows: what was pushed at its very `now` is looked for first. A request that has been settled and
//!   forgotten, or has expired, was cancelled or purged meanwhile is not found; then it is pushed again.
//! - What else changes something and may have been done fails, and says so.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use batchyard::{
    ControlAccess, ControlServer, ControlStore, Error, ErrorKind, Explanation, OwnerGone, Queue,
    QueueName, Store, Timestamp, serve_control_for_now,
    transfer::{DumpFrom, DumpPage, Moment},
};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

use super::{
    Failure,
    turn::{Found, Opened, Place, Turn},
};

/// The store.
pub(crate) struct Shared {
    place: Place,
    holding: Arc<RwLock<Holding>>,
    /// How many dumps this verb is in the middle of, in or out: their owner stays the same.
    long: watch::Sender<usize>,
}

/// Who has it open.
struct Holding {
    /// Which change of that this is.
    number: u64,
    by: By,
}

enum By {
    Nobody,
    /// This process has closed it for good.
    Closed,
    Own {
        store: Arc<dyn Store>,
        control: Option<ControlServer>,
        /// `None`: it can't be served, and nobody is to wait for that.
        _turn: Option<Turn>,
    },
    Served(Arc<ControlStore>),
}

impl Holding {
    fn store(&self) -> Result<&dyn Store, Error> {
        match &self.by {
            By::Own { store, .. } => Ok(&**store),
            By::Served(owner) => Ok(&**owner),
            By::Nobody | By::Closed => Err(Error::closed("the store was closed")),
        }
    }
}

/// What is known of a call whose owner is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It may be made again.
    Repeat,
    Unknown,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.place.folder).finish()
    }
}

/// Makes a call, and makes it again as long as that is right and its owner is gone.
macro_rules! go_on {
    ($shared:expr, $may_repeat:expr, |$holding:ident| $call:expr) => {{
        let mut tries = 0;
        loop {
            let $holding = $shared.held().await?;
            let error = match $call {
                Ok(value) => break Ok(value),
                Err(error) => error,
            };
            tries += 1;
            match fate(&$holding, &error) {
                Some(fate) if tries < MOST_OWNERS && (fate == Fate::Repeat || $may_repeat) => {
                    $shared.lost($holding).await;
                }
                _ => break Err(error),
            }
        }
    }};
}

// Below the macros that it uses.
mod queue;

use self::queue::SharedQueue;

impl Shared {
    /// Opens the store, or finds who has it open.
    pub(super) async fn open(place: Place) -> Result<Arc<Self>, Failure> {
        let shared = Arc::new(Self {
            place,
            holding: Arc::new(RwLock::new(Holding {
                number: 0,
                by: By::Nobody,
            })),
            long: watch::Sender::new(0),
        });
        shared.find().await?;
        Ok(shared)
    }

    /// What its dispatcher says of a queue.
    pub(super) async fn explain(self: &Arc<Self>, queue: &QueueName) -> Result<Explanation, Error> {
        go_on!(self, true, |holding| match &holding.by {
            By::Served(owner) => owner.explain(queue).await,
            _ => Err(Error::not_found("this process has no dispatcher")),
        })
    }

    /// Has it opened or found, if it is nobody's.
    async fn find(self: &Arc<Self>) -> Result<(), Failure> {
        let mut holding = self.holding.write().await;
        if !matches!(holding.by, By::Nobody) {
            return Ok(());
        }
        holding.number += 1;
        holding.by = match self.place.find().await? {
            Found::Served(owner) => By::Served(owner),
            Found::Own(opened) => self.serve(opened, holding.number),
        };
        Ok(())
    }

    /// Lets others use it through this process, until one wants it for itself.
    fn serve(self: &Arc<Self>, opened: Opened, number: u64) -> By {
        let Opened { store, turn } = opened;
        let served = Arc::clone(&store);
        let control = serve_control_for_now(&self.place.folder, served, ControlAccess::All);
        let control = match control {
            Ok(control) => {
                let (wanted, shared) = (control.wanted(), Arc::downgrade(self));
                tokio::spawn(async move {
                    wanted.await;
                    if let Some(shared) = shared.upgrade() {
                        shared.let_go(number).await;
                    }
                });
                Some(control)
            }
            Err(error) => {
                tracing::info!(%error, "other processes can't use the store meanwhile");
                None
            }
        };
        By::Own {
            store,
            _turn: control.is_some().then_some(turn),
            control,
        }
    }

    /// Lets another process have it, once no dump is under way.
    async fn let_go(&self, number: u64) {
        let mut long = self.long.subscribe();
        loop {
            // The sender is there as long as this is.
            let _ = long.wait_for(|long| *long == 0).await;
            let mut holding = self.holding.write().await;
            if holding.number != number {
                return;
            }
            if *self.long.borrow() > 0 {
                continue;
            }
            holding.number += 1;
            let own = std::mem::replace(&mut holding.by, By::Nobody);
            if let Err(error) = close(own).await {
                tracing::warn!(%error, "the store was not closed cleanly");
            }
            return;
        }
    }

    /// The store for one call; whoever has it, has it until the end of that.
    async fn held(self: &Arc<Self>) -> Result<OwnedRwLockReadGuard<Holding>, Error> {
        loop {
            let holding = Arc::clone(&self.holding).read_owned().await;
            if !matches!(holding.by, By::Nobody) {
                return Ok(holding);
            }
            drop(holding);
            self.find().await.map_err(Failure::into_error)?;
        }
    }

    /// Its owner is gone.
    async fn lost(&self, seen: OwnedRwLockReadGuard<Holding>) {
        let number = seen.number;
        drop(seen);
        let mut holding = self.holding.write().await;
        if holding.number == number && matches!(holding.by, By::Served(_)) {
            holding.by = By::Nobody;
        }
    }
}

/// What is known of a call that failed, if it did because its owner is gone.
fn fate(holding: &Holding, error: &Error) -> Option<Fate> {
    if !matches!(holding.by, By::Served(_)) {
        return None;
    }
    match OwnerGone::of(error) {
        Some(OwnerGone::Unknown) => Some(Fate::Unknown),
        Some(_) => Some(Fate::Repeat),
        // Its owner refused it.
        None => (error.kind() == ErrorKind::Closed).then_some(Fate::Repeat),
    }
}

async fn close(by: By) -> Result<(), Error> {
    let By::Own {
        store,
        control,
        _turn,
    } = by
    else {
        return Ok(());
    };
    if let Some(control) = control {
        control.close().await;
    }
    store.close().await
}

/// What is shared has a handle of its own here, for whoever wants a `Store`.
#[derive(Clone, Debug)]
pub(super) struct SharedStore(pub(super) Arc<Shared>);

#[async_trait]
impl Store for SharedStore {
    async fn queue(&self, name: &QueueName) -> Result<Arc<dyn Queue>, Error> {
        let current = go_on!(self.0, true, |holding| holding
            .store()?
            .queue(name)
            .await
            .map(|queue| (holding.number, queue)))?;
        let shared = Arc::clone(&self.0);
        Ok(Arc::new(SharedQueue::new(shared, name, current)))
    }

    async fn queues(&self, prefix: &str) -> Result<Vec<QueueName>, Error> {
        go_on!(self.0, true, |holding| holding
            .store()?
            .queues(prefix)
            .await)
    }

    async fn damages(&self) -> Result<u64, Error> {
        go_on!(self.0, true, |holding| holding.store()?.damages().await)
    }

    async fn moment(&self, now: Timestamp) -> Result<Option<Box<dyn Moment>>, Error> {
        let long = Long::begin(&self.0);
        let moment = go_on!(self.0, true, |holding| holding.store()?.moment(now).await)?;
        Ok(moment.map(|moment| {
            Box::new(SharedMoment {
                moment,
                _long: long,
            }) as _
        }))
    }

    async fn close(&self) -> Result<(), Error> {
        let mut holding = self.0.holding.write().await;
        holding.number += 1;
        close(std::mem::replace(&mut holding.by, By::Closed)).await
    }
}

/// A moment of it, which its owner keeps.
#[derive(Debug)]
struct SharedMoment {
    moment: Box<dyn Moment>,
    _long: Long,
}

#[async_trait]
impl Moment for SharedMoment {
    fn queues(&self) -> Vec<QueueName> {
        self.moment.queues()
    }

    async fn dump(&self, queue: &QueueName, from: DumpFrom) -> Result<DumpPage, Error> {
        self.moment.dump(queue, from).await
    }
}

/// A dump under way.
#[derive(Debug)]
struct Long(watch::Sender<usize>);

impl Long {
    fn begin(shared: &Shared) -> Self {
        shared.long.send_modify(|long| *long += 1);
        Self(shared.long.clone())
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        self.0.send_modify(|long| *long -= 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many owners may go away in the middle of one call.
const MOST_OWNERS: u32 = 100;
