//! The journal's points that no kill alone leads to: a torn write, and a pause.

use std::{fs, path::Path};

use crate::{
    chain::{Chain, kill_at},
    life::Length,
    planted::ON_THE_JOURNAL,
    sweep::show,
};

/// Takes back the last byte of what was written last to a log, as a write that was torn.
fn tear(store: &Path) {
    let files = fs::read_dir(store.join("log")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let segments = paths.filter(|path| path.to_string_lossy().contains("segment-"));
    let last = segments.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    let last = last.unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end] = 0;
    fs::write(&last, bytes).unwrap();
}

#[test]
fn the_journal_is_killed_as_it_sets_a_torn_tail_aside() {
    let points = [
        "journal.root_mended",
        "journal.set_aside",
        "journal.cut",
        "journal.written_again",
        "journal.open",
    ];
    for point in points {
        let mut chain = Chain::new("journal", None, Length::Short);
        assert!(chain.run(&kill_at("journal.written", 20)));
        tear(&chain.place.store);
        assert!(chain.run(&kill_at(point, 1)), "no recovery passes {point}");
        chain.finish();
        chain.check(point);
    }
    show("journal", 2 * points.len(), &ON_THE_JOURNAL);
}

#[test]
fn the_journal_is_killed_as_it_has_nothing_to_do() {
    let mut chain = Chain::new("journal", None, Length::Idle);
    assert!(chain.run(&kill_at("journal.idle", 1)));
    chain.place.length = Length::Short;
    chain.finish();
    chain.check("journal.idle");
    show("journal", 1, &ON_THE_JOURNAL);
}
