//! The folder of an embedded store: whose it is, who has it open, and which version it has.
//!
//! ```text
//! STORE/FORMAT   what this is, in which version, and fields of the backend's own
//! STORE/LOCK     locked by the process that has it open, with its pid
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::error::{Error, Result, is_full};

const FORMAT: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
const LOCK: &str = "LOCK";
/// For how long an opener waits for this very process to let go of the store.
const OWN_LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// What a backend's stores say of themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// The first line of FORMAT.
    pub(crate) magic: &'static str,
    pub(crate) version: u32,
}

/// A folder that is a store or may become one, locked.
#[derive(Debug)]
pub(crate) struct StoreFolder {
    path: PathBuf,
    kind: Kind,
    /// The fields of FORMAT; none before it is written.
    pub(crate) fields: Option<BTreeMap<String, String>>,
    /// A folder that is locked as well: nobody removes that to get around a lock. Let go of first, so that who has the
    /// lock finds this one free.
    folder_lock: Option<File>,
    _lock: File,
}

impl StoreFolder {
    /// Locks a folder, made if it is missing, that holds a store of this kind, or nothing.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self> {
        inspect(path, kind)?;
        fs::create_dir_all(path).map_err(|error| unusable(path, "can't be made", error))?;
        let lock = lock(path)?;
        let fields = read_format(path, kind)?;
        Ok(Self {
            path: path.to_owned(),
            kind,
            fields,
            folder_lock: None,
            _lock: lock,
        })
    }

    /// Locks a folder of the store as well, which nobody takes for a stale lock and removes. Where folders can't be
    /// locked, as on some network file systems, the lock has to do.
    pub(crate) fn lock_too(&mut self, folder: &Path) -> Result<()> {
        let file =
            File::open(folder).map_err(|error| unusable(folder, "can't be opened", error))?;
        let mut waited = Duration::ZERO;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A process that was just started may hold it until it has become another program.
                Err(TryLockError::WouldBlock) if waited < OWN_LOCK_WAIT => {
                    thread::sleep(LOCK_POLL);
                    waited += LOCK_POLL;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::locked(format!(
                        "{} is open in another process, though its LOCK was removed or replaced; stop that process",
                        self.path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(%error, folder = %folder.display(), "the folder can't be locked");
                    return Ok(());
                }
            }
        }
        self.folder_lock = Some(file);
        Ok(())
    }

    /// Makes it a store of its kind, durably.
    pub(crate) fn write_format(&mut self, fields: BTreeMap<String, String>) -> Result<()> {
        let text = format_of(self.kind, &fields);
        let path = &self.path;
        let write = || -> io::Result<()> {
            let mut file = File::create(path.join(FORMAT_NEW))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(path.join(FORMAT_NEW), path.join(FORMAT))?;
            File::open(path)?.sync_all()?;
            // The name of the folder itself may be new, too.
            match path.canonicalize()?.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|error| unusable(path, "can't be written", error))?;
        self.fields = Some(fields);
        Ok(())
    }
}

/// The text of a FORMAT with these fields.
pub(crate) fn format_of(kind: Kind, fields: &BTreeMap<String, String>) -> String {
    let mut text = format!("{}\nversion {}\n", kind.magic, kind.version);
    for (name, value) in fields {
        text.extend([name, " ", value, "\n"]);
    }
    text
}

/// Refuses what is not ours before anything is touched.
fn inspect(path: &Path, kind: Kind) -> Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(path, "can't be read", error)),
        Ok(found) if !found.is_dir() => {
            return Err(Error::invalid(format!(
                "{} is a file, and a store needs a folder of its own",
                path.display()
            )));
        }
        Ok(_) => {}
    }
    if read_format(path, kind)?.is_some() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|error| unusable(path, "can't be read", error))?;
    for entry in entries {
        let entry = entry.map_err(|error| unusable(path, "can't be read", error))?;
        let name = entry.file_name();
        if name != LOCK && name != FORMAT_NEW {
            return Err(Error::invalid(format!(
                "{} is not empty and holds no store (it has {}); nothing in it was touched, so choose another folder",
                path.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

fn read_format(path: &Path, kind: Kind) -> Result<Option<BTreeMap<String, String>>> {
    let text = match fs::read_to_string(path.join(FORMAT)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, "has a FORMAT that can't be read", error)),
    };
    parse_format(path, &text, kind).map(Some)
}

/// The fields of a FORMAT of this kind, but for the version.
pub(crate) fn parse_format(
    path: &Path,
    text: &str,
    kind: Kind,
) -> Result<BTreeMap<String, String>> {
    let mut lines = text.lines();
    let magic = lines.next().unwrap_or_default();
    if magic != kind.magic {
        let what = match magic.strip_prefix("batchyard ") {
            Some(what) => format!("is a {what}, not a {}", kind.magic),
            None => "has a FORMAT of another program".to_owned(),
        };
        return Err(Error::invalid(format!(
            "{} {what}; nothing in it was touched, so choose another folder",
            path.display()
        )));
    }
    let fields = lines.filter_map(|line| line.split_once(' '));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut fields: BTreeMap<String, String> = fields.collect();
    let version: Option<u32> = fields
        .remove("version")
        .and_then(|version| version.parse().ok());
    match version {
        Some(version) if version == kind.version => Ok(fields),
        Some(version) => Err(Error::invalid(format!(
            "{} has format {version}, and this version of batchyard reads {}; it was left untouched, so open it with a newer version",
            path.display(),
            kind.version
        ))),
        None => Err(Error::corrupt(format!(
            "the FORMAT of {} is damaged: it names no version; bring it back from a copy of the store",
            path.display()
        ))),
    }
}

/// Locks the store for this process.
fn lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options
        .open(path.join(LOCK))
        .map_err(|error| unusable(path, "can't be written", error))?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => {
                return Err(unusable(path, "can't be locked", error));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        let mut owner = String::new();
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut owner));
        let owner = owner.trim();
        // The last handle of this process may have been dropped a moment ago.
        if owner != std::process::id().to_string() || waited >= OWN_LOCK_WAIT {
            return Err(Error::locked(format!(
                "{} is open in the process with pid {owner}; stop it, or use another store",
                path.display()
            )));
        }
        thread::sleep(LOCK_POLL);
        waited += LOCK_POLL;
    }
    let mut write = || -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    // Its pid is there to be named: a full disk is no reason not to open.
    if let Err(error) = write()
        && !is_full(&error)
    {
        return Err(unusable(path, "can't be written", error));
    }
    Ok(file)
}

/// What the system says about a folder or a file in it.
pub(crate) fn unusable(path: &Path, what: &str, error: io::Error) -> Error {
    Error::invalid(format!("{} {what}: {error}", path.display())).with_source(error)
}
