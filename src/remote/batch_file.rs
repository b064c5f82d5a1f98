//! A batch as a provider is sent it: one line a request, or one document.
//!
//! ```text
//! Request   {"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{...}}    OpenAI and who is compatible
//! Body      {"custom_id":"a","body":{...}}                                                Mistral: the rest is said of all
//! Params    {"requests":[
//!           {"custom_id":"a","params":{...}},
//!           {"custom_id":"b","params":{...}}
//!           ]}                                                                            Anthropic: one JSON document
//! ```

use serde::{Deserialize, Serialize};

use super::{
    call::{Call, Refusal},
    custom_ids::CustomIds,
    endpoint::{Endpoint, Route},
    packing::{Load, Misfit, Packing},
    profile::Profile,
};
use crate::{
    batch::Member,
    format::{fields::write_string, template::Template},
    request::{DeadReason, NewRequest},
};

/// How a request stands in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LineShape {
    /// A line with `custom_id`, `method`, `url` and `body`.
    Request,
    /// A line with `custom_id` and `body`.
    Body,
    /// An element of the list `requests` of one document, with `custom_id` and `params`.
    Params,
}

impl LineShape {
    /// Appends a request; no line break.
    fn write(self, profile: &Profile, call: &Call, custom_id: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"custom_id\":");
        write_string(custom_id, out);
        match self {
            Self::Request => {
                let path = profile.endpoint_path(call.route().endpoint);
                out.extend_from_slice(b",\"method\":\"POST\",\"url\":");
                write_string(&path, out);
                out.extend_from_slice(b",\"body\":");
            }
            Self::Body => out.extend_from_slice(b",\"body\":"),
            Self::Params => out.extend_from_slice(b",\"params\":"),
        }
        call.write_body(out);
        out.push(b'}');
    }

    /// What stands before the first request, between two, and behind the last.
    fn around(self) -> [&'static [u8]; 3] {
        match self {
            Self::Request | Self::Body => [b"", b"\n", b"\n"],
            Self::Params => [b"{\"requests\":[\n", b",\n", b"\n]}\n"],
        }
    }
}

/// How the requests of a queue are to be read: by whom they are answered, and by which endpoint if they don't name one.
#[derive(Clone, Debug)]
pub struct Format {
    /// The provider.
    pub profile: Profile,
    /// The endpoint of requests that name none.
    pub endpoint: Endpoint,
}

impl Format {
    /// Reads a request as it was pushed, and checks it against the limits of the provider: what `push` is to call, so that nobody waits
    /// for a batch to learn that a request is none.
    ///
    /// # Errors
    /// Why it can't be sent; a limit is named.
    pub fn check(&self, template: &Template, request: &NewRequest) -> Result<Call, Refusal> {
        // The longest that there can be, since the member's is not known.
        let custom_id = "x".repeat(64);
        self.read(template, &request.payload, &custom_id, &mut Vec::new())
            .map(|(call, _)| call)
    }

    /// Reads a payload and appends its line.
    fn read(
        &self,
        template: &Template,
        payload: &[u8],
        custom_id: &str,
        line: &mut Vec<u8>,
    ) -> Result<(Call, Load), Refusal> {
        let call = Call::read(self.endpoint, template, payload)?;
        let endpoint = call.route().endpoint;
        if !self.profile.endpoints.contains(&endpoint) {
            let name = &self.profile.name;
            return Err(Refusal::new(format!(
                "{name} takes no batches of {endpoint}"
            )));
        }
        let shape = self.profile.line_shape;
        shape.write(&self.profile, &call, custom_id, line);
        let tokens = call.tokens();
        let load = Load {
            requests: 1,
            bytes: line.len() as u64,
            inputs: if endpoint == Endpoint::Embeddings {
                call.inputs()
            } else {
                0
            },
            prompt_tokens: tokens.prompt,
            output_tokens: tokens.output_most.unwrap_or(0),
            unbounded: u64::from(tokens.output_most.is_none() && !has_no_output(endpoint)),
        };
        let frame: usize = shape.around().map(<[u8]>::len).iter().sum();
        let alone = Load {
            bytes: load.bytes + frame as u64,
            ..load
        };
        if let Some((what, most)) = self.profile.limits.over(alone) {
            let is = match what {
                "bytes" => alone.bytes,
                "enqueued tokens" => alone.prompt_tokens,
                _ => alone.inputs,
            };
            return Err(Refusal {
                reason: DeadReason::TooLarge,
                error: format!(
                    "the request has {is} {what}, and a batch of {} at most {most}",
                    self.profile.name
                ),
            });
        }
        Ok((call, load))
    }
}

/// Writes the members of a batch as a provider is sent them, one after the other, into a buffer that its caller empties.
///
/// All members are to be added, in order, those that have an outcome as well: the same members make the same bytes, and the
/// same custom ids, after a crash.
#[derive(Debug)]
pub struct BatchFile {
    format: Format,
    template: Template,
    packing: Packing,
    ids: CustomIds,
    /// Scratch: the line of the member that is added.
    line: Vec<u8>,
}

impl BatchFile {
    /// An empty one. `template` is that of the batch, not the one that is in force now.
    pub fn new(format: Format, template: Template) -> Self {
        let limits = format.profile.limits.clone();
        Self {
            packing: Packing::new(limits, format.profile.one_model),
            format,
            template,
            ids: CustomIds::new(),
            line: Vec::new(),
        }
    }

    /// Adds a member and appends what it adds to the batch.
    pub fn add(&mut self, member: &Member, out: &mut Vec<u8>) -> Added {
        let custom_id = self.ids.add(member);
        if member.outcome.is_some() {
            return Added::Settled;
        }
        self.line.clear();
        let read = (self.format).read(&self.template, &member.payload, &custom_id, &mut self.line);
        let (call, mut load) = match read {
            Ok(read) => read,
            Err(refusal) => return Added::Refused(refusal),
        };
        let [before, between, behind] = self.format.profile.line_shape.around();
        let is_first = self.packing.load().requests == 0;
        let start = if is_first { before } else { between };
        // What closes the batch is counted with the first request, so that it always has room.
        let tail = if is_first { behind.len() } else { 0 };
        load.bytes += (start.len() + tail) as u64;
        match self.packing.add(call.route(), load) {
            Ok(()) => {
                out.extend_from_slice(start);
                out.extend_from_slice(&self.line);
                Added::Written
            }
            Err(misfit) => Added::Misfit(misfit),
        }
    }

    /// Appends what closes the batch. Nothing was written if no member could be: then there is nothing to send.
    pub fn finish(self, out: &mut Vec<u8>) -> Finished {
        if self.packing.load().requests > 0 {
            let [_, _, behind] = self.format.profile.line_shape.around();
            out.extend_from_slice(behind);
        }
        Finished {
            load: self.packing.load(),
            route: self.packing.route().cloned(),
            ids: self.ids,
        }
    }
}

/// What became of a member that was added to a [`BatchFile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is in the batch.
    Written,
    /// It has an outcome already, and is left out.
    Settled,
    /// It can't be sent to this provider at all: it is to be dead-lettered with this.
    Refused(Refusal),
    /// It does not fit into this batch: it is to go in another.
    Misfit(Misfit),
}

/// A batch that is written.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How much it is; all bytes of it are counted.
    pub load: Load,
    /// What its requests have in common; `None` if there are none.
    pub route: Option<Route>,
    /// Under which ids the members were sent.
    pub ids: CustomIds,
}

fn has_no_output(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Embeddings | Endpoint::Moderations)
}
