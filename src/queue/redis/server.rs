//! What is asked of a server when a connection to it is made: whether it can hold a queue, and how durable it is.

use std::collections::HashMap;

use redis::{InfoDict, RedisError, aio::MultiplexedConnection};
use tokio::time::Instant;

use super::connection::{Link, NO_CLUSTER, passes, unfit};
use crate::{clock::Timestamp, error::Result};

/// What a server is set to.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The persistence settings in words.
    pub(super) policy: String,
    /// Whether it keeps an append-only file.
    pub(super) survives_restart: bool,
}

impl Settings {
    /// Looks at the server, and refuses one that is too old, that could drop the queue's keys, or that is a node of
    /// a cluster; trusts one that will not tell.
    pub(super) async fn examine(
        connection: &mut MultiplexedConnection,
    ) -> Result<Self, RedisError> {
        let info: Option<InfoDict> = told(redis::cmd("INFO").query_async(connection).await)?;
        if let Some(info) = info {
            check_version(&info)?;
            if info.get::<u32>("cluster_enabled") == Some(1) {
                return Err(unfit(NO_CLUSTER.into()));
            }
        }
        let mut command = redis::cmd("CONFIG");
        command.arg(&["GET", "maxmemory-policy", "appendonly", "appendfsync"]);
        let set: Option<HashMap<String, String>> = told(command.query_async(connection).await)?;
        let set = set.unwrap_or_default();
        // The volatile- policies would spare the requests, but not the replies that are kept for a while
        // so that a call that is repeated after a cut takes effect once.
        if let Some(eviction) = set
            .get("maxmemory-policy")
            .filter(|policy| *policy != "noeviction")
        {
            return Err(unfit(format!(
                "the Redis server may drop keys of the queue when its memory is full: maxmemory-policy is \
                 {eviction}; set it to noeviction"
            )));
        }
        let append_only = set.get("appendonly").map(String::as_str);
        Ok(Self {
            survives_restart: append_only == Some("yes"),
            policy: match (append_only, set.get("appendfsync")) {
                (Some("yes"), Some(sync)) => format!("appendonly yes, appendfsync {sync}"),
                (Some(append_only), _) => format!("appendonly {append_only}"),
                (None, _) => "unknown".into(),
            },
        })
    }
}

/// What was answered, or `None` if this user may not ask, or this service does not have the command.
fn told<T>(answer: Result<T, RedisError>) -> Result<Option<T>, RedisError> {
    match answer {
        Ok(told) => Ok(Some(told)),
        Err(error) if passes(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Refuses what does not have the commands that the scripts use.
fn check_version(info: &InfoDict) -> Result<(), RedisError> {
    let Some(version) = info.get::<String>("redis_version") else {
        return Ok(());
    };
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major < OLDEST_SERVER => Err(unfit(format!(
            "the Redis server has version {version}, and {OLDEST_SERVER}.0 or newer (or Valkey) is needed"
        ))),
        _ => Ok(()),
    }
}

/// A server's time when it was asked.
#[derive(Debug)]
pub(super) struct Clock {
    time: Timestamp,
    asked: Instant,
}

impl Clock {
    pub(super) async fn ask(link: &Link) -> Result<Self> {
        let (seconds, micros): (u64, u64) = link.query(&redis::cmd("TIME")).await?;
        Ok(Self {
            time: Timestamp::from_nanos(
                seconds
                    .saturating_mul(1_000_000_000)
                    .saturating_add(micros.saturating_mul(1000)),
            ),
            asked: Instant::now(),
        })
    }

    /// The server's time when it was asked, advanced by this process's monotonic clock.
    pub(super) fn now(&self) -> Timestamp {
        self.time.after(self.asked.elapsed())
    }
}

const OLDEST_SERVER: u32 = 7;
