//! The handler that posts a batch to a URL as JSON Lines: for webhooks and bulk-insert endpoints.
//!
//! ```text
//! handle ── body: lines of the members ──▶ POST ──▶ 2xx ──▶ answer: verdicts, recorded in pages
//!                  └─ signature                      └─ else ──▶ status: whose fault it is
//! ```

mod answer;
mod body;
mod signature;
mod status;

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{
    Client, Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use self::{
    body::{Progress, Upload},
    signature::Secret,
};
use crate::{
    clock,
    error::{Error, Result},
    handler::{Batch, BatchHandler, HandlerError, Report},
    request::{TRACEPARENT, TRACESTATE},
};

/// Posts each batch to a URL as JSON Lines: for webhooks and bulk-insert endpoints.
///
/// ```text
/// POST /hook HTTP/1.1
/// Content-Type: application/x-ndjson
/// Idempotency-Key: 17a3c0de5f00a1b5000000000000c0de      the batch id, the same at every redelivery
/// Batchyard-Queue: emails
/// Batchyard-Attempt: 1
/// Batchyard-Signature: t=1700000000,v1=5257a869…         with a signing secret
///
/// {"id":"17a3c0de5f00a1b2","attempt":1,"payload":{"to":"a@example.org"}}
/// ```
/// | the answer | what it means |
/// |---|---|
/// | 2xx | every member is done |
/// | 2xx with `application/x-ndjson` or `application/jsonl` | a verdict a line, as in [`json_lines`](crate::format::json_lines), recorded as they come |
/// | 429, 503; no connection (refused, no such host, TLS) | outage: no attempt is counted; `Retry-After` is honoured |
/// | 408, 425, other 5xx; cut off; too slow | transient: the same batch again; `Retry-After` is honoured |
/// | 401, 403, 404, 405, 407, 3xx | outage too: a wrong token, path or place is no request's fault |
/// | 413 and any other 4xx | permanent: the batch is split until the guilty stand alone |
///
/// Verdicts that came before an answer was cut off, or that stand beside lines that can't be read,
/// are kept. A redelivery sends only the members without an outcome, under the same key.
///
/// A connection is made for each batch: one left open by the batch before may just be closing, and
/// then nobody could tell whether the endpoint has seen this one.
///
/// ```
/// use std::time::Duration;
/// use batchyard::HttpHandler;
/// let handler = HttpHandler::builder("https://example.org/hook")
///     .header("Authorization", "Bearer 0123")
///     .signing_secret("whsec_0123")
///     .idle_timeout(Duration::from_secs(60))
///     .build()?;
/// # fn is_handler(_: impl batchyard::BatchHandler) {}
/// # is_handler(handler);
/// # Ok::<(), batchyard::Error>(())
/// ```
#[derive(Clone)]
pub struct HttpHandler {
    client: Client,
    url: Url,
    headers: HeaderMap,
    secret: Option<Secret>,
    idle_timeout: Duration,
}

impl HttpHandler {
    /// A handler that posts to this `http` or `https` URL.
    pub fn builder(url: impl Into<String>) -> HttpHandlerBuilder {
        HttpHandlerBuilder {
            url: url.into(),
            headers: Vec::new(),
            secret: None,
            user_agent: concat!("batchyard/", env!("CARGO_PKG_VERSION")).into(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(5 * 60),
        }
    }

    /// The request for a batch, and how its upload comes along; `None` if it has nothing to send.
    async fn request(
        &self,
        batch: &Batch,
    ) -> Result<Option<(reqwest::RequestBuilder, Arc<Progress>)>, HandlerError> {
        let signing = self
            .secret
            .as_ref()
            .map(|secret| secret.sign(clock::now().as_millis() / 1000));
        let Some(upload) = Upload::of(batch, signing).await? else {
            return Ok(None);
        };
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(header::CONTENT_TYPE, "application/x-ndjson")
            .header(header::ACCEPT, "application/x-ndjson, */*;q=0.1")
            .header("Idempotency-Key", batch.id().to_string())
            .header("Batchyard-Queue", batch.queue().as_str())
            .header("Batchyard-Attempt", batch.attempt())
            .body(upload.body);
        if let Some(signature) = upload.signature {
            request = request.header("Batchyard-Signature", signature);
        }
        if let Some((traceparent, tracestate)) = batch.trace_context() {
            request = request.header(TRACEPARENT, traceparent);
            if !tracestate.is_empty() {
                request = request.header(TRACESTATE, tracestate);
            }
        }
        Ok(Some((request, upload.progress)))
    }

    /// Waits for `step` while anything moves; up to twice the idle time-out when nothing does.
    async fn patiently<T>(
        &self,
        progress: &Progress,
        step: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, HandlerError> {
        let mut step = pin!(step);
        let mut seen = progress.chunks();
        loop {
            match tokio::time::timeout(self.idle_timeout, &mut step).await {
                Ok(result) => return result.map_err(|error| self.failure(error, progress)),
                Err(_) if progress.chunks() != seen => seen = progress.chunks(),
                Err(_) => {
                    return Err(HandlerError::transient(format!(
                        "{} was silent for {:?}",
                        shown(&self.url),
                        self.idle_timeout
                    )));
                }
            }
        }
    }

    /// What it means that the exchange broke.
    fn failure(&self, error: reqwest::Error, progress: &Progress) -> HandlerError {
        if let Some(cause) = progress.take_failure() {
            return cause.into();
        }
        let url = shown(&self.url);
        if error.is_connect() {
            return HandlerError::outage(format!("can't connect to {url}"))
                .with_source(error.without_url());
        }
        HandlerError::transient(format!("the exchange with {url} was cut off"))
            .with_source(error.without_url())
    }
}

#[async_trait]
impl BatchHandler for HttpHandler {
    async fn handle(&self, batch: Batch) -> Result<Report, HandlerError> {
        let Some((request, progress)) = self.request(&batch).await? else {
            return Ok(Report::recorded());
        };
        let response = self.patiently(&progress, request.send()).await?;
        if !response.status().is_success() {
            return Err(status::refusal(&self.url, response, clock::now()).await);
        }
        answer::read(self, &batch, &progress, response).await
    }
}

impl fmt::Debug for HttpHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandler")
            .field("url", &shown(&self.url))
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("signed", &self.secret.is_some())
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}

/// Makes an [`HttpHandler`]; [`HttpHandler::builder`] begins.
#[derive(Clone)]
pub struct HttpHandlerBuilder {
    url: String,
    headers: Vec<(String, String)>,
    secret: Option<Secret>,
    user_agent: String,
    connect_timeout: Duration,
    idle_timeout: Duration,
}

impl HttpHandlerBuilder {
    /// Sends one more header. Its value is treated as a secret: no log and no error shows it.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Signs each request with this secret. Default: not signed.
    ///
    /// `Batchyard-Signature: t=<seconds since the Unix epoch>,v1=<hex>`, where `v1` is the
    /// HMAC-SHA256, keyed with the secret, of the digits of `t`, a full stop, and the body. A receiver
    /// computes the same over the bytes that it got, compares in constant time, and refuses an old
    /// `t`. A batch that does not fit in memory comfortably goes through a temporary file first,
    /// because the header precedes the body.
    #[must_use]
    pub fn signing_secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(Secret::new(secret.as_ref()));
        self
    }

    /// The `User-Agent`. Default: `batchyard/` and the version.
    #[must_use]
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// How long connecting may take, TLS included. Default: 10 seconds.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the endpoint may neither take nor send anything. Default: 5 minutes. The time of
    /// the whole exchange is limited by [`Policy::handler_timeout`](crate::Policy::handler_timeout).
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// The handler.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid): not an `http` or `https` URL, a header that can't be
    /// sent or that the handler sets itself, a time-out of zero, or no usable root certificates.
    pub fn build(self) -> Result<HttpHandler> {
        let url = parse(&self.url)?;
        if self.connect_timeout.is_zero() || self.idle_timeout.is_zero() {
            return Err(Error::invalid(
                "a time-out of an http handler must be above zero",
            ));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let (name, value) = checked(name, value)?;
            headers.append(name, value);
        }
        let client = Client::builder()
            .tls_backend_preconfigured(tls(url.scheme() == "https")?)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .connect_timeout(self.connect_timeout)
            .user_agent(self.user_agent)
            .build()
            .map_err(|error| Error::invalid("can't set up the http handler").with_source(error))?;
        Ok(HttpHandler {
            client,
            url,
            headers,
            secret: self.secret,
            idle_timeout: self.idle_timeout,
        })
    }
}

impl fmt::Debug for HttpHandlerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("HttpHandlerBuilder")
            .field("url", &parse(&self.url).map(|url| shown(&url)))
            .field("headers", &names)
            .field("signed", &self.secret.is_some())
            .field("user_agent", &self.user_agent)
            .field("connect_timeout", &self.connect_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .finish()
    }
}

fn parse(url: &str) -> Result<Url> {
    let url = Url::parse(url)
        .map_err(|error| Error::invalid(format!("not the URL of an endpoint: {error}")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(Error::invalid(format!(
            "an endpoint's URL begins with http: or https:, not {other}:"
        ))),
    }
}

/// A URL without what may be secret in it: credentials, query and fragment.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

fn checked(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let header: HeaderName = name
        .parse()
        .map_err(|_| Error::invalid(format!("{name:?} is not the name of a header")))?;
    if OUR_HEADERS.contains(&header.as_str()) || header.as_str().starts_with("batchyard-") {
        return Err(Error::invalid(format!(
            "header {name:?} is set by the http handler itself"
        )));
    }
    let mut value: HeaderValue = value
        .parse()
        .map_err(|_| Error::invalid(format!("the value of header {name:?} can't be sent")))?;
    value.set_sensitive(true);
    Ok((header, value))
}

/// TLS by rustls on ring, with the platform's root certificates if they are going to be needed.
fn tls(needed: bool) -> Result<rustls::ClientConfig> {
    use rustls_platform_verifier::BuilderVerifierExt;
    let unusable =
        |error| Error::invalid("no usable root certificates for https").with_source(error);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    Ok(if needed {
        config
            .with_platform_verifier()
            .map_err(unusable)?
            .with_no_client_auth()
    } else {
        let none = rustls::RootCertStore::empty();
        config.with_root_certificates(none).with_no_client_auth()
    })
}

const OUR_HEADERS: &[&str] = &[
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "transfer-encoding",
    "user-agent",
];
