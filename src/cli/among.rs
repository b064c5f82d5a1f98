//! What verbs have in common that are about single things in queues.

use batchyard::QueueName;
use clap::Args;

use super::args::StoreArgs;

/// In which queues of which store, and how they are printed.
#[derive(Debug, Args)]
pub(crate) struct Among {
    /// Only this queue [default: all queues]
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<QueueName>,
    /// Print a line of JSON for each
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}
