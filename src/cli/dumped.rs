//! What is dumped of a store: a moment of all queues, or where the backend has no such, queue by queue as they are then.

use std::sync::Arc;

use batchyard::{
    Queue, QueueName, Timestamp,
    transfer::{DumpFrom, DumpPage, Moment},
};

use super::{
    exit::Failure,
    export::transfer,
    store::{OpenStore, no_queue},
};

/// A queue that is dumped.
pub(super) struct Dumped {
    /// Its name.
    pub(super) name: QueueName,
    /// As of when.
    pub(super) now: Timestamp,
    from: From,
}

enum From {
    Moment(Arc<dyn Moment>),
    Queue(Arc<dyn Queue>),
}

impl Dumped {
    /// The queue of this name, or all queues; none is made.
    ///
    /// # Errors
    /// If there is no queue of this name, or the backend can't dump it.
    pub(super) async fn all(
        open: &OpenStore,
        name: Option<&QueueName>,
    ) -> Result<Vec<Self>, Failure> {
        let now = batchyard::now();
        let Some(moment) = open.store.moment(now).await? else {
            let queues = open.existing(name).await?;
            // What can't be dumped is found before anything is.
            queues
                .iter()
                .try_for_each(|queue| transfer(&**queue).map(drop))?;
            let dumped = queues.into_iter().map(|queue| Self {
                name: queue.name(),
                now: queue.now(),
                from: From::Queue(queue),
            });
            return Ok(dumped.collect());
        };
        let mut names = moment.queues();
        if let Some(name) = name {
            if !names.contains(name) {
                return Err(no_queue(name, &names));
            }
            names.retain(|known| known == name);
        }
        let moment: Arc<dyn Moment> = moment.into();
        let dumped = names.into_iter().map(|name| Self {
            name,
            now,
            from: From::Moment(Arc::clone(&moment)),
        });
        Ok(dumped.collect())
    }

    /// The next page of it.
    ///
    /// # Errors
    /// As [`Moment::dump`].
    pub(super) async fn page(&self, from: DumpFrom) -> Result<DumpPage, Failure> {
        Ok(match &self.from {
            From::Moment(moment) => moment.dump(&self.name, from).await?,
            From::Queue(queue) => transfer(&**queue)?.dump(self.now, from).await?,
        })
    }
}
