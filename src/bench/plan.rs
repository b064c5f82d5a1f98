//! From what was asked for to a report: which parts, in which order.

use std::path::PathBuf;

use super::{
    contestant::{Contestant, contestants},
    machine::Machine,
    report::{Measured, Report},
    workload::{Part, Point, WORKLOADS, Workload},
};
use crate::error::{Error, Result};

/// What to measure, and how thoroughly.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who takes part.
    pub contestants: Vec<Contestant>,
    /// What is measured.
    pub workloads: Vec<Workload>,
    /// Only the loads of `enqueue` whose names begin with one of these; all if there is none.
    pub loads: Vec<String>,
    /// How many rounds.
    pub rounds: u32,
    /// How long each push measurement takes, in seconds.
    pub seconds: f64,
    /// What part of the full counts is used.
    pub scale: f64,
    /// The most requests queued to look for the oldest of.
    pub most: u64,
    /// How much is queued while it is pushed beside readers.
    pub depth: u64,
    /// An empty folder on the disk that is measured.
    pub folder: PathBuf,
    /// This program, if it can start itself again.
    pub program: Option<PathBuf>,
    /// What is not measured, and why.
    pub left_out: Vec<String>,
}

impl Plan {
    /// All contestants and workloads of this build, at full size, in this folder.
    pub fn full(folder: PathBuf) -> Self {
        Self {
            contestants: contestants(),
            workloads: WORKLOADS.map(|(workload, _)| workload).to_vec(),
            loads: Vec::new(),
            rounds: 5,
            seconds: 1.0,
            scale: 1.0,
            most: 10_000_000,
            depth: 100_000,
            folder,
            program: None,
            left_out: Vec::new(),
        }
    }

    /// Leaves out those that need a program which is not there, and says so.
    #[must_use]
    pub fn without_missing(self) -> Self {
        #[cfg(feature = "redis")]
        if !super::server::Server::is_installed() {
            return self.without_servers();
        }
        self
    }

    #[cfg(feature = "redis")]
    fn without_servers(mut self) -> Self {
        let out = self.contestants.iter().filter(|one| one.needs_server);
        let names: Vec<_> = out.map(|contestant| contestant.name).collect();
        if !names.is_empty() {
            let text = format!("{}: redis-server is not installed", names.join(", "));
            self.left_out.push(text);
        }
        self.contestants
            .retain(|contestant| !contestant.needs_server);
        self
    }

    /// Every part in order: round by round over all contestants, each round begun by another one.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        for &workload in &self.workloads {
            for piece in (0..workload.pieces()).filter(|piece| self.has(workload, *piece)) {
                let rounds = if workload.fills_once() {
                    1
                } else {
                    self.rounds
                };
                let takes_part = |contestant: &&Contestant| workload.is_for(contestant, piece);
                let taking: Vec<_> = self.contestants.iter().filter(takes_part).collect();
                for round in 0..rounds {
                    let begin = round as usize % taking.len().max(1);
                    let turn = taking[begin..].iter().chain(&taking[..begin]);
                    parts.extend(turn.map(|one| self.part(workload, piece, one, round)));
                }
            }
        }
        for (number, part) in parts.iter_mut().enumerate() {
            // Short names: the path of a socket has room for a hundred bytes.
            part.folder = self.folder.join(number.to_string());
        }
        parts
    }

    fn has(&self, workload: Workload, piece: usize) -> bool {
        let named = |load: String| self.loads.iter().any(|name| load.starts_with(name));
        self.loads.is_empty() || workload.load(piece).is_none_or(named)
    }

    fn part(&self, workload: Workload, piece: usize, of: &Contestant, round: u32) -> Part {
        Part {
            workload,
            piece,
            contestant: of.name.to_owned(),
            round,
            rounds: self.rounds,
            seconds: self.seconds,
            scale: self.scale,
            most: self.most,
            depth: self.depth,
            folder: PathBuf::new(),
            program: self.program.clone(),
        }
    }

    /// Runs every part with `run`, telling `step` before each how many are done, of how many, and which
    /// is next. A part that fails is told in the report; the others go on.
    ///
    /// # Errors
    /// If a folder can't be made or removed.
    pub async fn measure(
        self,
        run: impl AsyncFn(&Part) -> Result<Vec<Point>>,
        step: impl Fn(usize, usize, &Part),
    ) -> Result<Report> {
        let parts = self.parts();
        let machine = Machine::look(&self.folder);
        let mut measured = Vec::new();
        let mut failed = Vec::new();
        for (done, part) in parts.iter().enumerate() {
            step(done, parts.len(), part);
            std::fs::create_dir(&part.folder).map_err(|error| of_folder(part, error))?;
            let points = run(part).await;
            std::fs::remove_dir_all(&part.folder).map_err(|error| of_folder(part, error))?;
            match points {
                Ok(points) => measured.extend(points.into_iter().map(|point| Measured {
                    workload: part.workload,
                    contestant: part.contestant.clone(),
                    point,
                })),
                Err(error) => failed.push(format!(
                    "{}, {}: {error}",
                    part.contestant,
                    part.workload.name()
                )),
            }
        }
        failed.dedup();
        Ok(Report::new(machine, &self, &measured, failed))
    }
}

fn of_folder(part: &Part, error: std::io::Error) -> Error {
    Error::internal(part.folder.display().to_string()).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_contestant_and_is_begun_by_another_one() {
        let mut plan = Plan::full("nowhere".into());
        plan.rounds = 3;
        plan.workloads = vec![Workload::Enqueue];
        plan.contestants.truncate(2);
        let order: Vec<_> = plan
            .parts()
            .iter()
            .filter(|part| part.piece == 1)
            .map(|part| (part.round, part.contestant.clone()))
            .collect();
        let (one, two) = (plan.contestants[0].name, plan.contestants[1].name);
        let want = [(0, one), (0, two), (1, two), (1, one), (2, one), (2, two)];
        assert_eq!(order, want.map(|(round, name)| (round, name.to_owned())));
    }

    #[test]
    fn only_those_take_part_that_can_do_it_and_a_store_that_fills_slowly_is_filled_once() {
        let plan = Plan::full("nowhere".into());
        let parts = plan.parts();
        let of = |workload, name: &str| {
            let is = |part: &&Part| part.workload == workload && part.contestant == name;
            parts.iter().filter(is).count()
        };
        assert_eq!(of(Workload::Open, "memory"), 0);
        assert_eq!(of(Workload::Oldest, "memory"), 1);
        assert_eq!(of(Workload::Oldest, "raw"), 0);
        assert_eq!(of(Workload::Device, "raw"), 5);
        assert_eq!(of(Workload::Drain, "raw-never"), 0);
    }
}
