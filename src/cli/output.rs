//! Data on stdout, talk on stderr, and a progress bar that both leave intact.

use std::{
    cell::Cell,
    fmt,
    io::{self, IsTerminal, Write},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use batchyard::configuration::{Settings, Value};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

/// The bar on the terminal, if there is one just now.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// What is in the log by default: warnings, and what commands write to their stderr.
pub(super) const LOG: &str = "warn,batchyard::command=info";

/// What stderr is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// JSON Lines, with the time, for programs
    Json,
}

impl LogFormat {
    /// As the settings have it.
    pub(super) fn of(settings: &Settings) -> Self {
        match settings.found("log_format").map(|found| found.value) {
            Some(Value::Text(name)) if name == "json" => Self::Json,
            _ => Self::Text,
        }
    }
}

/// As it was chosen; text until it was.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Sends the log to stderr. `RUST_LOG` says what is in it, or else `default`.
pub(super) fn init_log(default: &str, format: LogFormat) {
    let _ = FORMAT.set(format);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Stderr);
    // Only fails if a log was set up before, which nobody did.
    let _ = match format {
        LogFormat::Text => log
            .with_ansi(colours)
            .with_target(false)
            .without_time()
            .try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// Says a line on stderr.
pub(crate) fn say(line: &str) {
    tell("INFO", line, line);
}

/// Says on stderr what went wrong.
pub(super) fn say_error(line: &str) {
    tell("ERROR", line, &format!("error: {line}"));
}

fn tell(level: &str, line: &str, text: &str) {
    // With stderr gone there is nobody to tell.
    let _ = match FORMAT.get() {
        Some(LogFormat::Json) => {
            let fields = serde_json::json!({
                "timestamp": batchyard::now(),
                "level": level,
                "fields": { "message": line },
                "target": "batchyard",
            });
            writeln!(Stderr, "{fields}")
        }
        _ => writeln!(Stderr, "{text}"),
    };
}

/// Prints data as one line of JSON on stdout, at once.
///
/// # Errors
/// If it can't be written.
pub(crate) fn print_json<T: Serialize>(data: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(data)?;
    line.push(b'\n');
    print(&line)
}

/// Prints data on stdout, at once.
///
/// # Errors
/// If it can't be written.
pub(crate) fn print(data: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data)?;
    stdout.flush()
}

/// Whether stdout is a pipe that nobody will read from any more, which else shows only when more is printed.
pub(crate) fn is_unread() -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().contains(PollFlags::ERR)
}

/// Stderr, which never cuts through the progress bar.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().lock().write(bytes);
        let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner);
        match &*bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A progress bar on stderr while it lives; nothing if that is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn start(style: &str) -> Self {
        let bar = if io::stderr().is_terminal() {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
        *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self(bar)
    }

    fn set(&self, done: u64, of: u64, more: impl fmt::Display) {
        self.0.set_length(of);
        self.0.set_message(more.to_string());
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        *BAR.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.finish_and_clear();
    }
}

/// Progress in requests.
pub(crate) struct Progress(Bar);

impl Progress {
    /// A bar that counts requests.
    pub(crate) fn start() -> Self {
        Self(Bar::start(
            "{bar:30} {human_pos} of {human_len} settled, {per_sec}{msg}",
        ))
    }

    /// Shows where things are.
    pub(crate) fn set(&self, settled: u64, of: u64, more: impl fmt::Display) {
        self.0.set(settled, of, more);
    }
}

/// Progress of what may take hours: without a terminal a line now and then.
pub(crate) struct Steps {
    bar: Bar,
    said: Cell<Instant>,
}

impl Steps {
    /// A bar that counts measurements.
    pub(crate) fn start() -> Self {
        Self::styled("{bar:30} {pos} of {len}, {elapsed} so far, {eta} to go: {msg}")
    }

    /// A bar that counts seconds.
    pub(crate) fn of_time() -> Self {
        Self::styled("{bar:30} {elapsed}, {eta} to go: {msg}")
    }

    /// A bar that counts bytes or entries.
    pub(crate) fn of_verifying() -> Self {
        Self::styled("{bar:30} {elapsed} so far: {msg}")
    }

    /// A bar that counts dead letters that were brought back.
    pub(crate) fn of_redriving() -> Self {
        Self::styled("{bar:30} {human_pos} of {human_len} redriven, {elapsed} so far{msg}")
    }

    fn styled(style: &str) -> Self {
        Self {
            bar: Bar::start(style),
            said: Cell::new(Instant::now()),
        }
    }

    /// Shows what is next; as this line, without a terminal.
    pub(crate) fn set(&self, done: u64, of: u64, next: impl fmt::Display, line: impl fmt::Display) {
        if self.bar.0.is_hidden() && self.said.get().elapsed() >= A_LINE_EVERY {
            self.said.set(Instant::now());
            say(&line.to_string());
        }
        self.bar.set(done, of, next);
    }
}

const A_LINE_EVERY: Duration = Duration::from_secs(30);
