//! The port of whatever works on a batch: [`BatchHandler`], closures included.

mod batch;
#[cfg(feature = "command")]
pub(crate) mod command;
#[cfg(feature = "http")]
mod http;
mod report;
mod typed;

use std::future::Future;

use async_trait::async_trait;

#[cfg(feature = "command")]
pub use self::command::{CommandHandler, supervise};
#[cfg(feature = "http")]
pub use self::http::{HttpHandler, HttpHandlerBuilder};
pub use self::{
    batch::{AttemptOutcomes, Batch, BatchOptions},
    report::{FailureKind, HandlerError, Report, Rest},
    typed::{JsonBatch, JsonHandler, json_handler},
};

/// Works on batches.
///
/// # Contract
/// - `handle` may be called again with the same batch: after a crash, an error, or a lost lease. The
///   batch then has the same [`id`](Batch::id) and members, the [`checkpoint`](Batch::checkpoint) that
///   was left, and the outcomes already recorded; [`Batch::members`] leaves those members out. Use the id
///   as idempotency key for effects outside the store.
/// - The batch is held, and its lease extended, while the future runs. When the lease is lost or the
///   dispatcher shuts down past its time-out, the future is dropped; [`Batch::stopped`] tells first.
/// - A panic, or an error of another library, counts as [`FailureKind::Transient`].
///
/// # Example
/// ```
/// use batchyard::{Batch, HandlerError, Report};
/// // A closure is a handler.
/// let handler = |batch: Batch| async move {
///     println!("{} requests in batch {}", batch.len(), batch.id());
///     Ok::<_, HandlerError>(Report::done())
/// };
/// # fn is_handler(_: impl batchyard::BatchHandler) {}
/// # is_handler(handler);
/// ```
#[async_trait]
pub trait BatchHandler: Send + Sync + 'static {
    /// Works on the batch and reports what became of its members.
    async fn handle(&self, batch: Batch) -> Result<Report, HandlerError>;

    /// Whether [`on_results`](Self::on_results) is to be called. Default: no.
    fn wants_results(&self) -> bool {
        false
    }

    /// Called under the same batch id once every member has a recorded outcome, and again after a
    /// crash or an error; the batch ends only when it answers `Ok`.
    async fn on_results(&self, batch: Batch) -> Result<(), HandlerError> {
        let _ = batch;
        Ok(())
    }
}

#[async_trait]
impl<F, Fut> BatchHandler for F
where
    F: Fn(Batch) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Report, HandlerError>> + Send,
{
    async fn handle(&self, batch: Batch) -> Result<Report, HandlerError> {
        self(batch).await
    }
}
