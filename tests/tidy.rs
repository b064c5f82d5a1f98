//! The rules of this code base that no compiler checks, by plain string scanning; each failure names
//! the place and the fix. `code` is a file without its comments and without the tests at its end.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{ffi::OsString, fs, path::Path};

/// The layers of the design; a module belongs to the longest prefix of its path.
const ROWS: [&str; 7] = [
    "error request batch stats clock fault sync trace",
    "policy retry format remote",
    "queue handler",
    "queue/memory queue/sled queue/journal queue/redis",
    "dispatcher handler/command handler/http provider",
    "metrics control server configuration",
    "bench torture cli main testing fuzzing lib",
];
/// Modules that don't know each other | how the names begin under which they are re-exported.
const APART: &str = "queue/memory | Memory
queue/sled | Sled
queue/journal | Journal
queue/redis | Redis
handler/command | CommandHandler
handler/http | HttpHandler";
/// What is used | by whom | what anybody else does instead.
const RESERVED: &str = "fail | fault | name a point in src/fault.rs
sled | queue/sled bench/peer | use the Queue trait
bincode | queue/sled | records are written by one module
redis | queue/redis bench | use the Queue trait
fjall | bench/peer | others are measured, not used
lmdb | bench/peer | others are measured, not used
redb | bench/peer | others are measured, not used
rusqlite | bench/peer | others are measured, not used
fuser | torture/forgetful | mount what is there
reqwest | handler/http provider | the library alone has no HTTP client
clap | cli main | the library alone parses no arguments
std/time/Instant | clock | take `now` as an argument
std/time/SystemTime | clock torture/forgetful | take `now` as an argument
tokio | clock sync queue handler dispatcher provider metrics control server bench torture cli main testing fuzzing | it is pure: move this
std/fs | fault queue handler provider metrics control server bench torture cli main testing | it is pure: move this
std/net | handler provider server cli testing | it is pure: move this";
/// A word | what, in its line or path, makes it legal (the runtime has tasks, and providers have messages) | what to say instead.
const WORDS: &str = "job | remote | request or batch
jobs | remote | requests or batches
task | tokio async spawn task:: dispatcher | request or batch
tasks | tokio async spawn dispatcher | requests or batches
messages | error ` remote | requests
nack | | release or defer
processed | remote | handled or settled
processing | remote | handling
exactly once | not never | at least once, under the same id";

/// The text of a file, or of each file below a folder.
fn files(path: &str) -> Vec<(String, String)> {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if let Ok(text) = fs::read_to_string(&whole) {
        return vec![(path.to_owned(), text)];
    }
    let entries = fs::read_dir(whole).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name());
    let below = |name: OsString| files(&format!("{path}/{}", name.display()));
    names.flat_map(below).collect()
}

/// Each module of the library (`queue/memory/state`) with its file, less the tests at its end.
fn modules() -> Vec<(String, String)> {
    let module = |(path, text): (String, String)| {
        let module = path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let tests = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
        Some((module.to_owned(), text[..tests].to_owned()))
    };
    let modules: Vec<_> = files("src").into_iter().filter_map(module).collect();
    assert!(modules.len() > 20, "the modules were not found");
    modules
}

fn rows_of(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let cells = |line| str::split(line, '|').map(str::trim).collect();
    table.lines().map(cells)
}

fn is_in(module: &str, prefixes: &str) -> bool {
    let is = |prefix| format!("{module}/").starts_with(&format!("{prefix}/"));
    prefixes.split(' ').any(is)
}

fn row_of(module: &str) -> Option<usize> {
    let rows = ROWS.iter().flat_map(|names| names.split(' '));
    let longest = rows
        .filter(|name| is_in(module, name))
        .max_by_key(|name| name.len())?;
    (1..)
        .zip(ROWS)
        .find(|(_, names)| names.split(' ').any(|name| name == longest))
        .map(|(row, _)| row)
}

/// Every path in the code that begins with `start`, its braces written out, with `/` for `::`.
fn paths(text: &str, start: &str) -> Vec<String> {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&format!("{start}::")) {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c)) {
            expand("", &code[at..], &mut found);
        }
    }
    found
}

fn expand<'a>(prefix: &str, text: &'a str, found: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !c.is_alphanumeric() && !"_:*".contains(c));
    let (path, rest) = text.split_at(end.unwrap_or(text.len()));
    let path = format!("{prefix}{}", path.replace("::", "/"));
    let Some(mut inner) = rest.strip_prefix('{') else {
        found.push(path);
        return rest;
    };
    while let Some(next) = inner.find(|c: char| c.is_alphanumeric() || "_}*".contains(c)) {
        if inner[next..].starts_with('}') {
            return &inner[next + 1..];
        }
        inner = expand(&path, &inner[next..], found);
    }
    inner
}

fn none(failures: impl Iterator<Item = String>) {
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

#[test]
fn a_row_imports_only_rows_above_it() {
    let modules = modules();
    // Tests in files of their own may use whatever they like.
    let modules = (modules.iter()).filter(|(module, _)| !format!("{module}/").contains("/tests/"));
    none(modules.flat_map(|(module, text)| {
        let row = row_of(module).unwrap_or(0);
        let wrong = move |path: String| {
            let path = path.strip_prefix("crate/")?;
            let of = |names: &Vec<&str>| {
                let re_exported = path.split('/').any(|part| part.starts_with(names[1]));
                !is_in(module, names[0]) && (is_in(path, names[0]) || re_exported)
            };
            let apart = rows_of(APART).any(|names| of(&names));
            let fix = match row {
                0 => "give the module a row in ROWS and in the design",
                1..7 if path.starts_with(char::is_uppercase) => "name the module it is in, too",
                1..6 if apart => "adapters don't know each other; use the trait",
                _ if row_of(path) > Some(row) => "move what both need into a row above them",
                _ => return None,
            };
            Some(format!("src/{module}.rs (row {row}), crate::{path}: {fix}"))
        };
        paths(text, "crate").into_iter().filter_map(wrong)
    }));
}

#[test]
fn what_is_reserved_is_used_by_its_owners_alone() {
    none(modules().iter().flat_map(|(module, text)| {
        rows_of(RESERVED).filter_map(move |row| {
            let used = paths(text, row[0].split('/').next()?);
            let used = used.iter().any(|path| is_in(path, row[0])) && !is_in(module, row[1]);
            used.then(|| format!("src/{module}.rs uses {}: {}", row[0], row[2]))
        })
    }));
}

#[test]
fn files_are_short_and_named_after_their_module() {
    none(modules().iter().filter_map(|(module, text)| {
        let fix = match text.lines().count() {
            _ if format!("/{module}").ends_with("/mod") => "name it after its folder, beside it",
            601.. => "split it by what it does: it has more than 600 lines",
            _ => return None,
        };
        Some(format!("src/{module}.rs: {fix}"))
    }));
}

#[test]
fn nothing_is_allowed_or_left_for_later() {
    let banned = "[al~low( to~do!( unimplemen~ted!( FIX~ME".replace('~', "");
    let files = ["src", "tests", "benches", "examples"].map(files).concat();
    none(files.iter().flat_map(|(path, text)| {
        let found = banned.split(' ').filter(|ban| text.contains(ban));
        found.map(move |ban| format!("{path}: {ban}: do it now, or expect it with a reason"))
    }));
}

#[test]
fn one_word_has_one_meaning() {
    let mut files = ["src", "README.md", "CHANGELOG.md"].map(files).concat();
    files.retain(|(path, _)| !path.contains("langbatch")); // it speaks of theirs
    none(files.iter().flat_map(|(path, text)| {
        let wrong = move |(number, line): (usize, &str)| {
            let plain = format!(" {} ", line.to_lowercase());
            let plain = plain.replace(|c: char| !c.is_alphabetic(), " ");
            let place = format!("{path} {line}");
            let row = rows_of(WORDS).find(|row| {
                let legal = row[1].split_whitespace().any(|text| place.contains(text));
                !legal && plain.contains(&format!(" {} ", row[0]))
            })?;
            Some(format!("{path}:{number}: {:?}: say {}", row[0], row[2]))
        };
        (1..).zip(text.lines()).filter_map(wrong)
    }));
}

#[test]
fn each_point_is_listed_and_stands_in_one_place() {
    // Whole files: a module may go on behind those of its tests.
    let files = files("src");
    let fault = files.iter().find(|(path, _)| path == "src/fault.rs");
    let list = fault.unwrap().1.split("const POINTS").nth(1).unwrap();
    let list = list.split("\";").next().unwrap();
    let names: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_once(" | "))
        .collect();
    assert!(names.len() > 50, "the points were not found");
    none(names.iter().filter_map(|(name, _)| {
        let uses = files.iter().filter(|(path, _)| path != "src/fault.rs");
        let uses = uses.map(|(_, text)| text.matches(&format!("\"{name}\"")).count());
        let fix = match uses.sum::<usize>() {
            0 => "put it where it belongs, or take it off the list",
            1 => return None,
            _ => "two places need two names",
        };
        Some(format!("the point {name}: {fix}"))
    }));
}
