//! `batchyard verify`, as it is called.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use batchyard::{JournalStore, NewRequest, QueueExt, SledStore, Store, testing::proof};

use super::{copy, fill, snapshot};

fn verify(store: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    let program = program.arg("verify").arg("--store").arg(store).args(more);
    let Output {
        status,
        stdout,
        stderr,
    } = program.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
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
        let lines: Vec<serde_json::Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
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

        fs::remove_file(store.join("FORMAT")).unwrap();
        let (code, _, err) = verify(&store, &scratch_arg);
        assert_eq!(code, Some(8), "{err}");
        assert!(err.contains("FORMAT"), "{err}");
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
