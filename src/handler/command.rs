//! The handler that starts a command for each batch: JSON Lines in, JSON Lines out.
//!
//! ```text
//!   members ─▶ {"id":…,"attempt":…,"payload":…}\n ─▶ stdin ┐
//!                                                         command
//!   outcomes ◀─ recorded in pages ◀─ spool file ◀─ stdout ┘ └─ stderr ─▶ log, and the tail of errors
//! ```
//! Answers are kept aside until the command has exited with 0, and only then recorded: what a failed
//! command said can't be trusted. How a run ends decides what becomes of the batch:
//!
//! | the command | the batch |
//! |---|---|
//! | exits with 0, every request answered | settled |
//! | exits with 0, some not answered, or some lines that are no answers | the valid answers are recorded; transient |
//! | exits with 75 (`EX_TEMPFAIL`) | outage: no attempt is counted |
//! | can't be started, or exits with 125 | outage |
//! | prints what the disk of its holder has no room for | outage |
//! | exits with anything else, or is killed | transient, nothing recorded |
//! | prints too much | killed; transient, nothing recorded |

mod answers;
mod feed;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod spool;
mod stderr;
mod supervisor;

use std::{
    env,
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use rustix::{
    fs::{Access, access},
    process::{Pid, Signal, kill_process_group},
};
use tokio::process::{Child, Command};

pub use self::supervisor::supervise;
use self::{
    answers::Answers,
    feed::{Fed, Stdin},
    spool::Spool,
    stderr::Tail,
};
use crate::{
    error::{Error, ErrorKind, Result},
    fault::point,
    handler::{Batch, BatchHandler, HandlerError, Report},
};

/// Starts a command for each batch, gives it the requests as lines, and takes its lines as results.
///
/// # The protocol
/// Each request is a line on stdin: `{"id":"…","attempt":1,"payload":…}`. A payload that is not JSON
/// comes as `"payload_text"` if it is UTF-8, else as `"payload_base64"`. The command answers each, in
/// any order, with a line on stdout: `{"id":"…","result":…}`, whose result is kept as it was written, or
/// `{"id":"…","error":"…"}`, which dead-letters the request, or `{"id":"…","error":"…","retry":true}`.
/// The first answer to an id wins. [`plain`](Self::plain) is simpler: payloads in, results out, line by line.
///
/// Environment: `BATCHYARD_BATCH_ID` (the same at every redelivery: the command's idempotency key),
/// `BATCHYARD_ATTEMPT`, `BATCHYARD_QUEUE`. Its stderr goes to the log, at most
/// 200 lines a second, and its last lines into the error if it fails.
///
/// # Ending it
/// The command is a process group of its own. When it has exited, when the batch times out, when the
/// dispatcher shuts down, or when its lease is lost, whatever is left of the group is killed. To have
/// it killed when this process dies, and never started again for a batch while an old copy lives, use
/// [`supervised_by`](Self::supervised_by); without it, a process that is killed with `SIGKILL` leaves its
/// commands behind.
///
/// ```no_run
/// use batchyard::CommandHandler;
/// let handler = CommandHandler::new("jq", ["-c", "{id, result: .payload.name}"]);
/// handler.check()?;
/// # fn is_handler(_: impl batchyard::BatchHandler) {}
/// # is_handler(handler);
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CommandHandler {
    program: OsString,
    args: Vec<OsString>,
    format: LineFormat,
    supervisor: Option<Supervisor>,
    grace: Duration,
    max_output_bytes: Option<u64>,
}

/// How requests and answers are written on lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineFormat {
    Json,
    Plain,
}

#[derive(Clone, Debug)]
struct Supervisor {
    program: PathBuf,
    directory: PathBuf,
}

impl CommandHandler {
    /// Starts `program`, looked up in `PATH` unless it has a slash, with these arguments.
    pub fn new<A>(program: impl Into<OsString>, args: impl IntoIterator<Item = A>) -> Self
    where
        A: Into<OsString>,
    {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            format: LineFormat::Json,
            supervisor: None,
            grace: Duration::from_secs(3),
            max_output_bytes: None,
        }
    }

    /// Payload lines in, result lines out, one to one. A payload with a newline is dead-lettered as
    /// undecodable and the rest goes on. If the command prints another number of lines than it was
    /// given, nothing tells which result belongs to which request, so nothing is recorded.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.format = LineFormat::Plain;
        self
    }

    /// Has `program`, which calls [`supervise`] first thing in its `main`, watch over each command.
    ///
    /// The command is then ended when this process dies, in whatever way, and never runs twice at the
    /// same time for one batch, across restarts too. What that needs, and the answers of commands
    /// that have exited but are not recorded yet, is kept in `directory`: give the same one after a
    /// restart, and one directory per store. A process that the command leaves running on purpose must
    /// leave its process group and close what it inherited, else it counts as part of the command.
    #[must_use]
    pub fn supervised_by(
        mut self,
        program: impl Into<PathBuf>,
        directory: impl Into<PathBuf>,
    ) -> Self {
        self.supervisor = Some(Supervisor {
            program: program.into(),
            directory: directory.into(),
        });
        self
    }

    /// How long the command may take to end after `SIGTERM` before it gets `SIGKILL`. Default: 3 seconds.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The most bytes that the command may print for one batch. Default: 64 MiB, and 64 KiB more for
    /// each request. A single line may have at most 64 MiB in any case.
    #[must_use]
    pub fn max_output_bytes(mut self, most: u64) -> Self {
        self.max_output_bytes = Some(most);
        self
    }

    /// Checks that the program is there and may be executed: while it is not, every batch fails.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound): there is no such program.
    /// [`Invalid`](crate::ErrorKind::Invalid): it may not be executed.
    pub fn check(&self) -> Result<()> {
        let shown = self.program.display();
        if self.program.as_encoded_bytes().contains(&b'/') {
            return check_file(Path::new(&self.program));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let mut refused = None;
        for directory in env::split_paths(&path) {
            match check_file(&directory.join(&self.program)) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Error::not_found(format!(
                "command {shown} is not in PATH; check its name, or give its path"
            ))
        }))
    }

    fn command(&self, batch: &Batch) -> Command {
        let mut command = match &self.supervisor {
            None => Command::new(&self.program),
            Some(supervisor) => {
                let mut command = Command::new(&supervisor.program);
                command.arg0("batchyard").args(supervisor::arguments(
                    &supervisor.directory.join(format!("{}.lock", batch.id())),
                    self.grace,
                    &self.program,
                    &self.args,
                ));
                command
            }
        };
        if self.supervisor.is_none() {
            command.args(&self.args);
        }
        command
            .env("BATCHYARD_BATCH_ID", batch.id().to_string())
            .env("BATCHYARD_ATTEMPT", batch.attempt().to_string())
            .env("BATCHYARD_QUEUE", batch.queue().as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some((traceparent, tracestate)) = batch.trace_context() {
            command.env("TRACEPARENT", traceparent);
            command.env("TRACESTATE", tracestate);
        }
        command
    }

    fn cannot(&self, error: &std::io::Error) -> HandlerError {
        HandlerError::outage(format!(
            "command {} can't be started: {error}",
            self.program.display()
        ))
    }

    fn spawn(&self, batch: &Batch) -> Result<Running, HandlerError> {
        let child = self.command(batch).spawn();
        let child = child.map_err(|error| self.cannot(&error))?;
        Ok(Running {
            child,
            supervised: self.supervisor.is_some(),
        })
    }

    /// Runs the command to its end; its answers if it exited with 0.
    async fn run(&self, batch: &Batch) -> Result<(Fed, Spool), HandlerError> {
        if let Some(supervisor) = &self.supervisor {
            std::fs::create_dir_all(&supervisor.directory).map_err(|error| self.cannot(&error))?;
        }
        // First: what can't be written must not have been worked for.
        let mut spool = Spool::new(self.directory(), batch.id(), batch.unsettled()).await?;
        point("command.reserved");
        // Dropped last: the command is ended before its input seems to be.
        let mut stdin;
        let mut running = self.spawn(batch)?;
        point("command.started");
        let (input, stdout, stderr) = running.pipes();
        stdin = Some(Stdin::new(input, running.supervised));
        let limits = spool::Limits::new(batch, self.format, self.max_output_bytes);
        let mut tail = Tail::default();
        let mut fed = Fed::default();
        let pumps = async {
            tokio::try_join!(
                fed.feed(batch, self.format, &mut stdin),
                spool.fill(stdout, &limits),
                tail.follow(stderr, batch.id()),
            )
        };
        let status = tokio::select! {
            status = running.ended(pumps) => status,
            () = batch.stopped() => Err(HandlerError::transient("stopped")),
        };
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                running.end(self.grace).await;
                return Err(error);
            }
        };
        verdict(status, &tail)?;
        point("command.ended");
        Ok((fed, spool))
    }

    fn directory(&self) -> Option<PathBuf> {
        let supervisor = self.supervisor.as_ref()?;
        Some(supervisor.directory.clone())
    }

    /// Where the answers of a command that has exited wait for being recorded.
    fn kept_answers(&self, batch: &Batch) -> Option<PathBuf> {
        Some(self.directory()?.join(format!("{}.answers", batch.id())))
    }
}

#[async_trait]
impl BatchHandler for CommandHandler {
    async fn handle(&self, batch: Batch) -> Result<Report, HandlerError> {
        if batch.unsettled() == 0 {
            return Ok(Report::recorded());
        }
        let kept = self.kept_answers(&batch);
        let answers = match &kept {
            // The command has done its work for this batch, and its holder died while recording.
            Some(path) if path.exists() => {
                Answers::open(path, Fed::before(&batch, self.format).await?).await?
            }
            _ => {
                let (fed, spool) = self.run(&batch).await?;
                spool.keep(kept.as_deref(), fed).await?
            }
        };
        point("command.kept");
        // If recording itself fails, the answers stay for the next holder.
        let complaint = answers.record(&batch, self.format).await?;
        point("command.recorded");
        if let Some(path) = &kept {
            match tokio::fs::remove_file(path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        match complaint {
            Some(complaint) => Err(HandlerError::transient(complaint)),
            None => Ok(Report::recorded()),
        }
    }
}

/// A command, or its supervisor, that has not been waited for.
struct Running {
    child: Child,
    supervised: bool,
}

type Pipes = (
    tokio::process::ChildStdin,
    tokio::process::ChildStdout,
    tokio::process::ChildStderr,
);

impl Running {
    fn pipes(&mut self) -> Pipes {
        let child = &mut self.child;
        (
            child.stdin.take().expect("it was spawned with a pipe"),
            child.stdout.take().expect("it was spawned with a pipe"),
            child.stderr.take().expect("it was spawned with a pipe"),
        )
    }

    /// Waits until the pipes have been pumped dry and the process has exited.
    async fn ended<T>(
        &mut self,
        pumps: impl Future<Output = Result<T, HandlerError>>,
    ) -> Result<ExitStatus, HandlerError> {
        tokio::pin!(pumps);
        tokio::select! {
            pumped = &mut pumps => {
                pumped?;
                Ok(self.wait().await?)
            }
            status = self.wait() => {
                let status = status?;
                match tokio::time::timeout(DRAIN_TIMEOUT, pumps).await {
                    Ok(pumped) => pumped.map(|_| status),
                    Err(_) => Err(HandlerError::transient(
                        "the command has exited, but a process that it left behind keeps its output open",
                    )),
                }
            }
        }
    }

    /// Waits for the process, and kills what it leaves behind. Cancel safe.
    async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let group = self.child.id();
        let status = self.child.wait().await;
        if !self.supervised {
            signal_group(group, Signal::KILL);
        }
        status
    }

    /// Ends the process group, politely first. A supervisor does it on its own, as its stderr is
    /// closed by now; it is only waited for.
    async fn end(&mut self, grace: Duration) {
        if self.supervised {
            let _ = tokio::time::timeout(grace + DRAIN_TIMEOUT, self.wait()).await;
            return;
        }
        signal_group(self.child.id(), Signal::TERM);
        if tokio::time::timeout(grace, self.wait()).await.is_err() {
            signal_group(self.child.id(), Signal::KILL);
            let _ = self.wait().await;
        }
    }
}

impl Drop for Running {
    /// The future of the handler was dropped: nothing may block here.
    fn drop(&mut self) {
        if !self.supervised {
            signal_group(self.child.id(), Signal::KILL);
        }
    }
}

/// Sends a signal to the group led by this process; `None`: it was reaped before.
fn signal_group(leader: Option<u32>, signal: Signal) {
    let leader = leader.and_then(|id| i32::try_from(id).ok());
    if let Some(group) = leader.and_then(Pid::from_raw) {
        // It may have ended meanwhile, which is what was wanted.
        let _ = kill_process_group(group, signal);
    }
}

/// What the way the command ended says about its batch.
fn verdict(status: ExitStatus, tail: &Tail) -> Result<(), HandlerError> {
    let code = status.code();
    if status.success() {
        return Ok(());
    }
    let signal = status
        .signal()
        .or_else(|| code.filter(|code| *code > 128).map(|code| code - 128));
    let what = match (code, signal) {
        (Some(125), _) => format!("the command could not be started{tail}"),
        (_, Some(signal)) => format!("the command was killed by signal {signal}{tail}"),
        (Some(code), None) => format!("the command exited with {code}{tail}"),
        (None, None) => format!("the command failed{tail}"),
    };
    let outage = matches!(code, Some(code) if [TEMPORARY_FAILURE, i32::from(supervisor::CANNOT_START)].contains(&code));
    Err(if outage {
        HandlerError::outage(what)
    } else {
        HandlerError::transient(what)
    })
}

fn check_file(path: &Path) -> Result<()> {
    let shown = path.display();
    match path.metadata() {
        Err(_) => Err(Error::not_found(format!("command {shown} does not exist"))),
        Ok(data) if !data.is_file() => {
            Err(Error::invalid(format!("command {shown} is not a file")))
        }
        Ok(_) => access(path, Access::EXEC_OK).map_err(|_| {
            Error::invalid(format!(
                "command {shown} may not be executed; make it executable with chmod +x"
            ))
        }),
    }
}

/// `EX_TEMPFAIL` of `sysexits.h`: try again later.
const TEMPORARY_FAILURE: i32 = 75;
/// How long output may stay open once the command has exited.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
