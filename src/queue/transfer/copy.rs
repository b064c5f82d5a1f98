//! Taking all queues of a moment into another store.

use super::{DumpFrom, Moment, PAGE_BYTES, PAGE_RECORDS, Record};
use crate::{
    error::{Error, Result},
    queue::Store,
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
            let damaged = page.records.iter().find_map(|record| match record {
                Record::Request(request) if page.damaged.contains(&request.entry.id) => {
                    Some(request.entry.id)
                }
                _ => None,
            });
            if let Some(id) = damaged {
                return Err(Error::corrupt(format!(
                    "the result of request {id} of queue {name:?} is damaged; export tells all that is, and prints the rest"
                )));
            }
            copied += page.records.len() as u64;
            bytes += page.records.iter().map(bytes_of).sum::<usize>();
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

/// The bytes of its payload and result.
fn bytes_of(record: &Record) -> usize {
    match record {
        Record::Request(request) => request.bytes(),
        _ => 0,
    }
}
