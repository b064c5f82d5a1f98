//! What systemd is told: readiness, the watchdog's pings, and that the end has begun (`sd_notify(3)`).

use std::{
    env, io,
    os::unix::{ffi::OsStrExt, net::UnixDatagram},
    time::Duration,
};

/// Where systemd listens, if it does.
#[derive(Debug)]
pub(super) struct Systemd {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Who started this program and wants to be told, as the environment says.
    pub(super) fn of_environment() -> Option<Self> {
        let path = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let text = |name| env::var(name).ok();
        let watchdog = watchdog(text("WATCHDOG_USEC"), text("WATCHDOG_PID"));
        match connect(path.as_encoded_bytes()) {
            Ok(socket) => Some(Self { socket, watchdog }),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET can't be written to");
                None
            }
        }
    }

    /// How long it waits for a ping.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Tells it something; whatever becomes of that is its own affair.
    pub(super) fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send(state.as_bytes()) {
            tracing::debug!(%error, "NOTIFY_SOCKET does not take {state:?}");
        }
    }
}

fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // Who does not read is not waited for.
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix(b"@") {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
        socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        return Ok(socket);
    }
    socket.connect(std::ffi::OsStr::from_bytes(path))?;
    Ok(socket)
}

/// How long the watchdog waits, if it is about this process.
fn watchdog(micros: Option<String>, pid: Option<String>) -> Option<Duration> {
    let of_another = pid.is_some_and(|pid| pid != std::process::id().to_string());
    let micros: u64 = micros?.parse().ok()?;
    (!of_another && micros > 0).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_ours_or_nobodys() {
        let own = std::process::id().to_string();
        let text = |text: &str| Some(text.to_owned());
        for (micros, pid, want) in [
            (None, None, None),
            (text("30000000"), None, Some(Duration::from_secs(30))),
            (text("30000000"), Some(own), Some(Duration::from_secs(30))),
            (text("30000000"), text("1"), None),
            (text("0"), None, None),
            (text("soon"), None, None),
        ] {
            assert_eq!(watchdog(micros, pid), want);
        }
    }
}
