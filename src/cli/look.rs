//! What verbs share that look at single requests.

use std::{num::NonZeroU32, sync::Arc};

use batchyard::{Administration, Entry, List, Queue, QueueName, RequestId, State};

use super::{
    entries,
    exit::{Exit, Failure},
    output::print,
};

/// The verbs that look into a queue.
///
/// # Errors
/// If this backend has none.
pub(crate) fn administration(queue: &dyn Queue) -> Result<&dyn Administration, Failure> {
    queue.admin().ok_or_else(|| {
        let text = "this store can't list its requests; use another backend";
        Failure::new(Exit::Usage, text)
    })
}

/// The next page of a list, and moves the list past it; `None` at the end.
///
/// # Errors
/// As [`Administration::list`].
pub(crate) async fn next_page(
    queue: &dyn Queue,
    list: &mut List,
) -> Result<Option<Vec<Entry>>, Failure> {
    let page = administration(queue)?.list(queue.now(), list).await?;
    let Some(end) = page.last() else {
        return Ok(None);
    };
    *list = list.after(end.id);
    Ok(Some(page))
}

/// The one queue that has this request, with what is known of it, if it fits.
///
/// # Errors
/// If several have it.
pub(crate) async fn find(
    queues: &[Arc<dyn Queue>],
    id: RequestId,
    fits: impl Fn(&Entry) -> bool,
) -> Result<Option<(&Arc<dyn Queue>, Entry)>, Failure> {
    let mut found: Option<(&Arc<dyn Queue>, Entry)> = None;
    for queue in queues {
        let entry = administration(&**queue)?.status(queue.now(), id).await?;
        let Some(entry) = entry.filter(&fits) else {
            continue;
        };
        if let Some((other, _)) = found {
            let (one, two) = (other.name(), queue.name());
            let text = format!("queues {one:?} and {two:?} both have {id}; say which with --queue");
            return Err(Failure::new(Exit::Usage, text));
        }
        found = Some((queue, entry));
    }
    Ok(found)
}

/// Prints all of a request, its payload included: for people, or as a line of JSON.
///
/// # Errors
/// As [`Administration::list`], or if it can't be printed.
pub(crate) async fn print_whole(
    queue: &dyn Queue,
    entry: Entry,
    json: bool,
) -> Result<(), Failure> {
    let entry = with_payload(queue, entry).await?;
    let mut text = Vec::new();
    if json {
        entries::write_line(&queue.name(), &entry, &mut text)?;
    } else {
        describe(&queue.name(), &entry, &mut text);
    }
    print(&text)?;
    Ok(())
}

/// The same with its payload, if that is still held and the request where it was.
///
/// # Errors
/// As [`Administration::list`].
async fn with_payload(queue: &dyn Queue, entry: Entry) -> Result<Entry, Failure> {
    let mut list = List::new(entry.state)
        .with_payloads()
        .max_requests(NonZeroU32::MIN);
    list.after = entry.id.as_u64().checked_sub(1).map(RequestId::from_u64);
    let mut page = administration(queue)?.list(queue.now(), &list).await?;
    let same = page.pop().filter(|same| same.id == entry.id);
    Ok(same.unwrap_or(entry))
}

/// Describes a request for people, a fact a line.
fn describe(queue: &QueueName, entry: &Entry, text: &mut Vec<u8>) {
    let batch = entry.batch.map(|batch| batch.to_string());
    let reason = entry.reason.map(|reason| reason.to_string());
    let since = match entry.state {
        State::Delayed => "due",
        State::Ready => "ready since",
        State::InFlight => "formed",
        State::Done => "done since",
        State::Dead => "dead since",
        _ => "since",
    };
    let facts = [
        ("id", entry.id.to_string()),
        ("queue", queue.to_string()),
        ("state", entry.state.to_string()),
        ("reason", reason.unwrap_or_default()),
        ("error", entry.error.clone().unwrap_or_default()),
        ("attempts", entry.attempts.to_string()),
        ("pushed", entry.pushed_at.to_string()),
        (since, entry.at.to_string()),
        ("batch", batch.unwrap_or_default()),
        ("bytes", entry.bytes.to_string()),
    ];
    let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
    for (name, value) in facts {
        text.extend_from_slice(
            format!("{name:<12}{}\n", entries::short(&value, usize::MAX)).as_bytes(),
        );
    }
    for (name, value) in &entry.attributes {
        let value = entries::short(&format!("{name}={value}"), usize::MAX);
        text.extend_from_slice(format!("{:<12}{value}\n", "attribute").as_bytes());
    }
    for (what, value) in [("result", &entry.result), ("payload", &entry.payload)] {
        if let Some(value) = value {
            let (name, value) = entries::payload(value);
            let name = name.replace("payload", what);
            text.extend_from_slice(format!("{name:<12}{value}\n").as_bytes());
        }
    }
}

/// An id, as it is printed.
pub(crate) fn id(text: &str) -> Result<RequestId, String> {
    let unknown = |_| "an id is 16 hexadecimal digits, as push and ls print them".to_owned();
    text.parse().map_err(unknown)
}
