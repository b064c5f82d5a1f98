//! `batchyard verify`, as it is called.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use batchyard::{JournalStore, NewRequest, QueueExt, SledStore, Store, testing::proof};

use super::{copy, fill, snapshot};

fn verify(store: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    run("verify", store, more)
}

fn run(verb: &str, store: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    program
        .env_remove("BATCHYARD_BACKEND")
        .stdin(Stdio::null())
        .args(verb.split(' '))
        .arg("--store")
        .arg(store)
        .args(more);
    let Output {
        status,
        stdout,
        stderr,
    } = program.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn read_json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

/// A closed journal and a closed sled store, in which something is.
async fn stores(folder: &Path) -> [std::path::PathBuf; 2] {
    let (journal, sled) = (folder.join("journal"), folder.join("sled"));
    let store = JournalStore::open(&journal).await.unwrap();
    fill(&store).await;
    store.close().await.unwrap();
    let store = SledStore::open(&sled).await.unwrap();
    fill(&store).await;
    store.close().await.unwrap();
    [journal, sled]
}

/// Changes a byte of the payload that begins so.
fn change_payload(store: &Path, start: &[u8]) {
    let mut changed = 0;
    for path in super::files_of(store) {
        let mut bytes = fs::read(&path).unwrap();
        let places: Vec<usize> = (0..bytes.len().saturating_sub(start.len()))
            .filter(|at| bytes[*at..].starts_with(start))
            .collect();
        for at in places {
            bytes[at] ^= 1;
            changed += 1;
        }
        if changed > 0 {
            fs::write(&path, bytes).unwrap();
        }
    }
    assert!(changed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_says_what_is_damaged_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let scratch_arg = ["--scratch", scratch.path().to_str().unwrap()];
    for store in stores(folder.path()).await {
        let before = snapshot(&store);
        let (code, out, err) = verify(&store, &scratch_arg);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(
            out.starts_with("clean: ") && out.contains(" in 2 queues, "),
            "{out}"
        );
        assert_eq!(snapshot(&store), before);

        change_payload(&store, b"default 33 ");
        let before = snapshot(&store);
        let (code, out, err) = verify(&store, &scratch_arg);
        assert_eq!(code, Some(8), "{out}{err}");
        assert!(
            out.contains("damaged: ") && out.contains("; when it is opened: "),
            "{out}"
        );
        let (code, out, _) = verify(&store, &["--json", scratch_arg[0], scratch_arg[1]]);
        assert_eq!(code, Some(8));
        let lines: Vec<_> = out.lines().map(read_json).collect();
        let (sum, findings) = lines.split_last().unwrap();
        assert_eq!(
            (&sum["kind"], &sum["clean"]),
            (&"sum".into(), &false.into()),
            "{out}"
        );
        assert!(!findings.is_empty() && findings.iter().all(|one| one["what"].is_string()));
        if store.ends_with("journal") {
            let one = findings
                .iter()
                .find(|one| one["request"].is_string())
                .unwrap();
            assert_eq!(one["queue"], "default", "{one}");
            assert!(
                one["file"].as_str().unwrap().starts_with("log/segment-"),
                "{one}"
            );
            assert!(one["offset"].as_u64().unwrap() >= 4096, "{one}");
        } else {
            assert!(out.contains("repair"), "{out}");
        }
        assert_eq!(snapshot(&store), before);

        let shown = scratch.path().to_str().unwrap();
        assert!(!out.contains(shown), "{out} names the copy");
    }
    assert_eq!(
        fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "the copy is removed"
    );
    let (code, _, err) = verify(&folder.path().join("nowhere"), &[]);
    assert_eq!(code, Some(3), "{err}");
    proof(
        "G8",
        "journal, sled",
        "verify by its exit codes 0, 3 and 8, nothing changed",
        &[],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_open_is_not_verified() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, sled) = (folder.path().join("journal"), folder.path().join("sled"));
    let open: [Box<dyn Store>; 2] = [
        Box::new(JournalStore::open(&journal).await.unwrap()),
        Box::new(SledStore::open(&sled).await.unwrap()),
    ];
    for path in [&journal, &sled] {
        let (code, _, err) = verify(path, &[]);
        assert_eq!(code, Some(4), "{err}");
        assert!(err.contains(&std::process::id().to_string()), "{err}");
    }
    // A lock that was removed keeps nobody in.
    fs::remove_file(journal.join("LOCK")).unwrap();
    assert_eq!(verify(&journal, &[]).0, Some(4));
    for store in open {
        store.close().await.unwrap();
    }
    for path in [&journal, &sled] {
        assert_eq!(verify(path, &[]).0, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_and_never_answered_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (path, killed) = (folder.path().join("store"), folder.path().join("killed"));
    let store = JournalStore::open(&path).await.unwrap();
    let queue = store.queue(&"default".parse().unwrap()).await.unwrap();
    for index in 0..3 {
        queue
            .push_one(NewRequest::new(vec![index; 3000]))
            .await
            .unwrap();
    }
    copy(&path, &killed);
    store.close().await.unwrap();
    // As if nothing from the middle of the last payload on had been written yet.
    let segment = killed.join("log/segment-000.log");
    let mut bytes = fs::read(&segment).unwrap();
    let mut places = (0..bytes.len() - 64).rev();
    let last = places.find(|at| bytes[*at..*at + 64] == [2; 64]).unwrap();
    bytes[last / 512 * 512..].fill(0);
    fs::write(&segment, bytes).unwrap();
    let (code, out, _) = verify(&killed, &[]);
    assert_eq!(code, Some(0), "{out}");
    assert!(
        out.starts_with("unconfirmed: log/segment-000.log at "),
        "{out}"
    );
    assert!(out.contains("clean: 2 requests in 1 queues"), "{out}");
}

/// A folder with a store's other files is a damaged store, whatever its `FORMAT` has become; any other is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_format_that_is_damaged_or_gone_is_damage_to_every_verb() {
    let folder = tempfile::tempdir().unwrap();
    for store in stores(folder.path()).await {
        let todo = if store.ends_with("sled") {
            "repair"
        } else {
            "write FORMAT again, in these four lines"
        };
        let whole = fs::read(store.join("FORMAT")).unwrap();
        let damages: [Option<&[u8]>; 5] = [
            None,
            Some(b""),
            Some(b"\xff\xfe and more"),
            Some(b"batchyard slad store\nversion 1\n"),
            Some(&[0; 100]),
        ];
        for damage in damages {
            match damage {
                Some(bytes) => fs::write(store.join("FORMAT"), bytes).unwrap(),
                None => fs::remove_file(store.join("FORMAT")).unwrap(),
            }
            let before = snapshot(&store);
            for verb in ["stats", "export", "push", "dead ls"] {
                let (code, out, err) = run(verb, &store, &[]);
                assert_eq!((code, &*out), (Some(8), ""), "{verb} {damage:?}: {err}");
                assert!(err.contains(todo), "{verb} {damage:?}: {err}");
            }
            let (code, out, err) = verify(&store, &[]);
            assert_eq!((code, &*err), (Some(8), ""), "{damage:?}: {out}");
            assert!(out.starts_with("damaged: the FORMAT of "), "{out}");
            assert!(
                out.contains(todo) && out.contains("\ndamaged: 0 requests"),
                "{out}"
            );
            let (code, out, _) = verify(&store, &["--json"]);
            let lines: Vec<_> = out.lines().map(read_json).collect();
            assert_eq!((code, lines.len()), (Some(8), 2), "{out}");
            assert_eq!(
                (&lines[0]["kind"], &lines[1]["clean"]),
                (&"damaged".into(), &false.into())
            );
            assert_eq!(snapshot(&store), before, "{damage:?}");
        }
        // What the system does not let be read is not damaged.
        fs::remove_file(store.join("FORMAT")).unwrap();
        fs::create_dir(store.join("FORMAT")).unwrap();
        for verb in ["stats", "verify"] {
            let (code, out, err) = run(verb, &store, &[]);
            assert_eq!((code, &*out), (Some(2), ""), "{verb}: {err}");
            assert!(
                err.contains("Is a directory") && !err.contains("damaged"),
                "{verb}: {err}"
            );
        }
        fs::remove_dir(store.join("FORMAT")).unwrap();
        fs::write(store.join("FORMAT"), whole).unwrap();
        assert_eq!(verify(&store, &[]).0, Some(0));
        // Without anything of a store beside it, it is somebody else's.
        let foreign = folder.path().join("foreign");
        fs::create_dir_all(foreign.join("log")).unwrap();
        fs::create_dir_all(foreign.join("sled")).unwrap();
        fs::write(foreign.join("FORMAT"), "PNG").unwrap();
        for verb in ["stats", "export", "push", "verify"] {
            let (code, _, err) = run(verb, &foreign, &[]);
            assert_eq!(code, Some(2), "{verb}: {err}");
            assert!(err.contains("choose another folder"), "{verb}: {err}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_the_copy_names_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let [_, store] = stores(folder.path()).await;
    let length = fs::metadata(store.join("sled/db")).unwrap().len();
    for damage in [vec![], vec![7; usize::try_from(length).unwrap()]] {
        fs::write(store.join("sled/db"), &damage).unwrap();
        let shown = scratch.path().to_str().unwrap();
        let (code, out, err) = verify(&store, &["--scratch", shown]);
        assert_eq!(code, Some(8), "{out}{err}");
        assert!(out.contains(store.to_str().unwrap()), "{out}");
        assert!(
            !out.contains(shown) && !out.contains("batchyard-verify-"),
            "{out}"
        );
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_removes_the_copy() {
    let folder = tempfile::tempdir().unwrap();
    let [_, store] = stores(folder.path()).await;
    // Nobody ever writes to it, so copying it never ends.
    let made = Command::new("mkfifo")
        .arg(store.join("sled/stuck"))
        .status();
    assert!(made.unwrap().success());
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let scratch = tempfile::tempdir().unwrap();
        let is_empty = || fs::read_dir(scratch.path()).unwrap().next().is_none();
        // A program that is started with SIGHUP ignored leaves it so.
        let mut child = Command::new("env")
            .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_batchyard")])
            .args(["verify", "--store"])
            .arg(&store)
            .arg("--scratch")
            .arg(scratch.path())
            .spawn()
            .unwrap();
        while is_empty() {
            assert_eq!(child.try_wait().unwrap(), None, "it has ended");
            std::thread::yield_now();
        }
        let pid = child.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(killed.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(is_empty(), "{signal}");
    }
}

/// All that can be read is exported, and what can't is told.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_tells_what_is_damaged_and_prints_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let [store, _] = stores(folder.path()).await;
    let (code, whole, err) = run("export", &store, &[]);
    assert_eq!((code, &*err), (Some(0), ""));
    let whole: Vec<_> = whole.lines().map(read_json).collect();
    let results = folder.path().join("results");
    copy(&store, &results);
    change_payload(&results, b"a result");
    let (code, _, err) = run("export", &results, &["--queue", "mail"]);
    assert_eq!(code, Some(8), "{err}");
    assert!(err.contains(" of queue \"mail\""), "{err}");
    for payload in ["default 33 ", "mail 34 "] {
        change_payload(&store, payload.as_bytes());
    }
    let (code, out, err) = run("export", &store, &[]);
    assert_eq!(code, Some(8), "{err}");
    let lines: Vec<_> = out.lines().map(read_json).collect();
    assert_eq!(lines.len(), whole.len());
    let mut missing = 0;
    for (line, whole) in lines.iter().zip(&whole) {
        if line == whole {
            continue;
        }
        let [id, queue] = [&line["id"], &line["queue"]].map(|field| field.as_str().unwrap());
        assert!(
            err.contains(&format!("{id} of queue \"{queue}\"")),
            "{id}: {err}"
        );
        assert_eq!(
            (line.get("payload_text"), &line["id"]),
            (None, &whole["id"])
        );
        assert_eq!(line["error"], "its stored payload is damaged", "{line}");
        missing += 1;
    }
    assert_eq!(missing, 2, "{out}");
    assert!(
        err.starts_with("not exported: the payloads or results of 2 requests"),
        "{err}"
    );
    assert!(err.len() < 2_000);
    let (code, _, err) = run("export", &store, &["--queue", "mail"]);
    assert_eq!(code, Some(8), "{err}");
    assert!(err.contains("of 1 requests"), "{err}");

    // What is told when the store is opened may be lost altogether.
    fs::remove_file(store.join("log/root")).unwrap();
    let (code, _, err) = run("export", &store, &[]);
    assert_eq!(code, Some(8), "{err}");
    assert!(
        err.contains("1 damages were told when the store was opened"),
        "{err}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_not_copied_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let [store, _] = stores(folder.path()).await;
    let target = folder.path().join("copy");
    let to = ["--to", target.to_str().unwrap()];
    let damaged = folder.path().join("damaged");
    for (payload, what) in [
        (&b"mail 34 "[..], "it becomes a dead letter once it is read"),
        (b"a result", "it is forgotten once its retention is over"),
    ] {
        let _ = fs::remove_dir_all(&damaged);
        copy(&store, &damaged);
        change_payload(&damaged, payload);
        for (verb, more) in [("snapshot", &to[..]), ("compact", &[])] {
            let (code, _, err) = run(verb, &damaged, more);
            assert_eq!(code, Some(8), "{verb}: {err}");
            for part in [what, "is damaged: ", "; verify names all that is damaged"] {
                assert!(err.contains(part), "{verb}: {err}");
            }
        }
    }
    let names = fs::read_dir(folder.path()).unwrap();
    assert_eq!(names.count(), 3, "nothing else is left");
}

/// What was told when it was opened, by whoever did.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_that_is_served_is_not_well() {
    use std::io::{BufRead, BufReader};

    let folder = tempfile::tempdir().unwrap();
    let [store, _] = stores(folder.path()).await;
    fs::remove_file(store.join("log/root")).unwrap();
    let mut dispatch = Command::new(env!("CARGO_BIN_EXE_batchyard"))
        .args(["dispatch", "--queue", "idle", "--json", "--store"])
        .arg(&store)
        .args(["--", "cat"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(dispatch.stdout.take().unwrap()).lines();
    while !events.next().unwrap().unwrap().contains("\"serving\"") {}
    let (code, out, err) = run("health", &store, &[]);
    assert_eq!(code, Some(8), "{out}{err}");
    assert!(out.starts_with("not well"), "{out}");
    assert!(out.contains("  damaged: 1 damages were told"), "{out}");
    let (code, out, _) = run("health", &store, &["--json"]);
    assert_eq!((code, &read_json(&out)["damages"]), (Some(8), &1.into()));
    let (code, _, err) = run("export", &store, &[]);
    assert_eq!(code, Some(8), "{err}");
    let pid = dispatch.id().to_string();
    let killed = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(killed.unwrap().success());
    dispatch.wait().unwrap();
}
