//! The program itself: every id that `push` has printed is there after the power went.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    thread,
};

use batchyard::{
    testing::proof,
    torture::forgetful::{Loss, Rules},
};
use fastrand::Rng;
use serde_json::Value;

use crate::{Disk, cycles, seed, store::Backend};

#[test]
fn every_id_that_was_printed_is_there_after_the_power_went() {
    for backend in Backend::ALL {
        let Some(disk) = Disk::new() else { return };
        let mut random = Rng::with_seed(seed());
        let mut acknowledged = BTreeMap::new();
        let cycles = cycles(4, 15);
        for cycle in 0..cycles {
            disk.forgetful
                .set_rules([Rules::Strict, Rules::Ext4][random.usize(..2)]);
            let printed = push_until_cut(&disk, backend, cycle, random.usize(1..300));
            acknowledged.extend(printed);
            disk.forgetful.restore(Loss::Torn {
                seed: random.u64(..),
            });
            let found = export(&disk);
            for (id, payload) in &acknowledged {
                assert_eq!(
                    found.get(id),
                    Some(payload),
                    "{backend:?}, cycle {cycle}: {id}"
                );
            }
        }
        let count = acknowledged.len();
        let done = format!("{cycles} power cuts of the program, {count} ids printed");
        proof("G1 G5", backend.name(), done, &[]);
    }
}

fn program(disk: &Disk, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command
        .env_remove("BATCHYARD_BACKEND")
        .env_remove("FAILPOINTS")
        .args(words.split_whitespace())
        .arg("--store")
        .arg(disk.store())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Pushes lines until so many ids were printed, and cuts the power; each id that was printed, with its line.
fn push_until_cut(
    disk: &Disk,
    backend: Backend,
    cycle: u64,
    ids: usize,
) -> BTreeMap<String, String> {
    let words = format!("push --lines --backend {}", backend.name());
    let mut child: Child = program(disk, &words).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let line = move |number| format!("line {number} of {cycle}");
    let writer = thread::spawn(move || {
        // Until nobody reads any more.
        for number in 0.. {
            if writeln!(input, "{}", line(number)).is_err() {
                break;
            }
        }
    });
    let mut printed = BTreeMap::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for number in 0.. {
        let mut id = String::new();
        output.read_line(&mut id).unwrap();
        // The last one may have been cut off.
        let Some(id) = id.strip_suffix('\n') else {
            break;
        };
        printed.insert(id.to_owned(), line(number));
        if number == ids {
            disk.forgetful.cut();
            child.kill().unwrap();
        }
    }
    let ended = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(printed.len() > ids, "it ended by itself: {said}");
    printed
}

/// What is there: payloads by id.
fn export(disk: &Disk) -> BTreeMap<String, String> {
    let output = program(disk, "export").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let requests = lines.filter(|line| line.get("record").is_none());
    let mut found = BTreeMap::new();
    for request in requests {
        let [id, payload] =
            ["id", "payload_text"].map(|field| request[field].as_str().unwrap().to_owned());
        assert!(!found.contains_key(&id), "{id} is there twice");
        found.insert(id, payload);
    }
    found
}
