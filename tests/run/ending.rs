//! A run that is killed between any two steps of its end hands nothing to its command again.
//!
//! Each state is the one that the real program leaves: something in its way makes it fail at the next step, with
//! nothing done after the one before. What a removal leaves is made from that, file by file.

use std::fs;

use crate::{Bench, ECHO, numbers};

/// Notes each call, puts something in the way of the note that the run has ended, and answers.
fn blocked(answer: &str) -> String {
    let block = "[ -e open ] || for note in out.batchyard.ended.new out.batchyard/ENDED.new store/ENDED.new; do mkdir $note; done";
    format!("echo call >> calls; {block}; {answer}")
}

/// Rejects every second line until there is a file `mended`.
const HALF: &str = r#"sed -E '/"n":[0-9]*[02468]\}/{s/^\{("id":"[0-9a-f]*").*$/{\1,"error":"even"}/;b};s/^\{("id":"[0-9a-f]*").*"payload":(.*)\}$/{\1,"result":\2}/'"#;

fn calls(bench: &Bench) -> usize {
    bench.read("calls").lines().count()
}

/// Lets the run end from now on.
fn unblock(bench: &Bench) {
    bench.write("open", "");
    for store in [
        "out.batchyard.ended.new",
        "out.batchyard/ENDED.new",
        "store/ENDED.new",
    ] {
        let _ = fs::remove_dir(bench.path(store));
    }
}

#[test]
fn killed_once_output_is_there_it_ends_without_a_call() {
    for (options, store) in [
        (&[][..], "out.batchyard"),
        (&["--store", "store"], "store"),
        (&["--backend", "journal"], "out.batchyard"),
    ] {
        let bench = Bench::new(&numbers(10));
        let script = blocked(ECHO);
        bench.run(options, &script).with(1, &[".new"]);
        let out = bench.read("out");
        assert_eq!((calls(&bench), out.lines().count()), (1, 10));
        unblock(&bench);
        let again = bench.run(options, &script);
        again.with(0, &["10 requests: 10 done, 0 failed"]);
        assert_eq!((calls(&bench), bench.read("out")), (1, out));
        assert_eq!(bench.path(store).exists(), store == "store");
        // It is over now, so the next one is another run.
        bench.run(options, &script).with(0, &["10 done"]);
        assert_eq!(calls(&bench), 2);
    }
}

#[test]
fn killed_once_output_is_there_it_keeps_what_failed_and_tells_it() {
    let bench = Bench::new(&(numbers(4) + "refused\n"));
    let script = blocked(HALF);
    let options = ["--failures", "failures"];
    bench.run(&options, &script).with(1, &[".new"]);
    let (out, failures) = (bench.read("out"), bench.read("failures"));
    unblock(&bench);
    let told = ["4 requests: 2 done, 2 failed; 1 lines refused"];
    bench.run(&options, &script).with(5, &told);
    assert_eq!(calls(&bench), 1);
    assert_eq!((bench.read("out"), bench.read("failures")), (out, failures));

    // The same for what is retried: what fails again is not retried by the way.
    let retry = ["--retry-failed", "--failures", "failures"];
    fs::remove_file(bench.path("open")).unwrap();
    bench.run(&retry, &script).with(1, &[".new"]);
    assert_eq!(calls(&bench), 2);
    unblock(&bench);
    bench.run(&retry, &script).with(5, &told);
    assert_eq!(calls(&bench), 2);
    // It was over, so what failed is retried once more.
    let script = blocked(ECHO);
    bench.run(&retry, &script).with(5, &["4 done, 0 failed"]);
    assert_eq!(calls(&bench), 3);
    assert!(!bench.path("out.batchyard").exists());
}

/// A run that has ended but for the removal of its folder.
fn not_removed() -> Bench {
    let bench = Bench::new(&(numbers(3) + "refused\n"));
    let block = format!("echo call >> calls; [ -e open ] || : > out.batchyard.removing; {ECHO}");
    bench.write("script", block);
    bench.run(&[], ". ./script").with(1, &["removing"]);
    assert!(bench.path("out.batchyard.ended").exists());
    bench.write("open", "");
    fs::remove_file(bench.path("out.batchyard.removing")).unwrap();
    bench
}

/// One whose folder is out of the way.
fn renamed() -> Bench {
    let bench = not_removed();
    let removing = bench.path("out.batchyard.removing");
    fs::rename(bench.path("out.batchyard"), removing).unwrap();
    bench
}

/// One whose folder is half a store.
fn half_removed() -> Bench {
    let bench = renamed();
    fs::remove_file(bench.path("out.batchyard.removing/FORMAT")).unwrap();
    fs::remove_dir_all(bench.path("out.batchyard.removing/commands")).unwrap();
    bench
}

/// One whose folder is gone.
fn removed() -> Bench {
    let bench = renamed();
    fs::remove_dir_all(bench.path("out.batchyard.removing")).unwrap();
    bench
}

const REMOVALS: [fn() -> Bench; 4] = [not_removed, renamed, half_removed, removed];

fn nothing_is_left(bench: &Bench) {
    for name in ["", ".removing", ".ended"].map(|end| format!("out.batchyard{end}")) {
        assert!(!bench.path(&name).exists(), "{name}");
    }
}

#[test]
fn killed_while_its_folder_goes_it_ends_without_a_call() {
    for state in REMOVALS {
        let bench = state();
        let out = bench.read("out");
        let told = ["3 requests: 3 done, 0 failed; 1 lines refused"];
        let ended = bench.run(&["--json"], ". ./script");
        ended.with(5, &told);
        assert!(ended.stdout.contains("\"finished\":true"), "{ended:?}");
        assert_eq!((calls(&bench), bench.read("out")), (1, out));
        nothing_is_left(&bench);
        bench.run(&[], ". ./script").with(5, &told);
        assert_eq!(calls(&bench), 2, "it was over");
    }
}

#[test]
fn killed_while_its_folder_goes_it_is_no_other_run() {
    for state in REMOVALS {
        let bench = state();
        bench.run(&[], ECHO).with(4, &["COMMAND", "--fresh"]);
        bench.write("in", numbers(4));
        let script = ". ./script";
        bench.run(&[], script).with(4, &["INPUT has changed"]);
        assert_eq!(calls(&bench), 1);
        bench.run(&["--fresh"], script).with(0, &["4 done"]);
        assert_eq!(calls(&bench), 2);
        nothing_is_left(&bench);
    }
    let bench = removed();
    fs::remove_file(bench.path("out")).unwrap();
    bench.run(&[], ". ./script").with(5, &["3 done"]);
    assert_eq!(calls(&bench), 2, "its OUTPUT is wanted again");
    nothing_is_left(&bench);
}

#[test]
fn a_run_that_is_started_over_is_not_taken_for_the_one_before() {
    let bench = Bench::new(&numbers(4));
    let script = format!("echo call >> calls; {HALF}");
    bench.run(&[], &script).with(5, &["2 failed"]);
    // Killed when the folder of the run before was out of the way.
    let removing = bench.path("out.batchyard.removing");
    fs::rename(bench.path("out.batchyard"), &removing).unwrap();
    bench.run(&[], &script).with(5, &["4 requests"]);
    assert_eq!(calls(&bench), 2);
    assert!(!removing.exists());
}

#[test]
fn a_retry_without_a_run_leaves_nothing() {
    let bench = Bench::new(&numbers(1));
    let options = ["--retry-failed"];
    bench.run(&options, ECHO).with(3, &["no run to retry"]);
    assert!(!bench.path("out.batchyard").exists());
    let options = ["--retry-failed", "--store", "store"];
    bench.run(&options, ECHO).with(3, &["no run to retry"]);
    assert!(!bench.path("store").exists());
}
