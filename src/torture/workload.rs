//! The child: works as hard as it can on one queue, and tells every call before it makes it.
//!
//! It never ends by itself. Three producers, three holders and one who looks after it run beside each other; what each
//! does next follows from the seed.

mod hold;
mod produce;
mod tend;

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, Write as _},
    num::NonZeroU32,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    backend::Backend,
    event::{Answer, Event, Go, Verb},
    survey,
};
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
    queue::Queue,
    request::RequestId,
};

/// What a child is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Life {
    /// The store.
    pub store: PathBuf,
    /// What it is on.
    pub backend: Backend,
    /// What it does follows from this.
    pub seed: u64,
    /// Its number; no two children of a ledger have the same.
    pub number: u32,
}

/// Lives until it is killed, or told to close on standard input.
///
/// # Errors
/// If the store does not open, or can't be told from.
pub async fn live(life: &Life) -> Result<()> {
    let begun = Instant::now();
    let (store, report) = life.backend.open(&life.store).await?;
    let queue = store.queue(&crate::request::QueueName::default()).await?;
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    tell(&Event::Opened { micros, report });
    survey::tell(&*queue).await?;
    let Some(go) = heard::<Go>().await? else {
        return store.close().await;
    };
    let child = Arc::new(Child {
        queue,
        life: life.number,
        calls: AtomicU32::new(0),
        known: Mutex::default(),
        stop: CancellationToken::new(),
    });
    let mut random = fastrand::Rng::with_seed(life.seed);
    if go.drain {
        hold::drain(&child).await?;
        survey::tell(&*child.queue).await?;
    } else {
        let mut loops = tokio::task::JoinSet::new();
        for number in 0..PRODUCERS {
            let repeat = if number == 0 {
                go.repeat.clone()
            } else {
                vec![]
            };
            loops.spawn(produce::produce(
                child.clone(),
                random.fork(),
                number,
                repeat,
            ));
        }
        for _ in 0..HOLDERS {
            loops.spawn(hold::hold(child.clone(), random.fork()));
        }
        loops.spawn(tend::tend(child.clone(), random.fork()));
        heard::<Go>().await?;
        child.stop.cancel();
        loops.join_all().await;
    }
    store.close().await?;
    tell(&Event::Closed);
    Ok(())
}

/// What the loops share.
struct Child {
    queue: Arc<dyn Queue>,
    life: u32,
    calls: AtomicU32,
    /// Some requests pushed of late.
    known: Mutex<VecDeque<RequestId>>,
    stop: CancellationToken,
}

/// A call that was told, and is to be made with this time.
struct Call {
    call: u64,
    now: Timestamp,
}

/// The loop ends: a call failed, or the child was told to close.
struct Over;

impl Child {
    /// Tells that a call is about to be made.
    fn begin(&self, verb: Verb) -> Call {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let call = u64::from(self.life) << 32 | u64::from(number);
        let now = self.queue.now();
        tell(&Event::Call { call, now, verb });
        Call { call, now }
    }

    /// Tells how it was answered; `None` if there was no room, or another has the batch.
    fn end<T>(call: &Call, made: Result<(Answer, T)>) -> Result<Option<T>, Over> {
        let (answer, value) = match made {
            Ok((answer, value)) => (answer, Ok(Some(value))),
            Err(error) => match error.kind() {
                ErrorKind::LeaseLost => (Answer::Lost, Ok(None)),
                ErrorKind::QueueFull => (Answer::Full, Ok(None)),
                _ => (Answer::Failed(error.to_string()), Err(Over)),
            },
        };
        let call = call.call;
        tell(&Event::Answer { call, answer });
        value
    }

    /// Tells what failed without having changed anything.
    fn failed(error: &Error) -> Over {
        tell(&Event::Failed(error.to_string()));
        Over
    }

    fn go_on(&self) -> Result<(), Over> {
        (!self.stop.is_cancelled()).then_some(()).ok_or(Over)
    }

    /// Waits until something has changed, but not for long.
    async fn pause(&self) {
        let changed = async {
            match self.queue.pushed() {
                Some(mut changes) => drop(changes.changed().await),
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(PAUSE, changed).await;
    }

    /// Notes that these were pushed.
    fn note(&self, ids: impl Iterator<Item = RequestId>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(ids.take(3));
        let too_many = known.len().saturating_sub(KNOWN);
        known.drain(..too_many);
    }

    /// Up to three that were pushed of late.
    fn some_known(&self, random: &mut fastrand::Rng) -> Vec<RequestId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut some: Vec<_> = (0..random.usize(1..4))
            .filter_map(|_| random.choice(known.iter()).copied())
            .collect();
        some.sort_unstable();
        some.dedup();
        some
    }
}

/// Tells the parent, before anything else is done. Without a parent there is no reason to go on.
pub(super) fn tell(event: &Event) {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    if io::stdout().lock().write_all(&line).is_err() {
        std::process::exit(1);
    }
}

/// The next line of the parent; `None` if it says no more.
async fn heard<T: serde::de::DeserializeOwned + Send + 'static>() -> Result<Option<T>> {
    let read = || {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    };
    let heard = tokio::task::spawn_blocking(read).await;
    heard.map_err(|error| Error::internal("standard input").with_source(error))
}

/// A count above zero.
fn at_least_one(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
}

const PRODUCERS: u32 = 3;
const HOLDERS: u32 = 3;
const KNOWN: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);
