//! Options that several verbs have, and how durations, sizes and counts are written.

use std::{
    ffi::OsString,
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use batchyard::{BatchHandler, CommandHandler, Policy, QueueOptions};
use clap::{Args, ValueHint};

use super::{
    exit::{Exit, Failure},
    store::{self, Backend, OpenStore},
};

/// Which store to use.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArgs {
    /// The folder of the store [default: the server in `BATCHYARD_REDIS_URL`, with the feature redis]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    store: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the store that is named here, or else in `BATCHYARD_REDIS_URL`.
    ///
    /// # Errors
    /// If none is named, or it does not open.
    async fn open(
        &self,
        backend: Option<Backend>,
        queues: QueueOptions,
        owned: Owned,
    ) -> Result<OpenStore, Failure> {
        match (&self.store, server_url()) {
            (Some(folder), _) if folder.to_string_lossy().contains("://") => Err(Failure::new(
                Exit::Usage,
                "--store is a folder; the URL of a server is given in BATCHYARD_REDIS_URL",
            )),
            (Some(folder), _) => {
                let opened = match owned {
                    Owned::Here => OpenStore::own_folder(folder, backend, queues).await,
                    Owned::Anywhere => OpenStore::shared_folder(folder, backend, queues).await,
                };
                opened.map_err(Failure::or_share)
            }
            (None, Some(_)) if backend.is_some() => Err(Failure::new(
                Exit::Usage,
                "--backend is about a store in a folder, and BATCHYARD_REDIS_URL names a server; give --store DIR too",
            )),
            (None, Some(url)) => OpenStore::redis(&url, queues).await,
            (None, None) => Err(Failure::new(
                Exit::Usage,
                "no store: give --store DIR, or set BATCHYARD_REDIS_URL",
            )),
        }
    }

    /// The folder that is named, for verbs that are about stores in folders.
    ///
    /// # Errors
    /// If none is named, there is none, or nothing is in it.
    pub(crate) fn folder(&self) -> Result<&Path, Failure> {
        match &self.store {
            Some(folder) if !folder.to_string_lossy().contains("://") => {
                store::must_exist(folder)?;
                Ok(folder)
            }
            _ => Err(Failure::new(
                Exit::Usage,
                "this is about a store in a folder: give --store DIR; what a server lost it tells itself",
            )),
        }
    }

    /// As [`open`](Self::open), for verbs that make nothing: a folder without a store is not found.
    /// What is kept stays kept.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if there is no store in the folder.
    pub(crate) async fn existing(&self) -> Result<OpenStore, Failure> {
        if let Some(folder) = &self.store {
            store::must_exist(folder)?;
        }
        self.open(None, store::keep_all(), Owned::Anywhere).await
    }
}

impl StoreArgs {
    /// The folder that is named, if one is.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.store.as_deref()
    }

    /// As [`existing`](Self::existing), and not found if it is in a folder and no process serves it.
    ///
    /// # Errors
    /// As [`existing`](Self::existing), and if nobody serves it.
    pub(crate) async fn served(&self) -> Result<OpenStore, Failure> {
        match &self.store {
            Some(folder) => {
                store::must_exist(folder)?;
                OpenStore::served(folder).await
            }
            None => self.existing().await,
        }
    }
}

/// Which process may have a store in a folder open.
#[derive(Clone, Copy, Debug)]
enum Owned {
    Here,
    /// This one, or another one that serves it.
    Anywhere,
}

/// Which store to use, for verbs that make it if it is missing.
#[derive(Clone, Debug, Args)]
pub(crate) struct NewStoreArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The backend of the store if it is made, its folder being new or empty [default: that in `BATCHYARD_BACKEND`, or sled]; one that is
    /// there says itself which it has
    #[arg(long, value_name = "BACKEND", help_heading = "Store")]
    pub(crate) backend: Option<Backend>,
}

impl NewStoreArgs {
    /// The folder that was named.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.store.store.as_deref()
    }

    /// The URL of the server, if no folder was named.
    pub(crate) fn url(&self) -> Option<String> {
        server_url().filter(|_| self.store.store.is_none())
    }

    /// As [`StoreArgs::open`], on this backend if it is new.
    ///
    /// # Errors
    /// As [`StoreArgs::open`], and if the store is there on another backend.
    pub(crate) async fn open(&self, queues: QueueOptions) -> Result<OpenStore, Failure> {
        self.store.open(self.backend, queues, Owned::Anywhere).await
    }

    /// As [`open`](Self::open), for this process alone if it is in a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if another process has it open.
    pub(crate) async fn own(&self, queues: QueueOptions) -> Result<OpenStore, Failure> {
        self.store.open(self.backend, queues, Owned::Here).await
    }
}

fn server_url() -> Option<String> {
    let url = std::env::var("BATCHYARD_REDIS_URL").ok();
    url.filter(|url| !url.is_empty())
}

/// When batches leave and how failures are treated: every knob of [`Policy`].
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Batches")]
pub(crate) struct PolicyArgs {
    /// A batch leaves when this many requests are ready [default: 50000]
    #[arg(long, value_name = "N", value_parser = count)]
    queue_threshold: Option<NonZeroU32>,
    /// A batch leaves when the oldest ready request is this old [default: 2h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    time_threshold: Option<Duration>,
    /// Look at the queue this often even if nothing happens; at least 1ms [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    time_interval: Option<Duration>,
    /// The most requests of a batch [default: the queue threshold]
    #[arg(long, value_name = "N", value_parser = count)]
    max_batch_requests: Option<NonZeroU32>,
    /// The most payload bytes of a batch; it also leaves when this many are ready [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_batch_bytes: Option<NonZeroU64>,
    /// The most batches at the same time [default: 4]
    #[arg(long, value_name = "N", value_parser = count)]
    max_in_flight: Option<NonZeroU32>,
    /// How often a request may fail before it is isolated and given up [default: 5]
    #[arg(long, value_name = "N", value_parser = count)]
    max_attempts: Option<NonZeroU32>,
    /// The wait after a first failure, doubled at each further one [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    initial_backoff: Option<Duration>,
    /// The longest wait after a failure [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_backoff: Option<Duration>,
    /// How soon a batch whose holder is gone is taken over [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    lease_duration: Option<Duration>,
    /// How often a holder says that it lives [default: 15s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    heartbeat_interval: Option<Duration>,
    /// How long one batch may take before it is stopped [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    handler_timeout: Option<Duration>,
    /// How long batches may go on once this program was asked to stop [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    shutdown_timeout: Option<Duration>,
}

impl PolicyArgs {
    /// The policy that they make, with the defaults of [`Policy`].
    ///
    /// # Errors
    /// If they don't fit together.
    pub(crate) fn policy(&self) -> Result<Policy, Failure> {
        let mut policy = Policy::default();
        set(&mut policy.queue_threshold, self.queue_threshold);
        set(&mut policy.time_threshold, self.time_threshold);
        set(&mut policy.time_interval, self.time_interval);
        set(&mut policy.max_batch_bytes, self.max_batch_bytes);
        set(&mut policy.max_in_flight, self.max_in_flight);
        set(&mut policy.max_attempts, self.max_attempts);
        set(&mut policy.initial_backoff, self.initial_backoff);
        set(&mut policy.max_backoff, self.max_backoff);
        set(&mut policy.lease_duration, self.lease_duration);
        set(&mut policy.heartbeat_interval, self.heartbeat_interval);
        set(&mut policy.shutdown_timeout, self.shutdown_timeout);
        policy.max_batch_requests = self.max_batch_requests.or(policy.max_batch_requests);
        policy.handler_timeout = self.handler_timeout.or(policy.handler_timeout);
        policy.validate()?;
        Ok(policy)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// What works on the batches.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Handler")]
pub(crate) struct HandlerArgs {
    /// Send batches there instead of to a command, such as `http:https://example.org/batches` (feature http): each
    /// is a POST of the lines that a command gets, with the batch id as Idempotency-Key. An answer 2xx of type
    /// application/x-ndjson is lines like those of a command; any other 2xx means that all is done, without results
    #[arg(long, value_name = "KIND:WHERE", conflicts_with_all = ["command", "plain"])]
    pub(crate) handler: Option<String>,
    /// Payload lines to the command, result lines from it, one to one, in place of JSON Lines
    #[arg(long)]
    pub(crate) plain: bool,
    /// The most bytes that the command may print for one batch [default: 64MiB and 64KiB a request]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_output_bytes: Option<NonZeroU64>,
    /// The command that is started for each batch, and its arguments
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "handler", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

impl HandlerArgs {
    /// The handler that they name; found to be missing here rather than by the first batch. Its
    /// commands keep their locks and answers in `commands`.
    ///
    /// # Errors
    /// If there is no such handler or command.
    pub(crate) fn handler(&self, commands: &Path) -> Result<Arc<dyn BatchHandler>, Failure> {
        match (&self.handler, self.command.split_first()) {
            (Some(handler), _) => named_handler(handler),
            (None, Some((program, args))) => {
                let handler = self.command_handler(program, args);
                Ok(Arc::new(handler.supervised_by(own_program()?, commands)))
            }
            (None, None) => Err(Failure::new(
                Exit::Usage,
                "nothing to give the batches to: put a command after --",
            )),
        }
    }

    /// Checks what [`handler`](Self::handler) would, before anything is opened.
    ///
    /// # Errors
    /// As [`handler`](Self::handler).
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.command.split_first() {
            Some((program, args)) => Ok(self.command_handler(program, args).check()?),
            None => self.handler(Path::new("")).map(|_| ()),
        }
    }

    fn command_handler(&self, program: &OsString, args: &[OsString]) -> CommandHandler {
        let mut handler = CommandHandler::new(program, args);
        if self.plain {
            handler = handler.plain();
        }
        if let Some(most) = self.max_output_bytes {
            handler = handler.max_output_bytes(most.get());
        }
        handler
    }
}

fn named_handler(handler: &str) -> Result<Arc<dyn BatchHandler>, Failure> {
    #[cfg(feature = "http")]
    if let Some(url) = url_of(handler) {
        let handler = batchyard::HttpHandler::builder(url).build()?;
        return Ok(Arc::new(handler));
    }
    let text = if cfg!(feature = "http") || !handler.starts_with("http") {
        format!("no handler {handler:?} is known; write http:URL, or put a command after --")
    } else {
        "this batchyard was built without HTTP; build it with the feature http, or put a command after --".into()
    };
    Err(Failure::new(Exit::Usage, text))
}

/// The URL in `http:URL`; a URL alone can mean nothing else.
#[cfg(feature = "http")]
fn url_of(handler: &str) -> Option<&str> {
    let alone = handler.starts_with("http://") || handler.starts_with("https://");
    if alone {
        Some(handler)
    } else {
        handler.strip_prefix("http:")
    }
}

/// How this program starts itself again.
///
/// # Errors
/// If it can't tell where it is.
pub(crate) fn own_program() -> Result<PathBuf, Failure> {
    // Stays this very program, even if its file is replaced while it runs.
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe().map_err(|error| Failure::io("this program", &error))
}

/// A count above zero.
pub(crate) fn count(text: &str) -> Result<NonZeroU32, String> {
    let number: u32 = text
        .replace('_', "")
        .parse()
        .map_err(|_| format!("a whole number from 1 to {} is needed", u32::MAX))?;
    NonZeroU32::new(number).ok_or_else(|| "it must be at least 1".into())
}

/// A duration above zero, with units: `90s`, `2h`, `1h 30m`, `250ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let example = "write a number with its unit, such as 90s, 10m, 2h or 250ms";
    let signed: jiff::SignedDuration = text.parse().map_err(|_| example.to_owned())?;
    let duration = Duration::try_from(signed).map_err(|_| "it must not be negative".to_owned())?;
    if duration.is_zero() {
        return Err("it must be above zero".into());
    }
    Ok(duration)
}

/// A number of bytes above zero, with or without a unit: `4096`, `16MiB`, `1GB`.
pub(crate) fn size(text: &str) -> Result<NonZeroU64, String> {
    let example = "write a number of bytes, such as 4096, 64KiB, 16MiB or 1GB";
    let size: bytesize::ByteSize = text.parse().map_err(|_| example.to_owned())?;
    NonZeroU64::new(size.as_u64()).ok_or_else(|| "it must be above zero".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_written_with_units_and_refused_with_an_example() {
        for (text, seconds) in [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("10 min", 600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "90", "soon", "-5s", "0s", "1 parsec"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, bytes) in [
            ("4096", 4096),
            ("64KiB", 65536),
            ("16MiB", 16 << 20),
            ("1kB", 1000),
        ] {
            assert_eq!(size(text).map(NonZeroU64::get), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "many", "5 lightyears"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(count("50_000").map(NonZeroU32::get), Ok(50_000));
        for text in ["", "0", "-1", "4294967296", "1.5"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    /// Two libraries read them, and people paste anything.
    #[test]
    fn any_text_is_a_value_or_is_refused() {
        let letters: Vec<char> = "0123456789999 .,-+_:eEsmhdwynuµPTkKMGTPiB\u{2212}٣\0"
            .chars()
            .collect();
        let seed = std::env::var("BATCHYARD_SEED").map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|_| fastrand::u64(..));
        println!("BATCHYARD_SEED={seed}");
        let mut dice = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let length = dice.usize(..24);
            let text: String = (0..length)
                .map(|_| letters[dice.usize(..letters.len())])
                .collect();
            assert_ne!(duration(&text), Ok(Duration::ZERO), "{text:?}");
            // Above zero by their types: it is enough that they say something.
            let _ = (count(&text), size(&text));
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn an_endpoint_is_named_with_or_without_its_prefix() {
        for (handler, url) in [
            ("http:https://a.example/b", Some("https://a.example/b")),
            ("http:http://a.example/b", Some("http://a.example/b")),
            ("http://a.example/b", Some("http://a.example/b")),
            ("https://a.example/b", Some("https://a.example/b")),
            ("command", None),
        ] {
            assert_eq!(url_of(handler), url, "{handler}");
        }
    }
}
