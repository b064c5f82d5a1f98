//! Administration of a queue on a Redis server.

use std::{collections::BTreeSet, num::NonZeroU32};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    RedisQueue,
    codec::{Record, damaged, decimal, flag, hex, parse_decimal, parse_hex, parse_time},
    script::SCRIPTS,
};
use crate::{
    batch::{BatchId, Fence},
    clock::Timestamp,
    error::Result,
    queue::{
        Administration, BatchEntry, BatchState, Cancelled, Entry, List, OutcomeCounts,
        ResultCursor, SettledPage,
    },
    request::{RequestId, State},
};

#[async_trait]
impl Administration for RedisQueue {
    async fn status(&self, now: Timestamp, id: RequestId) -> Result<Option<Entry>> {
        let args = [hex(id.as_u64())];
        let reply = self.calls.ask(&SCRIPTS.status, now, &args).await?;
        Ok(self.entries(&reply[1..])?.pop())
    }

    async fn list(&self, now: Timestamp, list: &List) -> Result<Vec<Entry>> {
        let letter = match list.state {
            State::Delayed => "l",
            State::Ready => "r",
            State::InFlight => "f",
            State::Done => "d",
            State::Dead => "x",
            State::Expired | State::Cancelled => return Ok(Vec::new()),
        };
        let args = [
            letter.into(),
            list.after.map_or(Bytes::new(), |id| hex(id.as_u64())),
            decimal(&list.max_requests),
        ];
        let reply = self.calls.ask(&SCRIPTS.list, now, &args).await?;
        let mut entries = self.entries(&reply[1..])?;
        if list.payloads && list.state != State::Done {
            let mut bytes = 0;
            let page = entries.iter().take_while(|entry| {
                let begins = bytes < MAX_LISTED_BYTES;
                bytes += entry.bytes;
                begins
            });
            entries.truncate(page.count());
            let ids: Vec<RequestId> = entries.iter().map(|entry| entry.id).collect();
            for (entry, payload) in entries.iter_mut().zip(self.payloads(&ids).await?) {
                entry.payload = payload;
            }
        }
        Ok(entries)
    }

    async fn results(
        &self,
        now: Timestamp,
        after: Option<ResultCursor>,
        max_requests: NonZeroU32,
    ) -> Result<SettledPage> {
        let args = [
            after.map_or(Bytes::new(), |cursor| hex(cursor.0)),
            decimal(&max_requests),
        ];
        let reply = self.calls.ask(&SCRIPTS.results, now, &args).await?;
        let [_, last, entries @ ..] = &reply[..] else {
            return Err(damaged("a page of results"));
        };
        Ok(SettledPage {
            entries: self.entries(entries)?,
            next: match &last[..] {
                b"" => None,
                last => Some(ResultCursor(parse_hex(last)?, 0)),
            },
        })
    }

    async fn cancel(&self, now: Timestamp, ids: &[RequestId]) -> Result<Vec<Cancelled>> {
        let args: Vec<Bytes> = ids.iter().map(|id| hex(id.as_u64())).collect();
        let reply = self.calls.change(&SCRIPTS.cancel, now, &args).await?;
        let outcomes = reply.get(1).filter(|letters| letters.len() == ids.len());
        let outcomes = outcomes.ok_or_else(|| damaged("a reply"))?;
        Ok(outcomes
            .iter()
            .map(|letter| match letter {
                b'n' => Cancelled::Now,
                b'i' => Cancelled::IfItComesBack,
                _ => Cancelled::No,
            })
            .collect())
    }

    async fn redrive(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        let bounds = [
            decimal(&self.options.max_requests),
            decimal(&self.options.max_bytes),
        ];
        let args: Vec<Bytes> = bounds.into_iter().chain(distinct(ids)).collect();
        let reply = self.calls.change(&SCRIPTS.redrive, now, &args).await?;
        self.check_room(&reply)?;
        parse_decimal(reply.get(1).ok_or_else(|| damaged("a reply"))?)
    }

    async fn purge(&self, now: Timestamp, ids: &[RequestId]) -> Result<u64> {
        let args: Vec<Bytes> = distinct(ids).collect();
        let reply = self.calls.change(&SCRIPTS.purge, now, &args).await?;
        parse_decimal(reply.get(1).ok_or_else(|| damaged("a reply"))?)
    }

    async fn batch(&self, now: Timestamp, id: BatchId) -> Result<Option<BatchEntry>> {
        let Some(formed) = self.own_batches(&[id]).await?.pop() else {
            return Ok(None);
        };
        let args = [formed, decimal(&1), flag(true)];
        let reply = self.calls.ask(&SCRIPTS.batches, now, &args).await?;
        Ok(self.batch_entries(now, &reply[1..], true)?.pop())
    }

    async fn batches(
        &self,
        now: Timestamp,
        after: Option<BatchId>,
        max_batches: NonZeroU32,
    ) -> Result<Vec<BatchEntry>> {
        let after = after.map_or(Bytes::new(), |id| hex(id.halves().0));
        let args = [after, decimal(&max_batches), flag(false)];
        let reply = self.calls.ask(&SCRIPTS.batches, now, &args).await?;
        self.batch_entries(now, &reply[1..], false)
    }

    async fn release(&self, now: Timestamp, ids: &[BatchId]) -> Result<Vec<BatchId>> {
        let args = self.own_batches(ids).await?;
        let reply = self.calls.change(&SCRIPTS.release, now, &args).await?;
        let salt = self.calls.salt();
        let released = reply[1..].iter();
        released
            .map(|batch| Ok(BatchId::new(parse_hex(batch)?, salt)))
            .collect()
    }
}

impl RedisQueue {
    /// Those of these batches that may be this queue's, each once, in order, as the scripts name them.
    async fn own_batches(&self, ids: &[BatchId]) -> Result<Vec<Bytes>> {
        if ids.iter().any(|id| id.halves().1 != self.calls.salt()) {
            // They may be of another handle, from after a restore that this one has not heard of.
            self.check_is_there().await?;
        }
        let salt = self.calls.salt();
        let ids: BTreeSet<BatchId> = ids.iter().copied().collect();
        let own = ids.into_iter().map(BatchId::halves);
        Ok(own
            .filter(|(_, queue)| *queue == salt)
            .map(|(formed, _)| hex(formed))
            .collect())
    }

    /// Batches from sixteen values each, as `batches.lua` describes them.
    fn batch_entries(
        &self,
        now: Timestamp,
        values: &[Bytes],
        notes: bool,
    ) -> Result<Vec<BatchEntry>> {
        let (batches, []) = values.as_chunks::<16>() else {
            return Err(damaged("a page of batches"));
        };
        let id = |formed: u64| BatchId::new(formed, self.calls.salt());
        let optional = |digits: &Bytes| (!digits.is_empty()).then(|| parse_hex(digits)).transpose();
        let entry = |batch: &[Bytes; 16]| -> Result<BatchEntry> {
            let fence = optional(&batch[2])?;
            let has_checkpoint = batch[12] == "1";
            Ok(BatchEntry {
                id: id(parse_hex(&batch[0])?),
                parent: optional(&batch[1])?.map(id),
                formed_at: parse_time(&batch[8])?,
                attempt: parse_decimal(&batch[4])?,
                attempts_before: parse_decimal(&batch[5])?,
                state: BatchState::new(now, fence.is_some(), parse_time(&batch[3])?),
                fence: fence.map(Fence),
                requests: parse_decimal(&batch[6])?,
                bytes: parse_decimal(&batch[7])?,
                outcomes: OutcomeCounts {
                    done: parse_decimal(&batch[9])?,
                    retry: parse_decimal(&batch[10])?,
                    reject: parse_decimal(&batch[11])?,
                },
                checkpoint_bytes: has_checkpoint
                    .then(|| parse_decimal(&batch[13]))
                    .transpose()?,
                checkpoint: (has_checkpoint && notes).then(|| batch[14].clone()),
                context: notes.then(|| batch[15].clone()),
            })
        };
        batches.iter().map(entry).collect()
    }

    /// Entries from five values each, as `entries.lua` describes them.
    fn entries(&self, values: &[Bytes]) -> Result<Vec<Entry>> {
        values
            .chunks_exact(5)
            .map(|values| {
                let record = Record::parse(values[2].clone())?;
                record.entry(
                    RequestId::from_u64(parse_hex(&values[0])?),
                    values[1].first().copied().unwrap_or_default(),
                    &values[3],
                    parse_decimal(&values[4])?,
                    self.calls.salt(),
                )
            })
            .collect()
    }
}

fn distinct(ids: &[RequestId]) -> impl Iterator<Item = Bytes> {
    let ids: BTreeSet<RequestId> = ids.iter().copied().collect();
    ids.into_iter().map(|id| hex(id.as_u64()))
}

/// A page of a list with payloads ends after about this many bytes of them.
const MAX_LISTED_BYTES: u64 = 4 << 20;
