//! A fixed piece of work, for `valgrind --tool=callgrind` to count its instructions: see `.ci/instructions`.
//!
//! `instructions NAME REQUESTS enqueue|drain`: pushes so many requests of 1 KiB into a new store of a contestant of
//! `batchyard bench`, 100 at a time, and drains them in batches of 1,000 or not.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]

use std::env;

use batchyard::bench::{
    contestant::{Contestant, Setup},
    payload::Payloads,
    workload::{empty, fill_by},
};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // Cargo runs every benchmark with arguments of its own, and this one has no time to tell.
    let [name, requests, work] = &arguments[..] else {
        println!("skipped: .ci/instructions runs this");
        return;
    };
    let requests = requests.parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let contestant = Contestant::named(name).unwrap();
        let setup = Setup::new(folder.path().to_owned());
        let yard = contestant.open(setup).await.unwrap();
        fill_by(&*yard, &Payloads::of(1024), requests, 100)
            .await
            .unwrap();
        if work == "drain" {
            let (tally, ..) = empty(&*yard, 1000).await.unwrap();
            assert_eq!(tally.requests, requests);
        }
        yard.close().await.unwrap();
    });
}
