//! Building a [`Dispatcher`]: the original's parameters and defaults, validated once.

use std::{fmt, future::Future, num::NonZeroU32, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    Dispatcher, Source,
    event::{Event, Observer},
};
use crate::{
    error::{Error, Result},
    format::template::{RequestsType, Template},
    handler::{Batch, BatchHandler, HandlerError, Report},
    policy::{Policies, Policy},
};

/// Collects what a [`Dispatcher`] needs; [`build`](Self::build) checks it.
///
/// The parameters of the original's `BatchDispatcher` have its names and defaults:
/// `queue_threshold` 50,000, `time_threshold` 2 hours, `time_interval` 10 minutes, `requests_type`
/// partial, `request_kwargs` empty.
pub struct DispatcherBuilder {
    source: Source,
    policies: Policies,
    max_in_flight_total: Option<NonZeroU32>,
    requests_type: RequestsType,
    request_kwargs: String,
    handler: Option<Arc<dyn BatchHandler>>,
    observers: Vec<Observer>,
}

impl DispatcherBuilder {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            policies: Policies::default(),
            max_in_flight_total: None,
            requests_type: RequestsType::default(),
            request_kwargs: String::new(),
            handler: None,
            observers: Vec::new(),
        }
    }

    /// The general policy as a whole; the shorthands below change single fields of it.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.general = policy;
        self
    }

    /// A policy for each queue by its name, present and future, with a general one for those that have no other.
    /// Limits of a policy count for each queue by itself;
    /// [`max_in_flight_total`](Self::max_in_flight_total) counts over all.
    #[must_use]
    pub fn policies(mut self, policies: Policies) -> Self {
        self.policies = policies;
        self
    }

    /// How many ready requests make a batch leave. Default: 50,000.
    #[must_use]
    pub fn queue_threshold(mut self, requests: NonZeroU32) -> Self {
        self.policies.general.queue_threshold = requests;
        self
    }

    /// How old the oldest ready request may get. Default: 2 hours.
    #[must_use]
    pub fn time_threshold(mut self, age: Duration) -> Self {
        self.policies.general.time_threshold = age;
        self
    }

    /// How often the queue is looked at even if nothing woke the dispatcher. Default: 10 minutes.
    #[must_use]
    pub fn time_interval(mut self, interval: Duration) -> Self {
        self.policies.general.time_interval = interval;
        self
    }

    /// What a payload is. Default: partial.
    #[must_use]
    pub fn requests_type(mut self, requests_type: RequestsType) -> Self {
        self.requests_type = requests_type;
        self
    }

    /// A JSON object that is merged under each partial request, whose own fields win. Default: none.
    #[must_use]
    pub fn request_kwargs(mut self, json: impl Into<String>) -> Self {
        self.request_kwargs = json.into();
        self
    }

    /// The most batches in handlers over all queues. Default: only each queue's own limit.
    #[must_use]
    pub fn max_in_flight_total(mut self, batches: NonZeroU32) -> Self {
        self.max_in_flight_total = Some(batches);
        self
    }

    /// Tells this of every event, as it happens and without missing any; it has to be quick, since the dispatcher waits for it.
    #[must_use]
    pub fn on_event(mut self, observe: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.observers.push(Arc::new(observe));
        self
    }

    /// What works on the batches.
    #[must_use]
    pub fn handler(mut self, handler: impl BatchHandler) -> Self {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// Called once all outcomes of a batch are recorded, and again after a crash or an error; the
    /// batch ends only when it answers `Ok`. Give the handler first.
    ///
    /// # Panics
    /// If no handler was given yet.
    #[must_use]
    pub fn on_results<F, Fut>(mut self, on_results: F) -> Self
    where
        F: Fn(Batch) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler = self.handler.take().expect("on_results comes after handler");
        self.handler = Some(Arc::new(WithResults {
            handler,
            on_results,
        }));
        self
    }

    /// The dispatcher, if all of it fits together.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): no handler, a policy whose fields don't fit together, or
    /// `request_kwargs` that are no JSON object.
    pub fn build(self) -> Result<Dispatcher> {
        self.policies.validate()?;
        let handler = self
            .handler
            .ok_or_else(|| Error::invalid("a dispatcher needs a handler"))?;
        Ok(Dispatcher {
            source: self.source,
            policies: self.policies,
            max_in_flight_total: self.max_in_flight_total,
            context: Template::new(self.requests_type, &self.request_kwargs)?.encode(),
            handler,
            observers: self.observers,
        })
    }
}

impl fmt::Debug for DispatcherBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DispatcherBuilder")
            .field("source", &self.source)
            .field("policies", &self.policies)
            .finish_non_exhaustive()
    }
}

/// A handler with an `on_results` beside it.
struct WithResults<F> {
    handler: Arc<dyn BatchHandler>,
    on_results: F,
}

#[async_trait]
impl<F, Fut> BatchHandler for WithResults<F>
where
    F: Fn(Batch) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    async fn handle(&self, batch: Batch) -> Result<Report, HandlerError> {
        self.handler.handle(batch).await
    }

    fn wants_results(&self) -> bool {
        true
    }

    async fn on_results(&self, batch: Batch) -> Result<(), HandlerError> {
        if self.handler.wants_results() {
            self.handler.on_results(batch.clone()).await?;
        }
        (self.on_results)(batch).await
    }
}
