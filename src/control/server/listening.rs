//! The socket itself, which is there as long as it is served.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::net::UnixListener;

use crate::control::{address, socket};

/// What listens, in place of whoever did before: the caller has the store, so nobody else does.
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    pub(super) socket: Arc<Socket>,
}

/// Where others connect, for as long as it is there.
pub(super) struct Socket {
    pub(super) folder: PathBuf,
    /// Which folder that was: another one of this name is another store's.
    found: Identity,
    own: Mutex<Identity>,
}

/// Which file it is, whatever its name.
type Identity = (u64, u64);

impl Listening {
    pub(super) fn begin(folder: &Path) -> io::Result<Self> {
        let found = identity(folder)?;
        let (listener, own) = listen(folder)?;
        let socket = Socket {
            folder: folder.to_owned(),
            found,
            own: Mutex::new(own),
        };
        Ok(Self {
            listener,
            socket: Arc::new(socket),
        })
    }

    /// Listens anew if the socket was removed or replaced.
    pub(super) fn mend(&mut self) {
        let folder = &self.socket.folder;
        let is_its_folder = identity(folder).is_ok_and(|found| found == self.socket.found);
        if self.socket.is_there() || !is_its_folder {
            return;
        }
        let path = socket(folder);
        match listen(folder) {
            Ok((listener, own)) => {
                tracing::warn!(path = %path.display(), "the control socket was gone, and is there again");
                self.listener = listener;
                *self.socket.own() = own;
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the control socket is gone");
            }
        }
    }
}

impl Socket {
    fn own(&self) -> MutexGuard<'_, Identity> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_there(&self) -> bool {
        identity(&socket(&self.folder)).is_ok_and(|found| found == *self.own())
    }

    pub(super) fn remove(&self) {
        if self.is_there() {
            // One that stays is a socket where nobody listens, which the next owner replaces.
            let _ = fs::remove_file(socket(&self.folder));
        }
    }
}

fn listen(folder: &Path) -> io::Result<(UnixListener, Identity)> {
    use std::os::unix::fs::PermissionsExt;

    let path = socket(folder);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (address, _folder) = address(folder)?;
    let listener = UnixListener::bind(address)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let identity = identity(&path)?;
    Ok((listener, identity))
}

fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;

    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
