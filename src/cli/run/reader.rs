//! INPUT to requests, in chunks that carry how far they reach.

use std::{
    io::{BufRead, Read},
    path::Path,
    sync::Arc,
};

use batchyard::{ErrorKind, MAX_PAYLOAD_BYTES, NewRequest, Queue, fault::point};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::{
    Failure,
    failures::Failures,
    ledger::{Ledger, Progress, conflict, hex},
};
use crate::cli::{
    lines::{self, Input},
    output::say,
};

/// INPUT, and how far it was read.
pub(super) struct Reader {
    input: Input,
    name: String,
    /// Any text is a payload, not only JSON.
    any_text: bool,
    hash: Sha256,
    read: Progress,
    failures: Arc<Failures>,
}

/// Requests, and the ledger once they are queued.
struct Chunk {
    requests: Vec<NewRequest>,
    ledger: Ledger,
}

impl Reader {
    /// Opens INPUT; `-` is stdin.
    pub(super) fn open(
        path: &Path,
        any_text: bool,
        failures: Arc<Failures>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            input: lines::open(path)?,
            name: path.display().to_string(),
            any_text,
            hash: Sha256::new(),
            read: Progress::default(),
            failures,
        })
    }

    /// Reads past what was queued before, and makes sure that it is still the same.
    pub(super) fn skip(&mut self, ledger: &Ledger) -> Result<(), Failure> {
        let mut line = Vec::new();
        while self.read.offset < ledger.read.offset && self.next_line(&mut line)? {
            // Its refusal was told before; the file of failures is written anew.
            match self.refusal(&line) {
                None => self.read.requests += 1,
                Some(why) => {
                    self.read.refused += 1;
                    self.failures.refused_before(self.read.lines, &why);
                }
            }
        }
        let more = ledger.complete && self.next_line(&mut line)?;
        if more || self.progress() != ledger.read {
            return Err(conflict("INPUT has changed"));
        }
        Ok(())
    }

    /// Queues the rest of INPUT, and tells how far it is. Ends early if `stop` is dropped.
    pub(super) async fn queue_all(
        self,
        queue: Arc<dyn Queue>,
        mut ledger: Ledger,
        told: watch::Sender<Ledger>,
    ) -> Result<(), Failure> {
        if ledger.complete {
            return Ok(());
        }
        let (sender, mut chunks) = mpsc::channel(CHUNKS);
        let start = ledger.clone();
        let reading = tokio::task::spawn_blocking(move || self.read_all(start, &sender));
        while let Some(chunk) = chunks.recv().await {
            push(&*queue, &chunk).await?;
            point("run.queued");
            ledger = chunk.ledger;
            told.send_replace(ledger.clone());
        }
        match reading.await {
            Ok(result) => result,
            Err(error) => Err(batchyard::Error::internal("the reader died")
                .with_source(error)
                .into()),
        }
    }

    fn read_all(mut self, mut ledger: Ledger, chunks: &mpsc::Sender<Chunk>) -> Result<(), Failure> {
        let (mut requests, mut bytes) = (Vec::new(), 0);
        let mut line = Vec::new();
        loop {
            let more = self.next_line(&mut line)?;
            if more {
                if let Some(why) = self.refusal(&line) {
                    self.read.refused += 1;
                    self.failures.refused(self.read.lines, &why);
                } else {
                    bytes += line.len();
                    requests.push(self.request(&line));
                }
            }
            // What has come through a pipe so far should not wait for what comes later.
            let idle = self.input.buffer().is_empty();
            if !more || idle || requests.len() >= CHUNK_REQUESTS || bytes >= CHUNK_BYTES {
                ledger.read = self.progress();
                ledger.complete = !more;
                let chunk = Chunk {
                    requests: std::mem::take(&mut requests),
                    ledger: ledger.clone(),
                };
                bytes = 0;
                if chunks.blocking_send(chunk).is_err() || !more {
                    return Ok(());
                }
            }
        }
    }

    /// Reads a line, without its end; of one that is too long, only the beginning, but more than
    /// is allowed. False at the end.
    fn next_line(&mut self, line: &mut Vec<u8>) -> Result<bool, Failure> {
        line.clear();
        let mut part = Vec::new();
        loop {
            part.clear();
            let mut limited = (&mut self.input).take(MAX_PAYLOAD_BYTES as u64 + 1);
            let read = limited.read_until(b'\n', &mut part);
            let read = read.map_err(|error| Failure::io(&self.name, &error))?;
            self.hash.update(&part);
            self.read.offset += read as u64;
            let ended = read == 0 || part.ends_with(b"\n");
            if part.ends_with(b"\n") {
                part.pop();
            }
            if line.is_empty() {
                std::mem::swap(line, &mut part);
            }
            if ended {
                let any = read > 0 || !line.is_empty();
                self.read.lines += u64::from(any);
                return Ok(any);
            }
        }
    }

    /// Why a line can't be a request.
    fn refusal(&self, line: &[u8]) -> Option<String> {
        let long = lines::too_long(line);
        if long.is_some() || self.any_text {
            return long;
        }
        let error = serde_json::from_slice::<&RawValue>(line).err()?;
        Some(lines::not_json(line, &error))
    }

    fn request(&mut self, line: &[u8]) -> NewRequest {
        let number = self.read.requests;
        self.read.requests += 1;
        NewRequest::new(line.to_vec())
            .attribute(NUMBER, number.to_string())
            .attribute(LINE, self.read.lines.to_string())
    }

    fn progress(&mut self) -> Progress {
        self.read.sha256 = hex(&self.hash.clone().finalize());
        self.read.clone()
    }
}

/// Queues a chunk, and waits while the disk is nearly full: what is queued already makes room.
async fn push(queue: &dyn Queue, chunk: &Chunk) -> Result<(), Failure> {
    let mut told = false;
    loop {
        let bookmark = chunk.ledger.bookmark();
        match queue
            .push_from(queue.now(), chunk.requests.clone(), bookmark)
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::QueueFull => {
                if !told {
                    say(&format!("reading waits: {error}"));
                    told = true;
                }
                tokio::time::sleep(FULL_WAIT).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The attribute with the number of the request, from 0.
pub(super) const NUMBER: &str = "n";
/// The attribute with the number of its line in INPUT, from 1.
pub(super) const LINE: &str = "line";
const CHUNK_REQUESTS: usize = 1000;
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks that are read ahead.
const CHUNKS: usize = 2;
const FULL_WAIT: std::time::Duration = std::time::Duration::from_secs(1);
