//! `import`: what `export` printed, or all of another store, into queues that are new.
//!
//! ```text
//!   FILE ─▶ lines ─┐
//!                  ├─▶ records, queue by queue ─▶ restored, each queue in one step at its end
//!   --from ─▶ dump ┘
//! ```

use std::{collections::BTreeSet, io::BufRead, mem, path::PathBuf, sync::Arc};

use batchyard::{
    Queue, QueueName,
    transfer::{DumpFrom, Record, Restore, lines},
};
use clap::{Args, ValueHint};
use serde::Serialize;

use super::{
    args::NewStoreArgs,
    exit::{Exit, Failure},
    export::transfer,
    lines as input,
    output::{print_json, say},
    store::{self, OpenStore},
};

/// Options of `import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is lost: requests keep their ids, order, age, attempts, errors and results; open batches their \
ids, members, outcomes and checkpoints, and are offered at once; idempotency keys, bookmarks and counters are as they were. \
Each queue must be new, and is there as a whole or not at all: after an import that was cut off, import again.\n\n\
Example: batchyard export --store ./old | batchyard import --store ./new --backend journal"
)]
pub(crate) struct ImportArgs {
    /// What export printed; - is stdin
    #[arg(default_value = "-", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Take all of this store instead, a folder or the URL of a server
    #[arg(long, value_name = "DIR_OR_URL", conflicts_with = "file", value_hint = ValueHint::DirPath)]
    from: Option<PathBuf>,
    /// Print a line of JSON for each queue
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: NewStoreArgs,
}

/// What was taken in, as it is printed.
#[derive(Serialize)]
struct Line {
    queue: QueueName,
    pushed: u64,
    records: u64,
}

/// Takes it in.
pub(super) async fn import(args: ImportArgs) -> Result<Exit, Failure> {
    match &args.from {
        None => {
            let lines = input::open(&args.file)?;
            let open = args.store.open(store::keep_all()).await?;
            let result = take_lines(&args, lines, &open).await;
            open.close(result).await
        }
        Some(from) => {
            let url = from.to_str().filter(|text| text.contains("://"));
            let source = if let Some(url) = url {
                OpenStore::redis(url, store::keep_all()).await?
            } else {
                store::must_exist(from)?;
                OpenStore::folder(from, None, store::keep_all()).await?
            };
            let result = take_store(&args, &source).await;
            source.close(result).await
        }
    }
}

/// Takes in the lines of a file, queue by queue.
async fn take_lines(
    args: &ImportArgs,
    mut lines: input::Input,
    open: &OpenStore,
) -> Result<Exit, Failure> {
    let mut over: BTreeSet<QueueName> = BTreeSet::new();
    let mut line = Vec::new();
    let mut number: u64 = 0;
    let mut next: Option<(QueueName, Record)> = None;
    let mut read = || -> Result<Option<(QueueName, Record)>, Failure> {
        line.clear();
        number += 1;
        let count = lines.read_until(b'\n', &mut line);
        if count.map_err(|error| Failure::io(args.file.display(), &error))? == 0 {
            return Ok(None);
        }
        let decoded = lines::decode(&line)
            .map_err(|error| Failure::new(Exit::Usage, format!("line {number}: {error}")));
        decoded.map(Some)
    };
    loop {
        let first = match next.take() {
            Some(first) => Some(first),
            None => read()?,
        };
        let Some((name, first)) = first else { break };
        if over.contains(&name) {
            let text =
                format!("queue {name:?} goes on behind its end; the file is no whole export");
            return Err(Failure::new(Exit::Usage, text));
        }
        let queue = open.store.queue(&name).await?;
        let mut taking = Taking::begin(&*queue).await?;
        let mut is_over = taking.take(first).await?;
        while !is_over {
            match read()? {
                Some((same, record)) if same == name => is_over = taking.take(record).await?,
                Some(_) | None => {
                    let text = format!(
                        "queue {name:?} is cut off: its last line, with its counters, is missing; nothing of it was taken in"
                    );
                    return Err(Failure::new(Exit::Usage, text));
                }
            }
        }
        taking.tell(args)?;
        over.insert(name);
    }
    if over.is_empty() {
        say("there was nothing to take in");
    }
    Ok(Exit::Ok)
}

/// Takes in another store.
async fn take_store(args: &ImportArgs, source: &OpenStore) -> Result<Exit, Failure> {
    let queues = source.existing(None).await?;
    // What can't be dumped is found before anything is made.
    for queue in &queues {
        transfer(&**queue)?;
    }
    let open = args.store.open(store::keep_all()).await?;
    let result = take_queues(args, &queues, &open).await;
    open.close(result).await
}

async fn take_queues(
    args: &ImportArgs,
    queues: &[Arc<dyn Queue>],
    open: &OpenStore,
) -> Result<Exit, Failure> {
    for old in queues {
        let queue = open.store.queue(&old.name()).await?;
        let mut taking = Taking::begin(&*queue).await?;
        let now = old.now();
        let mut from = Some(DumpFrom::Start);
        while let Some(at) = from {
            let page = transfer(&**old)?.dump(now, at).await?;
            for record in page.records {
                taking.take(record).await?;
            }
            from = page.next;
        }
        taking.tell(args)?;
    }
    Ok(Exit::Ok)
}

/// A queue that takes in records.
struct Taking<'a> {
    name: QueueName,
    restore: Box<dyn Restore + 'a>,
    records: Vec<Record>,
    bytes: usize,
    count: u64,
    pushed: u64,
}

impl<'a> Taking<'a> {
    async fn begin(queue: &'a dyn Queue) -> Result<Self, Failure> {
        Ok(Self {
            name: queue.name(),
            restore: transfer(queue)?.restore().await?,
            records: Vec::new(),
            bytes: 0,
            count: 0,
            pushed: 0,
        })
    }

    /// Takes in one more; whether it was the last.
    async fn take(&mut self, record: Record) -> Result<bool, Failure> {
        let mut is_last = false;
        match &record {
            Record::Request(request) => {
                let entry = &request.entry;
                let payload = entry.payload.as_ref().map_or(0, bytes::Bytes::len);
                let result = entry.result.as_ref().map_or(0, bytes::Bytes::len);
                self.bytes += payload + result;
            }
            Record::Queue(end) => {
                is_last = true;
                self.pushed = end.pushed;
            }
            _ => {}
        }
        self.records.push(record);
        self.count += 1;
        if is_last || self.records.len() >= CHUNK_RECORDS || self.bytes >= CHUNK_BYTES {
            self.bytes = 0;
            self.restore.add(mem::take(&mut self.records)).await?;
        }
        Ok(is_last)
    }

    fn tell(self, args: &ImportArgs) -> Result<(), Failure> {
        let line = Line {
            queue: self.name,
            pushed: self.pushed,
            records: self.count,
        };
        if args.json {
            print_json(&line)?;
        }
        let Line { queue, records, .. } = line;
        say(&format!("queue {queue:?}: {records} records taken in"));
        Ok(())
    }
}

/// Records go in by so many, or so many bytes of payloads and results.
const CHUNK_RECORDS: usize = 1000;
const CHUNK_BYTES: usize = 4 << 20;
