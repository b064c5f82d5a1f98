//! Whose turn it is to have a store open: one process has it and serves the others, or is about to.
//!
//! The turn is a lock of the store's folder itself, so it leaves no file behind and ends with its process. Who has it opens
//! the store, or does so soon, and serves it: the others wait for that, for however long opening takes. A process that has
//! the store open without a turn, such as a program of another kind, is asked at its socket, and waited for for a moment only.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use batchyard::{ControlStore, ErrorKind, QueueOptions, Store};
use tokio::time::{Instant, sleep};

use super::{Backend, Exit, Failure, NewAs, say};

/// The turn of this process. The system may know no such locks; then it is everybody's.
#[derive(Debug)]
pub(crate) struct Turn {
    folder: Option<File>,
}

impl Turn {
    /// `None`: it is another process's.
    pub(crate) fn take(folder: &Path) -> Option<Self> {
        let Ok(file) = File::open(folder) else {
            return Some(Self { folder: None });
        };
        let locked = match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Error(_)) => None,
        };
        Some(Self { folder: locked })
    }

    /// Whether it is this process's alone.
    pub(crate) fn is_locked(&self) -> bool {
        self.folder.is_some()
    }
}

/// A store in a folder, and how it is opened.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) new: NewAs,
    pub(super) queues: QueueOptions,
}

/// A store that this process has open.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Store>,
    pub(super) turn: Turn,
}

/// A store that this process may use.
pub(super) enum Found {
    Own(Opened),
    Served(Arc<ControlStore>),
}

impl Place {
    /// Opens the store, made if it is missing, or finds who serves it.
    pub(super) async fn find(&self) -> Result<Found, Failure> {
        let mut waited = Waited::default();
        Backend::at(&self.folder, self.new)?;
        // A folder that is there can be locked. Whether one can be made, opening tells.
        let _ = fs::create_dir_all(&self.folder);
        loop {
            let turn = Turn::take(&self.folder);
            let mut locked = None;
            if let Some(turn) = turn {
                match self.open(turn).await {
                    Err(failure) if failure.exit() == Exit::Conflict => locked = Some(failure),
                    opened => return opened.map(Found::Own),
                }
            }
            match ControlStore::connect(&self.folder).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                owner => return Ok(Found::Served(Arc::new(owner?))),
            }
            waited.for_a_moment(&self.folder, locked).await?;
        }
    }

    /// Opens the store for as long as this process wants it: a verb that has it open lets go of it, as soon as it can.
    pub(super) async fn own(&self) -> Result<Opened, Failure> {
        let mut told = None;
        loop {
            let owner = match self.find().await? {
                Found::Own(opened) => return Ok(opened),
                Found::Served(owner) => owner,
            };
            let pid = owner.pid();
            let asked = owner.hand_over();
            let mut asked = std::pin::pin!(asked);
            let lets_go = tokio::select! {
                lets_go = &mut asked => lets_go?,
                () = sleep(TELL) => {
                    if told.replace(pid) != Some(pid) {
                        say(&format!(
                            "waiting for the process with pid {pid}, which has {} open until it is done with it",
                            self.folder.display()
                        ));
                    }
                    asked.await?
                }
            };
            if !lets_go {
                return Err(self.stays(pid));
            }
        }
    }

    async fn open(&self, turn: Turn) -> Result<Opened, Failure> {
        let backend = Backend::at(&self.folder, self.new)?;
        let store = backend.open(&self.folder, self.queues).await?;
        Ok(Opened { store, turn })
    }

    fn stays(&self, pid: u32) -> Failure {
        let text = format!(
            "{} is open in the process with pid {pid}, a dispatcher or a run, and a store has one of them; stop it, let it serve \
several queues (--prefix), or use another store",
            self.folder.display()
        );
        Failure::new(Exit::Conflict, text)
    }
}

/// For how long a store was waited for.
#[derive(Default)]
pub(crate) struct Waited {
    since: Option<Instant>,
    /// Since when it is open without a turn, and not served.
    closed_since: Option<Instant>,
    told: bool,
}

impl Waited {
    /// Waits, as long as somebody is about to serve the store.
    ///
    /// # Errors
    /// `locked`, if somebody else has had it open for too long.
    pub(crate) async fn for_a_moment(
        &mut self,
        folder: &Path,
        locked: Option<Failure>,
    ) -> Result<(), Failure> {
        let since = *self.since.get_or_insert_with(Instant::now);
        match locked {
            None => self.closed_since = None,
            Some(failure) => {
                // It may have begun or ended a moment ago.
                let since = *self.closed_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= PATIENCE {
                    return Err(failure);
                }
            }
        }
        if since.elapsed() >= TELL && !std::mem::replace(&mut self.told, true) {
            say(&format!(
                "waiting for the process that opens {}, or closes it",
                folder.display()
            ));
        }
        sleep(POLL).await;
        Ok(())
    }
}

/// For how long a store is waited for that somebody has open who does not serve it.
const PATIENCE: Duration = Duration::from_secs(2);
const TELL: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
