//! A payload of a journal that was damaged on the disk.

use std::fs;

use crate::{Yard, run, values};

#[test]
fn a_damaged_member_is_a_dead_letter_and_nobody_blames_the_handler() {
    let yard = Yard::new();
    let lines: Vec<String> = (0..50)
        .map(|number| format!("\"payload {number:02}\"\n"))
        .collect();
    yard.ok(
        "push --store s --backend journal",
        lines.concat().as_bytes(),
    );
    let mut changed = 0;
    for entry in fs::read_dir(yard.0.path().join("s/log")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(10).position(|some| some == b"payload 17");
        if let Some(at) = at {
            bytes[at] = b'P';
            fs::write(&path, bytes).unwrap();
            changed += 1;
        }
    }
    assert_eq!(changed, 1);
    let dispatch = "dispatch --store s --drain --json --plain -- cat";
    let ran = run(&mut yard.command(dispatch), b"");
    assert_eq!(ran.code, Some(5), "{}", ran.err);
    assert!(!ran.err.contains("WARN"), "{}", ran.err);
    let claims = values(&ran.out);
    let claims = claims
        .iter()
        .filter(|event| event["event"] == "claimed")
        .count();
    assert_eq!(claims, 1, "{}", ran.out);
    let stats = &values(&yard.ok("stats --store s --json", b""))[0];
    assert_eq!(
        (&stats["done"], &stats["dead"]),
        (&49.into(), &1.into()),
        "{stats}"
    );
    let dead = &values(&yard.ok("dead ls --store s --json", b""))[0];
    assert_eq!(dead["reason"], "damaged", "{dead}");
}
