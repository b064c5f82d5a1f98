//! A successful answer: everything is done, or a verdict stands on each line.

use std::collections::HashSet;

use reqwest::{Response, header};

use super::{HttpHandler, body::Progress, shown};
use crate::{
    batch::{Outcome, Page},
    error::Result,
    format::json_lines::decode_answer_line,
    handler::{Batch, HandlerError, Report},
    request::{MAX_PAYLOAD_BYTES, RequestId},
};

/// Reads a 2xx answer and records the verdicts in it, page by page, as they come.
pub(super) async fn read(
    handler: &HttpHandler,
    batch: &Batch,
    progress: &Progress,
    mut response: Response,
) -> Result<Report, HandlerError> {
    if !has_verdicts(&response) {
        return done(handler, progress);
    }
    let mut verdicts = Verdicts::new(batch, progress);
    let mut broken = None;
    loop {
        match handler.patiently(progress, response.chunk()).await {
            Ok(Some(chunk)) => verdicts.feed(&chunk).await?,
            Ok(None) => break verdicts.end().await?,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    verdicts.record().await?;
    match (broken, verdicts.complaint()) {
        (Some(error), _) => Err(error),
        (None, Some(complaint)) => Err(HandlerError::transient(format!(
            "{} answered with {complaint}",
            shown(&handler.url)
        ))),
        (None, None) if verdicts.lines == 0 => done(handler, progress),
        (None, None) => Ok(Report::recorded()),
    }
}

/// All done, unless the endpoint said so before it can have seen all.
fn done(handler: &HttpHandler, progress: &Progress) -> Result<Report, HandlerError> {
    if progress.all_read() {
        return Ok(Report::done());
    }
    Err(HandlerError::transient(format!(
        "{} answered success before it had taken the whole batch",
        shown(&handler.url)
    )))
}

fn has_verdicts(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| {
        let essence = essence.trim();
        JSON_LINES
            .iter()
            .any(|name| name.eq_ignore_ascii_case(essence))
    })
}

/// Turns the bytes of an answer into recorded outcomes.
struct Verdicts<'a> {
    batch: &'a Batch,
    progress: &'a Progress,
    /// All members, read when an id turns up that was not sent this time.
    members: Option<HashSet<RequestId>>,
    /// The bytes after the last line break.
    rest: Vec<u8>,
    /// Lines so far, blank ones not counted.
    lines: u64,
    /// Line breaks so far.
    line: u64,
    page: Vec<(RequestId, Outcome)>,
    page_bytes: usize,
    /// The first line that could not be used, and how many there were.
    bad: Option<(u64, String)>,
    bad_lines: u64,
}

impl<'a> Verdicts<'a> {
    fn new(batch: &'a Batch, progress: &'a Progress) -> Self {
        Self {
            batch,
            progress,
            members: None,
            rest: Vec::new(),
            lines: 0,
            line: 0,
            page: Vec::new(),
            page_bytes: 0,
            bad: None,
            bad_lines: 0,
        }
    }

    async fn feed(&mut self, mut chunk: &[u8]) -> Result<(), HandlerError> {
        while let Some(at) = chunk.iter().position(|&byte| byte == b'\n') {
            let mut line = std::mem::take(&mut self.rest);
            line.extend_from_slice(&chunk[..at]);
            chunk = &chunk[at + 1..];
            self.take_line(&line).await?;
        }
        self.rest.extend_from_slice(chunk);
        if self.rest.len() > MAX_LINE_BYTES {
            self.record().await?;
            return Err(HandlerError::transient(format!(
                "line {} of the answer has more than {MAX_LINE_BYTES} bytes",
                self.line + 1
            )));
        }
        Ok(())
    }

    /// What follows the last line break is a line too, if the answer ended as it should.
    async fn end(&mut self) -> Result<(), HandlerError> {
        let line = std::mem::take(&mut self.rest);
        self.take_line(&line).await
    }

    async fn take_line(&mut self, line: &[u8]) -> Result<(), HandlerError> {
        self.line += 1;
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        self.lines += 1;
        match decode_answer_line(line) {
            Ok((id, outcome)) if self.is_member(id).await? => {
                self.page_bytes += line.len();
                self.page.push((id, outcome));
            }
            Ok((id, _)) => self.complain(format!("{id} is not a member of the batch")),
            Err(error) => self.complain(error),
        }
        if self.page.len() >= PAGE_REQUESTS || self.page_bytes >= PAGE_BYTES {
            self.record().await?;
        }
        Ok(())
    }

    /// Whether it is a member, sent this time or settled before: an endpoint that knows the batch's
    /// key may answer as it did the first time.
    async fn is_member(&mut self, id: RequestId) -> Result<bool> {
        if self.progress.has_sent(id) {
            return Ok(true);
        }
        if self.members.is_none() {
            let mut members = HashSet::new();
            let mut page = Page::first();
            loop {
                let read = self.batch.page(page).await?;
                let Some(last) = read.last() else { break };
                page = page.after(last.position);
                members.extend(read.iter().map(|member| member.id));
            }
            self.members = Some(members);
        }
        Ok(self
            .members
            .as_ref()
            .is_some_and(|members| members.contains(&id)))
    }

    fn complain(&mut self, what: String) {
        self.bad_lines += 1;
        self.bad.get_or_insert((self.line, what));
    }

    async fn record(&mut self) -> Result<()> {
        self.page_bytes = 0;
        match std::mem::take(&mut self.page) {
            page if page.is_empty() => Ok(()),
            page => self.batch.record(page).await,
        }
    }

    fn complaint(&self) -> Option<String> {
        let (line, what) = self.bad.as_ref()?;
        Some(match self.bad_lines - 1 {
            0 => format!("a bad line {line}: {what}"),
            more => format!("a bad line {line} (and {more} more): {what}"),
        })
    }
}

/// The names in use for JSON Lines; none is registered.
const JSON_LINES: &[&str] = &[
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
];
/// Outcomes are recorded when there are this many, or this many bytes of lines.
const PAGE_REQUESTS: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;
/// The longest line: room for a result as large as the largest payload.
const MAX_LINE_BYTES: usize = MAX_PAYLOAD_BYTES + 1024;
