//! What the tests of this backend share.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use batchyard::{NewRequest, Queue, QueueName, QueueOptions, SledQueue, SledStore, Timestamp};

pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// A store and its queue `default`, which keeps its results for ever.
pub(crate) async fn open(path: &Path) -> batchyard::Result<(SledStore, SledQueue)> {
    let options = QueueOptions::default().retention(Duration::MAX);
    let store = SledStore::options()
        .open_timeout(Duration::from_mins(1))
        .open(path)
        .await?;
    let queue = store.queue_with(&QueueName::default(), options).await?;
    Ok((store, queue))
}

pub(crate) async fn push(queue: &dyn Queue, payloads: impl IntoIterator<Item = Vec<u8>>) {
    let requests = payloads.into_iter().map(NewRequest::new).collect();
    queue.push(NOW, requests).await.expect("pushed");
}

/// A generator whose seed is printed, and taken from `SEED` to do the same again.
pub(crate) fn random() -> fastrand::Rng {
    let seed = std::env::var("SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Every file under a folder with its bytes.
pub(crate) fn snapshot(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.display().to_string(), fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

/// A test in a process of its own; whether it passed, and what it said.
#[cfg(feature = "faults")]
pub(crate) fn with_failpoints(
    test: &str,
    points: &str,
    store: &Path,
) -> (std::process::ExitStatus, String) {
    let program = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(program)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env("FAILPOINTS", points)
        .env("STORE", store)
        .output()
        .expect("it is started");
    let said = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&said).into_owned())
}
