//! Payloads as they are written for batch APIs, and whatever those answer.

use serde_json::{Value, value::RawValue};

use crate::{
    batch::Member,
    clock::Timestamp,
    format::template::{RequestsType, Template},
    remote::{
        Added, Answer, BatchFile, CustomIds, Format, Line, LineReader, Profile, ProviderError,
        Reading, Reconciler, RemoteBatch, RemoteFile, RemotePage, Verdict,
    },
    request::{Attributes, Position, RequestId},
};

/// ```text
/// what it is · a flag · the rest
/// P  payloads, one a line          flag: which provider, and partial or full
/// A  an output or error file       flag: in pieces of how many bytes
/// B  a batch, a file, a list, an error
/// O  options of a profile          flag: which
/// ```
pub fn remote(data: &[u8]) {
    let [kind, flag, rest @ ..] = data else {
        return;
    };
    match kind {
        b'P' => payloads(*flag, rest),
        b'A' => answers(*flag, rest),
        b'B' => descriptions(rest),
        b'O' => options(*flag, rest),
        _ => {}
    }
}

fn profile(flag: u8) -> Profile {
    let names = Profile::NAMES;
    Profile::named(names[usize::from(flag) % names.len()]).expect("it has a row")
}

fn member(number: u64, payload: &[u8]) -> Member {
    Member {
        id: RequestId::from_u64(number),
        position: Position::from_u64(number),
        attempt: 1,
        pushed_at: Timestamp::EPOCH,
        payload: payload.to_vec().into(),
        attributes: Attributes::new(),
        outcome: None,
    }
}

/// What is written is JSON, as long as it is said to be, and comes home; the rest is told.
fn payloads(flag: u8, rest: &[u8]) {
    let profile = profile(flag);
    let format = Format {
        endpoint: profile.endpoints[usize::from(flag >> 4) % profile.endpoints.len()],
        profile,
    };
    let template = match flag & 8 {
        0 => Template::new(RequestsType::Partial, r#"{"model":"m","max_tokens":9}"#),
        _ => Template::new(RequestsType::Full, ""),
    };
    let template = template.expect("it is good");
    let is_document = format.profile.name == "anthropic";
    let mut batch = BatchFile::new(format, template);
    let mut out = Vec::new();
    let mut written = Vec::new();
    for (number, payload) in (1..).zip(rest.split(|byte| *byte == b'\n')) {
        let member = member(number, payload);
        let before = out.len();
        match batch.add(&member, &mut out) {
            Added::Written => written.push(member.id),
            Added::Refused(refusal) => assert!(!refusal.error.is_empty()),
            Added::Misfit(misfit) => assert!(!misfit.to_string().is_empty()),
            Added::Settled => panic!("it had no outcome"),
        }
        assert_eq!(out.len() > before, written.last() == Some(&member.id));
    }
    let finished = batch.finish(&mut out);
    assert_eq!(finished.load.bytes, out.len() as u64);
    assert_eq!(finished.load.requests, written.len() as u64);
    let lines: Vec<Value> = if is_document && !out.is_empty() {
        let whole: Value = serde_json::from_slice(&out).expect("it is a document");
        let list = whole["requests"].as_array();
        list.expect("it has requests").clone()
    } else {
        let lines = out
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let line = |line| serde_json::from_slice(line).expect("it is a line of JSON");
        lines.map(line).collect()
    };
    let ids = lines.iter().map(|line| line["custom_id"].as_str());
    let ids = ids.map(|id| finished.ids.request(id.expect("it has an id")));
    assert!(ids.eq(written.into_iter().map(Some)));
}

/// However it is cut, a file has the same lines; each is an answer or told, and an answer says the same when it is read again.
fn answers(flag: u8, file: &[u8]) {
    let lines = lines(file, usize::from(flag).max(1));
    assert_eq!(lines, self::lines(file, file.len().max(1)));
    let mut ids = CustomIds::new();
    for (number, id) in (1..).zip(["a", "b", "c"]) {
        let payload = format!("{{\"custom_id\":\"{id}\"}}");
        ids.add(&member(number, payload.as_bytes()));
    }
    ids.add(&member(4, b""));
    let mut reconciler = Reconciler::new(ids);
    let mut answered = 0;
    for line in lines {
        let (Line::Whole(line) | Line::Last(line)) = line else {
            continue;
        };
        match reconciler.read(line.clone()) {
            Reading::Answer(_, answer) => {
                answered += 1;
                let _ = answer.outcome();
                assert_eq!(Answer::read(answer.line.clone()).as_ref(), Ok(&*answer));
                if let Verdict::Succeeded { body } = &answer.verdict {
                    serde_json::from_str::<&RawValue>(body).expect("an answer is JSON");
                }
            }
            Reading::Bad(bad) => assert!(Answer::read(line) == Err(bad)),
            Reading::Repeated(_) | Reading::Stranger(_) => {}
        }
    }
    assert_eq!(reconciler.missing().len() + answered, 4);
    // As the answer to a call of its own: what is kept of it is read as the same.
    let status = if flag & 1 == 0 { 200 } else { 500 };
    let said = Verdict::of_call(status, file);
    let mut line = Vec::new();
    Verdict::write_line("a", status, file, &mut line);
    assert_eq!(
        line.iter().position(|byte| *byte == b'\n'),
        Some(line.len() - 1)
    );
    let kept = Answer::read(line.into()).expect("it was written");
    if let Verdict::Succeeded { .. } = said {
        assert!(matches!(
            kept.verdict,
            Verdict::Succeeded { .. } | Verdict::Failed(_)
        ));
    }
}

fn lines(file: &[u8], piece: usize) -> Vec<Line> {
    let mut reader = LineReader::new(200);
    let mut lines = Vec::new();
    for piece in file.chunks(piece) {
        reader.feed(piece);
        lines.extend(std::iter::from_fn(|| reader.next_line()));
    }
    lines.extend(std::iter::from_fn(|| reader.finish()));
    lines
}

fn descriptions(json: &[u8]) {
    for name in Profile::NAMES {
        let profile = Profile::named(name).expect("it has a row");
        if let Ok(batch) = RemoteBatch::read(json, &profile) {
            assert!(!batch.id.is_empty());
            assert!(!batch.may_be_submitted_again() || batch.state.is_end());
        }
        let _ = RemotePage::read(json, |value| RemoteBatch::of(value, &profile));
    }
    let _ = RemoteFile::read(json);
    let _ = RemotePage::read(json, RemoteFile::of);
    if let Ok(value) = serde_json::from_slice::<Value>(json)
        && let Some(error) = ProviderError::read(&value)
    {
        assert!(!error.to_string().is_empty());
        let _ = error.is_retryable();
    }
}

/// What is accepted says the same when it is written and read again.
fn options(flag: u8, json: &[u8]) {
    let profile = profile(flag);
    if let Ok(options) = serde_json::from_slice::<Value>(json)
        && let Ok(mine) = profile.with(&options)
    {
        let whole = serde_json::to_value(&mine).expect("a profile is JSON");
        assert_eq!(profile.with(&whole).expect("it was accepted"), mine);
    }
}
