//! A journal opens with what is left of it, or says what to do.

use std::{fs, path::Path};

use batchyard::{Error, ErrorKind, JournalStore, Store, testing::proof};

use super::{Payloads, copy, cycles, damage, fill, in_time, is_long, look, seed, snapshot};

async fn open(path: &Path) -> Result<JournalStore, Error> {
    JournalStore::options()
        .segment_bytes(16 << 10)
        .open(path)
        .await
}

/// A store that was closed, and one as a killed process leaves it.
async fn stores(folder: &Path) -> [(std::path::PathBuf, Payloads); 2] {
    let (closed, killed) = (folder.join("closed"), folder.join("killed"));
    let store = open(&closed).await.unwrap();
    let payloads = fill(&store).await;
    copy(&closed, &killed);
    store.close().await.unwrap();
    [(closed, payloads.clone()), (killed, payloads)]
}

/// What became of damaged stores.
#[derive(Debug, Default)]
struct Told {
    clean: usize,
    found: usize,
    refused: usize,
    reported: usize,
}

/// Verifies a damaged store, opens it, looks, closes it, and opens it again.
async fn check(path: &Path, (whole, payloads): (&Path, &Payloads), what: &str, told: &mut Told) {
    let before = snapshot(path);
    let verified = JournalStore::verify(path).await;
    assert_eq!(
        snapshot(path),
        before,
        "{what}: verifying changed something"
    );
    let is_found = verified
        .as_ref()
        .is_ok_and(|verified| !verified.findings.is_empty());
    let is_refused = verified.is_err();
    match open(path).await {
        Err(error) => {
            let known = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid);
            assert!(known, "{what}: {error}");
            let said = match verified {
                Ok(verified) => verified.findings[0].what.clone(),
                Err(said) => said.to_string(),
            };
            assert_eq!(said, error.to_string(), "{what}");
            assert_eq!(is_refused, error.kind() == ErrorKind::Invalid, "{what}");
            told.refused += 1;
        }
        Ok(store) => {
            let report = store.report().to_vec();
            assert!(
                report.is_empty() || is_found,
                "{what}: not found by verifying: {report:?}"
            );
            // Without a FORMAT and a log there was nothing to verify, nor to open.
            assert!(
                !is_refused || snapshot(path).len() < 3,
                "{what}: {verified:?}, and it opens"
            );
            let seen = look(&store, payloads).await.unwrap();
            store.close().await.unwrap();
            drop(store);
            told.found += usize::from(is_found);
            told.reported += usize::from(!report.is_empty());
            if !is_found {
                told.clean += 1;
                let right = open(whole).await.unwrap();
                let expected = look(&right, payloads).await.unwrap();
                right.close().await.unwrap();
                assert_eq!(
                    seen, expected,
                    "{what}: something changed and was not found"
                );
            }
            let again = open(path).await.unwrap();
            // What is needed of a segment that is gone stays gone.
            let is_old = |line: &String| line.contains("is missing") && report.contains(line);
            let all = again.report();
            assert!(all.iter().all(is_old), "{what}: reported again: {all:?}");
            assert_eq!(
                look(&again, payloads).await.unwrap(),
                seen,
                "{what}: opened again"
            );
            again.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_verified_opened_and_opened_again() {
    let start = seed();
    let folder = tempfile::tempdir().unwrap();
    let stores = stores(folder.path()).await;
    let mut told = Told::default();
    let rounds = cycles(30, 600);
    for round in 0..rounds {
        for (whole, payloads) in &stores {
            let mut dice = fastrand::Rng::with_seed(start.wrapping_add(round));
            let path = folder.path().join("damaged");
            copy(whole, &path);
            let what = damage(&mut dice, &path);
            let what = format!("round {round} of {}: {what}", whole.display());
            // It is opened to be compared with, which changes it.
            let right = folder.path().join("right");
            copy(whole, &right);
            in_time(&what, check(&path, (&right, payloads), &what, &mut told)).await;
            fs::remove_dir_all(&path).unwrap();
            fs::remove_dir_all(&right).unwrap();
        }
    }
    println!("{told:?}");
    let what = format!("{} damaged folders, opened twice", 2 * rounds);
    proof("G5 G8", "journal", what, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_bit_of_format_is_mended_or_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let [(whole, payloads), _] = stores(folder.path()).await;
    let format = fs::read(whole.join("FORMAT")).unwrap();
    let mut told = Told::default();
    let path = folder.path().join("damaged");
    let right = folder.path().join("right");
    let mut bits = 0;
    for at in 0..format.len() {
        for bit in (0..8).filter(|bit| is_long() || *bit == at % 8) {
            copy(&whole, &path);
            copy(&whole, &right);
            let mut damaged = format.clone();
            damaged[at] ^= 1 << bit;
            fs::write(path.join("FORMAT"), damaged).unwrap();
            let what = format!("bit {bit} of byte {at} of FORMAT");
            in_time(&what, check(&path, (&right, &payloads), &what, &mut told)).await;
            fs::remove_dir_all(&path).unwrap();
            fs::remove_dir_all(&right).unwrap();
            bits += 1;
        }
    }
    println!("{told:?}");
    assert!(told.refused > 0 && told.reported > 0);
    proof("G8", "journal", format!("{bits} bits of FORMAT"), &[]);
}

#[tokio::test]
async fn a_format_that_is_gone_is_written_again_as_the_error_says() {
    let folder = tempfile::tempdir().unwrap();
    let [(path, payloads), _] = stores(folder.path()).await;
    fs::remove_file(path.join("FORMAT")).unwrap();
    let error = open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let text = error.to_string();
    let lines: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
    assert_eq!(lines.len(), 4, "{text}");
    fs::write(path.join("FORMAT"), lines.join("\n") + "\n").unwrap();
    assert!(JournalStore::verify(&path).await.unwrap().is_clean());
    let store = open(&path).await.unwrap();
    assert_eq!(store.report(), [""; 0]);
    assert!(look(&store, &payloads).await.unwrap().len() > 60);
    store.close().await.unwrap();
}
