//! Batches and files as a provider describes them.
//!
//! Read leniently: what is absent, null or of another type is not there; a state that nobody knows is
//! [`Unknown`](RemoteState::Unknown), which is not an end, so one goes on asking.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{failure::ProviderError, profile::Profile, submission::Token, tokens::Usage};
use crate::clock::Timestamp;

/// How far a batch is.
///
/// | | names, upper or lower case, with or without `_` and `JOB_STATE_` |
/// |---|---|
/// | [`Submitted`](Self::Submitted) | `validating` `queued` `pending` `submitted` `scheduled` `scheduling` |
/// | [`Running`](Self::Running) | `in_progress` `running` `progress` `processing` `paused` `updating` |
/// | [`Finalizing`](Self::Finalizing) | `finalizing` |
/// | [`Cancelling`](Self::Cancelling) | `cancelling` `canceling` `cancellation_requested` `stopping` |
/// | [`Succeeded`](Self::Succeeded) | `completed` `succeeded` `success` `ended`, unless the counts say otherwise |
/// | [`Partial`](Self::Partial) | `partially_succeeded` `partially_completed` |
/// | [`Failed`](Self::Failed) | `failed` |
/// | [`Expired`](Self::Expired) | `expired` `timeout_exceeded` |
/// | [`Cancelled`](Self::Cancelled) | `cancelled` `canceled` `stopped` |
/// | [`Unknown`](Self::Unknown) | any other |
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RemoteState {
    /// The provider has it, and looks at it.
    Submitted,
    /// Requests are being answered.
    Running,
    /// All are, and the results are put together.
    Finalizing,
    /// It is being cancelled.
    Cancelling,
    /// It has ended, and for all that is known, well.
    Succeeded,
    /// It has ended, and some of its requests failed, expired or were cancelled.
    Partial,
    /// It has ended before any request was answered, such as for a file that is not valid.
    Failed,
    /// It has ended since its window was over; some requests may have been answered.
    Expired,
    /// It has ended since it was cancelled; some requests may have been answered.
    Cancelled,
    /// A state of this name, which nobody knows; not an end.
    Unknown(String),
}

impl RemoteState {
    /// What a name means.
    pub fn of(name: &str) -> Self {
        let plain = name.to_ascii_lowercase().replace(['_', '-', ' '], "");
        match plain.strip_prefix("jobstate").unwrap_or(&plain) {
            "validating" | "queued" | "pending" | "submitted" | "scheduled" | "scheduling" => {
                Self::Submitted
            }
            "inprogress" | "running" | "progress" | "processing" | "paused" | "updating" => {
                Self::Running
            }
            "finalizing" => Self::Finalizing,
            "cancelling" | "canceling" | "cancellationrequested" | "stopping" => Self::Cancelling,
            "completed" | "succeeded" | "success" | "ended" => Self::Succeeded,
            "partiallysucceeded" | "partiallycompleted" => Self::Partial,
            "failed" => Self::Failed,
            "expired" | "timeoutexceeded" => Self::Expired,
            "cancelled" | "canceled" | "stopped" => Self::Cancelled,
            _ => Self::Unknown(name.to_owned()),
        }
    }

    /// Whether it never changes again. Whatever the end is, there may be results.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Partial | Self::Failed | Self::Expired | Self::Cancelled
        )
    }
}

/// How many requests of a batch are how far, as the provider counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteCounts {
    /// All of them.
    pub total: u64,
    /// Answered.
    pub succeeded: u64,
    /// Failed.
    pub failed: u64,
    /// Not answered when the window was over; Anthropic alone counts these apart.
    pub expired: u64,
    /// Not answered when the batch was cancelled; Anthropic alone counts these apart.
    pub cancelled: u64,
}

/// A batch as its provider describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteBatch {
    /// Its id there.
    pub id: String,
    /// How far it is.
    pub state: RemoteState,
    /// The state in the provider's own word; empty if there is none.
    pub status: String,
    /// Its counts; `None` where it does not count.
    pub counts: Option<RemoteCounts>,
    /// How much of it is done, in percent, of who says so in place of counts.
    pub percent: Option<u8>,
    /// The ids of the files it was made of.
    pub input_files: Vec<String>,
    /// The id of the file with answers.
    pub output_file: Option<String>,
    /// The id of the file with errors; it may be empty.
    pub error_file: Option<String>,
    /// Where its results are; may be relative to the base URL.
    pub results_url: Option<String>,
    /// What is wrong with all of it, or with lines of its file.
    pub errors: Vec<ProviderError>,
    /// What it took.
    pub usage: Option<Usage>,
    /// What it was given to carry.
    pub metadata: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When its window is over.
    pub expires_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl RemoteBatch {
    /// Reads the answer to making, looking at or cancelling a batch.
    ///
    /// # Errors
    /// It is not JSON, or has no id.
    pub fn read(json: &[u8], profile: &Profile) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(json).map_err(|error| format!("not a batch: {error}"))?;
        Self::of(&value, profile).ok_or_else(|| "not a batch: it has no id".to_owned())
    }

    /// The batch that this JSON is, alone or in a field `job` or `batch`.
    pub fn of(value: &Value, profile: &Profile) -> Option<Self> {
        let fields = value.as_object()?;
        let Some(id) = text(fields, &["id"]) else {
            return ["job", "batch"]
                .iter()
                .find_map(|name| Self::of(fields.get(*name)?, profile));
        };
        let status = text(fields, &["status", "processing_status", "state"]).unwrap_or_default();
        let counts = counts(fields);
        let state = narrow(profile.state(&status), counts);
        let ends = [
            "completed_at",
            "ended_at",
            "failed_at",
            "expired_at",
            "cancelled_at",
        ];
        Some(Self {
            id,
            state,
            status,
            counts,
            percent: fields.get("progress").and_then(Value::as_f64).map(percent),
            input_files: input_files(fields),
            output_file: text(fields, &["output_file_id", "output_file"]),
            error_file: text(fields, &["error_file_id", "error_file"]),
            results_url: text(fields, &["results_url"]),
            errors: errors(fields),
            usage: fields.get("usage").and_then(Usage::read),
            metadata: metadata(fields),
            created_at: time(fields, &["created_at"]),
            expires_at: time(fields, &["expires_at"]),
            ended_at: time(fields, &ends),
        })
    }

    /// Whether it is the one of this token: it carries it, or was made of this file.
    pub fn is_of(&self, token: Token, input_file: Option<&str>) -> bool {
        let carried = self
            .metadata
            .get(Token::KEY)
            .and_then(|text| text.parse().ok());
        match carried {
            Some(carried) => token == carried,
            None => input_file.is_some_and(|file| self.input_files.iter().any(|own| own == file)),
        }
    }

    /// Whether a batch that has failed may be submitted again as it is: all of its errors are known to be none of its requests', such
    /// as too many enqueued tokens. What nobody knows would fail again as a whole.
    pub fn may_be_submitted_again(&self) -> bool {
        self.state == RemoteState::Failed
            && !self.errors.is_empty()
            && self
                .errors
                .iter()
                .all(|error| error.line.is_none() && error.verdict() == Some(true))
    }
}

/// A file as its provider describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteFile {
    /// Its id there.
    pub id: String,
    /// The name that it was uploaded with.
    pub name: String,
    /// Its size.
    pub bytes: Option<u64>,
    /// Whether it can be used, in the provider's word: `uploaded`, `processed`, `error`; empty if there is none.
    pub status: String,
    /// When it was uploaded.
    pub created_at: Option<Timestamp>,
}

impl RemoteFile {
    /// Reads the answer to uploading or looking at a file.
    ///
    /// # Errors
    /// It is not JSON, or has no id.
    pub fn read(json: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(json).map_err(|error| format!("not a file: {error}"))?;
        Self::of(&value).ok_or_else(|| "not a file: it has no id".to_owned())
    }

    /// The file that this JSON is.
    pub fn of(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        Some(Self {
            id: text(fields, &["id"])?,
            name: text(fields, &["filename", "name"]).unwrap_or_default(),
            bytes: fields.get("bytes").and_then(Value::as_u64),
            status: text(fields, &["status"]).unwrap_or_default(),
            created_at: time(fields, &["created_at"]),
        })
    }

    /// Whether it was uploaded for this token.
    pub fn is_of(&self, token: Token) -> bool {
        Token::of_file_name(&self.name) == Some(token)
    }
}

/// A page of what a provider lists: batches or files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotePage<T> {
    /// Those that could be read.
    pub items: Vec<T>,
    /// How many could not.
    pub unreadable: usize,
    /// The id behind which the next page begins; `None` for the last.
    pub after: Option<String>,
}

impl<T> RemotePage<T> {
    /// Reads `{"data":[..],"has_more","last_id"}`, or a list; each item by `read`.
    ///
    /// # Errors
    /// It is not JSON, or has no list.
    pub fn read(json: &[u8], read: impl Fn(&Value) -> Option<T>) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(json).map_err(|error| format!("not a list: {error}"))?;
        let list = value.as_array().or_else(|| value.get("data")?.as_array());
        let list = match list {
            Some(list) => list.as_slice(),
            None if value.get("data").is_some_and(Value::is_null) => &[],
            None => return Err("not a list: it has no data".to_owned()),
        };
        let items: Vec<T> = list.iter().filter_map(read).collect();
        let has_more = value.get("has_more").and_then(Value::as_bool) == Some(true);
        let id = |value: &Value| {
            value
                .as_str()
                .filter(|id| !id.is_empty())
                .map(str::to_owned)
        };
        let named = || id(value.get("last_id")?);
        let after = named().or_else(|| id(list.last()?.get("id")?));
        Ok(Self {
            unreadable: list.len() - items.len(),
            items,
            after: after.filter(|_| has_more),
        })
    }
}

/// What an end means where the counts say more than the state.
fn narrow(state: RemoteState, counts: Option<RemoteCounts>) -> RemoteState {
    let Some(counts) = counts.filter(|_| state == RemoteState::Succeeded) else {
        return state;
    };
    let RemoteCounts {
        succeeded,
        failed,
        expired,
        cancelled,
        ..
    } = counts;
    match (succeeded, failed, expired, cancelled) {
        (_, 0, 0, 0) => state,
        (0, 0, 1.., 0) => RemoteState::Expired,
        (0, 0, 0, 1..) => RemoteState::Cancelled,
        _ => RemoteState::Partial,
    }
}

fn counts(fields: &Map<String, Value>) -> Option<RemoteCounts> {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64);
    let of = |name: &str| match fields.get("request_counts") {
        Some(Value::Object(counts)) => number(counts.get(name)),
        _ => None,
    };
    let succeeded = of("succeeded")
        .or(number(fields.get("succeeded_requests")))
        .or(of("completed"))
        .or(number(fields.get("completed_requests")));
    let failed = of("failed")
        .or(of("errored"))
        .or(number(fields.get("failed_requests")));
    let total = of("total").or(number(fields.get("total_requests")));
    let rest = ["processing", "expired", "canceled"].map(of);
    if [succeeded, failed, total]
        .into_iter()
        .chain(rest)
        .all(|count| count.is_none())
    {
        return None;
    }
    let [pending, expired, cancelled] = rest.map(Option::unwrap_or_default);
    let (succeeded, failed) = (succeeded.unwrap_or(0), failed.unwrap_or(0));
    let sum = [succeeded, failed, pending, expired, cancelled]
        .into_iter()
        .fold(0, u64::saturating_add);
    Some(RemoteCounts {
        total: total.unwrap_or(sum),
        succeeded,
        failed,
        expired,
        cancelled,
    })
}

fn input_files(fields: &Map<String, Value>) -> Vec<String> {
    let list = fields.get("input_files").and_then(Value::as_array);
    let ids = list.into_iter().flatten().filter_map(Value::as_str);
    let ids = ids.map(str::to_owned);
    ids.chain(text(fields, &["input_file_id"])).collect()
}

/// Of `errors` as a list, a list in `data`, or anything that is an error; or of `error`.
fn errors(fields: &Map<String, Value>) -> Vec<ProviderError> {
    let of = |name: &str| {
        let value = fields.get(name)?;
        let list = value.as_array().or_else(|| value.get("data")?.as_array());
        let errors: Vec<_> = match list {
            Some(list) => list.iter().filter_map(ProviderError::read).collect(),
            None => ProviderError::read(value).into_iter().collect(),
        };
        (!errors.is_empty()).then_some(errors)
    };
    of("errors").or_else(|| of("error")).unwrap_or_default()
}

fn metadata(fields: &Map<String, Value>) -> BTreeMap<String, String> {
    let pairs = fields.get("metadata").and_then(Value::as_object);
    let pair = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    pairs.into_iter().flatten().filter_map(pair).collect()
}

/// The first of these fields that holds a text with something in it.
fn text(fields: &Map<String, Value>, names: &[&str]) -> Option<String> {
    let texts = names.iter().filter_map(|name| fields.get(*name)?.as_str());
    texts
        .into_iter()
        .find(|text| !text.is_empty())
        .map(str::to_owned)
}

/// The first of these fields that holds a time: seconds since 1970, or RFC 3339.
fn time(fields: &Map<String, Value>, names: &[&str]) -> Option<Timestamp> {
    let read = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        other => {
            let seconds = other.as_f64().filter(|seconds| *seconds > 0.0)?;
            let since = Duration::try_from_secs_f64(seconds).ok()?;
            Some(Timestamp::EPOCH.after(since))
        }
    };
    names.iter().find_map(|name| read(fields.get(*name)?))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is within 0 and 100"
)]
fn percent(progress: f64) -> u8 {
    progress.clamp(0.0, 100.0) as u8
}
