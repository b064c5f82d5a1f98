//! Results to OUTPUT: in input order as they settle, or as they come.
//!
//! OUTPUT is written as `OUTPUT.part`, from the results that the store keeps, and renamed when it is
//! whole. Every start of a run writes it anew, so it never depends on what a killed one left there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use batchyard::{Administration, Entry, List, Queue, RequestId, ResultCursor, State, fault::point};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    sync::watch,
};

use super::{
    Exit, Failure,
    failures::Failures,
    ledger::Ledger,
    reader::{LINE, NUMBER},
    unwritable,
};

/// How OUTPUT is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    /// Bare result lines, one for each line of INPUT.
    pub(super) plain: bool,
    /// As results come.
    pub(super) unordered: bool,
}

/// `OUTPUT.part`, and what is in it.
pub(super) struct Output {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<tokio::fs::File>,
    format: Format,
    failures: Arc<Failures>,
    /// The last entry written in input order.
    last: Option<RequestId>,
    /// How many requests were written or passed over.
    requests: u64,
    /// Lines of INPUT that have their line in OUTPUT.
    lines: u64,
    cursor: Option<ResultCursor>,
}

impl Output {
    /// Begins `OUTPUT.part` anew.
    pub(super) async fn begin(
        path: &Path,
        format: Format,
        failures: Arc<Failures>,
    ) -> Result<Self, Failure> {
        let part = part_of(path);
        let file = tokio::fs::File::create(&part).await;
        let file = file.map_err(|error| unwritable(&part, &error))?;
        Ok(Self {
            path: path.to_owned(),
            part,
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            format,
            failures,
            last: None,
            requests: 0,
            lines: 0,
            cursor: None,
        })
    }

    /// Writes results as they settle, until all are settled, which `settled` tells with the ledger.
    pub(super) async fn write_all(
        &mut self,
        queue: &dyn Queue,
        mut settled: watch::Receiver<Option<Ledger>>,
    ) -> Result<(), Failure> {
        let admin = administration(queue)?;
        let mut changes = queue.pushed();
        loop {
            // Marked before looking, so that nothing that happens meanwhile is missed.
            let end = settled.borrow_and_update().clone();
            if let Some(changes) = &mut changes {
                changes.mark_unchanged();
            }
            let wrote = if self.format.unordered {
                self.write_unordered(queue, admin).await?
            } else {
                self.write_ordered(queue, admin, end.is_some()).await?
            };
            if wrote {
                continue;
            }
            if let Some(ledger) = end {
                return self.end_lines(ledger.read.lines).await;
            }
            self.flush().await?;
            tokio::select! {
                woken = changed(&mut changes) => woken?,
                told = settled.changed() => if told.is_err() { return Ok(()) },
            }
            // One look for many changes: each costs a read of the store.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes OUTPUT whole: synced, then renamed into its place.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        self.flush().await?;
        let synced = self.file.get_ref().sync_all().await;
        synced.map_err(|error| unwritable(&self.part, &error))?;
        point("run.written");
        let renamed = tokio::fs::rename(&self.part, &self.path).await;
        renamed.map_err(|error| unwritable(&self.path, &error))?;
        point("run.renamed");
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let folder_synced = match tokio::fs::File::open(folder).await {
            Ok(folder) => folder.sync_all().await,
            Err(error) => Err(error),
        };
        folder_synced.map_err(|error| unwritable(folder, &error))
    }

    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.file.flush().await;
        flushed.map_err(|error| unwritable(&self.part, &error))
    }

    /// Writes the settled requests that follow the last one written, up to the first that is not
    /// settled; with `all_settled`, one that is missing will never be and is passed over.
    async fn write_ordered(
        &mut self,
        queue: &dyn Queue,
        admin: &dyn Administration,
        all_settled: bool,
    ) -> Result<bool, Failure> {
        let next = self.requests;
        let follows = |entries: &[Entry]| {
            let first = entries.first();
            first.is_some_and(|entry| all_settled || number(entry, NUMBER) == next)
        };
        // A glance first: mostly the next one is still under way, and reading more would be in vain.
        let glance = std::num::NonZeroU32::MIN;
        let (done, dead) = self.settled(queue, admin, Some(glance)).await?;
        if !follows(&done) && !follows(&dead) {
            return Ok(false);
        }
        let (done, dead) = self.settled(queue, admin, None).await?;
        let mut entries: Vec<Entry> = done.into_iter().chain(dead).collect();
        entries.sort_unstable_by_key(|entry| entry.id);
        let mut wrote = false;
        for entry in entries {
            // Nothing settled comes before the first one, so what is missing there was purged.
            let purged = all_settled && !wrote;
            if number(&entry, NUMBER) != self.requests && !purged {
                break;
            }
            self.requests = number(&entry, NUMBER) + 1;
            self.end_lines(number(&entry, LINE).saturating_sub(1))
                .await?;
            self.write_entry(&entry).await?;
            self.last = Some(entry.id);
            wrote = true;
        }
        Ok(wrote)
    }

    async fn settled(
        &self,
        queue: &dyn Queue,
        admin: &dyn Administration,
        most: Option<std::num::NonZeroU32>,
    ) -> Result<(Vec<Entry>, Vec<Entry>), Failure> {
        let list = |state| {
            let mut list = List::new(state);
            list.after = self.last;
            list.max_requests = most.unwrap_or(list.max_requests);
            list
        };
        let now = queue.now();
        let dead = admin.list(now, &list(State::Dead)).await?;
        let done = admin.list(now, &list(State::Done)).await?;
        Ok((done, dead))
    }

    async fn write_unordered(
        &mut self,
        queue: &dyn Queue,
        admin: &dyn Administration,
    ) -> Result<bool, Failure> {
        let page = List::new(State::Done).max_requests;
        let page = admin.results(queue.now(), self.cursor, page).await?;
        for entry in &page.entries {
            self.write_entry(entry).await?;
            self.lines += 1;
        }
        self.cursor = page.next.or(self.cursor);
        Ok(!page.entries.is_empty())
    }

    async fn write_entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        let line_number = number(entry, LINE);
        let mut line = Vec::new();
        let error = match entry.state {
            State::Done => None,
            _ => Some(reason(entry)),
        };
        if let Some(error) = &error {
            self.failures.failed(entry.id, line_number, error);
        }
        let result = entry.result.as_deref();
        if self.format.plain {
            line.extend_from_slice(result.unwrap_or_default());
        } else {
            let head = format!("{{\"id\":\"{}\",\"line\":{line_number},", entry.id);
            line.extend_from_slice(head.as_bytes());
            if let Some(error) = &error {
                line.extend_from_slice(b"\"error\":");
                line.extend_from_slice(&json_string(error));
            } else {
                line.extend_from_slice(b"\"result\":");
                write_json(&mut line, result);
            }
            line.push(b'}');
        }
        line.push(b'\n');
        if !self.format.unordered {
            self.lines = line_number;
        }
        self.put(&line).await
    }

    /// Under `--plain`, gives each line of INPUT that became no result an empty line.
    async fn end_lines(&mut self, lines: u64) -> Result<(), Failure> {
        while self.format.plain && self.lines < lines {
            self.put(b"\n").await?;
            self.lines += 1;
        }
        Ok(())
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.file.write_all(bytes).await;
        written.map_err(|error| unwritable(&self.part, &error))
    }
}

/// The verbs that read results.
pub(super) fn administration(queue: &dyn Queue) -> Result<&dyn Administration, Failure> {
    let text = "this backend has no administration, which run needs to read results";
    queue.admin().ok_or_else(|| Failure::new(Exit::Usage, text))
}

async fn changed(changes: &mut Option<watch::Receiver<u64>>) -> Result<(), Failure> {
    match changes {
        Some(changes) => {
            let closed = || batchyard::Error::closed("the queue was closed");
            changes.changed().await.map_err(|_| closed().into())
        }
        None => Ok(()),
    }
}

/// Why a request is dead.
fn reason(entry: &Entry) -> String {
    let reason = entry.reason.map(|reason| reason.to_string());
    match (reason, &entry.error) {
        (_, Some(error)) => error.clone(),
        (reason, None) => reason.unwrap_or_else(|| "failed".into()),
    }
}

/// A result is JSON from most handlers; what is not becomes a string.
fn write_json(line: &mut Vec<u8>, result: Option<&[u8]>) {
    let Some(result) = result else {
        return line.extend_from_slice(b"null");
    };
    match serde_json::from_slice::<&RawValue>(result) {
        Ok(json) => {
            // Only white space between tokens can be a raw line break.
            let flat = json.get().bytes().map(|byte| match byte {
                b'\n' | b'\r' => b' ',
                byte => byte,
            });
            line.extend(flat);
        }
        Err(_) => line.extend_from_slice(&json_string(&String::from_utf8_lossy(result))),
    }
}

fn json_string(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("a string is always writable as JSON")
}

fn number(entry: &Entry, attribute: &str) -> u64 {
    let value = entry.attributes.get(attribute);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Where OUTPUT is until it is whole.
pub(super) fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

const BUFFER_BYTES: usize = 256 << 10;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
