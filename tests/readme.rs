//! The README and the page on safety claim only what a test proves: every test that they name exists.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{fs, path::Path};

/// The text of all Rust files below a folder.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Each row of a document that begins with a guarantee, and the tests that these columns of it name.
fn claims(document: &str, columns: &[usize]) -> Vec<(String, Vec<String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(document)).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| G"));
    let names = |row: &str| {
        let cells: Vec<&str> = row.split('|').collect();
        let proofs = columns
            .iter()
            .flat_map(|column| cells[*column].split('`').skip(1).step_by(2));
        let tests = proofs.filter(|name| !name.contains(['/', '.', ' ', '=']));
        tests.map(str::to_owned).collect()
    };
    rows.map(|row| (row.to_owned(), names(row))).collect()
}

/// The names in ticks that can be names of tests.
fn names_of_tests(text: &str) -> Vec<&str> {
    let ticked = text.split('`').skip(1).step_by(2);
    let is_test = |name: &&str| {
        name.matches('_').count() >= 4
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    ticked.filter(is_test).collect()
}

#[test]
fn every_test_that_the_page_on_upgrades_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    sources(&root.join("tests"), &mut tests);
    sources(&root.join("src"), &mut tests);
    let page = fs::read_to_string(root.join("src/_documentation/upgrades.md")).unwrap();
    let names = names_of_tests(&page);
    assert!(names.len() >= 8, "the names were not found: {names:?}");
    for name in names {
        assert!(
            tests.contains(&format!("fn {name}(")),
            "{name} is not a test"
        );
    }
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    sources(&root.join("tests"), &mut tests);
    sources(&root.join("src"), &mut tests);
    let readme = claims("README.md", &[3]);
    assert_eq!(readme.len(), 12);
    let safety = claims("src/_documentation/safety.md", &[4, 5]);
    assert!(safety.len() > 15, "the rows of safety.md were not found");
    for (row, names) in readme.into_iter().chain(safety) {
        assert!(!names.is_empty(), "nothing proves: {row}");
        for name in names {
            let test = format!("fn {name}(");
            assert!(
                tests.contains(&test),
                "{name} is not a test: rename it in {row}"
            );
        }
    }
}
