//! A configuration file: TOML, read with the line of each value, all of its mistakes told at once.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    Problem, nearest,
    setting::{SETTINGS, Setting},
    value::{Kind, Value},
};
use crate::request::QueueName;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Where it is, as it was named.
    pub path: PathBuf,
    /// What is in it above all sections.
    pub(super) general: Values,
    /// In their order in the file.
    pub(super) sections: Vec<Section>,
}

/// Values of a file by key, each with its line.
pub(super) type Values = BTreeMap<&'static str, (Value, usize)>;

/// `[queue.NAME]` or `[prefix.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it is about.
    pub of: Of,
    /// Where it begins.
    pub line: usize,
    pub(super) values: Values,
}

/// What a section is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// One queue.
    Queue(QueueName),
    /// Every queue whose name begins so.
    Prefix(String),
}

impl Of {
    /// How well it fits this queue, if it does: the better of two is the greater one.
    pub(super) fn fits(&self, queue: &str) -> Option<usize> {
        match self {
            Self::Queue(name) => (name.as_str() == queue).then_some(usize::MAX),
            Self::Prefix(prefix) => queue.starts_with(prefix.as_str()).then_some(prefix.len()),
        }
    }

    /// Its heading.
    pub fn heading(&self) -> String {
        match self {
            Self::Queue(name) => format!("[queue.{}]", super::value::quoted(name.as_str())),
            Self::Prefix(prefix) => format!("[prefix.{}]", super::value::quoted(prefix)),
        }
    }
}

impl File {
    /// Reads the text of the file at this path. What is wrong is left out of it, and told: all of it, in the order of lines.
    pub fn parse(path: &Path, text: &str) -> (Self, Vec<Problem>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader {
            lines: line_starts(text),
            file: Self {
                path: path.to_owned(),
                ..Self::default()
            },
            problems: Vec::new(),
        };
        for error in errors {
            let line = reader.line(&error.span().unwrap_or_default());
            reader.tell(line, "", &error.message().replace('\n', ", "));
        }
        // What follows a syntax error may be read as something that nobody wrote.
        let is_whole = reader.problems.is_empty();
        if is_whole {
            reader.read(table.get_ref());
        }
        let Reader {
            mut file,
            mut problems,
            ..
        } = reader;
        file.sections.sort_by_key(|section| section.line);
        problems.sort_by_key(|problem| problem.line);
        (file, problems)
    }
}

#[cfg(feature = "fuzzing")]
impl File {
    /// A text that says the same.
    pub(crate) fn written(&self) -> String {
        let lines = |values: &Values| -> String {
            let lines = values
                .iter()
                .map(|(key, (value, _))| format!("{key} = {value}\n"));
            lines.collect()
        };
        let sections = self.sections.iter().map(|section| {
            let heading = section.of.heading();
            format!("{heading}\n{}", lines(&section.values))
        });
        lines(&self.general) + &sections.collect::<String>()
    }
}

/// Where each line begins.
fn line_starts(text: &str) -> Vec<usize> {
    let ends = text.match_indices('\n').map(|(at, _)| at + 1);
    std::iter::once(0).chain(ends).collect()
}

struct Reader {
    lines: Vec<usize>,
    file: File,
    problems: Vec<Problem>,
}

impl Reader {
    fn line(&self, span: &Range<usize>) -> usize {
        self.lines.partition_point(|start| *start <= span.start)
    }

    fn tell(&mut self, line: usize, key: &str, text: &str) {
        self.problems.push(Problem {
            file: Some(self.file.path.clone()),
            line: Some(line),
            key: key.to_owned(),
            text: text.to_owned(),
        });
    }

    fn read(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            let (line, name) = (self.line(&key.span()), key.get_ref().as_ref());
            match (name, value.get_ref()) {
                ("queue" | "prefix", DeValue::Table(sections)) => {
                    self.read_sections(name, sections);
                }
                ("queue" | "prefix", _) => {
                    let text = format!(
                        "it is no setting, but the beginning of a section, such as [{name}.orders]; which queue is served is said \
on the command line"
                    );
                    self.tell(line, name, &text);
                }
                (_, value) => {
                    let read = self.read_value(name, value, line, Place::General);
                    if let Some((setting, value)) = read {
                        self.file.general.insert(setting.key, (value, line));
                    }
                }
            }
        }
    }

    fn read_sections(&mut self, kind: &str, sections: &DeTable<'_>) {
        for (name, values) in sections {
            let (line, name) = (self.line(&name.span()), name.get_ref().as_ref());
            let DeValue::Table(values) = values.get_ref() else {
                let text = format!("a setting of a queue belongs below its name: [{kind}.NAME]");
                self.tell(line, &format!("{kind}.{name}"), &text);
                continue;
            };
            let of = match (kind, name) {
                ("prefix", "") => Ok(Of::Prefix(String::new())),
                // What no name can begin with fits no queue.
                ("prefix", prefix) => prefix
                    .parse::<QueueName>()
                    .map(|_| Of::Prefix(prefix.into())),
                (_, name) => name.parse().map(Of::Queue),
            };
            let of = match of {
                Ok(of) => of,
                Err(error) => {
                    self.tell(line, &format!("{kind}.{name}"), &error.to_string());
                    continue;
                }
            };
            let mut section = Section {
                of,
                line,
                values: Values::new(),
            };
            for (key, value) in values {
                let line = self.line(&key.span());
                let key = key.get_ref().as_ref();
                let read = self.read_value(key, value.get_ref(), line, Place::Section);
                if let Some((setting, value)) = read {
                    section.values.insert(setting.key, (value, line));
                }
            }
            self.file.sections.push(section);
        }
    }

    fn read_value(
        &mut self,
        key: &str,
        value: &DeValue<'_>,
        line: usize,
        place: Place,
    ) -> Option<(&'static Setting, Value)> {
        let read = match Setting::of(key) {
            None if place == Place::Section && matches!(value, DeValue::Table(_)) => Err(
                "a name with a dot in it needs quotes, such as [queue.\"orders.eu\"]".to_owned(),
            ),
            None => Err(place.unknown(key)),
            Some(setting) if place == Place::Section && !setting.per_queue => {
                Err("it is no setting of single queues; put it above the first section".to_owned())
            }
            Some(setting) => setting
                .kind
                .read(value)
                .and_then(|value| secret_apart(setting, value))
                .map(|value| (setting, self.beside(value, setting)))
                .map_err(|error| format!("{error} ({key} = {})", setting.example)),
        };
        read.map_err(|text| self.tell(line, key, &text)).ok()
    }

    /// Paths are relative to the folder of the file, so that it means the same wherever the program is started.
    fn beside(&self, value: Value, setting: &Setting) -> Value {
        let folder = self.file.path.parent().unwrap_or(Path::new(""));
        match value {
            Value::Path(path) => Value::Path(folder.join(path)),
            Value::Words(mut words) if setting.kind == Kind::Words => {
                // Without a slash it is looked up in PATH.
                if let Some(program) = words.first_mut()
                    && program.to_string_lossy().contains('/')
                {
                    *program = folder.join(&*program).into();
                }
                Value::Words(words)
            }
            value => value,
        }
    }
}

/// Where a value stands in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    General,
    Section,
}

impl Place {
    fn unknown(self, key: &str) -> String {
        let keys = SETTINGS
            .iter()
            .filter(|setting| self == Self::General || setting.per_queue)
            .map(|setting| setting.key);
        let sections = ["queue", "prefix"]
            .into_iter()
            .filter(|_| self == Self::General);
        match nearest(key, keys.chain(sections)) {
            Some(known) => format!("there is no such setting; did you mean {known}?"),
            None => {
                "there is no such setting; batchyard config show lists those there are".to_owned()
            }
        }
    }
}

/// A file is copied, shown and kept in repositories: no place for a password.
fn secret_apart(setting: &Setting, value: Value) -> Result<Value, String> {
    match &value {
        Value::Text(url) if setting.kind == Kind::Secret && super::redacted(url) != *url => {
            let text = format!(
                "it may hold a password: put it in a file of its own that redis_url_file names, or in {}",
                setting.variable()
            );
            Err(text)
        }
        _ => Ok(value),
    }
}
