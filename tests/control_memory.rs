//! Resident memory of a store that is served, whatever its clients do. Alone in its process, because it reads how much memory the
//! process has had at most.

#![cfg(all(feature = "control", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, sync::Arc};

use batchyard::{
    ControlAccess, ControlStore, MemoryStore, NewRequest, QueueExt, QueueName, QueueOptions, Store,
    serve_control,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// As the documentation of `ControlServer` has it.
const DOCUMENTED_BYTES: u64 = 864 << 20;
const PAGE_BYTES: usize = 8_000_000;
const CLIENTS: usize = 150;

/// What this process has had resident at most.
fn most_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_le_bytes(), body].concat()
}

/// A client that has greeted as one of this version of the protocol, and what it was answered: that it went well, and the owner's version.
async fn greets(folder: &Path, version: u8) -> (UnixStream, [u8; 2]) {
    let path = folder.join("control.sock");
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(&frame(&[0, version])).await.unwrap();
    let length = stream.read_u32_le().await.unwrap();
    let mut welcome = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut welcome).await.unwrap();
    (stream, [welcome[0], welcome[1]])
}

/// A client that has asked for a page of ready requests with their payloads, and reads nothing more.
async fn asks(folder: &Path, version: u8) -> UnixStream {
    let (mut stream, welcome) = greets(folder, version).await;
    assert_eq!(welcome, [0, version]);
    let text = |text: String| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let (queue, now) = (
        QueueName::default().to_string(),
        batchyard::now().to_string(),
    );
    // To this queue: list, at this time, what is ready, from the first, 100 of them, with payloads.
    let call = [&[5][..], &text(queue), &[8], &text(now), &[1, 0, 100, 1]].concat();
    stream.write_all(&frame(&call)).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_read_no_answers_take_no_more_memory_than_documented() {
    let folder = tempfile::TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(QueueOptions::default()));
    let queue = store.queue(&QueueName::default()).await.unwrap();
    for _ in 0..2 {
        let payload = vec![7; PAGE_BYTES / 2];
        queue.push_one(NewRequest::new(payload)).await.unwrap();
    }
    let control =
        serve_control(folder.path(), Arc::clone(&store), None, ControlAccess::All).unwrap();
    let (_, [_, version]) = greets(folder.path(), 0).await;
    let before = most_resident();
    let mut flood = Vec::new();
    for _ in 0..CLIENTS {
        flood.push(asks(folder.path(), version).await);
    }
    // Whoever asks for little is not held up.
    let other = ControlStore::connect(folder.path()).await.unwrap();
    let other = other.queue(&QueueName::default()).await.unwrap();
    other.push_one(NewRequest::new("a")).await.unwrap();
    assert_eq!(other.stats(other.now()).await.unwrap().ready, 3);
    // Each is answered at last, or has made way after it was.
    let mut answered = 0;
    for mut stream in flood {
        if let Ok(length) = stream.read_u32_le().await {
            assert!(usize::try_from(length).unwrap() > PAGE_BYTES);
            assert_eq!(stream.read_u8().await.unwrap(), 0, "a result");
            answered += 1;
        }
    }
    let grown = most_resident() - before;
    println!(
        "{answered} of {CLIENTS} were answered, {} MiB more at most",
        grown >> 20
    );
    assert!(answered > 0);
    assert!(grown < DOCUMENTED_BYTES, "{} MiB are too many", grown >> 20);
    other.push_one(NewRequest::new("a")).await.unwrap();
    control.close().await;
}
