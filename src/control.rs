//! The control socket: a store that is open answers other processes of the same user.
//!
//! ```text
//!   the owner of the store                             any other process
//!   dyn Store ◀── ControlServer ◀── STORE/control.sock ◀── ControlStore: dyn Store
//!                     └─▶ DispatcherHandle: explain
//! ```
//! An embedded store belongs to one process. That one serves it here, and another gets the same [`Store`] from
//! [`ControlStore::connect`], every verb of its queues included, so that whatever works on a store works on one that is in use.
//!
//! - Only the user of the serving process, and root, are answered; the socket has mode 0600.
//! - A client that hangs, floods or goes away costs the owner a bounded number of connections and bytes, and its own calls: see
//!   [`ControlServer`]. All clients together have one budget of memory; a client that is slow makes way for those that wait.
//! - What is listed goes through in pages of up to 1,000 entries, one after the other, whatever is asked for.
//! - Both ends have to speak the same version of the protocol, which is not a format for anything to be kept in.

mod client;
mod server;
mod wire;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

pub use self::{
    client::{ControlQueue, ControlStore, OwnerGone},
    server::{ControlAccess, ControlServer, serve_control, serve_control_for_now},
};

/// Where the socket of a store is.
fn socket(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}

/// A name of the socket that fits into an address, and what keeps that name good.
fn address(folder: &Path) -> io::Result<(PathBuf, Option<File>)> {
    use std::os::{fd::AsRawFd, unix::ffi::OsStrExt};

    let path = socket(folder);
    if path.as_os_str().as_bytes().len() <= MAX_ADDRESS_BYTES || !cfg!(target_os = "linux") {
        return Ok((path, None));
    }
    let folder = File::open(folder)?;
    let short = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok((short.into(), Some(folder)))
}

const SOCKET: &str = "control.sock";
/// What every system takes; Linux takes 107, macOS 103.
const MAX_ADDRESS_BYTES: usize = 103;
