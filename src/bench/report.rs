//! What was measured, in figures that can be compared.

use serde::{Deserialize, Serialize};

use super::{
    contestant::{Contestant, Role, Safety, YARDSTICK},
    machine::Machine,
    plan::Plan,
    statistics::{Latency, Spread, ratios},
    workload::{Point, Unit, WORKLOADS, Workload},
};

/// Everything that one run tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it was measured.
    pub machine: Machine,
    /// How many rounds.
    pub rounds: u32,
    /// How long each push measurement took, in seconds.
    pub seconds: f64,
    /// What part of the full counts was used.
    pub scale: f64,
    /// Who took part, and what an answer of each is worth.
    pub contestants: Vec<Entrant>,
    /// The figures.
    pub rows: Vec<Row>,
    /// What one has to know to read them.
    pub notes: Vec<String>,
    /// What went wrong.
    pub failed: Vec<String>,
}

/// A contestant, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entrant {
    /// Its name.
    pub name: String,
    /// What it is here for.
    pub role: Role,
    /// What its answers are worth.
    pub safety: Safety,
    /// The same in words.
    pub durability: String,
}

/// What one contestant reached in one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The workload.
    pub workload: Workload,
    /// The case.
    pub case: String,
    /// The contestant.
    pub contestant: String,
    /// The unit of the value.
    pub unit: Unit,
    /// How many rounds there were.
    pub rounds: usize,
    /// The figure, over the rounds.
    pub value: Spread,
    /// How many times as good as the yardstick, round by round.
    pub ratio: Option<Spread>,
    /// Whether that compares what is not equally durable.
    pub unequal: bool,
    /// How long single calls took.
    pub latency: Option<Latency>,
    /// Bytes that reached the device: a request where the figure is a rate, else a call.
    pub device_bytes: Option<f64>,
    /// Bytes that became resident since before it was opened.
    pub resident_bytes: Option<f64>,
    /// Bytes that its files took at the end.
    pub disk_bytes: Option<f64>,
}

/// A point, and of what it is.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The workload.
    pub workload: Workload,
    /// The contestant.
    pub contestant: String,
    /// The point.
    pub point: Point,
}

impl Report {
    /// From what was measured.
    pub fn new(machine: Machine, plan: &Plan, measured: &[Measured], failed: Vec<String>) -> Self {
        let entrant = |contestant: &Contestant| Entrant {
            name: contestant.name.into(),
            role: contestant.role,
            safety: contestant.safety,
            durability: contestant.durability.into(),
        };
        let contestants: Vec<_> = plan.contestants.iter().map(entrant).collect();
        let rows = rows(&contestants, measured);
        let mut report = Self {
            notes: Vec::new(),
            machine,
            rounds: plan.rounds,
            seconds: plan.seconds,
            scale: plan.scale,
            contestants,
            rows,
            failed,
        };
        report.notes = report.notes();
        let left_out = plan.left_out.iter();
        let left_out = left_out.map(|what| format!("Not measured: {what}."));
        report.notes.extend(left_out);
        report
    }

    /// What one has to know to read the figures, as far as it applies.
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "Medians over interleaved rounds, with the smallest and the largest; queues keep no results \
             (retention zero); nothing else should have used the disk meanwhile."
                .to_owned(),
        ];
        if self.rows.iter().any(|row| row.ratio.is_some()) {
            notes.push(format!(
                "x {YARDSTICK}: how many times as good as the yardstick `{YARDSTICK}` in the same round; above 1 is better."
            ));
        }
        let unequal = self.rows.iter().filter(|row| row.unequal);
        let mut names: Vec<_> = unequal.map(|row| row.contestant.as_str()).collect();
        names.dedup();
        let whose = self.contestants.iter();
        let weaker: Vec<_> = whose
            .filter(|contestant| names.contains(&contestant.name.as_str()))
            .map(|contestant| format!("{} ({})", contestant.name, contestant.durability))
            .collect();
        if !weaker.is_empty() {
            notes.push(format!(
                "{UNEQUAL} no fair comparison: it is not as durable as the yardstick. So with {}.",
                weaker.join("; ")
            ));
        }
        if !self.machine.is_disk() {
            notes.push(format!(
                "{} is no disk: nothing measured here survives power loss.",
                self.machine.file_system
            ));
        }
        if self.machine.device.is_none() {
            notes.push("No block device was found whose sectors could be counted.".into());
        }
        notes
    }

    /// The rows of a workload.
    pub fn of(&self, workload: Workload) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.workload == workload)
    }

    /// The workloads that have rows.
    pub fn workloads(&self) -> impl Iterator<Item = (Workload, &'static str)> {
        let all = WORKLOADS.into_iter();
        all.filter(|(workload, _)| self.of(*workload).next().is_some())
    }
}

/// One row a case and contestant: cases in the order in which they were met, contestants in theirs.
fn rows(contestants: &[Entrant], measured: &[Measured]) -> Vec<Row> {
    let mut cases: Vec<(Workload, &str)> = Vec::new();
    for one in measured {
        let case = (one.workload, one.point.case.as_str());
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    let safety = |name: &str| {
        let found = contestants.iter().find(|one| one.name == name);
        found.map(|one| one.safety)
    };
    let mut rows = Vec::new();
    for (workload, case) in cases {
        let points = |name: &str| -> Vec<&Point> {
            let is = |one: &&Measured| {
                one.workload == workload && one.point.case == case && one.contestant == name
            };
            let points = measured.iter().filter(is);
            points.map(|one| &one.point).collect()
        };
        let yardstick = points(YARDSTICK);
        for contestant in contestants {
            let own = points(&contestant.name);
            let others = if contestant.name == YARDSTICK {
                &[][..]
            } else {
                &yardstick
            };
            let Some(mut row) = row(workload, contestant, &own, others) else {
                continue;
            };
            row.unequal = row.ratio.is_some() && safety(YARDSTICK) != Some(contestant.safety);
            rows.push(row);
        }
    }
    rows
}

fn row(
    workload: Workload,
    contestant: &Entrant,
    own: &[&Point],
    yardstick: &[&Point],
) -> Option<Row> {
    let first = own.first()?;
    let values = |points: &[&Point]| -> Vec<(u32, f64)> {
        let points = points.iter();
        points.map(|point| (point.round, point.value)).collect()
    };
    let latencies: Vec<_> = own.iter().filter_map(|point| point.latency).collect();
    let median = |of: fn(&Point) -> Option<f64>| {
        let spread = Spread::of(own.iter().filter_map(|point| of(point)))?;
        Some(spread.median)
    };
    Some(Row {
        workload,
        case: first.case.clone(),
        contestant: contestant.name.clone(),
        unit: first.unit,
        rounds: own.len(),
        value: Spread::of(own.iter().map(|point| point.value))?,
        ratio: ratios(first.unit.better(), &values(own), &values(yardstick)),
        unequal: false,
        latency: Latency::over(&latencies),
        device_bytes: median(|point| point.device_bytes),
        resident_bytes: median(|point| point.resident_bytes),
        disk_bytes: median(|point| point.disk_bytes),
    })
}

/// Marks a ratio between what is not equally durable.
pub const UNEQUAL: &str = "†";
