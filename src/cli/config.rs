//! `config check|show`: what the program is told, whether it can work, and who said so.

use std::{
    env,
    path::{Path, PathBuf},
};

use batchyard::{
    QueueName,
    configuration::{
        ALTERNATIVES, Default, Found, Kind, Of, Origin, Problem, SETTINGS, Setting, Settings,
        Value, nearest, redacted,
    },
};
use clap::{Args, Subcommand, ValueHint};
use rustix::fs::{Access, access};
use serde::Serialize;

use super::{
    args::{self, AllArgs, Location},
    exit::{Exit, Failure},
    handling::Handling,
    output::{print, print_json, say},
    store,
};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say what is wrong with the configuration: all of it, before anything is started
    Check(Box<CheckArgs>),
    /// Print the settings that count, as a configuration file has them
    Show(Box<ShowArgs>),
}

/// Options of `config check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Unknown settings, values of the wrong kind and policies that don't fit together are told with their line; the store, the \
command and the file with the URL have to be there, or a place for the store. Nothing is opened and nothing is made. Exit 2 if \
anything is wrong.\n\nExample: batchyard config check /etc/batchyard.toml"
)]
pub(crate) struct CheckArgs {
    /// The file to check [default: the one that --config or `BATCHYARD_CONFIG` names, or batchyard.toml in the current folder]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "config")]
    file: Option<PathBuf>,
    /// Print a line of JSON for each thing that is wrong
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Box<AllArgs>,
}

/// Options of `config show`.
#[derive(Debug, Args)]
#[command(
    after_help = "Flags count before the environment, that before the file, and that before the defaults. The variable of --time-threshold \
is BATCHYARD_TIME_THRESHOLD, its key in the file time_threshold. Passwords are not printed.\n\n\
Example: batchyard config show --origin --queue orders"
)]
pub(crate) struct ShowArgs {
    /// Say behind each value where it comes from
    #[arg(long)]
    origin: bool,
    /// Only what may differ from queue to queue, as it is for this one
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Print a line of JSON for each setting
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Box<AllArgs>,
}

/// Does it.
pub(super) fn config(verb: ConfigVerb) -> Result<Exit, Failure> {
    match verb {
        ConfigVerb::Check(args) => check(&args),
        ConfigVerb::Show(args) => show(&args),
    }
}

/// Something wrong, as it is printed.
#[derive(Serialize)]
struct WrongLine<'a> {
    file: Option<&'a Path>,
    line: Option<usize>,
    key: &'a str,
    error: &'a str,
}

fn check(args: &CheckArgs) -> Result<Exit, Failure> {
    let named = args.file.as_deref().or(args.settings.config());
    let (settings, mut problems) = args.settings.read(named)?;
    problems.extend(settings.misfits());
    problems.extend(in_the_world(&settings));
    for variable in unknown_variables() {
        say(&variable);
    }
    for problem in &problems {
        if args.json {
            print_json(&WrongLine {
                file: problem.file.as_deref(),
                line: problem.line,
                key: &problem.key,
                error: &problem.text,
            })?;
        } else {
            say(&format!("error: {problem}"));
        }
    }
    if !problems.is_empty() {
        return Ok(Exit::Usage);
    }
    match settings.file() {
        Some(file) => say(&format!("{} is fine", file.path.display())),
        None => say(
            "no configuration file is named, and none is here; flags and the environment are fine",
        ),
    }
    Ok(Exit::Ok)
}

/// What settings name and is not there.
fn in_the_world(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut tell = |key: &str, text: String| problems.push(settings.problem(key, &text));
    let store = ALTERNATIVES
        .concat()
        .into_iter()
        .find(|key| settings.said(key).is_some());
    match (args::location(settings), store) {
        (Err(failure), Some(key)) => tell(key, failure.to_string()),
        (Ok(Some(Location::Folder(folder))), Some(key)) => {
            if let Err(text) = can_hold_a_store(&folder) {
                tell(key, text);
            }
        }
        (Ok(Some(Location::Server(url))), Some(key)) => {
            if let Err(failure) = store::check_url(&url) {
                tell(key, failure.to_string());
            }
        }
        _ => {}
    }
    let handler = ["handler", "command"]
        .into_iter()
        .find(|key| settings.said(key).is_some());
    if let Some(key) = handler
        && let Err(failure) = Handling::of(settings).and_then(|handling| handling.check())
    {
        tell(key, failure.to_string());
    }
    problems
}

/// Whether a folder is there, or can be made.
fn can_hold_a_store(folder: &Path) -> Result<(), String> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    if folder.exists() && !folder.is_dir() {
        return Err(format!("{} is no folder", folder.display()));
    }
    // Opening makes what is missing, from the first folder that is there.
    let there = folder.ancestors().find(|folder| folder.exists());
    let there = there.unwrap_or(Path::new("/"));
    let is_open = there.is_dir() && access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    if is_open {
        return Ok(());
    }
    let text = if there == folder {
        format!("{} can't be written by this user", folder.display())
    } else {
        let there = there.display();
        format!(
            "{} can't be made: {there} can't be written by this user",
            folder.display()
        )
    };
    Err(text)
}

/// Variables that look like settings and are none: told, since other programs may have variables of such names.
fn unknown_variables() -> Vec<String> {
    const START: &str = "BATCHYARD_";
    let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = names.filter(|name| name.starts_with(START) && !known.contains(name));
    let mut texts: Vec<String> = unknown
        .filter_map(|name| {
            // What all of them begin with makes none of them alike.
            let ends = known.iter().filter_map(|name| name.strip_prefix(START));
            let meant = nearest(name.strip_prefix(START)?, ends)?;
            (!OTHER_VARIABLES.contains(&name.as_str())).then(|| {
                format!("warning: the variable {name} is no setting; did you mean {START}{meant}?")
            })
        })
        .collect();
    texts.sort();
    texts
}

/// A setting, as it is printed.
#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    value: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meaning: Option<&'a str>,
    origin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a QueueName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<&'a str>,
}

fn show(args: &ShowArgs) -> Result<Exit, Failure> {
    let settings = args.settings.settings()?;
    args::refuse(&settings.misfits())?;
    let mut printed = Printed {
        args,
        text: String::new(),
    };
    for setting in SETTINGS {
        match &args.queue {
            None => printed.setting(setting, settings.found(setting.key), None)?,
            Some(queue) if setting.per_queue => {
                printed.setting(setting, settings.found_for(setting.key, queue), None)?;
            }
            Some(_) => {}
        }
    }
    if args.queue.is_none() {
        for section in settings.sections() {
            if !args.json {
                printed.line(&format!("\n{}", section.of.heading()));
            }
            for (setting, found) in settings.in_section(section) {
                printed.setting(setting, Some(found), Some(&section.of))?;
            }
        }
    }
    print(printed.text.as_bytes())?;
    Ok(Exit::Ok)
}

/// What is printed of the settings.
struct Printed<'a> {
    args: &'a ShowArgs,
    text: String,
}

impl Printed<'_> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn setting(
        &mut self,
        setting: &Setting,
        found: Option<Found>,
        of: Option<&Of>,
    ) -> Result<(), Failure> {
        let Setting { key, default, .. } = setting;
        let origin = found
            .as_ref()
            .map_or(&Origin::Default, |found| &found.origin)
            .to_string();
        let value = found.map(|found| shown(setting, found.value));
        if self.args.json {
            let value = value
                .map(|value| serde_json::from_str(&value.text))
                .transpose();
            print_json(&Line {
                key,
                value: value.map_err(std::io::Error::from)?,
                meaning: match default {
                    Default::Means(meaning) if of.is_none() => Some(meaning),
                    _ => None,
                },
                origin,
                queue: match of {
                    Some(Of::Queue(queue)) => Some(queue),
                    _ => self.args.queue.as_ref(),
                },
                prefix: match of {
                    Some(Of::Prefix(prefix)) => Some(prefix),
                    _ => None,
                },
            })?;
            return Ok(());
        }
        let line = match (value, default) {
            (Some(value), _) if value.is_redacted => format!("# {key} = {}", value.text),
            (Some(value), _) => format!("{key} = {}", value.text),
            (None, Default::Means(meaning)) => format!("# {key}: {meaning}"),
            (None, _) => format!("# {key}: not set"),
        };
        let origin = if self.args.origin {
            format!("  # {origin}")
        } else {
            String::new()
        };
        self.line(&(line + &origin));
        Ok(())
    }
}

/// A value as it is printed.
struct Shown {
    text: String,
    /// It is not the value itself.
    is_redacted: bool,
}

/// Paths are printed so that they mean the same wherever the text is put.
fn shown(setting: &Setting, value: Value) -> Shown {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (value, is_redacted) = match value {
        Value::Text(url) if setting.kind == Kind::Secret => {
            let redacted = redacted(&url);
            let is_redacted = redacted != url;
            (Value::Text(redacted), is_redacted)
        }
        Value::Path(path) => (Value::Path(absolute(&path)), false),
        Value::Words(mut words) => {
            if let Some(program) = words.first_mut()
                && program.to_string_lossy().contains('/')
            {
                *program = absolute(Path::new(program)).into();
            }
            (Value::Words(words), false)
        }
        value => (value, false),
    };
    Shown {
        text: value.to_string(),
        is_redacted,
    }
}

/// Variables of ours that are no settings: for commands, and for tests.
const OTHER_VARIABLES: [&str; 3] = ["BATCHYARD_CONFIG", "BATCHYARD_QUEUE", "BATCHYARD_ATTEMPT"];
