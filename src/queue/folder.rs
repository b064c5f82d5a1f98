//! The folder of an embedded store: whose it is, who has it open, and which version it has.
//!
//! ```text
//! STORE/FORMAT   what this is, in which version, and fields of the backend's own
//! STORE/LOCK     locked by the process that has it open, with its pid
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

pub(crate) use super::lock::unusable;
use super::{
    lock::{self, LOCK},
    stated::{self, FORMAT},
};
use crate::{
    error::{Error, Result},
    fault::point,
};

const FORMAT_NEW: &str = "FORMAT.new";

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
    lock: File,
}

impl StoreFolder {
    /// Locks a folder, made if it is missing, that holds a store of this kind, or nothing.
    pub(crate) fn open(path: &Path, kind: Kind) -> Result<Self> {
        inspect(path, kind)?;
        fs::create_dir_all(path).map_err(|error| unusable(path, "can't be made", error))?;
        let lock = lock::take(path)?;
        point("journal.locked");
        let fields = read_format(path, kind)?;
        if fields.is_some() {
            // Whoever made it may have failed to sync that, and nobody else would.
            sync(path).map_err(|error| unusable(path, "can't be synced", error))?;
        }
        Ok(Self {
            path: path.to_owned(),
            kind,
            fields,
            folder_lock: None,
            lock,
        })
    }

    /// Locks a folder of the store as well, which nobody takes for a stale lock and removes. Where folders can't be
    /// locked, as on some network file systems, the lock has to do.
    pub(crate) fn lock_too(&mut self, folder: &Path) -> Result<()> {
        let file =
            File::open(folder).map_err(|error| unusable(folder, "can't be opened", error))?;
        // A process that was just started may hold it until it has become another program.
        match lock::take_soon(&file, File::try_lock, || true) {
            Ok(true) => self.folder_lock = Some(file),
            Ok(false) => {
                return Err(Error::locked(format!(
                    "{} is open in another process, though its LOCK was removed or replaced; stop that process",
                    self.path.display()
                )));
            }
            Err(error) => {
                tracing::debug!(%error, folder = %folder.display(), "the folder can't be locked");
            }
        }
        Ok(())
    }

    /// Its locks once more: others are kept out for as long as they are held.
    pub(crate) fn locks(&self) -> io::Result<Vec<File>> {
        let all = self.folder_lock.iter().chain([&self.lock]);
        all.map(File::try_clone).collect()
    }

    /// Makes it a store of its kind, durably.
    pub(crate) fn write_format(&mut self, fields: BTreeMap<String, String>) -> Result<()> {
        let text = format_of(self.kind, &fields);
        let path = &self.path;
        let write = || -> io::Result<()> {
            let mut file = File::create(path.join(FORMAT_NEW))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            point("journal.format");
            fs::rename(path.join(FORMAT_NEW), path.join(FORMAT))?;
            point("journal.format_named");
            sync(path)
        };
        write().map_err(|error| unusable(path, "can't be written", error))?;
        self.fields = Some(fields);
        Ok(())
    }
}

/// A store that is looked at: as long as this lives nobody opens it, and nothing of it is changed.
#[derive(Debug)]
pub(crate) struct LookedAt {
    /// The fields of FORMAT.
    pub(crate) fields: BTreeMap<String, String>,
    _locks: [Option<File>; 2],
}

impl LookedAt {
    /// Looks at a store of this kind, whose folder of this name is locked with it.
    pub(crate) fn begin(path: &Path, kind: Kind, folder: &str) -> Result<Self> {
        inspect(path, kind)?;
        let locks = [lock::share(path, LOCK)?, lock::share(path, folder)?];
        let Some(fields) = read_format(path, kind)? else {
            return Err(Error::not_found(format!(
                "no store in {}: nothing was made there yet",
                path.display()
            )));
        };
        Ok(Self {
            fields,
            _locks: locks,
        })
    }
}

/// Makes the names in a folder durable, and its own, which may be new, too.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    match path.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
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
    let text = stated::read(path)?;
    text.map(|text| parse_format(path, &text, kind)).transpose()
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
