//! The way to the server: one multiplexed connection, made anew when it is lost, and what its errors mean.
//!
//! A call whose connection is cut may have run. Each call that changes something carries a token under
//! which its script leaves the reply, so repeating it is safe: the server answers a second time without
//! doing anything. So every call is repeated, with growing pauses, until it is answered or
//! [`PATIENCE`] is over; [`LONGEST_CALL`] ends it in any case.
//!
//! Each connection may lead to another server than the one before, so each is looked at before it is used.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError,
    ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep, timeout};

use super::{codec::damaged, script::Script, server::Settings};
use crate::error::{Error, Result};

/// A connection that mends itself.
pub(super) struct Link {
    client: Client,
    current: tokio::sync::Mutex<Current>,
    /// How often it was tried to connect.
    tries: AtomicU64,
    /// What the server of the latest connection is set to.
    settings: Mutex<Settings>,
    /// Tokens whose replies have arrived: the server need not keep them any longer.
    answered: Mutex<String>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// How many connections there were, so that a lost one is given up only once.
    generation: u64,
    /// The number of the last try that failed, and why.
    failed: Option<(u64, RedisError)>,
}

impl Link {
    /// Connects once, without repeating, so that a wrong address shows at once.
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let client = Client::open(url).map_err(|error| {
            Error::invalid("the Redis address is not of the form redis://host:port/database")
                .with_source(error)
        })?;
        let link = Self {
            client,
            current: tokio::sync::Mutex::default(),
            tries: AtomicU64::default(),
            settings: Mutex::default(),
            answered: Mutex::default(),
        };
        link.connection().await.map_err(explain)?;
        Ok(link)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What the server of the latest connection is set to.
    pub(super) fn settings(&self) -> Settings {
        let settings = self.settings.lock();
        settings.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a script that may run twice.
    pub(super) async fn eval(
        &self,
        script: &Script,
        key: &str,
        now: Bytes,
        args: &[Bytes],
    ) -> Result<Vec<Bytes>> {
        let (reply, _) = self
            .run(script, key, [now, Bytes::new(), Bytes::new()], args)
            .await?;
        Ok(reply)
    }

    /// Runs a script that must take effect once, however often its connection is cut.
    pub(super) async fn eval_once(
        &self,
        script: &Script,
        key: &str,
        now: Bytes,
        args: &[Bytes],
    ) -> Result<Vec<Bytes>> {
        let token = token();
        let head = [now, token.clone().into(), self.take_answered().into()];
        let (reply, repeated) = self.run(script, key, head, args).await?;
        // A call that was sent twice may still be on its way a second time: its reply stays until it expires.
        if !repeated {
            let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            if answered.len() < 100 * token.len() {
                answered.push_str(&token);
            }
        }
        Ok(reply)
    }

    /// Sends a command that may run twice.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let answer = self.persist(Ask::Command(command)).await;
        let (value, _) = answer.map_err(|error| match error.code() {
            Some("WRONGTYPE") => wrong_type(&key_of(command)),
            _ => explain(error),
        })?;
        T::from_redis_value(value).map_err(|error| damaged("a reply").with_source(error))
    }

    /// Sends commands that may run twice.
    pub(super) async fn pipeline(&self, commands: &Pipeline) -> Result<()> {
        self.persist(Ask::Commands(commands))
            .await
            .map_err(explain)?;
        Ok(())
    }

    async fn run(
        &self,
        script: &Script,
        key: &str,
        head: [Bytes; 3],
        args: &[Bytes],
    ) -> Result<(Vec<Bytes>, bool)> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.hash).arg(1).arg(key);
        for arg in head.iter().chain(args) {
            command.arg(&arg[..]);
        }
        let (value, repeated) = self
            .persist(Ask::Script(script, &command))
            .await
            .map_err(|error| explain_script(error, key))?;
        let reply = FromRedisValue::from_redis_value(value);
        let reply = reply.map_err(|error| damaged("a reply").with_source(error))?;
        Ok((reply, repeated))
    }

    /// Asks until there is an answer, but not for ever; whether it was asked more than once.
    async fn persist(&self, ask: Ask<'_>) -> Result<(Value, bool), RedisError> {
        timeout(LONGEST_CALL, self.repeat(ask))
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    async fn repeat(&self, ask: Ask<'_>) -> Result<(Value, bool), RedisError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut repeated = false;
        loop {
            let error = match self.connection().await {
                Ok((connection, generation)) => match ask.once(connection).await {
                    Ok(value) => return Ok((value, repeated)),
                    Err(error) if !passes(&error) => return Err(error),
                    Err(error) => {
                        if leads_nowhere(&error) {
                            self.give_up(generation).await;
                        }
                        error
                    }
                },
                Err(error) if !passes(&error) => return Err(error),
                Err(error) => error,
            };
            if start.elapsed() + pause > PATIENCE {
                return Err(error);
            }
            tracing::debug!(%error, "the Redis server did not answer, trying again");
            let (jittered, longer) = next_pause(pause);
            sleep(jittered).await;
            (pause, repeated) = (longer, true);
        }
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        let tried = self.tries.load(Ordering::Relaxed);
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.generation));
        }
        // Whoever waited for a try in vain has tried as well, or those who wait would try one after the other.
        if let Some((number, error)) = &current.failed
            && *number > tried
        {
            return Err(error.clone());
        }
        let number = self.tries.fetch_add(1, Ordering::Relaxed) + 1;
        match self.open().await {
            Ok(connection) => {
                current.connection = Some(connection.clone());
                current.generation += 1;
                Ok((connection, current.generation))
            }
            Err(error) => {
                current.failed = Some((number, error.clone()));
                Err(error)
            }
        }
    }

    /// A connection to a server that can hold a queue.
    async fn open(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let open = async {
            let mut connection = self
                .client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            let settings = Settings::examine(&mut connection).await?;
            *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
            Ok(connection)
        };
        timeout(CONNECT_TIMEOUT, open)
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    async fn give_up(&self, generation: u64) {
        let mut current = self.current.lock().await;
        if current.generation == generation {
            current.connection = None;
        }
    }

    fn take_answered(&self) -> String {
        std::mem::take(&mut *self.answered.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is sent, and sent again.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Command(&'a Cmd),
    Commands(&'a Pipeline),
    /// A call of a script by its hash; the script itself is sent if the server does not know it.
    Script(&'a Script, &'a Cmd),
}

impl Ask<'_> {
    async fn once(self, mut connection: MultiplexedConnection) -> Result<Value, RedisError> {
        match self {
            Self::Command(command) => command.query_async(&mut connection).await,
            Self::Commands(commands) => {
                // Not `query_async`, which wraps the first error so that its code is lost.
                let count = commands.len();
                let replies = connection.send_packed_commands(commands, 0, count).await?;
                Value::Array(replies).extract_error()
            }
            Self::Script(script, command) => match command.query_async(&mut connection).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    // Not loaded first: what is loaded may be flushed before it is called.
                    let whole = in_full(script, command);
                    whole.query_async(&mut connection).await
                }
                reply => reply,
            },
        }
    }
}

impl fmt::Debug for Link {
    /// Without the address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// 32 random hexadecimal digits.
pub(super) fn token() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// A pause between half of this and all of it, and the one to give next time.
pub(super) fn next_pause(pause: Duration) -> (Duration, Duration) {
    let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
    (jittered, (pause * 2).min(LONGEST_PAUSE))
}

/// The same call with the script in place of its hash.
fn in_full(script: &Script, command: &Cmd) -> Cmd {
    let mut whole = redis::cmd("EVAL");
    whole.arg(&script.body);
    for arg in command.args_iter().skip(2) {
        if let Arg::Simple(arg) = arg {
            whole.arg(arg);
        }
    }
    whole
}

/// Whether the connection is lost, or leads to a server that is no primary, while another may be one by now.
fn leads_nowhere(error: &RedisError) -> bool {
    let is_replica = ErrorKind::Server(ServerErrorKind::ReadOnly);
    let is_orphan = ErrorKind::Server(ServerErrorKind::MasterDown);
    match error.kind() {
        kind if kind == is_replica || kind == is_orphan => true,
        kind => !matches!(kind, ErrorKind::Server(_) | ErrorKind::Extension),
    }
}

/// Whether the same call may succeed later.
pub(super) fn passes(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        // A reply that ends in its middle.
        || error.kind() == ErrorKind::Parse
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::ReadOnly
            )
        )
        || error.code() == Some("BUSY")
        || is_killed(error)
}

/// Whether somebody ended the script before it had written anything.
fn is_killed(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    error.code() == Some("ERR") && detail.contains("Script killed by user")
}

/// Why the same call may succeed later.
fn unavailable(error: &RedisError) -> &'static str {
    match error.code() {
        Some("LOADING") => "the Redis server is still loading its data",
        Some("READONLY" | "MASTERDOWN") => {
            "the Redis server is a replica, which takes no writes; give the address of its primary, or promote it"
        }
        Some("BUSY") => {
            "the Redis server is busy with a script of somebody else; SCRIPT KILL ends it"
        }
        _ if error.is_timeout() => {
            "the Redis server does not answer in time; what was asked of it may have been done"
        }
        _ => "the Redis server can't be reached or does not answer",
    }
}

/// A server that is refused, and what is to be done about it.
pub(super) fn unfit(what: String) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, "unfit server", what))
}

/// What the caller should do about an error of a script on the queue of this key. What the interpreter says
/// is for the log: it tells where a script stumbled, and not over what.
fn explain_script(error: RedisError, key: &str) -> Error {
    let keys = key.trim_end_matches("state");
    let whole = error.detail().unwrap_or_default();
    // The server adds where in the script it ended.
    let detail = whole.split(" script: ").next().unwrap_or_default();
    let what = match error.code() {
        Some("LOST") => detail.to_owned(),
        Some("WRONGTYPE") if detail.starts_with("key ") => return wrong_type(detail),
        Some("WRONGTYPE") => return wrong_type(&format!("one of {keys}*")),
        Some("ERR") if whole.contains("user_script") && !passes(&error) => {
            tracing::error!(%error, key, "a script failed");
            format!("the keys {keys}* on the Redis server do not fit together")
        }
        _ => return explain(error),
    };
    Error::corrupt(format!(
        "{what}; something else deleted or changed keys, or the server lost them: bring them back from a backup of \
         the server, or delete all of {keys}* to begin anew"
    ))
}

fn wrong_type(what: &str) -> Error {
    Error::corrupt(format!(
        "something else wrote to a key of the queue: {what}"
    ))
}

/// The key that a command is about.
fn key_of(command: &Cmd) -> String {
    let key = command.args_iter().nth(1);
    match key {
        Some(Arg::Simple(key)) => String::from_utf8_lossy(key).into_owned(),
        _ => String::new(),
    }
}

/// What the caller should do about an error of the server or of the way to it.
pub(super) fn explain(error: RedisError) -> Error {
    if passes(&error) {
        return Error::unavailable(unavailable(&error)).with_source(error);
    }
    let detail = error.detail().unwrap_or_default().to_owned();
    let explained = match (error.kind(), error.code()) {
        (_, Some("OOM")) => Error::queue_full(
            "the Redis server has used up its maxmemory; drain the queue, or raise maxmemory",
        ),
        (_, Some("MISCONF" | "NOREPLICAS")) => {
            Error::unavailable(format!("the Redis server refuses to write: {detail}"))
        }
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            Error::invalid("the Redis server refuses the user or the password of the address")
        }
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => Error::invalid(format!(
            "the Redis user lacks a permission that the queue needs: {detail}"
        )),
        (ErrorKind::InvalidClientConfig, _) if error.to_string().contains("unfit server") => {
            return Error::invalid(detail);
        }
        (ErrorKind::InvalidClientConfig, _) => {
            Error::invalid("the Redis address asks for what this build can't do")
        }
        (
            ErrorKind::Server(
                ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown,
            ),
            _,
        ) => Error::invalid(NO_CLUSTER),
        _ => Error::internal(format!("the Redis server answered with an error: {error}")),
    };
    explained.with_source(error)
}

/// What is said of a cluster.
pub(super) const NO_CLUSTER: &str = "the Redis server is a node of a cluster, which moves a queue's keys one by one \
     and so may stop a script in its middle; give the address of a server with cluster-enabled no, replicas and \
     Sentinel included";
/// How long a call may take: the last time that it is repeated, its reply may be long in coming.
pub(super) const LONGEST_CALL: Duration = PATIENCE.saturating_add(RESPONSE_TIMEOUT);
/// For how long a call is repeated.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause between two attempts; later ones double.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A large batch may keep the server busy for a while.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
