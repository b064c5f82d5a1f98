//! The page that is scraped: samples by family, in the Prometheus text format 0.0.4.

use std::{collections::HashMap, fmt::Write};

use super::{
    families::{FAMILIES, Family},
    tally::Histogram,
};

/// Collects samples and writes them family by family, as the format wants them.
#[derive(Default)]
pub(super) struct Page(HashMap<&'static str, String>);

impl Page {
    /// One value; `labels` are those of the family, in its order.
    pub(super) fn add(&mut self, family: &Family, labels: &[&str], value: f64) {
        self.sample(family, "", labels, None, value);
    }

    /// A count, or a size; what is above 2^53 loses its last digits, as everything does that Prometheus stores.
    #[expect(clippy::cast_precision_loss, reason = "the format has nothing better")]
    pub(super) fn count(&mut self, family: &Family, labels: &[&str], value: u64) {
        self.add(family, labels, value as f64);
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, family: &Family, labels: &[&str], value: bool) {
        self.add(family, labels, f64::from(u8::from(value)));
    }

    #[expect(clippy::cast_precision_loss, reason = "the format has nothing better")]
    pub(super) fn histogram(&mut self, family: &Family, labels: &[&str], histogram: &Histogram) {
        let mut seen = 0;
        for (bound, count) in histogram.buckets() {
            seen += count;
            let bound = number(bound);
            self.sample(family, "_bucket", labels, Some(&bound), seen as f64);
        }
        self.sample(family, "_sum", labels, None, histogram.sum());
        self.sample(family, "_count", labels, None, seen as f64);
    }

    fn sample(
        &mut self,
        family: &Family,
        suffix: &str,
        labels: &[&str],
        bound: Option<&str>,
        value: f64,
    ) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let text = self.0.entry(family.name).or_default();
        let labels = family.labels.iter().copied().zip(labels.iter().copied());
        let labels: Vec<String> = labels
            .chain(bound.map(|bound| ("le", bound)))
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        // Writing to a string can't fail.
        let _ = writeln!(text, "{}{suffix}{labels} {}", family.name, number(value));
    }

    /// The page as text.
    pub(super) fn text(self) -> String {
        let mut page = String::new();
        for Family {
            name, kind, help, ..
        } in FAMILIES
        {
            if let Some(samples) = self.0.get(name) {
                let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
                page.push_str(samples);
            }
        }
        page
    }
}

fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    value.to_string()
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::families::{BATCH_REQUESTS, BUILD, MAX_BYTES};

    #[test]
    fn samples_stand_under_their_family_and_labels_are_escaped() {
        let mut page = Page::default();
        page.add(&MAX_BYTES, &["a"], f64::INFINITY);
        page.count(&BUILD, &["1\"\\\n2"], 1);
        page.add(&MAX_BYTES, &["b"], 0.25);
        let text = page.text();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("# HELP"))
            .collect();
        assert_eq!(
            lines,
            [
                "# TYPE batchyard_max_batch_bytes gauge",
                "batchyard_max_batch_bytes{queue=\"a\"} +Inf",
                "batchyard_max_batch_bytes{queue=\"b\"} 0.25",
                "# TYPE batchyard_build_info gauge",
                "batchyard_build_info{version=\"1\\\"\\\\\\n2\"} 1",
            ]
        );
    }

    #[test]
    fn buckets_of_a_histogram_are_cumulative_and_the_last_one_has_all() {
        let mut histogram = Histogram::new(&[1.0, 10.0]);
        for value in [0.5, 1.0, 2.0, 99.0] {
            histogram.observe(value);
        }
        let mut page = Page::default();
        page.histogram(&BATCH_REQUESTS, &["q"], &histogram);
        let text = page.text();
        let values: Vec<&str> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split("_requests").nth(1))
            .collect();
        assert_eq!(
            values,
            [
                "_bucket{queue=\"q\",le=\"1\"} 2",
                "_bucket{queue=\"q\",le=\"10\"} 3",
                "_bucket{queue=\"q\",le=\"+Inf\"} 4",
                "_sum{queue=\"q\"} 102.5",
                "_count{queue=\"q\"} 4",
            ]
        );
    }
}
