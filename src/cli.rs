//! The command line: one module per verb, and what they share.
//!
//! ```text
//!   main ─▶ Cli (clap) ─▶ verb ─▶ Exit | Failure ─▶ exit code
//!                          │
//!                          ├ args    options that several verbs have, and how they are written
//!                          ├ store   from --store and the environment to a store
//!                          ├ stop    SIGINT and SIGTERM
//!                          └ output  data on stdout, talk on stderr, the progress bar
//! ```
//! A new verb is one file here and one arm of [`Verb`].

mod args;
mod exit;
mod output;
mod run;
mod stop;
mod store;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::exit::{Exit, Failure};

/// What the program was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "batchyard",
    version,
    about = "A durable batch queue: requests go in one by one, are synced, and leave in batches",
    after_help = exit::HELP,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Give every line of a file to a command, in batches, and keep its results
    Run(Box<run::RunArgs>),
}

/// Parses the arguments, does what they say, and tells how it went.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    output::init_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(obey(cli));
            // A read of a terminal or a pipe may go on for ever; nothing waits for it.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::new(Exit::Failure, format!("no runtime: {error}"))),
    };
    exit::report(result)
}

async fn obey(cli: Cli) -> Result<Exit, Failure> {
    match cli.verb {
        Verb::Run(args) => run::run(*args).await,
    }
}
