//! The process between us and a command, which outlives us by as long as it takes to end the command.
//!
//! ```text
//!   holder ─ spawns ──▶ supervisor ─ spawns ──▶ command ──▶ its children
//!     ├─ frames ──▶ stdin ─┤ own process group   └── one process group ──┘
//!     └◀─ stderr ──────────┘ watches the pipe, holds the lock
//! ```
//! A holder that is killed with `SIGKILL` can clean up nothing, so somebody else must. The supervisor is a
//! process group of its own, so whatever kills the holder's group leaves it alone. It watches the
//! pipe that is its stderr: once nobody reads from it (the holder died, or let go of the batch), it
//! ends the command's process group, with `SIGTERM` first and `SIGKILL` after a grace.
//!
//! **No truncated input.** If the command's stdin closed with its holder, the command would take half of a
//! batch for the whole of it. So requests come in frames, a length and as many bytes, and only the
//! empty frame closes the command's stdin; if the frames end without it, the command is ended first.
//!
//! **No two copies.** Before it starts the command, the supervisor takes an exclusive lock on a file
//! named after the batch, and the command and its children inherit the open file. So the lock is free
//! only when the last of them is gone, whoever was killed in which order. The next supervisor of the
//! same batch waits for it; if the old supervisor was killed as well, and so nobody ends its command,
//! the new one does, by the process group that is written in the file.
//!
//! **If the supervisor alone is killed**, Linux kills the command: it starts as this same program, which
//! asks the kernel for that and then becomes the command. (Its children, if any, keep the lock.)
//!
//! Both roles are this program started again with a first argument that no user types, because
//! asking the kernel for anything between `fork` and `exec` would need unsafe code.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::{
        fs::MetadataExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{FdFlags, fcntl_setfd},
    process::{
        Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid,
    },
};

use crate::error::is_full;

/// The exit code that says "the command could not be started", as `env`, `timeout` and `docker` use it.
pub(super) const CANNOT_START: u8 = 125;

/// Does what a supervisor does if this process was started as one; `None` if it was not.
///
/// Call it first thing in the `main` of a program that names itself in
/// [`CommandHandler::supervised_by`](crate::CommandHandler::supervised_by):
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     if let Some(code) = batchyard::supervise(std::env::args_os()) {
///         return code;
///     }
///     // … the program itself …
/// #   std::process::ExitCode::SUCCESS
/// }
/// ```
pub fn supervise(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let role = args.next()?;
    let result = if role == SUPERVISE {
        Plan::parse(args).and_then(|plan| plan.run())
    } else if role == BECOME {
        Err(become_command(args))
    } else {
        return None;
    };
    Some(match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody may read this any more; then there is nobody to tell.
            let _ = writeln!(io::stderr(), "batchyard: {error}");
            ExitCode::from(CANNOT_START)
        }
    })
}

/// The arguments that make `program` the supervisor of a command.
pub(super) fn arguments<'a>(
    lock: &'a Path,
    grace: Duration,
    program: &'a OsStr,
    args: &'a [OsString],
) -> impl Iterator<Item = OsString> + 'a {
    let own = [
        SUPERVISE.into(),
        grace.as_millis().to_string().into(),
        lock.as_os_str().to_owned(),
        program.to_owned(),
    ];
    own.into_iter().chain(args.iter().cloned())
}

/// What a supervisor was started to do.
struct Plan {
    grace: Duration,
    lock: PathBuf,
    command: Vec<OsString>,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = OsString>) -> io::Result<Self> {
        let grace = args.next().and_then(|grace| grace.to_str()?.parse().ok());
        match (grace, args.next()) {
            (Some(grace), Some(lock)) => Ok(Self {
                grace: Duration::from_millis(grace),
                lock: lock.into(),
                command: args.collect(),
            }),
            _ => Err(io::Error::other("not to be started by hand")),
        }
    }

    fn run(&self) -> io::Result<u8> {
        let Some(lock) = self.wait_for_lock()? else {
            return Ok(CANNOT_START);
        };
        let mut command = Command::new(own_program()?);
        command
            .arg0("batchyard")
            .arg(BECOME)
            .arg(std::process::id().to_string())
            .args(&self.command)
            .stdin(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        let id = pid(child.id())?;
        match write_group(&lock, id) {
            // On a full disk batches go on: if this process is killed, who comes next waits for the command to end.
            Err(error) if !is_full(&error) => return Err(error),
            _ => {}
        }
        let group = Arc::new(Group {
            id,
            alive: Mutex::new(true),
            grace: self.grace,
        });
        let (watched, fed) = (Arc::clone(&group), Arc::clone(&group));
        // If polling fails there is nobody to tell; ending the command is the safe side.
        std::thread::spawn(move || {
            while matches!(is_abandoned(PARENT_POLL), Ok(false)) {}
            watched.end();
        });
        if let Some(stdin) = child.stdin.take() {
            std::thread::spawn(move || pass_frames(stdin, &fed));
        }
        wait_without_reaping(id)?;
        let status = group.reap(&mut child)?;
        release(lock, &self.lock);
        Ok(exit_code(status))
    }

    /// Takes the lock; `None` if the holder let go meanwhile.
    ///
    /// The old supervisor needs up to its grace to end the old command. If the lock is still taken
    /// after that, it is gone, and its command is ended from here.
    fn wait_for_lock(&self) -> io::Result<Option<File>> {
        let patience = u64::try_from((self.grace + LOCK_SLACK).as_millis()).unwrap_or(u64::MAX);
        let mut waited = 0;
        loop {
            let mut file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(&self.lock)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &self.lock)? => {
                    file.set_len(0)?;
                    fcntl_setfd(&file, FdFlags::empty())?;
                    return Ok(Some(file));
                }
                // Its last owner removed it between our opening and locking it.
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if waited >= patience
                && let Some(group) = read_group(&mut file)
            {
                let _ = kill_process_group(group, Signal::KILL);
            }
            if waited >= patience * 2 {
                return Err(io::Error::other(
                    "an earlier copy of the command for this batch still runs and can't be ended",
                ));
            }
            if is_abandoned(LOCK_POLL)? {
                return Ok(None);
            }
            waited += u64::try_from(LOCK_POLL.as_millis()).unwrap_or(u64::MAX);
        }
    }
}

/// The command's process group. It is ours to signal until its leader is reaped: until then the kernel
/// gives its number to nobody else.
struct Group {
    id: Pid,
    alive: Mutex<bool>,
    grace: Duration,
}

impl Group {
    /// Ends it, politely first.
    fn end(&self) {
        self.signal(Signal::TERM);
        std::thread::sleep(self.grace);
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if *alive {
            // It may have ended meanwhile, which is what was wanted.
            let _ = kill_process_group(self.id, signal);
        }
    }

    /// Takes the exit status of the leader, after killing what it has left behind.
    fn reap(&self, leader: &mut Child) -> io::Result<ExitStatus> {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = kill_process_group(self.id, Signal::KILL);
        *alive = false;
        leader.wait()
    }
}

/// Passes the bytes of our frames on, and closes `stdin` after the empty one. A command that reads no
/// further is free to do so.
fn pass_frames(stdin: ChildStdin, group: &Group) {
    let mut stdin = Some(stdin);
    let mut frames = io::stdin().lock();
    let mut length = [0; 4];
    while frames.read_exact(&mut length).is_ok() {
        let length = u64::from(u32::from_le_bytes(length));
        if length == 0 {
            return;
        }
        let mut frame = (&mut frames).take(length);
        let passed = match &mut stdin {
            Some(stdin) => io::copy(&mut frame, stdin),
            None => Ok(0),
        };
        if passed.is_err() {
            stdin = None;
        }
        let left = frame.limit();
        if left > 0 && io::copy(&mut (&mut frames).take(left), &mut io::sink()).ok() != Some(left) {
            break;
        }
    }
    // The holder is gone. The end of its input is not the end of the batch: `stdin` stays open.
    group.end();
}

/// Becomes the command, after asking the kernel to kill it should its supervisor die.
fn become_command(mut args: impl Iterator<Item = OsString>) -> io::Error {
    let supervisor: Option<u32> = args.next().and_then(|id| id.to_str()?.parse().ok());
    let (Some(supervisor), Some(program)) = (supervisor, args.next()) else {
        return io::Error::other("not to be started by hand");
    };
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // The request only counts deaths from now on.
    if std::os::unix::process::parent_id() != supervisor {
        return io::Error::other("the supervisor died before the command started");
    }
    let error = Command::new(&program).args(args).exec();
    io::Error::new(
        error.kind(),
        format!("{} can't be started: {error}", program.display()),
    )
}

/// Whether nobody reads our stderr any more; waits up to `timeout` for it.
fn is_abandoned(timeout: Duration) -> io::Result<bool> {
    let stderr = io::stderr();
    let timeout = Timespec::try_from(timeout).ok();
    let mut pipes = [PollFd::new(&stderr, PollFlags::empty())];
    match poll(&mut pipes, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the leader of the group has exited, and leaves its number taken.
fn wait_without_reaping(leader: Pid) -> io::Result<()> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(leader), options) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lets go of the lock, waits until the killed processes have done so too, and removes its file. A child
/// that left the process group may keep it; then the file stays, and the next copy waits for it.
fn release(lock: File, path: &Path) {
    drop(lock);
    let Ok(again) = File::open(path) else { return };
    let polls = LOCK_SLACK.as_millis() / LOCK_POLL.as_millis();
    for _ in 0..polls {
        if again.try_lock().is_ok() {
            if is_at(&again, path).unwrap_or(false) {
                // A file that stays is only clutter.
                let _ = fs::remove_file(path);
            }
            return;
        }
        std::thread::sleep(LOCK_POLL);
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let (open, named) = (file.metadata()?, fs::metadata(path));
    Ok(named.is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
}

fn write_group(mut lock: &File, group: Pid) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", group.as_raw_nonzero())
}

fn read_group(lock: &mut File) -> Option<Pid> {
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    let group = Pid::from_raw(text.trim().parse().ok()?)?;
    test_kill_process_group(group).is_ok().then_some(group)
}

fn pid(id: u32) -> io::Result<Pid> {
    i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("the system gave a process an impossible number"))
}

/// This very program, even if its file was replaced or removed since it started.
fn own_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe()
}

/// As shells tell it: its exit code, or 128 and the signal that ended it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

const SUPERVISE: &str = "__supervise";
const BECOME: &str = "__become";
/// How long the old command's processes may take to vanish once they were killed.
const LOCK_SLACK: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(10);
/// The pipe tells at once; looking again now and then guards against a `poll` that does not.
const PARENT_POLL: Duration = Duration::from_secs(1);
