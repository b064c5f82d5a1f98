//! Which dead letters are meant.

use std::{num::NonZeroU32, time::Duration};

use batchyard::{DeadReason, Entry, Timestamp};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::cli::args::{count, duration};

/// What they have to be like: all of it.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Only those with this reason
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    reason: Option<DeadReason>,
    /// Only those that have been dead for so long, or longer
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    older: Option<Duration>,
    /// Only those that have been dead for less long than this
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    newer: Option<Duration>,
    /// Only those that have had so many attempts, or more
    #[arg(long, value_name = "N", value_parser = count)]
    attempts: Option<NonZeroU32>,
    /// Only those whose error has this text in it
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

impl FilterArgs {
    /// Whether a dead letter is like that.
    pub(super) fn fits(&self, entry: &Entry, now: Timestamp) -> bool {
        let age = now.since(entry.at);
        let error = entry.error.as_deref().unwrap_or_default();
        self.reason.is_none_or(|is| entry.reason == Some(is))
            && self.older.is_none_or(|least| age >= least)
            && self.newer.is_none_or(|most| age < most)
            && (self.attempts).is_none_or(|least| entry.attempts >= least.get())
            && (self.error.as_deref()).is_none_or(|text| error.contains(text))
    }
}

/// Parses reasons as they are printed.
fn reasons() -> impl TypedValueParser<Value = DeadReason> {
    let known = |text: String| REASONS.into_iter().find(|(name, _)| *name == text);
    PossibleValuesParser::new(REASONS.map(|(name, _)| name)).try_map(move |text| {
        known(text)
            .map(|(_, reason)| reason)
            .ok_or("no such reason")
    })
}

const REASONS: [(&str, DeadReason); 5] = [
    ("rejected", DeadReason::Rejected),
    ("exhausted", DeadReason::Exhausted),
    ("too_large", DeadReason::TooLarge),
    ("undecodable", DeadReason::Undecodable),
    ("damaged", DeadReason::Damaged),
];

#[cfg(test)]
mod tests {
    use batchyard::{Attributes, RequestId, State};
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn each_filter_leaves_out_what_is_not_so_and_all_of_them_count() {
        let died = Timestamp::from_millis(1_000_000);
        let entry = Entry {
            id: RequestId::from_u64(7),
            state: State::Dead,
            attempts: 3,
            pushed_at: Timestamp::EPOCH,
            at: died,
            attributes: Attributes::new(),
            bytes: 0,
            payload: None,
            batch: None,
            result: None,
            reason: Some(DeadReason::Exhausted),
            error: Some("no such address".into()),
        };
        let after = died.after(Duration::from_secs(60));
        let parse = |text: &str| {
            let words = text.split_whitespace();
            let matches = FilterArgs::augment_args(clap::Command::new("dead").no_binary_name(true))
                .try_get_matches_from(words);
            FilterArgs::from_arg_matches(&matches.unwrap()).unwrap()
        };
        for (filter, fits) in [
            ("", true),
            ("--reason exhausted", true),
            ("--reason rejected", false),
            ("--older 60s", true),
            ("--older 61s", false),
            ("--newer 61s", true),
            ("--newer 60s", false),
            ("--attempts 3", true),
            ("--attempts 4", false),
            ("--error address", true),
            ("--error Address", false),
            ("--error address --attempts 4", false),
        ] {
            assert_eq!(parse(filter).fits(&entry, after), fits, "{filter:?}");
        }
    }
}
