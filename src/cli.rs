//! The command line: one module per verb, and what they share.
//!
//! ```text
//!   main ─▶ Cli (clap) ─▶ verb ─▶ Exit | Failure ─▶ exit code
//!                          │
//!                          ├ args    the settings as flags, and what the environment and a file say of them
//!                          ├ among   the options of verbs that are about single things in queues
//!                          ├ store   from where a store is to an open one
//!                          ├ handling from the settings to a handler
//!                          ├ stop    SIGINT, SIGTERM and SIGHUP
//!                          ├ service metrics, and what systemd is told
//!                          ├ scratch a folder of this program's own, and its removal
//!                          ├ child   this program, started again
//!                          ├ output  data on stdout, talk on stderr, the progress bar
//!                          ├ entries a request as a line of JSON
//!                          ├ dumped  a moment of a store, queue by queue
//!                          ├ look    finding requests, and describing them
//!                          ├ pick    ids that were named, by the queue that has them
//!                          └ table   columns for people
//! ```
//! A new verb is one file here and one arm of [`Verb`].

mod among;
mod args;
mod batches;
mod bench;
mod cancel;
mod child;
mod compact;
mod config;
mod dead;
mod dispatch;
mod dumped;
mod entries;
mod exit;
mod explain;
mod export;
mod handling;
mod health;
mod import;
mod lines;
mod look;
mod ls;
mod manual;
mod output;
mod pick;
mod push;
mod queues;
mod repair;
mod results;
mod run;
mod scratch;
mod service;
mod show;
mod snapshot;
mod stats;
mod steer;
mod stop;
mod store;
mod table;
mod torture;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::{
    args::TalkArgs,
    exit::{Exit, Failure},
    output::LogFormat,
    steer::Steer,
};

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
    #[command(flatten)]
    talk: TalkArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Give every line of a file to a command, in batches, and keep its results
    Run(Box<run::RunArgs>),
    /// Push lines, and print the id of each as soon as it is durable
    Push(push::PushArgs),
    /// Keep giving batches to a command, until asked to stop
    Dispatch(Box<dispatch::DispatchArgs>),
    /// Print the names of all queues
    Queues(queues::QueuesArgs),
    /// Show what queues hold
    Stats(stats::StatsArgs),
    /// List requests
    Ls(ls::LsArgs),
    /// Show the requests that leave next, with their payloads
    Peek(ls::PeekArgs),
    /// Show all that is known of a request
    Show(show::ShowArgs),
    /// Tell why nothing has gone yet, and when it will
    Explain(explain::ExplainArgs),
    /// Tell whether the store is served, and well
    Health(health::HealthArgs),
    /// Let what is ready leave now
    #[command(after_help = steer::help!("flush"))]
    Flush(steer::SteerArgs),
    /// Have dispatchers claim nothing, until resumed
    #[command(after_help = steer::help!("pause"))]
    Pause(steer::SteerArgs),
    /// Let dispatchers go on
    #[command(after_help = steer::help!("resume"))]
    Resume(steer::SteerArgs),
    /// Cancel requests
    Cancel(cancel::CancelArgs),
    /// Print what was done and what failed for good, also as it happens
    Results(results::ResultsArgs),
    /// Look at the batches that have not ended, and take them from holders that are gone
    #[command(
        subcommand,
        after_help = "Example: batchyard batches ls --store ./store"
    )]
    Batches(batches::BatchesVerb),
    /// Print all that the store holds, as JSON Lines
    Export(export::ExportArgs),
    /// Take in what export printed, or another store, without loss
    Import(import::ImportArgs),
    /// Copy a store as it is at this moment into a new one, while it goes on
    Snapshot(snapshot::SnapshotArgs),
    /// Make a store anew from what is left in it, so that it takes less of the disk
    Compact(compact::CompactArgs),
    /// Look at the requests that failed for good, bring them back or forget them
    #[command(subcommand, after_help = "Example: batchyard dead ls --store ./store")]
    Dead(dead::DeadVerb),
    /// Save what can be read of a damaged store into a new one
    Repair(repair::RepairArgs),
    /// Read all that a store holds, and say what of it is damaged, without changing anything
    Verify(verify::VerifyArgs),
    /// Check the configuration, and show where each value comes from
    #[command(
        subcommand,
        after_help = "Example: batchyard config check /etc/batchyard.toml"
    )]
    Config(config::ConfigVerb),
    /// Measure the backends on this machine, beside a raw log and other stores
    Bench(Box<bench::BenchArgs>),
    /// Prove on this machine's disk that nothing answered is lost, by killing this program again and again
    Torture(torture::TortureArgs),
    /// Print the completions of a shell
    Completions(manual::CompletionsArgs),
    /// Print or write manual pages
    Man(manual::ManArgs),
}

impl Verb {
    /// What is in the log besides warnings, unless `RUST_LOG` says otherwise.
    fn log(&self) -> &'static str {
        match self {
            Self::Dispatch(args) => args.log(),
            Self::Run(_) => run::LOG,
            Self::Torture(_) => torture::LOG,
            _ => output::LOG,
        }
    }
}

/// Parses the arguments, does what they say, and tells how it went.
pub(crate) fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches);
        let cli = cli.map_err(|error| error.format(&mut Cli::command()));
        cli.map(|cli| (cli, matches))
    });
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return exit::usage(&error),
    };
    let format = match args::talk(&matches) {
        Ok(settings) => LogFormat::of(&settings),
        Err(failure) => return exit::report(Err(failure)),
    };
    output::init_log(cli.verb.log(), format);
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
        Verb::Push(args) => push::push(args).await,
        Verb::Dispatch(args) => dispatch::dispatch(*args).await,
        Verb::Queues(args) => queues::queues(args).await,
        Verb::Stats(args) => stats::stats(args).await,
        Verb::Ls(args) => ls::ls(args).await,
        Verb::Peek(args) => ls::peek(args).await,
        Verb::Show(args) => show::show(args).await,
        Verb::Explain(args) => explain::explain(args).await,
        Verb::Health(args) => health::health(args).await,
        Verb::Flush(args) => steer::steer(args, Steer::Flush).await,
        Verb::Pause(args) => steer::steer(args, Steer::Pause).await,
        Verb::Resume(args) => steer::steer(args, Steer::Resume).await,
        Verb::Cancel(args) => cancel::cancel(args).await,
        Verb::Results(args) => results::results(args).await,
        Verb::Batches(verb) => batches::batches(verb).await,
        Verb::Export(args) => export::export(args).await,
        Verb::Import(args) => import::import(args).await,
        Verb::Snapshot(args) => snapshot::snapshot(args).await,
        Verb::Compact(args) => compact::compact(args).await,
        Verb::Dead(verb) => dead::dead(verb).await,
        Verb::Repair(args) => repair::repair(args).await,
        Verb::Verify(args) => verify::verify(args).await,
        Verb::Config(verb) => config::config(verb),
        Verb::Bench(args) => bench::bench(*args).await,
        Verb::Torture(args) => torture::torture(args).await,
        Verb::Completions(args) => manual::completions(&args, Cli::command()),
        Verb::Man(args) => manual::man(&args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Each command with its name, from the program down to the last verb.
    fn all_commands() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        let mut left = vec![(String::from("batchyard"), Cli::command())];
        while let Some((name, command)) = left.pop() {
            let below = command.get_subcommands().cloned();
            left.extend(below.map(|below| (format!("{name} {}", below.get_name()), below)));
            found.push((name, command));
        }
        assert!(found.len() > 25, "the verbs were not found");
        found
    }

    /// What is told of a command below its options.
    fn told(command: &clap::Command) -> String {
        let told = command
            .get_after_long_help()
            .or(command.get_after_help())
            .map(ToString::to_string);
        told.unwrap_or_default()
    }

    #[test]
    fn each_verb_has_an_example_that_is_understood() {
        for (name, command) in all_commands()
            .into_iter()
            .filter(|(name, _)| name.contains(' '))
        {
            let told = told(&command);
            let example = told.lines().find_map(|line| line.strip_prefix("Example: "));
            let example = example.unwrap_or_else(|| panic!("{name} has no example: {told:?}"));
            let ours = example.split(['|', '>', '&']).map(str::trim);
            let ours: Vec<_> = ours.filter(|part| part.starts_with("batchyard ")).collect();
            assert!(
                ours.iter().any(|part| part.starts_with(&name)),
                "{name} is not in its example: {example}"
            );
            for part in ours {
                let parsed = Cli::try_parse_from(part.split_whitespace());
                assert!(parsed.is_ok(), "{part}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn each_verb_and_each_option_says_what_it_is() {
        for (name, command) in all_commands() {
            assert!(command.get_about().is_some(), "{name} has no description");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                assert!(help.len() > 5, "{name}: {} has no text", argument.get_id());
                assert!(
                    !help.ends_with('.'),
                    "{name}: {help:?} ends like a sentence"
                );
            }
        }
    }

    #[test]
    fn each_verb_has_a_page() {
        let folder = tempfile::TempDir::new().unwrap();
        clap_mangen::generate_to(Cli::command(), folder.path()).unwrap();
        for (name, command) in all_commands() {
            let page = folder.path().join(name.replace(' ', "-") + ".1");
            let text = fs::read_to_string(&page).unwrap_or_else(|_| panic!("{name} has no page"));
            let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
            for argument in shown.filter_map(clap::Arg::get_long) {
                let plain = text.replace("\\-", "-");
                assert!(
                    plain.contains(&format!("--{argument}")),
                    "{name}: --{argument}"
                );
            }
        }
    }

    /// All words that the program knows, and some that it does not, in any order.
    #[test]
    fn any_arguments_are_understood_or_refused() {
        let mut words: Vec<String> = [
            "", "-", "--", "-v", "5", "2h", "16MiB", "{}", "x=y", "\0", "-9",
        ]
        .map(str::to_owned)
        .into();
        let mut verbs = Vec::new();
        let mut commands: Vec<clap::Command> = Cli::command().get_subcommands().cloned().collect();
        while let Some(command) = commands.pop() {
            verbs.push(command.get_name().to_owned());
            let long = command.get_arguments().filter_map(clap::Arg::get_long);
            words.extend(long.map(|name| format!("--{name}")));
            commands.extend(command.get_subcommands().cloned());
        }
        assert!(verbs.len() > 10 && words.len() > 60, "{verbs:?} {words:?}");
        words.extend(verbs.iter().cloned());
        let seed = std::env::var("BATCHYARD_SEED").map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|_| fastrand::u64(..));
        println!("BATCHYARD_SEED={seed}");
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut understood = 0;
        for _ in 0..2_000 {
            let mut line = vec![
                "batchyard".to_owned(),
                dice.choice(&verbs).cloned().unwrap(),
            ];
            for _ in 0..dice.usize(..6) {
                let mut word = dice.choice(&words).cloned().unwrap();
                if dice.u8(..4) == 0 {
                    word = format!("{word}={}", dice.choice(&words).unwrap());
                }
                line.push(word);
            }
            match Cli::try_parse_from(&line) {
                Ok(_) => understood += 1,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        assert!(understood > 20, "{understood} of 2000 were understood");
    }
}
