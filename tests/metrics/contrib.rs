//! The dashboard and the alerts name metrics and labels that there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

const ALERTS: &str = include_str!("../../contrib/alerts.yml");
const DASHBOARD: &str = include_str!("../../contrib/grafana-dashboard.json");

/// The names on the page, buckets and sums included, and their labels.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let guide = include_str!("../../src/_documentation/metrics.md");
    let mut known = BTreeMap::new();
    for row in guide.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[4].split('`').skip(1).step_by(2).map(str::to_owned);
        // Prometheus adds these to whatever it scrapes.
        let labels: BTreeSet<String> = labels.chain(["instance".into()]).collect();
        let name = cells[1].trim_matches('`');
        if cells[2] == "histogram" {
            for suffix in ["_bucket", "_sum", "_count"] {
                let with = labels.iter().cloned().chain(["le".into()]).collect();
                known.insert(format!("{name}{suffix}"), with);
            }
        } else {
            known.insert(name.to_owned(), labels);
        }
    }
    assert!(known.len() > 40, "the table was not found");
    known
}

/// Checks the names and the selectors of an expression; how many metrics it names.
fn check(expression: &str, known: &BTreeMap<String, BTreeSet<String>>) -> usize {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut named = 0;
    let mut rest = expression;
    while let Some(at) = rest.find(word) {
        let end = rest[at..]
            .find(|c| !word(c))
            .map_or(rest.len(), |end| at + end);
        let name = &rest[at..end];
        rest = &rest[end..];
        if !name.starts_with("batchyard_") && !name.starts_with("process_") {
            continue;
        }
        let labels = known.get(name);
        let labels = labels.unwrap_or_else(|| panic!("{name} is no metric: {expression}"));
        named += 1;
        let Some(selector) = rest.strip_prefix('{') else {
            continue;
        };
        let (selector, after) = selector.split_once('}').expect("a closing brace");
        rest = after;
        for matcher in selector.split(',') {
            let label = matcher.split(['=', '!']).next().unwrap();
            assert!(
                labels.contains(label),
                "{name} has no label {label}: {expression}"
            );
        }
    }
    let brackets =
        |open, close| expression.matches(open).count() == expression.matches(close).count();
    assert!(
        brackets('(', ')') && brackets('{', '}') && brackets('[', ']'),
        "{expression}"
    );
    named
}

#[test]
fn the_alerts_parse_and_name_metrics_that_there_are() {
    let rules = YamlLoader::load_from_str(ALERTS).unwrap();
    let known = known();
    let mut names = BTreeSet::new();
    for rule in rules[0]["groups"][0]["rules"].as_vec().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        assert!(check(rule["expr"].as_str().unwrap(), &known) > 0, "{name}");
        for part in ["summary", "action"] {
            assert!(
                matches!(rule["annotations"][part], Yaml::String(_)),
                "{name}: {part}"
            );
        }
        assert!(rule["labels"]["severity"].as_str().is_some(), "{name}");
    }
    assert!(names.len() > 10);
}

#[test]
fn the_dashboard_parses_and_names_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let known = known();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut named = 0;
    for panel in panels {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "two panels with one id"
        );
        for target in panel["targets"].as_array().into_iter().flatten() {
            let found = check(target["expr"].as_str().unwrap(), &known);
            assert!(found > 0, "{panel}");
            named += found;
        }
    }
    assert!(named > 30, "{named}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"].as_str().unwrap();
        check(query, &known);
    }
}
