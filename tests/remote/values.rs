//! Tables of what goes in and what comes out.

use batchyard::{
    Attributes, BatchId, NewRequest, RequestsType, Template,
    remote::{
        Call, CustomIds, Endpoint, Format, Price, Profile, ProviderError, RemoteBatch, Token,
        Tokens, Usage, Verdict, own_custom_id,
    },
};
use serde_json::json;

use crate::member;

#[test]
fn the_answer_to_a_call_is_a_verdict_and_is_kept_as_a_line() {
    let failed = |error: ProviderError| Verdict::Failed(error);
    let body = |text: &str| Verdict::Succeeded { body: text.into() };
    let says = |status, message: &str| ProviderError {
        status: Some(status),
        message: message.into(),
        ..ProviderError::default()
    };
    for (status, answer, want, is_retryable) in [
        (200, r#"{"a":1.10}"#, body(r#"{"a":1.10}"#), false),
        (201, "[1]", body("[1]"), false),
        (
            429,
            r#"{"error":{"message":"slow"}}"#,
            failed(says(429, "slow")),
            true,
        ),
        (
            500,
            "<html>oops</html>\n",
            failed(says(500, "<html>oops</html>")),
            true,
        ),
        (400, "", failed(says(400, "")), false),
        (302, "elsewhere", failed(says(302, "elsewhere")), true),
    ] {
        let verdict = Verdict::of_call(status, answer.as_bytes());
        assert_eq!(verdict, want, "{status} {answer}");
        if let Verdict::Failed(error) = &verdict {
            assert_eq!(error.is_retryable(), is_retryable, "{status} {answer}");
        }
        let mut line = Vec::new();
        Verdict::write_line("a", status, answer.as_bytes(), &mut line);
        let kept = batchyard::remote::Answer::read(line.into()).unwrap();
        assert_eq!(kept.custom_id.as_deref(), Some("a"));
        match (&kept.verdict, &verdict) {
            (Verdict::Failed(kept), Verdict::Failed(said)) => {
                assert_eq!(kept.status, said.status);
                assert_eq!(kept.message.trim(), said.message);
            }
            (kept, said) => assert_eq!(kept, said),
        }
    }
    let page = Verdict::of_call(200, b"<html>");
    assert!(matches!(page, Verdict::Failed(error) if error.is_retryable()));
}

#[test]
fn tokens_are_estimated_and_usage_is_priced() {
    let template = Template::new(RequestsType::Full, "").unwrap();
    let tokens = |endpoint, body: serde_json::Value| {
        let call = Call::read(endpoint, &template, body.to_string().as_bytes()).unwrap();
        call.tokens()
    };
    let picture = format!("data:image/png;base64,{}", "A".repeat(1 << 20));
    for (endpoint, body, prompt, output_most) in [
        // 14 bytes of names and texts, and a number.
        (
            Endpoint::Completions,
            json!({"model": "m", "prompt": "x", "n": 2}),
            4 + 1,
            None,
        ),
        (
            Endpoint::Completions,
            json!({"model": "m", "prompt": "x", "n": 2, "max_tokens": 50}),
            6 + 2,
            Some(100),
        ),
        (
            Endpoint::Responses,
            json!({"model": "m", "input": picture, "max_output_tokens": 9}),
            1007 + 1,
            Some(9),
        ),
        (
            Endpoint::Embeddings,
            json!({"model": "m", "input": [1, 2, 3, 4]}),
            3 + 4,
            None,
        ),
    ] {
        let got = tokens(endpoint, body.clone());
        assert_eq!(
            (got.prompt, got.output_most),
            (prompt, output_most),
            "{endpoint}"
        );
    }
    let price = Price {
        input: 2.0,
        cached: Some(1.0),
        output: 10.0,
    };
    let usage = Usage {
        input_tokens: 3_000_000,
        cached_tokens: 1_000_000,
        output_tokens: 500_000,
        ..Usage::default()
    };
    assert!((price.of(usage) - 10.0).abs() < 1e-9);
    let tokens = Tokens {
        prompt: 500_000,
        output_most: Some(100_000),
    };
    assert!((price.estimate(tokens) - 2.0).abs() < 1e-9);
    let mut sum = usage;
    sum += usage;
    assert_eq!(sum.output_tokens, 1_000_000);
}

#[test]
fn a_custom_id_is_the_users_where_every_provider_takes_it() {
    let attributes = Attributes::from([("custom_id".into(), "of-attribute".into())]);
    let longest = "x".repeat(64);
    for (payload, want) in [
        (json!({"custom_id": "a_B-9"}).to_string(), Some("a_B-9")),
        (
            json!({"custom_id": longest}).to_string(),
            Some(longest.as_str()),
        ),
        (
            json!({"custom_id": format!("{longest}x")}).to_string(),
            None,
        ),
        (json!({"custom_id": "a b"}).to_string(), None),
        (json!({"custom_id": ""}).to_string(), None),
        (json!({"custom_id": "é"}).to_string(), None),
        (json!({"custom_id": null}).to_string(), Some("of-attribute")),
        (json!({"custom_id": 12}).to_string(), Some("12")),
        (json!({"other": 12}).to_string(), Some("of-attribute")),
        ("a prompt".into(), Some("of-attribute")),
        ("{cut".into(), Some("of-attribute")),
    ] {
        let got = own_custom_id(payload.as_bytes(), &attributes);
        assert_eq!(got.as_deref(), want, "{payload}");
    }
    // The first keeps it; and nobody is sent under what may be another's request id.
    let mut ids = CustomIds::new();
    let ours = "0000000000000002";
    let given: Vec<_> = (1..)
        .zip([Some("a"), Some("a"), Some(ours), None])
        .map(|(number, own)| ids.add(&member(number, b"x", own)))
        .collect();
    assert_eq!(given, ["a", ours, "0000000000000003", "0000000000000004"]);
    for (number, id) in (1_u64..).zip(&given) {
        assert_eq!(ids.request(id).unwrap().as_u64(), number);
    }
    assert_eq!(
        ids.request("0000000000000001"),
        None,
        "it was sent as \"a\""
    );
    assert_eq!(ids.len(), 4);
}

#[test]
fn a_request_is_checked_before_it_is_pushed() {
    let profile = Profile::named("openai").unwrap();
    let profile = profile.with(&json!({"limits": {"bytes": 300}})).unwrap();
    let format = Format {
        profile,
        endpoint: Endpoint::ChatCompletions,
    };
    let template = Template::new(RequestsType::Partial, r#"{"model":"m"}"#).unwrap();
    let call = format.check(&template, &NewRequest::new("hi")).unwrap();
    assert_eq!(call.route().to_string(), "/v1/chat/completions of m");
    let refused = format
        .check(&template, &NewRequest::new("x".repeat(200)))
        .unwrap_err();
    assert_eq!(refused.reason.to_string(), "too_large");
    assert!(
        refused
            .to_string()
            .ends_with("bytes, and a batch of openai at most 300"),
        "{refused}"
    );
    // Whatever its id turns out to be, what was let through fits.
    let longest = (1..200)
        .rev()
        .find(|length| {
            format
                .check(&template, &NewRequest::new("x".repeat(*length)))
                .is_ok()
        })
        .unwrap();
    let mut batch = batchyard::remote::BatchFile::new(format, template);
    let member = member(1, "x".repeat(longest).as_bytes(), Some(&"i".repeat(64)));
    assert_eq!(
        batch.add(&member, &mut Vec::new()),
        batchyard::remote::Added::Written
    );
}

#[test]
fn a_batch_is_found_again_by_its_token_or_its_file() {
    let token = Token {
        batch: BatchId::from_u128(7),
        submission: 0,
    };
    let other = Token {
        submission: 1,
        ..token
    };
    let profile = Profile::named("any").unwrap();
    let batch = |metadata: serde_json::Value| {
        let json = json!({"id": "b", "input_file_id": "file-1", "metadata": metadata});
        RemoteBatch::of(&json, &profile).unwrap()
    };
    let carrying = batch(json!({ Token::KEY: token.to_string() }));
    assert!(carrying.is_of(token, None) && !carrying.is_of(other, Some("file-1")));
    for without in [json!(null), json!({}), json!({ Token::KEY: "junk" })] {
        let without = batch(without);
        assert!(without.is_of(token, Some("file-1")));
        assert!(!without.is_of(token, Some("file-2")) && !without.is_of(token, None));
    }
}
