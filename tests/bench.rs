//! `batchyard bench`, as a shell uses it, at a tiny scale: what it prints, never how fast anything is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use batchyard::bench::{
    render,
    report::Report,
    workload::{Unit, WORKLOADS},
};
use serde_json::Value;
use tempfile::TempDir;

const TINY: &str = "--rounds 2 --seconds 0.01 --scale 0.0005 --max-depth 10000";

fn bench(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_batchyard"));
    command
        .env_remove("RUST_LOG")
        .arg("bench")
        .arg("--dir")
        .arg(dir)
        .args(line.split_whitespace())
        .stdin(Stdio::null());
    command
}

/// Runs it and expects this exit code: what it printed, and what it said.
fn run(dir: &Path, line: &str, code: i32) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = bench(dir, line).output().unwrap();
    let (out, err) = (String::from_utf8(stdout), String::from_utf8(stderr));
    let (out, err) = (out.unwrap(), err.unwrap());
    assert_eq!(status.code(), Some(code), "{line}: {err}");
    (out, err)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// One run of every workload on a queue of each durability and the yardstick: its JSON and its picture.
static WHOLE: LazyLock<(String, String)> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    let svg = dir.path().join("bench.svg");
    let line = format!(
        "{TINY} --backends memory,sled,journal,raw --json --svg {}",
        svg.display()
    );
    let (json, _) = run(dir.path(), &line, 0);
    assert_eq!(
        entries(dir.path()),
        std::slice::from_ref(&svg),
        "nothing else is left"
    );
    (json, fs::read_to_string(svg).unwrap())
});

#[test]
fn an_earlier_run_is_shown_again() {
    let dir = TempDir::new().unwrap();
    let (json, svg) = (dir.path().join("bench.json"), dir.path().join("bench.svg"));
    fs::write(&json, &WHOLE.0).unwrap();
    let line = format!(
        "--from {} --markdown --svg {}",
        json.display(),
        svg.display()
    );
    let (markdown, _) = run(dir.path(), &line, 0);
    let report: Report = serde_json::from_str(&WHOLE.0).unwrap();
    // Not by assert_eq, which would print both.
    assert!(markdown == render::markdown(&report), "not the same table");
    assert!(
        fs::read_to_string(svg).unwrap() == render::svg(&report),
        "not the same picture"
    );
    fs::write(&json, "[]").unwrap();
    let (_, refused) = run(dir.path(), &format!("--from {}", json.display()), 2);
    assert!(refused.contains("bench --json"), "{refused}");
}

#[test]
fn the_json_has_a_row_of_each_contestant_in_each_workload() {
    let json: Value = serde_json::from_str(&WHOLE.0).unwrap();
    assert_eq!(json["failed"], Value::Array(Vec::new()));
    assert_eq!(json["rounds"], 2);
    for known in ["cpu", "cores", "memory_bytes", "kernel", "file_system"] {
        assert!(!json["machine"][known].is_null(), "{known}");
    }
    let rows = json["rows"].as_array().unwrap();
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let has: BTreeSet<_> = rows
        .iter()
        .map(|row| (text(row, "workload"), text(row, "contestant")))
        .collect();
    let only = |name| match name {
        "device" => "raw",
        "enqueue" | "claim" | "drain" => "memory sled journal raw",
        "beside" | "open" | "life" | "disk" => "sled journal",
        _ => "memory sled journal",
    };
    let want: BTreeSet<_> = WORKLOADS
        .iter()
        .flat_map(|(_, name)| only(name).split(' ').map(|who| (*name, who)))
        .map(|(name, who)| (name.to_owned(), who.to_owned()))
        .collect();
    assert_eq!(has, want);
    for row in rows {
        let value = |name: &str| row["value"][name].as_f64().unwrap();
        assert!(value("median") >= 0.0, "{row}");
        assert!(
            value("min") <= value("median") && value("median") <= value("max"),
            "{row}"
        );
        if row["workload"] == "enqueue" {
            assert_eq!(row["rounds"], 2, "{row}");
            let latency = &row["latency"];
            assert!(latency["p50"].as_f64() <= latency["p999"].as_f64(), "{row}");
            assert_eq!(row["ratio"].is_null(), row["contestant"] == "raw", "{row}");
        }
    }
    let killed = |row: &&Value| text(row, "case").ends_with("after kill -9");
    assert_eq!(rows.iter().filter(killed).count(), 2);
}

#[test]
fn unequal_durability_is_said_wherever_it_is_compared() {
    let report: Report = serde_json::from_str(&WHOLE.0).unwrap();
    let compared = report.rows.iter().filter(|row| row.ratio.is_some());
    for row in compared {
        assert_eq!(row.unequal, row.contestant == "memory", "{row:?}");
    }
    let why = "† no fair comparison: it is not as durable as the yardstick. So with memory (lost with the process).";
    let dir = TempDir::new().unwrap();
    let line = format!("{TINY} --backends memory,sled,journal,raw --workloads claim");
    let (table, _) = run(dir.path(), &line, 0);
    for text in [&table, &render::markdown(&report)] {
        assert!(text.contains(why), "{text}");
        let mut ratios = 0;
        for line in text.lines().filter(|line| line.contains(", pushed ")) {
            let marked = line.contains('†');
            assert_eq!(marked, line.contains("memory"), "{line}");
            ratios += 1;
        }
        assert_eq!(ratios, 2 * 2 * 4, "{text}");
    }
    assert!(WHOLE.1.contains(">memory†<") && WHOLE.1.contains(">sled<"));
}

#[test]
fn the_markdown_has_the_figures_of_the_json() {
    let json: Value = serde_json::from_str(&WHOLE.0).unwrap();
    let report: Report = serde_json::from_str(&WHOLE.0).unwrap();
    let markdown = render::markdown(&report);
    let mut section = "";
    let mut lines = BTreeSet::new();
    for line in markdown.lines() {
        section = line.strip_prefix("### ").unwrap_or(section);
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        lines.insert((section, cells));
    }
    for row in json["rows"].as_array().unwrap() {
        let word = |name: &str| row[name].as_str().unwrap();
        let unit: Unit = serde_json::from_value(row["unit"].clone()).unwrap();
        let micros = |of: &Value| {
            of.as_f64()
                .map(|micros| render::figure(Unit::Microseconds, micros))
        };
        let mut want = vec![render::figure(
            unit,
            row["value"]["median"].as_f64().unwrap(),
        )];
        let ratio = row["ratio"]["median"].as_f64();
        let mark = if row["unequal"] == true { "†" } else { "" };
        want.extend(ratio.map(|ratio| format!("{ratio:.2}{mark}")));
        want.extend(micros(&row["latency"]["p99"]));
        want.extend(micros(&row["latency"]["max"]));
        let bytes = row["device_bytes"].as_f64();
        want.extend(bytes.map(|bytes| render::figure(Unit::Bytes, bytes)));
        let line = lines.iter().find(|(section, cells)| {
            *section == word("workload") && cells.starts_with(&[word("case"), word("contestant")])
        });
        let (_, cells) = line.unwrap_or_else(|| panic!("no line for {row}"));
        for figure in want {
            assert!(
                cells.contains(&figure.as_str()),
                "{figure} is not in {cells:?}"
            );
        }
    }
}

#[test]
fn the_picture_is_well_formed_and_says_what_it_shows() {
    let svg = &WHOLE.1;
    well_formed(svg);
    for label in [
        "producers, each waiting for its answer",
        "requests a second",
        "percentile of the pushes",
        "time until the answer",
        "requests queued",
        "time of stats(), median",
        "10,000",
        "raw",
    ] {
        assert!(svg.contains(&format!(">{label}<")), "{label}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

/// Every element ends, in order; every attribute is quoted; no stray character of markup.
fn well_formed(xml: &str) {
    let mut open = Vec::new();
    let mut rest = xml.trim_end();
    while !rest.is_empty() {
        let (text, markup) = rest.split_once('<').expect("text behind the end");
        assert!(!text.contains('>'), "{text}");
        let entities = text.split('&').skip(1);
        assert!(
            entities.into_iter().all(|entity| entity.contains(';')),
            "{text}"
        );
        let (tag, after) = markup.split_once('>').expect("a tag ends");
        assert!(!tag.contains('<'), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "the end of {name}");
        } else {
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let unquoted = tag.split('"').step_by(2).collect::<String>();
            let attributes = unquoted.matches('=').count();
            assert_eq!(attributes * 2, tag.matches('"').count(), "{tag}");
            let name = tag.split([' ', '\n']).next().unwrap();
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        rest = after;
    }
    assert!(open.is_empty(), "{open:?} do not end");
}

#[test]
fn markdown_is_printed_and_what_was_in_the_folder_stays() {
    let dir = TempDir::new().unwrap();
    let mine = dir.path().join("mine");
    fs::write(&mine, "precious").unwrap();
    let line = format!("{TINY} --backends memory --workloads dispatch,end-to-end --markdown");
    let (out, err) = run(dir.path(), &line, 0);
    assert!(
        out.contains("### dispatch\n\n| case | contestant | median |"),
        "{out}"
    );
    assert!(
        out.contains("| memory | nothing: lost with the process |"),
        "{out}"
    );
    assert!(!out.contains("x raw"), "nothing to compare with: {out}");
    assert!(err.contains("measuring in "), "{err}");
    assert_eq!(entries(dir.path()), [mine]);
}

#[test]
fn what_can_not_be_measured_is_refused_with_what_there_is() {
    let dir = TempDir::new().unwrap();
    for (line, code, with) in [
        ("--backends paper", 2, "raw, raw-before, raw-never"),
        ("--workloads paint", 2, "enqueue, claim, drain"),
        ("--rounds 0", 2, "at least 1"),
        ("--scale 0", 2, "above 0"),
        ("--json --markdown", 2, "cannot be used with"),
        ("--backends raw --workloads oldest", 3, "nothing to measure"),
        ("--part {}", 2, "for this program itself"),
    ] {
        let (_, err) = run(dir.path(), line, code);
        assert!(err.contains(with), "{line}: {err}");
    }
    let (_, err) = run(&dir.path().join("nowhere"), "--quick", 3);
    assert!(err.contains("nowhere"), "{err}");
    assert_eq!(entries(dir.path()), [] as [PathBuf; 0]);
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let line = "--backends sled --workloads memory --scale 100";
    let mut command = bench(dir.path(), line);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert!(said.starts_with("measuring in "), "{said}");
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(killed.unwrap().success());
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert_eq!(entries(dir.path()), [] as [PathBuf; 0]);
}
