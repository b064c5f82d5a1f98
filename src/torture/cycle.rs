//! The parent: one child after the other on each store, how each dies, and the verdict.

mod child;
mod ground;
mod room;

use std::{fs, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

pub use self::ground::available as power_loss_available;
use self::{child::Running, ground::Ground};
use super::{
    Backend, Life,
    backend::WINDOW,
    event::{Answer, Event, Go},
    figures::{Sample, figures},
    ledger::Ledger,
    report::{Report, Store},
};
use crate::{
    clock,
    error::{Error, Result},
};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// An empty folder, for this alone.
    pub folder: PathBuf,
    /// How this program is started again.
    pub program: PathBuf,
    /// The backends, in turns.
    pub backends: Vec<Backend>,
    /// Whether each has a second store, on a disk that loses its power.
    pub power: bool,
    /// How long it goes on.
    pub duration: Duration,
    /// All choices follow from it.
    pub seed: u64,
}

/// Goes on until the time is over, `stop` is, or something is not as promised; `tell` hears how far it is.
///
/// # Errors
/// If no child can be started or heard, or if the disk has no space ([`QueueFull`](crate::ErrorKind::QueueFull)): then
/// nothing is proved.
pub async fn run(
    plan: &Plan,
    stop: impl Future<Output = ()>,
    tell: impl FnMut(&Report),
) -> Result<Report> {
    let begun = Instant::now();
    let mut report = Report {
        held: true,
        seed: plan.seed,
        ..Report::default()
    };
    room::check(plan)?;
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut sites = Vec::new();
    for backend in &plan.backends {
        sites.push(Site::new(plan, *backend, false)?);
        if plan.power {
            sites.push(Site::new(plan, *backend, true)?);
        }
    }
    let lives = live_on(&mut sites, plan, &mut random, &mut report, tell);
    tokio::select! {
        done = lives => done?,
        () = stop => {}
    }
    report.seconds = begun.elapsed().as_secs_f64();
    report.stores = sites.iter().map(Site::figures).collect();
    Ok(report)
}

/// One life after the other, on each store in turns; at the end, all that is left in them is settled.
async fn live_on(
    sites: &mut [Site],
    plan: &Plan,
    random: &mut fastrand::Rng,
    report: &mut Report,
    mut tell: impl FnMut(&Report),
) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < plan.duration {
        for site in &mut *sites {
            let death = site.death(random);
            site.live(death, random.u64(..), report).await?;
            report.seconds = begun.elapsed().as_secs_f64();
            tell(report);
            if !report.held {
                return Ok(());
            }
        }
    }
    for site in sites {
        site.live(Death::Drain, random.u64(..), report).await?;
    }
    Ok(())
}

/// How a child ends.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// Killed so long after it was started: most likely while it opens the store or tells what is there.
    InRecovery(Duration),
    /// Killed so long after it began to work.
    AtWork(Duration),
    /// The power of its disk is cut at this change from its start on: most likely while it opens the store.
    CutInRecovery(u64),
    /// The power of its disk is cut so long after it began to work.
    CutAtWork(Duration),
    /// Asked to close the store.
    Closed(Duration),
    /// Ends by itself once all is settled.
    Drain,
}

impl Death {
    fn cuts_power(self) -> bool {
        matches!(self, Self::CutInRecovery(_) | Self::CutAtWork(_))
    }
}

/// A store, and what it owes.
struct Site {
    program: PathBuf,
    /// Where its children say what they don't tell.
    said: PathBuf,
    ground: Ground,
    store: PathBuf,
    backend: Backend,
    ledger: Ledger,
    lives: u32,
    /// How long it took of late until a child began to work.
    opening: Duration,
    /// How many changes of the disk that took.
    changes: u64,
    samples: Vec<Sample>,
}

impl Site {
    fn new(plan: &Plan, backend: Backend, loses_power: bool) -> Result<Self> {
        let how = if loses_power { "power" } else { "killed" };
        let folder = plan.folder.join(format!("{backend}-{how}"));
        fs::create_dir(&folder).map_err(|error| {
            Error::internal(format!("{} can't be made", folder.display())).with_source(error)
        })?;
        let ground = if loses_power {
            Ground::forgetful(&folder)?
        } else {
            Ground::Lasting
        };
        Ok(Self {
            program: plan.program.clone(),
            said: plan.folder.join(format!("{backend}-{how}.said")),
            ground,
            store: folder.join("store"),
            backend,
            ledger: Ledger::default(),
            lives: 0,
            opening: Duration::from_millis(50),
            changes: 20,
            samples: Vec::new(),
        })
    }

    fn death(&self, random: &mut fastrand::Rng) -> Death {
        // Often soon, sometimes late.
        let life = LONGEST.mul_f64(random.f64().powi(2));
        let early = self.opening.mul_f64(random.f64() * 1.1);
        // However short the time is, each store loses its program or its power once.
        let kind = random.u8(..10);
        match if self.lives == 0 { AT_WORK } else { kind } {
            0 => Death::Closed(life),
            1..4 if self.ground.forgets() => Death::CutInRecovery(random.u64(..=self.changes + 2)),
            4..9 if self.ground.forgets() => Death::CutAtWork(life),
            1..4 => Death::InRecovery(early),
            _ => Death::AtWork(life),
        }
    }

    /// One child, from its start to its end.
    async fn live(&mut self, death: Death, seed: u64, report: &mut Report) -> Result<()> {
        let life = Life {
            store: self.store.clone(),
            backend: self.backend,
            seed,
            number: self.lives,
        };
        self.lives += 1;
        report.cycles += 1;
        let mut child = Running::start(&self.program, &life, &self.said)?;
        let mut sample = Sample::default();
        let calls = (self.ledger.calls(), self.ledger.pushed());
        self.ledger.expect_failures(death.cuts_power());
        let end = self.hear(&mut child, death, &mut sample, report).await?;
        let (status, said) = child.ended().await?;
        if death.cuts_power() {
            report.power_cuts += 1;
            self.ground.restore(seed);
        }
        match end {
            End::Killed => report.kills += 1,
            End::Closed => report.closed += 1,
            End::Hung => self.ledger.wrong(format!(
                "a child told nothing for {PATIENCE:?}, and was killed"
            )),
            End::Broken => {}
            // It found no disk.
            End::Gone if death.cuts_power() => {}
            End::Gone if let Some(full) = room::is_full(&self.store, &said) => return Err(full),
            End::Gone => self.ledger.wrong(format!(
                "a child ended by itself ({status}), saying {said:?}"
            )),
        }
        sample.measure(&self.store);
        self.samples.push(sample);
        report.calls += self.ledger.calls() - calls.0;
        report.requests += self.ledger.pushed() - calls.1;
        report.add(self.ledger.damage());
        if !self.ledger.damage().is_empty() {
            report.kept = Some(self.ground.keep(&self.store)?);
        }
        Ok(())
    }

    /// Hears a child until it is gone.
    async fn hear(
        &mut self,
        child: &mut Running,
        death: Death,
        sample: &mut Sample,
        report: &mut Report,
    ) -> Result<End> {
        let begun = Instant::now();
        let never = begun + PATIENCE * 1000;
        let mut dies = match death {
            Death::InRecovery(after) => begun + after,
            Death::CutInRecovery(changes) => {
                self.ground.cut_after(changes);
                // If it can neither go on nor end without a disk.
                begun + self.opening * 4
            }
            _ => never,
        };
        let changes = self.ground.changes();
        let mut end = End::Gone;
        let mut works = false;
        loop {
            let heard = tokio::select! {
                heard = timeout(PATIENCE, child.next()) => heard,
                () = sleep_until(dies) => {
                    dies = never;
                    if let Some(id) = child.id() {
                        sample.look(id);
                    }
                    if matches!(death, Death::Closed(_)) {
                        child.close();
                    } else {
                        if death.cuts_power() {
                            self.ground.cut();
                        }
                        child.kill();
                        end = End::Killed;
                        report.kills_in_recovery += u64::from(!works);
                    }
                    continue;
                }
            };
            let Ok(heard) = heard else {
                child.kill();
                return Ok(End::Hung);
            };
            let Some(event) = heard? else {
                return Ok(end);
            };
            match event {
                Event::Opened { micros, .. } => sample.open_micros = Some(micros),
                Event::Closed => end = End::Closed,
                // Its disk is gone, and there is nothing left for it to do.
                Event::Failed(_)
                | Event::Answer {
                    answer: Answer::Failed(_),
                    ..
                } if death.cuts_power() => dies = dies.min(Instant::now() + AFTERMATH),
                _ => {}
            }
            if let Event::Failed(error)
            | Event::Answer {
                answer: Answer::Failed(error),
                ..
            } = &event
                && !death.cuts_power()
                && let Some(full) = room::is_full(&self.store, error)
            {
                child.kill();
                return Err(full);
            }
            let is_survey = matches!(event, Event::Surveyed(_));
            self.ledger.hear(event);
            report.comparisons += u64::from(is_survey);
            if !self.ledger.damage().is_empty() {
                // Nothing more is to happen to the store.
                child.kill();
                return Ok(End::Broken);
            }
            if is_survey && !works {
                works = true;
                self.opening = begun.elapsed();
                self.changes = self.ground.changes() - changes;
                let drain = matches!(death, Death::Drain);
                let since = clock::now().before(WINDOW / 2);
                let repeat = self.ledger.repeatable(since, REPEATED);
                child.say(&Go { repeat, drain }).await;
                match death {
                    Death::AtWork(after) | Death::CutAtWork(after) | Death::Closed(after) => {
                        dies = Instant::now() + after;
                    }
                    Death::CutInRecovery(_) => dies = Instant::now() + LONGEST,
                    Death::InRecovery(_) | Death::Drain => {}
                }
            }
        }
    }

    fn figures(&self) -> Store {
        Store {
            name: format!("{}, {}", self.backend, self.ground),
            figures: figures(&self.samples),
        }
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    Closed,
    Hung,
    /// What it told was not as promised.
    Broken,
    /// By itself.
    Gone,
}

/// The kind of death that ends the work of a child.
const AT_WORK: u8 = 4;
/// The longest that a child works.
const LONGEST: Duration = Duration::from_secs(2);
/// How long a child goes on once its disk is gone.
const AFTERMATH: Duration = Duration::from_millis(20);
/// A child that tells nothing for so long will never tell anything.
const PATIENCE: Duration = Duration::from_secs(60);
const REPEATED: usize = 20;
