//! Spans by the semantic conventions of OpenTelemetry for messaging, and the trace context that a request carries.
//!
//! ```text
//!   send ─▶ traceparent in the request's attributes ─▶ stored ─▶ a link of the batch's span `process` (feature `otel`)
//!   receive: a claim      process: a handler at work on a batch      settle: a batch is ended, deferred or given back
//! ```
//! A span is named as `tracing` wants it, by its operation, and `otel.name` has the name by the conventions, which has the queue in it.

use tracing::{Span, field::Empty, info_span};

#[cfg(feature = "otel")]
use crate::request::{Attributes, RequestId, TRACEPARENT, TRACESTATE};
use crate::{batch::Lease, request::QueueName};

/// A span of this operation on a queue, with these fields beside those that all have.
macro_rules! span {
    ($($parent:ident: $of:expr,)? $operation:literal, $kind:literal, $queue:expr, $($fields:tt)*) => {
        info_span!(
            $($parent: $of,)?
            $operation,
            otel.name = %format_args!(concat!($operation, " {}"), $queue),
            otel.kind = $kind,
            messaging.system = SYSTEM,
            messaging.operation.name = $operation,
            "messaging.operation.type" = $operation,
            messaging.destination.name = %$queue,
            $($fields)*
        )
    };
}

/// Requests are pushed.
pub(crate) fn send(queue: &QueueName, requests: usize) -> Span {
    span!(
        "send",
        "producer",
        queue,
        messaging.batch.message_count = requests
    )
}

/// A batch is claimed; how many requests it has is recorded with [`received`].
pub(crate) fn receive(queue: &QueueName) -> Span {
    span!(
        "receive",
        "client",
        queue,
        messaging.batch.message_count = Empty,
        batchyard.batch.id = Empty
    )
}

/// What a claim got.
pub(crate) fn received(span: &Span, lease: Option<&Lease>) {
    let requests = lease.map_or(0, |lease| lease.requests);
    span.record("messaging.batch.message_count", requests);
    if let Some(lease) = lease {
        span.record("batchyard.batch.id", tracing::field::display(lease.batch));
    }
}

/// A handler works on a batch.
pub(crate) fn process(queue: &QueueName, lease: &Lease) -> Span {
    span!(
        "process",
        "consumer",
        queue,
        messaging.batch.message_count = lease.requests,
        batchyard.batch.id = %lease.batch,
        batchyard.attempt = lease.attempt,
    )
}

/// A batch is given its end, or given back.
pub(crate) fn settle(queue: &QueueName, lease: &Lease, parent: Option<&Span>) -> Span {
    span!(
        parent: parent.and_then(Span::id),
        "settle",
        "client",
        queue,
        messaging.batch.message_count = lease.requests,
        batchyard.batch.id = %lease.batch,
    )
}

/// Links a span to the one in which a request was pushed; whether there is such a one.
#[cfg(feature = "otel")]
pub(crate) fn link(span: &Span, id: RequestId, attributes: &Attributes) -> bool {
    use opentelemetry::KeyValue;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let Some(context) = context_of(attributes) else {
        return false;
    };
    let id = KeyValue::new("messaging.message.id", id.to_string());
    span.add_link_with_attributes(context, vec![id]);
    true
}

/// The trace context of a span, as `traceparent` and `tracestate`; `None` if nobody traces.
#[cfg(feature = "otel")]
pub(crate) fn context(span: &Span) -> Option<(String, String)> {
    use opentelemetry::trace::TraceContextExt;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| {
        let (trace, span) = (context.trace_id(), context.span_id());
        let flags = context.trace_flags().to_u8();
        let parent = format!("00-{trace}-{span}-{flags:02x}");
        (parent, context.trace_state().header())
    })
}

/// Nobody traces.
#[cfg(not(feature = "otel"))]
pub(crate) fn context(_: &Span) -> Option<(String, String)> {
    None
}

#[cfg(feature = "otel")]
fn context_of(attributes: &Attributes) -> Option<opentelemetry::trace::SpanContext> {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

    let parts: Vec<&str> = attributes.get(TRACEPARENT)?.split('-').collect();
    // Later versions may have more parts; the first four stay.
    let [version, trace, span, flags, ..] = parts[..] else {
        return None;
    };
    let is_hex = |text: &str, length| {
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        text.len() == length && text.bytes().all(digit)
    };
    let is_whole = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    if !is_whole || version == "ff" || (version == "00" && parts.len() != 4) {
        return None;
    }
    let state = attributes
        .get(TRACESTATE)
        .and_then(|state| state.parse::<TraceState>().ok());
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        state.unwrap_or_default(),
    );
    context.is_valid().then_some(context)
}

const SYSTEM: &str = "batchyard";
