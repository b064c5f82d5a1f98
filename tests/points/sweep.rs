//! Killed at every point that a backend has.

use std::{collections::BTreeMap, env};

use batchyard::{fault, testing::proof};

use crate::{
    chain::{Chain, kill_at},
    life::Length,
};

/// The points that children of one backend pass, each with the shortest life that passes it, and how often it does; in
/// the order in which they are passed first.
pub(crate) struct Passed(Vec<(String, Length, usize)>);

impl Passed {
    pub(crate) fn find(backend: &'static str, server: Option<&str>) -> Self {
        let mut all: Vec<(String, Length, usize)> = Vec::new();
        for length in [Length::Short, Length::Long] {
            let mut chain = Chain::new(backend, server, length);
            chain.finish();
            chain.check("no point");
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for point in &chain.passed {
                *counts.entry(point).or_default() += 1;
            }
            for point in &chain.passed {
                if all.iter().all(|(known, ..)| known != point) {
                    all.push((point.clone(), length, counts[&**point]));
                }
            }
        }
        let listed = fault::points().map(|(point, _)| point);
        let own = listed.filter(|point| {
            let part = point.split('.').next().unwrap();
            [backend, "dispatcher", "handler"].contains(&part)
        });
        all.retain(|(point, ..)| !ELSEWHERE.contains(&&**point));
        let own = own.filter(|point| !ELSEWHERE.contains(point));
        let missed = own.filter(|point| all.iter().all(|(known, ..)| known != point));
        let missed: Vec<_> = missed.collect();
        assert!(missed.is_empty(), "no life passes {missed:?}");
        Self(all)
    }

    /// Many kills in each life: the first child is killed at the first point, the next one at the next, and so on, until
    /// one comes to its end. How many kills there were.
    pub(crate) fn kill_in_chains(&self, backend: &'static str, server: Option<&str>) -> usize {
        let mut kills = 0;
        for length in [Length::Short, Length::Long] {
            let points = self.0.iter().filter(|(_, of, _)| *of == length);
            let mut points = points.map(|(point, ..)| &**point).peekable();
            let mut in_vain = 0;
            while points.peek().is_some() {
                let mut chain = Chain::new(backend, server, length);
                let mut killed_at = Vec::new();
                while let Some(point) = points.peek()
                    && chain.run(&kill_at(point, 1))
                {
                    killed_at.extend(points.next());
                }
                chain.finish();
                chain.check(&format!("{killed_at:?}"));
                // How threads take turns may lead a life past a point.
                in_vain = if killed_at.is_empty() { in_vain + 1 } else { 0 };
                assert!(in_vain < 3, "no new life passes {:?}", points.peek());
                kills += killed_at.len();
            }
        }
        kills
    }

    /// One kill in each life: at the first, the second, the middle and the last passage of each point, fewer in long
    /// lives.
    pub(crate) fn kill_one_by_one(&self, backend: &'static str, server: Option<&str>) -> usize {
        let mut kills = 0;
        for (point, length, passages) in &self.0 {
            let mut at = match length {
                Length::Long => vec![1, passages / 2],
                _ => vec![1, 2, passages / 2, *passages],
            };
            at.retain(|passage| (1..=*passages).contains(passage));
            at.sort_unstable();
            at.dedup();
            for passage in at {
                let mut chain = Chain::new(backend, server, *length);
                // How threads take turns may make it fewer passages than in the first life.
                kills += usize::from(chain.run(&kill_at(point, passage)));
                chain.finish();
                chain.check(&format!("{point}, passage {passage}"));
            }
        }
        kills
    }
}

/// Killed at one point, then at another while the next child opens what that left.
pub(crate) fn kill_twice(
    backend: &'static str,
    length: Length,
    first: &[&str],
    second: &[&str],
) -> usize {
    let mut kills = 0;
    for first in first {
        for second in second {
            let mut chain = Chain::new(backend, None, length);
            assert!(chain.run(&kill_at(first, 1)), "no life passes {first}");
            kills += 1 + usize::from(chain.run(&kill_at(second, 1)));
            chain.finish();
            chain.check(&format!("{first}, then {second}"));
        }
    }
    kills
}

/// Kills a child from outside after so many things that it told, at random, several times in each life.
pub(crate) fn kill_at_random(backend: &'static str, server: Option<&str>, lives: usize) -> usize {
    let mut random = random();
    let mut kills = 0;
    for life in 0..lives {
        let length = if random.bool() {
            Length::Short
        } else {
            Length::Long
        };
        let mut chain = Chain::new(backend, server, length);
        for _ in 0..random.usize(1..8) {
            let mut child = chain.start("");
            let most = random.usize(1..60);
            let is_alive = (0..most).all(|_| child.hear());
            if is_alive {
                child.kill();
                kills += 1;
            }
            child.end();
        }
        chain.finish();
        chain.check(&format!("random moments of life {life}"));
    }
    kills
}

/// A generator whose seed is printed, and taken from `BATCHYARD_SEED` to do the same again.
pub(crate) fn random() -> fastrand::Rng {
    let seed = env::var("BATCHYARD_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("BATCHYARD_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Whether there is time for all of it.
pub(crate) fn is_long() -> bool {
    env::var_os("BATCHYARD_LONG").is_some()
}

/// How many lives are killed at random moments: so many, or as many as `BATCHYARD_CYCLES` says.
pub(crate) fn lives(quick: usize, long: usize) -> usize {
    let wanted = env::var("BATCHYARD_CYCLES").ok();
    let usual = if is_long() { long } else { quick };
    wanted.map_or(usual, |wanted| wanted.parse().unwrap())
}

pub(crate) fn show(backend: &str, kills: usize, caught: &[&str]) {
    proof("G1 G2 G3 G4 G5", backend, format!("{kills} kills"), caught);
}

/// Points that only come after a torn write or a pause, in a large file, or in the program: killed at in tests of their own.
const ELSEWHERE: [&str; 9] = [
    "journal.set_aside",
    "journal.cut",
    "journal.idle",
    "redis.taken_in",
    "sled.save",
    "sled.trim",
    "sled.trimmed",
    "sled.moved",
    "sled.write_anew",
];
