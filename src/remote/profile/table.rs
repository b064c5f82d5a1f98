//! The rows: a further provider is a further function here, and its name in [`Profile::NAMES`].
//!
//! What stands in a row differs from `any`, a server that is compatible with OpenAI's and of which nothing else is known.

use std::collections::BTreeMap;

use super::{Dialect, Paths, Profile, Recognition, Source};
use crate::remote::{Endpoint, Limits, LineShape};

pub(super) fn row(name: &str) -> Option<Profile> {
    Some(match name {
        "openai" => openai(),
        "azure" => azure(),
        "groq" => groq(),
        "together" => together(),
        "deepinfra" => deepinfra(),
        "mistral" => mistral(),
        "any" => any(),
        "anthropic" => anthropic(),
        _ => return None,
    })
}

fn any() -> Profile {
    Profile {
        name: "any".into(),
        dialect: Dialect::OpenAi,
        base_url: None,
        base_url_variable: "OPENAI_BASE_URL".into(),
        base_path: String::new(),
        key_variable: "OPENAI_API_KEY".into(),
        key_header: "authorization".into(),
        headers: BTreeMap::new(),
        paths: Paths {
            files: "/files".into(),
            upload: "/files".into(),
            batches: "/batches".into(),
        },
        upload_purpose: "batch".into(),
        uploads_are_checked: false,
        endpoint_prefix: "/v1".into(),
        endpoints: OPENAI_ENDPOINTS.to_vec(),
        line_shape: LineShape::Request,
        one_model: true,
        limits: Limits {
            requests: Some(50_000),
            bytes: Some(100 * MB),
            ..Limits::default()
        },
        windows: vec!["24h".into()],
        expires: false,
        max_age_seconds: 26 * HOUR,
        results_kept_seconds: None,
        recognized_by: Recognition::Metadata,
        states: BTreeMap::new(),
        deviations: texts(&[
            "states of other names, in upper case, or that come and go",
            "request_counts null, response.body as a string of JSON, the error file empty",
            "a batch that was cut off by a restart of the server stays in_progress for ever",
        ]),
        sources: sources(&[
            (
                "seen at compatible servers: AIBrix, OGX, aimock, llmock",
                "2026-11",
            ),
            ("limits: the smallest of the providers below", "2026-11"),
        ]),
    }
}

fn openai() -> Profile {
    Profile {
        name: "openai".into(),
        base_url: Some("https://api.openai.com/v1".into()),
        limits: Limits {
            requests: Some(50_000),
            bytes: Some(200 * MB),
            embedding_inputs: Some(50_000),
            batches_an_hour: Some(2000),
            uploads_a_minute: Some(1000),
            ..Limits::default()
        },
        expires: true,
        results_kept_seconds: Some(30 * DAY),
        deviations: texts(&[
            "enqueued tokens are limited by model and tier; too many of them show only later, as a failed batch with the code token_limit_exceeded",
            "cancelling takes up to 10 minutes",
        ]),
        sources: sources(&[
            (
                "OpenAI's batch guide, and its Python client 3.54.0",
                "2026-11",
            ),
            (
                "token_limit_exceeded, and what is limited by tier: general knowledge",
                "2026-11",
            ),
        ]),
        ..any()
    }
}

fn azure() -> Profile {
    Profile {
        name: "azure".into(),
        base_url_variable: "AZURE_OPENAI_ENDPOINT".into(),
        base_path: "/openai/v1".into(),
        key_variable: "AZURE_OPENAI_API_KEY".into(),
        key_header: "api-key".into(),
        uploads_are_checked: true,
        endpoint_prefix: String::new(),
        endpoints: vec![
            Endpoint::ChatCompletions,
            Endpoint::Responses,
            Endpoint::Embeddings,
            Endpoint::Completions,
        ],
        limits: Limits {
            requests: Some(100_000),
            bytes: Some(200 * MB),
            ..Limits::default()
        },
        max_age_seconds: 72 * HOUR,
        deviations: texts(&[
            "late batches are not expired: 24h is a target, and what is cancelled gives back what is done",
            "the model is the name of a deployment of the type GlobalBatch or DataZoneBatch",
            "states with a capital, times as RFC 3339, and request_counts with nulls in some versions",
            "500 batch files for a resource",
        ]),
        sources: sources(&[
            ("Azure OpenAI, how to use batch: limits", "2026-11"),
            (
                "Azure OpenAI, global batch REST: paths without a version, files that are to be processed, shapes",
                "2024-07",
            ),
            (
                "which endpoints, and the variables of its Python client: general knowledge",
                "2026-11",
            ),
        ]),
        ..any()
    }
}

fn groq() -> Profile {
    Profile {
        name: "groq".into(),
        base_url: Some("https://api.groq.com/openai/v1".into()),
        base_url_variable: "GROQ_BASE_URL".into(),
        base_path: String::new(),
        key_variable: "GROQ_API_KEY".into(),
        endpoints: vec![Endpoint::ChatCompletions],
        windows: texts(&["24h", "48h", "72h", "7d"]),
        expires: true,
        max_age_seconds: 26 * HOUR,
        deviations: texts(&[
            "any window from 24h to 7d; max_age_seconds goes with the first",
            "its own clients take GROQ_BASE_URL without the path /openai/v1: give it whole here",
        ]),
        sources: sources(&[
            (
                "Groq's Python client: 100 MB, windows, chat completions alone, metadata",
                "2026-11",
            ),
            (
                "50,000 lines, and that late batches expire: general knowledge",
                "2026-11",
            ),
        ]),
        ..any()
    }
}

fn together() -> Profile {
    Profile {
        name: "together".into(),
        base_url: Some("https://api.together.xyz/v1".into()),
        base_url_variable: "TOGETHER_BASE_URL".into(),
        key_variable: "TOGETHER_API_KEY".into(),
        paths: Paths {
            upload: "/files/upload".into(),
            ..any().paths
        },
        upload_purpose: "batch-api".into(),
        endpoints: vec![Endpoint::ChatCompletions],
        limits: Limits {
            requests: Some(50_000),
            bytes: Some(100 * MB),
            enqueued_tokens: Some(30_000_000_000),
            ..Limits::default()
        },
        expires: true,
        recognized_by: Recognition::InputFile,
        deviations: texts(&[
            "a batch is made without metadata, and answered as {job, warning}",
            "the list of batches is a JSON list, states are in upper case, times are RFC 3339, progress is 0 to 100",
            "24h is a best effort",
        ]),
        sources: sources(&[
            (
                "Together's documentation of batches: 50,000 requests, 100 MB, 30 billion tokens a model",
                "2026-11",
            ),
            (
                "its Python client: what a batch is made with, batch-api",
                "2026-11",
            ),
            ("where files are uploaded: general knowledge", "2026-11"),
        ]),
        ..any()
    }
}

fn deepinfra() -> Profile {
    Profile {
        name: "deepinfra".into(),
        base_url: Some("https://api.deepinfra.com/v1/openai".into()),
        base_url_variable: "DEEPINFRA_BASE_URL".into(),
        key_variable: "DEEPINFRA_API_KEY".into(),
        endpoints: vec![
            Endpoint::ChatCompletions,
            Endpoint::Completions,
            Endpoint::Embeddings,
        ],
        expires: true,
        deviations: texts(&["no limits are stated: those here are the smallest of others"]),
        sources: sources(&[
            (
                "DeepInfra on its batch API: compatible, embeddings, 24h",
                "2026-06-19",
            ),
            (
                "its API reference: metadata; it has chat completions and completions alone",
                "2026",
            ),
            (
                "the variables' names: ours, it has no client of its own",
                "2026-11",
            ),
        ]),
        ..any()
    }
}

fn mistral() -> Profile {
    Profile {
        name: "mistral".into(),
        dialect: Dialect::Mistral,
        base_url: Some("https://api.mistral.ai/v1".into()),
        base_url_variable: "MISTRAL_BASE_URL".into(),
        key_variable: "MISTRAL_API_KEY".into(),
        paths: Paths {
            batches: "/batch/jobs".into(),
            ..any().paths
        },
        endpoints: vec![
            Endpoint::ChatCompletions,
            Endpoint::Embeddings,
            Endpoint::Moderations,
        ],
        line_shape: LineShape::Body,
        limits: Limits {
            requests: Some(1_000_000),
            ..Limits::default()
        },
        windows: texts(&["24h", "48h", "72h", "167h"]),
        expires: true,
        deviations: texts(&[
            "model and endpoint are said of the whole batch, with timeout_hours for a window: less than 7 days",
            "1,000,000 requests may be pending in all batches of a workspace",
            "results do not expire",
        ]),
        sources: sources(&[
            (
                "Mistral's documentation of batches: lines, 1,000,000 requests",
                "2026-11",
            ),
            ("its OpenAPI client: fields of a batch, metadata", "2026-11"),
        ]),
        ..any()
    }
}

fn anthropic() -> Profile {
    Profile {
        name: "anthropic".into(),
        dialect: Dialect::Anthropic,
        base_url: Some("https://api.anthropic.com".into()),
        base_url_variable: "ANTHROPIC_BASE_URL".into(),
        key_variable: "ANTHROPIC_API_KEY".into(),
        key_header: "x-api-key".into(),
        headers: BTreeMap::from([("anthropic-version".into(), "2023-06-01".into())]),
        paths: Paths {
            files: "/v1/files".into(),
            upload: "/v1/files".into(),
            batches: "/v1/messages/batches".into(),
        },
        endpoints: vec![Endpoint::Messages],
        line_shape: LineShape::Params,
        one_model: false,
        limits: Limits {
            requests: Some(100_000),
            bytes: Some(256 * MB),
            ..Limits::default()
        },
        windows: Vec::new(),
        expires: true,
        results_kept_seconds: Some(29 * DAY),
        recognized_by: Recognition::Nothing,
        deviations: texts(&[
            "a batch takes neither metadata nor an idempotency key: a submission whose answer is lost can't be found again for sure",
            "what is asked for is validated after the batch was taken: a bad request comes back as errored",
            "the queue of pending requests is limited by tier",
            "counts stay in processing until all of it has ended",
        ]),
        sources: sources(&[
            (
                "Anthropic's API reference of Message Batches, and its Python client 2.12.0",
                "2026-11",
            ),
            ("limits by tier: general knowledge", "2026-11"),
        ]),
        ..any()
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn sources(sources: &[(&str, &str)]) -> Vec<Source> {
    let source = |(what, date): &(&str, &str)| Source {
        what: (*what).to_owned(),
        date: (*date).to_owned(),
    };
    sources.iter().map(source).collect()
}

const OPENAI_ENDPOINTS: [Endpoint; 5] = [
    Endpoint::ChatCompletions,
    Endpoint::Responses,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Moderations,
];
/// Read as the smaller unit, since nobody says which they mean.
const MB: u64 = 1_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
