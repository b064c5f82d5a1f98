//! The picture: throughput against producers, how latencies are distributed, oldest against depth.

use super::{
    chart::{Chart, Line, PICTURE_WIDTH, escape, height, put},
    figure,
};
use crate::bench::{
    contestant::Role,
    report::{Entrant, Report, Row, UNEQUAL},
    workload::{Unit, Workload, grouped},
};

/// All charts whose figures were measured, one below the other, as one SVG.
pub fn svg(report: &Report) -> String {
    let charts: Vec<Chart> = [throughput(report), latency(report), oldest(report)]
        .into_iter()
        .filter(|chart| !chart.lines.is_empty())
        .collect();
    let mut top = 10.0;
    let mut body = String::new();
    for chart in &charts {
        chart.draw(top, &mut body);
        top += height(chart.lines.len());
    }
    let about = escape(&super::about(report));
    put(
        &mut body,
        format_args!(
            "<text x=\"16\" y=\"{:.1}\" font-size=\"10\" fill=\"#555\">{about}</text>\n",
            top + 8.0
        ),
    );
    if report.rows.iter().any(|row| row.unequal) {
        put(
            &mut body,
            format_args!(
                "<text x=\"16\" y=\"{:.1}\" font-size=\"10\" fill=\"#555\">{UNEQUAL} not as durable as the raw log: no fair comparison</text>\n",
                top + 24.0
            ),
        );
    }
    let height = top + 36.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{PICTURE_WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {PICTURE_WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn throughput(report: &Report) -> Chart {
    let producers = [1, 8, 64, 256];
    let case = |count: i32| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} producer{plural}, 1 KiB")
    };
    let cases = producers.map(case);
    Chart {
        title: "Durable pushes of 1 KiB: throughput against producers".into(),
        x_label: "producers, each waiting for its answer".into(),
        y_label: "requests a second".into(),
        places: producers.map(|count| count.to_string()).to_vec(),
        lines: lines(report, |name| {
            let value = |case: &String| find(report, Workload::Enqueue, case, name);
            let value = |case| value(case).map(|row| row.value.median);
            cases.iter().map(value).collect()
        }),
        tick: |value| figure(Unit::RequestsPerSecond, value),
    }
}

fn latency(report: &Report) -> Chart {
    let case = "64 producers, 1 KiB";
    Chart {
        title: "One push of 1 KiB among 64 producers: how long it takes".into(),
        x_label: "percentile of the pushes".into(),
        y_label: "time until the answer".into(),
        places: ["50 %", "99 %", "99.9 %", "longest"]
            .map(str::to_owned)
            .to_vec(),
        lines: lines(report, |name| {
            let row = find(report, Workload::Enqueue, case, name);
            let latency = row.and_then(|row| row.latency);
            let at = latency.map(|at| [at.p50, at.p99, at.p999, at.max]);
            at.map_or_else(|| vec![None; 4], |at| at.map(Some).to_vec())
        }),
        tick: |value| figure(Unit::Microseconds, value),
    }
}

fn oldest(report: &Report) -> Chart {
    let rows = report.of(Workload::Oldest);
    let mut cases: Vec<&str> = rows.map(|row| row.case.as_str()).collect();
    cases.dedup();
    let depth = |number: usize| {
        let power = u32::try_from(number).unwrap_or(0) + 3;
        grouped(10u64.pow(power))
    };
    Chart {
        title: "Telling the oldest request, against the depth".into(),
        x_label: "requests queued".into(),
        y_label: "time of stats(), median".into(),
        places: (0..cases.len()).map(depth).collect(),
        lines: lines(report, |name| {
            let value = |case: &&str| find(report, Workload::Oldest, case, name);
            let value = |case| value(case).map(|row| row.value.median);
            cases.iter().map(value).collect()
        }),
        tick: |value| figure(Unit::Microseconds, value),
    }
}

/// A line for each contestant that has a value.
fn lines(report: &Report, values: impl Fn(&str) -> Vec<Option<f64>>) -> Vec<Line> {
    let contestants = report.contestants.iter().enumerate();
    let line = |(number, contestant): (usize, &Entrant)| {
        let values = values(&contestant.name);
        values.iter().flatten().next()?;
        let mut rows = report.rows.iter();
        let unequal = rows.any(|row| row.contestant == contestant.name && row.unequal);
        let mark = if unequal { UNEQUAL } else { "" };
        Some(Line {
            name: format!("{}{mark}", contestant.name),
            colour: colour(report, number),
            dashes: match contestant.role {
                Role::Backend => "",
                Role::RawLog => "2 3",
                Role::Peer | Role::Moves => "7 3",
                Role::Redis => "9 3 2 3",
            },
            values,
        })
    };
    contestants.filter_map(line).collect()
}

/// The raw logs are grey, and nobody else is.
fn colour(report: &Report, number: usize) -> &'static str {
    let is_raw = |role: Role| role == Role::RawLog;
    let raw = is_raw(report.contestants[number].role);
    let before = report.contestants[..number].iter();
    let alike = before.filter(|one| is_raw(one.role) == raw).count();
    let colours: &[&str] = if raw { &GREYS } else { &COLOURS };
    colours[alike % colours.len()]
}

fn find<'a>(
    report: &'a Report,
    workload: Workload,
    case: &str,
    contestant: &str,
) -> Option<&'a Row> {
    let mut rows = report.of(workload);
    rows.find(|row| row.case == case && row.contestant == contestant)
}

/// Far apart in hue and in brightness.
const COLOURS: [&str; 10] = [
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#8c6d31", "#e377c2",
    "#bcbd22", "#333333",
];
const GREYS: [&str; 4] = ["#555555", "#7f7f7f", "#a0a0a0", "#c0c0c0"];
