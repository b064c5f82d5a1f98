//! `requests_type` and `request_kwargs`: the template under which payloads become requests.
//!
//! The template in force when a batch is formed is stored with it as its context, so that one batch
//! id never carries two bodies, whatever the configuration is at a redelivery.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    format::fields::Fields,
};

/// What a payload is, and what is merged under it. The default changes nothing.
///
/// ```
/// use batchyard::{RequestsType, Template};
/// let template = Template::new(RequestsType::Partial, r#"{"model":"m","n":1}"#)?;
/// let body = template.apply(r#"{"n":2,"input":"hi"}"#.into()).unwrap();
/// assert_eq!(body, r#"{"model":"m","n":2,"input":"hi"}"#);
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    requests_type: RequestsType,
    kwargs: Fields,
}

/// What a payload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestsType {
    /// A part of a request: `request_kwargs` are merged under it, and its own fields win.
    #[default]
    Partial,
    /// A whole request: it is left as it is.
    Full,
}

impl std::str::FromStr for RequestsType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "partial" => Ok(Self::Partial),
            "full" => Ok(Self::Full),
            _ => Err(Error::invalid(format!(
                "requests_type {text:?} is neither \"partial\" nor \"full\""
            ))),
        }
    }
}

impl Template {
    /// A template; `request_kwargs` is a JSON object, or empty for none.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): not a JSON object, a field named twice, more than 60 KiB,
    /// or `request_kwargs` with full requests, which would be ignored.
    pub fn new(requests_type: RequestsType, request_kwargs: &str) -> Result<Self> {
        let kwargs = match request_kwargs.trim() {
            "" => Fields::default(),
            json => serde_json::from_str(json).map_err(|error| {
                Error::invalid(format!("request_kwargs is not a JSON object: {error}"))
            })?,
        };
        if requests_type == RequestsType::Full && !kwargs.is_empty() {
            return Err(Error::invalid(
                "request_kwargs have no effect on full requests; leave them out or use partial ones",
            ));
        }
        if let Some(name) = kwargs.named_twice() {
            return Err(Error::invalid(format!(
                "request_kwargs names {name:?} twice"
            )));
        }
        let template = Self {
            requests_type,
            kwargs,
        };
        if template.encode().len() > MAX_ENCODED_BYTES {
            return Err(Error::invalid("request_kwargs has more than 60 KiB"));
        }
        Ok(template)
    }

    /// What a payload is.
    pub fn requests_type(&self) -> RequestsType {
        self.requests_type
    }

    /// The request that a payload becomes; without `request_kwargs`, the payload itself, untouched.
    ///
    /// # Errors
    /// Why the payload can't be merged: it is not a JSON object.
    pub fn apply(&self, payload: Bytes) -> Result<Bytes, String> {
        if self.kwargs.is_empty() {
            return Ok(payload);
        }
        let own: Fields = serde_json::from_slice(&payload).map_err(|error| {
            format!("request_kwargs can only be merged under a JSON object, and the payload is none: {error}")
        })?;
        let merged = self.merge(own);
        let json = serde_json::to_vec(&merged).map_err(|error| error.to_string())?;
        Ok(json.into())
    }

    /// `request_kwargs` under fields, which win.
    pub(crate) fn merge(&self, own: Fields) -> Fields {
        own.over(&self.kwargs)
    }

    /// The template as the context of a batch; empty for the default one.
    #[expect(
        clippy::missing_panics_doc,
        reason = "raw JSON and strings are always writable"
    )]
    pub fn encode(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::new();
        }
        let stored = Stored {
            requests_type: self.requests_type,
            request_kwargs: self.kwargs.clone(),
        };
        serde_json::to_vec(&stored)
            .expect("strings and raw JSON are always writable")
            .into()
    }

    /// The template that a batch was formed with.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt): the bytes are not what [`encode`](Self::encode) writes.
    pub fn decode(context: &[u8]) -> Result<Self> {
        if context.is_empty() {
            return Ok(Self::default());
        }
        let stored: Stored = serde_json::from_slice(context).map_err(|error| {
            Error::corrupt("the context of a batch is not a template").with_source(error)
        })?;
        Ok(Self {
            requests_type: stored.requests_type,
            kwargs: stored.request_kwargs,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    requests_type: RequestsType,
    request_kwargs: Fields,
}

/// Under the 64 KiB that a backend takes as context.
const MAX_ENCODED_BYTES: usize = 60 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(kwargs: &str) -> Template {
        Template::new(RequestsType::Partial, kwargs).unwrap()
    }

    #[test]
    fn own_fields_win_and_keep_their_exact_text() {
        let template = partial(r#"{"model":"m","temperature":0.10}"#);
        for (payload, want) in [
            ("{}", r#"{"model":"m","temperature":0.10}"#),
            (
                r#"{"model":"own"}"#,
                r#"{"temperature":0.10,"model":"own"}"#,
            ),
            (
                r#"{"n":12345678901234567890123,"a":1,"a":2}"#,
                r#"{"model":"m","temperature":0.10,"n":12345678901234567890123,"a":1,"a":2}"#,
            ),
        ] {
            assert_eq!(template.apply(payload.into()).unwrap(), want);
        }
    }

    #[test]
    fn what_is_not_an_object_is_refused_only_where_something_is_to_be_merged() {
        for payload in ["", "[1]", "\"text\"", "{", "\u{1}"] {
            assert!(
                partial(r#"{"a":1}"#).apply(payload.into()).is_err(),
                "{payload:?}"
            );
            assert_eq!(Template::default().apply(payload.into()).unwrap(), payload);
        }
    }

    #[test]
    fn a_template_survives_being_stored() {
        for template in [
            Template::default(),
            partial(r#"{"a":{"b":[1,2]},"c":null}"#),
            Template::new(RequestsType::Full, "").unwrap(),
        ] {
            assert_eq!(Template::decode(&template.encode()).unwrap(), template);
        }
        assert!(Template::decode(b"junk").is_err());
    }

    #[test]
    fn bad_kwargs_are_refused_when_they_are_given() {
        for bad in ["[]", "{", "7", r#"{"a":1,"a":2}"#] {
            assert!(Template::new(RequestsType::Partial, bad).is_err(), "{bad}");
        }
        assert!(Template::new(RequestsType::Full, r#"{"a":1}"#).is_err());
        assert!("ful".parse::<RequestsType>().is_err());
    }
}
