//! A disk in memory that forgets, tears and reorders what was not synced.
//!
//! ```text
//! SimDisk ── operations, each recorded ──► crash(after k of them, how, seed) ──► SimDisk, as found after the crash
//!    │                                                                             └─► recover, crash again, ...
//!    └── fail_at(n): the n-th fails, once or for good
//! ```
//!
//! Rules
//! - An operation is whatever may change something: creating, removing, renaming, allocating, writing, syncing.
//!   Reading is none. Each is counted, failed ones as well.
//! - Live bytes are what can be read; durable ones survive every crash. Writes reach durability sector by sector
//!   (512 bytes), in any order, unless synced; names one by one, unless the folder is synced. Syncing one file
//!   says nothing of another, and not of its name.
//! - A write that fails has written its first half. A sync that fails leaves all that was waiting readable and
//!   never durable, as Linux does: only writing it again helps.
//! - Nothing here takes the time or rolls dice of its own: the same calls and seeds give the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSlice},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::disk::{Disk, DiskFile};

/// How the machine went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process died: all is readable, nothing more is durable.
    Killed,
    /// Power was lost, and with it all that was not synced.
    Lost,
    /// Power was lost just after all had been written.
    Kept,
    /// The last write to each file and the last names made it in part.
    Torn,
    /// Any sector and any name may have made it.
    Shuffled,
}

impl Crash {
    pub(super) const ALL: [Self; 5] = [
        Self::Killed,
        Self::Lost,
        Self::Kept,
        Self::Torn,
        Self::Shuffled,
    ];
}

/// The disk; its clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk {
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Default)]
struct World {
    /// Before the first operation.
    start: State,
    operations: Vec<Operation>,
    state: State,
    failure: Option<Failure>,
    space: Option<u64>,
    /// Sectors, by file, that can't be read before they are written again.
    unreadable: BTreeSet<(usize, usize)>,
    in_background: bool,
}

#[derive(Debug)]
struct Failure {
    at: usize,
    kind: io::ErrorKind,
    for_good: bool,
}

#[derive(Clone, Debug, Default)]
struct State {
    names: Names,
    durable_names: Names,
    pending_names: Vec<NameChange>,
    files: Vec<FileState>,
}

type Names = BTreeMap<String, usize>;

#[derive(Clone, Debug, Default)]
struct FileState {
    live: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// In order; none crosses a sector.
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Length(usize),
    Bytes { at: usize, bytes: Vec<u8> },
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, usize),
    Remove(String),
    Rename(String, String),
}

#[derive(Clone, Debug)]
enum Operation {
    Create(String),
    Name(NameChange),
    Length(usize, usize),
    Write(usize, usize, Vec<u8>),
    /// Of this much from there on, or of the whole file.
    Sync(usize),
    FailedSync(usize),
    SyncFolder,
    Nothing,
}

impl SimDisk {
    /// An empty disk.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A disk that holds these files, all durable.
    pub(super) fn from_image(files: BTreeMap<String, Vec<u8>>) -> Self {
        let mut state = State::default();
        for (name, bytes) in files {
            state.names.insert(name, state.files.len());
            let bytes = Arc::new(bytes);
            state.files.push(FileState {
                live: bytes.clone(),
                durable: bytes,
                pending: Vec::new(),
            });
        }
        state.durable_names = state.names.clone();
        Self::in_state(state)
    }

    /// The same, and the log may work on it from a thread.
    pub(super) fn in_background(self) -> Self {
        self.world().in_background = true;
        self
    }

    /// All files, as they can be read now.
    pub(super) fn image(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world();
        let live = |(name, file): (&String, &usize)| {
            (name.clone(), world.state.files[*file].live.to_vec())
        };
        world.state.names.iter().map(live).collect()
    }

    /// How many operations there were.
    pub(super) fn operations(&self) -> usize {
        self.world().operations.len()
    }

    /// What is found if the machine goes down after so many operations. This disk goes on as it is.
    pub(super) fn crash(&self, after: usize, mode: Crash, seed: u64) -> SimDisk {
        let world = self.world();
        let mut state = world.start.clone();
        for operation in &world.operations[..after] {
            state.apply(operation);
        }
        let mut dice = fastrand::Rng::with_seed(seed);
        if mode != Crash::Killed {
            state.lose(mode, &mut dice);
        }
        Self::in_state(state)
    }

    /// Whether anything would be lost if the power went now.
    pub(super) fn has_unsynced(&self) -> bool {
        let state = &self.world().state;
        let waits = |file: &FileState| !file.pending.is_empty() || file.live != file.durable;
        !state.pending_names.is_empty() || state.files.iter().any(waits)
    }

    /// What a new process finds if this one dies now.
    pub(super) fn restart(&self) -> SimDisk {
        self.crash(self.operations(), Crash::Killed, 0)
    }

    /// The operation after `n` others fails, and with `for_good` all later ones too.
    pub(super) fn fail_at(&self, n: usize, kind: io::ErrorKind, for_good: bool) {
        self.world().failure = Some(Failure {
            at: n,
            kind,
            for_good,
        });
    }

    /// From now on the sector at this offset of a file can't be read, until it is written.
    pub(super) fn spoil(&self, name: &str, at: usize) {
        let mut world = self.world();
        let file = world.state.names[name];
        world.unreadable.insert((file, at / SECTOR));
    }

    /// How many files were created.
    pub(super) fn created(&self) -> usize {
        self.world().state.files.len()
    }

    /// Whether an operation fails, or did.
    pub(super) fn fails(&self) -> bool {
        self.world().failure.is_some()
    }

    /// From now on files can be allocated up to this many bytes in all.
    pub(super) fn set_space(&self, bytes: u64) {
        self.world().space = Some(bytes);
    }

    fn in_state(state: State) -> Self {
        let world = World {
            start: state.clone(),
            state,
            ..World::default()
        };
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, index: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            disk: self.clone(),
            index,
        })
    }
}

impl World {
    fn run(&mut self, operation: Operation) -> io::Result<()> {
        let index = self.operations.len();
        let fails =
            |failure: &&Failure| index == failure.at || (failure.for_good && index > failure.at);
        let failed = self
            .failure
            .as_ref()
            .filter(fails)
            .map(|failure| failure.kind);
        let done = match (failed, operation) {
            (None, operation) => operation,
            (Some(_), Operation::Write(file, at, mut bytes)) => {
                bytes.truncate(bytes.len() / 2);
                Operation::Write(file, at, bytes)
            }
            (Some(_), Operation::Sync(file)) => Operation::FailedSync(file),
            (Some(_), _) => Operation::Nothing,
        };
        if let Operation::Write(file, at, bytes) = &done {
            let written = at / SECTOR..(at + bytes.len()).div_ceil(SECTOR);
            self.unreadable
                .retain(|(spoilt, sector)| spoilt != file || !written.contains(sector));
        }
        self.state.apply(&done);
        self.operations.push(done);
        failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn allocated(&self) -> u64 {
        let length = |file: &usize| self.state.files[*file].live.len() as u64;
        self.state.names.values().map(length).sum()
    }
}

impl State {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create(name) => {
                let change = NameChange::Create(name.clone(), self.files.len());
                self.files.push(FileState::default());
                change.apply(&mut self.names);
                self.pending_names.push(change);
            }
            Operation::Name(change) => {
                change.apply(&mut self.names);
                self.pending_names.push(change.clone());
            }
            Operation::Length(file, length) => self.files[*file].change(Change::Length(*length)),
            Operation::Write(file, at, bytes) => {
                let (mut at, mut rest) = (*at, bytes.as_slice());
                while !rest.is_empty() {
                    let (sector, behind) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                    self.files[*file].change(Change::Bytes {
                        at,
                        bytes: sector.to_vec(),
                    });
                    (at, rest) = (at + sector.len(), behind);
                }
            }
            Operation::Sync(file) => self.files[*file].sync(),
            Operation::FailedSync(file) => self.files[*file].pending.clear(),
            Operation::SyncFolder => {
                self.durable_names = self.names.clone();
                self.pending_names.clear();
            }
            Operation::Nothing => {}
        }
    }

    /// Power goes: what survives is all there is.
    fn lose(&mut self, mode: Crash, dice: &mut fastrand::Rng) {
        for file in &mut self.files {
            let count = file.pending.len();
            // What a torn write leaves: the sectors of the last few changes, at random.
            let torn = count.saturating_sub(dice.usize(0..=TORN_SECTORS));
            for (index, change) in std::mem::take(&mut file.pending).into_iter().enumerate() {
                if survives(mode, index < torn, dice) {
                    change.apply(Arc::make_mut(&mut file.durable));
                }
            }
            file.live.clone_from(&file.durable);
        }
        let whole = dice.usize(0..=self.pending_names.len());
        for (index, change) in std::mem::take(&mut self.pending_names)
            .into_iter()
            .enumerate()
        {
            if survives(mode, index < whole, dice) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names.clone_from(&self.durable_names);
    }
}

fn survives(mode: Crash, is_before_tear: bool, dice: &mut fastrand::Rng) -> bool {
    match mode {
        Crash::Lost => false,
        Crash::Killed | Crash::Kept => true,
        Crash::Torn => is_before_tear || dice.bool(),
        Crash::Shuffled => dice.bool(),
    }
}

impl FileState {
    fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.live));
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(Arc::make_mut(&mut self.durable));
        }
    }
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Change::Length(length) => {
                lengthen(file, *length);
            }
            Change::Bytes { at, bytes } => {
                let end = at + bytes.len();
                lengthen(file, end);
                file[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

fn lengthen(file: &mut Vec<u8>, length: usize) {
    let more = length.saturating_sub(file.len());
    file.extend_from_slice(&vec![0; more]);
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.world().state.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let index = self.world().state.names.get(name).copied();
        index
            .map(|index| self.file(index))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world();
        if world.state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let index = world.state.files.len();
        world.run(Operation::Create(name.to_owned()))?;
        drop(world);
        Ok(self.file(index))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        if !world.state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.run(Operation::Name(NameChange::Remove(name.to_owned())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        if !world.state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.run(Operation::Name(NameChange::Rename(
            from.to_owned(),
            to.to_owned(),
        )))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.world().run(Operation::SyncFolder)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let world = self.world();
        let space = world.space.unwrap_or(u64::MAX);
        Ok(space.saturating_sub(world.allocated()))
    }

    fn in_background(&self) -> bool {
        self.world().in_background
    }
}

/// An open file; it stays what it is when its name goes.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    index: usize,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.world().state.files[self.index].live.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        let more = len.saturating_sub(world.state.files[self.index].live.len() as u64);
        if world
            .space
            .is_some_and(|space| world.allocated() + more > space)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        world.run(Operation::Length(self.index, in_memory(len)))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        let bytes = parts.concat();
        let at = in_memory(offset);
        self.disk
            .world()
            .run(Operation::Write(self.index, at, bytes))
    }

    /// Every other page is in no cache.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if offset / 4096 % 2 == 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read_at(buffer, offset)
    }

    fn will_read(&self, _offset: u64, _bytes: u64) {}

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let world = self.disk.world();
        let at = in_memory(offset);
        let sectors = at / SECTOR..(at + buffer.len()).div_ceil(SECTOR);
        let spoilt = (self.index, sectors.start)..(self.index, sectors.end);
        if world.unreadable.range(spoilt).next().is_some() {
            return Err(io::Error::other("an unreadable sector"));
        }
        let found = world.state.files[self.index]
            .live
            .get(at..at + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.world().run(Operation::Sync(self.index))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}

fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("it lies in memory")
}

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// How many of the last sectors a torn write may concern.
const TORN_SECTORS: usize = 24;
