//! The files in `tests/remote/golden`.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::PathBuf};

use batchyard::{
    Outcome, Template,
    remote::{
        Added, BatchFile, CustomIds, Format, Line, LineReader, Profile, Reading, Reconciler,
        RemoteBatch, RemoteFile, RemotePage,
    },
};

use crate::member;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/remote/golden")
        .join(name)
}

/// The files with this ending, by name.
fn files(of: &str, ending: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(folder(of))
        .unwrap()
        .map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|is| is == ending));
    let files: BTreeMap<_, _> = files
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert!(files.len() > 2, "the golden files of {of} are gone");
    files
}

fn compare(path: &PathBuf, got: &str, wrong: &mut Vec<String>) {
    let want = fs::read_to_string(path).unwrap_or_default();
    if want == got {
        return;
    }
    if env::var_os("BATCHYARD_BLESS").is_some() {
        fs::write(path, got).unwrap();
    } else {
        wrong.push(format!("{}:\n{got}", path.display()));
    }
}

/// ```text
/// name: value, of: profile options endpoint requests_type request_kwargs
/// --- payloads
/// one a line; @ and a JSON string for one with line breaks
/// --- lines
/// what is written
/// --- members
/// what became of each payload
/// ```
#[test]
fn payloads_become_the_lines_that_each_provider_wants() {
    let mut wrong = Vec::new();
    for (path, text) in files("lines", "txt") {
        let text = String::from_utf8(text).unwrap();
        let (head, rest) = text.split_once("--- payloads\n").unwrap();
        let payloads = rest.split("--- lines\n").next().unwrap();
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines
                .find(|(other, _)| *other == name)
                .map(|(_, value)| value)
        };
        let options = field("options").map_or("{}".into(), str::to_owned);
        let profile = Profile::named(field("profile").unwrap()).unwrap();
        let profile = profile
            .with(&serde_json::from_str(&options).unwrap())
            .unwrap();
        let requests_type = field("requests_type").unwrap_or("partial").parse().unwrap();
        let template = Template::new(requests_type, field("request_kwargs").unwrap_or("")).unwrap();
        let endpoint = field("endpoint").unwrap().parse().unwrap();
        let mut batch = BatchFile::new(Format { profile, endpoint }, template);
        let (mut out, mut members) = (Vec::new(), String::new());
        for (number, line) in (1..).zip(payloads.lines()) {
            let payload = match line.strip_prefix('@') {
                Some(json) => serde_json::from_str(json).unwrap(),
                None => line.to_owned(),
            };
            let added = batch.add(&member(number, payload.as_bytes(), None), &mut out);
            let added = match added {
                Added::Refused(refusal) => format!("{}: {refusal}", refusal.reason),
                Added::Misfit(misfit) => format!("not in this batch: {misfit}"),
                other => format!("{other:?}").to_lowercase(),
            };
            writeln!(members, "{number} {added}").unwrap();
        }
        let finished = batch.finish(&mut out);
        assert_eq!(finished.load.bytes, out.len() as u64, "{}", path.display());
        writeln!(members, "{:?}", finished.load).unwrap();
        let route = finished
            .route
            .map_or("nothing".into(), |route| route.to_string());
        writeln!(members, "{route}").unwrap();
        let out = String::from_utf8(out).unwrap();
        let got = format!("{head}--- payloads\n{payloads}--- lines\n{out}--- members\n{members}");
        compare(&path, &got, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Members 1 to 6 were sent as `a` to `f`, and 7 under its own id.
#[test]
fn what_comes_back_is_a_verdict_for_each_member() {
    let mut wrong = Vec::new();
    for (path, file) in files("answers", "jsonl") {
        let mut ids = CustomIds::new();
        for (number, id) in (1..).zip(["a", "b", "c", "d", "e", "f"]) {
            ids.add(&member(number, b"x", Some(id)));
        }
        ids.add(&member(7, b"x", None));
        let mut reconciler = Reconciler::new(ids);
        let mut lines = LineReader::new(4096);
        let mut got = String::new();
        lines.feed(&file);
        while let Some(line) = lines.finish() {
            let said = match line {
                Line::Whole(line) | Line::Last(line) => reading(reconciler.read(line)),
                Line::TooLong(bytes) => format!("too long: {bytes} bytes"),
            };
            writeln!(got, "{said}").unwrap();
        }
        let missing: Vec<_> = reconciler.missing().iter().map(|id| id.as_u64()).collect();
        writeln!(got, "missing: {missing:?}").unwrap();
        compare(&path.with_extension("txt"), &got, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn reading(reading: Reading) -> String {
    match reading {
        Reading::Answer(id, answer) => {
            let outcome = match answer.outcome() {
                Outcome::Done { result } => {
                    assert_eq!(result.unwrap(), answer.line);
                    "done, with the line".to_owned()
                }
                Outcome::Retry { error, .. } => format!("retry, {error}"),
                Outcome::Reject { reason, error } => format!("dead, {reason}, {error}"),
            };
            let usage = answer
                .usage
                .map_or(String::new(), |usage| format!("\n  {usage:?}"));
            let verdict = answer.verdict;
            format!("{}\n  {verdict:?}{usage}\n  {outcome}", id.as_u64())
        }
        Reading::Repeated(id) => format!("repeated: {}", id.as_u64()),
        Reading::Stranger(id) => format!("stranger: {id:?}"),
        Reading::Bad(bad) => format!("bad: {bad}, cut: {}", bad.is_cut),
    }
}

#[test]
fn the_guide_has_every_provider_as_it_is() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/_documentation/remote_batches.md");
    let guide = fs::read_to_string(&path).unwrap();
    let mut table = "| name | base URL | key | requests | bytes | windows | recognized by | expires |\n|---|---|---|---|---|---|---|---|\n".to_owned();
    for name in Profile::NAMES {
        let profile = Profile::named(name).unwrap();
        let number = |most: Option<u64>| most.map_or("not stated".into(), |most| most.to_string());
        let base = profile
            .base_url
            .as_deref()
            .unwrap_or(&profile.base_url_variable);
        let recognized = format!("{:?}", profile.recognized_by).to_lowercase();
        writeln!(
            table,
            "| `{name}` | `{base}` | `{}` | {} | {} | {} | {} | {} |",
            profile.key_variable,
            number(profile.limits.requests),
            number(profile.limits.bytes),
            profile.windows.join(", "),
            recognized.replace("inputfile", "its file"),
            if profile.expires { "yes" } else { "no" },
        )
        .unwrap();
    }
    let (before, rest) = guide.split_once("## Providers\n\n").unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    let mut wrong = Vec::new();
    let got = format!("{before}## Providers\n\n{table}\n{after}");
    compare(&path, &got, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The name of a file begins with that of the profile.
#[test]
fn batches_are_read_as_each_provider_describes_them() {
    let mut wrong = Vec::new();
    for (path, file) in files("batches", "json") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let profile = Profile::named(name.split('-').next().unwrap()).unwrap();
        let got = if name.contains("-list") {
            let read = |value: &_| RemoteBatch::of(value, &profile);
            let page = RemotePage::read(&file, read).unwrap();
            let batches = page.items.iter().map(|batch| (&batch.id, &batch.state));
            let batches: Vec<_> = batches.collect();
            format!(
                "{batches:#?}\nunreadable: {}\nafter: {:?}\n",
                page.unreadable, page.after
            )
        } else if name.contains("-file") {
            format!("{:#?}\n", RemoteFile::read(&file))
        } else {
            match RemoteBatch::read(&file, &profile) {
                Ok(batch) => {
                    let again = batch.may_be_submitted_again();
                    format!(
                        "{batch:#?}\nend: {}\nagain: {again}\n",
                        batch.state.is_end()
                    )
                }
                Err(error) => format!("{error}\n"),
            }
        };
        compare(&path.with_extension("txt"), &got, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
