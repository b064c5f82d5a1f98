//! Which policy a queue has: its own, that of its prefix, or the general one.

use std::collections::BTreeMap;

use super::Policy;
use crate::{
    error::{Error, Result},
    request::QueueName,
};

/// A policy for every queue by its name: that of the queue itself, else that of the longest prefix that its name
/// begins with, else the general one.
///
/// ```
/// use std::{num::NonZeroU32, time::Duration};
/// use batchyard::{Policies, Policy};
/// let policies = Policies::new(Policy::llm_batch())
///     .prefix("webhook-", Policy::webhook())
///     .queue("webhook-slow".parse()?, Policy {
///         time_threshold: Duration::from_secs(60),
///         ..Policy::webhook()
///     });
/// assert_eq!(policies.of(&"webhook-1".parse()?), &Policy::webhook());
/// assert_eq!(policies.of(&"prompts".parse()?), &Policy::llm_batch());
/// policies.validate()?;
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    pub(crate) general: Policy,
    prefixes: BTreeMap<String, Policy>,
    queues: BTreeMap<QueueName, Policy>,
}

impl Policies {
    /// This policy for every queue that has no other. What is not about one queue is taken from it too: the
    /// `shutdown_timeout`, and how often a store is looked at for new queues.
    pub fn new(general: Policy) -> Self {
        Self {
            general,
            prefixes: BTreeMap::new(),
            queues: BTreeMap::new(),
        }
    }

    /// With this policy for every queue whose name begins so.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>, policy: Policy) -> Self {
        self.prefixes.insert(prefix.into(), policy);
        self
    }

    /// With this policy for one queue.
    #[must_use]
    pub fn queue(mut self, queue: QueueName, policy: Policy) -> Self {
        self.queues.insert(queue, policy);
        self
    }

    /// The policy of this queue.
    pub fn of(&self, queue: &QueueName) -> &Policy {
        let own = || self.queues.get(queue);
        let begins = |(prefix, _): &(&String, &Policy)| queue.as_str().starts_with(prefix.as_str());
        // Of two prefixes of one name, the longer one sorts behind the other.
        let longest = || self.prefixes.iter().rev().find(begins);
        own()
            .or_else(|| longest().map(|(_, policy)| policy))
            .unwrap_or(&self.general)
    }

    /// Checks each of them, as [`Policy::validate`] does.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the fields, and whose policy it is.
    pub fn validate(&self) -> Result<()> {
        let whose = |error: Error, whose: String| error.context(whose);
        self.general.validate()?;
        for (prefix, policy) in &self.prefixes {
            let valid = policy.validate();
            valid.map_err(|error| whose(error, format!("the policy of prefix {prefix:?}")))?;
        }
        for (queue, policy) in &self.queues {
            let valid = policy.validate();
            valid.map_err(|error| whose(error, format!("the policy of queue {queue:?}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// One that can be told from others.
    fn policy(seconds: u64) -> Policy {
        Policy {
            time_threshold: Duration::from_secs(seconds),
            ..Policy::default()
        }
    }

    #[test]
    fn a_queue_has_its_own_policy_or_that_of_its_longest_prefix() {
        let policies = Policies::new(policy(1))
            .prefix("tenant-", policy(2))
            .prefix("tenant-big-", policy(3))
            .prefix("tenant-bigger", policy(4))
            .queue("tenant-big-7".parse().unwrap(), policy(5));
        for (queue, seconds) in [
            ("tenant", 1),
            ("other", 1),
            ("tenant-", 2),
            ("tenant-9", 2),
            ("tenant-big", 2),
            ("tenant-big-8", 3),
            ("tenant-biggest", 2),
            ("tenant-big-7", 5),
            ("tenant-big-77", 3),
            ("tenant-z", 2),
            ("tenantz", 1),
        ] {
            let of = policies.of(&queue.parse().unwrap());
            assert_eq!(of, &policy(seconds), "{queue}");
        }
        let all = Policies::new(policy(1)).prefix("", policy(2));
        assert_eq!(all.of(&QueueName::default()), &policy(2));
    }

    #[test]
    fn a_policy_that_does_not_fit_together_is_named_with_its_queue() {
        let bad = Policy {
            max_backoff: Duration::from_millis(1),
            ..Policy::default()
        };
        for (policies, whose) in [
            (Policies::new(bad.clone()), "initial_backoff"),
            (
                Policies::default().prefix("tenant-", bad.clone()),
                "prefix \"tenant-\"",
            ),
            (
                Policies::default().queue("orders".parse().unwrap(), bad),
                "queue \"orders\"",
            ),
        ] {
            let error = policies.validate().unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Invalid);
            let error = error.to_string();
            assert!(
                error.contains(whose) && error.contains("max_backoff"),
                "{error}"
            );
        }
    }
}
