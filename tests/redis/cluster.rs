//! A cluster is refused: while a slot moves, its keys lie on two nodes, and a script that meets one that has gone
//! stops in its middle, which Redis does not take back.

use batchyard::{ErrorKind, RedisQueue, RedisStore, testing::proof};

use crate::server::Server;

/// Three nodes that know each other and share the slots.
async fn start() -> Option<Vec<Server>> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Server::start_node()?);
    }
    let shares = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
    for (node, (from, to)) in nodes.iter().zip(shares) {
        let () = node.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]).await;
        let () = nodes[0]
            .command(&["CLUSTER", "MEET", "127.0.0.1", node.port(), node.bus_port()])
            .await;
    }
    for node in &nodes {
        while !node
            .command::<String>(&["CLUSTER", "INFO"])
            .await
            .contains("cluster_state:ok")
            || node
                .command::<String>(&["CLUSTER", "NODES"])
                .await
                .lines()
                .count()
                < 3
        {
            tokio::task::yield_now().await;
        }
    }
    Some(nodes)
}

#[tokio::test]
async fn every_node_of_a_cluster_is_refused_with_what_to_do() {
    let Some(nodes) = start().await else {
        return;
    };
    for node in &nodes {
        let queue = RedisQueue::connect(&node.url()).await.unwrap_err();
        let store = RedisStore::connect(&node.url()).await.unwrap_err();
        for error in [queue, store] {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("cluster-enabled no"), "{error}");
        }
    }
    why_it_is(&nodes).await;
    proof("G2 G3 G5", "redis", "3 nodes refused", &[]);
}

/// What a queue would go through while its slot is moved: half a script.
async fn why_it_is(nodes: &[Server]) {
    let (slot, mut owner) = (
        nodes[0]
            .command::<u64>(&["CLUSTER", "KEYSLOT", "{queue}:a"])
            .await,
        0,
    );
    for (index, first) in [0, 5461, 10923].into_iter().enumerate() {
        owner = if slot >= first { index } else { owner };
    }
    let (from, to) = (&nodes[owner], &nodes[(owner + 1) % 3]);
    for key in ["{queue}:a", "{queue}:b"] {
        let () = from.command(&["SET", key, "1"]).await;
    }
    let (from_id, to_id): (String, String) = (
        from.command(&["CLUSTER", "MYID"]).await,
        to.command(&["CLUSTER", "MYID"]).await,
    );
    let slot = slot.to_string();
    let () = to
        .command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])
        .await;
    let () = from
        .command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])
        .await;
    let migrate = ["MIGRATE", "127.0.0.1", to.port(), "{queue}:b", "0", "5000"];
    let () = from.command(&migrate).await;
    let script = "redis.call('INCR', KEYS[1]); redis.call('INCR', '{queue}:b')";
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg("{queue}:a");
    let stopped = command
        .query_async::<()>(&mut from.connection().await)
        .await;
    assert!(stopped.is_err());
    let half: u64 = from.command(&["GET", "{queue}:a"]).await;
    assert_eq!(half, 2, "its first half stays");
}
