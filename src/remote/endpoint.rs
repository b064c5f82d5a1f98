//! What is asked for: the endpoints that a batch can be of, and the key by which requests are routed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
    request::{MAX_QUEUE_NAME_BYTES, QueueName},
};

/// An endpoint that a provider takes batches for; one batch has one.
///
/// Reads and serializes as its path, such as `/v1/chat/completions`; the `/v1` and the first slash may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Endpoint {
    /// `/v1/chat/completions`; the prompt is `messages`.
    ChatCompletions,
    /// `/v1/responses`; the prompt is `input`.
    Responses,
    /// `/v1/completions`; the prompt is `prompt`.
    Completions,
    /// `/v1/embeddings`; the prompt is `input`, one text or many.
    Embeddings,
    /// `/v1/moderations`; the prompt is `input`.
    Moderations,
    /// Anthropic's `/v1/messages`; the prompt is `messages`.
    Messages,
}

impl Endpoint {
    /// All of them, in this order.
    pub const ALL: [Self; 6] = [
        Self::ChatCompletions,
        Self::Responses,
        Self::Completions,
        Self::Embeddings,
        Self::Moderations,
        Self::Messages,
    ];

    /// Its path, as it stands in a line of a batch.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Moderations => "/v1/moderations",
            Self::Messages => "/v1/messages",
        }
    }

    /// The field of the body that holds the prompt.
    pub fn prompt_field(self) -> &'static str {
        match self {
            Self::ChatCompletions | Self::Messages => "messages",
            Self::Completions => "prompt",
            Self::Responses | Self::Embeddings | Self::Moderations => "input",
        }
    }

    /// Whether the prompt is a conversation: a list of turns, each with a role.
    pub(crate) fn is_conversation(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Messages)
    }

    /// Its path as a part of a name: `chat-completions`.
    fn slug(self) -> String {
        self.path()["/v1/".len()..].replace('/', "-")
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix('/').unwrap_or(text);
        let path = path.strip_prefix("v1/").unwrap_or(path);
        let is = |endpoint: &Self| &endpoint.path()["/v1/".len()..] == path;
        Self::ALL.into_iter().find(is).ok_or_else(|| {
            let known = Self::ALL.map(Self::path).join(", ");
            let shown: String = text.chars().take(60).collect();
            Error::invalid(format!("{shown:?} is not an endpoint: {known} are"))
        })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.path().to_owned()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// What all requests of a batch have in common: the queue that they wait in is one of their own.
///
/// ```
/// use batchyard::remote::{Endpoint, Route};
/// let route = Route { endpoint: Endpoint::ChatCompletions, model: "meta/llama-3".into() };
/// let queue = route.queue_name(&"llm".parse()?)?;
/// assert_eq!(queue.as_str(), "llm:chat-completions:meta_2fllama-3");
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The model, as the request names it.
    pub model: String,
}

impl Route {
    /// The queue for requests of this route: `prefix:endpoint:model`. Different routes have different names: what a
    /// name can't hold stands there as `_` and two hexadecimal digits, and the tail of one that is too long as a hash.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if the prefix leaves no room for it: it may have 64 bytes.
    pub fn queue_name(&self, prefix: &QueueName) -> Result<QueueName> {
        let mut name = format!("{prefix}:{}:", self.endpoint.slug());
        let start = name.len();
        for byte in self.model.bytes() {
            if byte.is_ascii_alphanumeric() || b".-".contains(&byte) {
                name.push(char::from(byte));
            } else {
                escaped(byte, &mut name);
            }
        }
        if name.len() > MAX_QUEUE_NAME_BYTES {
            let digest = Sha256::digest(self.model.as_bytes());
            let digest = &digest[..8];
            // No escape begins with it.
            let tail = 1 + 3 * digest.len();
            name.truncate(MAX_QUEUE_NAME_BYTES.saturating_sub(tail).max(start));
            name.push(':');
            for byte in digest {
                escaped(*byte, &mut name);
            }
        }
        name.parse()
    }
}

/// Appends `_` and two hexadecimal digits.
fn escaped(byte: u8, name: &mut String) {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
    name.extend(['_', digit(byte >> 4), digit(byte & 15)]);
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.endpoint, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_with_and_without_the_version() {
        for endpoint in Endpoint::ALL {
            let path = endpoint.path();
            for text in [path, &path[1..], &path[3..], &path[4..]] {
                assert_eq!(text.parse::<Endpoint>().unwrap(), endpoint, "{text}");
            }
        }
        for bad in ["", "/", "/v2/embeddings", "//v1/embeddings", "embeddings/"] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains("/v1/moderations"), "{error}");
        }
    }

    #[test]
    fn different_routes_have_different_queues() {
        let prefix: QueueName = "llm".parse().unwrap();
        let long = "x".repeat(200);
        let models = ["a", "a/b", "a_2fb", "a_b", "a:b", "a b", "é", "", "A"];
        let models = models.map(str::to_owned).into_iter();
        let models = models.chain([long.clone(), long + "y"]);
        let mut names = std::collections::BTreeSet::new();
        for model in models {
            for endpoint in Endpoint::ALL {
                let model = model.clone();
                let name = Route { endpoint, model }.queue_name(&prefix).unwrap();
                assert!(names.insert(name.clone()), "{name} twice");
            }
        }
        let prefix: QueueName = "p".repeat(64).parse().unwrap();
        for endpoint in Endpoint::ALL {
            let model = "m".repeat(300);
            assert!(Route { endpoint, model }.queue_name(&prefix).is_ok());
        }
    }
}
