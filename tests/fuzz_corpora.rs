//! The stored inputs of each fuzz target, on the stable compiler; and random ones near them if they are asked for.
//!
//! `BATCHYARD_SEED=7 cargo test --test fuzz_corpora` tries some, `BATCHYARD_LONG=1` many more.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    thread,
};

use batchyard::{fuzzing, testing::proof};

macro_rules! targets {
    ($($target:ident, $guarantees:literal, $backend:literal;)*) => {$(
        #[test]
        fn $target() {
            run(stringify!($target), $guarantees, $backend);
        }
    )*

        #[test]
        fn every_target_is_run() {
            let here = [$(stringify!($target)),*];
            assert_eq!(here, fuzzing::TARGETS.map(|(name, _)| name));
        }
    };
}

targets! {
    answers, "G4 G9", "memory";
    configuration, "G8", "all";
    dumps, "G5 G8", "memory journal";
    journal_recovery, "G5 G8", "journal";
    journal_stretches, "G5 G8", "journal";
    journal_values, "G5 G8", "journal";
    json_lines, "G9", "all";
    lives, "G1 G2 G3 G4 G5", "journal";
    redis_replies, "G8", "redis";
    remote, "G9", "all";
    sled_entries, "G8", "sled";
}

/// Each stored input, then as many random ones, most of them a stored one with a few changes.
fn run(name: &str, guarantees: &str, backend: &str) {
    let (_, target) = fuzzing::TARGETS
        .into_iter()
        .find(|(other, _)| *other == name)
        .unwrap();
    let stored = stored(name);
    assert!(!stored.is_empty(), "the corpus of {name} is gone");
    for (file, bytes) in &stored {
        let held = catch_unwind(AssertUnwindSafe(|| target(bytes)));
        assert!(held.is_ok(), "fuzz/corpus/{name}/{file} fails, see above");
    }
    let asked = env::var("BATCHYARD_SEED").map(|seed| seed.parse().unwrap());
    let is_long = env::var_os("BATCHYARD_LONG").is_some();
    // Only what is asked for: what is found by chance must not stop another change.
    let random = match &asked {
        _ if is_long => 5000,
        Ok(_) => RANDOM,
        Err(_) => 0,
    };
    let seed = asked.unwrap_or_else(|_| fastrand::u64(..));
    println!("BATCHYARD_SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    for number in 0..random {
        let mut bytes = stored[dice.usize(..stored.len())].1.clone();
        change(&mut bytes, &mut dice);
        let held = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
        assert!(
            held.is_ok(),
            "BATCHYARD_SEED={seed}: random input {number} fails: {bytes:?}"
        );
    }
    let cycles = format!("{} stored and {random} random inputs", stored.len());
    proof(guarantees, backend, cycles, &[]);
}

/// What the journal can be made to do wrong is found by the stored lives.
#[test]
fn planted_faults_are_found_by_the_stored_lives() {
    for fault in FAULTS {
        let find = move || {
            fuzzing::plant(fault);
            let lives = stored("lives");
            let held = |bytes: &[u8]| catch_unwind(|| fuzzing::lives(bytes)).is_ok();
            lives.into_iter().find(|(_, bytes)| !held(bytes))
        };
        let found = thread::spawn(find).join().unwrap();
        let (file, _) = found.unwrap_or_else(|| panic!("nobody noticed {fault}"));
        println!("{fault} is found by {file}");
    }
    proof("G1 G3 G4", "journal", "stored lives", &FAULTS);
}

/// The files of a corpus by name.
fn stored(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn change(bytes: &mut Vec<u8>, dice: &mut fastrand::Rng) {
    for _ in 0..dice.usize(1..6) {
        let at = dice.usize(..=bytes.len());
        match dice.u8(..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.u8(..)),
            2 => {
                let copy = bytes[at..(at + dice.usize(..64)).min(bytes.len())].to_vec();
                bytes.extend(copy);
            }
            3 => bytes.resize_with((bytes.len() + dice.usize(..8)).min(4096), || dice.u8(..)),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.u8(..8);
                }
            }
        }
    }
}

/// Of the journal: answered before the sync, segments freed without a baseline, fences from one again.
const FAULTS: [&str; 3] = ["AnswerBeforeSync", "DropBaseline", "ReuseFence"];
/// How many random inputs a target gets.
const RANDOM: u32 = 100;
