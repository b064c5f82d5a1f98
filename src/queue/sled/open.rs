//! Opening: whose folder it is, the lock, the database, and what a crash left to be done.
//!
//! ```text
//! STORE/FORMAT   what this is, in which version, and the store's uuid
//! STORE/CLEAN    after a clean close only: how many commits the database has had, what each queue held
//! STORE/SYNCED   how many commits were durable at the last sync
//! STORE/REDO     the changes of a step that failed in its middle, which opening makes again
//! STORE/LOCK     locked by the process that has it open, with its pid; says if a sync of it has failed
//! STORE/sled/    the database: its `db` is the file that is synced before every answer
//! ```
//! sled 0.34.7 opens a missing, emptied or overwritten `db` as a new database without a word, so a
//! store that `FORMAT` says is there must hold the uuid that `FORMAT` has. A shortened `db` opens in an
//! older state: after a clean close the commits must be as many as `CLEAN` says, and always at least as many as
//! `SYNCED` says. A damaged log can lose
//! single entries: after anything but a clean close, and always in a small store, all are counted.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

pub(super) use super::recovery::open_sled;
use super::{
    anew,
    apply::{self, Step},
    clean,
    db::{self, Db},
    keys::{self, PartOf, Tree},
    moment,
    plan::Redo,
    record::{QueueV1, StoreV1},
    recovery::{self, SEGMENT_BYTES, refuse_blobs},
    state::{Live, QueueState},
    synced::{SYNCED, Synced},
    usage,
    write::Write,
};
pub(super) use crate::queue::lock::unusable;
use crate::{
    error::{Error, Result},
    fault::{point, step},
    queue::{
        QueueOptions,
        lock::{self, LOCK},
        progress::Pulse,
        stated::{self, FORMAT, SLED, names_a_store},
    },
};

const FORMAT_NEW: &str = "FORMAT.new";
const DATABASE: &str = "sled";
const VERSION: u32 = 1;
/// A store with up to so many entries is counted at every open: that takes a moment only.
const ALWAYS_COUNTED: u64 = 20_000;
/// What a store that is only filled keeps in memory.
const FILLING_CACHE_BYTES: u64 = 32 << 20;

/// A store that is ready to be served.
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) lock: File,
    pub(super) db: Db,
    pub(super) queues: BTreeMap<u32, QueueState>,
    pub(super) next_queue: u32,
}

/// What `FORMAT` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Format {
    uuid: String,
    /// False until the database is there: what is in the folder then may be thrown away.
    pub(super) made: bool,
}

/// Opens a store, or makes one in an empty or missing folder.
pub(super) fn open(path: &Path, queues: QueueOptions, cache_bytes: u64) -> Result<Opened> {
    let (lock, format) = begin(path)?;
    if format.made {
        anew::prepare(path, &lock)?;
    }
    let pulse = &Pulse::default();
    let db = open_database((path, &lock), &format, cache_bytes, pulse)?;
    let (db, (queues, next_queue)) = or_let_go(db, |db| {
        clean::unmark(path)?;
        point("sled.unmarked");
        moment::clear(path);
        let recovered = recover(db, queues)?;
        point("sled.recovered");
        finish(path, db, format)?;
        if lock::is_unsynced(&lock)
            && let Err(error) = lock::note(&lock, false)
        {
            // Then the next opening writes all of it anew once more.
            tracing::warn!(%error, "it can't be noted that all of a store is durable again");
        }
        point("sled.open");
        Ok(recovered)
    })?;
    Ok(Opened {
        path: path.to_owned(),
        lock,
        db,
        queues,
        next_queue,
    })
}

/// Makes a store in an empty or missing folder; it is one only once it is filled.
pub(super) fn open_new<T>(path: &Path, fill: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
    let (lock, format) = begin(path)?;
    if format.made {
        return Err(Error::invalid(format!(
            "{} holds a store already; nothing in it was touched, so choose another folder",
            path.display()
        )));
    }
    let pulse = &Pulse::default();
    let db = open_database((path, &lock), &format, FILLING_CACHE_BYTES, pulse)?;
    let (_, value) = or_let_go(db, |db| {
        let value = fill(db)?;
        finish(path, db, format)?;
        Ok(value)
    })?;
    Ok(value)
}

/// What it does with a database, and the database; if that fails, nobody else has it.
fn or_let_go<T>(db: Db, with: impl FnOnce(&Db) -> Result<T>) -> Result<(Db, T)> {
    match with(&db) {
        Ok(value) => Ok((db, value)),
        Err(error) => {
            db.let_go();
            Err(error)
        }
    }
}

/// Locks a folder that is a store or may become one.
fn begin(path: &Path) -> Result<(File, Format)> {
    inspect(path)?;
    fs::create_dir_all(path).map_err(|error| unusable(path, "can't be made", error))?;
    let lock = lock::take(path)?;
    point("sled.locked");
    if let Some(format) = read_format(path)? {
        return Ok((lock, format));
    }
    let uuid = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let format = Format { uuid, made: false };
    write_format(path, &format)?;
    Ok((lock, format))
}

/// Makes everything durable before anything is answered.
fn finish(path: &Path, db: &Db, format: Format) -> Result<()> {
    db.sync()?;
    sync_folder(path).inspect_err(|error| db.fail(error.to_string()))?;
    point("sled.folder_synced");
    if !format.made {
        write_format(
            path,
            &Format {
                made: true,
                ..format
            },
        )?;
    }
    Ok(())
}

/// Whether a path, which need not be there, is a folder or leads into it.
pub(super) fn is_within(path: &Path, folder: &Path) -> bool {
    let Ok((path, folder)) =
        std::path::absolute(path).and_then(|path| Ok((path, folder.canonicalize()?)))
    else {
        return false;
    };
    let nearest = path.ancestors().find_map(|path| path.canonicalize().ok());
    nearest.is_some_and(|nearest| nearest.starts_with(&folder))
}

/// Where the database of a store is.
pub(super) fn database(path: &Path) -> PathBuf {
    path.join(DATABASE)
}

/// Refuses what is not ours before anything is touched.
fn inspect(path: &Path) -> Result<()> {
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
    if look_at_format(path)?.is_some() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(|error| unusable(path, "can't be read", error))?;
    for entry in entries {
        let name = entry
            .map_err(|error| unusable(path, "can't be read", error))?
            .file_name();
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

pub(super) fn read_format(path: &Path) -> Result<Option<Format>> {
    let Some(text) = stated::read(path)? else {
        return Ok(None);
    };
    match parse_format(path, &text) {
        Err(_) if !names_a_store(&text) && is_left(path) => Err(lost_format(path)),
        format => format.map(Some),
    }
}

/// The same; that it is gone is told as damage, if the rest of a store is there.
pub(super) fn look_at_format(path: &Path) -> Result<Option<Format>> {
    match read_format(path)? {
        None if is_left(path) => Err(lost_format(path)),
        format => Ok(format),
    }
}

/// Whether what a store has beside its `FORMAT` lies in this folder.
fn is_left(path: &Path) -> bool {
    let notes = [LOCK, SYNCED, clean::CLEAN];
    database(path).join("db").is_file() && notes.iter().any(|note| path.join(note).is_file())
}

fn lost_format(path: &Path) -> Error {
    Error::corrupt(format!(
        "the FORMAT of {} is damaged or gone, and beside it lies the database of a sled store; run `repair` to save what can be read",
        path.display()
    ))
}

pub(super) fn parse_format(path: &Path, text: &str) -> Result<Format> {
    let mut lines = text.lines();
    let magic = lines.next().unwrap_or_default();
    if magic != SLED {
        let what = match magic.strip_prefix("batchyard ") {
            Some(what) => format!("is a {what}, not a {SLED}"),
            None => "has a FORMAT of another program".to_owned(),
        };
        return Err(Error::invalid(format!(
            "{} {what}; nothing in it was touched, so choose another folder",
            path.display()
        )));
    }
    let fields: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
    let damaged = || {
        Error::corrupt(format!(
            "the FORMAT of {} is damaged; run `repair` to save what can be read",
            path.display()
        ))
    };
    let version: u32 = fields
        .get("version")
        .and_then(|version| version.parse().ok())
        .ok_or_else(damaged)?;
    if version != VERSION {
        return Err(Error::invalid(format!(
            "{} has format {version}, and this version of batchyard reads {VERSION}; it was left untouched, so open it with a newer version",
            path.display()
        )));
    }
    let field = |name| fields.get(name).copied().ok_or_else(damaged);
    if field("segment_bytes")? != SEGMENT_BYTES.to_string() || field("uuid")?.len() != 32 {
        return Err(damaged());
    }
    let made = match field("state")? {
        "new" => false,
        "made" => true,
        _ => return Err(damaged()),
    };
    Ok(Format {
        uuid: field("uuid")?.to_owned(),
        made,
    })
}

impl Format {
    pub(super) fn text(&self) -> String {
        let state = if self.made { "made" } else { "new" };
        format!(
            "{SLED}\nversion {VERSION}\nsegment_bytes {SEGMENT_BYTES}\nuuid {}\nstate {state}\n",
            self.uuid
        )
    }
}

fn write_format(path: &Path, format: &Format) -> Result<()> {
    let text = format.text();
    let write = || -> io::Result<()> {
        let mut file = File::create(path.join(FORMAT_NEW))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        point("sled.format");
        fs::rename(path.join(FORMAT_NEW), path.join(FORMAT))?;
        point("sled.format_named");
        File::open(path)?.sync_all()
    };
    write().map_err(|error| unusable(path, "can't be written", error))
}

/// Opens the database and proves that it is the one that belongs here.
pub(super) fn open_database(
    (path, lock): (&Path, &File),
    format: &Format,
    cache_bytes: u64,
    pulse: &Pulse,
) -> Result<Db> {
    let folder = database(path);
    let file = folder.join("db");
    let io = |error| unusable(path, "can't be written", error);
    if format.made {
        if !file.is_file() {
            return Err(Error::corrupt(format!(
                "{} has lost its database; run `repair`, or bring the folder {DATABASE:?} back",
                path.display()
            )));
        }
    } else {
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(io)?;
        }
        fs::create_dir_all(&folder).map_err(io)?;
        point("sled.database_folder");
        File::create(&file).map_err(io)?;
    }
    refuse_blobs(&folder)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .map_err(io)?;
    let lock = lock.try_clone().map_err(io)?;
    let notes = (
        Synced::open(path, !format.made).map_err(io)?,
        Redo::of(path),
    );
    // What an older snapshot says is not to be relied on.
    let moves = if format.made && recovery::advance(&folder)? {
        usage::trim(&folder, &file).map_err(io)?
    } else {
        (0, 0)
    };
    let db = Db::new(open_sled(&folder, cache_bytes)?, file, lock, notes)?;
    point("sled.opened");
    let (db, ()) = or_let_go(db, |db| prove(db, path, format, pulse))?;
    point("sled.proved");
    let planned = or_let_go(db, |db| db.plan_moves(moves))?;
    Ok(planned.0)
}

/// A made store holds its uuid and as many entries as it wrote; a new one gets its uuid.
fn prove(db: &Db, path: &Path, format: &Format, pulse: &Pulse) -> Result<()> {
    let found = db.load::<StoreV1>(Tree::Meta, keys::STORE)?;
    let mut write = Write::default();
    match found {
        Some((store, _)) if store.uuid == format.uuid => {
            let closed = clean::read(path);
            if closed
                .as_ref()
                .is_some_and(|closed| closed.commits != db.commits())
            {
                return Err(Error::corrupt(format!(
                    "the database in {} is not in the state in which it was closed; run `repair` to save what can be read",
                    path.display()
                )));
            }
            if db.lost_commits() > 0 {
                return Err(Error::corrupt(format!(
                    "the database in {} has lost its last {} changes, which were durable; run `repair` to save what can be \
                     read, or remove {SYNCED:?} if it was brought back from an older copy",
                    path.display(),
                    db.lost_commits()
                )));
            }
            if closed.is_none() || db.entries() <= ALWAYS_COUNTED {
                db.verify_counts(pulse)?;
            }
        }
        None if !format.made => {
            let store = StoreV1 {
                uuid: format.uuid.clone(),
            };
            write.put(Tree::Meta, keys::STORE.to_vec(), &store, &[])?;
        }
        Some(_) | None => {
            return Err(Error::corrupt(format!(
                "the database in {} is not the one that was made for it: it is empty or damaged, or was \
                 replaced; run `repair` to save what can be read",
                path.display()
            )));
        }
    }
    db.commit(&mut write)
}

/// Loads every queue and goes on with what a crash cut off.
pub(super) fn recover(db: &Db, options: QueueOptions) -> Result<(BTreeMap<u32, QueueState>, u32)> {
    let mut queues = BTreeMap::new();
    let mut next_queue = 0;
    db.drop_noted()?;
    clear_incoming(db)?;
    for entry in db.range(
        Tree::Meta,
        keys::queue_record(0),
        keys::queue_record(u32::MAX),
    ) {
        let (key, value) = entry?;
        let (record, _) = db::read::<QueueV1>(Tree::Meta, &key, &value)?;
        let id = keys::queue(&key[1..]);
        let name = record.name.parse().map_err(|error| {
            Error::corrupt("a queue has no valid name; run `repair`").with_source(error)
        })?;
        next_queue = next_queue.max(keys::count(id) + 1);
        let record = db.newest_record(id, record);
        clear_staged(db, id, &record)?;
        let mut queue = QueueState::new(id, record, options, Live::new(id, name));
        queue.load(db)?;
        let mut write = Write::default();
        let mut step = Step {
            db,
            write: &mut write,
            queue: &mut queue,
            low_space: None,
        };
        step.unstage()?;
        point("sled.unstaged");
        step.settle_all()?;
        queue.find_oldest(db)?;
        queue.find_next(db)?;
        queue.publish();
        queues.insert(id, queue);
    }
    Ok((queues, next_queue))
}

/// Deletes what had come of queues whose restore a crash cut off.
fn clear_incoming(db: &Db) -> Result<()> {
    let (first, last) = (keys::incoming(0), keys::incoming(u32::MAX));
    for entry in db.range(Tree::Meta, first, last) {
        let (key, _) = entry?;
        apply::clear(db, keys::queue(&key[1..]))?;
        let mut write = Write::default();
        write.delete(Tree::Meta, key.to_vec());
        db.commit(&mut write)?;
    }
    Ok(())
}

/// Deletes what a large push had written when a crash cut it off: it lies past the last position.
fn clear_staged(db: &Db, queue: u32, record: &QueueV1) -> Result<()> {
    let Some(after) = record.last_position.checked_add(1) else {
        return Ok(());
    };
    let mut write = Write::default();
    // The chunk that it came from may be among what goes.
    write.put_queue(queue, record);
    for tree in [Tree::Requests, Tree::Parts] {
        let (from, to) = (keys::key(queue, &[after]), keys::key(queue, &[u64::MAX; 2]));
        for entry in db.range(tree, from, to) {
            let (key, _) = entry?;
            // The result for the rest of a batch lies under the time of that batch.
            if tree == Tree::Parts && key.get(12) != Some(&(PartOf::Payload as u8)) {
                continue;
            }
            write.delete(tree, key.to_vec());
            if write.is_large() {
                db.commit(&mut write)?;
            }
        }
    }
    db.commit(&mut write)?;
    db.drop_windows_after(queue, record.last_position)
}

/// Syncs every file in the store's folders, the folders, and the one they are in.
fn sync_folder(path: &Path) -> Result<()> {
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    let all = || -> io::Result<()> {
        if !step("sled.sync_folder")? {
            return Ok(());
        }
        let database = database(path);
        for folder in [&database.join("blobs"), &database, path] {
            if !folder.is_dir() {
                continue;
            }
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                // A snapshot may be renamed or replaced meanwhile; sled syncs those itself.
                if entry.file_type()?.is_file() {
                    match sync(&entry.path()) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
            }
            sync(folder)?;
        }
        let absolute = fs::canonicalize(path)?;
        absolute.parent().map_or(Ok(()), sync)
    };
    all().map_err(|error| {
        Error::poisoned(format!("{} can't be synced", path.display())).with_source(error)
    })
}
