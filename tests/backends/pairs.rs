//! What is taken from one backend to another is the same there, to the byte.

use crate::{
    Yard,
    places::{Kinds, dump, lived_in},
};

#[tokio::test]
async fn what_goes_from_any_backend_to_any_other_is_the_same_there() {
    let (yard, kinds) = (Yard::new(), Kinds::all());
    let first = dump(&lived_in(3).await, "default").await;
    let second = dump(&lived_in(1).await, "tenant-7").await;
    let text = first + &second;
    for from in &kinds.kinds {
        let old = kinds.new_place(from);
        old.ok(&yard, "import", &text);
        assert_eq!(old.ok(&yard, "export", ""), text, "at {}", old.address);
        let stats = old.ok(&yard, "stats --json", "");
        for to in &kinds.kinds {
            let new = kinds.new_place(to);
            new.ok(&yard, "import", &old.ok(&yard, "export", ""));
            let why = format!("from {} to {}", old.address, new.address);
            assert_eq!(new.ok(&yard, "export", ""), text, "{why}");
            println!("{why}: {} lines", text.lines().count());
            // Ages and offers are those of the moment.
            let counts = |stats: &str| -> Vec<_> {
                let all = crate::values(stats);
                let names = [
                    "queue",
                    "pushed",
                    "ready",
                    "in_flight",
                    "batches",
                    "held_bytes",
                ];
                all.iter()
                    .map(|one| names.map(|name| one[name].clone()))
                    .collect()
            };
            let again = new.ok(&yard, "stats --json", "");
            assert_eq!(counts(&again), counts(&stats), "{why}");
        }
        let other = kinds.new_place(&kinds.kinds[0]);
        other.ok(&yard, &format!("import --from {}", old.address), "");
        assert_eq!(other.ok(&yard, "export", ""), text, "from {}", old.address);
    }
}

#[tokio::test]
async fn no_backend_takes_a_dump_into_a_queue_that_is_in_use() {
    let (yard, kinds) = (Yard::new(), Kinds::all());
    let text = dump(&lived_in(1).await, "default").await;
    for kind in &kinds.kinds {
        let place = kinds.new_place(kind);
        place.ok(&yard, "push", "1\n");
        let before = place.ok(&yard, "export", "");
        let ran = crate::run(&mut place.command(&yard, "import"), text.as_bytes());
        assert_eq!(ran.code, Some(2), "{}: {}", place.address, ran.err);
        assert!(
            ran.err.contains("the queue is in use: 1 requests"),
            "{}",
            ran.err
        );
        assert_eq!(place.ok(&yard, "export", ""), before);
    }
}
