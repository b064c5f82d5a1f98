//! A store that is made anew holds what it held, takes less of the disk, and is never half of anything.

use std::{fs, io::Write as _, process::Stdio};

use crate::{
    Yard,
    places::{dump, lived_in},
    values,
};

const BACKENDS: [&str; 2] = ["sled", "journal"];

/// A store with little in it that was larger once.
async fn shrunk(yard: &Yard, backend: &str) -> String {
    let lines = dump(&lived_in(20).await, "other").await;
    let line = format!("import --store store --backend {backend}");
    yard.ok(&line, lines.as_bytes());
    let payload = "x".repeat(20_000);
    let requests = format!("{payload}\n").repeat(600);
    yard.ok("push --store store --lines", requests.as_bytes());
    yard.ok("dispatch --store store --drain --plain -- cut -c1", b"");
    yard.ok("push --store store", b"1\n2\n");
    // What handlers keep beside the store, and what somebody else has put there.
    let commands = yard.0.path().join("store/commands/kept");
    fs::create_dir_all(&commands).unwrap();
    fs::write(commands.join("answers"), "7").unwrap();
    fs::write(yard.0.path().join("store/NOTE"), "mine").unwrap();
    yard.ok("export --store store", b"")
}

fn is_whole(yard: &Yard, export: &str, told: &str) {
    assert!(yard.ok("export --store store", b"") == export, "{told}");
    let read = |name: &str| fs::read_to_string(yard.0.path().join("store").join(name)).unwrap();
    assert_eq!(
        (&*read("NOTE"), &*read("commands/kept/answers")),
        ("mine", "7"),
        "{told}"
    );
}

/// What is in the folder around the store.
fn names(yard: &Yard) -> Vec<String> {
    let entries = fs::read_dir(yard.0.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[tokio::test]
async fn a_store_that_is_compacted_holds_the_same_and_takes_less() {
    for backend in BACKENDS {
        let yard = Yard::new();
        let export = shrunk(&yard, backend).await;
        let told = &values(&yard.ok("compact --store store --json", b""))[0];
        let bytes = ["bytes_before", "bytes_after"].map(|name| told[name].as_u64().unwrap());
        println!("{backend}: {} bytes before, {} after", bytes[0], bytes[1]);
        assert!(bytes[0] > bytes[1], "{told}");
        is_whole(&yard, &export, backend);
        assert_eq!(names(&yard), ["store"]);
        yard.ok("verify --store store", b"");
        // It goes on as before.
        yard.ok("push --store store", b"3\n");
        yard.fails("compact --store none", 3, &["no store in none"]);
        yard.fails("compact", 2, &["give --store DIR"]);
    }
}

#[tokio::test]
async fn a_store_that_is_open_is_not_compacted() {
    for backend in BACKENDS {
        let yard = Yard::new();
        let export = shrunk(&yard, backend).await;
        let mut push = yard.command("push --store store");
        let mut push = push
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = push.stdin.take().unwrap();
        input.write_all(b"3\n").unwrap();
        // Once its line is answered it has the store open.
        let mut line = [0];
        std::io::Read::read_exact(push.stdout.as_mut().unwrap(), &mut line).unwrap();
        yard.fails("compact --store store", 4, &["is open in the process"]);
        drop(input);
        push.wait_with_output().unwrap();
        let now = yard.ok("export --store store", b"");
        assert_ne!(now, export);
        yard.ok("compact --store store", b"");
        is_whole(&yard, &now, backend);
    }
}

#[cfg(feature = "faults")]
#[tokio::test]
async fn a_compaction_that_is_killed_leaves_the_old_store_or_the_new_one() {
    for backend in BACKENDS {
        let yard = Yard::new();
        let export = shrunk(&yard, backend).await;
        let write = format!("{backend}.write=4*off->return(kill)");
        let kills = [
            &*write,
            "compact.copied=return(kill)",
            "compact.exchanged=return(kill)",
            "compact.synced=return(kill)",
        ];
        for kill in kills {
            let mut command = yard.command("compact --store store");
            let ran = crate::run(command.env("FAILPOINTS", kill), b"");
            assert_eq!(ran.code, None, "{backend}, {kill}: {}", ran.err);
            assert_eq!(
                names(&yard).len(),
                2,
                "{backend}, {kill}: one is left beside"
            );
            is_whole(&yard, &export, &format!("{backend}, {kill}"));
        }
        yard.ok("compact --store store", b"");
        assert_eq!(names(&yard), ["store"]);
        is_whole(&yard, &export, backend);
    }
}
