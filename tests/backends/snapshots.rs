//! A snapshot is the store as it was at one moment, and has its name only once it is whole.

use std::{process::Stdio, sync::Arc};

use batchyard::{
    ControlAccess, JournalStore, NewRequest, QueueName, SledStore, Store, serve_control,
};

use crate::{
    Yard,
    places::{dump, lived_in},
    run, values,
};

const BACKENDS: [&str; 2] = ["sled", "journal"];

/// A store named `store`, with two queues that have seen everything.
async fn fill(yard: &Yard, backend: &str) -> String {
    let lines = [
        dump(&lived_in(30).await, "default").await,
        dump(&lived_in(3).await, "other").await,
    ];
    let line = format!("import --store store --backend {backend}");
    yard.ok(&line, lines.concat().as_bytes());
    yard.ok("export --store store", b"")
}

#[tokio::test]
async fn a_snapshot_of_a_closed_store_is_exported_the_same() {
    for backend in BACKENDS {
        let yard = Yard::new();
        let export = fill(&yard, backend).await;
        let told = yard.ok("snapshot --store store --to copy --json", b"");
        let told = &values(&told)[0];
        let records = export.lines().count() as u64;
        assert_eq!(told["queues"], 2);
        // Of what was settled a line may have more than one record of the dump.
        assert!(told["records"].as_u64().unwrap() >= records);
        assert_eq!(yard.kind("copy"), yard.kind("store"));
        assert_eq!(yard.ok("export --store copy", b""), export);
        assert_eq!(yard.ok("export --store store", b""), export);
        assert_eq!(yard.ok("verify --store copy", b"").lines().count(), 1);
        // Another one has another name, and what is there is left alone.
        yard.fails(
            "snapshot --store store --to copy",
            2,
            &["copy exists already"],
        );
        yard.fails(
            "snapshot --store store --to store/copy",
            2,
            &["within the store"],
        );
        yard.fails(
            "snapshot --store store --to no/copy",
            3,
            &["no does not exist"],
        );
        yard.fails("snapshot --store none --to other", 3, &["no store in none"]);
        yard.fails("snapshot --to other", 2, &["give --store DIR", "BGSAVE"]);
        let names = std::fs::read_dir(yard.0.path()).unwrap();
        assert_eq!(names.count(), 2, "nothing else is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_store_that_goes_on_is_of_one_moment() {
    for backend in BACKENDS {
        let yard = Yard::new();
        let path = yard.0.path().join("store");
        let store: Arc<dyn Store> = match backend {
            "sled" => Arc::new(SledStore::open(&path).await.unwrap()),
            _ => Arc::new(JournalStore::open(&path).await.unwrap()),
        };
        let served = serve_control(&path, Arc::clone(&store), None, ControlAccess::All).unwrap();
        let names = ["a", "b"].map(|name| name.parse::<QueueName>().unwrap());
        let mut queues = Vec::new();
        for name in &names {
            queues.push(store.queue(name).await.unwrap());
        }
        // First into the one, then into the other: at no moment is the other ahead.
        let push = async |from: u64| {
            for queue in &queues {
                let payloads = (from..from + 20).map(|number| number.to_string());
                let requests = payloads.map(NewRequest::new).collect();
                queue.push(queue.now(), requests).await.unwrap();
            }
        };
        for round in 0..100 {
            push(20 * round).await;
        }
        let mut command = yard.command("snapshot --store store --to copy");
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pushed = 2000;
        while child.try_wait().unwrap().is_none() {
            push(pushed).await;
            pushed += 20;
        }
        let ended = child.wait_with_output().unwrap();
        assert!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
        served.close().await;
        store.close().await.unwrap();
        let export = values(&yard.ok("export --store copy", b""));
        let numbers = |queue: &str| {
            let lines = export.iter().filter(|line| line["queue"] == queue);
            let numbers = lines.filter_map(|line| line["payload"].as_u64());
            numbers.collect::<Vec<_>>()
        };
        let (one, two) = (numbers("a"), numbers("b"));
        assert!(
            one.len() >= 2000 && one.len() as u64 <= pushed,
            "{}",
            one.len()
        );
        assert!(
            one.iter().copied().eq(0..one.len() as u64),
            "all up to then"
        );
        assert!(
            two.iter().copied().eq(0..two.len() as u64),
            "all up to then"
        );
        assert!(
            [0, 20].contains(&(one.len() - two.len())),
            "{} {}",
            one.len(),
            two.len()
        );
        println!(
            "{backend}: {} requests were pushed meanwhile",
            pushed - 2000
        );
    }
}

#[cfg(feature = "faults")]
#[tokio::test]
async fn a_snapshot_that_is_killed_is_there_as_a_whole_or_not_at_all() {
    for backend in BACKENDS {
        let yard = Yard::new();
        let export = fill(&yard, backend).await;
        let part = format!("{backend}.write");
        for (point, is_there) in [
            (&*part, false),
            ("snapshot.copied", false),
            ("snapshot.named", true),
        ] {
            // The first writes are those of the store itself.
            let passes = if point.starts_with("snapshot") {
                ""
            } else {
                "3*off->"
            };
            let kill = format!("{point}={passes}return(kill)");
            let mut command = yard.command("snapshot --store store --to copy");
            let ran = run(command.env("FAILPOINTS", &kill), b"");
            assert_eq!(ran.code, None, "{kill}: {}", ran.err);
            let copy = yard.0.path().join("copy");
            assert_eq!(copy.exists(), is_there, "{kill}");
            assert_eq!(yard.ok("export --store store", b""), export, "{kill}");
            if !is_there {
                yard.ok("snapshot --store store --to copy", b"");
            }
            assert_eq!(yard.ok("export --store copy", b""), export, "{kill}");
            std::fs::remove_dir_all(copy).unwrap();
            let names = std::fs::read_dir(yard.0.path()).unwrap();
            assert_eq!(names.count(), 1, "{kill}: nothing else is left");
        }
    }
}

/// What others are making, or what is no part of a snapshot, is left alone.
#[cfg(feature = "faults")]
#[tokio::test]
async fn what_a_killed_snapshot_left_goes_with_the_next_one_of_that_folder() {
    for backend in BACKENDS {
        let yard = Yard::new();
        fill(&yard, backend).await;
        let names = || {
            let entries = std::fs::read_dir(yard.0.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        for (name, point) in [
            ("one", format!("{backend}.write=3*off->return(kill)")),
            ("two", "snapshot.copied=return(kill)".to_owned()),
        ] {
            let mut command = yard.command(&format!("snapshot --store store --to {name}"));
            let ran = run(command.env("FAILPOINTS", point), b"");
            assert_eq!(ran.code, None, "{}", ran.err);
        }
        // The second was whole but for its name, and went on while the first was there: that it removed.
        let left = names();
        assert!(
            left.contains(".two.part") && !left.contains(".one.part"),
            "{left:?}"
        );
        // One that is being made, by whoever has its turn, though nobody has it open; and what only looks like one.
        std::fs::create_dir(yard.0.path().join(".mine.part")).unwrap();
        let turn = std::fs::File::open(yard.0.path().join(".two.part")).unwrap();
        turn.lock().unwrap();
        yard.ok("snapshot --store store --to three", b"");
        assert!(names().contains(".two.part"), "{:?}", names());
        drop(turn);
        let ran = run(&mut yard.command("snapshot --store store --to four"), b"");
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(
            ran.err
                .contains(".two.part is removed: a snapshot that was killed"),
            "{}",
            ran.err
        );
        let want = [".mine.part", "four", "store", "three"].map(str::to_owned);
        assert_eq!(names(), want.into());
    }
}

#[test]
fn a_snapshot_of_a_server_is_not_ours_to_make() {
    let yard = Yard::new();
    let mut command = yard.command("snapshot --to copy");
    let ran = run(
        command.env("BATCHYARD_REDIS_URL", "redis://localhost:1"),
        b"",
    );
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("BGSAVE"), "{}", ran.err);
}
