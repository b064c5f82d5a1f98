//! What holds whatever comes in.

use std::collections::{BTreeMap, BTreeSet};

use batchyard::{
    Outcome, RequestId, RequestsType, Template,
    remote::{
        Added, Answer, BatchFile, Endpoint, Format, Line, LineReader, Profile, Reading, Reconciler,
        Verdict,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use crate::member;

/// Payloads: good ones, bad ones, and any bytes at all.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let id = select(vec!["a", "b", "0000000000000002", "not legal", "", "-_-"]);
    let model = select(vec![
        json!("m"),
        json!("n"),
        json!(7),
        json!(null),
        json!(""),
    ]);
    let object = (id, model, any::<bool>(), 0..4_u8).prop_map(|(id, model, stream, shape)| {
        let turns = json!([{"role": "user", "content": "hi\n"}]);
        let body = json!({"model": model, "messages": turns, "stream": stream, "max_tokens": 5});
        match shape {
            0 => json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}),
            1 => json!({"custom_id": id, "params": body}),
            2 => json!({"custom_id": id, "messages": turns}),
            _ => body,
        }
    });
    prop_oneof![
        object.prop_map(|value| serde_json::to_vec_pretty(&value).unwrap()),
        "[a-z\"{}\\[\\]:,0-9 \\n]{0,40}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..40),
    ]
}

fn format(profile: &str, requests: u64, bytes: u64) -> Format {
    let options = json!({"limits": {"requests": requests, "bytes": bytes}});
    let profile = Profile::named(profile).unwrap().with(&options).unwrap();
    let endpoint = profile.endpoints[0];
    Format { profile, endpoint }
}

/// The requests of a batch as it is sent.
fn sent(profile: &str, out: &[u8]) -> Vec<Value> {
    if profile == "anthropic" && !out.is_empty() {
        let whole: Value = serde_json::from_slice(out).unwrap();
        return whole["requests"].as_array().unwrap().clone();
    }
    let lines = out
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn each_member_is_written_or_told_and_comes_home(
        profile in select(Profile::NAMES.to_vec()),
        full in any::<bool>(),
        payloads in vec(payload(), 0..12),
        settled in vec(any::<bool>(), 12),
        limits in (1..20_u64, 200..3000_u64),
        order in any::<u64>(),
    ) {
        let requests_type = if full { RequestsType::Full } else { RequestsType::Partial };
        let kwargs = if full { "" } else { r#"{"model":"m","max_tokens":9}"# };
        let template = Template::new(requests_type, kwargs).unwrap();
        let members: Vec<_> = (1..).zip(&payloads).zip(&settled).map(|((number, payload), settled)| {
            let mut member = member(number, payload, (number % 3 == 0).then_some("of-attribute"));
            member.outcome = settled.then(Outcome::done);
            member
        }).collect();
        let write = |members: &[batchyard::Member]| {
            let mut batch = BatchFile::new(format(profile, limits.0, limits.1), template.clone());
            let mut out = Vec::new();
            let added: Vec<_> = members.iter().map(|member| batch.add(member, &mut out)).collect();
            (added, batch.finish(&mut out), out)
        };
        let (added, finished, out) = write(&members);
        let written: Vec<_> = members.iter().zip(&added)
            .filter(|(_, added)| **added == Added::Written)
            .map(|(member, _)| member.id)
            .collect();
        for (member, added) in members.iter().zip(&added) {
            prop_assert_eq!(member.outcome.is_some(), *added == Added::Settled);
        }
        // What is sent: within the limits, counted to the byte, each member once, in order, under an id of its own.
        let lines = sent(profile, &out);
        prop_assert_eq!(lines.len(), written.len());
        prop_assert_eq!(finished.load.requests, lines.len() as u64);
        prop_assert_eq!(finished.load.bytes, out.len() as u64);
        prop_assert!(finished.load.requests <= limits.0 && finished.load.bytes <= limits.1);
        let ids: Vec<&str> = lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        for (id, member) in ids.iter().zip(&written) {
            prop_assert_eq!(finished.ids.request(id), Some(*member));
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            prop_assert!((1..=64).contains(&id.len()) && id.chars().all(legal));
        }
        // The same again after a crash, with those told in between recorded.
        let mut after = members.clone();
        for (member, added) in after.iter_mut().zip(&added) {
            if let Added::Refused(refusal) = added {
                member.outcome = Some(refusal.clone().into());
            }
        }
        let (_, again, out_again) = write(&after);
        prop_assert_eq!(out_again, out);
        for member in &members {
            prop_assert_eq!(again.ids.of(member.id), finished.ids.of(member.id));
        }
        // Answers to some, some twice, in another order.
        let mut reconciler = Reconciler::new(finished.ids.clone());
        for (member, added) in members.iter().zip(&added) {
            if *added != Added::Written {
                reconciler.settled(member.id);
            }
        }
        let mut expected: BTreeSet<RequestId> = written.iter().copied().collect();
        let mut dice = order;
        let mut found = BTreeMap::new();
        for _ in 0..written.len() * 2 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(dice >> 33).unwrap() % written.len();
            let mut line = Vec::new();
            Verdict::write_line(ids[at], 200, b"{\"ok\":1}", &mut line);
            match reconciler.read(line.into()) {
                Reading::Answer(id, answer) => {
                    prop_assert!(expected.remove(&id));
                    let body = r#"{"ok":1}"#.to_owned();
                    prop_assert_eq!(&answer.verdict, &Verdict::Succeeded { body });
                    found.insert(id, answer);
                }
                Reading::Repeated(id) => prop_assert!(found.contains_key(&id)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(reconciler.missing(), expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn the_bounds_of_a_policy_leave_no_request_of_json_behind(
        texts in vec("[ -~]{0,200}", 1..40),
        kwargs in "[a-z]{1,100}",
        bytes in 1200..20_000_u64,
    ) {
        let kwargs = json!({"model": kwargs}).to_string();
        let template = Template::new(RequestsType::Partial, &kwargs).unwrap();
        let format = format("openai", 50_000, bytes);
        let (most, most_bytes) = format.profile.limits.of_a_batch(kwargs.len() as u64);
        let mut batch = BatchFile::new(format, template);
        let mut left = most_bytes;
        for (number, text) in (0..most).zip(&texts) {
            let payload = serde_json::to_vec(text).unwrap();
            let Some(rest) = left.checked_sub(payload.len() as u64) else { break };
            left = rest;
            let member = member(number, &payload, Some(&"x".repeat(64)));
            prop_assert_eq!(batch.add(&member, &mut Vec::new()), Added::Written);
        }
    }

    #[test]
    fn lines_of_anything_are_read_or_told(file in vec(any::<u8>(), 0..300), piece in 1..50_usize) {
        let mut lines = LineReader::new(100);
        let mut whole = Vec::new();
        for piece in file.chunks(piece) {
            lines.feed(piece);
            while let Some(line) = lines.next_line() {
                whole.push(line);
            }
        }
        whole.extend(std::iter::from_fn(|| lines.finish()));
        for line in whole {
            if let Line::Whole(line) | Line::Last(line) = line {
                prop_assert!(line.len() <= 100);
                let _ = Answer::read(line);
            }
        }
        for endpoint in Endpoint::ALL {
            let _ = Verdict::of_call(200, &file);
            let _ = batchyard::remote::Call::read(endpoint, &Template::default(), &file);
        }
    }
}
