//! Handlers that take payloads as values of a serde type.

use std::{fmt, future::Future, marker::PhantomData};

use async_trait::async_trait;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use crate::{
    batch::Outcome,
    handler::{Batch, BatchHandler, HandlerError, Report},
    request::{DeadReason, RequestId},
};

/// A batch whose payloads were JSON and are now values of `T`, all in memory.
#[derive(Clone, Debug)]
pub struct JsonBatch<T> {
    /// The batch, to record outcomes and checkpoints with.
    pub batch: Batch,
    /// The members without an outcome, in order.
    pub requests: Vec<(RequestId, T)>,
}

/// A handler of [`JsonBatch`]es; [`json_handler`] makes one.
pub struct JsonHandler<T, F> {
    handle: F,
    payload: PhantomData<fn() -> T>,
}

/// Turns a closure over typed requests into a handler. A payload that does not decode is
/// dead-lettered alone, with its bytes and the reason; the others go on.
///
/// ```
/// use batchyard::{HandlerError, JsonBatch, Report, json_handler};
/// #[derive(serde::Deserialize)]
/// struct Order { sku: String }
///
/// let handler = json_handler(|orders: JsonBatch<Order>| async move {
///     for (id, order) in &orders.requests {
///         println!("{id}: {}", order.sku);
///     }
///     Ok::<_, HandlerError>(Report::done())
/// });
/// # fn is_handler(_: impl batchyard::BatchHandler) {}
/// # is_handler(handler);
/// ```
pub fn json_handler<T, F, Fut>(handle: F) -> JsonHandler<T, F>
where
    T: DeserializeOwned + Send + 'static,
    F: Fn(JsonBatch<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Report, HandlerError>> + Send,
{
    JsonHandler {
        handle,
        payload: PhantomData,
    }
}

#[async_trait]
impl<T, F, Fut> BatchHandler for JsonHandler<T, F>
where
    T: DeserializeOwned + Send + 'static,
    F: Fn(JsonBatch<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Report, HandlerError>> + Send,
{
    async fn handle(&self, batch: Batch) -> Result<Report, HandlerError> {
        let mut requests = Vec::new();
        let mut undecodable = Vec::new();
        let mut members = batch.members();
        while let Some(member) = members.next().await.transpose()? {
            match serde_json::from_slice(&member.payload) {
                Ok(value) => requests.push((member.id, value)),
                Err(error) => {
                    let reason = DeadReason::Undecodable;
                    let error = format!("payload is not what the handler needs: {error}");
                    undecodable.push((member.id, Outcome::Reject { reason, error }));
                }
            }
        }
        if !undecodable.is_empty() {
            batch.record(undecodable).await?;
        }
        if requests.is_empty() {
            return Ok(Report::recorded());
        }
        (self.handle)(JsonBatch { batch, requests }).await
    }
}

impl<T, F> fmt::Debug for JsonHandler<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonHandler").finish_non_exhaustive()
    }
}
