//! Something else writes to a key of ours: a value of another type, a foreign field, a foreign member. Every verb
//! answers as it should or says which queue is damaged, and once the foreign value is taken away again, all is as before.

use std::{panic::AssertUnwindSafe, time::Duration};

use batchyard::{
    Bookmark, Claim, ErrorKind, Lease, List, NewRequest, Outcome, Page, Queue, RedisQueue,
    RequestId, Result, State, Then, Timestamp, Update,
    testing::proof,
    transfer::{DumpFrom, Transfer},
};
use futures_util::FutureExt;

use crate::{
    life::{chosen, drain, finish, keyed, options, seconds, start},
    server::Server,
};

/// A foreign value, and how it is taken away again.
struct Plant {
    what: String,
    begin: Vec<Vec<String>>,
    undo: Vec<Vec<String>>,
    /// Whether it is as good as what it stands for, as far as any verb can tell.
    passes: bool,
    /// Whether its set only counts, so that what is foreign in it is not told.
    only_counts: bool,
}

fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(ToString::to_string).collect()
}

impl Plant {
    fn new(what: String, plant: &[&[&str]], undo: &[&[&str]]) -> Self {
        Self {
            what,
            begin: plant.iter().map(|line| words(line)).collect(),
            undo: undo.iter().map(|line| words(line)).collect(),
            passes: false,
            only_counts: false,
        }
    }

    fn wrong_type(key: &str) -> Self {
        let there: &[&str] = &["RENAME", key, "away"];
        let back: &[&str] = &["RENAME", "away", key];
        Self::new(
            format!("{key} of another type"),
            &[there, &["LPUSH", key, "foreign"]],
            &[&["DEL", key], back],
        )
    }

    fn field(key: &str, field: &str, was: &str, is: &str) -> Self {
        Self::new(
            format!("{is} for {field} in {key}"),
            &[&["HSET", key, field, is]],
            &[&["HSET", key, field, was]],
        )
    }

    fn member(key: &str, was: &str, is: &str) -> Self {
        Self::new(
            format!("{is} for {was} in {key}"),
            &[&["ZREM", key, was], &["ZADD", key, "0", is]],
            &[&["ZREM", key, is], &["ZADD", key, "0", was]],
        )
    }
}

/// A queue with requests in every state, one batch that is held and one that is offered.
struct Filled {
    name: String,
    queue: RedisQueue,
    lease: Lease,
    dead: Vec<RequestId>,
}

impl Filled {
    async fn new(server: &Server, name: &str) -> Self {
        let queue = server.queue_with(name, options()).await.unwrap();
        let mut first = keyed("first", 8);
        first[6] = first[6].clone().not_before(seconds(50));
        first[7] = first[7].clone().ttl(Duration::from_secs(50));
        queue.push(start(), first).await.unwrap();
        let bookmark = Bookmark {
            source: "input".into(),
            value: "line 8".into(),
        };
        queue
            .push_from(start(), Vec::new(), bookmark)
            .await
            .unwrap();
        let claim = Claim {
            max_requests: 2.try_into().unwrap(),
            ..Claim::new()
        };
        let mut leases = Vec::new();
        for _ in 0..3 {
            leases.push(queue.claim(start(), &claim).await.unwrap().unwrap());
        }
        let mut outcomes = finish(Outcome::done());
        let members = queue.read(&leases[0], Page::first()).await.unwrap();
        outcomes.outcomes = vec![(members[0].id, Outcome::reject("no"))];
        queue
            .update(seconds(1), &leases[0], outcomes)
            .await
            .unwrap();
        let members = queue.read(&leases[1], Page::first()).await.unwrap();
        let retry = Update {
            outcomes: vec![(members[0].id, Outcome::retry("busy"))],
            checkpoint: Some("note".into()),
            ..Update::then(Then::Hold { until: seconds(90) })
        };
        queue.update(seconds(1), &leases[1], retry).await.unwrap();
        queue
            .update(seconds(1), &leases[2], finish(Outcome::retry("again")))
            .await
            .unwrap();
        queue
            .push(seconds(2), vec![NewRequest::new("ready"); 3])
            .await
            .unwrap();
        // Time brings something to each of the verbs that follow.
        let brought = (0..VERBS).flat_map(|verb| {
            let at = seconds(60 + verb);
            [
                NewRequest::new("expires").ttl(Duration::from_secs(58 + verb)),
                NewRequest::new("due").not_before(at),
            ]
        });
        queue.push(seconds(2), brought.collect()).await.unwrap();
        let dead = queue
            .admin()
            .unwrap()
            .list(seconds(2), &List::new(State::Dead))
            .await
            .unwrap();
        Self {
            name: name.to_owned(),
            queue,
            lease: leases[1].clone(),
            dead: dead.iter().map(|entry| entry.id).collect(),
        }
    }

    fn key(&self, of: &str) -> String {
        format!("batchyard:{{{}}}:{of}", self.name)
    }

    /// Everything that may be planted: one thing at a time.
    async fn plants(&self, server: &Server) -> Vec<Plant> {
        let mut plants = Vec::new();
        let mut keys: Vec<String> = server.command(&["KEYS", &self.key("*")]).await;
        keys.retain(|key| !key.contains(":reply:"));
        keys.sort_unstable();
        for key in keys {
            plants.push(Plant::wrong_type(&key));
            let kind: String = server.command(&["TYPE", &key]).await;
            match &*kind {
                "hash" => {
                    let fields: Vec<(String, Vec<u8>)> = server.command(&["HGETALL", &key]).await;
                    for (field, was) in fields {
                        let was = String::from_utf8(was).unwrap();
                        for is in foreign_values(&was).into_iter().filter(|is| *is != was) {
                            plants.push(Plant::field(&key, &field, &was, &is));
                        }
                    }
                }
                "zset" => {
                    let members: Vec<String> = server.command(&["ZRANGE", &key, "0", "-1"]).await;
                    plants.push(Plant::member(&key, &members[0], "0-foreign"));
                }
                _ => {}
            }
        }
        for plant in &mut plants {
            let is_in = |list: &[&str]| list.iter().any(|part| plant.what.contains(part));
            let is_member = plant.what.starts_with("0-foreign");
            (plant.passes, plant.only_counts) = (is_in(&PASSES), is_member && is_in(&ONLY_COUNTS));
        }
        plants
    }

    /// What every verb answers.
    async fn answers(&self, server: &Server) -> Vec<(&'static str, Result<()>)> {
        let queue = &self.queue;
        let mut verbs = 59;
        let mut next = || {
            verbs += 1;
            seconds(verbs)
        };
        let admin = queue.admin().unwrap();
        let bookmark = Bookmark {
            source: "input".into(),
            value: "line 9".into(),
        };
        let hold = Update::then(Then::Hold { until: seconds(90) });
        let finish = finish(Outcome::done());
        let again = server.queue_with(&self.name, options()).await;
        let mut answers = vec![
            ("connect", again.map(drop)),
            ("stats", queue.stats(next()).await.map(drop)),
            (
                "push",
                queue.push(next(), keyed("first", 1)).await.map(drop),
            ),
            (
                "push from",
                queue
                    .push_from(next(), Vec::new(), bookmark)
                    .await
                    .map(drop),
            ),
            ("bookmark", queue.bookmark("input").await.map(drop)),
            (
                "read",
                queue.read(&self.lease, Page::first()).await.map(drop),
            ),
            ("hold", queue.update(next(), &self.lease, hold).await),
            ("redrive", admin.redrive(next(), &self.dead).await.map(drop)),
            (
                "results",
                admin
                    .results(next(), None, 9.try_into().unwrap())
                    .await
                    .map(drop),
            ),
            ("dump", dump(queue, next()).await),
            ("claim", queue.claim(next(), &Claim::new()).await.map(drop)),
            ("finish", queue.update(next(), &self.lease, finish).await),
        ];
        for state in [
            State::Delayed,
            State::Ready,
            State::InFlight,
            State::Done,
            State::Dead,
        ] {
            let list = List::new(state).with_payloads();
            let list = admin.list(next(), &list).await;
            let ids = list
                .iter()
                .flatten()
                .map(|entry| entry.id)
                .collect::<Vec<_>>();
            answers.push(("cancel", admin.cancel(next(), &ids).await.map(drop)));
            answers.push(("purge", admin.purge(next(), &ids).await.map(drop)));
            answers.push(("list", list.map(drop)));
        }
        answers
    }
}

async fn dump(queue: &RedisQueue, now: Timestamp) -> Result<()> {
    let mut from = Some(DumpFrom::Start);
    while let Some(at) = from {
        from = queue.dump(now, at).await?.next;
    }
    Ok(())
}

/// What something else may have put in the place of a value.
fn foreign_values(was: &str) -> Vec<String> {
    let mut values = vec![String::new(), "foreign".into(), format!("{was}more")];
    if was.len() > 100 {
        values.push("z".repeat(was.len()));
        values.push(was[..was.len() - 1].to_owned());
    }
    values
}

#[tokio::test]
async fn a_foreign_value_anywhere_is_told_and_spoils_nothing_else() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let beside = server.queue("beside").await;
    let plants = Filled::new(&server, "seen")
        .await
        .plants(&server)
        .await
        .len();
    let mut wrong = Vec::new();
    let chosen = chosen(plants, 40);
    let count = chosen.len();
    for number in chosen {
        let tried = AssertUnwindSafe(try_plant(&server, number)).catch_unwind();
        if let Ok(Err(what)) | Err(what) = tried.await.map_err(|_| format!("plant {number}")) {
            wrong.push(what);
        }
        beside
            .push(beside.now(), vec![NewRequest::new("beside")])
            .await
            .unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(
        beside.stats(beside.now()).await.unwrap().ready,
        count as u64
    );
    proof("G8", "redis", format!("{count} foreign values"), &[]);
}

async fn send(server: &Server, lines: &[Vec<String>]) {
    for line in lines {
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let _: redis::Value = server.command(&line).await;
    }
}

/// Plants one thing in a queue of its own, calls every verb, takes it away, and finishes what is in the queue.
async fn try_plant(server: &Server, number: usize) -> std::result::Result<(), String> {
    // The same queue each time; its name and its salt are all that differs.
    let filled = Filled::new(server, &format!("q{number}")).await;
    let plant = filled.plants(server).await.swap_remove(number);
    println!("{}", plant.what);
    send(server, &plant.begin).await;
    let mut is_told = false;
    for (verb, answer) in filled.answers(server).await {
        let Err(error) = answer else { continue };
        is_told = true;
        let is_expected = match error.kind() {
            ErrorKind::Corrupt => error.to_string().contains(&filled.name),
            ErrorKind::LeaseLost => plant.what.contains(":batch:"),
            ErrorKind::Unavailable => plant.what.contains(":payload:") && verb == "dump",
            _ => false,
        };
        if !is_expected {
            return Err(format!(
                "{}, {verb}: {:?} {error}",
                plant.what,
                error.kind()
            ));
        }
    }
    send(server, &plant.undo).await;
    if !plant.only_counts {
        drain(&filled.queue).await;
    }
    if is_told || plant.passes || plant.only_counts {
        Ok(())
    } else {
        Err(format!("{} was not told", plant.what))
    }
}

#[tokio::test]
async fn a_record_that_is_none_far_back_in_a_batch_stops_its_end_before_it_begins() {
    let Some(server) = Server::start_with(&["--appendonly", "no"]) else {
        return;
    };
    let queue = server.queue_with("long", options()).await.unwrap();
    let pushed = queue.push(start(), keyed("long", 3_500)).await.unwrap();
    let lease = queue.claim(start(), &Claim::new()).await.unwrap().unwrap();
    let (records, id) = ("batchyard:{long}:requests", pushed[3_400].id.to_string());
    let was: String = server.command(&["HGET", records, &id]).await;
    let _: u64 = server.command(&["HSET", records, &id, "foreign"]).await;
    let update = queue
        .update(seconds(1), &lease, finish(Outcome::reject("no")))
        .await;
    let error = update.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&id), "{error}");
    let stats = queue.stats(seconds(1)).await.unwrap();
    assert_eq!((stats.in_flight, stats.dead), (3_500, 0));
    let _: u64 = server.command(&["HSET", records, &id, &was]).await;
    queue
        .update(seconds(1), &lease, finish(Outcome::done()))
        .await
        .unwrap();
    assert_eq!(queue.stats(seconds(1)).await.unwrap().done, 3_500);
}

/// How many verbs are called at most.
const VERBS: u64 = 30;
/// The caller's own, which may be anything.
const PASSES: [&str; 6] = [
    ":bookmarks",
    ":payload:",
    "for context",
    "for checkpoint",
    "busymore",
    "for seen_",
];
/// Sets whose members are looked at only through the requests that they count.
const ONLY_COUNTS: [&str; 7] = [
    "}:delayed",
    "}:dead",
    "}:flight",
    "}:done",
    "}:expiry",
    "}:keys",
    "}:keyed",
];
