//! What is known about a provider of batches, as data: one row a provider, every field of which can be overridden.
//!
//! No provider was asked for what stands here: each row names its sources and their dates, and limits change. What a provider
//! has granted you is said with [`Profile::with`].

mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{batch_file::LineShape, endpoint::Endpoint, packing::Limits, state::RemoteState};
use crate::error::{Error, Result};

/// A provider of batches.
///
/// ```
/// use batchyard::remote::Profile;
/// let openai = Profile::named("openai")?;
/// assert_eq!(openai.limits.requests, Some(50_000));
/// let mine = openai.with(&serde_json::json!({
///     "base_url": "http://127.0.0.1:4010/v1",
///     "limits": { "enqueued_tokens": 2_000_000 },
/// }))?;
/// assert_eq!(mine.limits.requests, Some(50_000)); // the rest stays
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// How its batches are made and looked at.
    pub dialect: Dialect,
    /// Where it is, without a slash at the end; `None` if whoever uses it has to say so.
    pub base_url: Option<String>,
    /// The variable in which its own clients look for the base URL.
    pub base_url_variable: String,
    /// What is appended to a base URL from the variable, unless it ends so already.
    pub base_path: String,
    /// The variable in which its own clients look for the key.
    pub key_variable: String,
    /// The header that carries the key; `authorization` has `Bearer ` before it.
    pub key_header: String,
    /// Further headers of every call.
    pub headers: BTreeMap<String, String>,
    /// Where things are below the base URL.
    pub paths: Paths,
    /// What an uploaded file is said to be for.
    pub upload_purpose: String,
    /// Whether an uploaded file has to be `processed` before a batch of it can be made.
    pub uploads_are_checked: bool,
    /// What stands before the path of an endpoint, in place of `/v1`, in lines and when a batch is made.
    pub endpoint_prefix: String,
    /// The endpoints it takes batches for.
    pub endpoints: Vec<Endpoint>,
    /// How a request stands in a batch.
    pub line_shape: LineShape,
    /// Whether all requests of a batch are for one model.
    pub one_model: bool,
    /// What it takes.
    pub limits: Limits,
    /// The completion windows to choose from, the default first.
    pub windows: Vec<String>,
    /// Whether it ends a batch whose window is over. If not, and for batches that hang, there is `max_age_seconds`.
    pub expires: bool,
    /// After how long a batch that has not ended is given up by us: the window and a grace.
    pub max_age_seconds: u64,
    /// For how long results can be fetched after a batch has ended; `None` if they stay.
    pub results_kept_seconds: Option<u64>,
    /// How a batch that was submitted by somebody who died before noting its id is found again.
    pub recognized_by: Recognition,
    /// Names of states that only it has; those of [`RemoteState::of`] are known anyway.
    pub states: BTreeMap<String, RemoteState>,
    /// How it deviates from others of its dialect, for people to read.
    pub deviations: Vec<String>,
    /// Where all this is from.
    pub sources: Vec<Source>,
}

/// How batches are made and looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Dialect {
    /// A file is uploaded, and a batch made of it: `input_file_id`, `endpoint`, `completion_window`.
    OpenAi,
    /// The same with `input_files`, `model`, `endpoint` and `timeout_hours`.
    Mistral,
    /// The batch is the call itself; results are at an address of their own.
    Anthropic,
}

/// Where things are below the base URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paths {
    /// Files are listed here, and `/{id}/content` below it is what is in one.
    pub files: String,
    /// Files are uploaded here.
    pub upload: String,
    /// Batches are made and listed here; one is at `/{id}` below it, and cancelled at `/{id}/cancel`.
    pub batches: String,
}

/// How a batch that was submitted is found again when the answer to its submission was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recognition {
    /// It carries our batch id in its metadata, and the id of its file; batches can be listed.
    Metadata,
    /// It carries the id of its file, which was noted before; batches can be listed.
    InputFile,
    /// Not at all: a submission whose answer is lost may have to be paid twice.
    Nothing,
}

/// Where something that is said in a profile is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What was read, or who said so.
    pub what: String,
    /// When it was read, or last changed: a year and month, or a day.
    pub date: String,
}

impl Profile {
    /// The names of all rows.
    pub const NAMES: [&'static str; 8] = [
        "openai",
        "azure",
        "groq",
        "together",
        "deepinfra",
        "mistral",
        "any",
        "anthropic",
    ];

    /// The row of this name; `any` is a server that is compatible with OpenAI's and of which nothing else is known.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming all rows.
    pub fn named(name: &str) -> Result<Self> {
        table::row(name).ok_or_else(|| {
            let known = Self::NAMES.join(", ");
            let shown: String = name.chars().take(60).collect();
            Error::invalid(format!("{shown:?} is not a provider: {known} are"))
        })
    }

    /// This profile with some fields said otherwise: a JSON object of them, nested as the profile is. Lists are replaced
    /// as a whole, names are added to maps, and `null` clears what may be absent.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): a field that there is not, or a value that does not fit it.
    #[expect(clippy::missing_panics_doc, reason = "a profile is always JSON")]
    pub fn with(&self, options: &Value) -> Result<Self> {
        let mut whole = serde_json::to_value(self).expect("a profile is always JSON");
        lay_over(&mut whole, options);
        let profile: Self = serde_json::from_value(whole)
            .map_err(|error| Error::invalid(format!("profile {}: {error}", self.name)))?;
        if profile.endpoints.is_empty() {
            let name = &profile.name;
            return Err(Error::invalid(format!("profile {name} has no endpoints")));
        }
        Ok(profile)
    }

    /// The path of an endpoint as this provider wants it in a line, and when a batch is made.
    pub fn endpoint_path(&self, endpoint: Endpoint) -> String {
        let path = endpoint.path();
        format!(
            "{}{}",
            self.endpoint_prefix,
            path.strip_prefix("/v1").unwrap_or(path)
        )
    }

    /// The base URL: the one that is given, such as from the variable, or else that of the row.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the variable, if there is none, or it does not begin with `https://` or `http://`.
    pub fn base_url(&self, given: Option<&str>) -> Result<String> {
        let given = given
            .map(|given| given.trim_end_matches('/'))
            .filter(|given| !given.is_empty());
        let url = match (given, &self.base_url) {
            (Some(given), _) if given.ends_with(&self.base_path) => given.to_owned(),
            (Some(given), _) => format!("{given}{}", self.base_path),
            (None, Some(url)) => url.clone(),
            (None, None) => {
                let (name, variable) = (&self.name, &self.base_url_variable);
                return Err(Error::invalid(format!(
                    "provider {name} has no base URL of its own: set {variable}"
                )));
            }
        };
        match url.split_once("://") {
            Some(("http" | "https", host)) if !host.is_empty() => Ok(url),
            // It may hold a password: it is not shown.
            _ => Err(Error::invalid(format!(
                "the base URL of provider {} begins with neither https:// nor http://",
                self.name
            ))),
        }
    }

    /// What a name of a state means here.
    pub fn state(&self, name: &str) -> RemoteState {
        let own = self.states.get(name).cloned();
        own.unwrap_or_else(|| RemoteState::of(name))
    }
}

/// `null` clears; objects are laid over objects, and anything else takes the place of what was there.
fn lay_over(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                lay_over(under.entry(name.as_str()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_row_says_where_it_is_from_and_survives_being_written() {
        for name in Profile::NAMES {
            let profile = Profile::named(name).unwrap();
            assert_eq!(profile.name, name);
            assert!(!profile.sources.is_empty() && !profile.endpoints.is_empty());
            for source in &profile.sources {
                assert!(source.date.starts_with("202"), "{name}: {source:?}");
                assert!(!source.what.is_empty());
            }
            assert!(!profile.windows.is_empty() || profile.dialect == Dialect::Anthropic);
            assert!(profile.max_age_seconds > 24 * 3600);
            assert_eq!(profile.with(&json!({})).unwrap(), profile);
        }
        let error = Profile::named("opnai").unwrap_err().to_string();
        assert!(error.contains("openai, azure"), "{error}");
    }

    #[test]
    fn every_field_can_be_said_otherwise_and_no_other() {
        let profile = Profile::named("openai").unwrap();
        let whole = serde_json::to_value(&profile).unwrap();
        for (field, value) in whole.as_object().unwrap() {
            assert_eq!(profile.with(&json!({ field: value })).unwrap(), profile);
        }
        let limits = json!({"limits": {"bytes": 7, "requests": null}, "windows": ["1h"]});
        let mine = profile.with(&limits).unwrap();
        assert_eq!((mine.limits.bytes, mine.limits.requests), (Some(7), None));
        assert_eq!(
            mine.limits.embedding_inputs,
            profile.limits.embedding_inputs
        );
        assert_eq!(mine.windows, ["1h"]);
        let states = json!({"states": {"scheduling": "submitted"}});
        let mine = profile.with(&states).unwrap();
        assert_eq!(mine.state("scheduling"), RemoteState::Submitted);
        assert_eq!(mine.state("completed"), RemoteState::Succeeded);
        for bad in [
            json!({"limit": {}}),
            json!({"limits": {"request": 1}}),
            json!({"limits": {"bytes": "1 GB"}}),
            json!({"endpoints": []}),
            json!({"endpoints": ["/v1/images"]}),
            json!({"name": null}),
            json!([]),
            json!(null),
        ] {
            assert!(profile.with(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_base_url_is_that_of_the_clients() {
        let url = |name: &str, given: Option<&str>| Profile::named(name).unwrap().base_url(given);
        assert_eq!(url("openai", None).unwrap(), "https://api.openai.com/v1");
        for given in ["http://127.0.0.1:4010/v1", "http://127.0.0.1:4010/v1/"] {
            assert_eq!(
                url("openai", Some(given)).unwrap(),
                "http://127.0.0.1:4010/v1"
            );
        }
        assert_eq!(
            url("openai", Some("")).unwrap(),
            "https://api.openai.com/v1"
        );
        for given in [
            "https://r.openai.azure.com",
            "https://r.openai.azure.com/openai/v1/",
        ] {
            let want = "https://r.openai.azure.com/openai/v1";
            assert_eq!(url("azure", Some(given)).unwrap(), want);
        }
        let error = url("any", None).unwrap_err().to_string();
        assert!(error.contains("OPENAI_BASE_URL"), "{error}");
        let error = url("any", Some("user:secret@host"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("https://") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn azure_wants_endpoints_without_a_version() {
        let azure = Profile::named("azure").unwrap();
        assert_eq!(
            azure.endpoint_path(Endpoint::ChatCompletions),
            "/chat/completions"
        );
        let openai = Profile::named("openai").unwrap();
        assert_eq!(openai.endpoint_path(Endpoint::Embeddings), "/v1/embeddings");
    }
}
