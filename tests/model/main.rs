//! The model check: random lives on a model of the contract and on each backend, side by side.
//!
//! ```text
//!   proptest ─▶ Life ─┬─▶ Model (the contract as a program) ─▶ every answer, then all there is to see ─┐
//!                     └─▶ memory · sled · journal · Redis ───▶ every answer, then all there is to see ─┴─▶ equal?
//! ```
//! [`script`] says what a life is made of, [`reference`] what must be answered, [`check`] what is
//! compared, [`backends`] what a restart and a crash are. [`mutants`] plants faults and sees them caught.
//!
//! A life that fails is made shorter until nothing can be left out; it is printed with its seed and kept in
//! `tests/model/regressions.txt`, to be tried first from then on. `BATCHYARD_SEED=7 cargo test --test model`
//! repeats the lives of a seed, `BATCHYARD_LONG=1` tries ten times as many, `BATCHYARD_CYCLES=10000` so many.

mod backends;
mod check;
mod mutants;
mod reference;
mod script;
#[cfg(feature = "redis")]
#[path = "../redis/server.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "other tests need more of it")]
mod server;

use std::{
    cell::{Cell, RefCell},
    env,
    ops::Range,
};

use batchyard::testing::proof;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestError, TestRunner};
use tokio::runtime::Builder;

use self::{
    backends::{InMemory, Place},
    mutants::{Fault, Faulted},
};

#[test]
fn memory_is_the_model() {
    holds("memory", MANY, &mut InMemory);
}

#[cfg(feature = "sled")]
#[test]
fn sled_is_the_model_across_restarts_and_kills() {
    use backends::embedded::{InFolder, Sled};
    holds("sled", SOME, &mut InFolder::new(Sled));
}

#[cfg(feature = "journal")]
#[test]
fn the_journal_is_the_model_across_restarts_and_kills() {
    use backends::embedded::{InFolder, Journal};
    holds("journal", SOME, &mut InFolder::new(Journal));
}

#[cfg(feature = "redis")]
#[test]
fn redis_is_the_model_across_new_clients_and_kills_of_the_server() {
    if let Some(mut place) = backends::redis::OnAServer::start() {
        holds("redis", FEW, &mut place);
    }
}

#[test]
fn every_planted_fault_is_caught() {
    let lives = |cases, fault| {
        let (seed, is_kept) = (1, false);
        let lives = Lives {
            seed,
            cases,
            is_kept,
        };
        lives.on(&mut Faulted::new(fault))
    };
    assert_eq!(lives(5, Fault::None).failure, None);
    for fault in Fault::ALL {
        let Lived { count, failure, .. } = lives(MANY, fault);
        let failure = failure.unwrap_or_else(|| panic!("{fault:?} is not caught"));
        let verb = failure.lines().nth(1).unwrap_or_default();
        println!("{fault:?}: caught in life {count}, {verb}");
    }
}

/// Fails if a life in this place is not that of the model.
fn holds(backend: &str, cases: u32, place: &mut dyn Place) {
    let number = |name| Some(env::var(name).ok()?.parse().expect("a number"));
    // The same lives each time, unless others are asked for.
    let seed = number("BATCHYARD_SEED").unwrap_or(1);
    let long = env::var_os("BATCHYARD_LONG").map_or(1, |_| LONG);
    let cycles = number("BATCHYARD_CYCLES").and_then(|cycles| cycles.try_into().ok());
    println!("BATCHYARD_SEED={seed}");
    let lives = Lives {
        seed,
        cases: cycles.unwrap_or(cases * long),
        is_kept: true,
    };
    let Lived {
        count,
        steps,
        failure,
    } = lives.on(place);
    if let Some(failure) = failure {
        panic!("{backend}, BATCHYARD_SEED={seed}: {failure}");
    }
    let cycles = format!("{count} lives, {steps} steps");
    let caught = format!("{} broken rules of `mutants`", Fault::ALL.len());
    proof(GUARANTEES, backend, cycles, &[&caught]);
}

/// Which lives to try.
struct Lives {
    seed: u64,
    cases: u32,
    /// Whether a failure is made shorter, and kept.
    is_kept: bool,
}

/// How that went.
struct Lived {
    count: u32,
    steps: usize,
    failure: Option<String>,
}

impl Lives {
    fn on(self, place: &mut dyn Place) -> Lived {
        let file = || FileFailurePersistence::Direct(REGRESSIONS);
        let config = Config {
            cases: self.cases,
            rng_seed: RngSeed::Fixed(self.seed),
            failure_persistence: self.is_kept.then(|| Box::new(file()) as Box<_>),
            max_shrink_iters: if self.is_kept { SHRINKS } else { 0 },
            ..Config::default()
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            // Who waits for a queue in memory that is idle waits for ever: that is told at once.
            .start_paused(!self.is_kept)
            .build()
            .expect("a runtime");
        let place = RefCell::new(place);
        let (count, steps) = (Cell::new(0), Cell::new(0));
        let lived = TestRunner::new(config).run(&script::lives(STEPS), |life| {
            count.set(count.get() + 1);
            let taken = runtime.block_on(check::live(&mut **place.borrow_mut(), &life))?;
            steps.set(steps.get() + taken);
            Ok(())
        });
        Lived {
            count: count.get(),
            steps: steps.get(),
            failure: lived.err().map(|error| match error {
                TestError::Fail(reason, life) => format!("{reason}\n{life}"),
                TestError::Abort(reason) => reason.to_string(),
            }),
        }
    }
}

const GUARANTEES: &str = "G2 G3 G4 G5 G6 G7 G12";
/// Where lives that failed are kept.
const REGRESSIONS: &str = "tests/model/regressions.txt";
/// How long lives are: short ones find most, and are soon made shorter.
const STEPS: Range<usize> = 1..80;
/// Lives in memory, on a disk, and on a server.
const MANY: u32 = 25;
const SOME: u32 = 8;
#[cfg(feature = "redis")]
const FEW: u32 = 5;
/// How many times more `BATCHYARD_LONG` tries.
const LONG: u32 = 10;
const SHRINKS: u32 = 3_000;
