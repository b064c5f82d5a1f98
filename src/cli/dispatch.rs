//! `dispatch`: a dispatcher on a queue, or on every queue of a prefix, until it is asked to stop.
//!
//! ```text
//!   SIGINT, SIGTERM, SIGHUP ─▶ first: batches under way may finish ─▶ second: they are stopped
//!   --drain ─────────▶ all is settled ─┐
//!   --timeout ───────▶ not in time ────┼
//!   stdout is gone ──▶ nobody listens ─┼▶ shut down, and an exit code
//!   a queue broke ───▶ it is given up ─┘
//! ```

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use batchyard::{
    Batch, ControlAccess, Dispatcher, Event, Policies, Queue, QueueName, RunningDispatcher,
    configuration::{Settings, Value},
};
use clap::Args;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinHandle,
};

use super::{
    args::{self, AllArgs, Owned, duration},
    exit::{Exit, Failure},
    handling::Handling,
    output::{self, print_json, say},
    service::Service,
    stop::Stop,
    store::OpenStore,
};

/// Options of `dispatch`.
#[derive(Debug, Args)]
#[command(
    override_usage = "batchyard dispatch [OPTIONS] -- COMMAND...\n       batchyard dispatch [OPTIONS] --handler http:URL",
    after_help = "The first SIGINT, SIGTERM or SIGHUP lets batches finish until --shutdown-timeout; the second stops them at \
once. A store in a folder is served by one process at a time, which lets the other verbs in meanwhile; several may serve one on Redis. \
All that is said here can be said in the environment or in a file as well, and there for single queues: see batchyard config show.\n\n\
Example: batchyard dispatch --store ./store --prefix tenant- --time-threshold 10s -- ./send-emails"
)]
pub(crate) struct DispatchArgs {
    /// The queue to serve, made if it is missing [default: default]
    #[arg(long, value_name = "NAME", conflicts_with = "prefix")]
    queue: Option<QueueName>,
    /// Serve every queue whose name begins so, also those that are made later; "" is all
    #[arg(long, value_parser = prefix)]
    prefix: Option<String>,
    /// Stop when nothing is delayed, ready or in flight any more; exit with 5 if there are new dead letters
    #[arg(long)]
    drain: bool,
    /// Give up after this long, as if asked to stop, and exit with 6 [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "drain")]
    timeout: Option<Duration>,
    /// Print what happens as JSON Lines on stdout instead of logging it on stderr
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: AllArgs,
}

/// What they come to.
struct Plan<'a> {
    args: &'a DispatchArgs,
    settings: Settings,
    policies: Policies,
    handling: Handling,
}

impl DispatchArgs {
    /// What is in the log: everything that happens, unless it is printed.
    pub(super) fn log(&self) -> &'static str {
        if self.json { output::LOG } else { LOG }
    }

    /// What is served; a queue is made if it is missing.
    async fn source(&self, open: &OpenStore) -> Result<Source, Failure> {
        if let Some(prefix) = &self.prefix {
            return Ok(Source::Prefix(prefix.clone()));
        }
        let name = self.queue.clone().unwrap_or_default();
        Ok(Source::Queue(open.store.queue(&name).await?))
    }

    /// Finds what can never work before anything is opened.
    fn plan(&self) -> Result<Plan<'_>, Failure> {
        let settings = self.settings.settings()?;
        let plan = Plan {
            args: self,
            policies: args::policies(&settings)?,
            handling: Handling::of(&settings)?,
            settings,
        };
        plan.handling.check()?;
        Ok(plan)
    }
}

impl Plan<'_> {
    fn dispatcher(
        &self,
        open: &OpenStore,
        source: &Source,
        service: &Service,
    ) -> Result<Dispatcher, Failure> {
        let handler = self.handling.handler(&open.commands)?;
        let handle = move |batch: Batch| {
            let handler = Arc::clone(&handler);
            async move { handler.handle(batch).await }
        };
        let mut builder = match source {
            Source::Queue(queue) => Dispatcher::builder(Arc::clone(queue)),
            Source::Prefix(prefix) => Dispatcher::over(Arc::clone(&open.store), prefix),
        };
        builder = builder.policies(self.policies.clone()).handler(handle);
        let total = self.settings.found("max_in_flight_total");
        if let Some(Value::Count(most)) = total.map(|found| found.value) {
            builder = builder.max_in_flight_total(most);
        }
        Ok(service.watch(builder).build()?)
    }
}

/// Where the queues come from.
enum Source {
    Queue(Arc<dyn Queue>),
    Prefix(String),
}

impl Source {
    /// Those there are now.
    async fn queues(&self, open: &OpenStore) -> Result<Vec<Arc<dyn Queue>>, Failure> {
        match self {
            Self::Queue(queue) => Ok(vec![Arc::clone(queue)]),
            Self::Prefix(prefix) => open.with_prefix(prefix).await,
        }
    }

    /// How many requests are done, and how many were dead-lettered.
    async fn settled(&self, open: &OpenStore) -> Result<(u64, u64), Failure> {
        let (mut done, mut dead) = (0, 0);
        for queue in self.queues(open).await? {
            let stats = queue.stats(queue.now()).await?;
            done += stats.done;
            dead += stats.dead + stats.purged;
        }
        Ok((done, dead))
    }

    /// Says of each queue once that it is paused and so does not drain, and never ends.
    async fn tell_paused(&self, open: &OpenStore) {
        let mut told = BTreeSet::new();
        loop {
            // What fails here fails the dispatcher as well, which tells it.
            for queue in self.queues(open).await.unwrap_or_default() {
                let Ok(stats) = queue.stats(queue.now()).await else {
                    continue;
                };
                let name = queue.name();
                if let Some(since) = stats.paused_at
                    && stats.held() > 0
                    && told.insert(name.clone())
                {
                    say(&format!(
                        "queue {name:?} has been paused since {since} and holds {} requests: it is not drained until it is \
resumed, as by batchyard resume --queue {name}",
                        stats.held()
                    ));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Serves until it is told to stop.
pub(super) async fn dispatch(args: DispatchArgs) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    let mut stop = Stop::new()?;
    let options = plan.settings.queue_options();
    let service = Service::begin(&plan.settings).await?;
    // It may have to wait for who has it open.
    let mut open = tokio::select! {
        open = args::open(&plan.settings, options, Owned::Here) => open?,
        exit = stop.asked() => return Ok(exit),
    };
    service.observe(&mut open);
    let result = serve(&plan, &open, service, &mut stop).await;
    open.close(result).await
}

async fn serve(
    plan: &Plan<'_>,
    open: &OpenStore,
    service: Service,
    stop: &mut Stop,
) -> Result<Exit, Failure> {
    let args = plan.args;
    let source = args.source(open).await?;
    let before = source.settled(open).await?;
    let dispatcher = plan.dispatcher(open, &source, &service)?;
    let (running, events) = dispatcher.start_observed();
    let control = open.serve(running.handle(), ControlAccess::All);
    let watched = service.start(running.handle(), &open.store);
    let mut watching = Watching::start(events, args.json);
    let end = tokio::select! {
        end = wait(args, &running, &mut watching, stop) => end,
        () = source.tell_paused(open), if args.drain => End::Died,
    };
    watched.stopping();
    match end {
        End::Asked(exit) => {
            if exit == Exit::Timeout {
                say("it is not drained in time");
            }
            say("stopping: batches under way may finish; ask again to stop them at once");
            stop_twice(&running, stop).await;
        }
        End::Drained | End::Pointless => running.begin_shut_down().await,
        End::Died => {}
    }
    // If it stopped by itself, this says why.
    let stopped = running.stopped().await;
    if let Some(control) = control {
        control.close().await;
    }
    stopped?;
    watching.end().await?;
    let (done, dead) = source.settled(open).await?;
    // Others may have redriven some meanwhile.
    let (done, dead) = (done.saturating_sub(before.0), dead.saturating_sub(before.1));
    say(&format!("{done} done, {dead} dead-lettered"));
    Ok(match end {
        End::Asked(exit) => exit,
        End::Drained if dead > 0 => Exit::Partial,
        End::Drained | End::Pointless | End::Died => Exit::Ok,
    })
}

/// Why a dispatcher is no longer wanted.
enum End {
    /// By a signal, or because its time is over.
    Asked(Exit),
    Drained,
    /// Its events can't be printed any more, or a queue was given up.
    Pointless,
    /// It stopped by itself.
    Died,
}

async fn wait(
    args: &DispatchArgs,
    running: &RunningDispatcher,
    watching: &mut Watching,
    stop: &mut Stop,
) -> End {
    let drained = async {
        // An error says that it has stopped, which is seen below.
        if !args.drain || running.drain().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let late = async {
        match args.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        exit = stop.asked() => End::Asked(exit),
        () = drained => End::Drained,
        () = late => End::Asked(Exit::Timeout),
        () = watching.over() => End::Pointless,
        () = running.ended() => End::Died,
    }
}

/// Lets batches finish; a second signal stops them.
async fn stop_twice(running: &RunningDispatcher, stop: &mut Stop) {
    running.begin_shut_down().await;
    tokio::select! {
        () = running.ended() => {}
        _ = stop.asked() => running.begin_shut_down().await,
    }
}

/// Sees events, in a thread of its own: a reader of stdout that is slow holds up nothing else.
struct Watching {
    thread: JoinHandle<Result<(), Failure>>,
    /// How it ended, once seen.
    ended: Option<Result<(), Failure>>,
}

impl Watching {
    fn start(events: broadcast::Receiver<Event>, json: bool) -> Self {
        Self {
            thread: tokio::task::spawn_blocking(move || watch(events, json)),
            ended: None,
        }
    }

    /// Waits until there is no point in going on. Cancel safe.
    async fn over(&mut self) {
        let ended = (&mut self.thread).await.unwrap_or_else(|error| {
            let error = batchyard::Error::internal("who sees the events died").with_source(error);
            Err(error.into())
        });
        self.ended = Some(ended);
    }

    /// Waits until all is seen; the dispatcher is gone.
    async fn end(mut self) -> Result<(), Failure> {
        if self.ended.is_none() {
            self.over().await;
        }
        self.ended.unwrap_or(Ok(()))
    }
}

/// Prints events if they are wanted, until there are no more. Blocks.
///
/// # Errors
/// If they can't be printed, or a queue is not served any more: whoever started this program had better
/// start it again.
fn watch(mut events: broadcast::Receiver<Event>, json: bool) -> Result<(), Failure> {
    loop {
        let event = match events.blocking_recv() {
            Ok(event) => event,
            Err(RecvError::Lagged(missed)) => {
                if json {
                    say(&format!(
                        "{missed} events were not printed: stdout is too slow"
                    ));
                }
                continue;
            }
            Err(RecvError::Closed) => return Ok(()),
        };
        if json {
            print_json(&event)
                .map_err(|error| Failure::unprinted(error, "the dispatcher was stopped"))?;
        }
        if let Event::QueueFailed {
            queue,
            error,
            given_up: true,
        } = event
        {
            let text = format!("queue {queue:?} can't be served any more: {error}");
            return Err(Failure::new(Exit::Failure, text));
        }
    }
}

/// The beginning of a queue's name.
fn prefix(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        text.parse::<QueueName>()
            .map_err(|error| error.to_string())?;
    }
    Ok(text.to_owned())
}

/// How often a queue that is drained is looked at for being paused.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOG: &str = "warn,batchyard::command=info,batchyard::dispatcher=info";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_a_queue_is_given_up_and_not_before() {
        let failed = |given_up| Event::QueueFailed {
            queue: QueueName::default(),
            error: "disk on fire".into(),
            given_up,
        };
        let (sender, events) = broadcast::channel(4);
        sender.send(failed(false)).unwrap();
        drop(sender);
        assert!(watch(events, false).is_ok());

        let (sender, events) = broadcast::channel(4);
        sender.send(failed(true)).unwrap();
        let error = format!("{:?}", watch(events, false).unwrap_err());
        assert!(error.contains("disk on fire"), "{error}");
    }
}
