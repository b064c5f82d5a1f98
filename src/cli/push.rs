//! `push`: lines become requests, and the id of each is printed as soon as it is durable.
//!
//! ```text
//!   FILE ─▶ lines, read by a thread ─▶ chunks ─▶ groups ─▶ queue ─▶ ids on stdout, in order
//! ```
//! A chunk is what could be read without waiting, so a line that is typed is pushed at once; a group
//! is all chunks that came while the one before was being made durable, so a file goes in bulk.

mod lines;

use std::{fmt, io, path::PathBuf, time::Duration};

use batchyard::{ErrorKind, NewRequest, Pushed, Queue, QueueName, RequestId};
use clap::{Args, ValueHint};
use serde::Serialize;
use tokio::sync::mpsc;

use self::lines::{Chunk, Lines, Payloads};
use super::{
    args::{PushStoreArgs, duration},
    exit::{Exit, Failure},
    output::{print, say},
    stop::Stop,
};

/// Options of `push`.
#[derive(Debug, Args)]
#[command(
    after_help = "Lines that are refused are told on stderr with their numbers; the others are pushed, and the exit \
code is 5. If stdout is closed and there are more lines, these are not pushed, what was pushed so far is told, and the exit code \
is 1; if all lines were pushed, it is as if all ids were read.\n\n\
Example: batchyard push --store ./store --queue emails --attribute tenant=7 emails.jsonl"
)]
pub(crate) struct PushArgs {
    /// The file whose lines are pushed, each a JSON value; - is stdin
    #[arg(default_value = "-", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// The queue to push to, made if it is missing
    #[arg(long, value_name = "NAME", default_value_t)]
    queue: QueueName,
    /// Lines are any text, not only JSON
    #[arg(long)]
    lines: bool,
    /// Give each request this attribute; may be given several times
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = attribute)]
    attributes: Vec<(String, String)>,
    /// Push a line only once for each value of this field within 24 hours: the same line again is a duplicate and
    /// has the id of the first, another one with the same value is refused
    #[arg(long, value_name = "FIELD", conflicts_with = "lines")]
    idempotency_key_from: Option<String>,
    /// Let a request expire if no batch has taken it after this long [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// Let no batch take a request before this long has passed [default: at once]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    delay: Option<Duration>,
    /// Print each id as JSON, with the number of its line and whether it is a duplicate
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: PushStoreArgs,
}

/// What is printed of a request.
#[derive(Serialize)]
struct Answer {
    id: RequestId,
    line: u64,
    duplicate: bool,
}

/// Pushes them.
pub(super) async fn push(args: PushArgs) -> Result<Exit, Failure> {
    // What is wrong with every line is found before anything is made.
    args.request(NewRequest::default()).validate()?;
    let payloads = match (&args.idempotency_key_from, args.lines) {
        (Some(field), _) => Payloads::JsonWithKey(field.clone()),
        (None, false) => Payloads::Json,
        (None, true) => Payloads::Text,
    };
    let lines = Lines::open(&args.file, payloads)?;
    let mut stop = Stop::new()?;
    let open = args.store.open().await?;
    let result = match open.store.queue(&args.queue).await {
        Ok(queue) => push_all(&args, &*queue, lines, &mut stop).await,
        Err(error) => Err(error.into()),
    };
    open.close(result).await
}

async fn push_all(
    args: &PushArgs,
    queue: &dyn Queue,
    lines: Lines,
    stop: &mut Stop,
) -> Result<Exit, Failure> {
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    let reading = tokio::task::spawn_blocking(move || lines.read_all(&sender));
    let mut sums = Sums::default();
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            exit = stop.asked() => return Ok(exit),
        };
        let Some(mut group) = chunk else { break };
        while group.bytes < GROUP_BYTES
            && let Ok(chunk) = chunks.try_recv()
        {
            group.append(chunk);
        }
        let answers = push_group(args, queue, &group).await?;
        sums.add(&group, &answers);
        if let Err(error) = print_answers(args, &answers) {
            // Whoever read the ids may have enough of them: only if there is more to push, it is not.
            let more = match error.kind() {
                io::ErrorKind::BrokenPipe => tokio::select! {
                    more = has_lines(&mut chunks) => more,
                    exit = stop.asked() => return Ok(exit),
                },
                _ => true,
            };
            if !more {
                break;
            }
            let so_far = format!(
                "{sums}, up to line {}; those behind it were not pushed",
                group.last_line
            );
            return Err(Failure::unprinted(error, so_far));
        }
    }
    match reading.await {
        Ok(read) => read?,
        Err(error) => {
            let error = batchyard::Error::internal("the reader died").with_source(error);
            return Err(error.into());
        }
    }
    if sums.duplicates + sums.refused > 0 {
        say(&sums.to_string());
    }
    Ok(match sums.refused {
        0 => Exit::Ok,
        _ => Exit::Partial,
    })
}

/// Whether another line comes.
async fn has_lines(chunks: &mut mpsc::Receiver<Chunk>) -> bool {
    while let Some(chunk) = chunks.recv().await {
        // The last chunk of all may have no line.
        if chunk.last_line > 0 {
            return true;
        }
    }
    false
}

/// What became of lines.
#[derive(Debug, Default)]
struct Sums {
    pushed: u64,
    duplicates: u64,
    refused: u64,
}

impl Sums {
    fn add(&mut self, group: &Chunk, answers: &[Answer]) {
        let duplicates = answers.iter().filter(|answer| answer.duplicate).count();
        self.pushed += (answers.len() - duplicates) as u64;
        self.duplicates += duplicates as u64;
        self.refused += group.refused + (group.requests.len() - answers.len()) as u64;
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pushed,
            duplicates,
            refused,
        } = self;
        let s = |count| if count == 1 { "" } else { "s" };
        let lines = pushed + duplicates + refused;
        write!(f, "{lines} line{}: {pushed} pushed", s(lines))?;
        if *duplicates > 0 {
            write!(f, ", {duplicates} duplicate{}", s(*duplicates))?;
        }
        if *refused > 0 {
            write!(f, ", {refused} refused")?;
        }
        Ok(())
    }
}

/// Pushes a group at once; if one of its keys has come with another payload, one by one.
async fn push_group(
    args: &PushArgs,
    queue: &dyn Queue,
    group: &Chunk,
) -> Result<Vec<Answer>, Failure> {
    let answer = |(line, _): &(u64, NewRequest), Pushed { id, duplicate }| Answer {
        id,
        line: *line,
        duplicate,
    };
    let requests = |lines: &[(u64, NewRequest)]| {
        let now = queue.now();
        let request = |(_, request): &(u64, NewRequest)| {
            let request = args.request(request.clone());
            match args.delay {
                Some(delay) => request.not_before(now.after(delay)),
                None => request,
            }
        };
        (now, lines.iter().map(request).collect())
    };
    let (now, all) = requests(&group.requests);
    match queue.push(now, all).await {
        Ok(pushed) => {
            let lines = group.requests.iter().zip(pushed);
            return Ok(lines.map(|(line, pushed)| answer(line, pushed)).collect());
        }
        Err(error) if error.kind() == ErrorKind::Invalid => {}
        Err(error) => return Err(error.into()),
    }
    let mut answers = Vec::new();
    for line in &group.requests {
        let (now, one) = requests(std::slice::from_ref(line));
        match queue.push(now, one).await {
            Ok(pushed) => answers.extend(pushed.into_iter().map(|pushed| answer(line, pushed))),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                say(&format!("line {}: {error}", line.0));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answers)
}

fn print_answers(args: &PushArgs, answers: &[Answer]) -> io::Result<()> {
    let mut text = Vec::new();
    for answer in answers {
        if args.json {
            serde_json::to_writer(&mut text, answer)?;
        } else {
            text.extend_from_slice(answer.id.to_string().as_bytes());
        }
        text.push(b'\n');
    }
    print(&text)
}

impl PushArgs {
    /// A request with what all of them have.
    fn request(&self, mut request: NewRequest) -> NewRequest {
        request.attributes.extend(self.attributes.iter().cloned());
        request.ttl = self.ttl;
        request
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("write a name and a value, such as tenant=7")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// How many chunks may be read ahead.
const CHUNKS: usize = 8;
/// A group is not made larger beyond this.
const GROUP_BYTES: usize = 4 << 20;
