//! `pause`, `resume` and `flush`: what operators ask of the dispatchers of a queue, wherever they run.

use batchyard::{QueueExt, QueueName};
use clap::Args;
use serde::Serialize;

use super::{
    args::StoreArgs,
    exit::{Exit, Failure},
    output::{print_json, say},
    store::OpenStore,
};

/// What is said of each of the verbs, with its example.
macro_rules! help {
    ($verb:literal) => {
        concat!(
            "It is kept in the store: a dispatcher that runs obeys at once, one that is started later does too. Batches \
that handlers are at work on go on, and pushes are taken in any case.\n\nExample: batchyard ",
            $verb,
            " --store ./store --queue emails"
        )
    };
}
pub(super) use help;

/// Which queues are steered.
#[derive(Debug, Args)]
pub(crate) struct SteerArgs {
    /// Only this queue [default: all queues that there are]
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Print the name of each queue as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Steer {
    Pause,
    Resume,
    Flush,
}

#[derive(Serialize)]
struct Line {
    queue: QueueName,
    #[serde(rename = "asked")]
    what: &'static str,
}

impl Steer {
    fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Flush => "flushed",
        }
    }
}

/// Asks for it.
pub(super) async fn steer(args: SteerArgs, steer: Steer) -> Result<Exit, Failure> {
    let open = args.store.existing().await?;
    let result = steer_all(&args, steer, &open).await;
    open.close(result).await
}

async fn steer_all(args: &SteerArgs, steer: Steer, open: &OpenStore) -> Result<Exit, Failure> {
    let queues = open.existing(args.queue.as_ref()).await?;
    if queues.is_empty() {
        say("the store has no queues yet");
    }
    for queue in queues {
        let name = queue.name();
        let asked = match steer {
            Steer::Pause => queue.pause().await,
            Steer::Resume => queue.resume().await,
            Steer::Flush => queue.flush().await,
        };
        asked.map_err(|error| Failure::from(error).about(&name))?;
        if args.json {
            let what = steer.done();
            print_json(&Line { queue: name, what })?;
        } else {
            say(&format!("queue {name:?} is {}", steer.done()));
        }
    }
    Ok(Exit::Ok)
}
