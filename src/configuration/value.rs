//! What a setting can be, and how that is written: on the command line, in the environment, in a file.

use core::net::SocketAddr;
use std::{
    ffi::{OsStr, OsString},
    fmt::{self, Write},
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
    time::Duration,
};

use toml::de::DeValue;

/// What a value is, and so how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number above zero.
    Count,
    /// A number of bytes above zero, with or without a unit.
    Size,
    /// A duration above zero, with its unit.
    Duration,
    /// Yes or no.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A folder.
    Folder,
    /// A file.
    File,
    /// An address with its port, or a port of this machine.
    Address,
    /// Any text.
    Text,
    /// What may hold a password: it is not on command lines, and redacted where it is printed.
    Secret,
    /// A program and its arguments.
    Words,
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Kind::Count`].
    Count(NonZeroU32),
    /// Of [`Kind::Size`].
    Size(NonZeroU64),
    /// Of [`Kind::Duration`].
    Duration(Duration),
    /// Of [`Kind::Switch`].
    Switch(bool),
    /// Of [`Kind::Folder`] and [`Kind::File`].
    Path(PathBuf),
    /// Of [`Kind::Address`].
    Address(SocketAddr),
    /// Of [`Kind::Choice`], [`Kind::Text`] and [`Kind::Secret`].
    Text(String),
    /// Of [`Kind::Words`].
    Words(Vec<OsString>),
}

impl Kind {
    /// The value that is written so on a command line or in the environment.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(self, text: &OsStr) -> Result<Value, String> {
        // Paths may be any bytes.
        if matches!(self, Self::Folder | Self::File) {
            return if text.is_empty() {
                Err("a path is needed".to_owned())
            } else {
                Ok(Value::Path(text.into()))
            };
        }
        let text = text.to_str().ok_or("it is not UTF-8")?;
        match self {
            Self::Count => count(text).map(Value::Count),
            Self::Size => size(text).map(Value::Size),
            Self::Duration => duration(text).map(Value::Duration),
            Self::Switch => match text {
                "true" => Ok(Value::Switch(true)),
                "false" => Ok(Value::Switch(false)),
                _ => Err("it may be true or false".to_owned()),
            },
            Self::Choice(words) if !words.contains(&text) => {
                Err(format!("it may be {}", words.join(" or ")))
            }
            Self::Address => address(text).map(Value::Address),
            Self::Words => words(text),
            _ => Ok(Value::Text(text.to_owned())),
        }
    }

    /// The value that is written so in a file.
    ///
    /// # Errors
    /// What was found, and what would be right.
    pub(super) fn read(self, value: &DeValue<'_>) -> Result<Value, String> {
        match (self, value) {
            (Self::Switch, DeValue::Boolean(on)) => Ok(Value::Switch(*on)),
            (Self::Count | Self::Size | Self::Address, DeValue::Integer(number)) => {
                let number = number.to_string();
                self.parse(number.as_ref())
                    .map_err(|right| format!("{number} is not possible: {right}"))
            }
            (Self::Words, DeValue::Array(array)) => {
                let word = |value: &DeValue<'_>| value.as_str().map(OsString::from);
                let words = array.iter().map(|value| word(value.get_ref()));
                let words = words.collect::<Option<Vec<_>>>();
                let words = words.ok_or("not all of it is text: quote each word")?;
                program(words)
            }
            (Self::Switch | Self::Words, _) => Err(format!("it is {}", found(value))),
            (_, DeValue::String(text)) => self
                .parse(text.as_ref().as_ref())
                .map_err(|right| format!("{text:?} is not possible: {right}")),
            _ => Err(format!("it is {}, and text is needed", found(value))),
        }
    }

    /// How its values are called in a usage.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "N",
            Self::Size => "SIZE",
            Self::Duration => "DURATION",
            Self::Switch => "BOOL",
            Self::Choice(_) => "NAME",
            Self::Folder => "DIR",
            Self::File => "FILE",
            Self::Address => "ADDR",
            Self::Text | Self::Secret => "TEXT",
            Self::Words => "COMMAND",
        }
    }
}

impl Value {
    /// Words, as they are in TOML and in JSON: what is no UTF-8 is replaced.
    fn words(words: &[OsString]) -> impl Iterator<Item = String> {
        words.iter().map(|word| quoted(&word.to_string_lossy()))
    }
}

/// As it is written in a file.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Size(size) => write_size(size.get(), f),
            Self::Duration(duration) => match jiff::SignedDuration::try_from(*duration) {
                Ok(duration) => write!(f, "\"{duration:#}\""),
                Err(_) => write!(f, "\"{}s\"", duration.as_secs()),
            },
            Self::Switch(on) => write!(f, "{on}"),
            Self::Path(path) => f.write_str(&quoted(&path.to_string_lossy())),
            Self::Address(address) => f.write_str(&quoted(&address.to_string())),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Words(words) => {
                let words: Vec<_> = Self::words(words).collect();
                write!(f, "[{}]", words.join(", "))
            }
        }
    }
}

/// In the largest unit that leaves nothing over.
fn write_size(bytes: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units
        .into_iter()
        .find(|(bits, _)| bytes.trailing_zeros() >= *bits);
    match whole {
        Some((bits, unit)) => write!(f, "\"{}{unit}\"", bytes >> bits),
        None if i64::try_from(bytes).is_ok() => write!(f, "{bytes}"),
        // More than TOML has numbers for.
        None => write!(f, "\"{bytes}\""),
    }
}

/// Text as TOML has it.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            letter if letter.is_ascii_control() => {
                // Nothing fails to be written to a string.
                let _ = write!(quoted, "\\u{:04x}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// What a value of a file is, for people.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(on) => format!("{on}"),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

/// Words in the environment: as in a file.
fn words(text: &str) -> Result<Value, String> {
    let example = "write it as in a file, such as [\"./send\", \"--fast\"]";
    let array = DeValue::parse(text).map_err(|_| example.to_owned())?;
    Kind::Words
        .read(array.get_ref())
        .map_err(|error| format!("{error}; {example}"))
}

fn program(words: Vec<OsString>) -> Result<Value, String> {
    if words.first().is_none_or(|program| program.is_empty()) {
        return Err("there is no program in it".to_owned());
    }
    Ok(Value::Words(words))
}

/// A count above zero.
///
/// # Errors
/// What would be right.
pub fn count(text: &str) -> Result<NonZeroU32, String> {
    let number: u32 = text
        .replace('_', "")
        .parse()
        .map_err(|_| format!("a whole number from 1 to {} is needed", u32::MAX))?;
    NonZeroU32::new(number).ok_or_else(|| "it must be at least 1".into())
}

/// A duration above zero, with units: `90s`, `2h`, `1h 30m`, `250ms`.
///
/// # Errors
/// What would be right.
pub fn duration(text: &str) -> Result<Duration, String> {
    let example = "write a number with its unit, such as 90s, 10m, 2h or 250ms";
    let signed: jiff::SignedDuration = text.parse().map_err(|_| example.to_owned())?;
    let duration = Duration::try_from(signed).map_err(|_| "it must not be negative".to_owned())?;
    if duration.is_zero() {
        return Err("it must be above zero".into());
    }
    Ok(duration)
}

/// A number of bytes above zero, with or without a unit: `4096`, `16MiB`, `1GB`.
///
/// # Errors
/// What would be right.
pub fn size(text: &str) -> Result<NonZeroU64, String> {
    let example = "write a number of bytes, such as 4096, 64KiB, 16MiB or 1GB";
    let size: bytesize::ByteSize = text.parse().map_err(|_| example.to_owned())?;
    NonZeroU64::new(size.as_u64()).ok_or_else(|| "it must be above zero".into())
}

/// An address with its port, or a port alone, of this machine.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(([127, 0, 0, 1], port).into());
    }
    text.parse().map_err(|_| {
        "write an address with its port, such as 127.0.0.1:9464 or [::1]:9464, or a port alone"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_this_machine() {
        for (text, want) in [
            ("9464", Some("127.0.0.1:9464")),
            ("0.0.0.0:80", Some("0.0.0.0:80")),
            ("[::1]:9464", Some("[::1]:9464")),
            ("localhost", None),
            ("70000", None),
            (":9464", None),
        ] {
            let address = address(text).ok().map(|address| address.to_string());
            assert_eq!(address.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn durations_and_sizes_are_written_with_units_and_refused_with_an_example() {
        for (text, seconds) in [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("10 min", 600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "90", "soon", "-5s", "0s", "1 parsec"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, bytes) in [
            ("4096", 4096),
            ("64KiB", 65536),
            ("16MiB", 16 << 20),
            ("1kB", 1000),
        ] {
            assert_eq!(size(text).map(NonZeroU64::get), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "many", "5 lightyears"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(count("50_000").map(NonZeroU32::get), Ok(50_000));
        for text in ["", "0", "-1", "4294967296", "1.5"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    /// Two libraries read them, and people paste anything.
    #[test]
    fn any_text_is_a_value_that_is_read_again_or_is_refused() {
        let letters: Vec<char> = "0123456789999 .,-+_:eEsmhdwynuµPTkKMGTPiB\u{2212}٣\0"
            .chars()
            .collect();
        let seed = std::env::var("BATCHYARD_SEED").map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|_| fastrand::u64(..));
        println!("BATCHYARD_SEED={seed}");
        let mut dice = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let length = dice.usize(..24);
            let text: String = (0..length)
                .map(|_| letters[dice.usize(..letters.len())])
                .collect();
            assert_ne!(duration(&text), Ok(Duration::ZERO), "{text:?}");
            for kind in [Kind::Count, Kind::Size, Kind::Duration] {
                let Ok(value) = kind.parse(text.as_ref()) else {
                    continue;
                };
                let written = value.to_string();
                let read = DeValue::parse(&written).unwrap();
                assert_eq!(kind.read(read.get_ref()), Ok(value), "{text:?}");
            }
        }
    }

    #[test]
    fn text_is_quoted_so_that_it_is_read_again() {
        for text in ["", "a b", "\"\\\n\t\r\u{7f}\0", "naïve 🚃", "'''"] {
            let quoted = quoted(text);
            let read = DeValue::parse(&quoted).unwrap();
            assert_eq!(read.get_ref().as_str(), Some(text), "{quoted}");
        }
    }
}
