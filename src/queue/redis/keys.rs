//! Names of keys and channels on the server.
//!
//! ```text
//! batchyard:queues             set: the names of all queues
//! batchyard:created            channel: a queue was made
//! batchyard:{name}:state       hash: format, salt, counters, last position, last fence
//!                 :requests    hash: id → record (see `codec`)
//!                 :payload:ID  string: the payload
//!                 :ready       ordered: position, id, size        the oldest is the first
//!                 :moved       ordered: id                        ready, at another position than their id
//!                 :due         ordered: due time, position, id    delayed, the next due is the first
//!                 :delayed     ordered: id
//!                 :expiry      ordered: expiry time, id           of those with a `ttl`
//!                 :flight      ordered: id, batch                 members without a `done` outcome
//!                 :offers      ordered: until, batch              every open batch
//!                 :batch:B     hash: fence, attempt, checkpoint, context, …
//!                 :members:B   ordered: position, id, size
//!                 :outcomes:B  hash: id → retry or reject outcome
//!                 :done :dead  ordered: id
//!                 :settled     ordered: sequence, id              done and dead in the order of settling
//!                 :retained    ordered: until, id                 done ones whose batch has ended
//!                 :keys        ordered: digest of an idempotency key, id, expiry time, digest of the payload
//!                 :keyed       ordered: expiry time, digest of the key
//!                 :bookmarks   hash: source → value
//!                 :restore:…   all of these but payloads and channels again, of a dump that is coming in;
//!                              its `state` has the name of the restore, its `batches` are ordered
//!                 :stage:T:N   string, expires: a payload of a push that is being sent
//!                 :reply:T     string, expires: what the call with this token was answered
//!                 :changed     channel: something changed
//! ```
//! The braces make all keys of a queue one slot of a cluster. Only staged payloads and replies expire:
//! nothing else may be dropped by a server that runs out of memory.

use crate::request::{QueueName, RequestId};

/// The set of all queues' names.
pub(super) const QUEUES: &str = "batchyard:queues";
/// The channel that tells of new queues.
pub(super) const CREATED: &str = "batchyard:created";
/// Matches the channel of every queue.
pub(super) const ANY_CHANGED: &str = "batchyard:{*}:changed";

/// The keys of one queue.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(name: &QueueName) -> Self {
        Self {
            prefix: format!("batchyard:{{{name}}}:"),
        }
    }

    pub(super) fn state(&self) -> String {
        format!("{}state", self.prefix)
    }

    /// The state of what a restore takes in.
    pub(super) fn restoring(&self) -> String {
        format!("{}restore:state", self.prefix)
    }

    pub(super) fn changed(&self) -> String {
        format!("{}changed", self.prefix)
    }

    pub(super) fn bookmarks(&self) -> String {
        format!("{}bookmarks", self.prefix)
    }

    pub(super) fn payload(&self, id: RequestId) -> String {
        format!("{}payload:{id}", self.prefix)
    }

    pub(super) fn staged(&self, token: &str, index: usize) -> String {
        format!("{}stage:{token}:{index}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_queue_carries_its_hash_tag() {
        let keys = Keys::new(&"tenant-7:mail".parse().unwrap());
        for key in [
            keys.state(),
            keys.restoring(),
            keys.payload(RequestId::from_u64(1)),
            keys.staged("t", 0),
        ] {
            assert!(key.starts_with("batchyard:{tenant-7:mail}:"), "{key}");
        }
    }
}
