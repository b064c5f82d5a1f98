//! Taking all queues of a moment into another store.

use super::{DumpFrom, Moment, PAGE_BYTES, PAGE_RECORDS, Record};
use crate::{
    error::{Error, Result},
    queue::Store,
    request::{QueueName, RequestId, State},
};

/// Takes everything that the queues of a moment held into a store that does not have them; answers how many records that
/// are. `tell` hears how many there are so far, again and again.
///
/// Each queue is there as a whole, or stays empty: if this fails, throw the store away.
///
/// # Errors
/// [`Corrupt`](crate::ErrorKind::Corrupt): something of it is damaged, which no store takes in.
/// [`Invalid`](crate::ErrorKind::Invalid): a queue of the same name is in use, or the backend takes in no dumps. And those of
/// [`Moment::dump`] and [`Restore::add`](super::Restore::add).
pub async fn copy(moment: &dyn Moment, into: &dyn Store, mut tell: impl FnMut(u64)) -> Result<u64> {
    let mut copied = 0;
    for name in moment.queues() {
        let queue = into.queue(&name).await?;
        let no_transfer = || {
            Error::invalid(format!(
                "queue {name:?} can't be taken in: its backend has no such thing"
            ))
        };
        let mut restore = queue.transfer().ok_or_else(no_transfer)?.restore().await?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut from = Some(DumpFrom::Start);
        while let Some(at) = from {
            let page = moment.dump(&name, at).await?;
            page.records
                .iter()
                .try_for_each(|record| check(&name, record, &page.damaged))?;
            copied += page.records.len() as u64;
            bytes += page.bytes();
            records.extend(page.records);
            if page.next.is_none() || records.len() >= PAGE_RECORDS || bytes >= PAGE_BYTES {
                restore.add(std::mem::take(&mut records)).await?;
                bytes = 0;
                tell(copied);
            }
            from = page.next;
        }
    }
    Ok(copied)
}

/// Fails if a part of it is damaged, and so not there.
fn check(queue: &QueueName, record: &Record, damaged: &[RequestId]) -> Result<()> {
    let Record::Request(request) = record else {
        return Ok(());
    };
    let entry = &request.entry;
    let (what, way_out) = match entry.state {
        State::Done if damaged.contains(&entry.id) => {
            ("result", "it is forgotten once its retention is over")
        }
        // A done request has a payload as long as its batch is open.
        State::Done if request.member.is_none() => return Ok(()),
        _ if entry.payload.is_some() => return Ok(()),
        State::Dead => ("payload", "purge it"),
        _ => (
            "payload",
            "it becomes a dead letter once it is read; purge it then",
        ),
    };
    Err(Error::corrupt(format!(
        "the {what} of request {} of queue {queue:?} is damaged: {way_out}; verify names all that is damaged, and export prints the rest",
        entry.id
    )))
}
