//! What a store lies on: the disk that is to be tried, or one whose power can be cut.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};
#[cfg(all(feature = "fuse", target_os = "linux"))]
use crate::torture::forgetful::{Forgetful, Loss};

/// What a store lies on.
pub(super) enum Ground {
    /// Loses nothing that was written; only its writers die.
    Lasting,
    /// A file system that forgets, mounted where the store is.
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    Forgetful(Forgetful),
}

/// Whether power can be cut here.
///
/// # Errors
/// Why not.
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub fn available() -> Result<(), String> {
    Forgetful::available()
}

#[cfg(all(feature = "fuse", target_os = "linux"))]
impl Ground {
    /// One that forgets, mounted at this folder.
    pub(super) fn forgetful(at: &Path) -> Result<Self> {
        let mounted = Forgetful::mount(at).map_err(|error| {
            Error::internal("a file system that forgets can't be mounted").with_source(error)
        });
        Ok(Self::Forgetful(mounted?))
    }

    fn mounted(&self) -> Option<&Forgetful> {
        match self {
            Self::Lasting => None,
            Self::Forgetful(mounted) => Some(mounted),
        }
    }

    /// Whether its power can be cut.
    pub(super) fn forgets(&self) -> bool {
        self.mounted().is_some()
    }

    /// Cuts the power: nothing reaches it from now on.
    pub(super) fn cut(&self) {
        if let Some(mounted) = self.mounted() {
            mounted.cut();
        }
    }

    /// Cuts the power at this change from now on.
    pub(super) fn cut_after(&self, changes: u64) {
        if let Some(mounted) = self.mounted() {
            mounted.cut_after(changes);
        }
    }

    /// How many changes there were.
    pub(super) fn changes(&self) -> u64 {
        self.mounted().map_or(0, Forgetful::operations)
    }

    /// The power is back; what was not synced is gone, or torn.
    pub(super) fn restore(&self, seed: u64) {
        if let Some(mounted) = self.mounted() {
            let is_gone = seed.is_multiple_of(2);
            mounted.restore(if is_gone {
                Loss::All
            } else {
                Loss::Torn { seed }
            });
        }
    }
}

/// Whether power can be cut here.
///
/// # Errors
/// Why not.
#[cfg(not(all(feature = "fuse", target_os = "linux")))]
pub fn available() -> Result<(), String> {
    Err("it needs Linux, and a batchyard built with the feature fuse".to_owned())
}

#[cfg(not(all(feature = "fuse", target_os = "linux")))]
#[expect(clippy::unused_self, reason = "one that forgets has something to say")]
impl Ground {
    pub(super) fn forgetful(_at: &Path) -> Result<Self> {
        Err(Error::invalid("no power can be cut here"))
    }

    pub(super) fn forgets(&self) -> bool {
        false
    }

    pub(super) fn cut(&self) {}

    pub(super) fn cut_after(&self, _changes: u64) {}

    pub(super) fn changes(&self) -> u64 {
        0
    }

    pub(super) fn restore(&self, _seed: u64) {}
}

impl Ground {
    /// Sees to it that a store can be looked at once this is gone; where it is then.
    pub(super) fn keep(&self, store: &Path) -> Result<PathBuf> {
        if !self.forgets() {
            return Ok(store.to_owned());
        }
        let mut kept = store.to_owned();
        kept.pop();
        kept.set_extension("kept");
        copy(store, &kept).map_err(|error| {
            Error::internal(format!("{} can't be kept", store.display())).with_source(error)
        })?;
        Ok(kept)
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.forgets() {
            "power cut"
        } else {
            "killed"
        })
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}
