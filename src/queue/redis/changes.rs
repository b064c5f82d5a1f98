//! Wake-ups: a connection of its own listens to what the scripts publish.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures_util::StreamExt;
use redis::{Client, RedisError};
use tokio::{sync::watch, task::AbortHandle, time::sleep};

use super::connection::{FIRST_PAUSE, next_pause};

/// Counters by channel, moved by what is published there.
///
/// While the connection is down nothing is heard, so every counter moves when it is back.
#[derive(Debug)]
pub(super) struct Changes {
    counters: Arc<Counters>,
    listener: AbortHandle,
}

type Counters = Mutex<HashMap<String, Weak<watch::Sender<u64>>>>;

impl Changes {
    /// Listens to these patterns until dropped.
    pub(super) fn listen(client: Client, patterns: Vec<String>) -> Self {
        let counters = Arc::new(Counters::default());
        let heard = Arc::clone(&counters);
        let listener = tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                match hear(&client, &patterns, &heard).await {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(error) => {
                        tracing::debug!(%error, "no wake-ups from the Redis server, connecting again");
                    }
                }
                let (jittered, longer) = next_pause(pause);
                sleep(jittered).await;
                pause = longer;
            }
        });
        Self {
            counters,
            listener: listener.abort_handle(),
        }
    }

    /// The counter of a channel, kept for as long as somebody holds it.
    pub(super) fn counter(&self, channel: String) -> Arc<watch::Sender<u64>> {
        let mut counters = lock(&self.counters);
        counters.retain(|_, counter| counter.strong_count() > 0);
        if let Some(counter) = counters.get(&channel).and_then(Weak::upgrade) {
            return counter;
        }
        let counter = Arc::new(watch::Sender::new(0));
        counters.insert(channel, Arc::downgrade(&counter));
        counter
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Moves a counter.
pub(super) fn bump(counter: &watch::Sender<u64>) {
    counter.send_modify(|count| *count = count.wrapping_add(1));
}

/// Listens until the connection ends.
async fn hear(client: &Client, patterns: &[String], counters: &Counters) -> Result<(), RedisError> {
    let mut connection = client.get_async_pubsub().await?;
    for pattern in patterns {
        connection.psubscribe(pattern).await?;
    }
    for counter in lock(counters).values().filter_map(Weak::upgrade) {
        bump(&counter);
    }
    let mut published = connection.into_on_message();
    while let Some(told) = published.next().await {
        let counter = lock(counters)
            .get(told.get_channel_name())
            .and_then(Weak::upgrade);
        if let Some(counter) = counter {
            bump(&counter);
        }
    }
    Ok(())
}

fn lock(counters: &Counters) -> MutexGuard<'_, HashMap<String, Weak<watch::Sender<u64>>>> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}
