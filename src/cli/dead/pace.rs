//! How fast dead letters are changed, and until when.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::cli::{
    args::count,
    exit::{Exit, Failure},
    output::Steps,
    stop::Stop,
};

/// So many in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    requests: NonZeroU32,
    per: Duration,
}

impl Rate {
    /// How many are changed in one step, and how long that is enough for: about ten steps a second, or one for each.
    fn step(self) -> (usize, Duration) {
        let (requests, per) = (u128::from(self.requests.get()), self.per.as_nanos());
        let step = (requests * TENTH.as_nanos()).div_ceil(per);
        let pause = u64::try_from(per * step / requests).unwrap_or(u64::MAX);
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        (step, Duration::from_nanos(pause.max(1)))
    }
}

/// Reads a rate: `100/s`, `10/min`, `500/h`.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let example = || "write a number and a unit of time, such as 100/s, 10/min or 500/h".to_owned();
    let (number, unit) = text.split_once('/').ok_or_else(example)?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return Err(example()),
    };
    Ok(Rate {
        requests: count(number.trim())?,
        per: Duration::from_secs(seconds),
    })
}

/// Steps from one to the next, until it is asked to stop.
pub(super) struct Pace {
    ticks: Option<Interval>,
    /// How many are changed in one step.
    pub(super) step: usize,
    stop: Stop,
    /// For what takes its time.
    steps: Option<Steps>,
}

impl Pace {
    /// At this rate, or as fast as it goes.
    pub(super) fn new(rate: Option<Rate>) -> Result<Self, Failure> {
        let rate = rate.map(Rate::step);
        let ticks = rate.map(|(_, pause)| {
            let mut ticks = interval(pause);
            // What could not be done in time is not made up for: that would be faster than was asked for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Ok(Self {
            steps: ticks.is_some().then(Steps::of_redriving),
            ticks,
            step: rate.map_or(usize::MAX, |(step, _)| step),
            stop: Stop::new()?,
        })
    }

    /// Waits until the next step is due; the exit code if it is asked to stop first.
    pub(super) async fn next(&mut self) -> Option<Exit> {
        let due = async {
            if let Some(ticks) = &mut self.ticks {
                ticks.tick().await;
            }
        };
        tokio::select! {
            biased;
            exit = self.stop.asked() => Some(exit),
            () = due => None,
        }
    }

    /// Shows how far it is.
    pub(super) fn show(&self, changed: u64, of: u64) {
        if let Some(steps) = &self.steps {
            steps.set(
                changed,
                of,
                "",
                format!("{changed} of {of} redriven so far"),
            );
        }
    }
}

const TENTH: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_and_a_unit_of_time() {
        let of = |requests, seconds| Rate {
            requests: NonZeroU32::new(requests).unwrap(),
            per: Duration::from_secs(seconds),
        };
        for (text, is) in [
            ("100/s", of(100, 1)),
            ("10 / min", of(10, 60)),
            ("5/m", of(5, 60)),
            ("1_000/h", of(1000, 3600)),
        ] {
            assert_eq!(rate(text), Ok(is), "{text}");
        }
        for text in ["", "100", "/s", "0/s", "-1/s", "5/day", "1.5/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn steps_are_even_and_not_many() {
        for (text, step, millis) in [
            ("100/s", 10, 100),
            ("10/min", 1, 6_000),
            ("1/h", 1, 3_600_000),
            ("1000/s", 100, 100),
            ("15/s", 2, 133),
        ] {
            let (is, pause) = rate(text).unwrap().step();
            assert_eq!((is, pause.as_millis()), (step, millis), "{text}");
        }
        let (step, pause) = rate("4294967295/s").unwrap().step();
        assert!(step > 400_000_000 && !pause.is_zero());
    }
}
