//! The way to the server: one multiplexed connection, made anew when it is lost, and what its errors mean.
//!
//! A call whose connection is cut may have run. Each call that changes something carries a token under
//! which its script leaves the reply, so repeating it is safe: the server answers a second time without
//! doing anything. So every call is repeated, with growing pauses, until it is answered or
//! [`PATIENCE`] is over.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, Script,
    ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};

/// A connection that mends itself.
pub(super) struct Link {
    client: Client,
    current: tokio::sync::Mutex<Current>,
    /// Tokens whose replies have arrived: the server need not keep them any longer.
    answered: Mutex<String>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// How many connections there were, so that a lost one is given up only once.
    generation: u64,
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
            answered: Mutex::default(),
        };
        link.connection().await.map_err(explain)?;
        Ok(link)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
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
        let (value, _) = self.persist(Ask::Command(command)).await.map_err(explain)?;
        T::from_redis_value(value).map_err(|error| explain(error.into()))
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
        command.arg(script.get_hash()).arg(1).arg(key);
        for arg in head.iter().chain(args) {
            command.arg(&arg[..]);
        }
        let (value, repeated) = self
            .persist(Ask::Script(script, &command))
            .await
            .map_err(|error| explain_script(error, key))?;
        let reply =
            FromRedisValue::from_redis_value(value).map_err(|error| explain(error.into()))?;
        Ok((reply, repeated))
    }

    /// Asks until there is an answer; whether it was asked more than once.
    async fn persist(&self, ask: Ask<'_>) -> Result<(Value, bool), RedisError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut repeated = false;
        loop {
            let error = match self.connection().await {
                Ok((connection, generation)) => match ask.once(connection).await {
                    Ok(value) => return Ok((value, repeated)),
                    Err(error) if !passes(&error) => return Err(error),
                    Err(error) => {
                        if !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) {
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
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.generation));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        current.connection = Some(connection.clone());
        current.generation += 1;
        Ok((connection, current.generation))
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
    /// A call of a script by its hash; the script is loaded if the server does not know it.
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
                    script.load_async(&mut connection).await?;
                    command.query_async(&mut connection).await
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

/// Whether the same call may succeed later.
fn passes(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || matches!(
            error.kind(),
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::ReadOnly
            )
        )
        || matches!(error.code(), Some("BUSY"))
}

/// What the caller should do about an error of a script on the queue of this key. What the interpreter says
/// is for the log: it tells where a script stumbled, and not over what.
fn explain_script(error: RedisError, key: &str) -> Error {
    let keys = key.trim_end_matches("state");
    let detail = error.detail().unwrap_or_default();
    let what = match error.code() {
        Some("LOST") => detail.to_owned(),
        Some("ERR") if detail.contains("user_script") => {
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

/// What the caller should do about an error of the server or of the way to it.
pub(super) fn explain(error: RedisError) -> Error {
    if passes(&error) {
        return Error::unavailable("the Redis server can't be reached or does not answer")
            .with_source(error);
    }
    let detail = error.detail().unwrap_or_default().to_owned();
    let explained = match (error.kind(), error.code()) {
        (_, Some("OOM")) => Error::queue_full(
            "the Redis server has used up its maxmemory; drain the queue, or raise maxmemory",
        ),
        (_, Some("WRONGTYPE")) => Error::corrupt(format!(
            "something else wrote to a key of the queue: {}",
            detail.split(" script: ").next().unwrap_or_default()
        )),
        (_, Some("MISCONF" | "NOREPLICAS")) => {
            Error::unavailable(format!("the Redis server refuses to write: {detail}"))
        }
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS")) => {
            Error::invalid("the Redis server refuses the user or the password of the address")
        }
        (ErrorKind::Server(ServerErrorKind::NoPerm), _) => Error::invalid(format!(
            "the Redis user lacks a permission that the queue needs: {detail}"
        )),
        (ErrorKind::InvalidClientConfig, _) => {
            Error::invalid("the Redis address asks for what this build can't do")
        }
        (ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask), _) => Error::invalid(
            "this node of the Redis cluster does not hold the queue; give the address of the one that does",
        ),
        _ => Error::internal(format!("the Redis server answered with an error: {error}")),
    };
    explained.with_source(error)
}

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
