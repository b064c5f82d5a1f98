//! Figures from samples: pure functions of their inputs.

use serde::{Deserialize, Serialize};

/// The middle of some values, and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The value in the middle; of an even number, the mean of the two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values, in any order; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[half]
        } else {
            f64::midpoint(values[half - 1], values[half])
        };
        Some(Self { median, min, max })
    }
}

/// How long calls took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the calls took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1,000 took no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// Of calls that took so many nanoseconds each, in any order; `None` of none.
    pub fn of(mut nanos: Vec<u64>) -> Option<Self> {
        nanos.sort_unstable();
        let micros = |per_mille| Some(as_f64(percentile(&nanos, per_mille)?) / 1e3);
        Some(Self {
            p50: micros(500)?,
            p99: micros(990)?,
            p999: micros(999)?,
            max: micros(1000)?,
        })
    }

    /// Over rounds: the median of each percentile, and the longest of all calls.
    pub fn over(rounds: &[Self]) -> Option<Self> {
        let median = |of: fn(&Self) -> f64| Some(Spread::of(rounds.iter().map(of))?.median);
        Some(Self {
            p50: median(|round| round.p50)?,
            p99: median(|round| round.p99)?,
            p999: median(|round| round.p999)?,
            max: Spread::of(rounds.iter().map(|round| round.max))?.max,
        })
    }
}

/// The smallest value that so many of 1,000 values do not exceed (nearest rank).
pub fn percentile(sorted: &[u64], per_mille: usize) -> Option<u64> {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Whether more of a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// As of a rate.
    More,
    /// As of a time or a size.
    Less,
}

/// How many times as good `own` is as the `yardstick`, round by round; above 1 is better than it.
///
/// Rounds that one of them lacks are left out.
pub fn ratios(better: Better, own: &[(u32, f64)], yardstick: &[(u32, f64)]) -> Option<Spread> {
    let of_round = |&(round, own): &(u32, f64)| {
        let same = yardstick.iter().find(|(other, _)| *other == round);
        let (_, yardstick) = same?;
        let ratio = match better {
            Better::More => own / yardstick,
            Better::Less => yardstick / own,
        };
        ratio.is_finite().then_some(ratio)
    };
    Spread::of(own.iter().filter_map(of_round))
}

/// A count as a number to calculate with.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts here stay far below 2^52, and figures are rounded anyway"
)]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64, min: f64, max: f64) -> Spread {
        Spread { median, min, max }
    }

    #[test]
    fn a_median_is_in_the_middle_whatever_the_order() {
        for (values, want) in [
            (&[][..], None),
            (&[3.0], Some(spread(3.0, 3.0, 3.0))),
            (&[9.0, 1.0], Some(spread(5.0, 1.0, 9.0))),
            (&[5.0, 100.0, 1.0], Some(spread(5.0, 1.0, 100.0))),
            (&[4.0, 1.0, 3.0, 2.0], Some(spread(2.5, 1.0, 4.0))),
        ] {
            assert_eq!(Spread::of(values.iter().copied()), want, "{values:?}");
        }
    }

    #[test]
    fn a_percentile_is_the_value_of_the_nearest_rank() {
        let thousand: Vec<u64> = (1..=1000).collect();
        let ten: Vec<u64> = (1..=10).collect();
        for (values, per_mille, want) in [
            (&thousand, 500, Some(500)),
            (&thousand, 990, Some(990)),
            (&thousand, 999, Some(999)),
            (&thousand, 1000, Some(1000)),
            (&ten, 500, Some(5)),
            (&ten, 990, Some(10)),
            (&ten, 0, Some(1)),
            (&vec![7], 999, Some(7)),
            (&vec![], 500, None),
        ] {
            assert_eq!(percentile(values, per_mille), want, "{per_mille}");
        }
    }

    #[test]
    fn latencies_are_in_microseconds_and_their_longest_call_is_that_of_all_rounds() {
        assert_eq!(Latency::of(Vec::new()), None);
        let round = |nanos: &[u64]| Latency::of(nanos.to_vec()).unwrap();
        let one = round(&[3_000, 1_000, 2_000]);
        assert_eq!((one.p50, one.p99, one.max), (2.0, 3.0, 3.0));
        let over = Latency::over(&[one, round(&[90_000]), round(&[4_000])]).unwrap();
        assert_eq!((over.p50, over.p999, over.max), (4.0, 4.0, 90.0));
    }

    #[test]
    fn a_ratio_compares_a_round_with_the_same_round_of_the_yardstick() {
        let own = [(0, 10.0), (1, 30.0), (2, 8.0)];
        let yardstick = [(1, 10.0), (0, 10.0), (2, 4.0), (3, 1.0)];
        for (better, own, yardstick, want) in [
            (
                Better::More,
                &own[..],
                &yardstick[..],
                Some(spread(2.0, 1.0, 3.0)),
            ),
            (
                Better::Less,
                &own,
                &yardstick,
                Some(spread(0.5, 1.0 / 3.0, 1.0)),
            ),
            (
                Better::More,
                &own[..1],
                &yardstick,
                Some(spread(1.0, 1.0, 1.0)),
            ),
            (Better::More, &own, &yardstick[3..], None),
            (Better::More, &own, &[(0, 0.0)], None),
            (Better::More, &[], &yardstick, None),
        ] {
            assert_eq!(ratios(better, own, yardstick), want, "{own:?}");
        }
    }
}
