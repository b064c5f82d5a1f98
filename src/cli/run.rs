//! `run`: every line of INPUT through a command, in batches, and its result to OUTPUT.
//!
//! ```text
//!   INPUT ─▶ reader ─▶ queue, with the ledger ─▶ dispatcher ─▶ COMMAND ─▶ results, kept in the queue
//!                                                                             │
//!                       OUTPUT ◀── renamed once whole ── OUTPUT.part ◀── output
//! ```
//! All that a run knows is in its queue: the requests, their results, and the [`Ledger`], which is
//! written in the same step as the requests that it speaks of. So a run that is killed at any moment
//! goes on where it was: the reader skips what was queued (and makes sure that it is unchanged), the
//! store offers the batches that were in flight again under their ids, and `OUTPUT.part` is written
//! anew. A store can hold several runs, one after the other, in queues `run`, `run-2`, and so on.

mod ended;
mod failures;
mod ledger;
mod output;
mod place;
mod reader;
mod site;
mod trouble;

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use batchyard::{
    Batch, ControlAccess, ControlServer, Dispatcher, List, Policies, Queue, RequestId,
    RunningDispatcher, State, Stats, configuration::Settings,
};
use clap::{Args, ValueHint};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use self::{
    ended::Ended,
    failures::Failures,
    ledger::{Identity, Ledger},
    output::{Format, Output},
    place::Place,
    reader::Reader,
    site::{Site, TakenUp},
};
use super::{
    args::{self, RunSettingArgs},
    exit::{Exit, Failure, no_folder},
    handling::Handling,
    output::{Progress, print_json, say},
    service::Service,
    stop::Stop,
    store::NewAs,
};

/// Options of `run`.
#[derive(Debug, Args)]
#[command(
    override_usage = "batchyard run [OPTIONS] INPUT --out OUTPUT -- COMMAND...\n       batchyard run [OPTIONS] INPUT --out OUTPUT --handler http:URL",
    after_help = "The command reads a line {\"id\",\"attempt\",\"payload\"} for each request of its batch and prints a line \
{\"id\",\"result\"} or {\"id\",\"error\"} for each, with \"retry\":true if it should be tried again. \
BATCHYARD_BATCH_ID, the same at every redelivery, BATCHYARD_ATTEMPT and BATCHYARD_QUEUE are in its environment; \
what it prints on stderr goes to the log.\n\n\
Killed at any moment and started again with the same arguments, it goes on where it was. What it needs for that is \
in the folder OUTPUT.batchyard, or that of --store, which stays while requests have failed; once a run has ended, \
the same command starts over.\n\n\
Example: batchyard run requests.jsonl --out answers.jsonl --queue-threshold 1000 -- ./answer-a-batch"
)]
#[expect(clippy::struct_excessive_bools, reason = "flags, read by name")]
pub(crate) struct RunArgs {
    /// The file whose lines are the requests; - is stdin
    #[arg(value_hint = ValueHint::FilePath)]
    input: PathBuf,
    /// Where the results go, in input order; written as OUTPUT.part until all are there
    #[arg(long, value_name = "OUTPUT", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    /// Lines are any text, not only JSON
    #[arg(long)]
    lines: bool,
    /// Write results as they come instead of in input order
    #[arg(long)]
    unordered: bool,
    /// Write the reason of each failure to this file, as JSON Lines
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    failures: Option<PathBuf>,
    /// Forget an earlier run and start over
    #[arg(long, conflicts_with = "retry_failed")]
    fresh: bool,
    /// Run what failed in the last run again, and only that
    #[arg(long)]
    retry_failed: bool,
    /// Print the summary as JSON on stdout
    #[arg(long)]
    json: bool,
    /// The folder of the store, for several runs [default: OUTPUT.batchyard, which goes when all is done]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Store")]
    store: Option<PathBuf>,
    #[command(flatten)]
    settings: RunSettingArgs,
}

/// What they come to.
struct Plan {
    args: RunArgs,
    policies: Policies,
    handling: Handling,
    new_as: NewAs,
    settings: Settings,
}

impl Plan {
    fn of(args: RunArgs) -> Result<Self, Failure> {
        let settings = args.settings.settings()?;
        let plan = Self {
            policies: args::policies(&settings)?,
            handling: Handling::of(&settings)?,
            new_as: args::new_as(&settings),
            settings,
            args,
        };
        plan.handling.check()?;
        Ok(plan)
    }
}

/// How a run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Summary {
    /// Lines that became requests.
    requests: u64,
    done: u64,
    failed: u64,
    /// Lines that became none.
    refused: u64,
    finished: bool,
    seconds: f64,
}

/// Runs it, from the arguments to the exit code.
pub(super) async fn run(args: RunArgs) -> Result<Exit, Failure> {
    let started = Instant::now();
    let plan = Plan::of(args)?;
    let args = &plan.args;
    check_paths(args)?;
    let mut stop = Stop::new()?;
    if let Some(exit) = end_removal(&plan, &mut stop).await? {
        return Ok(exit);
    }
    let service = Service::begin(&plan.settings).await?;
    let mut site = Site::open(&plan).await?;
    let mut run = site.take_up(&plan).await?;
    service.observe(&mut site.open);
    run.queue = site.open.store.queue(&run.queue.name()).await?;
    // It is this run, and nobody else is at work on it: its files may be written anew.
    let failures = Arc::new(Failures::open(args.failures.as_deref())?);
    let reader = Reader::open(&args.input, args.lines, Arc::clone(&failures))?;
    let reader = match skip(reader, &run.ledger, &mut stop).await? {
        Ok(reader) => reader,
        Err(exit) => return Ok(exit),
    };
    site.retry(&plan, &mut run).await?;
    let TakenUp { queue, ledger, .. } = run;
    let format = Format {
        plain: plan.handling.is_plain(),
        unordered: args.unordered,
    };
    let output = Output::begin(&args.out, format, Arc::clone(&failures)).await?;
    let dispatcher = dispatcher(&plan, &queue, &site, &service)?;
    let watched = service.start(dispatcher.handle(), &site.open.store);
    let yard = Yard {
        // What is in there, and nothing else, becomes the output.
        control: site.open.serve(dispatcher.handle(), ControlAccess::Look),
        dispatcher,
        queue: Arc::clone(&queue),
    };
    let ended = yard.work(reader, output, ledger, &mut stop).await;
    watched.stopping();
    let ended = ended.and_then(|ended| failures.finish().map(|()| ended));
    let stats = queue.stats(queue.now()).await;
    let (ended, stats) = (ended?, stats?);
    let summary = Summary::new(&stats, &ended.ledger, started.elapsed());
    summary.tell(args)?;
    if let Some(exit) = ended.stopped {
        say("stopped; run the same command again to go on");
        site.open.store.close().await?;
        return Ok(exit);
    }
    let ended = Ended {
        queue: queue.name(),
        ledger: ended.ledger,
        summary,
    };
    drop(queue);
    site.finish(&ended).await?;
    Ok(ended.summary.exit())
}

/// Ends a run that was killed when only its folder was left to be removed; `None` if there is none.
async fn end_removal(plan: &Plan, stop: &mut Stop) -> Result<Option<Exit>, Failure> {
    let args = &plan.args;
    let place = Place::of(args);
    if args.fresh || !args.out.exists() {
        return Ok(None);
    }
    let Some(ended) = place.being_removed()? else {
        return Ok(None);
    };
    Identity::of(plan).check(&ended.ledger.identity, args.retry_failed)?;
    let untold = Arc::new(Failures::open(None)?);
    let reader = Reader::open(&args.input, args.lines, untold)?;
    if let Err(exit) = skip(reader, &ended.ledger, stop).await? {
        return Ok(Some(exit));
    }
    say("this run was over, but for the removal of its folder");
    ended.summary.tell(args)?;
    place.end_removal()?;
    Ok(Some(ended.summary.exit()))
}

/// Reads past what was queued before, and makes sure that it is unchanged, unless it is asked to stop.
async fn skip(
    mut reader: Reader,
    ledger: &Ledger,
    stop: &mut Stop,
) -> Result<Result<Reader, Exit>, Failure> {
    let skipped = ledger.clone();
    let skipping = tokio::task::spawn_blocking(move || reader.skip(&skipped).map(|()| reader));
    tokio::select! {
        reader = skipping => {
            let reader = reader.map_err(|error| Failure::new(Exit::Failure, error.to_string()))??;
            Ok(Ok(reader))
        }
        exit = stop.asked() => Ok(Err(exit)),
    }
}

/// Finds what can never work before anything is opened or queued, and changes nothing.
fn check_paths(args: &RunArgs) -> Result<(), Failure> {
    if args.input != Path::new("-") {
        let readable = File::open(&args.input);
        readable.map_err(|error| Failure::input(&args.input, &error))?;
    }
    if args.input.is_dir() {
        let text = format!("INPUT {} is a folder; name a file", args.input.display());
        return Err(Failure::new(Exit::Failure, text));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&args.input, &args.out) {
        let text = "INPUT and OUTPUT are the same file; choose another OUTPUT";
        return Err(Failure::new(Exit::Usage, text));
    }
    if args.out.is_dir() {
        let text = format!("OUTPUT {} is a folder; name a file", args.out.display());
        return Err(Failure::new(Exit::Failure, text));
    }
    check_writable(&output::part_of(&args.out))?;
    args.failures.as_deref().map_or(Ok(()), check_writable)
}

fn check_writable(path: &Path) -> Result<(), Failure> {
    let existed = path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| unwritable(path, &error))?;
    if !existed {
        std::fs::remove_file(path).map_err(|error| unwritable(path, &error))?;
    }
    Ok(())
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    if let Some(failure) = no_folder(path) {
        return failure;
    }
    let text = format!("{} can't be written: {error}", path.display());
    Failure::new(Exit::Failure, text)
}

fn dispatcher(
    plan: &Plan,
    queue: &Arc<dyn Queue>,
    site: &Site,
    service: &Service,
) -> Result<RunningDispatcher, Failure> {
    let handler = plan.handling.handler(&site.open.commands)?;
    let handle = move |batch: Batch| {
        let handler = Arc::clone(&handler);
        async move { handler.handle(batch).await }
    };
    let builder = Dispatcher::builder(Arc::clone(queue)).policies(plan.policies.clone());
    let builder = service.watch(builder.handler(handle));
    let (running, events) = builder.build()?.start_observed();
    tokio::spawn(trouble::tell(events));
    Ok(running)
}

async fn for_each_page(
    queue: &dyn Queue,
    state: State,
    apply: impl AsyncFn(&[RequestId]) -> batchyard::Result<()>,
) -> Result<(), Failure> {
    let admin = output::administration(queue)?;
    let mut list = List::new(state);
    loop {
        let page = admin.list(queue.now(), &list).await?;
        let ids: Vec<RequestId> = page.iter().map(|entry| entry.id).collect();
        let Some(end) = ids.last() else {
            return Ok(());
        };
        apply(&ids).await?;
        list = list.after(*end);
    }
}

/// The dispatcher at work on the run's queue.
struct Yard {
    dispatcher: RunningDispatcher,
    control: Option<ControlServer>,
    queue: Arc<dyn Queue>,
}

/// How the work ended.
struct WorkEnd {
    ledger: Ledger,
    /// It was asked to stop, with this exit code.
    stopped: Option<Exit>,
}

impl Yard {
    /// Reads, dispatches and writes until all is settled, or until it is asked to stop.
    async fn work(
        self,
        reader: Reader,
        mut output: Output,
        ledger: Ledger,
        stop: &mut Stop,
    ) -> Result<WorkEnd, Failure> {
        let Self {
            dispatcher,
            control,
            queue,
        } = self;
        let (told, read) = watch::channel(ledger.clone());
        let (settled, all_settled) = watch::channel(None);
        let reading = async {
            reader.queue_all(Arc::clone(&queue), ledger, told).await?;
            dispatcher.drain().await?;
            // What is settled now stays so: INPUT has ended, and nobody else pushes.
            settled.send_replace(Some(read.borrow().clone()));
            Ok::<_, Failure>(())
        };
        let working = async { tokio::try_join!(reading, output.write_all(&*queue, all_settled)) };

        let stopped = tokio::select! {
            worked = working => worked.map(|_| None),
            never = show_progress(&*queue, read.clone()) => match never {},
            exit = stop.asked() => Ok(Some(exit)),
        };
        match stopped {
            Ok(None) => output.finish().await?,
            Ok(Some(_)) => {
                say("stopping: batches under way may finish; press again to stop at once");
                stop_dispatcher(&dispatcher, stop).await;
                output.flush().await?;
            }
            Err(_) => {
                dispatcher.begin_shut_down().await;
                dispatcher.begin_shut_down().await;
            }
        }
        let shut_down = dispatcher.shut_down().await;
        if let Some(control) = control {
            control.close().await;
        }
        // If the dispatcher stopped by itself, its reason says more than what failed here because of it.
        shut_down?;
        Ok(WorkEnd {
            stopped: stopped?,
            ledger: read.borrow().clone(),
        })
    }
}

/// Lets batches finish; a second signal stops them at once.
async fn stop_dispatcher(dispatcher: &RunningDispatcher, stop: &mut Stop) {
    dispatcher.begin_shut_down().await;
    tokio::select! {
        () = dispatcher.ended() => {}
        _ = stop.asked() => dispatcher.begin_shut_down().await,
    }
}

async fn show_progress(queue: &dyn Queue, read: watch::Receiver<Ledger>) -> Infallible {
    let progress = Progress::start();
    loop {
        if let Ok(stats) = queue.stats(queue.now()).await {
            let (complete, requests) = {
                let ledger = read.borrow();
                (ledger.complete, ledger.read.requests)
            };
            let failed = stats.dead;
            let reading = if complete { "" } else { ", reading" };
            progress.set(
                stats.done + failed,
                requests,
                format_args!(", {failed} failed{reading}"),
            );
        }
        tokio::time::sleep(TICK).await;
    }
}

impl Summary {
    fn new(stats: &Stats, ledger: &Ledger, took: Duration) -> Self {
        Self {
            requests: stats.pushed,
            done: stats.done,
            failed: stats.dead,
            refused: ledger.read.refused,
            finished: stats.held() == 0 && ledger.complete,
            seconds: took.as_secs_f64(),
        }
    }

    fn tell(&self, args: &RunArgs) -> Result<(), Failure> {
        if args.json {
            match print_json(self) {
                // Nobody wants to know: that changes nothing about the run.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                printed => printed?,
            }
        }
        let Self {
            requests,
            done,
            failed,
            refused,
            seconds,
            ..
        } = self;
        let open = requests.saturating_sub(done + failed);
        let open = if open > 0 {
            format!(", {open} open")
        } else {
            String::new()
        };
        let refused = if *refused > 0 {
            format!("; {refused} lines refused")
        } else {
            String::new()
        };
        say(&format!(
            "{requests} requests: {done} done, {failed} failed{open}{refused}, in {seconds:.1} s"
        ));
        if self.finished && *failed > 0 {
            say("run the same command with --retry-failed to run only what failed again");
        }
        Ok(())
    }

    fn exit(&self) -> Exit {
        if self.failed + self.refused > 0 {
            Exit::Partial
        } else {
            Exit::Ok
        }
    }
}

const TICK: Duration = Duration::from_millis(200);
/// What it tells itself is not in its log.
pub(super) const LOG: &str = "warn,batchyard::dispatcher=error,batchyard::command=info";
