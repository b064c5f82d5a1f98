//! Spans, as a collector of OpenTelemetry gets them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use batchyard::{
    Batch, CommandHandler, Dispatcher, HandlerError, MemoryQueue, NewRequest, Queue, QueueExt,
    QueueOptions, Report, RequestId,
};
use opentelemetry::trace::{SpanId, SpanKind, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::{Instrument, info_span};
use tracing_subscriber::{Registry, layer::SubscriberExt};

/// A collector that keeps what it gets.
struct Collector {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
}

impl Collector {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder()
            .with_simple_exporter(exporter.clone())
            .build();
        let tracer = provider.tracer("test");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let subscriber = Registry::default().with(layer);
        // Spans are made in whatever thread the runtime takes.
        tracing::subscriber::set_global_default(subscriber).unwrap();
        Self { exporter, provider }
    }

    /// The spans of a name.
    fn spans(&self, name: &str) -> Vec<SpanData> {
        self.provider.force_flush().unwrap();
        let spans = self.exporter.get_finished_spans().unwrap();
        spans.into_iter().filter(|span| span.name == name).collect()
    }
}

fn attributes(span: &SpanData) -> BTreeMap<String, String> {
    let attributes = span.attributes.iter();
    attributes
        .map(|pair| (pair.key.to_string(), pair.value.to_string()))
        .collect()
}

/// Dispatches all that is there through this handler, in one batch.
async fn drain(queue: &Arc<dyn Queue>, handler: impl batchyard::BatchHandler) {
    let dispatcher = Dispatcher::builder(Arc::clone(queue)).handler(handler);
    let dispatcher = dispatcher.queue_threshold(NonZeroU32::new(1000).unwrap());
    let running = dispatcher.build().unwrap().start();
    running.drain().await.unwrap();
    running.shut_down().await.unwrap();
}

async fn read_all(batch: Batch) -> Result<Report, HandlerError> {
    batch.load().await?;
    Ok(Report::done())
}

/// One test: the collector is that of the process.
#[tokio::test]
async fn the_context_of_a_push_is_a_link_of_its_batch() {
    let collector = Collector::new();
    let queue: Arc<dyn Queue> = Arc::new(MemoryQueue::new(QueueOptions::default()));

    // One from a span of this program, one from elsewhere, and some that are none.
    let pushing = info_span!("order");
    let pushed = async {
        let request = NewRequest::new("a").with_current_trace_context();
        queue.push_one(request).await.unwrap().id
    };
    let first = pushed.instrument(pushing).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = NewRequest::new("b").with_trace_context(parent, "vendor=1");
    let second = queue.push_one(request).await.unwrap().id;
    for wrong in [
        "",
        "00-0-0-0",
        "zz",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        let request = NewRequest::new("c").with_trace_context(wrong, "");
        queue.push_one(request).await.unwrap();
    }
    drain(&queue, read_all).await;

    let orders = collector.spans("order");
    let processed = collector.spans("process default");
    assert_eq!((orders.len(), processed.len()), (1, 1));
    let process = &processed[0];
    let links: BTreeMap<String, (SpanId, String)> = process
        .links
        .iter()
        .map(|link| {
            let id = link.attributes[0].value.to_string();
            let context = &link.span_context;
            (id, (context.span_id(), context.trace_state().header()))
        })
        .collect();
    let id = |id: RequestId| id.to_string();
    let ours = orders[0].span_context.span_id();
    let theirs = SpanId::from_hex("b7ad6b7169203331").unwrap();
    let wanted = BTreeMap::from([
        (id(first), (ours, String::new())),
        (id(second), (theirs, "vendor=1".to_owned())),
    ]);
    assert_eq!(links, wanted);

    for (name, operation, kind, messages) in [
        ("process default", "process", SpanKind::Consumer, "7"),
        ("settle default", "settle", SpanKind::Client, "7"),
        ("receive default", "receive", SpanKind::Client, "7"),
        ("send default", "send", SpanKind::Producer, "1"),
    ] {
        let spans = collector.spans(name);
        let with = |span: &&SpanData| attributes(span)["messaging.batch.message_count"] == messages;
        let span = spans
            .iter()
            .find(with)
            .unwrap_or_else(|| panic!("{name}: {spans:?}"));
        assert_eq!(span.span_kind, kind, "{name}");
        let attributes = attributes(span);
        for (attribute, value) in [
            ("messaging.system", "batchyard"),
            ("messaging.operation.name", operation),
            ("messaging.operation.type", operation),
            ("messaging.destination.name", "default"),
        ] {
            assert_eq!(attributes[attribute], value, "{name}");
        }
    }
    let settled = &collector.spans("settle default")[0];
    assert_eq!(settled.parent_span_id, process.span_context.span_id());

    // At most as many links as the SDKs keep.
    let request = || NewRequest::new("d").with_trace_context(parent, "");
    let many = (0..200).map(|_| request()).collect();
    queue.push(queue.now(), many).await.unwrap();
    drain(&queue, read_all).await;
    let processed = collector.spans("process default");
    assert_eq!(processed[1].links.len(), 128);
    assert_eq!(
        processed[1].links.dropped_count, 0,
        "none is dropped by the SDK"
    );

    // A command goes on in the trace of its batch.
    queue.push_one(request()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = format!("cat; echo $TRACEPARENT > {}", told.display());
    drain(&queue, CommandHandler::new("sh", ["-c", &script]).plain()).await;
    let context = collector.spans("process default")[2].span_context.clone();
    let wanted = format!("00-{}-{}-01\n", context.trace_id(), context.span_id());
    assert_eq!(std::fs::read_to_string(told).unwrap(), wanted);

    // As does an endpoint.
    #[cfg(feature = "http")]
    {
        queue.push_one(request()).await.unwrap();
        let headers = headers_of_a_post(&queue).await;
        let context = collector.spans("process default")[3].span_context.clone();
        let wanted = format!("00-{}-{}-01", context.trace_id(), context.span_id());
        let sent = headers
            .lines()
            .find_map(|line| line.strip_prefix("traceparent: "));
        assert_eq!(sent, Some(&*wanted), "{headers}");
    }
}

/// What an endpoint is sent above the body of a batch, which it says is done.
#[cfg(feature = "http")]
async fn headers_of_a_post(queue: &Arc<dyn Queue>) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let endpoint = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut sent = Vec::new();
        while !sent.ends_with(b"}\n") {
            assert_ne!(stream.read_buf(&mut sent).await.unwrap(), 0, "it ended");
        }
        let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        String::from_utf8(sent).unwrap()
    });
    let handler = batchyard::HttpHandler::builder(&url).build().unwrap();
    drain(queue, handler).await;
    let sent = endpoint.await.unwrap();
    sent.split_once("\r\n\r\n").unwrap().0.to_owned()
}
