//! Exit codes, and errors that know theirs.

use std::{error::Error as _, fmt, io, path::Path, process::ExitCode};

use batchyard::{Error, ErrorKind, QueueName};

use super::output;

/// How a verb ended; its number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All of it was done.
    Ok = 0,
    /// It failed.
    Failure = 1,
    /// It was asked for something that can never work.
    Usage = 2,
    /// There is no such thing.
    NotFound = 3,
    /// The store is in use, or the input is another one than before.
    Conflict = 4,
    /// It was done, but not for every request.
    Partial = 5,
    /// It was not done in the time that it was given.
    Timeout = 6,
    /// A server answered with an error, or not at all.
    Remote = 7,
    /// The store is damaged.
    Damaged = 8,
    /// SIGHUP.
    HungUp = 129,
    /// SIGINT.
    Interrupted = 130,
    /// SIGTERM.
    Terminated = 143,
}

/// The table of exit codes, for the help.
pub(crate) const HELP: &str = "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 conflict (store in \
use, changed input), 5 partial success, 6 timeout, 7 remote error, 8 store damaged, 129 hung up, 130 interrupted, \
143 terminated.";

/// An error on its way out of the program.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    /// An error with this exit code; the text in lower case, without a full stop.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }

    /// An error of the file system, about this path.
    pub(crate) fn io(path: impl fmt::Display, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failure,
        };
        Self::new(exit, format!("{path}: {error}"))
    }

    /// An input that can't be opened.
    pub(crate) fn input(path: &Path, error: &io::Error) -> Self {
        let text = format!("the input {}", path.display());
        let mut failure = Self::io(text, error);
        failure
            .text
            .push_str("; name a file that can be read, or - for stdin");
        failure
    }

    /// How it ends the program.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// As an error of the library, which ends the program in the same way.
    pub(crate) fn into_error(self) -> Error {
        let kind = match self.exit {
            Exit::Usage => ErrorKind::Invalid,
            Exit::NotFound => ErrorKind::NotFound,
            Exit::Conflict => ErrorKind::Locked,
            Exit::Remote => ErrorKind::Unavailable,
            Exit::Damaged => ErrorKind::Corrupt,
            _ => ErrorKind::Internal,
        };
        Error::new(kind, self.text)
    }

    /// With the queue that it is about.
    pub(crate) fn about(mut self, queue: &QueueName) -> Self {
        self.text = format!("queue {queue:?}: {}", self.text);
        self
    }

    /// With the place that it is about.
    #[cfg(feature = "redis")]
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.text = format!("{place}: {}", self.text);
        self
    }

    /// With what else helps if the store is in use.
    pub(crate) fn or_share(mut self) -> Self {
        if self.exit == Exit::Conflict {
            let hint = "; several processes can share a store on Redis: set BATCHYARD_REDIS_URL";
            self.text.push_str(hint);
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Invalid => Exit::Usage,
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Locked => Exit::Conflict,
            ErrorKind::Unavailable => Exit::Remote,
            ErrorKind::Corrupt => Exit::Damaged,
            _ => Exit::Failure,
        };
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let why = error.to_string();
            // Some errors of libraries say in their text what their cause says again.
            if !text.contains(&why) {
                text = format!("{text}: {why}");
            }
            cause = error.source();
        }
        if error.kind() == ErrorKind::Internal {
            text.push_str("; this is a bug in batchyard: please report it");
        }
        Self { exit, text }
    }
}

/// Writing to stdout failed. Whoever read it has enough: that is no failure of what only shows something.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Ok, ""),
            _ => Self::new(Exit::Failure, format!("stdout: {error}")),
        }
    }
}

impl Failure {
    /// Writing to stdout failed, and so what changes the store ended before its end: whoever reads that there is no
    /// more must not take it for all. `so_far` says what was done.
    pub(crate) fn unprinted(error: io::Error, so_far: impl fmt::Display) -> Self {
        let why = match error.kind() {
            io::ErrorKind::BrokenPipe => "nobody reads stdout any more".to_owned(),
            _ => Self::from(error).text,
        };
        Self::new(Exit::Failure, format!("{why}: {so_far}"))
    }
}

/// That the folder is not there in which something is to be made, if it is not.
pub(crate) fn no_folder(path: &Path) -> Option<Failure> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""))?;
    (!folder.exists()).then(|| {
        let text = format!(
            "the folder {} does not exist; make it first",
            folder.display()
        );
        Failure::new(Exit::NotFound, text)
    })
}

/// Tells what went wrong, if anything did, and gives the exit code.
pub(super) fn report(result: Result<Exit, Failure>) -> ExitCode {
    let exit = result.unwrap_or_else(|failure| {
        if failure.exit != Exit::Ok {
            output::say_error(&failure.text);
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// Prints what clap has to say: help and version are no errors.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // If there is nobody to tell, the exit code still does.
    let _ = error.print();
    let exit = if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Ok
    };
    ExitCode::from(exit as u8)
}
