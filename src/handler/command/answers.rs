//! Lines to outcomes: what the command answered.

use std::{fs::File, path::Path};

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{
    LineFormat,
    feed::{Fed, RECORD_PAGE},
    spool::blocking,
};
use crate::{
    batch::Outcome,
    format::json_lines::decode_answer_line,
    handler::{Batch, HandlerError},
    request::RequestId,
};

/// The output of a command that has exited with 0, and the requests that it was about.
pub(super) struct Answers {
    lines: BufReader<tokio::fs::File>,
    fed: Fed,
}

impl Answers {
    pub(super) fn new(file: File, fed: Fed) -> Self {
        let lines = BufReader::with_capacity(BUFFER_BYTES, tokio::fs::File::from_std(file));
        Self { lines, fed }
    }

    pub(super) async fn open(path: &Path, fed: Fed) -> Result<Self, HandlerError> {
        let path = path.to_owned();
        Ok(Self::new(blocking(move || File::open(path)).await?, fed))
    }

    /// Records the outcomes page by page; what is wrong with the lines, if anything is.
    pub(super) async fn record(
        mut self,
        batch: &Batch,
        format: LineFormat,
    ) -> Result<Option<String>, HandlerError> {
        match format {
            LineFormat::Json => self.record_json(batch).await,
            LineFormat::Plain => self.record_plain(batch).await,
        }
    }

    async fn record_json(&mut self, batch: &Batch) -> Result<Option<String>, HandlerError> {
        let Fed {
            mut ids,
            mut settled,
        } = std::mem::take(&mut self.fed);
        ids.sort_unstable();
        settled.sort_unstable();
        let mut answered = vec![false; ids.len()];
        let mut page = RecordPage::new(batch);
        let (mut number, mut bad) = (0_u64, Bad::default());
        while let Some(line) = self.next_line().await? {
            number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let (id, outcome) = match decode_answer_line(&line) {
                Ok(answer) => answer,
                Err(why) => {
                    bad.count(
                        number,
                        &format!("{why}; if the command writes plain lines, use --plain"),
                    );
                    continue;
                }
            };
            match ids.binary_search(&id).map(|index| &mut answered[index]) {
                Ok(answered) if !*answered => {
                    *answered = true;
                    page.push(id, outcome).await?;
                }
                Ok(_) => {
                    tracing::warn!(batch = %batch.id(), line = number, "a second answer to {id} is ignored");
                }
                Err(_) if settled.binary_search(&id).is_ok() => {}
                Err(_) => bad.count(number, &format!("{id} is no request of this batch")),
            }
        }
        page.flush().await?;
        let missing = answered.iter().filter(|answered| !**answered).count();
        let missing = (missing > 0).then(|| {
            let requests = ids.len();
            format!("the command exited with 0 but left {missing} of {requests} requests without an answer")
        });
        Ok(bad.describe().or(missing))
    }

    /// Counts before it records: with another number of lines, nothing tells which belongs to which.
    async fn record_plain(&mut self, batch: &Batch) -> Result<Option<String>, HandlerError> {
        let ids = std::mem::take(&mut self.fed.ids);
        let mut lines = 0;
        while self.next_line().await?.is_some() {
            lines += 1;
        }
        if lines != ids.len() {
            let requests = ids.len();
            return Ok(Some(format!(
                "the command printed {lines} lines for {requests} requests, so none of them can be matched"
            )));
        }
        tokio::io::AsyncSeekExt::rewind(&mut self.lines).await?;
        let mut page = RecordPage::new(batch);
        for id in ids {
            let line = self.next_line().await?.unwrap_or_default();
            page.push(id, Outcome::result(line)).await?;
        }
        page.flush().await?;
        Ok(None)
    }

    /// The next line without its end; the last one need not have one.
    async fn next_line(&mut self) -> Result<Option<Vec<u8>>, HandlerError> {
        let mut line = Vec::new();
        if self.lines.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        if line.ends_with(b"\n") {
            line.pop();
        }
        Ok(Some(line))
    }
}

/// Outcomes that wait for being recorded in one step.
struct RecordPage<'a> {
    batch: &'a Batch,
    outcomes: Vec<(RequestId, Outcome)>,
    bytes: usize,
}

impl<'a> RecordPage<'a> {
    fn new(batch: &'a Batch) -> Self {
        Self {
            batch,
            outcomes: Vec::new(),
            bytes: 0,
        }
    }

    async fn push(&mut self, id: RequestId, outcome: Outcome) -> Result<(), HandlerError> {
        self.bytes += match &outcome {
            Outcome::Done { result } => result.as_ref().map_or(0, Bytes::len),
            Outcome::Retry { error, .. } | Outcome::Reject { error, .. } => error.len(),
        };
        self.outcomes.push((id, outcome));
        if self.outcomes.len() >= RECORD_PAGE || self.bytes >= RECORD_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), HandlerError> {
        let outcomes = std::mem::take(&mut self.outcomes);
        self.bytes = 0;
        if !outcomes.is_empty() {
            self.batch.record(outcomes).await?;
        }
        Ok(())
    }
}

/// Lines that are no answers: how many, and the first of them.
#[derive(Default)]
struct Bad {
    lines: u64,
    first: Option<String>,
}

impl Bad {
    fn count(&mut self, number: u64, why: &str) {
        self.lines += 1;
        self.first
            .get_or_insert_with(|| format!("line {number} of the command's output: {why}"));
    }

    fn describe(self) -> Option<String> {
        let first = self.first?;
        Some(match self.lines - 1 {
            0 => first,
            more => format!("{first} (and {more} more lines)"),
        })
    }
}

const BUFFER_BYTES: usize = 256 << 10;
const RECORD_BYTES: usize = 4 << 20;
