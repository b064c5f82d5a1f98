//! From the settings to the handler that works on batches.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use batchyard::{
    BatchHandler, CommandHandler,
    configuration::{Settings, Value},
};

use super::exit::{Exit, Failure};

/// What works on the batches.
#[derive(Clone, Debug)]
pub(crate) enum Handling {
    /// A command that is started for each batch.
    Command(Command),
    /// Another one, named `KIND:WHERE`.
    Named(String),
}

/// A command, and how it is spoken to.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// The program and its arguments.
    words: Vec<OsString>,
    plain: bool,
    max_output_bytes: Option<u64>,
}

impl Handling {
    /// What the settings name.
    ///
    /// # Errors
    /// If they name nothing.
    pub(crate) fn of(settings: &Settings) -> Result<Self, Failure> {
        let value = |key| settings.found(key).map(|found| found.value);
        if let Some(Value::Text(handler)) = value("handler") {
            return Ok(Self::Named(handler));
        }
        let Some(Value::Words(words)) = value("command") else {
            let text = "nothing to give the batches to: put a COMMAND after --, give --handler http:URL, or set command in the \
configuration file";
            return Err(Failure::new(Exit::Usage, text));
        };
        let max_output_bytes = match value("max_output_bytes") {
            Some(Value::Size(most)) => Some(most.get()),
            _ => None,
        };
        Ok(Self::Command(Command {
            words,
            plain: value("plain") == Some(Value::Switch(true)),
            max_output_bytes,
        }))
    }

    /// The handler; found to be missing here rather than by the first batch. Its commands keep their locks and answers
    /// in `commands`.
    ///
    /// # Errors
    /// If there is no such handler or command.
    pub(crate) fn handler(&self, commands: &Path) -> Result<Arc<dyn BatchHandler>, Failure> {
        match self {
            Self::Named(handler) => named_handler(handler),
            Self::Command(command) => {
                let handler = command.handler()?;
                Ok(Arc::new(handler.supervised_by(own_program()?, commands)))
            }
        }
    }

    /// Checks what [`handler`](Self::handler) would, before anything is opened.
    ///
    /// # Errors
    /// As [`handler`](Self::handler).
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Named(handler) => named_handler(handler).map(drop),
            Self::Command(command) => Ok(command.handler()?.check()?),
        }
    }

    /// Whether a command gets and prints lines one to one.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Command(command) if command.plain)
    }

    /// The words that say what it is.
    pub(crate) fn words(&self) -> Vec<&[u8]> {
        match self {
            Self::Named(handler) => vec![handler.as_bytes()],
            Self::Command(command) => {
                let words = command.words.iter();
                words.map(|word| word.as_encoded_bytes()).collect()
            }
        }
    }
}

impl Command {
    fn handler(&self) -> Result<CommandHandler, Failure> {
        let Some((program, args)) = self.words.split_first() else {
            return Err(Failure::new(Exit::Usage, "the command has no program"));
        };
        let mut handler = CommandHandler::new(program, args);
        if self.plain {
            handler = handler.plain();
        }
        if let Some(most) = self.max_output_bytes {
            handler = handler.max_output_bytes(most);
        }
        Ok(handler)
    }
}

fn named_handler(handler: &str) -> Result<Arc<dyn BatchHandler>, Failure> {
    #[cfg(feature = "http")]
    if let Some(url) = url_of(handler) {
        let handler = batchyard::HttpHandler::builder(url).build()?;
        return Ok(Arc::new(handler));
    }
    let text = if cfg!(feature = "http") || !handler.starts_with("http") {
        format!("no handler {handler:?} is known; write http:URL, or put a command after --")
    } else {
        "this batchyard was built without HTTP; build it with the feature http, or put a command after --".into()
    };
    Err(Failure::new(Exit::Usage, text))
}

/// The URL in `http:URL`; a URL alone can mean nothing else.
#[cfg(feature = "http")]
fn url_of(handler: &str) -> Option<&str> {
    let alone = handler.starts_with("http://") || handler.starts_with("https://");
    if alone {
        Some(handler)
    } else {
        handler.strip_prefix("http:")
    }
}

/// How this program starts itself again.
///
/// # Errors
/// If it can't tell where it is.
pub(crate) fn own_program() -> Result<PathBuf, Failure> {
    // Stays this very program, even if its file is replaced while it runs.
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe().map_err(|error| Failure::io("this program", &error))
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_named_with_or_without_its_prefix() {
        for (handler, url) in [
            ("http:https://a.example/b", Some("https://a.example/b")),
            ("http:http://a.example/b", Some("http://a.example/b")),
            ("http://a.example/b", Some("http://a.example/b")),
            ("https://a.example/b", Some("https://a.example/b")),
            ("command", None),
        ] {
            assert_eq!(url_of(handler), url, "{handler}");
        }
    }
}
