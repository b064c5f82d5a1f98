//! The http handler against real servers on the loopback interface, each scripted to one behaviour.
#![cfg(feature = "http")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    fmt::Write as _,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, Response, StatusCode},
};
use batchyard::{
    Batch, BatchHandler, BatchOptions, Claim, DeadReason, Dispatcher, FailureKind, HandlerError,
    HttpHandler, HttpHandlerBuilder, Member, MemoryQueue, NewRequest, Outcome, Page, Policy, Queue,
    QueueExt, QueueOptions, Report, RequestId, RequestsType, Template,
};
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A queue with these payloads in one claimed batch.
async fn claimed(
    payloads: impl IntoIterator<Item = Bytes>,
    context: Bytes,
) -> (Arc<MemoryQueue>, Batch) {
    let queue = Arc::new(MemoryQueue::new(QueueOptions::default()));
    let requests = payloads.into_iter().map(NewRequest::new).collect();
    queue.push(queue.now(), requests).await.unwrap();
    let claim = Claim {
        context,
        ..Claim::new()
    };
    let batch = claim_again(&queue, &claim).await;
    (queue, batch)
}

async fn claim_again(queue: &Arc<MemoryQueue>, claim: &Claim) -> Batch {
    let lease = queue
        .claim(queue.now(), claim)
        .await
        .unwrap()
        .expect("a batch is there");
    Batch::new(Arc::clone(queue) as _, lease, BatchOptions::default()).unwrap()
}

/// A batch of small JSON payloads.
async fn batch_of(count: u32) -> Batch {
    let payloads = (0..count).map(|n| Bytes::from(format!("{{\"n\":{n}}}")));
    claimed(payloads, Bytes::new()).await.1
}

async fn members(batch: &Batch) -> Vec<Member> {
    let mut members = Vec::new();
    let mut page = Page::first();
    loop {
        let mut read = batch.page(page).await.unwrap();
        let Some(last) = read.last() else {
            return members;
        };
        page = page.after(last.position);
        members.append(&mut read);
    }
}

/// What the endpoint was sent.
#[derive(Clone)]
struct Seen {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn ids(&self) -> Vec<RequestId> {
        let line = |line: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            value["id"].as_str().unwrap().parse().unwrap()
        };
        let lines = self.body.split(|&byte| byte == b'\n');
        lines.filter(|line| !line.is_empty()).map(line).collect()
    }
}

/// A server that takes each request whole and answers it with `answer`.
struct Endpoint {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Endpoint {
    async fn new(answer: impl Fn(&Seen) -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let url = serve(move |request: Request| {
            let (log, answer) = (Arc::clone(&log), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let seen = Seen {
                    path: head.uri.path().into(),
                    headers: head.headers,
                    body,
                };
                log.lock().unwrap().push(seen.clone());
                answer(&seen)
            }
        })
        .await;
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve<F, Fut>(handler: F) -> String
where
    F: Fn(Request) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
    url
}

/// A server that hands its one connection, the head of the request read, to `script`.
async fn raw<Fut>(script: impl FnOnce(TcpStream) -> Fut + Send + 'static) -> String
where
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut connection = listener.accept().await.unwrap().0;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.unwrap());
        }
        script(connection).await;
    });
    url
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    answer.body(body.into()).unwrap()
}

fn verdicts(body: impl Into<Body>) -> Response<Body> {
    answer(
        200,
        &[("content-type", "application/x-ndjson; charset=utf-8")],
        body,
    )
}

fn done_lines(ids: &[RequestId]) -> String {
    ids.iter().fold(String::new(), |mut lines, id| {
        writeln!(lines, "{{\"id\":\"{id}\",\"result\":\"ok\"}}").unwrap();
        lines
    })
}

async fn post(url: &str, batch: &Batch) -> Result<Report, HandlerError> {
    HttpHandler::builder(url)
        .build()
        .unwrap()
        .handle(batch.clone())
        .await
}

async fn failure(url: &str) -> HandlerError {
    post(url, &batch_of(2).await).await.unwrap_err()
}

#[track_caller]
fn is_error(error: &HandlerError, kind: FailureKind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[tokio::test]
async fn a_2xx_settles_the_batch_and_the_request_says_what_it_is() {
    for status in [200, 202, 204] {
        let endpoint = Endpoint::new(move |_| answer(status, &[], "")).await;
        let batch = batch_of(2).await;
        let handler = HttpHandler::builder(&endpoint.url)
            .header("Authorization", "Bearer 7")
            .header("X-Many", "1")
            .header("X-Many", "2")
            .build()
            .unwrap();
        assert_eq!(handler.handle(batch.clone()).await.unwrap(), Report::done());

        let seen = endpoint.seen().remove(0);
        assert_eq!(seen.path, "/hook");
        assert_eq!(seen.header("content-type"), "application/x-ndjson");
        assert_eq!(seen.header("idempotency-key"), batch.id().to_string());
        assert_eq!(seen.header("batchyard-queue"), "default");
        assert_eq!(seen.header("batchyard-attempt"), "1");
        assert_eq!(seen.header("authorization"), "Bearer 7");
        assert_eq!(seen.headers.get_all("x-many").iter().count(), 2);
        assert!(seen.header("user-agent").starts_with("batchyard/"));
        assert!(!seen.headers.contains_key("batchyard-signature"));
        let ids: Vec<_> = members(&batch)
            .await
            .iter()
            .map(|member| member.id)
            .collect();
        let want = format!(
            "{{\"id\":\"{}\",\"attempt\":1,\"payload\":{{\"n\":0}}}}\n\
             {{\"id\":\"{}\",\"attempt\":1,\"payload\":{{\"n\":1}}}}\n",
            ids[0], ids[1]
        );
        assert_eq!(seen.body, want);
    }
}

#[tokio::test]
async fn a_2xx_that_is_no_list_of_verdicts_or_an_empty_one_settles_all() {
    for (content_type, body) in [
        ("text/plain", "{\"id\":7}\n"),
        ("application/json", "{\"ok\":true}"),
        ("application/x-ndjson", ""),
        ("application/jsonl", "\n\n"),
    ] {
        let endpoint =
            Endpoint::new(move |_| answer(200, &[("content-type", content_type)], body)).await;
        let report = post(&endpoint.url, &batch_of(2).await).await.unwrap();
        assert_eq!(report, Report::done(), "{content_type}");
    }
}

#[tokio::test]
async fn a_verdict_a_line_becomes_an_outcome_and_a_missing_one_stays_missing() {
    for content_type in ["application/x-ndjson", "Application/JSONL; charset=utf-8"] {
        let endpoint = Endpoint::new(move |seen| {
            let ids = seen.ids();
            let body = format!(
                "{{\"id\":\"{}\",\"result\":{{\"n\":1.0}}}}\r\n\n{{\"id\":\"{}\",\"error\":\"gone\"}}\n\
                 {{\"id\":\"{}\",\"error\":\"busy\",\"retry\":true}}",
                ids[3], ids[1], ids[0]
            );
            answer(200, &[("content-type", content_type)], body)
        })
        .await;
        let batch = batch_of(4).await;
        assert_eq!(
            post(&endpoint.url, &batch).await.unwrap(),
            Report::recorded()
        );
        let outcomes: Vec<_> = members(&batch)
            .await
            .into_iter()
            .map(|m| m.outcome)
            .collect();
        let want = [
            Some(Outcome::retry("busy")),
            Some(Outcome::reject("gone")),
            None,
            Some(Outcome::result("{\"n\":1.0}")),
        ];
        assert_eq!(outcomes, want);
    }
}

#[tokio::test]
async fn bad_lines_are_counted_and_the_first_is_named_while_good_ones_are_kept() {
    let endpoint = Endpoint::new(|seen| {
        let good = done_lines(&seen.ids());
        let (first, second) = good.split_once('\n').unwrap();
        let unknown = done_lines(&[RequestId::from_u64(7)]);
        verdicts(format!("{first}\ngarbage\n{unknown}{second}"))
    })
    .await;
    let batch = batch_of(2).await;
    let error = post(&endpoint.url, &batch).await.unwrap_err();
    is_error(
        &error,
        FailureKind::Transient,
        &["line 2 (and 1 more)", "not an answer"],
    );
    assert!(
        members(&batch)
            .await
            .iter()
            .all(|member| member.outcome.is_some())
    );
}

#[tokio::test]
async fn an_id_of_no_member_is_named_with_its_line() {
    let endpoint = Endpoint::new(|_| verdicts(done_lines(&[RequestId::from_u64(7)]))).await;
    let error = failure(&endpoint.url).await;
    let words = ["line 1", "0000000000000007 is not a member"];
    is_error(&error, FailureKind::Transient, &words);
}

#[tokio::test]
async fn a_redelivery_sends_what_has_no_outcome_and_takes_an_answer_for_all() {
    let batch = batch_of(3).await;
    let ids: Vec<_> = members(&batch)
        .await
        .iter()
        .map(|member| member.id)
        .collect();
    batch
        .record(vec![(ids[1], Outcome::result("first"))])
        .await
        .unwrap();
    let all = ids.clone();
    let endpoint = Endpoint::new(move |_| verdicts(done_lines(&all))).await;
    assert_eq!(
        post(&endpoint.url, &batch).await.unwrap(),
        Report::recorded()
    );
    assert_eq!(endpoint.seen()[0].ids(), [ids[0], ids[2]]);
    let members = members(&batch).await;
    assert_eq!(
        members[1].outcome,
        Some(Outcome::result("first")),
        "the first outcome wins"
    );
    assert_eq!(members[2].outcome, Some(Outcome::result("\"ok\"")));
}

#[tokio::test]
async fn nothing_is_posted_when_no_member_is_left() {
    let endpoint = Endpoint::new(|_| answer(200, &[], "")).await;
    let template = Template::new(RequestsType::Partial, r#"{"a":1}"#).unwrap();
    let (_queue, batch) = claimed(["[1]".into()], template.encode()).await;
    assert_eq!(
        post(&endpoint.url, &batch).await.unwrap(),
        Report::recorded()
    );
    assert!(endpoint.seen().is_empty());
    let outcome = members(&batch).await.remove(0).outcome;
    assert!(matches!(
        outcome,
        Some(Outcome::Reject {
            reason: DeadReason::Undecodable,
            ..
        })
    ));
}

#[tokio::test]
async fn too_many_requests_and_unavailable_are_outages_that_say_for_how_long() {
    let past = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (status, retry_after, want) in [
        (429, Some("7"), Some(Duration::from_secs(7))),
        (503, Some("120"), Some(Duration::from_secs(120))),
        (503, Some(past), Some(Duration::ZERO)),
        (503, Some("whenever"), None),
        (429, None, None),
    ] {
        let endpoint = Endpoint::new(move |_| {
            let headers: Vec<_> = retry_after
                .map(|wait| ("retry-after", wait))
                .into_iter()
                .collect();
            answer(status, &headers, "slow\ndown")
        })
        .await;
        let error = failure(&endpoint.url).await;
        is_error(
            &error,
            FailureKind::Outage,
            &[&status.to_string(), "slow down"],
        );
        assert_eq!(error.wait(), want);
    }
}

#[tokio::test]
async fn refusals_are_told_apart_by_whose_fault_they_are() {
    for (status, kind) in [
        (400, FailureKind::Permanent),
        (410, FailureKind::Permanent),
        (401, FailureKind::Outage),
        (403, FailureKind::Outage),
        (404, FailureKind::Outage),
        (413, FailureKind::Permanent),
        (422, FailureKind::Permanent),
        (408, FailureKind::Transient),
        (425, FailureKind::Transient),
        (500, FailureKind::Transient),
        (502, FailureKind::Transient),
    ] {
        let endpoint = Endpoint::new(move |_| answer(status, &[], "because")).await;
        let error = failure(&endpoint.url).await;
        let reason = StatusCode::from_u16(status).unwrap().to_string();
        is_error(&error, kind, &[&reason, "/hook", "because"]);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_says_where_to() {
    for status in [301, 302, 307, 308] {
        let endpoint =
            Endpoint::new(move |_| answer(status, &[("location", "/new?token=s3cret")], "")).await;
        let error = failure(&endpoint.url).await;
        let host = endpoint.url.replace("/hook", "/new");
        is_error(&error, FailureKind::Outage, &[&host, "not followed"]);
        assert!(!error.to_string().contains("s3cret"), "{error}");
        assert_eq!(endpoint.seen().len(), 1);
    }
}

#[tokio::test]
async fn no_connection_is_an_outage() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = format!("http://{}/?token=s3cret", closed.local_addr().unwrap());
    drop(closed);
    let plain = Endpoint::new(|_| answer(200, &[], "")).await;
    let no_tls = plain.url.replace("http:", "https:");
    for url in [&refused, &no_tls, "http://batchyard.invalid/"] {
        let error = failure(url).await;
        is_error(&error, FailureKind::Outage, &["can't connect to"]);
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn cut_off_before_an_answer_is_transient() {
    let url = raw(|connection| async move { drop(connection) }).await;
    is_error(&failure(&url).await, FailureKind::Transient, &["cut off"]);
}

#[tokio::test]
async fn cut_off_in_the_middle_of_the_verdicts_keeps_those_that_came() {
    let batch = batch_of(3).await;
    let ids: Vec<_> = members(&batch)
        .await
        .iter()
        .map(|member| member.id)
        .collect();
    let whole = done_lines(&ids);
    let url = raw(move |mut connection| async move {
        let half = &whole[..whole.len() - 10];
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n",
            whole.len()
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(half.as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
    })
    .await;
    let error = post(&url, &batch).await.unwrap_err();
    is_error(&error, FailureKind::Transient, &["cut off"]);
    let members = members(&batch).await;
    let outcomes: Vec<_> = members
        .iter()
        .map(|member| member.outcome.is_some())
        .collect();
    assert_eq!(outcomes, [true, true, false]);
}

#[tokio::test]
async fn a_silent_endpoint_is_transient() {
    let url = serve(|_| std::future::pending()).await;
    let handler = HttpHandler::builder(url).idle_timeout(Duration::from_millis(20));
    let error = handler
        .build()
        .unwrap()
        .handle(batch_of(1).await)
        .await
        .unwrap_err();
    is_error(&error, FailureKind::Transient, &["silent", "20ms"]);
}

/// Checks a signature the way a receiver would: with a hash function and the secret alone.
fn signature_of(secret: &[u8], time: &str, body: &[u8]) -> String {
    assert!(secret.len() <= 64);
    let pad = |with: u8| {
        let mut key = [with; 64];
        key.iter_mut()
            .zip(secret)
            .for_each(|(pad, byte)| *pad ^= byte);
        Sha256::new().chain_update(key)
    };
    let signed = [time.as_bytes(), b".", body].concat();
    let inner = pad(0x36).chain_update(signed).finalize();
    let outer = pad(0x5c).chain_update(inner).finalize();
    outer.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[tokio::test]
async fn a_signature_covers_the_time_and_the_body_small_or_spooled() {
    let small = batch_of(2).await;
    let large = (0..3000).map(|n| Bytes::from(format!("{n:01000}")));
    let (_queue, large) = claimed(large, Bytes::new()).await;
    for batch in [small, large] {
        let endpoint = Endpoint::new(|_| answer(200, &[], "")).await;
        let handler = HttpHandler::builder(&endpoint.url)
            .signing_secret("whsec_7")
            .build()
            .unwrap();
        assert_eq!(handler.handle(batch.clone()).await.unwrap(), Report::done());
        let seen = endpoint.seen().remove(0);
        assert_eq!(seen.ids().len(), batch.len() as usize);
        let (time, signature) = seen
            .header("batchyard-signature")
            .split_once(",v1=")
            .unwrap();
        let time = time.strip_prefix("t=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 1_700_000_000);
        assert_eq!(signature, signature_of(b"whsec_7", time, &seen.body));
    }
}

#[tokio::test]
async fn a_large_batch_is_streamed_both_ways_and_every_verdict_recorded() {
    let payloads = (0..5000).map(|n| Bytes::from(format!("{n:01000}")));
    let (_queue, batch) = claimed(payloads, Bytes::new()).await;
    let endpoint = Endpoint::new(|seen| {
        // In pieces that end in the middle of lines.
        let lines = Bytes::from(done_lines(&seen.ids()));
        let pieces: Vec<_> = (0..lines.len())
            .step_by(1009)
            .map(|at| Ok::<_, std::io::Error>(lines.slice(at..lines.len().min(at + 1009))))
            .collect();
        verdicts(Body::from_stream(stream::iter(pieces)))
    })
    .await;
    assert_eq!(
        post(&endpoint.url, &batch).await.unwrap(),
        Report::recorded()
    );
    let members = members(&batch).await;
    let sent: Vec<_> = members.iter().map(|member| member.id).collect();
    assert_eq!(endpoint.seen()[0].ids(), sent);
    assert!(
        members
            .iter()
            .all(|member| member.outcome == Some(Outcome::result("\"ok\"")))
    );
}

/// Far more than the sockets between two ends hold.
async fn huge_batch() -> (Arc<MemoryQueue>, Batch) {
    claimed(
        (0..48).map(|_| Bytes::from(vec![b'x'; 1 << 20])),
        Bytes::new(),
    )
    .await
}

/// Answers once it has the head of the request, then reads on until the other end has heard, as a
/// careful server does.
async fn hasty(head: &'static str) -> String {
    raw(move |mut connection| async move {
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
        let _ = tokio::io::copy(&mut connection, &mut tokio::io::sink()).await;
    })
    .await
}

#[tokio::test]
async fn a_refusal_before_the_whole_batch_was_taken_is_heard() {
    let url =
        hasty("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let (_queue, batch) = huge_batch().await;
    let error = post(&url, &batch).await.unwrap_err();
    is_error(&error, FailureKind::Permanent, &["413"]);
}

#[tokio::test]
async fn a_success_before_the_whole_batch_was_taken_is_not_believed() {
    let url = hasty("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    let (_queue, batch) = huge_batch().await;
    let error = post(&url, &batch).await.unwrap_err();
    is_error(
        &error,
        FailureKind::Transient,
        &["before it had taken the whole batch"],
    );
}

#[tokio::test]
async fn a_lease_lost_during_the_upload_is_what_the_handler_fails_with() {
    let (queue, batch) = huge_batch().await;
    let thief = Arc::clone(&queue);
    let url = serve(move |request: Request| {
        let thief = Arc::clone(&thief);
        async move {
            let mut body = request.into_body().into_data_stream();
            body.next().await;
            let later = thief.now().after(Duration::from_secs(3600));
            thief
                .claim(later, &Claim::new())
                .await
                .unwrap()
                .expect("the batch is an orphan");
            while let Some(Ok(_)) = body.next().await {}
            answer(200, &[], "")
        }
    })
    .await;
    let error = post(&url, &batch).await.unwrap_err();
    let cause = batch.page(Page::first()).await.unwrap_err();
    is_error(&error, FailureKind::Transient, &[&cause.to_string()]);
}

#[tokio::test]
async fn a_dispatcher_sits_out_an_outage_and_isolates_what_the_endpoint_refuses() {
    let calls = Arc::new(AtomicU32::new(0));
    let endpoint = Endpoint::new(move |seen| {
        let poisoned = seen.body.windows(7).any(|window| window == b"{\"n\":5}");
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 => answer(503, &[("retry-after", "0")], "starting"),
            _ if poisoned => answer(422, &[], "5 is right out"),
            _ => answer(200, &[], ""),
        }
    })
    .await;
    let queue = Arc::new(MemoryQueue::new(QueueOptions::default()));
    let requests = (0..8).map(|n| NewRequest::new(format!("{{\"n\":{n}}}")));
    let pushed = queue.push(queue.now(), requests.collect()).await.unwrap();
    let soon = Duration::from_millis(1);
    let dispatcher = Dispatcher::builder(queue.clone())
        .policy(Policy {
            initial_backoff: soon,
            max_backoff: soon,
            ..Policy::default()
        })
        .handler(HttpHandler::builder(&endpoint.url).build().unwrap())
        .build()
        .unwrap()
        .start();
    dispatcher.drain().await.unwrap();
    dispatcher.shut_down().await.unwrap();

    let stats = queue.stats(queue.now()).await.unwrap();
    assert_eq!((stats.done, stats.dead), (7, 1), "{stats:?}");
    let dead = queue.wait(pushed[5].id).await.unwrap();
    assert_eq!(dead.reason, Some(DeadReason::Rejected));
    assert!(dead.error.unwrap().contains("5 is right out"));
    let seen = endpoint.seen();
    for header in ["idempotency-key", "batchyard-attempt"] {
        assert_eq!(
            seen[0].header(header),
            seen[1].header(header),
            "an outage burns no attempt"
        );
    }
}

#[tokio::test]
async fn what_can_not_work_is_refused_when_the_handler_is_built() {
    let ok = || HttpHandler::builder("http://localhost/");
    let bad: [(HttpHandlerBuilder, &str); 9] = [
        (HttpHandler::builder("localhost:80"), "http: or https:"),
        (HttpHandler::builder("/hook"), "not the URL"),
        (HttpHandler::builder("ftp://localhost/"), "not ftp:"),
        (ok().header("a b", "1"), "not the name of a header"),
        (ok().header("a", "1\n2"), "can't be sent"),
        (
            ok().header("Idempotency-Key", "1"),
            "set by the http handler",
        ),
        (
            ok().header("Batchyard-Queue", "1"),
            "set by the http handler",
        ),
        (ok().idle_timeout(Duration::ZERO), "above zero"),
        (ok().connect_timeout(Duration::ZERO), "above zero"),
    ];
    for (builder, why) in bad {
        let error = builder.clone().build().unwrap_err();
        assert_eq!(error.kind(), batchyard::ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{builder:?}: {error}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let builder = HttpHandler::builder("http://user:s3cret@localhost/hook?key=s3cret#s3cret")
        .header("Authorization", "s3cret")
        .signing_secret("s3cret");
    for text in [
        format!("{builder:?}"),
        format!("{:?}", builder.build().unwrap()),
    ] {
        assert!(!text.contains("s3cret"), "{text}");
        assert!(
            text.contains("http://localhost/hook") && text.contains("uthorization"),
            "{text}"
        );
    }
}
