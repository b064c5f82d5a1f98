//! The same figures for people: a table, Markdown, a picture.

mod chart;
mod svg;

use std::fmt::Write;

pub use self::svg::svg;
use super::{
    contestant::YARDSTICK,
    report::{Report, Row, UNEQUAL},
    statistics::Spread,
    workload::{Unit, Workload, grouped},
};

/// One workload's figures as words: headings, and a row of cells for each case and contestant. A column
/// that is empty everywhere is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// The workload.
    pub name: &'static str,
    /// Above the columns; the first two are words.
    pub headings: Vec<String>,
    /// As long as the headings.
    pub rows: Vec<Vec<String>>,
}

/// The figures of each workload.
pub fn figures(report: &Report) -> Vec<Figures> {
    let workloads = report.workloads();
    workloads
        .map(|(workload, name)| of_workload(report, workload, name))
        .collect()
}

fn of_workload(report: &Report, workload: Workload, name: &'static str) -> Figures {
    let per = match workload {
        Workload::Enqueue | Workload::Drain => "device/request",
        _ => "device",
    };
    let headings = [
        "case",
        "contestant",
        "median",
        "min to max",
        &format!("x {YARDSTICK}"),
        "p50",
        "p99",
        "p99.9",
        "max",
        per,
        "resident",
        "disk",
    ];
    let rows: Vec<_> = report.of(workload).map(cells).collect();
    let is_used = |column: usize| rows.iter().any(|row| !row[column].is_empty());
    let used: Vec<usize> = (0..headings.len()).filter(|at| is_used(*at)).collect();
    Figures {
        name,
        headings: used.iter().map(|at| headings[*at].to_owned()).collect(),
        rows: rows
            .iter()
            .map(|row| used.iter().map(|at| row[*at].clone()).collect())
            .collect(),
    }
}

/// The cells of a row, in the order of all headings.
pub fn cells(row: &Row) -> Vec<String> {
    let Spread { median, min, max } = row.value;
    let spread = if row.rounds > 1 {
        format!("{} to {}", figure(row.unit, min), figure(row.unit, max))
    } else {
        String::new()
    };
    let ratio = row.ratio.map_or_else(String::new, |ratio| {
        let mark = if row.unequal { UNEQUAL } else { "" };
        format!("{:.2}{mark}", ratio.median)
    });
    let latency = |of: fn(&super::statistics::Latency) -> f64| {
        let micros = row.latency.as_ref().map(of);
        micros.map_or_else(String::new, |micros| figure(Unit::Microseconds, micros))
    };
    let bytes = |bytes: Option<f64>| bytes.map_or_else(String::new, size);
    vec![
        row.case.clone(),
        row.contestant.clone(),
        figure(row.unit, median),
        spread,
        ratio,
        latency(|latency| latency.p50),
        latency(|latency| latency.p99),
        latency(|latency| latency.p999),
        latency(|latency| latency.max),
        bytes(row.device_bytes),
        bytes(row.resident_bytes),
        bytes(row.disk_bytes),
    ]
}

/// A figure with its unit, in about three digits.
pub fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::RequestsPerSecond => format!("{}/s", whole(value)),
        Unit::BytesPerSecond => format!("{}/s", size(value)),
        Unit::Microseconds if value < 1e3 => format!("{} us", digits(value)),
        Unit::Microseconds if value < 1e6 => format!("{} ms", digits(value / 1e3)),
        Unit::Microseconds => format!("{} s", digits(value / 1e6)),
        Unit::Bytes => size(value),
        Unit::BytesPerByte | Unit::Times => format!("{value:.2}"),
    }
}

/// Bytes in the unit that suits them.
fn size(bytes: f64) -> String {
    match bytes {
        ..1024.0 => format!("{bytes:.0} B"),
        ..1_048_576.0 => format!("{} KiB", digits(bytes / 1024.0)),
        _ => format!("{} MiB", digits(bytes / 1_048_576.0)),
    }
}

fn digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => whole(value),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are not negative and far below 2^64"
)]
fn whole(value: f64) -> String {
    grouped(value.round() as u64)
}

/// The report as Markdown.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("{}\n\n", about(report));
    let durable = report.contestants.iter();
    text.push_str("| contestant | an answered push survives |\n|---|---|\n");
    for contestant in durable {
        push(
            &mut text,
            format_args!("| {} | {} |\n", contestant.name, survives(contestant)),
        );
    }
    for figures in figures(report) {
        push(&mut text, format_args!("\n### {}\n\n", figures.name));
        push(
            &mut text,
            format_args!("| {} |\n", figures.headings.join(" | ")),
        );
        let align = |at| if at < WORDS { "---" } else { "---:" };
        let rule: Vec<_> = (0..figures.headings.len()).map(align).collect();
        push(&mut text, format_args!("|{}|\n", rule.join("|")));
        for row in &figures.rows {
            push(&mut text, format_args!("| {} |\n", row.join(" | ")));
        }
    }
    text.push('\n');
    for note in remarks(report) {
        push(&mut text, format_args!("- {note}\n"));
    }
    text
}

/// The machine and the settings, in one paragraph.
pub fn about(report: &Report) -> String {
    let machine = &report.machine;
    let device = machine.device.as_deref().unwrap_or("an unknown device");
    format!(
        "{}, {} cores, {} of memory, {}; {} on {device}. {} rounds, {} s a push measurement, {} of the full counts.",
        machine.cpu,
        machine.cores,
        size(super::statistics::as_f64(machine.memory_bytes)),
        machine.kernel,
        machine.file_system,
        report.rounds,
        report.seconds,
        report.scale,
    )
}

/// What a contestant's answers are worth, in words.
pub fn survives(contestant: &super::report::Entrant) -> String {
    use super::contestant::Safety;
    let what = match contestant.safety {
        Safety::Synced => "power loss",
        Safety::Later => "not even a crash, at first",
        Safety::Process => "nothing",
    };
    format!("{what}: {}", contestant.durability)
}

/// All notes, and what failed.
pub fn remarks(report: &Report) -> impl Iterator<Item = String> {
    let failed = report.failed.iter().map(|what| format!("Failed: {what}."));
    report.notes.iter().cloned().chain(failed)
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _ = text.write_fmt(arguments);
}

/// How many columns are words.
pub const WORDS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_about_three_digits_and_a_unit() {
        for (unit, value, want) in [
            (Unit::RequestsPerSecond, 146_683.4, "146,683/s"),
            (Unit::RequestsPerSecond, 12.0, "12/s"),
            (Unit::BytesPerSecond, 830.0 * 1_048_576.0, "830 MiB/s"),
            (Unit::Microseconds, 0.873, "0.87 us"),
            (Unit::Microseconds, 380.0, "380 us"),
            (Unit::Microseconds, 2_340.0, "2.34 ms"),
            (Unit::Microseconds, 61_000_000.0, "61.0 s"),
            (Unit::Bytes, 64.0, "64 B"),
            (Unit::Bytes, 16.0 * 1024.0, "16.0 KiB"),
            (Unit::Bytes, 5.0 * 1_073_741_824.0, "5,120 MiB"),
            (Unit::BytesPerByte, 1.0437, "1.04"),
        ] {
            assert_eq!(figure(unit, value), want);
        }
    }
}
