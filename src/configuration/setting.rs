//! The table of all settings. A new setting is one row here: its flag, its variable, its key in a file, what `config
//! show` prints and what the documentation lists come from it.

use super::value::{Kind, Value};
use crate::{policy::Policy, queue::QueueOptions, queue::WhenFull};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in a file.
    pub key: &'static str,
    /// Its long flag; none for what has no place on a command line.
    pub flag: Option<&'static str>,
    /// Which verbs have it.
    pub group: Group,
    /// What its values are.
    pub kind: Kind,
    /// What it is if nobody says anything.
    pub default: Default,
    /// What it is about, in words.
    pub help: &'static str,
    /// A value as a file has it.
    pub example: &'static str,
    /// Whether a queue or a prefix may have its own.
    pub per_queue: bool,
    /// What it changes.
    pub sets: Sets,
}

/// Settings that verbs have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Which store.
    Store,
    /// What a new store is made as.
    Backend,
    /// What a queue may hold.
    Bounds,
    /// How long results are kept.
    Retention,
    /// When batches leave.
    Batches,
    /// How many leave over all queues.
    Total,
    /// What works on them.
    Handler,
    /// What a program that serves for long tells.
    Service,
    /// How all of them talk.
    Talk,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Store,
        Self::Backend,
        Self::Bounds,
        Self::Retention,
        Self::Batches,
        Self::Total,
        Self::Handler,
        Self::Service,
        Self::Talk,
    ];
}

/// What a setting is if nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// This value, as it is written.
    Is(&'static str),
    /// No value, which means this.
    Means(&'static str),
    /// No value, and its help says what then.
    None,
}

/// What a setting changes.
#[derive(Clone, Copy, Debug)]
pub enum Sets {
    /// A field of a policy.
    Policy(fn(&mut Policy, &Value)),
    /// A field of the options of queues.
    Queues(fn(&mut QueueOptions, &Value)),
    /// Something else, that is asked for by its key.
    Itself,
}

impl Setting {
    /// Its variable in the environment.
    pub fn variable(&self) -> String {
        format!("BATCHYARD_{}", self.key.to_uppercase())
    }

    /// The value that it has if nobody says anything.
    pub fn default_value(&self) -> Option<Value> {
        match self.default {
            Default::Is(text) => self.kind.parse(text.as_ref()).ok(),
            Default::Means(_) | Default::None => None,
        }
    }

    /// The setting with this key.
    pub fn of(key: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }
}

/// Sets a field of a policy or of options to a value of this kind.
macro_rules! sets {
    ($what:ident, $kind:ident, |$target:ident, $value:ident| $set:expr) => {
        Sets::$what(|$target, value| {
            if let Value::$kind($value) = value {
                $set
            }
        })
    };
}

/// A row of a knob of [`Policy`], with the name of its field.
macro_rules! knob {
    ($key:literal, $flag:literal, $kind:ident, $default:expr, $example:literal, $help:literal, |$policy:ident, $value:ident| $set:expr) => {
        Setting {
            key: $key,
            flag: Some($flag),
            group: Group::Batches,
            kind: Kind::$kind,
            default: $default,
            help: $help,
            example: $example,
            per_queue: true,
            sets: sets!(Policy, $kind, |$policy, $value| $set),
        }
    };
}

/// All of them, in the order in which they are shown.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "store",
        flag: Some("store"),
        group: Group::Store,
        kind: Kind::Folder,
        default: Default::None,
        help: "The folder of the store [default: the server in `BATCHYARD_REDIS_URL`, with the feature redis]",
        example: "\"/var/lib/batchyard\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "redis_url",
        flag: None,
        group: Group::Store,
        kind: Kind::Secret,
        default: Default::None,
        help: "The URL of a Redis or Valkey server that is the store, in place of a folder; with a password only in the environment",
        example: "\"redis://127.0.0.1/\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "redis_url_file",
        flag: Some("redis-url-file"),
        group: Group::Store,
        kind: Kind::File,
        default: Default::None,
        help: "A file with the URL of the Redis server in it, such as a mounted secret",
        example: "\"/run/secrets/redis-url\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "backend",
        flag: Some("backend"),
        group: Group::Backend,
        kind: Kind::Choice(&["sled", "journal"]),
        default: Default::Is("sled"),
        help: "The backend of the store if it is made, its folder being new or empty: sled, an embedded database, or journal, a log of our \
own, at the disk's speed; one that is there says itself which it has",
        example: "\"journal\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "max_requests",
        flag: Some("max-requests"),
        group: Group::Bounds,
        kind: Kind::Count,
        default: Default::Means("no bound"),
        help: "The most requests of a queue that are delayed, ready or in flight; a push above it fails",
        example: "1_000_000",
        per_queue: false,
        sets: sets!(Queues, Count, |options, most| options.max_requests =
            most.get().into()),
    },
    Setting {
        key: "max_bytes",
        flag: Some("max-bytes"),
        group: Group::Bounds,
        kind: Kind::Size,
        default: Default::Means("no bound"),
        help: "The most payload bytes of them",
        example: "\"10GiB\"",
        per_queue: false,
        sets: sets!(Queues, Size, |options, most| options.max_bytes = most.get()),
    },
    Setting {
        key: "push_timeout",
        flag: Some("push-timeout"),
        group: Group::Bounds,
        kind: Kind::Duration,
        default: Default::Means("it fails at once"),
        help: "How long a push waits for room in a queue that is full",
        example: "\"5s\"",
        per_queue: false,
        sets: sets!(Queues, Duration, |options, timeout| options.when_full =
            WhenFull::Block { timeout: *timeout }),
    },
    Setting {
        key: "idempotency_window",
        flag: Some("idempotency-window"),
        group: Group::Bounds,
        kind: Kind::Duration,
        default: Default::Is("24h"),
        help: "For how long the idempotency key of a push is remembered",
        example: "\"2h\"",
        per_queue: false,
        sets: sets!(Queues, Duration, |options, window| options
            .idempotency_window =
            *window),
    },
    Setting {
        key: "retention",
        flag: Some("retention"),
        group: Group::Retention,
        kind: Kind::Duration,
        default: Default::Is("1h"),
        help: "How long results are kept after their batch has ended",
        example: "\"24h\"",
        per_queue: false,
        sets: sets!(Queues, Duration, |options, retention| options.retention =
            *retention),
    },
    knob!(
        "queue_threshold",
        "queue-threshold",
        Count,
        Default::Is("50000"),
        "1_000",
        "A batch leaves when this many requests are ready",
        |policy, requests| policy.queue_threshold = *requests
    ),
    knob!(
        "time_threshold",
        "time-threshold",
        Duration,
        Default::Is("2h"),
        "\"30s\"",
        "A batch leaves when the oldest ready request is this old",
        |policy, age| policy.time_threshold = *age
    ),
    knob!(
        "time_interval",
        "time-interval",
        Duration,
        Default::Is("10m"),
        "\"1m\"",
        "Look at the queue this often even if nothing happens; at least 1ms",
        |policy, interval| policy.time_interval = *interval
    ),
    knob!(
        "max_batch_requests",
        "max-batch-requests",
        Count,
        Default::Means("the queue threshold"),
        "10_000",
        "The most requests of a batch",
        |policy, most| policy.max_batch_requests = Some(*most)
    ),
    knob!(
        "max_batch_bytes",
        "max-batch-bytes",
        Size,
        Default::Means("no limit"),
        "\"16MiB\"",
        "The most payload bytes of a batch; it also leaves when this many are ready",
        |policy, most| policy.max_batch_bytes = *most
    ),
    knob!(
        "max_in_flight",
        "max-in-flight",
        Count,
        Default::Is("4"),
        "8",
        "The most batches of a queue at the same time",
        |policy, most| policy.max_in_flight = *most
    ),
    knob!(
        "max_attempts",
        "max-attempts",
        Count,
        Default::Is("5"),
        "3",
        "How often a request may fail before it is isolated and given up",
        |policy, most| policy.max_attempts = *most
    ),
    knob!(
        "initial_backoff",
        "initial-backoff",
        Duration,
        Default::Is("1s"),
        "\"250ms\"",
        "The wait after a first failure, doubled at each further one",
        |policy, wait| policy.initial_backoff = *wait
    ),
    knob!(
        "max_backoff",
        "max-backoff",
        Duration,
        Default::Is("5m"),
        "\"15m\"",
        "The longest wait after a failure",
        |policy, wait| policy.max_backoff = *wait
    ),
    knob!(
        "lease_duration",
        "lease-duration",
        Duration,
        Default::Is("1m"),
        "\"2m\"",
        "How soon a batch whose holder is gone is taken over",
        |policy, duration| policy.lease_duration = *duration
    ),
    knob!(
        "heartbeat_interval",
        "heartbeat-interval",
        Duration,
        Default::Is("15s"),
        "\"10s\"",
        "How often a holder says that it lives",
        |policy, interval| policy.heartbeat_interval = *interval
    ),
    knob!(
        "handler_timeout",
        "handler-timeout",
        Duration,
        Default::Means("no limit"),
        "\"10m\"",
        "How long one batch may take before it is stopped",
        |policy, timeout| policy.handler_timeout = Some(*timeout)
    ),
    Setting {
        per_queue: false,
        ..knob!(
            "shutdown_timeout",
            "shutdown-timeout",
            Duration,
            Default::Is("30s"),
            "\"1m\"",
            "How long batches may go on once this program was asked to stop",
            |policy, timeout| policy.shutdown_timeout = *timeout
        )
    },
    Setting {
        key: "max_in_flight_total",
        flag: Some("max-in-flight-total"),
        group: Group::Total,
        kind: Kind::Count,
        default: Default::Means("no limit"),
        help: "The most batches at the same time over all queues",
        example: "16",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "handler",
        flag: Some("handler"),
        group: Group::Handler,
        kind: Kind::Text,
        default: Default::None,
        help: "Send batches there instead of to a command, such as http:https://example.org/batches (feature http): each is a POST of the \
lines that a command gets, with the batch id as Idempotency-Key. An answer 2xx of type application/x-ndjson is lines like \
those of a command; any other 2xx means that all is done, without results",
        example: "\"http:https://example.org/batches\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "plain",
        flag: Some("plain"),
        group: Group::Handler,
        kind: Kind::Switch,
        default: Default::Is("false"),
        help: "Payload lines to the command, result lines from it, one to one, in place of JSON Lines",
        example: "true",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "max_output_bytes",
        flag: Some("max-output-bytes"),
        group: Group::Handler,
        kind: Kind::Size,
        default: Default::Means("64MiB and 64KiB a request"),
        help: "The most bytes that the command may print for one batch",
        example: "\"1GiB\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "command",
        flag: None,
        group: Group::Handler,
        kind: Kind::Words,
        default: Default::None,
        help: "The command that is started for each batch, and its arguments",
        example: "[\"./send-emails\", \"--fast\"]",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "metrics",
        flag: Some("metrics"),
        group: Group::Service,
        kind: Kind::Address,
        default: Default::None,
        help: "Serve metrics as Prometheus text at this address, under /metrics; a port alone is one of this machine, such as 9464",
        example: "\"127.0.0.1:9464\"",
        per_queue: false,
        sets: Sets::Itself,
    },
    Setting {
        key: "log_format",
        flag: Some("log-format"),
        group: Group::Talk,
        kind: Kind::Choice(&["text", "json"]),
        default: Default::Is("text"),
        help: "What the log and all other talk on stderr is written as: text, lines for people, or json, JSON Lines with the time",
        example: "\"json\"",
        per_queue: false,
        sets: Sets::Itself,
    },
];

/// Settings of which one says what the other would: the one that is closest to whoever started the program counts.
pub const ALTERNATIVES: &[&[&str]] = &[
    &["store", "redis_url", "redis_url_file"],
    &["handler", "command"],
];

/// Settings that mean nothing beside another one.
pub const MEANINGLESS: &[(&str, &str)] = &[("plain", "handler"), ("max_output_bytes", "handler")];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    #[test]
    fn names_are_one_name_and_there_is_one_of_each() {
        let keys: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys.len(), SETTINGS.len());
        for setting in SETTINGS {
            if let Some(flag) = setting.flag {
                assert_eq!(flag.replace('-', "_"), setting.key);
            }
            assert_eq!(
                setting.default_value().is_some(),
                matches!(setting.default, Default::Is(_)),
                "{}: its default is no value of it",
                setting.key
            );
            let example = toml::de::DeValue::parse(setting.example).unwrap();
            let example = setting.kind.read(example.get_ref());
            assert!(example.is_ok(), "{}: {example:?}", setting.key);
            let is_policy = matches!(setting.sets, Sets::Policy(_));
            assert!(is_policy || !setting.per_queue, "{}", setting.key);
        }
        for key in ALTERNATIVES.concat() {
            assert!(keys.contains(key), "{key}");
        }
    }

    /// What the table says of defaults is what they are, and no field is without its row.
    #[test]
    fn the_defaults_of_the_table_are_those_of_the_library() {
        let second = Duration::from_secs(1);
        let one = std::num::NonZeroU32::MIN;
        let mut policy = Policy {
            queue_threshold: one,
            time_threshold: second,
            time_interval: second,
            max_batch_requests: None,
            max_batch_bytes: std::num::NonZeroU64::MAX,
            max_in_flight: one,
            max_attempts: one,
            initial_backoff: second * 2,
            max_backoff: second,
            lease_duration: second,
            heartbeat_interval: second,
            handler_timeout: None,
            shutdown_timeout: second,
        };
        let mut options = QueueOptions {
            max_requests: u64::MAX,
            max_bytes: u64::MAX,
            when_full: WhenFull::Reject,
            retention: second,
            idempotency_window: second,
        };
        let (mut policies, mut queues) = (0, 0);
        for setting in SETTINGS {
            let value = setting.default_value();
            match setting.sets {
                Sets::Policy(set) => {
                    policies += 1;
                    if let Some(value) = value {
                        set(&mut policy, &value);
                    }
                }
                Sets::Queues(set) => {
                    queues += 1;
                    if let Some(value) = value {
                        set(&mut options, &value);
                    }
                }
                Sets::Itself => {}
            }
        }
        assert_eq!(policy, Policy::default());
        assert_eq!(options, QueueOptions::default());
        // As many as there are fields above.
        assert_eq!((policies, queues), (13, 5));
    }
}
