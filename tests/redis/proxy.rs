//! A way to the server that can be cut after a request went through and before its reply comes back.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

/// Forwards connections of a loopback port to the server's socket.
pub(crate) struct Proxy {
    port: u16,
    /// How many replies to calls of scripts are still to be swallowed, their connections cut.
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cuts = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&cuts);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&socket).await.unwrap();
                tokio::spawn(forward(client, server, Arc::clone(&left)));
            }
        });
        Self { port, cuts }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts the connections of the next calls of scripts after the server has answered them.
    pub(crate) fn cut(&self, times: usize) {
        self.cuts.store(times, Ordering::SeqCst);
    }

    /// Whether all cuts were made.
    pub(crate) fn is_spent(&self) -> bool {
        self.cuts.load(Ordering::SeqCst) == 0
    }
}

async fn forward(mut client: TcpStream, mut server: UnixStream, cuts: Arc<AtomicUsize>) {
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut runs_a_script = false;
    loop {
        tokio::select! {
            Ok(length) = client.read(&mut asked) => {
                if length == 0 || server.write_all(&asked[..length]).await.is_err() {
                    return;
                }
                runs_a_script |= asked[..length].windows(7).any(|word| word == b"EVALSHA");
            }
            Ok(length) = server.read(&mut answered) => {
                let unknown = answered[..length].starts_with(b"-NOSCRIPT");
                let cut = runs_a_script
                    && !unknown
                    && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                if length == 0 || cut || client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}
