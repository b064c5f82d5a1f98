//! A strict reader of the Prometheus text format 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// A page, by the names of its families.
#[derive(Debug)]
pub(crate) struct Page(pub(crate) BTreeMap<String, Family>);

#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Page {
    /// Reads a page, and panics at whatever the format does not allow.
    pub(crate) fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line is not whole");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        let mut series = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(is_name(name), "{line}");
                let family = Family {
                    help: help.to_owned(),
                    ..Family::default()
                };
                let known = families.insert(name.to_owned(), family);
                assert!(known.is_none(), "{name} has two places on the page");
                name.clone_into(&mut current);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, current, "TYPE follows HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                kind.clone_into(&mut families.get_mut(name).unwrap().kind);
            } else {
                assert!(
                    series.insert(line.rsplit_once(' ').unwrap().0),
                    "twice: {line}"
                );
                let sample = sample(line);
                let family = families.get_mut(&current).expect("a family");
                assert!(
                    is_of(&sample.name, &current, &family.kind),
                    "{line} under {current}"
                );
                family.samples.push(sample);
            }
        }
        for (name, family) in &families {
            family.check(name);
        }
        Self(families)
    }

    /// The value of a series, whose labels are written as on the page.
    pub(crate) fn value(&self, series: &str) -> f64 {
        let wanted = sample(&format!("{series} 0"));
        let samples = self.0.values().flat_map(|family| &family.samples);
        let mut found =
            samples.filter(|sample| sample.name == wanted.name && sample.labels == wanted.labels);
        found.next().unwrap_or_else(|| panic!("no {series}")).value
    }

    /// The sum of all series of a family that have this label.
    pub(crate) fn sum(&self, family: &str, label: &str, value: &str) -> f64 {
        let samples = self.0[family].samples.iter();
        let matching =
            samples.filter(|sample| sample.labels.get(label).is_some_and(|of| of == value));
        matching.map(|sample| sample.value).sum()
    }
}

impl Family {
    /// The names of its labels, less that of buckets.
    pub(crate) fn labels(&self) -> BTreeSet<&str> {
        let labels = self.samples.iter().flat_map(|sample| sample.labels.keys());
        labels
            .map(String::as_str)
            .filter(|name| *name != "le")
            .collect()
    }

    fn check(&self, name: &str) {
        assert!(!self.kind.is_empty() && !self.help.is_empty(), "{name}");
        assert!(!self.samples.is_empty(), "{name} has no sample");
        assert_eq!(self.kind == "counter", name.ends_with("_total"), "{name}");
        let mut histograms: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for sample in &self.samples {
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le");
            let names: BTreeSet<&str> = labels.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                self.labels(),
                "{name}: all series have the same labels"
            );
            if self.kind != "gauge" {
                assert!(sample.value >= 0.0, "{name}");
            }
            if let Some(bound) = bound {
                let bound = if bound == "+Inf" {
                    f64::INFINITY
                } else {
                    bound.parse().unwrap()
                };
                let buckets = histograms.entry(format!("{labels:?}")).or_default();
                buckets.push((bound, sample.value));
            }
            if sample.name.ends_with("_count") && self.kind == "histogram" {
                let buckets = &histograms[&format!("{labels:?}")];
                let rising = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
                assert!(buckets.windows(2).all(rising), "{name}: {buckets:?}");
                assert_eq!(
                    buckets.last(),
                    Some(&(f64::INFINITY, sample.value)),
                    "{name}"
                );
            }
        }
        assert_eq!(histograms.is_empty(), self.kind != "histogram", "{name}");
    }
}

fn is_of(sample: &str, family: &str, kind: &str) -> bool {
    match sample.strip_prefix(family) {
        Some("") => kind != "histogram",
        Some("_bucket" | "_sum" | "_count") => kind == "histogram",
        _ => false,
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').expect("a closing brace")),
    };
    assert!(is_name(name), "{line}");
    let labels = labels.split(',').filter(|label| !label.is_empty());
    let labels = labels.map(|label| {
        let (name, value) = label.split_once('=').expect("a label");
        let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        assert!(is_name(name) && !value.contains(['"', '\\']), "{line}");
        (name.to_owned(), value.to_owned())
    });
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        value => value.parse().unwrap(),
    };
    Sample {
        name: name.to_owned(),
        labels: labels.collect(),
        value,
    }
}
