//! What is asked of the server once, when a store connects: whether it can hold a queue, how durable it
//! is, and its time.

use std::collections::HashMap;

use redis::InfoDict;
use tokio::time::Instant;

use super::connection::Link;
use crate::{
    clock::Timestamp,
    error::{Error, ErrorKind, Result},
};

/// What was found.
#[derive(Debug)]
pub(super) struct Server {
    /// The persistence settings in words.
    pub(super) policy: String,
    /// Whether it keeps an append-only file.
    pub(super) survives_restart: bool,
    time: Timestamp,
    asked: Instant,
}

impl Server {
    /// Looks at the server, and refuses one that is too old or that could drop the queue's keys.
    pub(super) async fn examine(link: &Link) -> Result<Self> {
        check_version(link).await?;
        let eviction = setting(link, "maxmemory-policy").await?;
        // The volatile- policies would spare the requests, but not the replies that are kept for a while
        // so that a call that is repeated after a cut takes effect once.
        if let Some(eviction) = eviction.filter(|policy| policy != "noeviction") {
            return Err(Error::invalid(format!(
                "the Redis server may drop keys of the queue when its memory is full: maxmemory-policy is \
                 {eviction}; set it to noeviction"
            )));
        }
        let append_only = setting(link, "appendonly").await?;
        let sync = setting(link, "appendfsync").await?;
        let (seconds, micros): (u64, u64) = link.query(&redis::cmd("TIME")).await?;
        Ok(Self {
            survives_restart: append_only.as_deref() == Some("yes"),
            policy: match (append_only.as_deref(), sync) {
                (Some("yes"), Some(sync)) => format!("appendonly yes, appendfsync {sync}"),
                (Some(append_only), _) => format!("appendonly {append_only}"),
                (None, _) => "unknown".into(),
            },
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

/// Refuses what does not have the commands that the scripts use; trusts a server that will not tell.
async fn check_version(link: &Link) -> Result<()> {
    let info: Result<InfoDict> = link.query(redis::cmd("INFO").arg("server")).await;
    let info = match info {
        Err(error) if error.kind() == ErrorKind::Invalid => return Ok(()),
        info => info?,
    };
    let Some(version) = info.get::<String>("redis_version") else {
        return Ok(());
    };
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major < OLDEST_SERVER => Err(Error::invalid(format!(
            "the Redis server has version {version}, and {OLDEST_SERVER}.0 or newer (or Valkey) is needed"
        ))),
        _ => Ok(()),
    }
}

/// A setting of the server, or `None` if this user or this service may not ask.
async fn setting(link: &Link, name: &str) -> Result<Option<String>> {
    let asked: Result<HashMap<String, String>> =
        link.query(redis::cmd("CONFIG").arg("GET").arg(name)).await;
    match asked {
        Ok(mut settings) => Ok(settings.remove(name)),
        // Refused to this user, or a command that the service does not have.
        Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Internal) => Ok(None),
        Err(error) => Err(error),
    }
}

const OLDEST_SERVER: u32 = 7;
