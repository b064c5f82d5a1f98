//! Tokens: how many a request takes, estimated before it is sent, and how many it took, as the provider says.

use std::{fmt, ops::AddAssign};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::format::fields::Fields;

/// The tokens that a request takes, estimated from its body.
///
/// A token is taken for four bytes of the body's names and texts (OpenAI's own rule of thumb: four characters of English); a number is one
/// token, and a picture or file in the body (`data:`) 1,000. Measured on 2026-11-26 against the tokenizers of gpt-4o and gpt-4 (`o200k_base`,
/// `cl100k_base`), the estimate is this many times what they count:
///
/// | English prose | a question of 27 bytes | German | Chinese | Japanese | Russian | Rust | JSON as a text | digits as a text |
/// |---|---|---|---|---|---|---|---|---|
/// | 1.05 | 1.2 | 1.2, 1.0 | 1.15, 0.8 | 1.0, 0.7 | 1.9, 1.2 | 0.97 | 0.77 | 0.56 |
///
/// Other tokenizers differ, and so do pictures that are named by their address. What the provider counts is in [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt: what counts against a provider's limit of enqueued tokens.
    pub prompt: u64,
    /// The most that the answer may have, if the body bounds it: `max_tokens`, `max_completion_tokens` or
    /// `max_output_tokens`, times `n`. An embedding has none.
    pub output_most: Option<u64>,
}

/// How much there is in a body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weight {
    bytes: u64,
    numbers: u64,
}

impl Weight {
    /// Reads all of it, and so finds what a parser may choke on: an escape that is none, a number that is none, more
    /// than 127 levels.
    pub(super) fn of(body: &Fields) -> Result<Self, serde_json::Error> {
        let mut json = Vec::new();
        body.write(&mut json);
        let mut weight = Self::default();
        let mut reader = serde_json::Deserializer::from_slice(&json);
        weight.deserialize_in(&mut reader)?;
        Ok(weight)
    }

    pub(super) fn tokens(self, body: &Fields) -> Tokens {
        let number = |name: &str| serde_json::from_str::<u64>(body.field(name)?).ok();
        let most = ["max_completion_tokens", "max_output_tokens", "max_tokens"];
        let most = most.into_iter().find_map(number);
        let choices = number("n").unwrap_or(1);
        Tokens {
            prompt: self.bytes.div_ceil(BYTES_A_TOKEN) + self.numbers,
            output_most: most.map(|most| most.saturating_mul(choices)),
        }
    }

    fn deserialize_in<'de, D: Deserializer<'de>>(&mut self, reader: D) -> Result<(), D::Error> {
        Seed(self).deserialize(reader)
    }
}

/// Adds up a value without keeping it.
struct Seed<'a>(&'a mut Weight);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        let is_file = text.starts_with("data:") && text.len() as u64 > FILE_BYTES;
        self.0.bytes += if is_file {
            FILE_BYTES
        } else {
            text.len() as u64
        };
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.0.numbers += 1;
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.0.numbers += 1;
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        if !number.is_finite() {
            return Err(E::custom("number out of range"));
        }
        self.0.numbers += 1;
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Seed(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Seed(self.0))?.is_some() {
            map.next_value_seed(Seed(self.0))?;
        }
        Ok(())
    }
}

/// The tokens that a provider says it has counted, for a request or all of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Of the prompts, those that were read from a cache included.
    pub input_tokens: u64,
    /// Those of them that were read from a cache.
    pub cached_tokens: u64,
    /// Of the answers, the reasoning included.
    pub output_tokens: u64,
    /// Those of them that were reasoning.
    pub reasoning_tokens: u64,
}

impl Usage {
    /// The `usage` of an answer, a batch, or a message of Anthropic's; `None` if it is nothing of the kind.
    pub fn read(usage: &Value) -> Option<Self> {
        let count = |names: &[&str]| {
            let number = |name: &&str| usage.pointer(name).and_then(Value::as_u64);
            names.iter().find_map(number)
        };
        let input = count(&["/input_tokens", "/prompt_tokens"]);
        let output = count(&["/output_tokens", "/completion_tokens"]);
        let cached = count(&[
            "/input_tokens_details/cached_tokens",
            "/prompt_tokens_details/cached_tokens",
        ]);
        // Anthropic counts what went to or came from its cache apart.
        let read = count(&["/cache_read_input_tokens"]).unwrap_or(0);
        let made = count(&["/cache_creation_input_tokens"]).unwrap_or(0);
        let total = count(&["/total_tokens"]);
        let input = input.or(total.map(|total| total.saturating_sub(output.unwrap_or(0))));
        if input.is_none() && output.is_none() {
            return None;
        }
        let input = input.unwrap_or(0).saturating_add(read);
        Some(Self {
            input_tokens: input.saturating_add(made),
            cached_tokens: cached.unwrap_or(read),
            output_tokens: output.unwrap_or(0),
            reasoning_tokens: count(&[
                "/output_tokens_details/reasoning_tokens",
                "/completion_tokens_details/reasoning_tokens",
            ])
            .unwrap_or(0),
        })
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut self.input_tokens, other.input_tokens);
        add(&mut self.cached_tokens, other.cached_tokens);
        add(&mut self.output_tokens, other.output_tokens);
        add(&mut self.reasoning_tokens, other.reasoning_tokens);
    }
}

/// What a model's tokens cost in a batch, in US dollars a million. There is no table of them here: they change, and differ between contracts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A million tokens of prompts.
    pub input: f64,
    /// A million tokens of prompts that were read from a cache. Default: as the others.
    #[serde(default)]
    pub cached: Option<f64>,
    /// A million tokens of answers.
    pub output: f64,
}

impl Price {
    /// What was used costs this, in US dollars.
    pub fn of(&self, usage: Usage) -> f64 {
        let cached = usage.cached_tokens.min(usage.input_tokens);
        let cost = |tokens: u64, price: f64| millions(tokens) * price;
        cost(usage.input_tokens - cached, self.input)
            + cost(cached, self.cached.unwrap_or(self.input))
            + cost(usage.output_tokens, self.output)
    }

    /// What a request costs at most, by the estimate of its tokens; without a bound of its answer, the prompt alone.
    pub fn estimate(&self, tokens: Tokens) -> f64 {
        self.of(Usage {
            input_tokens: tokens.prompt,
            output_tokens: tokens.output_most.unwrap_or(0),
            ..Usage::default()
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a price is not exact to the 2^53rd token"
)]
fn millions(tokens: u64) -> f64 {
    tokens as f64 / 1e6
}

/// Of names and texts.
const BYTES_A_TOKEN: u64 = 4;
/// What a picture or a file counts for, however long it is.
const FILE_BYTES: u64 = 4000;
