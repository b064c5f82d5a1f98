//! The shared backend: many processes and machines on one Redis (7 or newer) or Valkey server.
//!
//! ```text
//!   producers ──push──▶ ┌──────────────── one server ────────────────┐ ◀──claim── dispatchers
//!                       │ batchyard:{name}:ready      position order │
//!                       │                 :offers     open batches   │ ──published──▶ wake-ups
//!                       │                 :payload:ID one a request  │
//!                       └────────────────────────────────────────────┘
//! ```
//! - **Every verb is one script**, so it is atomic and isolated. The scripts lie beside this file, their
//!   keys are listed in `keys`; each begins with what it takes, answers and costs. It looks at all that could
//!   make it fail before it changes anything, since Redis takes nothing back. A cluster is refused: it moves
//!   keys one by one, and would stop a script in its middle.
//! - **Payloads are keys of their own.** Claiming moves ids and sizes; payloads are read in pages
//!   afterwards. A large push sends its payloads ahead, under keys that expire, and then makes them
//!   visible in one step.
//! - **A cut connection is not an error.** Calls are repeated for 10 seconds; a call that ran before
//!   its connection was cut is answered with the reply that it left on the server. A reply is waited for for 30 seconds,
//!   since a large push keeps a server busy; after 40 every call has ended, and what it asked for may have been done.
//! - **Durability is the server's**: `appendfsync always` syncs before it answers, `everysec` may lose the
//!   last second, no append-only file may lose more. Read with every connection, told by
//!   [`Queue::capabilities`]. A replica that takes over may lack what the old primary answered: that is lost
//!   (`min-replicas-to-write` bounds how much). No fence of it is given out again, and no position or batch id either, as
//!   long as the clients' clocks differ by less than the failover takes.
//! - **Lost keys are told.** Every script, but for the two that take in a dump beside the queue, first compares what the
//!   queue's keys count, and one that claims, reads or updates a batch what the batch's keys count: keys that something
//!   else deleted are [`Corrupt`](crate::ErrorKind::Corrupt), and not an emptier queue. A payload that is gone is one
//!   dead letter, as damaged. What can't be told: that all keys are gone when somebody connects anew, and that those for
//!   expiry times, for bookmarks or for the places of retried requests in lists are.
//! - **Nothing is evicted.** A server whose `maxmemory-policy` could drop a queue's keys is refused, by every connection that
//!   finds it so. Out of memory it refuses pushes ([`QueueFull`](crate::ErrorKind::QueueFull)), and still claims and settles.

mod admin;
mod calls;
mod changes;
mod codec;
mod connection;
mod gather;
mod keys;
mod push;
mod restore;
mod script;
mod server;
mod store;
mod transfer;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub use self::store::RedisStore;
use self::{
    calls::Calls,
    changes::{Changes, bump},
    codec::{
        Record, damaged, decimal, flag, hex, outcome, parse_count, parse_decimal, parse_hex,
        parse_outcome, parse_time, time,
    },
    connection::Link,
    gather::Gather,
    keys::{CREATED, Keys, QUEUES},
    script::SCRIPTS,
    server::Clock,
};
use crate::{
    batch::{BatchId, Claim, Fence, Lease, Member, Outcome, Page, Then, Update},
    clock::Timestamp,
    error::{Error, Result},
    fault::point,
    queue::{Administration, Capabilities, Durability, Queue, QueueOptions, Transfer, directive},
    request::{Bookmark, DeadReason, NewRequest, Position, Pushed, QueueName, RequestId},
    stats::Stats,
};

/// A queue on a Redis server, shared by every process that connects to it.
///
/// ```no_run
/// use batchyard::{NewRequest, QueueExt, RedisQueue};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let queue = RedisQueue::connect("redis://127.0.0.1:6379").await?;
/// queue.push_one(NewRequest::new("hello")).await?;
/// # Ok::<(), batchyard::Error>(()) }).unwrap();
/// ```
pub struct RedisQueue {
    options: QueueOptions,
    calls: Arc<Calls>,
    gather: Gather,
    changes: Arc<watch::Sender<u64>>,
}

/// What the queues of a store have in common.
#[derive(Debug)]
struct Shared {
    link: Link,
    clock: Clock,
    changes: Changes,
}

impl Shared {
    async fn connect(url: &str, channels: Vec<String>) -> Result<Arc<Self>> {
        let link = Link::connect(url).await?;
        let clock = Clock::ask(&link).await?;
        let changes = Changes::listen(link.client().clone(), channels);
        Ok(Arc::new(Self {
            link,
            clock,
            changes,
        }))
    }
}

impl RedisQueue {
    /// The queue `default` of this server, such as `redis://user:password@host:6379/0` or
    /// `redis+unix:///run/redis.sock`, with default options; made if it does not exist.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): an address that can't be read, a refused password, a server that
    /// is too old or could drop keys. [`Unavailable`](crate::ErrorKind::Unavailable): no server there.
    /// [`Corrupt`](crate::ErrorKind::Corrupt): something else wrote to its keys, or a newer format.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, &QueueName::default(), QueueOptions::default()).await
    }

    /// The queue of this name, with these options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(url: &str, name: &QueueName, options: QueueOptions) -> Result<Self> {
        let shared = Shared::connect(url, vec![Keys::new(name).changed()]).await?;
        Self::open(shared, name, options).await
    }

    async fn open(shared: Arc<Shared>, name: &QueueName, options: QueueOptions) -> Result<Self> {
        let keys = Keys::new(name);
        let args = [Bytes::from_static(FORMAT), hex(fastrand::u64(..))];
        let now = time(shared.clock.now());
        let reply = shared
            .link
            .eval(&SCRIPTS.init, &keys.state(), now, &args)
            .await?;
        let salt = match &reply[..] {
            [status, salt] if status == "ok" => parse_hex(salt)?,
            [status, found] if status == "format" => {
                return Err(Error::corrupt(format!(
                    "queue {name} has format {}, and this version reads format {}; use a newer version",
                    String::from_utf8_lossy(found),
                    String::from_utf8_lossy(FORMAT)
                )));
            }
            [status, command] if status == "denied" => {
                return Err(Error::invalid(format!(
                    "the Redis user lacks a permission that the queue needs: {} on keys and channels that begin with batchyard:",
                    String::from_utf8_lossy(command)
                )));
            }
            _ => return Err(damaged("a reply")),
        };
        point("redis.begun");
        let args = [CREATED.into(), Bytes::from(name.to_string())];
        let listed = shared
            .link
            .eval(&SCRIPTS.enlist, QUEUES, Bytes::new(), &args);
        listed.await?;
        point("redis.named");
        let changes = shared.changes.counter(keys.changed());
        let calls = Arc::new(Calls::new(name.clone(), keys, salt, shared));
        Ok(Self {
            gather: Gather::new(calls.clone(), options),
            options,
            calls,
            changes,
        })
    }

    fn check_room(&self, reply: &[Bytes]) -> Result<()> {
        match reply {
            [status, held, held_bytes] if status == "full" => Err(self
                .options
                .full(parse_decimal(held)?, parse_decimal(held_bytes)?)),
            _ => Ok(()),
        }
    }

    /// The payloads of these requests, as far as they are still held.
    async fn payloads(&self, ids: &[RequestId]) -> Result<Vec<Option<Bytes>>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("MGET");
        for id in ids {
            command.arg(self.calls.keys.payload(*id));
        }
        self.calls.shared.link.query(&command).await
    }

    fn parse_lease(&self, reply: &[Bytes], until: Timestamp) -> Result<Option<Lease>> {
        let [
            _,
            batch,
            parent,
            fence,
            attempt,
            requests,
            unsettled,
            bytes,
            formed_at,
            left,
            checkpoint,
            context,
        ] = reply
        else {
            return match reply {
                [status] if status == "none" => Ok(None),
                _ => Err(damaged("a reply")),
            };
        };
        let parent = (!parent.is_empty())
            .then(|| parse_hex(parent))
            .transpose()?;
        Ok(Some(Lease {
            batch: BatchId::new(parse_hex(batch)?, self.calls.salt()),
            parent: parent.map(|parent| BatchId::new(parent, self.calls.salt())),
            fence: Fence(parse_hex(fence)?),
            attempt: parse_decimal(attempt)?,
            requests: parse_decimal(requests)?,
            unsettled: parse_decimal(unsettled)?,
            bytes: parse_decimal(bytes)?,
            formed_at: parse_time(formed_at)?,
            until,
            checkpoint: (left == "1").then(|| checkpoint.clone()),
            context: context.clone(),
        }))
    }

    /// A batch as the scripts name it; one of another queue is nobody's here.
    async fn batch(&self, lease: &Lease) -> Result<Bytes> {
        let (formed, salt) = lease.batch.halves();
        if salt != self.calls.salt() {
            // It may be of another handle, from after a restore that this one has not heard of.
            self.check_is_there().await?;
        }
        if salt != self.calls.salt() {
            return Err(lease.lost());
        }
        Ok(hex(formed))
    }

    /// Whether the queue is still there, under the salt that is known here.
    async fn check_is_there(&self) -> Result<()> {
        let nothing = [hex(0)];
        let asked = self.calls.ask(&SCRIPTS.status, Timestamp::EPOCH, &nothing);
        asked.await.map(drop)
    }

    async fn update_args(
        &self,
        now: Timestamp,
        lease: &Lease,
        update: &Update,
    ) -> Result<Vec<Bytes>> {
        let (then, at, most, rest) = match &update.then {
            Then::Hold { until } => ("hold", *until, None, None),
            Then::Release => ("release", Timestamp::EPOCH, None, None),
            Then::Defer { until } => ("defer", *until, None, None),
            Then::Split { retries } => ("split", retries.at, Some(retries.max_attempts), None),
            Then::Finish { rest, retries } => {
                ("finish", retries.at, Some(retries.max_attempts), Some(rest))
            }
        };
        let mut args = vec![
            self.batch(lease).await?,
            hex(lease.fence.0),
            flag(update.checkpoint.is_some()),
            update.checkpoint.clone().unwrap_or_default(),
            then.into(),
            time(at),
            most.map_or(Bytes::new(), |most| decimal(&most)),
            time(now.after(self.options.retention)),
            rest.map_or(Bytes::new(), outcome),
        ];
        for (id, recorded) in &update.outcomes {
            args.extend([hex(id.as_u64()), outcome(recorded)]);
        }
        Ok(args)
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn push(&self, now: Timestamp, requests: Vec<NewRequest>) -> Result<Vec<Pushed>> {
        self.push_all(now, &requests, None).await
    }

    async fn stats(&self, now: Timestamp) -> Result<Stats> {
        let reply = self.calls.ask(&SCRIPTS.stats, now, &[]).await?;
        let [
            _,
            pushed,
            delayed,
            next_due,
            ready,
            ready_bytes,
            oldest,
            flight,
            batches,
            offered,
            next_offer,
            done,
            dead,
            expired,
            cancelled,
            purged,
            held_bytes,
            paused,
            flushed,
        ] = &reply[..]
        else {
            return Err(damaged("a reply"));
        };
        let when = |time: &Bytes| (!time.is_empty()).then(|| parse_time(time)).transpose();
        Ok(Stats {
            pushed: parse_decimal(pushed)?,
            delayed: parse_decimal(delayed)?,
            next_due: when(next_due)?,
            ready: parse_decimal(ready)?,
            ready_bytes: parse_decimal(ready_bytes)?,
            oldest_ready_at: when(oldest)?,
            in_flight: parse_decimal(flight)?,
            batches: parse_decimal(batches)?,
            offered: parse_decimal(offered)?,
            next_offer: when(next_offer)?,
            done: parse_decimal(done)?,
            dead: parse_decimal(dead)?,
            expired: parse_decimal(expired)?,
            cancelled: parse_decimal(cancelled)?,
            purged: parse_decimal(purged)?,
            held_bytes: parse_decimal(held_bytes)?,
            paused_at: directive::parse(paused),
            flushed_at: directive::parse(flushed),
        })
    }

    async fn claim(&self, now: Timestamp, claim: &Claim) -> Result<Option<Lease>> {
        claim.validate()?;
        let until = now.after(claim.lease_duration);
        let due = claim.due;
        let oldest_at = due.and_then(|due| due.oldest_at);
        let args = [
            decimal(&claim.max_requests),
            decimal(&claim.max_bytes),
            time(until),
            flag(claim.form),
            claim.context.clone(),
            due.map_or(Bytes::new(), |due| decimal(&due.requests)),
            due.map_or(Bytes::new(), |due| decimal(&due.bytes)),
            oldest_at.map_or(Bytes::new(), time),
        ];
        let reply = self.calls.change(&SCRIPTS.claim, now, &args).await?;
        self.parse_lease(&reply, until)
    }

    async fn read(&self, lease: &Lease, page: Page) -> Result<Vec<Member>> {
        let args = [
            self.batch(lease).await?,
            hex(lease.fence.0),
            page.after
                .map_or(Bytes::new(), |position| hex(position.as_u64())),
            decimal(&page.max_requests),
            decimal(&page.max_bytes),
        ];
        let reply = self
            .calls
            .ask(&SCRIPTS.read, Timestamp::EPOCH, &args)
            .await?;
        let (counted, members) = match &reply[..] {
            [status, counted, members @ ..] if status == "ok" => (counted, members),
            [status] if status == "lost" => return Err(lease.lost()),
            _ => return Err(damaged("a reply")),
        };
        let counted: u32 = parse_decimal(counted)?;
        let mut page = Vec::with_capacity(members.len() / 3);
        for member in members.chunks_exact(3) {
            page.push(parse_member(member, counted)?);
        }
        point("redis.members");
        let ids: Vec<RequestId> = page.iter().map(|member| member.id).collect();
        let mut gone = Vec::new();
        for (member, payload) in page.iter_mut().zip(self.payloads(&ids).await?) {
            if payload.is_none() && member.outcome.is_none() {
                let rejected = self.without_payload(member.id);
                gone.push((member.id, rejected.clone()));
                member.outcome = Some(rejected);
            }
            member.payload = payload.unwrap_or_default();
        }
        if !gone.is_empty() {
            self.reject_damaged(lease, gone).await?;
        }
        Ok(page)
    }

    async fn update(&self, now: Timestamp, lease: &Lease, update: Update) -> Result<()> {
        update.validate()?;
        let args = self.update_args(now, lease, &update).await?;
        let reply = self.calls.change(&SCRIPTS.update, now, &args).await?;
        match &reply[..] {
            [status] if status == "ok" => Ok(()),
            [status] if status == "lost" => Err(lease.lost()),
            [status, id] if status == "stranger" => {
                Err(lease.no_member(RequestId::from_u64(parse_hex(id)?)))
            }
            [status] if status == "unsplittable" => Err(lease.not_splittable()),
            _ => Err(damaged("a reply")),
        }
    }

    fn now(&self) -> Timestamp {
        self.calls.shared.clock.now()
    }

    fn name(&self) -> QueueName {
        self.calls.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let settings = self.calls.shared.link.settings();
        Capabilities {
            durability: Durability::Server {
                policy: settings.policy,
            },
            survives_restart: settings.survives_restart,
            shared: true,
            administration: true,
            bookmarks: true,
            results: true,
            batches: true,
            ..Capabilities::default()
        }
    }

    fn pushed(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }

    async fn push_from(
        &self,
        now: Timestamp,
        requests: Vec<NewRequest>,
        bookmark: Bookmark,
    ) -> Result<Vec<Pushed>> {
        self.push_all(now, &requests, Some(&bookmark)).await
    }

    async fn bookmark(&self, source: &str) -> Result<Option<Bytes>> {
        let _open = self.calls.check_open().await?;
        let mut command = redis::cmd("HGET");
        command.arg(self.calls.keys.bookmarks()).arg(source);
        let found: Option<Bytes> = self.calls.shared.link.query(&command).await?;
        if found.is_none() {
            self.check_is_there().await?;
        }
        Ok(found)
    }

    fn admin(&self) -> Option<&dyn Administration> {
        Some(self)
    }

    fn transfer(&self) -> Option<&dyn Transfer> {
        Some(self)
    }

    async fn close(&self) -> Result<()> {
        self.calls.close().await;
        bump(&self.changes);
        Ok(())
    }
}

impl RedisQueue {
    fn without_payload(&self, id: RequestId) -> Outcome {
        let key = self.calls.keys.payload(id);
        Outcome::Reject {
            reason: DeadReason::Damaged,
            error: format!("its payload is gone: something else deleted key {key}"),
        }
    }

    /// Dead-letters, once their batch has ended, members whose payload is gone: one of them must not
    /// fail its batch at every attempt. If the batch has ended meanwhile, that is why they are.
    async fn reject_damaged(&self, lease: &Lease, gone: Vec<(RequestId, Outcome)>) -> Result<()> {
        let mut args = vec![
            self.batch(lease).await?,
            hex(lease.fence.0),
            flag(false),
            Bytes::new(),
            "keep".into(),
        ];
        args.resize(9, Bytes::new());
        for (id, rejected) in &gone {
            args.extend([hex(id.as_u64()), outcome(rejected)]);
        }
        // Nothing that time brings: this is no verb of the caller's.
        let reply = self.calls.change(&SCRIPTS.update, Timestamp::EPOCH, &args);
        match &reply.await?[..] {
            [status] if status == "ok" => {
                let gone = gone.len();
                tracing::error!(queue = %self.calls.name, gone, "payloads were deleted by something else");
                Ok(())
            }
            [status] if status == "lost" => Err(lease.lost()),
            _ => Err(damaged("a reply")),
        }
    }
}

fn parse_member(values: &[Bytes], counted: u32) -> Result<Member> {
    let [member, record, recorded] = values else {
        return Err(damaged("a member"));
    };
    if member.len() != 40 {
        return Err(damaged("a member"));
    }
    let record = Record::parse(record.clone())?;
    let (earlier, outcome) = match &recorded[..] {
        b"" => (record.attempts()?, None),
        [b'd', earlier @ ..] => {
            let result = record.note();
            (parse_count(earlier)?, Some(Outcome::Done { result }))
        }
        recorded => (record.attempts()?, Some(parse_outcome(recorded)?)),
    };
    Ok(Member {
        id: RequestId::from_u64(parse_hex(&member[16..32])?),
        position: Position::from_u64(parse_hex(&member[..16])?),
        attempt: earlier.saturating_add(counted),
        pushed_at: record.pushed_at()?,
        payload: Bytes::new(),
        attributes: record.attributes()?,
        outcome,
    })
}

impl fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQueue")
            .field("name", &self.calls.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The format of what is stored; an older version refuses a newer one.
const FORMAT: &[u8] = b"1";
