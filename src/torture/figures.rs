//! What must stay flat however long it goes on: memory, descriptors, disk use and opening times.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use serde::Serialize;

use crate::bench::machine;

/// What was measured of one child and its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How long opening took.
    pub open_micros: Option<u64>,
    /// Resident bytes of the child before it was killed.
    pub resident_bytes: Option<u64>,
    /// Its open file descriptors.
    pub descriptors: Option<u64>,
    /// What its store occupies on the disk.
    pub disk_bytes: Option<u64>,
}

impl Sample {
    /// Looks at a child that is alive.
    pub fn look(&mut self, process: u32) {
        self.resident_bytes = machine::resident(process).map(|(now, _most)| now);
        let descriptors = fs::read_dir(format!("/proc/{process}/fd"));
        self.descriptors = descriptors.ok().map(|entries| entries.count() as u64);
    }

    /// Measures its store, once it is gone.
    pub fn measure(&mut self, store: &Path) {
        self.disk_bytes = Some(occupied(store));
    }
}

/// The bytes that are allocated below a folder.
fn occupied(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let below: u64 = entries.map(|entry| occupied(&entry.path())).sum();
    meta.blocks() * 512 + below
}

/// One figure over the whole time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// In what it is counted.
    pub unit: &'static str,
    /// The median of the first quarter.
    pub first: u64,
    /// The median of the last quarter.
    pub last: u64,
    /// The most that the last may be.
    pub bound: u64,
    /// Whether it is not more.
    pub is_flat: bool,
}

/// The figures of these samples, in their order; none of fewer than 16, which say nothing.
pub fn figures(samples: &[Sample]) -> Vec<Figure> {
    let figures = KNOWN.iter().filter_map(|known| {
        let values: Vec<u64> = samples.iter().filter_map(known.of).collect();
        let quarter = values.len() / 4;
        if quarter < LEAST / 4 {
            return None;
        }
        let first = median(&values[..quarter]);
        let last = median(&values[values.len() - quarter..]);
        let bound = first + first * known.percent / 100 + known.slack;
        Some(Figure {
            name: known.name,
            unit: known.unit,
            first,
            last,
            bound,
            is_flat: last <= bound,
        })
    });
    figures.collect()
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

struct Known {
    name: &'static str,
    unit: &'static str,
    /// By how much it may grow: a part of it, and what a machine that is used by others too adds to a small value.
    percent: u64,
    slack: u64,
    of: fn(&Sample) -> Option<u64>,
}

const KNOWN: [Known; 4] = [
    Known {
        name: "resident memory",
        unit: "bytes",
        percent: 25,
        slack: 8 << 20,
        of: |sample| sample.resident_bytes,
    },
    Known {
        name: "open descriptors",
        unit: "descriptors",
        percent: 25,
        slack: 4,
        of: |sample| sample.descriptors,
    },
    Known {
        name: "disk use",
        unit: "bytes",
        percent: 25,
        slack: 32 << 20,
        of: |sample| sample.disk_bytes,
    },
    Known {
        name: "open time",
        unit: "microseconds",
        percent: 100,
        slack: 100_000,
        of: |sample| sample.open_micros,
    },
];
const LEAST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_flat_until_its_last_quarter_is_more_than_a_quarter_above_its_first() {
        let of = |values: &[u64]| {
            let sample = |value: &u64| Sample {
                resident_bytes: Some(value << 20),
                ..Sample::default()
            };
            let samples: Vec<_> = values.iter().map(sample).collect();
            figures(&samples)
        };
        assert!(of(&[50; 15]).is_empty(), "too few");
        // One that is out of the ordinary changes nothing.
        let mut values = vec![50; 40];
        (values[0], values[39]) = (1, 900);
        let flat = of(&values);
        assert_eq!(
            (flat.len(), flat[0].name, flat[0].is_flat),
            (1, "resident memory", true)
        );
        let growing: Vec<u64> = (0..40).map(|cycle| 50 + cycle).collect();
        let figure = &of(&growing)[0];
        assert_eq!((figure.first >> 20, figure.last >> 20), (55, 85));
        assert!(!figure.is_flat, "{figure:?}");
    }
}
