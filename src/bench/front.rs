//! The plain front of the yardsticks and the peers: a channel, and one writer thread behind it.
//!
//! ```text
//!   callers ──▶ channel ──▶ writer: take what waits ─▶ Engine::commit (one sync) ─▶ answer all
//!      └──────────────────▶ Engine::Reader, beside the writer
//! ```

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::yard::{Held, Tally, Yard};
use crate::error::{Error, Result};

/// Requests by their number, from `first` up to but without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u64,
    /// The one after the last.
    pub end: u64,
}

impl Range {
    /// How many they are.
    pub fn len(self) -> u64 {
        self.end - self.first
    }
}

/// A store that one thread writes to. What its calls answer is on stable storage.
pub(super) trait Engine: Sized + 'static {
    /// What payloads are read with, from any thread.
    type Reader: Reader;

    /// What reads beside the writer.
    fn reader(&self) -> Result<Self::Reader>;

    /// Appends what some pushes hold, with one sync for all.
    fn commit(&mut self, pushes: &[Vec<Bytes>]) -> Result<()>;

    /// Takes the next requests, at most so many.
    fn claim(&mut self, most: u64) -> Result<Option<Range>>;

    /// Forgets requests that were claimed.
    fn finish(&mut self, range: Range) -> Result<()>;
}

/// Reads the payloads of a range.
pub(super) trait Reader: Send + Sync + 'static {
    /// Gives them to `take`, page by page.
    fn read(&self, range: Range, take: &mut dyn FnMut(Vec<Bytes>)) -> Result<()>;
}

/// A contestant behind this front.
pub(super) struct Front<R> {
    asks: mpsc::Sender<Ask>,
    reader: Arc<R>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

enum Ask {
    Push(Vec<Bytes>, oneshot::Sender<Result<()>>),
    Claim(u64, oneshot::Sender<Result<Option<Range>>>),
    Finish(Range, oneshot::Sender<Result<()>>),
    Close,
}

impl<R: Reader> Front<R> {
    /// Opens an engine in its writer thread.
    pub(super) async fn open<E: Engine<Reader = R>>(
        open: impl FnOnce() -> Result<E> + Send + 'static,
    ) -> Result<Box<dyn Yard>> {
        let (asks, asked) = mpsc::channel(GROUP);
        let (opened, open_answer) = oneshot::channel();
        let serve = move || {
            let opening = open().and_then(|engine| Ok((engine.reader()?, engine)));
            match opening {
                Err(error) => drop(opened.send(Err(error))),
                Ok((reader, engine)) => {
                    drop(opened.send(Ok(reader)));
                    write(engine, asked);
                }
            }
        };
        let writer = thread::Builder::new()
            .name("bench-writer".into())
            .spawn(serve)
            .map_err(|error| Error::internal("no thread for the writer").with_source(error))?;
        let reader = Arc::new(open_answer.await.map_err(|_| gone())??);
        Ok(Box::new(Self {
            asks,
            reader,
            writer: Mutex::new(Some(writer)),
        }))
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T>>) -> Ask) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl<R: Reader> Yard for Front<R> {
    async fn push(&self, payloads: Vec<Bytes>) -> Result<()> {
        self.ask(|answer| Ask::Push(payloads, answer)).await
    }

    async fn claim(&self, most: u32) -> Result<Option<Held>> {
        let range = self.ask(|answer| Ask::Claim(most.into(), answer)).await?;
        Ok(range.map(Held::Range))
    }

    async fn read(&self, held: &Held) -> Result<Tally> {
        let range = held.range()?;
        let reader = Arc::clone(&self.reader);
        let read = spawn_blocking(move || {
            let mut tally = Tally::default();
            reader.read(range, &mut |page| tally.page(page.iter()))?;
            Ok(tally)
        });
        read.await
            .map_err(|error| Error::internal("a reader was cut off").with_source(error))?
    }

    async fn finish(&self, held: Held) -> Result<()> {
        let range = held.range()?;
        self.ask(|answer| Ask::Finish(range, answer)).await
    }

    async fn close(&self) -> Result<()> {
        // The writer may be gone, and joining it tells why.
        let _ = self.asks.send(Ask::Close).await;
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let joined = spawn_blocking(|| writer.map_or(Ok(()), thread::JoinHandle::join)).await;
        match joined {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::internal("the writer died")),
        }
    }
}

/// Takes what waits, makes it durable, answers; until nobody can ask any more.
fn write<E: Engine>(mut engine: E, mut asked: mpsc::Receiver<Ask>) {
    let mut pushes = Vec::with_capacity(GROUP);
    let mut answers = Vec::with_capacity(GROUP);
    let mut next = asked.blocking_recv();
    while let Some(ask) = next {
        next = None;
        match ask {
            Ask::Close => return,
            // Whoever asked may have gone.
            Ask::Claim(most, answer) => drop(answer.send(engine.claim(most))),
            Ask::Finish(range, answer) => drop(answer.send(engine.finish(range))),
            Ask::Push(payloads, answer) => {
                let mut requests = payloads.len();
                pushes.push(payloads);
                answers.push(answer);
                while requests < GROUP {
                    match asked.try_recv() {
                        Ok(Ask::Push(payloads, answer)) => {
                            requests += payloads.len();
                            pushes.push(payloads);
                            answers.push(answer);
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                let committed = engine.commit(&pushes);
                pushes.clear();
                for answer in answers.drain(..) {
                    let told = committed.as_ref().copied().map_err(copy);
                    drop(answer.send(told));
                }
            }
        }
        if next.is_none() {
            next = asked.blocking_recv();
        }
    }
}

/// The same error for one more caller.
fn copy(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

fn gone() -> Error {
    Error::internal("the writer is gone")
}

/// The most requests of one group.
const GROUP: usize = 4096;
