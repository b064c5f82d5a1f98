//! An import that was cut off is begun again, and goes on where it was.

use crate::{
    Yard,
    places::{Kinds, Place, dump, lived_in},
    values,
};

fn import(yard: &Yard, place: &Place, text: &str) -> crate::Ran {
    crate::run(&mut place.command(yard, "import --json"), text.as_bytes())
}

#[tokio::test]
async fn an_import_that_was_cut_off_skips_what_is_there_and_takes_in_the_rest() {
    let (yard, kinds) = (Yard::new(), Kinds::all());
    let first = dump(&lived_in(300).await, "a").await;
    let second = dump(&lived_in(2).await, "b").await;
    let third = dump(&lived_in(1).await, "c").await;
    let all = [&first[..], &second, &third].concat();
    let cut = &all[..first.len() + second.len() / 2];
    let cut = &cut[..=cut.rfind('\n').unwrap()];
    for kind in &kinds.kinds {
        let place = kinds.new_place(kind);
        for skipped in [&[][..], &["a"]] {
            let ran = import(&yard, &place, cut);
            assert_eq!(ran.code, Some(2), "{}: {}", place.address, ran.err);
            assert!(ran.err.contains("\"b\" is cut off"), "{}", ran.err);
            assert!(ran.err.contains("empty queue"), "{}", ran.err);
            assert_eq!(names(&ran.out, true), skipped, "{}", ran.err);
        }
        let ran = import(&yard, &place, &all);
        assert_eq!(ran.code, Some(0), "{}: {}", place.address, ran.err);
        assert_eq!(names(&ran.out, true), ["a"]);
        assert_eq!(names(&ran.out, false), ["b", "c"]);
        assert!(ran.err.contains("queue \"a\": skipped"), "{}", ran.err);
        assert!(place.ok(&yard, "export", "") == all, "{}", place.address);

        // The same from a store, and once more when there is nothing left to do.
        let other = kinds.new_place(kind);
        other.ok(&yard, "import", &first);
        for skipped in [&["a"][..], &["a", "b", "c"]] {
            let from = format!("import --json --from {}", place.address);
            let out = other.ok(&yard, &from, "");
            assert_eq!(names(&out, true), skipped, "{}", other.address);
        }
        assert!(other.ok(&yard, "export", "") == all, "{}", other.address);
    }
}

fn names(out: &str, skipped: bool) -> Vec<String> {
    let lines = values(out);
    let lines = lines.iter().filter(|line| line["skipped"] == skipped);
    lines
        .map(|line| line["queue"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_queue_that_differs_from_the_dump_is_not_skipped() {
    let (yard, kinds) = (Yard::new(), Kinds::all());
    let text = dump(&lived_in(2).await, "default").await;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for kind in &kinds.kinds {
        let place = kinds.new_place(kind);
        place.ok(&yard, "import", &text);
        let refused = |text: &str| {
            let ran = import(&yard, &place, text);
            assert_eq!(ran.code, Some(2), "{}: {}", place.address, ran.err);
            let why = "queue \"default\": the queue is in use";
            assert!(ran.err.contains(why), "{}", ran.err);
            assert_eq!(ran.out, "");
        };
        // A request less, and one payload that is another.
        for at in [0, lines.len() / 3] {
            refused(&[&lines[..at], &lines[at + 1..]].concat().concat());
        }
        let other = text
            .replace("{\"waits\": 1}", "{\"waits\": 7}")
            .replace("eyJ3YWl0cyI6IDF9", "eyJ3YWl0cyI6IDd9");
        assert_ne!(other, text);
        refused(&other);
        // One that was pushed since.
        place.ok(&yard, "push", "1\n");
        let before = place.ok(&yard, "export", "");
        refused(&text);
        assert_eq!(place.ok(&yard, "export", ""), before);
    }
}
