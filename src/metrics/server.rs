//! A server for one page: `GET /metrics`, over HTTP/1.1, one request a connection.
//!
//! It owes nothing to its clients. Each is let in at once, and where there are [`CONNECTIONS`] the one makes way that has let wait for
//! longest, be it with its request or with taking its page: no scrape waits for a client that is silent.
//! A head that is not whole in time or is too long ends its connection, a body is never read, and so does a page that is not taken in time.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use super::Metrics;

/// Serves the page at `http://ADDRESS/metrics`, until the server is dropped.
///
/// ```no_run
/// # async fn serve(metrics: batchyard::Metrics) -> std::io::Result<()> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:9464").await?;
/// let server = batchyard::serve_metrics(listener, metrics);
/// # Ok(()) }
/// ```
///
/// # Panics
/// Outside a tokio runtime.
pub fn serve_metrics(listener: TcpListener, metrics: Metrics) -> MetricsServer {
    MetricsServer(tokio::spawn(accept(listener, metrics)))
}

/// A server of metrics: at most 64 clients at the same time, each for at most 15 seconds beside the making of its page; one more takes
/// the place of that which has let wait for longest.
///
/// Dropping it cuts off the clients, and owes them nothing.
pub struct MetricsServer(JoinHandle<()>);

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer").finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, metrics: Metrics) {
    let mut clients = Clients::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => clients.let_in(stream, metrics.clone()),
            Err(error) => {
                // Such as too many open files, which passes.
                tracing::warn!(%error, "a client of the metrics can't be let in");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Who is served, in the order in which they came.
#[derive(Default)]
struct Clients {
    serving: JoinSet<()>,
    served: VecDeque<Client>,
}

struct Client {
    serving: AbortHandle,
    /// Its page is being made: it waits for us, not we for it.
    waits: Arc<AtomicBool>,
}

impl Clients {
    /// Serves one more, in place of another if there are too many.
    fn let_in(&mut self, stream: TcpStream, metrics: Metrics) {
        while self.serving.try_join_next().is_some() {}
        self.served.retain(|client| !client.serving.is_finished());
        if self.served.len() >= CONNECTIONS {
            let silent = |client: &Client| !client.waits.load(Ordering::Relaxed);
            let first = self.served.iter().position(silent).unwrap_or_default();
            if let Some(client) = self.served.remove(first) {
                client.serving.abort();
            }
        }
        let waits = Arc::new(AtomicBool::new(false));
        let is_waiting = Arc::clone(&waits);
        let serving = self.serving.spawn(async move {
            if let Err(error) = serve(stream, &metrics, &is_waiting).await {
                tracing::debug!(%error, "a client of the metrics was left");
            }
        });
        self.served.push_back(Client { serving, waits });
    }
}

async fn serve(mut stream: TcpStream, metrics: &Metrics, waits: &AtomicBool) -> io::Result<()> {
    let head = timeout(READ, read_head(&mut stream)).await??;
    waits.store(true, Ordering::Relaxed);
    let answer = match asked(&head) {
        Asked::Metrics => answer("200 OK", CONTENT_TYPE, &metrics.render().await, false),
        Asked::MetricsHead => answer("200 OK", CONTENT_TYPE, &metrics.render().await, true),
        Asked::Elsewhere => answer("404 Not Found", PLAIN, "see /metrics\n", false),
        Asked::Otherwise => answer("405 Method Not Allowed", PLAIN, "GET /metrics\n", false),
        Asked::Nonsense => answer("400 Bad Request", PLAIN, "GET /metrics\n", false),
    };
    waits.store(false, Ordering::Relaxed);
    timeout(WRITE, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    })
    .await?
}

/// What comes up to the empty line.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    loop {
        let count = stream.read(&mut part).await?;
        head.extend_from_slice(&part[..count]);
        let is_whole = head.windows(4).any(|end| end == b"\r\n\r\n");
        if is_whole || count == 0 || head.len() > HEAD_BYTES {
            return Ok(head);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    MetricsHead,
    Elsewhere,
    Otherwise,
    Nonsense,
}

fn asked(head: &[u8]) -> Asked {
    let text = String::from_utf8_lossy(head);
    let line = text.lines().next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        _ if !text.contains("\r\n\r\n") => Asked::Nonsense,
        [method, target, version] if version.starts_with("HTTP/1.") => {
            let path = target.split('?').next().unwrap_or_default();
            match (method, path) {
                ("GET", "/metrics") => Asked::Metrics,
                ("HEAD", "/metrics") => Asked::MetricsHead,
                ("GET" | "HEAD", _) => Asked::Elsewhere,
                _ => Asked::Otherwise,
            }
        }
        _ => Asked::Nonsense,
    }
}

fn answer(status: &str, content: &str, body: &str, is_head_alone: bool) -> String {
    let length = body.len();
    let body = if is_head_alone { "" } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const CONNECTIONS: usize = 64;
const HEAD_BYTES: usize = 8 << 10;
const READ: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(10);
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_page_is_answered_with_it() {
        for (head, want) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Asked::Metrics),
            ("GET /metrics?name=x HTTP/1.0\r\n\r\n", Asked::Metrics),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Asked::MetricsHead),
            ("GET / HTTP/1.1\r\n\r\n", Asked::Elsewhere),
            (
                "POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
                Asked::Otherwise,
            ),
            ("GET /metrics HTTP/1.1\r\nHost: a", Asked::Nonsense),
            ("GET /metrics HTTP/2\r\n\r\n", Asked::Nonsense),
            ("\r\n\r\n", Asked::Nonsense),
        ] {
            assert_eq!(asked(head.as_bytes()), want, "{head:?}");
        }
    }

    #[tokio::test]
    async fn a_scrape_does_not_wait_for_clients_that_are_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _server = serve_metrics(listener, Metrics::new());
        let mut silent = Vec::new();
        for _ in 0..200 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut scrape = TcpStream::connect(address).await.unwrap();
        let asks = b"GET /metrics HTTP/1.1\r\n\r\n";
        scrape.write_all(asks).await.unwrap();
        let mut answer = String::new();
        scrape.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        // Those that came last are waited for still, and the first ones made way.
        for recent in &silent[150..] {
            let read = recent.try_read(&mut [0]);
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        assert_eq!(silent[0].read(&mut [0]).await.ok(), Some(0));
    }
}
