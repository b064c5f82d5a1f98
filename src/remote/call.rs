//! What one request asks a provider for, read from its payload.
//!
//! | `requests_type` | payload | becomes |
//! |---|---|---|
//! | `partial` | `What is a marshalling yard?`, or a JSON string | the prompt: one turn of a user, or the text, as the endpoint needs it |
//! | | a JSON list | the prompt as the endpoint has it: `messages`, `input` or `prompt` |
//! | | a JSON object | the body's own fields |
//! | `full` | `{"custom_id","method","url","body"}`; all but `body` may be missing | `body`, and the endpoint of `url` |
//! | | `{"custom_id","params"}` | Anthropic's: `params`, for `/v1/messages` |
//! | | any other object | the body itself |
//!
//! `request_kwargs` are merged under partial payloads: the request's own fields win. A `custom_id` beside the body's
//! own fields is taken out of them. Values keep their exact text. Text that begins like JSON (`{`, `[` or `"`) and is none is
//! refused, since it is rather a cut-off request than a prompt; so are numbers, `true`, `false` and `null`.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    endpoint::{Endpoint, Route},
    tokens::{Tokens, Weight},
};
use crate::{
    batch::Outcome,
    format::{
        fields::Fields,
        template::{RequestsType, Template},
    },
    request::{Attributes, DeadReason},
};

/// What one request asks for: an endpoint, a model, and the body that is sent there.
///
/// ```
/// use batchyard::{RequestsType, Template, remote::{Call, Endpoint}};
/// let template = Template::new(RequestsType::Partial, r#"{"model":"gpt-4o-mini"}"#)?;
/// let call = Call::read(Endpoint::ChatCompletions, &template, b"Hello")?;
/// assert_eq!(call.body(), r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}"#);
/// assert_eq!(call.route().model, "gpt-4o-mini");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    route: Route,
    body: Fields,
    inputs: u64,
    tokens: Tokens,
}

impl Call {
    /// Reads a payload as it was pushed, without `request_kwargs`; `endpoint` is that of requests which name none.
    ///
    /// # Errors
    /// Why no provider can be asked this: the payload is not of the type, or the prompt or the model is missing, or it
    /// wants a stream, or `method` and `url` are not those of a batch.
    pub fn read(endpoint: Endpoint, template: &Template, payload: &[u8]) -> Result<Self, Refusal> {
        let (endpoint, body) = match template.requests_type() {
            RequestsType::Full => full(endpoint, payload)?,
            RequestsType::Partial => (endpoint, template.merge(partial(endpoint, payload)?)),
        };
        if let Some(name) = body.named_twice() {
            return Err(Refusal::new(format!("the body names {name:?} twice")));
        }
        let model = model(&body)?;
        check_body(endpoint, &body)?;
        let weight = Weight::of(&body).map_err(|error| {
            Refusal::new(format!(
                "the body is no JSON that is read everywhere: {error}"
            ))
        })?;
        Ok(Self {
            route: Route { endpoint, model },
            inputs: inputs(endpoint, &body),
            tokens: weight.tokens(&body),
            body,
        })
    }

    /// Its endpoint and model.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The body as JSON on one line.
    pub fn body(&self) -> String {
        let mut body = Vec::new();
        self.body.write(&mut body);
        String::from_utf8(body).unwrap_or_default()
    }

    /// Its prompts: more than one for embeddings of a list.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    /// The tokens that it takes, estimated.
    pub fn tokens(&self) -> Tokens {
        self.tokens
    }

    pub(super) fn write_body(&self, out: &mut Vec<u8>) {
        self.body.write(out);
    }
}

/// Why one request can't be sent, for its dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// [`Undecodable`](DeadReason::Undecodable), or [`TooLarge`](DeadReason::TooLarge) for a limit.
    pub reason: DeadReason,
    /// What is wrong, in words; of the payload it has at most names.
    pub error: String,
}

impl Refusal {
    pub(super) fn new(error: impl Into<String>) -> Self {
        Self {
            reason: DeadReason::Undecodable,
            error: error.into(),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(Refusal { reason, error }: Refusal) -> Self {
        Self::Reject { reason, error }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Refusal {}

/// The `custom_id` that a request brings along: that of its payload, or else its attribute `custom_id`; `None` if there is
/// none that every provider takes, which is 1 to 64 letters, digits, `-` and `_` of ASCII.
///
/// The rule is Anthropic's (its API reference, 2026-11); OpenAI asks for a unique string.
pub fn own_custom_id(payload: &[u8], attributes: &Attributes) -> Option<String> {
    #[derive(Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        custom_id: Option<&'a RawValue>,
    }
    let is_object = payload.trim_ascii_start().starts_with(b"{");
    let read = || {
        serde_json::from_slice::<Payload<'_>>(payload)
            .ok()?
            .custom_id
    };
    let own = is_object.then(read).flatten().map(RawValue::get);
    let own = own.map(|json| serde_json::from_str(json).unwrap_or_else(|_| json.to_owned()));
    let is_legal = |id: &String| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=64).contains(&id.len()) && id.bytes().all(legal)
    };
    own.or_else(|| attributes.get("custom_id").cloned())
        .filter(is_legal)
}

/// The body of a whole request, and whom it is for.
fn full(endpoint: Endpoint, payload: &[u8]) -> Result<(Endpoint, Fields), Refusal> {
    let mut line: Fields = serde_json::from_slice(payload)
        .map_err(|error| Refusal::new(format!("a full request is a JSON object: {error}")))?;
    if let Some(name) = line.named_twice() {
        return Err(Refusal::new(format!("the request names {name:?} twice")));
    }
    let (body, params) = (line.take("body"), line.take("params"));
    match (body, params) {
        (Some(_), Some(_)) => Err(Refusal::new(
            "the request has both a body (OpenAI) and params (Anthropic)",
        )),
        (None, Some(params)) => Ok((Endpoint::Messages, object("params", &params)?)),
        (Some(body), None) => {
            let method: Option<String> = field(&line, "method", "a string")?;
            if method.as_ref().is_some_and(|method| method != "POST") {
                return Err(Refusal::new(
                    "the method of a batch is POST, and the request has another",
                ));
            }
            let url: Option<String> = field(&line, "url", "a string")?;
            let of_url = url.map(|url| url.parse::<Endpoint>());
            let endpoint = of_url.unwrap_or(Ok(endpoint));
            let endpoint = endpoint.map_err(|error| Refusal::new(format!("url: {error}")))?;
            Ok((endpoint, object("body", &body)?))
        }
        (None, None) => {
            line.take("custom_id");
            Ok((endpoint, line))
        }
    }
}

/// The fields that a part of a request stands for.
fn partial(endpoint: Endpoint, payload: &[u8]) -> Result<Fields, Refusal> {
    let json = match serde_json::from_slice::<Box<RawValue>>(payload) {
        Ok(json) => json,
        Err(error) => text(payload, &error)?,
    };
    let prompt = match json.get().as_bytes().first() {
        Some(b'{') => {
            let mut fields = object("the payload", &json)?;
            fields.take("custom_id");
            let is_whole = fields.field("body").or(fields.field("params")).is_some();
            if is_whole && fields.field(endpoint.prompt_field()).is_none() {
                return Err(Refusal::new(
                    "the payload is a full request, and requests_type is \"partial\"",
                ));
            }
            return Ok(fields);
        }
        Some(b'"') if endpoint.is_conversation() => {
            let turn = format!("[{{\"role\":\"user\",\"content\":{}}}]", json.get());
            raw(turn)?
        }
        Some(b'[' | b'"') => json,
        _ => {
            return Err(Refusal::new(
                "the payload is a number, true, false or null; a prompt is a text, a list or an object",
            ));
        }
    };
    Ok(Fields::default().with(endpoint.prompt_field(), prompt))
}

/// A payload that is no JSON as the prompt that it is.
fn text(payload: &[u8], error: &serde_json::Error) -> Result<Box<RawValue>, Refusal> {
    let begins_as_json = |byte: &u8| b"{[\"".contains(byte);
    if payload
        .trim_ascii_start()
        .first()
        .is_some_and(begins_as_json)
    {
        return Err(Refusal::new(format!(
            "the payload begins like JSON and is none: {error}; a prompt that begins so can be given as a JSON string"
        )));
    }
    match std::str::from_utf8(payload) {
        Ok(text) if text.trim().is_empty() => Err(Refusal::new("the payload is empty")),
        Ok(text) => raw(serde_json::Value::from(text).to_string()),
        Err(_) => Err(Refusal::new("the payload is not UTF-8")),
    }
}

fn raw(json: String) -> Result<Box<RawValue>, Refusal> {
    RawValue::from_string(json).map_err(|error| Refusal::new(error.to_string()))
}

fn object(what: &str, json: &RawValue) -> Result<Fields, Refusal> {
    serde_json::from_str(json.get())
        .map_err(|error| Refusal::new(format!("{what} is not a JSON object: {error}")))
}

/// A field of this type; `None` if it is missing or null.
fn field<'a, T: Deserialize<'a>>(
    fields: &'a Fields,
    name: &str,
    kind: &str,
) -> Result<Option<T>, Refusal> {
    let read = |json| serde_json::from_str::<Option<T>>(json);
    let value = fields.field(name).map(read).transpose();
    let value = value.map_err(|_| Refusal::new(format!("{name} is not {kind}")))?;
    Ok(value.flatten())
}

fn model(body: &Fields) -> Result<String, Refusal> {
    let model: Option<String> = field(body, "model", "a string")?;
    let model = model.filter(|model| !model.is_empty());
    model.ok_or_else(|| {
        Refusal::new(
            "model is missing: name it in the request, or for all of them in request_kwargs",
        )
    })
}

fn check_body(endpoint: Endpoint, body: &Fields) -> Result<(), Refusal> {
    if field(body, "stream", "true or false")? == Some(true) {
        return Err(Refusal::new("stream is true, and a batch has no streams"));
    }
    let name = endpoint.prompt_field();
    let prompt = body.field(name).filter(|json| *json != "null");
    // A stored prompt, or a conversation that goes on, needs no input.
    let stands_in = ["prompt", "previous_response_id", "conversation"];
    let is_there = |name: &&str| body.field(name).is_some_and(|json| json != "null");
    let Some(prompt) = prompt else {
        if endpoint == Endpoint::Responses && stands_in.iter().any(is_there) {
            return Ok(());
        }
        return Err(Refusal::new(format!(
            "{name} is missing: {endpoint} needs it"
        )));
    };
    let list = serde_json::from_str::<Vec<&RawValue>>(prompt).ok();
    if list.as_ref().is_some_and(Vec::is_empty) {
        return Err(Refusal::new(format!("{name} is an empty list")));
    }
    if endpoint.is_conversation() {
        let is_object = |turn: &&RawValue| turn.get().starts_with('{');
        if !list.is_some_and(|turns| turns.iter().all(is_object)) {
            return Err(Refusal::new(format!(
                "{name} is not a list of JSON objects"
            )));
        }
    } else if list.is_none() && !prompt.starts_with('"') {
        return Err(Refusal::new(format!("{name} is neither a text nor a list")));
    }
    if endpoint == Endpoint::Messages {
        let most: Option<u64> = field(body, "max_tokens", "a whole number")?;
        if most.is_none_or(|most| most == 0) {
            return Err(Refusal::new(format!(
                "max_tokens is missing: {endpoint} needs it"
            )));
        }
    }
    Ok(())
}

/// A list of texts, or of lists of tokens, is as many prompts; a list of tokens is one.
fn inputs(endpoint: Endpoint, body: &Fields) -> u64 {
    let prompt = match endpoint {
        Endpoint::Embeddings | Endpoint::Moderations => body.field("input"),
        _ => None,
    };
    let list: Option<Vec<&RawValue>> = prompt.and_then(|json| serde_json::from_str(json).ok());
    let is_prompt = |json: &&RawValue| json.get().starts_with(['"', '[', '{']);
    match list {
        Some(list) if list.iter().all(is_prompt) => list.len() as u64,
        _ => 1,
    }
}
