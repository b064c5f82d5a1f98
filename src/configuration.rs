//! What the program is told: by flags, by the environment, by a file, and by nobody.
//!
//! ```text
//!   flags ─────────────┐
//!   BATCHYARD_* ───────┼▶ Settings ─▶ Policies, QueueOptions, the store, the handler
//!   batchyard.toml ────┤     │
//!     [queue.orders]   │     └─▶ where each value comes from
//!     [prefix."t-"]    │
//!   defaults ──────────┘   the first that says something counts
//! ```
//! [`SETTINGS`] is the one table of all there is. Nothing here reads the environment or a file: their text is given.
//! A flag and a variable count for every queue; in a file, what is said of a queue beats what is said of the longest
//! prefix of its name, that of a shorter one, and that of all queues, each setting by itself.

mod file;
mod setting;
mod value;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::{self, Write},
    path::PathBuf,
};

pub use self::{
    file::{File, Of, Section},
    setting::{ALTERNATIVES, Default, Group, MEANINGLESS, SETTINGS, Sets, Setting},
    value::{Kind, Value, count, duration, size},
};
use crate::{
    policy::{Policies, Policy},
    queue::QueueOptions,
    request::QueueName,
};

/// What the program is told, each value with its origin.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: BTreeMap<&'static str, Found>,
    file: Option<File>,
}

/// A value, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub value: Value,
    /// Who said so.
    pub origin: Origin,
}

/// Where a value comes from, the first that counts first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The command line.
    Flag,
    /// The environment.
    Variable(String),
    /// A line of a file.
    File(PathBuf, usize),
    /// Nobody said anything.
    Default,
}

/// Something that is wrong with what the program is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file in which it is, if it is in one.
    pub file: Option<PathBuf>,
    /// The line, from one.
    pub line: Option<usize>,
    /// What it is about: a key, a variable, a flag or a section.
    pub key: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl Settings {
    /// Puts together what is said by flags, by the environment and by a file about the settings of these groups.
    /// What is wrong is left out, and told.
    pub fn resolve(
        groups: &[Group],
        flags: &BTreeMap<&'static str, Value>,
        variable: impl Fn(&str) -> Option<OsString>,
        file: Option<File>,
    ) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut settings = Self {
            values: BTreeMap::new(),
            file,
        };
        let asked = |setting: &&Setting| groups.contains(&setting.group);
        for setting in SETTINGS.iter().filter(asked) {
            let name = setting.variable();
            let said = match flags.get(setting.key) {
                Some(value) => Some((value.clone(), Origin::Flag)),
                None => match variable(&name).filter(|text| !text.is_empty()) {
                    Some(text) => match setting.kind.parse(&text) {
                        Ok(value) => Some((value, Origin::Variable(name))),
                        Err(error) => {
                            problems.push(Problem::of_variable(setting, name, &text, &error));
                            None
                        }
                    },
                    None => settings.in_file(setting),
                },
            };
            if let Some((value, origin)) = said {
                settings.values.insert(setting.key, Found { value, origin });
            }
        }
        settings.choose(&mut problems);
        (settings, problems)
    }

    /// What the file says of all queues.
    fn in_file(&self, setting: &Setting) -> Option<(Value, Origin)> {
        let file = self.file.as_ref()?;
        let (value, line) = file.general.get(setting.key)?;
        Some((value.clone(), Origin::File(file.path.clone(), *line)))
    }

    /// Drops what something that counts more has taken the place of.
    fn choose(&mut self, problems: &mut Vec<Problem>) {
        let level = |found: &Found| match found.origin {
            Origin::Flag => 0,
            Origin::Variable(_) => 1,
            Origin::File(..) => 2,
            Origin::Default => 3,
        };
        for names in ALTERNATIVES {
            let mut said: Vec<(u8, &str)> = names
                .iter()
                .filter_map(|key| Some((level(self.values.get(key)?), *key)))
                .collect();
            said.sort_by_key(|(level, _)| *level);
            let Some((first, kept)) = said.first().copied() else {
                continue;
            };
            for (level, key) in &said[1..] {
                if *level == first {
                    let text = format!(
                        "{} says something else in its place; name one of both",
                        self.spelled(kept)
                    );
                    problems.push(self.problem(key, &text));
                }
                self.values.remove(key);
            }
        }
        for (key, beside) in MEANINGLESS {
            if let (Some(found), Some(other)) = (self.values.get(key), self.values.get(beside)) {
                if level(found) <= level(other) {
                    let text = format!(
                        "it is about a command, and there is none: {} sends batches elsewhere",
                        self.spelled(beside)
                    );
                    problems.push(self.problem(key, &text));
                }
                self.values.remove(key);
            }
        }
    }

    /// A setting as whoever gave it wrote its name.
    fn spelled(&self, key: &str) -> String {
        match self.values.get(key).map(|found| &found.origin) {
            Some(Origin::Flag) => match Setting::of(key).and_then(|setting| setting.flag) {
                Some(flag) => format!("--{flag}"),
                None => "COMMAND".to_owned(),
            },
            Some(Origin::Variable(name)) => name.clone(),
            Some(Origin::File(..) | Origin::Default) | None => key.to_owned(),
        }
    }

    /// Something that is wrong with what was said of this setting.
    pub fn problem(&self, key: &str, text: &str) -> Problem {
        let (file, line) = match self.values.get(key).map(|found| &found.origin) {
            Some(Origin::File(path, line)) => (Some(path.clone()), Some(*line)),
            _ => (None, None),
        };
        Problem {
            file,
            line,
            key: self.spelled(key),
            text: text.to_owned(),
        }
    }

    /// What was said of this setting, if anything was.
    pub fn said(&self, key: &str) -> Option<&Found> {
        debug_assert!(Setting::of(key).is_some(), "{key} is no setting");
        self.values.get(key)
    }

    /// What this setting is, if it has a value.
    pub fn found(&self, key: &str) -> Option<Found> {
        let default = || {
            let value = Setting::of(key)?.default_value()?;
            let origin = Origin::Default;
            Some(Found { value, origin })
        };
        self.said(key).cloned().or_else(default)
    }

    /// What this setting is for one queue.
    pub fn found_for(&self, key: &str, queue: &QueueName) -> Option<Found> {
        self.in_sections(key, queue.as_str(), true)
            .or_else(|| self.found(key))
    }

    /// What the file says in its sections, unless a flag or a variable says otherwise.
    fn in_sections(&self, key: &str, name: &str, is_queue: bool) -> Option<Found> {
        let said = self.values.get(key).map(|found| &found.origin);
        if matches!(said, Some(Origin::Flag | Origin::Variable(_))) {
            return None;
        }
        let file = self.file.as_ref()?;
        let fitting = file.sections.iter().filter_map(|section| {
            let fits = section.of.fits(name)?;
            let (value, line) = section.values.get(key)?;
            (is_queue || matches!(section.of, Of::Prefix(_))).then_some((fits, value, line))
        });
        let (_, value, line) = fitting.max_by_key(|(fits, ..)| *fits)?;
        Some(Found {
            value: value.clone(),
            origin: Origin::File(file.path.clone(), *line),
        })
    }

    /// What a section says and counts: what a flag or a variable says counts for every queue.
    pub fn in_section(&self, section: &Section) -> Vec<(&'static Setting, Found)> {
        let (name, is_queue) = match &section.of {
            Of::Queue(name) => (name.as_str(), true),
            Of::Prefix(prefix) => (prefix.as_str(), false),
        };
        let says = |setting: &&Setting| section.values.contains_key(setting.key);
        let found = |setting: &'static Setting| {
            Some((setting, self.in_sections(setting.key, name, is_queue)?))
        };
        SETTINGS.iter().filter(says).filter_map(found).collect()
    }

    /// The sections of the file, in their order.
    pub fn sections(&self) -> &[Section] {
        self.file.as_ref().map_or(&[], |file| &file.sections)
    }

    /// The file that was read, if one was.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The policy of queues that have no other.
    pub fn policy(&self) -> Policy {
        policy_by(|key| self.found(key))
    }

    /// The policy of this queue, or of all queues of this prefix that have no other.
    pub fn policy_of(&self, of: &Of) -> Policy {
        let (name, is_queue) = match of {
            Of::Queue(name) => (name.as_str(), true),
            Of::Prefix(prefix) => (prefix.as_str(), false),
        };
        policy_by(|key| {
            self.in_sections(key, name, is_queue)
                .or_else(|| self.found(key))
        })
    }

    /// The policy of every queue.
    pub fn policies(&self) -> Policies {
        let mut policies = Policies::new(self.policy());
        for Section { of, .. } in self.sections() {
            let policy = self.policy_of(of);
            policies = match of {
                Of::Queue(queue) => policies.queue(queue.clone(), policy),
                Of::Prefix(prefix) => policies.prefix(prefix.clone(), policy),
            };
        }
        policies
    }

    /// Policies that don't fit together, each by itself.
    pub fn misfits(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let path = self.file.as_ref().map(|file| file.path.clone());
        if let Err(error) = self.policy().validate() {
            let text = error.to_string();
            // Where one of those is said that do not fit.
            let named = SETTINGS.iter().map(|setting| setting.key);
            let said = named
                .filter(|key| text.contains(key))
                .find(|key| self.said(key).is_some());
            problems.push(Problem {
                key: String::new(),
                ..self.problem(said.unwrap_or_default(), &text)
            });
        }
        // What is wrong with all of them is told once.
        let is_sound = problems.is_empty();
        for section in self.sections() {
            if is_sound && let Err(error) = self.policy_of(&section.of).validate() {
                problems.push(Problem {
                    file: path.clone(),
                    line: Some(section.line),
                    key: section.of.heading(),
                    text: error.to_string(),
                });
            }
        }
        problems
    }

    /// What queues are opened with.
    pub fn queue_options(&self) -> QueueOptions {
        let mut options = QueueOptions::default();
        for setting in SETTINGS {
            if let Sets::Queues(set) = setting.sets
                && let Some(found) = self.found(setting.key)
            {
                set(&mut options, &found.value);
            }
        }
        options
    }
}

impl Problem {
    fn of_variable(setting: &Setting, name: String, text: &OsString, error: &str) -> Self {
        let found = match setting.kind {
            Kind::Secret => String::new(),
            _ => format!("{:?} is not possible: ", text.to_string_lossy()),
        };
        Self {
            file: None,
            line: None,
            key: name,
            text: format!("{found}{error}"),
        }
    }
}

/// `FILE:LINE: KEY: what is wrong`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            match self.line {
                Some(line) => write!(f, "{line}: ")?,
                None => f.write_str(" ")?,
            }
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", OneLine(&self.key))?;
        }
        write!(f, "{}", OneLine(&self.text))
    }
}

/// Text of whoever wrote a file, which ends no line and moves nothing on a terminal.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| {
            if letter.is_control() {
                write!(f, "{}", letter.escape_default())
            } else {
                f.write_char(letter)
            }
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

fn policy_by(found: impl Fn(&str) -> Option<Found>) -> Policy {
    let mut policy = Policy::default();
    for setting in SETTINGS {
        if let Sets::Policy(set) = setting.sets
            && let Some(found) = found(setting.key)
        {
            set(&mut policy, &found.value);
        }
    }
    policy
}

/// The known name that somebody may have meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = name.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|known| {
            let likeness = strsim::jaro_winkler(&plain, &known.to_lowercase().replace('-', "_"));
            (likeness, known)
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

/// A URL without what may be a secret in it.
pub fn redacted(url: &str) -> String {
    // What follows may be a password as well, or the rest of one.
    if let Some((before, _)) = url.split_once('?') {
        return if url.contains('@') {
            "***".to_owned()
        } else {
            format!("{}?***", redacted(before))
        };
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return "***".to_owned();
    };
    // A password may hold any of the letters that end it elsewhere: the last @ counts.
    let Some((who, place)) = rest.rsplit_once('@') else {
        return url.to_owned();
    };
    match who.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***@{place}"),
        None => url.to_owned(),
    }
}

/// How like a known name one must be to be taken for it.
const ALIKE: f64 = 0.85;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_whatever_was_written() {
        let (_, problems) = File::parse("a.toml".as_ref(), "\"a\\nb\\u001b[2J\" = 1\n");
        assert!(problems[0].key.contains('\n'), "{problems:?}");
        let told = problems[0].to_string();
        assert!(!told.contains(char::is_control), "{told:?}");
        assert!(told.starts_with("a.toml:1: a\\nb\\u{1b}[2J: "), "{told}");
    }

    #[test]
    fn no_password_is_left_in_a_url() {
        for (url, printed) in [
            ("redis://host/", "redis://host/"),
            ("redis://host:6379/0", "redis://host:6379/0"),
            ("redis://me@host/", "redis://me@host/"),
            ("redis://me:secret@host/", "redis://me:***@host/"),
            ("redis://:secret@host/", "redis://:***@host/"),
            ("redis://:se:cr@et@host/", "redis://:***@host/"),
            ("redis://:se?cret@host/", "***"),
            ("redis+unix:///run/s?pass=secret", "redis+unix:///run/s?***"),
            ("redis://me:secret@h/?a=b", "***"),
            ("secret", "***"),
        ] {
            assert_eq!(redacted(url), printed, "{url}");
        }
    }

    #[test]
    fn the_nearest_name_is_one_that_may_be_meant() {
        let known = ["queue_threshold", "time_threshold", "store", "queue"];
        for (name, meant) in [
            ("queue_treshold", Some("queue_threshold")),
            ("Queue-Threshold", Some("queue_threshold")),
            ("stoer", Some("store")),
            ("queues", Some("queue")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), meant, "{name}");
        }
    }
}
