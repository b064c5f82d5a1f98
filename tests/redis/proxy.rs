//! A way to a server that can be cut in the middle of any request or reply, held up, and turned to another server.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

/// Where the connection of a request is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Before anything of it reached the server.
    Unsent,
    /// When half of it had.
    HalfSent,
    /// After the server ran it, when half of its reply had come back.
    HalfAnswered,
    /// After the server ran it, before anything came back.
    Unanswered,
    /// The same, and the server forgets what it keeps to answer a repeated call: a planted fault.
    Forgotten,
}

impl Cut {
    pub(crate) const ALL: [Self; 4] = [
        Self::Unsent,
        Self::HalfSent,
        Self::HalfAnswered,
        Self::Unanswered,
    ];
}

/// Forwards connections of a loopback port to a server's socket.
pub(crate) struct Proxy {
    port: u16,
    way: Arc<Way>,
}

/// What the connections of a proxy have in common.
struct Way {
    server: Mutex<PathBuf>,
    plan: Mutex<Plan>,
    /// How many cuts were made.
    cuts: watch::Sender<usize>,
    /// Moved when every connection is to end.
    severed: watch::Sender<u64>,
    /// Whether replies are held back.
    held: watch::Sender<bool>,
    /// Whether nobody is let in.
    shut: watch::Sender<bool>,
}

#[derive(Default)]
struct Plan {
    /// How many commands were seen, handshakes aside.
    seen: usize,
    /// How many are let through before the next cut.
    skip: usize,
    /// How many cuts are still to be made.
    left: usize,
    how: Option<Cut>,
    /// Whether only calls of scripts that the server knows count.
    scripts_only: bool,
    /// Whether nobody is let in any more after a cut.
    is_final: bool,
}

impl Proxy {
    pub(crate) async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(Way {
            server: Mutex::new(socket),
            plan: Mutex::default(),
            cuts: watch::Sender::new(0),
            severed: watch::Sender::new(0),
            held: watch::Sender::new(false),
            shut: watch::Sender::new(false),
        });
        let through = Arc::clone(&way);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, Arc::clone(&through)));
            }
        });
        Self { port, way }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Cuts the connections of the next calls of scripts after the server has answered them.
    pub(crate) fn cut(&self, times: usize) {
        let mut plan = self.way.plan.lock().unwrap();
        (plan.skip, plan.left, plan.how) = (0, times, Some(Cut::Unanswered));
        plan.scripts_only = true;
    }

    /// Cuts the connection of one command of any kind, after so many others.
    pub(crate) fn cut_after(&self, skip: usize, how: Cut) {
        let mut plan = self.way.plan.lock().unwrap();
        (plan.skip, plan.left, plan.how) = (skip, 1, Some(how));
        plan.scripts_only = false;
    }

    /// The same, and nobody is let in any more.
    pub(crate) fn end_after(&self, skip: usize, how: Cut) {
        self.cut_after(skip, how);
        self.way.plan.lock().unwrap().is_final = true;
    }

    /// Whether all cuts were made.
    pub(crate) fn is_spent(&self) -> bool {
        self.way.plan.lock().unwrap().left == 0
    }

    /// How many commands came by.
    pub(crate) fn seen(&self) -> usize {
        self.way.plan.lock().unwrap().seen
    }

    /// Waits for the next cut from here on.
    pub(crate) async fn is_cut(&self) {
        self.way.cuts.subscribe().changed().await.unwrap();
    }

    /// Holds back every reply from now on, or lets them through again.
    pub(crate) fn hold(&self, held: bool) {
        self.way.held.send_replace(held);
    }

    /// Ends every connection; those that follow go to this server.
    pub(crate) fn turn_to(&self, socket: PathBuf) {
        self.lead_to(socket);
        self.sever();
    }

    /// Connections that follow go to this server; those that there are stay where they are.
    pub(crate) fn lead_to(&self, socket: PathBuf) {
        *self.way.server.lock().unwrap() = socket;
    }

    pub(crate) fn sever(&self) {
        self.way.severed.send_modify(|times| *times += 1);
    }
}

impl Way {
    /// How this command is cut, if it is.
    fn fate(&self, command: &[u8]) -> Option<Cut> {
        if is_handshake(command) {
            return None;
        }
        let mut plan = self.plan.lock().unwrap();
        plan.seen += 1;
        if plan.left == 0 || (plan.scripts_only && !has(command, b"EVAL")) {
            return None;
        }
        if plan.skip > 0 {
            plan.skip -= 1;
            return None;
        }
        plan.left -= 1;
        plan.how
    }

    /// Whether the call that this answers did not run and is not the one to cut: then the next one is.
    fn put_back(&self, reply: &[u8]) -> bool {
        let mut plan = self.plan.lock().unwrap();
        let is_unknown = plan.scripts_only && reply.starts_with(b"-NOSCRIPT");
        plan.left += usize::from(is_unknown);
        is_unknown
    }

    fn tell(&self) {
        if self.plan.lock().unwrap().is_final {
            self.shut.send_replace(true);
            self.severed.send_modify(|times| *times += 1);
        }
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn forward(mut client: TcpStream, way: Arc<Way>) {
    let (mut severed, mut held) = (way.severed.subscribe(), way.held.subscribe());
    let socket = way.server.lock().unwrap().clone();
    if *way.shut.borrow() {
        return;
    }
    let Ok(mut server) = UnixStream::connect(&socket).await else {
        return;
    };
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    // How each reply that is still to come is cut.
    let mut expected = VecDeque::new();
    loop {
        while let Some(length) = frame(&asked) {
            let command: Vec<u8> = asked.drain(..length).collect();
            let fate = way.fate(&command);
            let sent = match fate {
                Some(Cut::Unsent) => 0,
                Some(Cut::HalfSent) => length / 2,
                _ => length,
            };
            let is_sent = server.write_all(&command[..sent]).await.is_ok();
            if sent < length {
                return way.tell();
            }
            if !is_sent {
                return;
            }
            expected.push_back(fate);
        }
        while let Some(length) = frame(&answered) {
            let reply: Vec<u8> = answered.drain(..length).collect();
            let fate = expected.pop_front().flatten();
            let told = match fate {
                Some(_) if way.put_back(&reply) => length,
                Some(Cut::HalfAnswered) => length / 2,
                Some(Cut::Forgotten) => {
                    forget(&socket).await;
                    0
                }
                Some(_) => 0,
                None => length,
            };
            let is_told = client.write_all(&reply[..told]).await.is_ok();
            if told < length {
                return way.tell();
            }
            if !is_told {
                return;
            }
        }
        tokio::select! {
            Ok(length) = client.read_buf(&mut asked), if asked.len() < MOST => {
                if length == 0 {
                    return;
                }
            }
            Ok(length) = read_unless(&mut server, &mut answered, &mut held) => {
                if length == 0 {
                    return;
                }
            }
            _ = severed.changed() => return,
        }
    }
}

async fn read_unless(
    server: &mut UnixStream,
    answered: &mut Vec<u8>,
    held: &mut watch::Receiver<bool>,
) -> std::io::Result<usize> {
    // The proxy is there for as long as its connections are.
    let _ = held.wait_for(|held| !held).await;
    server.read_buf(answered).await
}

/// Deletes the replies that a server keeps for repeated calls.
async fn forget(socket: &Path) {
    let address = format!("redis+unix://{}", socket.display());
    let client = redis::Client::open(address).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let script =
        "for _, key in ipairs(redis.call('KEYS', '*:reply:*')) do redis.call('DEL', key) end";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(0);
    let () = command.query_async(&mut connection).await.unwrap();
}

fn is_handshake(command: &[u8]) -> bool {
    [&b"CLIENT"[..], b"HELLO", b"SELECT", b"PSUBSCRIBE"]
        .iter()
        .any(|word| has(command, word))
}

/// Whether its first word is this one.
fn has(command: &[u8], word: &[u8]) -> bool {
    let head = &command[..command.len().min(32)];
    head.windows(word.len()).any(|part| part == word)
}

/// The length of the first whole command or reply.
fn frame(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let number = || {
        std::str::from_utf8(&bytes[1..line - 2])
            .unwrap()
            .parse::<i64>()
    };
    match bytes[0] {
        b'$' => {
            let length =
                usize::try_from(number().unwrap()).map_or(line, |length| line + length + 2);
            (bytes.len() >= length).then_some(length)
        }
        b'*' => (0..number().unwrap()).try_fold(line, |at, _| Some(at + frame(&bytes[at..])?)),
        _ => Some(line),
    }
}

/// The most of a command that is gathered; a push of more is sent in parts by its sender.
const MOST: usize = 64 << 20;
