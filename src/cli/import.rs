//! `import`: what `export` printed, or all of another store, into queues that are new.
//!
//! ```text
//!   FILE ─▶ lines ─┐                            ┌ new ────▶ restored, in one step at its end
//!                  ├─▶ records, queue by queue ─┤
//!   --from ─▶ dump ┘                            └ in use ─▶ compared with its own dump: equal is skipped
//! ```
//! So an import that was cut off is begun again and goes on with the queue it was at. A queue that differs in
//! anything is never skipped: nothing but its own records tells that it is the one of this dump.

use std::{
    collections::BTreeSet,
    io::BufRead,
    mem,
    path::{Path, PathBuf},
    vec,
};

use batchyard::{
    ErrorKind, Queue, QueueName, Timestamp,
    fault::point,
    transfer::{DumpFrom, Record, Restore, Transfer, lines},
};
use clap::{Args, ValueHint};
use serde::Serialize;

use super::{
    args::{Location, NewStoreArgs},
    dumped::Dumped,
    exit::{Exit, Failure},
    export::transfer,
    lines as input,
    output::{print_json, say},
    store::{self, NewAs, OpenStore},
};

/// Options of `import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is lost: requests keep their ids, order, age, attempts, errors and results; open batches their \
ids, members, outcomes and checkpoints, and are offered at once; idempotency keys, bookmarks and counters are as they were. \
Each queue must be new, and is there as a whole or stays empty: after an import that was cut off, import the same \
again. Queues that are there already and hold just what the dump has of them are skipped then; one that differs, \
because it has been used since or is another one, ends the import.\n\n\
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
    /// It was there already, with just these records.
    skipped: bool,
}

/// Takes it in.
pub(super) async fn import(args: ImportArgs) -> Result<Exit, Failure> {
    match &args.from {
        None => {
            let lines = input::open(&args.file)?;
            let open = args.store.open().await?;
            let result = take_lines(&args, lines, &open).await;
            open.close(result).await
        }
        Some(from) => {
            let url = from.to_str().filter(|text| text.contains("://"));
            let source = if let Some(url) = url {
                if args.store.location()? == Some(Location::Server(url.to_owned())) {
                    return Err(same_store());
                }
                OpenStore::redis(url, store::keep_all()).await?
            } else {
                store::must_exist(from)?;
                if let Some(Location::Folder(store)) = args.store.location()?
                    && is_same(&store, from)
                {
                    return Err(same_store());
                }
                OpenStore::shared_folder(from, NewAs::default(), store::keep_all()).await?
            };
            let result = take_store(&args, &source).await;
            source.close(result).await
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn same_store() -> Failure {
    let text = "the store to import from and the one to import into are the same; name two";
    Failure::new(Exit::Usage, text)
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
        let decoded = lines::decode(&line).map_err(|error| {
            let text = format!("line {number}: {error}; import takes what export prints");
            Failure::new(Exit::Usage, text)
        });
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
        // No later time: what the dump has as delayed must not become ready before it is compared.
        let mut taking = Taking::begin(&*queue, Timestamp::EPOCH).await?;
        let mut is_over = taking.take(first).await?;
        while !is_over {
            match read()? {
                Some((same, record)) if same == name => is_over = taking.take(record).await?,
                Some(_) | None => {
                    let text = format!(
                        "queue {name:?} is cut off: its last line, with its counters, is missing; nothing of it was taken \
in, and it is there as an empty queue. Import a whole dump again: what is there already is skipped"
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
    // What can't be dumped is found before anything is made.
    let queues = Dumped::all(source, None).await?;
    let open = args.store.open().await?;
    let result = take_queues(args, &queues, &open).await;
    open.close(result).await
}

async fn take_queues(
    args: &ImportArgs,
    queues: &[Dumped],
    open: &OpenStore,
) -> Result<Exit, Failure> {
    for old in queues {
        let queue = open.store.queue(&old.name).await?;
        let mut taking = Taking::begin(&*queue, old.now).await?;
        let mut from = Some(DumpFrom::Start);
        while let Some(at) = from {
            let page = old.page(at).await?;
            for record in page.records {
                taking.take(record).await?;
            }
            from = page.next;
        }
        taking.tell(args)?;
    }
    Ok(Exit::Ok)
}

/// A queue and the records of it in the dump.
struct Taking<'a> {
    name: QueueName,
    into: Taken<'a>,
    count: u64,
    pushed: u64,
}

/// What becomes of the records.
enum Taken<'a> {
    /// They go into a new queue.
    New(Incoming<'a>),
    /// They must be what the queue holds already.
    Present(Present<'a>),
}

impl<'a> Taking<'a> {
    /// If the queue is in use, it is compared as of `now`.
    async fn begin(queue: &'a dyn Queue, now: Timestamp) -> Result<Self, Failure> {
        let name = queue.name();
        let into = match transfer(queue)?.restore().await {
            Ok(restore) => Taken::New(Incoming {
                restore,
                records: Vec::new(),
                bytes: 0,
            }),
            Err(error) if error.kind() == ErrorKind::Invalid => Taken::Present(Present {
                transfer: transfer(queue)?,
                now,
                page: Vec::new().into_iter(),
                next: Some(DumpFrom::Start),
                in_use: error.to_string(),
            }),
            Err(error) => return Err(Failure::from(error).about(&name)),
        };
        Ok(Self {
            name,
            into,
            count: 0,
            pushed: 0,
        })
    }

    /// Takes in one more; whether it was the last.
    async fn take(&mut self, record: Record) -> Result<bool, Failure> {
        self.count += 1;
        let mut is_last = false;
        if let Record::Queue(end) = &record {
            is_last = true;
            self.pushed = end.pushed;
        }
        let taken = match &mut self.into {
            Taken::New(incoming) => incoming.take(record, is_last).await,
            Taken::Present(present) => present.compare(record).await,
        };
        taken.map_err(|failure| failure.about(&self.name))?;
        Ok(is_last)
    }

    fn tell(self, args: &ImportArgs) -> Result<(), Failure> {
        let line = Line {
            queue: self.name,
            pushed: self.pushed,
            records: self.count,
            skipped: matches!(self.into, Taken::Present(_)),
        };
        let Line { queue, records, .. } = &line;
        say(&if line.skipped {
            format!("queue {queue:?}: skipped, its {records} records are there already")
        } else {
            format!("queue {queue:?}: {records} records taken in")
        });
        if args.json {
            print_json(&line).map_err(|error| {
                let so_far = "what follows was not taken in; import again to go on";
                Failure::unprinted(error, so_far).about(queue)
            })?;
        }
        Ok(())
    }
}

/// A new queue that takes in records.
struct Incoming<'a> {
    restore: Box<dyn Restore + 'a>,
    records: Vec<Record>,
    bytes: usize,
}

impl Incoming<'_> {
    async fn take(&mut self, record: Record, is_last: bool) -> Result<(), Failure> {
        if let Record::Request(request) = &record {
            let entry = &request.entry;
            let payload = entry.payload.as_ref().map_or(0, bytes::Bytes::len);
            let result = entry.result.as_ref().map_or(0, bytes::Bytes::len);
            self.bytes += payload + result;
        }
        self.records.push(record);
        if is_last || self.records.len() >= CHUNK_RECORDS || self.bytes >= CHUNK_BYTES {
            self.bytes = 0;
            point("import.part");
            self.restore.add(mem::take(&mut self.records)).await?;
            point("import.taken_in");
        }
        Ok(())
    }
}

/// A queue that was used before, and its own records.
struct Present<'a> {
    transfer: &'a dyn Transfer,
    now: Timestamp,
    page: vec::IntoIter<Record>,
    next: Option<DumpFrom>,
    in_use: String,
}

impl Present<'_> {
    async fn compare(&mut self, record: Record) -> Result<(), Failure> {
        if self.next_record().await?.is_some_and(|own| own == record) {
            return Ok(());
        }
        let text = format!(
            "{}; nor does it hold what the dump has of it, so that it could be skipped",
            self.in_use
        );
        Err(Failure::new(Exit::Usage, text))
    }

    async fn next_record(&mut self) -> Result<Option<Record>, Failure> {
        loop {
            if let Some(record) = self.page.next() {
                return Ok(Some(record));
            }
            let Some(from) = self.next else {
                return Ok(None);
            };
            let page = self.transfer.dump(self.now, from).await?;
            self.page = page.records.into_iter();
            self.next = page.next;
        }
    }
}

/// Records go in by so many, or so many bytes of payloads and results.
const CHUNK_RECORDS: usize = 1000;
const CHUNK_BYTES: usize = 4 << 20;
