//! What people write: names, times, ids, policies, templates, configuration files, and the FORMAT files of stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Debug, Display},
    num::{NonZeroU32, NonZeroU64},
    path::Path,
    str::FromStr,
    time::Duration,
};

use crate::{
    batch::BatchId,
    clock::Timestamp,
    configuration::{File, Group, Of, Settings},
    format::template::{RequestsType, Template},
    policy::{Decision, Policy, decide},
    queue::{QueueOptions, journal},
    request::{Bookmark, NewRequest, Position, QueueName, RequestId},
    retry::{Breaker, backoff},
    stats::Stats,
};

/// What it is, and its text or numbers.
pub fn configuration(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match (kind % 4, str::from_utf8(rest)) {
        (_, Ok(text)) if *kind == b'T' => files(text),
        (0, _) => policy(rest),
        (1, Ok(text)) => names(text),
        (2, Ok(text)) => templates(text),
        (3, Ok(text)) => formats(text),
        _ => {}
    }
}

/// Whatever the numbers are: a decision is made, and it holds until the time that it names.
fn policy(bytes: &[u8]) {
    let mut numbers = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes));
    let mut next = || numbers.next().unwrap_or(0);
    let small = |number: u64| NonZeroU32::new((number >> 32) as u32).unwrap_or(NonZeroU32::MIN);
    let policy = Policy {
        queue_threshold: small(next()),
        time_threshold: duration(next()),
        time_interval: duration(next()),
        max_batch_requests: Some(next()).filter(|n| *n > 0).map(small),
        max_batch_bytes: NonZeroU64::new(next()).unwrap_or(NonZeroU64::MIN),
        max_in_flight: small(next()),
        max_attempts: small(next()),
        initial_backoff: duration(next()),
        max_backoff: duration(next()),
        lease_duration: duration(next()),
        heartbeat_interval: duration(next()),
        handler_timeout: None,
        shutdown_timeout: duration(next()),
    };
    // What does not fit together is refused, and does no harm even so.
    let is_valid = policy.validate().is_ok();
    let time = |nanos: u64| Some(Timestamp::from_nanos(nanos)).filter(|at| *at > Timestamp::EPOCH);
    let now = Timestamp::from_nanos(next());
    let stats = Stats {
        ready: next(),
        ready_bytes: next(),
        oldest_ready_at: time(next()).map(|at| at.min(now)),
        next_due: time(next()).map(|at| at.max(now)),
        next_offer: time(next()).map(|at| at.max(now)),
        offered: next() >> 63,
        ..Stats::default()
    };
    let flush = time(next());
    let _ = stats.adds_up();
    match decide(&policy, &stats, flush, now) {
        Decision::Dispatch(trigger) => assert!(trigger.is_some() || stats.offered > 0),
        Decision::Sleep { until } => {
            let mut then = stats;
            if let Some(until) = until
                && then
                    .oldest_ready_at
                    .is_some_and(|at| at.after(policy.time_threshold) == until)
                && until < Timestamp::MAX
            {
                then.offered = 0;
                let then = decide(&policy, &then, flush, until);
                assert!(matches!(then, Decision::Dispatch(Some(_))), "{then:?}");
            }
        }
    }
    let (attempt, wait) = (
        small(next()).get(),
        Some(duration(next())).filter(|wait| !wait.is_zero()),
    );
    let chance = f64::from(small(next()).get()) / f64::from(u32::MAX);
    let pause = backoff(&policy, attempt, chance, wait);
    assert!(pause >= wait.unwrap_or_default());
    assert!(!is_valid || pause <= policy.max_backoff.max(wait.unwrap_or_default()));
    let mut breaker = Breaker::default();
    for _ in 0..3 {
        assert!(breaker.outage(&policy, now, chance, wait) >= now);
        breaker.claimed();
    }
    let options = QueueOptions::default()
        .max_requests(next())
        .max_bytes(next());
    let _ = options.check_room((next(), next()), (next(), next()));
}

/// Short ones and long ones.
fn duration(number: u64) -> Duration {
    match number % 4 {
        0 => Duration::from_nanos(number / 4),
        1 => Duration::from_secs(number / 4),
        2 => Duration::from_millis(number / 4 % 100_000),
        _ => Duration::MAX,
    }
}

/// What is accepted is written and read as the same.
fn names(text: &str) {
    same_again::<QueueName>(text);
    same_again::<RequestId>(text);
    same_again::<Position>(text);
    same_again::<BatchId>(text);
    same_again::<Timestamp>(text);
    let _ = text.parse::<RequestsType>();
    let bookmark = Bookmark {
        source: text.to_owned(),
        value: text.to_owned().into(),
    };
    let _ = bookmark.validate();
    let request = NewRequest::new("")
        .idempotency_key(text)
        .attribute(text, text);
    let _ = request.validate();
    if let Ok(name) = text.parse::<QueueName>() {
        let json = serde_json::to_string(&name).expect("a name is JSON");
        let again: QueueName = serde_json::from_str(&json).expect("it was written");
        assert_eq!(again, name);
        assert!(name.as_str().len() <= crate::MAX_QUEUE_NAME_BYTES);
    }
}

fn same_again<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again: T = value
            .to_string()
            .parse()
            .expect("what was written can be read");
        assert_eq!(again, value);
    }
}

fn templates(text: &str) {
    for requests_type in [RequestsType::Partial, RequestsType::Full] {
        if let Ok(template) = Template::new(requests_type, text) {
            let again = Template::decode(&template.encode());
            assert_eq!(again.expect("it was written"), template);
        }
    }
    // As the context of a batch that something else has formed.
    if let Ok(template) = Template::decode(text.as_bytes()) {
        let _ = template.apply("{\"n\":1}".into());
        let again = Template::decode(&template.encode());
        assert_eq!(again.expect("it was written"), template);
    }
}

/// Whatever a file says: each mistake has its line, what is left says the same when it is written and read again, and
/// each queue has the policy that its sections make.
fn files(text: &str) {
    let path = Path::new("batchyard.toml");
    let (file, problems) = File::parse(path, text);
    let lines = text.matches('\n').count() + 1;
    for problem in &problems {
        assert!(!problem.text.is_empty(), "{problem:?}");
        assert!(
            problem.line.is_some_and(|line| (1..=lines).contains(&line)),
            "{problem:?}"
        );
    }
    assert!(problems.is_sorted_by_key(|problem| problem.line));
    let written = file.written();
    let (again, wrong) = File::parse(path, &written);
    assert!(wrong.is_empty(), "{written}: {wrong:?}");
    assert_eq!(again.written(), written);
    let (settings, _) = Settings::resolve(&Group::ALL, &BTreeMap::new(), |_| None, Some(file));
    let _ = settings.queue_options();
    let policies = settings.policies();
    assert_eq!(policies.validate().is_ok(), settings.misfits().is_empty());
    for section in settings.sections() {
        if let Of::Queue(queue) = &section.of {
            assert_eq!(policies.of(queue), &settings.policy_of(&section.of));
        }
    }
}

fn formats(text: &str) {
    crate::queue::sled::fuzzing::format(text);
    journal::fuzzing::format(text, &BTreeSet::new());
    let salt = 0x0123_4567_89ab_cdef;
    journal::fuzzing::format(text, &BTreeSet::from([salt]));
    journal::fuzzing::format(text, &BTreeSet::from([salt, 7]));
}
