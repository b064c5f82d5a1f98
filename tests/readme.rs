//! The README claims only what a test proves: every test that its guarantees name exists.
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

#[test]
fn every_guarantee_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let mut tests = String::new();
    sources(&root.join("tests"), &mut tests);
    sources(&root.join("src/testing/conformance"), &mut tests);
    sources(&root.join("src/queue/journal/tests"), &mut tests);
    let guarantees: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("| G"))
        .collect();
    assert_eq!(guarantees.len(), 12);
    for line in guarantees {
        let proofs = line.split('|').nth(3).unwrap();
        let names: Vec<&str> = proofs.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "nothing proves: {line}");
        for name in names {
            let test = format!("fn {name}(");
            assert!(
                tests.contains(&test),
                "{name} is not a test: rename it in README.md"
            );
        }
    }
}
