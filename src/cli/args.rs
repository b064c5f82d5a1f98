//! The settings that verbs have as flags, and what they make of all that is said of them.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt::Debug,
    fs, io,
    marker::PhantomData,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use batchyard::configuration::{count, duration};
use batchyard::{
    Policies, QueueOptions,
    configuration::{
        Default, File, Group, Kind, Origin, Problem, SETTINGS, Setting, Settings, Value,
    },
};
use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueHint,
    builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser},
};

pub(crate) use super::handling::own_program;
use super::{
    exit::{Exit, Failure},
    store::{self, Backend, NewAs, OpenStore},
};

/// The settings that a verb has as flags, as far as they were given, and the file that has the rest.
#[derive(Clone, Debug)]
pub(crate) struct SettingArgs<S> {
    config: Option<PathBuf>,
    flags: BTreeMap<&'static str, Value>,
    verb: PhantomData<S>,
}

/// Which settings a verb has.
pub(crate) trait Scope: Clone + Debug + Send + Sync + 'static {
    /// Those of these groups.
    const GROUPS: &'static [Group];
}

/// Declares the settings of some verbs.
macro_rules! scope {
    ($(#[$doc:meta])* $args:ident, $name:ident, $($group:ident)*) => {
        #[derive(Clone, Debug)]
        pub(crate) struct $name;

        impl Scope for $name {
            const GROUPS: &'static [Group] = &[$(Group::$group),*];
        }

        $(#[$doc])*
        pub(crate) type $args = SettingArgs<$name>;
    };
}

scope! {
    /// Which store to use.
    StoreArgs, ForStore, Store
}
scope! {
    /// Which store to use, for verbs that make it if it is missing.
    NewStoreArgs, ForNewStore, Store Backend
}
scope! {
    /// Which store to push to, and what its queues may hold.
    PushStoreArgs, ForPush, Store Backend Bounds
}
scope! {
    /// Of `dispatch`, and all there are.
    AllArgs, ForAll, Store Backend Bounds Retention Batches Total Handler Service Talk
}
scope! {
    /// Of `run`, whose store is its own.
    RunSettingArgs, ForRun, Backend Batches Handler Service
}

impl<S: Scope> Args for SettingArgs<S> {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .value_parser(clap::value_parser!(PathBuf))
            .help("The configuration file [default: that in `BATCHYARD_CONFIG`, or batchyard.toml in the current folder if it is there]")
            .help_heading("Configuration");
        let settings = SETTINGS.iter().filter_map(|setting| {
            // How it talks is for every verb, and above all of them.
            let is_own = S::GROUPS.contains(&setting.group) && setting.group != Group::Talk;
            let arg = is_own.then(|| arg(setting))??;
            Some(arg.help_heading(heading(setting.group)))
        });
        command.args(settings).arg(config)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: Scope> FromArgMatches for SettingArgs<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = BTreeMap::new();
        let has = |setting: &&Setting| S::GROUPS.contains(&setting.group);
        for setting in SETTINGS.iter().filter(has) {
            let value = if setting.kind == Kind::Words {
                let words = matches.try_get_many::<OsString>(setting.key);
                words
                    .ok()
                    .flatten()
                    .map(|words| Value::Words(words.cloned().collect()))
            } else {
                let value = matches.try_get_one::<Value>(setting.key);
                value.ok().flatten().cloned()
            };
            flags.extend(value.map(|value| (setting.key, value)));
        }
        Ok(Self {
            config: matches.get_one(CONFIG).cloned(),
            flags,
            verb: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flags that every verb has.
#[derive(Clone, Debug)]
pub(crate) struct TalkArgs;

impl Args for TalkArgs {
    fn augment_args(command: Command) -> Command {
        let settings = SETTINGS
            .iter()
            .filter(|setting| setting.group == Group::Talk);
        command.args(settings.filter_map(arg).map(|arg| arg.global(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for TalkArgs {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

/// What is said of how all verbs talk, by these flags, the environment, and the file that the verb is told to read.
///
/// # Errors
/// If a variable says what is not possible. What is wrong with the file is for the verb to tell, if it needs it.
pub(crate) fn talk(matches: &ArgMatches) -> Result<Settings, Failure> {
    let mut verb = matches;
    while let Some((_, inner)) = verb.subcommand() {
        verb = inner;
    }
    let named = verb.try_get_one::<PathBuf>(CONFIG).ok().flatten();
    let path = find(named.map(PathBuf::as_path)).ok().flatten();
    let file = path.and_then(|path| {
        let text = read_text(&path).ok()?;
        Some(File::parse(&path, &text).0)
    });
    let said = SETTINGS.iter().filter_map(|setting| {
        let value = verb.try_get_one::<Value>(setting.key).ok().flatten()?;
        (setting.group == Group::Talk).then(|| (setting.key, value.clone()))
    });
    let variable = |name: &str| env::var_os(name);
    let (settings, problems) = Settings::resolve(&[Group::Talk], &said.collect(), variable, file);
    refuse(&problems)?;
    Ok(settings)
}

/// A setting as an argument; `None` if it has no place on a command line.
fn arg(setting: &'static Setting) -> Option<Arg> {
    let arg = Arg::new(setting.key);
    let kind = setting.kind;
    if kind == Kind::Words {
        let arg = arg.last(true).num_args(1..).action(ArgAction::Append);
        return Some(
            arg.value_name("COMMAND")
                .value_parser(clap::value_parser!(OsString))
                .value_hint(ValueHint::CommandWithArguments)
                .help(help(setting)),
        );
    }
    let name = match setting.key {
        "handler" => "KIND:WHERE",
        "backend" => "BACKEND",
        "log_format" => "FORMAT",
        _ => kind.name(),
    };
    let arg = arg.long(setting.flag?).value_name(name).help(help(setting));
    if let Kind::Choice(words) = kind {
        let parser = PossibleValuesParser::new(words.iter().copied());
        return Some(arg.value_parser(parser.map(Value::Text)));
    }
    let parser = OsStringValueParser::new();
    let arg = arg.value_parser(parser.try_map(move |text| kind.parse(&text)));
    Some(match kind {
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Folder => arg.value_hint(ValueHint::DirPath),
        Kind::File => arg.value_hint(ValueHint::FilePath),
        _ => arg,
    })
}

fn help(setting: &Setting) -> String {
    match setting.default {
        // A switch is off.
        Default::Is("false") | Default::None => setting.help.to_owned(),
        Default::Is(default) | Default::Means(default) => {
            format!("{} [default: {default}]", setting.help)
        }
    }
}

fn heading(group: Group) -> &'static str {
    match group {
        Group::Store | Group::Backend => "Store",
        Group::Bounds | Group::Retention => "Queues",
        Group::Batches | Group::Total => "Batches",
        Group::Handler => "Handler",
        Group::Service => "Service",
        Group::Talk => "Options",
    }
}

impl<S: Scope> SettingArgs<S> {
    /// What is said of them, by flags, by the environment and by the file.
    ///
    /// # Errors
    /// If anything is wrong with that.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        let (settings, problems) = self.read(self.config.as_deref())?;
        refuse(&problems)?;
        Ok(settings)
    }

    /// The same from this file, with all that is wrong with it.
    ///
    /// # Errors
    /// If there is no such file, or it can't be read.
    pub(crate) fn read(&self, named: Option<&Path>) -> Result<(Settings, Vec<Problem>), Failure> {
        let (file, mut problems) = match find(named)? {
            Some(path) => {
                let text = read_text(&path)?;
                let (file, problems) = File::parse(&path, &text);
                (Some(file), problems)
            }
            None => (None, Vec::new()),
        };
        let variable = |name: &str| env::var_os(name);
        let (settings, wrong) = Settings::resolve(S::GROUPS, &self.flags, variable, file);
        problems.extend(wrong);
        Ok((settings, problems))
    }

    /// The file that was named by a flag.
    pub(crate) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

/// Fails if there are problems: with the first, and the number of the others.
///
/// # Errors
/// If there are any.
pub(crate) fn refuse(problems: &[Problem]) -> Result<(), Failure> {
    let Some((first, others)) = problems.split_first() else {
        return Ok(());
    };
    let more = match others.len() {
        0 => String::new(),
        more => format!("; {more} more: batchyard config check tells all of them"),
    };
    Err(Failure::new(Exit::Usage, format!("{first}{more}")))
}

/// The policy of each queue.
///
/// # Errors
/// If one does not fit together.
pub(crate) fn policies(settings: &Settings) -> Result<Policies, Failure> {
    refuse(&settings.misfits())?;
    Ok(settings.policies())
}

/// The configuration file: the one that is named, or else `batchyard.toml` in the current folder if it is there.
///
/// # Errors
/// If that file belongs to somebody else.
fn find(named: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let variable = env::var_os("BATCHYARD_CONFIG").filter(|path| !path.is_empty());
    if let Some(path) = named
        .map(Path::to_owned)
        .or_else(|| variable.map(PathBuf::from))
    {
        return Ok(Some(path));
    }
    let path = PathBuf::from(USUAL_FILE);
    let Ok(metadata) = fs::metadata(&path) else {
        return Ok(None);
    };
    // It can name a command: a folder that others may write to must not choose what is started here.
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        let text = format!(
            "{USUAL_FILE} in the current folder belongs to another user; if it is meant, name it: --config {USUAL_FILE}"
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(Some(path))
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = fs::read(path).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failure,
        };
        let text = format!(
            "the configuration file {} can't be read: {error}; name another with --config or BATCHYARD_CONFIG",
            path.display()
        );
        Failure::new(exit, text)
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..good]);
        let line = before.matches('\n').count() + 1;
        let text = format!(
            "{}:{line}: it is not UTF-8, as TOML has to be",
            path.display()
        );
        Failure::new(Exit::Usage, text)
    })
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// In a folder.
    Folder(PathBuf),
    /// On the server at this URL, which may hold a password.
    Server(String),
}

/// Where the settings say that the store is, if they do.
///
/// # Errors
/// If they name a folder that is a URL, or a file without a URL.
pub(crate) fn location(settings: &Settings) -> Result<Option<Location>, Failure> {
    let value = |key| settings.found(key).map(|found| found.value);
    if let Some(Value::Path(folder)) = value("store") {
        if folder.to_string_lossy().contains("://") {
            return Err(Failure::new(
                Exit::Usage,
                "--store is a folder; the URL of a server is given in BATCHYARD_REDIS_URL",
            ));
        }
        return Ok(Some(Location::Folder(folder)));
    }
    if let Some(Value::Path(path)) = value("redis_url_file") {
        return url_in(&path).map(|url| Some(Location::Server(url)));
    }
    Ok(match value("redis_url") {
        Some(Value::Text(url)) => Some(Location::Server(url)),
        _ => None,
    })
}

/// The URL in a file that has nothing else in it.
fn url_in(path: &Path) -> Result<String, Failure> {
    let about = format!("redis_url_file {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| Failure::io(&about, &error))?;
    let url = text.trim();
    if url.is_empty() || !url.contains("://") || url.contains(char::is_whitespace) {
        let text = format!(
            "{about}: there has to be one URL in it, such as redis://:password@host/, and nothing else"
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(url.to_owned())
}

/// What a new store is made as.
pub(crate) fn new_as(settings: &Settings) -> NewAs {
    let Some(found) = settings.found("backend") else {
        return NewAs::default();
    };
    let Value::Text(name) = &found.value else {
        return NewAs::default();
    };
    NewAs {
        backend: Backend::named(name),
        insisted: found.origin == Origin::Flag,
    }
}

/// Which process may have a store in a folder open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owned {
    /// This one.
    Here,
    /// This one, or another one that serves it.
    Anywhere,
}

/// Opens the store that the settings name.
///
/// # Errors
/// If none is named, or it does not open.
pub(crate) async fn open(
    settings: &Settings,
    queues: QueueOptions,
    owned: Owned,
) -> Result<OpenStore, Failure> {
    let new_as = new_as(settings);
    match location(settings)? {
        Some(Location::Folder(folder)) => {
            let opened = match owned {
                Owned::Here => OpenStore::own_folder(&folder, new_as, queues).await,
                Owned::Anywhere => OpenStore::shared_folder(&folder, new_as, queues).await,
            };
            opened.map_err(Failure::or_share)
        }
        Some(Location::Server(_)) if new_as.insisted => Err(Failure::new(
            Exit::Usage,
            "--backend is about a store in a folder, and BATCHYARD_REDIS_URL names a server; give --store DIR too",
        )),
        Some(Location::Server(url)) => OpenStore::redis(&url, queues).await,
        None => Err(Failure::new(
            Exit::Usage,
            "no store: give --store DIR, set BATCHYARD_STORE or BATCHYARD_REDIS_URL, or set store in the configuration file",
        )),
    }
}

/// What is done to a store from outside of a dispatcher lets no results go: how long those are kept is for that to say.
pub(crate) fn keeping(settings: &Settings) -> QueueOptions {
    settings.queue_options().retention(Duration::MAX)
}

impl<S: Scope> SettingArgs<S> {
    /// Opens the store, made if it is missing; what is kept stays kept.
    ///
    /// # Errors
    /// As [`open`].
    pub(crate) async fn open(&self) -> Result<OpenStore, Failure> {
        let settings = self.settings()?;
        open(&settings, keeping(&settings), Owned::Anywhere).await
    }

    /// As [`open`](Self::open), for verbs that make nothing: a folder without a store is not found.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if there is no store in the folder.
    pub(crate) async fn existing(&self) -> Result<OpenStore, Failure> {
        let settings = self.settings()?;
        if let Some(Location::Folder(folder)) = location(&settings)? {
            store::must_exist(&folder)?;
        }
        open(&settings, keeping(&settings), Owned::Anywhere).await
    }

    /// As [`existing`](Self::existing), and not found if it is in a folder and no process serves it.
    ///
    /// # Errors
    /// As [`existing`](Self::existing), and if nobody serves it.
    pub(crate) async fn served(&self) -> Result<OpenStore, Failure> {
        match self.location()? {
            Some(Location::Folder(folder)) => {
                store::must_exist(&folder)?;
                OpenStore::served(&folder).await
            }
            _ => self.existing().await,
        }
    }

    /// Where the store is, if anything says so.
    ///
    /// # Errors
    /// As [`location`].
    pub(crate) fn location(&self) -> Result<Option<Location>, Failure> {
        location(&self.settings()?)
    }

    /// The folder of the store, for verbs that are about stores in folders.
    ///
    /// # Errors
    /// If none is named, there is none, or nothing is in it.
    pub(crate) fn folder(&self) -> Result<PathBuf, Failure> {
        match self.location()? {
            Some(Location::Folder(folder)) => {
                store::must_exist(&folder)?;
                Ok(folder)
            }
            _ => Err(Failure::new(
                Exit::Usage,
                "this verb is about a store in a folder, and none is named: give --store DIR; a server looks after what it holds by itself",
            )),
        }
    }
}

const CONFIG: &str = "config";
/// Where whoever starts a program by hand expects its file, as with caddy and prometheus.
const USUAL_FILE: &str = "batchyard.toml";
