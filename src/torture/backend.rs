//! The backends that can be tortured.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    queue::{QueueOptions, Store},
};

/// What a store is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// An embedded database.
    #[cfg(feature = "sled")]
    Sled,
    /// A log of our own.
    #[cfg(feature = "journal")]
    Journal,
}

impl Backend {
    /// All that are compiled in.
    pub const ALL: &[Self] = &[
        #[cfg(feature = "sled")]
        Self::Sled,
        #[cfg(feature = "journal")]
        Self::Journal,
    ];

    /// Opens the store, and tells what was found amiss.
    ///
    /// # Errors
    /// As those of the backend.
    pub(super) async fn open(self, path: &Path) -> Result<(Arc<dyn Store>, Vec<String>)> {
        let queues = QueueOptions::default()
            .max_requests(MOST_REQUESTS)
            .max_bytes(MOST_BYTES)
            .retention(RETENTION)
            .idempotency_window(WINDOW);
        match self {
            #[cfg(feature = "sled")]
            Self::Sled => {
                let options = crate::queue::sled::SledStore::options().queues(queues);
                Ok((Arc::new(options.open(path).await?), Vec::new()))
            }
            #[cfg(feature = "journal")]
            Self::Journal => {
                // Short files, so that many begin, end and are used again.
                let options = crate::queue::journal::JournalStore::options()
                    .queues(queues)
                    .segment_bytes(SEGMENT_BYTES);
                let store = options.open(path).await?;
                let report = store.report().to_vec();
                Ok((Arc::new(store), report))
            }
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(feature = "sled")]
            Self::Sled => "sled",
            #[cfg(feature = "journal")]
            Self::Journal => "journal",
        })
    }
}

/// How long a done request is kept.
pub(super) const RETENTION: Duration = Duration::from_secs(2);
/// How long an idempotency key is known.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
const MOST_REQUESTS: u64 = 6_000;
const MOST_BYTES: u64 = 32 << 20;
#[cfg(feature = "journal")]
const SEGMENT_BYTES: u32 = 4 << 20;
