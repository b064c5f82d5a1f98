//! An import that is killed leaves nothing, and nothing that is in the way of the next one.

use std::{io::Write, os::unix::process::ExitStatusExt, process::Stdio};

use crate::{
    Yard,
    places::{Kinds, Place, dump, lived_in},
};

/// Imports the beginning of a dump, and kills the import once it has read all of that but what a pipe holds.
/// It reads on only after what it had read is stored, a thousand records at a time.
fn import_and_kill(yard: &Yard, place: &Place, part: &str) {
    let mut command = place.command(yard, "import");
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut import = command.spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    let written = input.write_all(part.as_bytes());
    import.kill().unwrap();
    let ended = import.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    written.unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(ended.status.signal(), Some(9), "{said}");
    let stats = place.ok(yard, "stats --json", "");
    for queue in crate::values(&stats) {
        let held = ["pushed", "ready", "dead", "done", "held_bytes"].map(|name| &queue[name]);
        assert_eq!(held, [0, 0, 0, 0, 0], "at {}", place.address);
    }
}

#[tokio::test]
async fn an_import_that_is_killed_leaves_nothing_in_the_way_of_the_next() {
    let (yard, kinds) = (Yard::new(), Kinds::all());
    let large = dump(&lived_in(400).await, "default").await;
    let small = dump(&lived_in(1).await, "default").await;
    // After a part of the requests, after nearly all of them, and before the last line.
    let settled = large.find("{\"record\":\"batch\"").unwrap();
    let last = large.trim_end().rfind('\n').unwrap() + 1;
    let cuts = [settled / 2, settled, last];
    assert!(
        large[..cuts[0]].lines().count() > 3000,
        "several steps of an import"
    );
    for kind in &kinds.kinds {
        for next in [&large, &small] {
            let place = kinds.new_place(kind);
            for cut in cuts {
                import_and_kill(&yard, &place, &large[..cut]);
            }
            place.ok(&yard, "import", next);
            assert!(
                place.ok(&yard, "export", "") == *next,
                "at {}",
                place.address
            );
        }
    }
}
