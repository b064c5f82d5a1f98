//! Replies of a Redis server: whatever it answers, each verb has a value or an error.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::wait;
use crate::{
    RedisQueue,
    batch::{BatchId, Claim, Fence, Lease, Page, Then, Update},
    clock::Timestamp,
    error::{ErrorKind, Result},
    queue::{Administration, List, Queue, ResultCursor, Transfer, transfer::DumpFrom},
    request::{Bookmark, NewRequest, RequestId, State},
};

/// A verb, and what is answered to its commands, one after the other, as the server writes it.
pub fn redis_replies(data: &[u8]) {
    let Some((verb, replies)) = data.split_first() else {
        return;
    };
    thread_local! {
        static FAKE: Fake = wait(Fake::start());
    }
    let mut script = VecDeque::from([SAME_SALT.to_vec(), OK.to_vec()]);
    script.extend(split(replies));
    FAKE.with(|fake| {
        *fake.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
        wait(async {
            let known = fake.queue.status(NOW, RequestId::from_u64(1)).await;
            assert_eq!(known.expect("these replies are good"), None);
            if let Err(error) = call(&fake.queue, *verb).await {
                let clear = [
                    ErrorKind::Corrupt,
                    ErrorKind::Internal,
                    ErrorKind::Invalid,
                    ErrorKind::LeaseLost,
                    ErrorKind::QueueFull,
                    ErrorKind::Unavailable,
                ];
                assert!(clear.contains(&error.kind()), "{error:?}");
            }
        });
    });
}

async fn call(queue: &RedisQueue, verb: u8) -> Result<()> {
    let ids = [RequestId::from_u64(1), RequestId::from_u64(2)];
    let list = |state| List::new(state).with_payloads();
    match verb % 20 {
        0 => drop(queue.stats(NOW).await?.adds_up()),
        1 => drop(queue.claim(NOW, &Claim::new()).await?),
        2 => drop(queue.read(&lease(), Page::first()).await?),
        3 => {
            let until = Then::Hold { until: NOW };
            queue.update(NOW, &lease(), Update::then(until)).await?;
        }
        4 => {
            let new = vec![NewRequest::new("one"), NewRequest::new("two")];
            let pushed = queue.push(NOW, new).await?;
            assert_eq!(pushed.len(), 2, "one id for each request");
        }
        5 => drop(queue.status(NOW, ids[0]).await?),
        6 => drop(queue.list(NOW, &list(State::Dead)).await?),
        7 => drop(queue.list(NOW, &list(State::InFlight)).await?),
        8 => {
            let after = Some(ResultCursor(7, 0));
            drop(queue.results(NOW, after, NonZeroU32::MIN).await?);
        }
        9 => {
            let cancelled = queue.cancel(NOW, &ids).await?;
            assert_eq!(cancelled.len(), 2, "one answer for each request");
        }
        10 => drop(queue.redrive(NOW, &ids).await?),
        11 => drop(queue.purge(NOW, &ids).await?),
        12 => drop(queue.bookmark("source").await?),
        13 => {
            let bookmark = Bookmark {
                source: "source".into(),
                value: "value".into(),
            };
            let pushed = queue
                .push_from(NOW, vec![NewRequest::new("")], bookmark)
                .await?;
            assert_eq!(pushed.len(), 1, "one id for each request");
        }
        14 => drop(queue.dump(NOW, DumpFrom::Start).await?),
        15 => drop(queue.dump(NOW, DumpFrom::Batches).await?),
        16 => drop(queue.dump(NOW, DumpFrom::Settled(None)).await?),
        17 => drop(queue.dump(NOW, DumpFrom::Keys(None)).await?),
        18 => drop(queue.dump(NOW, DumpFrom::Bookmarks).await?),
        _ => drop(queue.restore().await?),
    }
    Ok(())
}

fn lease() -> Lease {
    Lease {
        batch: BatchId::new(9, SALT),
        parent: None,
        fence: Fence(3),
        attempt: 1,
        requests: 2,
        unsettled: 2,
        bytes: 6,
        formed_at: NOW,
        until: NOW,
        checkpoint: None,
        context: "".into(),
    }
}

/// A server that answers what it is told to, and a queue that is connected to it.
struct Fake {
    queue: RedisQueue,
    script: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

type Script = Arc<Mutex<VecDeque<Vec<u8>>>>;

impl Fake {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("it is bound");
        let script = Script::default();
        let told = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, told.clone()));
            }
        });
        let queue = RedisQueue::connect(&format!("redis://{address}")).await;
        Self {
            queue: queue.expect("it is a server"),
            script,
        }
    }
}

async fn serve(mut stream: TcpStream, script: Script) {
    let mut bytes = Vec::new();
    loop {
        while let Some((length, name)) = command(&bytes) {
            let told = script
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let is_listening = name == "PSUBSCRIBE";
            let reply = told
                .filter(|_| !is_listening)
                .unwrap_or_else(|| usual(&name));
            if stream.write_all(&reply).await.is_err() {
                return;
            }
            bytes.drain(..length);
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// How long the first command is, and its name, if all of it has come.
fn command(bytes: &[u8]) -> Option<(usize, String)> {
    let length = value(bytes, 0)?;
    let mut lines = bytes[..length].split(|byte| *byte == b'\n').skip(2);
    let name = lines.next()?.trim_ascii_end();
    Some((length, String::from_utf8_lossy(name).to_uppercase()))
}

/// What a server answers to whoever connects.
fn usual(command: &str) -> Vec<u8> {
    let reply = match command {
        "INFO" => "$21\r\nredis_version:7.2.0\r\n\r\n",
        "CONFIG" => "*2\r\n$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n",
        "TIME" => "*2\r\n$1\r\n7\r\n$1\r\n7\r\n",
        "EVALSHA" => "*2\r\n$2\r\nok\r\n$16\r\n0000000000000007\r\n",
        "PSUBSCRIBE" => "*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n",
        "SADD" | "PUBLISH" => ":0\r\n",
        _ => "+OK\r\n",
    };
    reply.into()
}

/// The replies that stand here, up to what is none, or one at which the call would be repeated for a while.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut replies = Vec::new();
    while let Some(length) = value(bytes, 0)
        && replies.len() < REPLIES
    {
        let (reply, rest) = bytes.split_at(length);
        let has = |code: &&str| {
            reply
                .windows(code.len())
                .any(|some| some == code.as_bytes())
        };
        if PASSING.iter().any(has) {
            break;
        }
        replies.push(reply.to_vec());
        bytes = rest;
    }
    replies
}

/// How long the value is that begins here, if one does.
fn value(bytes: &[u8], depth: u32) -> Option<usize> {
    let end = bytes.windows(2).position(|some| some == b"\r\n")? + 2;
    let number = || -> Option<i64> { str::from_utf8(&bytes[1..end - 2]).ok()?.parse().ok() };
    match bytes.first()? {
        b'+' | b'-' => str::from_utf8(&bytes[..end]).ok().map(|_| end),
        b':' => number().map(|_| end),
        b'$' | b'*' if number()? == -1 => Some(end),
        b'$' => {
            let whole = end.checked_add(usize::try_from(number()?).ok()?)?;
            bytes
                .get(whole..)?
                .starts_with(b"\r\n")
                .then_some(whole + 2)
        }
        b'*' if depth < 4 => (0..u16::try_from(number()?).ok()?)
            .try_fold(end, |at, _| Some(at + value(&bytes[at..], depth + 1)?)),
        _ => None,
    }
}

const SALT: u64 = 7;
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
/// What brings the queue back to the salt that it had at first.
const SAME_SALT: &[u8] = b"*2\r\n$4\r\nsalt\r\n$16\r\n0000000000000007\r\n";
const OK: &[u8] = b"*1\r\n$2\r\nok\r\n";
const REPLIES: usize = 16;
/// Errors after which a call is made again, for as long as ten seconds.
const PASSING: [&str; 7] = [
    "LOADING",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "READONLY",
    "BUSY",
    "NOSCRIPT",
];
