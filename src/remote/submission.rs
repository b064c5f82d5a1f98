//! What a batch is submitted with, and the token by which it is found again.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    endpoint::Route,
    profile::{Dialect, Profile, Recognition},
};
use crate::{
    batch::BatchId,
    error::{Error, Result},
};

/// Names one submission of a batch, at the provider as well: in the metadata of the batch, and in the name of its file.
///
/// Reads and prints as the batch id, a dash and the number of the submission: that of the first is 0.
///
/// ```
/// use batchyard::{BatchId, remote::Token};
/// let token = Token { batch: BatchId::from_u128(0x2a), submission: 1 };
/// assert_eq!(token.file_name(), "batchyard-0000000000000000000000000000002a-1.jsonl");
/// assert_eq!(Token::of_file_name(&token.file_name()), Some(token));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token {
    /// The batch.
    pub batch: BatchId,
    /// How many submissions of it there were before, each of which is known to have come to nothing.
    pub submission: u32,
}

impl Token {
    /// Under which name it stands in the metadata of a batch.
    pub const KEY: &'static str = "batchyard_batch";

    /// The name of the file that is uploaded for it.
    pub fn file_name(self) -> String {
        format!("batchyard-{self}.jsonl")
    }

    /// The token of a file of ours.
    pub fn of_file_name(name: &str) -> Option<Self> {
        let token = name.strip_prefix("batchyard-")?.strip_suffix(".jsonl")?;
        token.parse().ok()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.batch, self.submission)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("not a token: a batch id, a dash and a number are");
        let (batch, submission) = text.split_once('-').ok_or_else(wrong)?;
        let token = Self {
            batch: batch.parse()?,
            submission: submission.parse().map_err(|_| wrong())?,
        };
        // As it is printed, and no other way.
        Some(token)
            .filter(|token| token.to_string() == text)
            .ok_or_else(wrong)
    }
}

impl TryFrom<String> for Token {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.to_string()
    }
}

/// What a batch is made with, once its file is there.
#[derive(Clone, Debug)]
pub struct Submission<'a> {
    /// Its token.
    pub token: Token,
    /// Its endpoint and model.
    pub route: &'a Route,
    /// The id of its file.
    pub input_file: &'a str,
    /// The completion window; `None` for the first of the profile's.
    pub window: Option<&'a str>,
    /// What else it is to carry; nothing for a provider that takes none.
    pub metadata: &'a BTreeMap<String, String>,
}

impl Submission<'_> {
    /// The body of the call that makes the batch. Anthropic's has none of its own: the batch is the body.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): a window that the provider does not have, or metadata that it does not take: OpenAI's limits are 16
    /// pairs with ours, names of 64 and values of 512 characters.
    pub fn body(&self, profile: &Profile) -> Result<Value> {
        let window = match (self.window, profile.windows.first()) {
            (Some(window), _) if profile.windows.iter().any(|known| known == window) => window,
            (None, Some(first)) => first,
            (window, _) => {
                return Err(Error::invalid(format!(
                    "completion window {:?} is none of {}: {} are",
                    window.unwrap_or_default(),
                    profile.name,
                    profile.windows.join(", ")
                )));
            }
        };
        let endpoint = profile.endpoint_path(self.route.endpoint);
        let mut body = match profile.dialect {
            Dialect::OpenAi => json!({
                "input_file_id": self.input_file,
                "endpoint": endpoint,
                "completion_window": window,
            }),
            Dialect::Mistral => json!({
                "input_files": [self.input_file],
                "endpoint": endpoint,
                "model": self.route.model,
                "timeout_hours": hours(window)?,
            }),
            Dialect::Anthropic => {
                return Err(Error::invalid(
                    "a batch of Anthropic's is its own submission",
                ));
            }
        };
        if profile.recognized_by == Recognition::Metadata {
            body["metadata"] = json!(self.carried()?);
        }
        Ok(body)
    }

    fn carried(&self) -> Result<BTreeMap<String, String>> {
        let mut metadata = self.metadata.clone();
        metadata.insert(Token::KEY.to_owned(), self.token.to_string());
        let longest = |texts: &mut dyn Iterator<Item = &String>| {
            texts.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        for (what, is, most) in [
            ("pairs", metadata.len(), 16),
            ("characters in a name", longest(&mut metadata.keys()), 64),
            (
                "characters in a value",
                longest(&mut metadata.values()),
                512,
            ),
        ] {
            if is > most {
                return Err(Error::invalid(format!(
                    "the metadata of a batch has {is} {what}, and at most {most} are allowed"
                )));
            }
        }
        Ok(metadata)
    }
}

/// `24h` and `7d`.
fn hours(window: &str) -> Result<u64> {
    let number = |text: &str| text.parse::<u64>().ok();
    let hours = window.strip_suffix('h').and_then(number);
    let days = || window.strip_suffix('d').and_then(number)?.checked_mul(24);
    hours.or_else(days).ok_or_else(|| {
        Error::invalid(format!(
            "window {window:?} is no number of hours (24h) or days (7d)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Endpoint;

    fn submit(profile: &str, window: Option<&str>) -> Result<Value> {
        let route = Route {
            endpoint: Endpoint::ChatCompletions,
            model: "m".into(),
        };
        let submission = Submission {
            token: Token {
                batch: BatchId::from_u128(1),
                submission: 0,
            },
            route: &route,
            input_file: "file-1",
            window,
            metadata: &BTreeMap::from([("tenant".into(), "7".into())]),
        };
        submission.body(&Profile::named(profile).unwrap())
    }

    #[test]
    fn a_batch_is_made_as_each_provider_wants_it() {
        let token = "00000000000000000000000000000001-0";
        let metadata = json!({"batchyard_batch": token, "tenant": "7"});
        for (profile, window, want) in [
            (
                "openai",
                None,
                json!({
                    "input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h",
                    "metadata": metadata,
                }),
            ),
            (
                "azure",
                None,
                json!({
                    "input_file_id": "file-1", "endpoint": "/chat/completions", "completion_window": "24h",
                    "metadata": metadata,
                }),
            ),
            (
                "groq",
                Some("7d"),
                json!({
                    "input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "7d",
                    "metadata": metadata,
                }),
            ),
            (
                "together",
                None,
                json!({
                    "input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h",
                }),
            ),
            (
                "mistral",
                Some("48h"),
                json!({
                    "input_files": ["file-1"], "endpoint": "/v1/chat/completions", "model": "m",
                    "timeout_hours": 48, "metadata": metadata,
                }),
            ),
        ] {
            assert_eq!(submit(profile, window).unwrap(), want, "{profile}");
        }
        let error = submit("openai", Some("1h")).unwrap_err().to_string();
        assert!(
            error.contains("\"1h\"") && error.contains("24h are"),
            "{error}"
        );
        assert!(submit("anthropic", None).is_err());
    }

    #[test]
    fn a_token_is_read_as_it_is_printed_and_no_other_way() {
        let token = Token {
            batch: BatchId::new(7, 9),
            submission: 12,
        };
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        let printed = token.to_string();
        for bad in [
            "",
            "-",
            "7-1",
            &printed[1..],
            &printed.to_uppercase().replace('7', "A"),
            &format!("{printed}x"),
        ] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        assert_eq!(Token::of_file_name("batchyard-x.jsonl"), None);
        assert_eq!(Token::of_file_name("other.jsonl"), None);
    }
}
