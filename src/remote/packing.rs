//! How much fits into one batch of a provider: all of its limits at once.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::endpoint::Route;

/// What a provider takes, each limit by itself; `None` is no limit, or none that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The fewest requests of a batch.
    pub min_requests: Option<u64>,
    /// The most requests of a batch.
    pub requests: Option<u64>,
    /// The most bytes of a batch, as it is sent: a file of JSON Lines, or one JSON document.
    pub bytes: Option<u64>,
    /// The most prompts of all requests of a batch of embeddings.
    pub embedding_inputs: Option<u64>,
    /// The most tokens of prompts in all batches that have not ended, for one model.
    pub enqueued_tokens: Option<u64>,
    /// The most batches that have not ended.
    pub concurrent_batches: Option<u64>,
    /// The most batches that are submitted within an hour.
    pub batches_an_hour: Option<u64>,
    /// The most files that are uploaded within a minute.
    pub uploads_a_minute: Option<u64>,
}

impl Limits {
    /// The most requests and payload bytes of a batch of ours that fits into one of the provider's, whatever JSON its
    /// payloads are: what a policy is given as `max_batch_requests` and `max_batch_bytes`.
    ///
    /// `kwargs_bytes` is the length of `request_kwargs`, which stand in each line. Plain text with many characters that JSON escapes
    /// may still take more room than it has bytes; a request that does not fit is then left for the next batch.
    pub fn of_a_batch(&self, kwargs_bytes: u64) -> (u64, u64) {
        let most = self.bytes.unwrap_or(u64::MAX);
        let a_line = LINE_BYTES.saturating_add(kwargs_bytes);
        let requests = self.requests.unwrap_or(u64::MAX);
        // At least half of the bytes are for payloads.
        let requests = requests.min(most / 2 / a_line).max(1);
        let bytes = match self.bytes {
            Some(most) => most.saturating_sub(requests.saturating_mul(a_line)).max(1),
            None => u64::MAX,
        };
        (requests, bytes)
    }
}

/// What is in a batch, or in one request of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Requests.
    pub requests: u64,
    /// Bytes as they are sent.
    pub bytes: u64,
    /// Prompts: more than one in an embedding of a list.
    pub inputs: u64,
    /// Tokens of the prompts, estimated.
    pub prompt_tokens: u64,
    /// The most tokens of the answers, of those requests that bound them.
    pub output_tokens: u64,
    /// Requests that do not bound their answer.
    pub unbounded: u64,
}

impl Load {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            bytes: self.bytes.saturating_add(other.bytes),
            inputs: self.inputs.saturating_add(other.inputs),
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            unbounded: self.unbounded.saturating_add(other.unbounded),
        }
    }
}

/// A batch of a provider's as it is filled.
///
/// ```
/// use batchyard::remote::{Limits, Load, Misfit, Packing, Endpoint, Route};
/// let limits = Limits { requests: Some(1), ..Limits::default() };
/// let route = Route { endpoint: Endpoint::Embeddings, model: "m".into() };
/// let one = Load { requests: 1, ..Load::default() };
/// let mut packing = Packing::new(limits, true);
/// assert_eq!(packing.add(&route, one), Ok(()));
/// assert_eq!(packing.add(&route, one), Err(Misfit::Full { what: "requests", most: 1 }));
/// ```
#[derive(Clone, Debug)]
pub struct Packing {
    limits: Limits,
    one_model: bool,
    route: Option<Route>,
    load: Load,
}

impl Packing {
    /// An empty batch; with `one_model`, all of its requests are for the model of the first, and else for its endpoint alone.
    pub fn new(limits: Limits, one_model: bool) -> Self {
        Self {
            limits,
            one_model,
            route: None,
            load: Load::default(),
        }
    }

    /// Adds a request, if it fits.
    ///
    /// # Errors
    /// Why it does not; then nothing has changed.
    pub fn add(&mut self, route: &Route, load: Load) -> Result<(), Misfit> {
        if let Some(of) = &self.route
            && (of.endpoint != route.endpoint || self.one_model && of.model != route.model)
        {
            return Err(Misfit::Route {
                batch: of.clone(),
                request: route.clone(),
            });
        }
        let sum = self.load.and(load);
        if let Some((what, most)) = self.limits.over(sum) {
            return Err(Misfit::Full { what, most });
        }
        self.load = sum;
        self.route.get_or_insert_with(|| route.clone());
        Ok(())
    }

    /// What is in it.
    pub fn load(&self) -> Load {
        self.load
    }

    /// What its requests have in common; `None` while it is empty. The model is that of the first.
    pub fn route(&self) -> Option<&Route> {
        self.route.as_ref()
    }
}

impl Limits {
    /// The limit of one batch that this exceeds, by name.
    pub(super) fn over(&self, load: Load) -> Option<(&'static str, u64)> {
        let limits = [
            ("requests", load.requests, self.requests),
            ("bytes", load.bytes, self.bytes),
            ("embedding inputs", load.inputs, self.embedding_inputs),
            ("enqueued tokens", load.prompt_tokens, self.enqueued_tokens),
        ];
        let over = |(what, is, most): (&'static str, u64, Option<u64>)| {
            most.filter(|most| is > *most).map(|most| (what, most))
        };
        limits.into_iter().find_map(over)
    }
}

/// Why a request is not in this batch; there is nothing wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is for another endpoint or model: requests are to be pushed to the queue of their [`Route`].
    Route {
        /// That of the batch.
        batch: Route,
        /// That of the request.
        request: Route,
    },
    /// There is no room left for it.
    Full {
        /// Which limit it would exceed.
        what: &'static str,
        /// The limit.
        most: u64,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route { batch, request } => {
                write!(f, "the request is for {request}, and its batch for {batch}")
            }
            Self::Full { what, most } => {
                write!(f, "the batch is full: at most {most} {what} are allowed")
            }
        }
    }
}

impl std::error::Error for Misfit {}

/// What a line has besides the payload and `request_kwargs`: at most 64 bytes of `custom_id`, 34 of the longest path, the
/// names of the line, and a turn around a prompt.
const LINE_BYTES: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Endpoint;

    fn route(model: &str) -> Route {
        Route {
            endpoint: Endpoint::ChatCompletions,
            model: model.into(),
        }
    }

    #[test]
    fn every_limit_holds_by_itself_and_is_named() {
        let one = Load {
            requests: 1,
            bytes: 10,
            inputs: 2,
            prompt_tokens: 5,
            ..Load::default()
        };
        for (limits, what, most) in [
            (
                Limits {
                    requests: Some(2),
                    ..Limits::default()
                },
                "requests",
                2,
            ),
            (
                Limits {
                    bytes: Some(29),
                    ..Limits::default()
                },
                "bytes",
                29,
            ),
            (
                Limits {
                    embedding_inputs: Some(5),
                    ..Limits::default()
                },
                "embedding inputs",
                5,
            ),
            (
                Limits {
                    enqueued_tokens: Some(14),
                    ..Limits::default()
                },
                "enqueued tokens",
                14,
            ),
        ] {
            let mut packing = Packing::new(limits, true);
            assert_eq!(packing.add(&route("m"), one), Ok(()));
            assert_eq!(packing.add(&route("m"), one), Ok(()));
            let full = Misfit::Full { what, most };
            assert_eq!(packing.add(&route("m"), one), Err(full.clone()));
            assert!(full.to_string().contains(&format!("{most} {what}")));
            assert_eq!(packing.load(), one.and(one));
        }
    }

    #[test]
    fn a_batch_has_one_endpoint_and_where_it_counts_one_model() {
        let one = Load::default();
        let mut packing = Packing::new(Limits::default(), true);
        assert_eq!(packing.add(&route("a"), one), Ok(()));
        assert!(matches!(
            packing.add(&route("b"), one),
            Err(Misfit::Route { .. })
        ));
        let mut packing = Packing::new(Limits::default(), false);
        assert_eq!(packing.add(&route("a"), one), Ok(()));
        assert_eq!(packing.add(&route("b"), one), Ok(()));
        let other = Route {
            endpoint: Endpoint::Embeddings,
            model: "a".into(),
        };
        assert!(matches!(
            packing.add(&other, one),
            Err(Misfit::Route { .. })
        ));
    }

    #[test]
    fn bounds_of_a_batch_leave_room_for_the_lines() {
        for (requests, bytes, kwargs) in [
            (Some(50_000), Some(200 << 20), 100),
            (Some(50_000), Some(1000), 0),
            (None, Some(100 << 20), 60 << 10),
            (Some(7), None, 9),
        ] {
            let limits = Limits {
                requests,
                bytes,
                ..Limits::default()
            };
            let (most, payload) = limits.of_a_batch(kwargs);
            assert!(requests.is_none_or(|requests| most <= requests) && most > 0);
            if let Some(bytes) = bytes.filter(|bytes| *bytes > 2 * LINE_BYTES + kwargs) {
                assert!(most * (LINE_BYTES + kwargs) + payload <= bytes);
                assert!(payload >= bytes / 2);
            }
        }
    }
}
