//! The process that has a store open, and the connections to it.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::OwnerGone;
use crate::{
    control::{
        address, server, socket,
        wire::{self, Call, Failed, PROTOCOL, Welcome},
    },
    error::{Error, ErrorKind, Result},
};

/// The process that has the store open.
pub(super) struct Owner {
    pub(super) folder: PathBuf,
    /// Connections that wait for a call.
    pub(super) idle: Mutex<Vec<Connection>>,
    /// By its user; the owner's store stays open.
    pub(super) is_closed: AtomicBool,
    /// Dumps that were given up, until the owner has seen it.
    pub(super) ending: Mutex<Vec<JoinHandle<()>>>,
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
pub(super) struct Connection {
    pub(super) stream: UnixStream,
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
        self.rest_of(first).await
    }

    /// One more answer.
    pub(super) async fn answer(&mut self) -> io::Result<Option<Vec<u8>>> {
        match wire::read_first(&mut self.stream).await? {
            Some(first) => self.rest_of(first).await,
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn rest_of(&mut self, first: u8) -> io::Result<Option<Vec<u8>>> {
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
    pub(super) async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T> {
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
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        connection: &mut Connection,
        frame: &[u8],
    ) -> Result<Option<Result<T>>> {
        let answer = connection.exchange(frame).await;
        self.read(answer)
    }

    /// The result in an answer, in the same way.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        answer: io::Result<Option<Vec<u8>>>,
    ) -> Result<Option<Result<T>>> {
        let Some(answer) = answer.map_err(|error| self.lost(error))? else {
            return Ok(None);
        };
        let result: Result<T, Failed> = wire::decode(&answer).map_err(|error| self.lost(error))?;
        Ok(Some(result.map_err(Failed::into_error)))
    }

    /// Ends what goes on by this connection; who begins something of the kind waits until the owner has seen it.
    pub(super) fn end(&self, connection: Option<Connection>) {
        if let (Some(connection), Ok(runtime)) = (connection, Handle::try_current()) {
            held(&self.ending).push(runtime.spawn(connection.end()));
        }
    }

    /// A dump that this process has given up is in no other's way.
    pub(super) async fn wait_for_those_that_end(&self) {
        let ending = std::mem::take(&mut *held(&self.ending));
        for ended in ending {
            // It does not panic, and is not stopped.
            let _ = ended.await;
        }
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed.load(Ordering::Acquire) {
            let text = format!("the store in {} was closed", self.folder.display());
            return Err(Error::closed(text));
        }
        Ok(())
    }

    pub(super) fn said_bye(&self) -> Error {
        let text = format!(
            "the process that has {} open is closing it; this call had no effect",
            self.folder.display()
        );
        Error::unavailable(text).with_source(Lost::new(OwnerGone::Undone, "it said so"))
    }

    fn lost(&self, error: io::Error) -> Error {
        let text = format!(
            "the process that has {} open is gone, or does not answer any more; whether it did what it was asked for is unknown",
            self.folder.display()
        );
        Error::unavailable(text).with_source(Lost::new(OwnerGone::Unknown, error))
    }

    /// A new connection to an owner that was there.
    pub(super) async fn dial_again(&self) -> Result<Connection> {
        match self.dial().await {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::unavailable(format!(
                "the process that had {} open is gone, or closes it; this call had no effect",
                self.folder.display()
            ))
            .with_source(Lost::new(OwnerGone::Undone, error))),
            dialled => dialled.map(|(connection, _)| connection),
        }
    }

    pub(super) async fn dial(&self) -> Result<(Connection, Welcome)> {
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

    pub(super) fn put_back(&self, connection: Connection) {
        let mut idle = held(&self.idle);
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }
}

pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was seen of an owner that is gone.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) verb: OwnerGone,
    seen: String,
}

impl Lost {
    fn new(verb: OwnerGone, seen: impl fmt::Display) -> Self {
        let seen = seen.to_string();
        Self { verb, seen }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.seen)
    }
}

impl std::error::Error for Lost {}

const GREETING: Duration = Duration::from_secs(30);
/// Well before the owner gives one up.
const FRESH: Duration = server::IDLE.checked_div(2).expect("not zero");
const MAX_IDLE: usize = 8;
