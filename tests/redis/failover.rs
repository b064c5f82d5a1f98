//! A replica that lags takes over: what the old primary answered last is lost, as Redis has it. What must hold even
//! so: nothing that a client knows is given out again, and nobody's late call lands on somebody else's work.

use std::collections::BTreeSet;

use batchyard::{
    Claim, ErrorKind, Lease, NewRequest, Outcome, Page, Queue, RedisQueue, RequestId, Then, Update,
    testing::proof,
};

use crate::{
    life::{drain, finish, options},
    proxy::Proxy,
    server::Server,
};

/// A primary behind a proxy, and a replica that has heard of everything until now and hears no more.
struct Pair {
    primary: Server,
    replica: Server,
    proxy: Proxy,
}

impl Pair {
    async fn start() -> Option<Self> {
        let at_once = ["--appendonly", "no", "--repl-diskless-sync-delay", "0"];
        let primary = Server::start_on_a_port(&at_once)?;
        let replica = Server::start_on_a_port(&["--appendonly", "no"])?;
        let follow = ["REPLICAOF", "127.0.0.1", primary.port()];
        let () = replica.command(&follow).await;
        let proxy = Proxy::start(primary.socket()).await;
        Some(Self {
            primary,
            replica,
            proxy,
        })
    }

    async fn queue(&self) -> RedisQueue {
        let name = "moved".parse().unwrap();
        RedisQueue::connect_with(&self.proxy.url(), &name, options())
            .await
            .unwrap()
    }

    /// The replica has all that was written until now, and gets nothing of what follows.
    async fn fall_behind(&self) {
        // It waits for what the same connection wrote.
        let mut connection = self.primary.connection().await;
        let mut commands = redis::pipe();
        commands.cmd("SET").arg("mark").arg(1).ignore();
        commands.cmd("WAIT").arg(1).arg(0);
        let (synced,): (u64,) = commands.query_async(&mut connection).await.unwrap();
        assert_eq!(synced, 1);
        // Nobody is there.
        let () = self.replica.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    }

    /// The primary dies; whoever asks again is led to the replica, which then takes over.
    async fn fail_over(&mut self) {
        self.primary.kill();
        self.proxy.turn_to(self.replica.socket());
        let () = self.replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    }
}

fn requests(part: &str, count: usize) -> Vec<NewRequest> {
    let request = |n| NewRequest::new(format!("{part} {n}"));
    (0..count).map(request).collect()
}

async fn push(queue: &RedisQueue, part: &str, count: usize) -> BTreeSet<RequestId> {
    let pushed = queue
        .push(queue.now(), requests(part, count))
        .await
        .unwrap();
    pushed.iter().map(|one| one.id).collect()
}

async fn claim(queue: &RedisQueue) -> Lease {
    let claimed = queue.claim(queue.now(), &Claim::new()).await;
    claimed.unwrap().unwrap()
}

#[tokio::test]
async fn what_a_lagging_replica_lacks_is_lost_and_nothing_known_is_given_out_again() {
    let Some(mut pair) = Pair::start().await else {
        return;
    };
    let (one, other) = (pair.queue().await, pair.queue().await);
    let kept = push(&one, "kept", 10).await;
    let old = claim(&one).await;
    one.update(one.now(), &old, Update::then(Then::Release))
        .await
        .unwrap();
    pair.fall_behind().await;

    // The replica has the batch, but not this claim of it, nor what was pushed and claimed since.
    let first = claim(&one).await;
    let lost = push(&one, "lost", 10).await;
    let second = claim(&one).await;
    assert_eq!((first.batch, second.requests), (old.batch, 10));
    let settled = one
        .admin()
        .unwrap()
        .results(one.now(), None, 9.try_into().unwrap())
        .await;
    assert_eq!(settled.unwrap().next, None);
    let members = one.read(&first, Page::first()).await.unwrap();
    let hold = Update {
        outcomes: vec![(members[0].id, Outcome::result("lost"))],
        ..Update::then(Then::Hold { until: first.until })
    };
    one.update(one.now(), &first, hold).await.unwrap();
    let results = one
        .admin()
        .unwrap()
        .results(one.now(), None, 9.try_into().unwrap())
        .await;
    let known = results.unwrap().next;
    pair.fail_over().await;

    // As many claims as the old primary had answered since, so that a count would be where it was.
    let again = claim(&other).await;
    assert_eq!(
        (again.batch, again.requests, again.attempt),
        (old.batch, 10, 1)
    );
    let fresh = push(&other, "fresh", 10).await;
    let newest = claim(&other).await;
    for (late, now) in [(&first, &again), (&second, &newest)] {
        assert_ne!(late.fence, now.fence, "a fence was given out twice");
        let read = one.read(late, Page::first()).await.unwrap_err();
        let update = one
            .update(one.now(), late, finish(Outcome::reject("late")))
            .await;
        assert_eq!(read.kind(), ErrorKind::LeaseLost);
        assert_eq!(update.unwrap_err().kind(), ErrorKind::LeaseLost);
    }
    assert_ne!(second.batch, newest.batch);
    assert!(fresh.first() > lost.last(), "positions went back");
    for id in &lost {
        let status = one.admin().unwrap().status(one.now(), *id).await.unwrap();
        assert_eq!(status, None, "{id} is somebody else's now");
    }

    // Whoever has results up to a place that is gone misses none of those that come.
    let members = other.read(&again, Page::first()).await.unwrap();
    assert!(members.iter().all(|one| one.outcome.is_none()));
    other
        .update(other.now(), &again, finish(Outcome::result("kept")))
        .await
        .unwrap();
    let after = one
        .admin()
        .unwrap()
        .results(one.now(), known, 99.try_into().unwrap())
        .await;
    assert_eq!(after.unwrap().entries.len(), 10);
    other
        .update(other.now(), &newest, finish(Outcome::done()))
        .await
        .unwrap();
    let stats = one.stats(one.now()).await.unwrap();
    assert_eq!((stats.pushed, stats.done, kept.len()), (20, 20, 10));
    drain(&one).await;
    proof("G3 G4 G5", "redis", "1 failover", &[]);
}

#[tokio::test]
async fn a_call_that_meets_a_replica_waits_for_its_promotion() {
    let Some(pair) = Pair::start().await else {
        return;
    };
    let queue = pair.queue().await;
    push(&queue, "before", 3).await;
    pair.fall_behind().await;
    // Both are alive: the old primary has become a replica, and connections to it stay.
    let () = pair.primary.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let pushing = queue.push(queue.now(), requests("during", 3));
    let promoting = async {
        pair.proxy.lead_to(pair.replica.socket());
        let () = pair.replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    };
    let (pushed, ()) = tokio::join!(pushing, promoting);
    assert_eq!(pushed.unwrap().len(), 3);
    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.pushed, stats.ready), (6, 6));
    // The one that was left got nothing of it.
    let stored: Vec<String> = pair.primary.command(&["KEYS", "*:payload:*"]).await;
    assert_eq!(stored.len(), 3);
    proof("G5", "redis", "1 switchover", &[]);
}

#[tokio::test]
async fn a_replica_that_nobody_promotes_says_what_to_do() {
    let Some(pair) = Pair::start().await else {
        return;
    };
    let queue = pair.queue().await;
    pair.fall_behind().await;
    pair.proxy.turn_to(pair.replica.socket());
    let error = queue
        .push(queue.now(), requests("none", 1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("primary"), "{error}");
}
