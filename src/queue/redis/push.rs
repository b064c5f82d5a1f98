//! Pushing: small payloads travel with the script, large ones are sent ahead of it.

use super::{
    RedisQueue,
    codec::{damaged, head_of, parse_hex},
    connection::token,
    gather::Push,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    fault::point,
    queue::room::Room,
    request::{Bookmark, NewRequest, Pushed, RequestId, key_conflict},
};

impl RedisQueue {
    /// Pushes now, or as soon as there is room.
    pub(super) async fn push_all(
        &self,
        asked: Timestamp,
        requests: &[NewRequest],
        bookmark: Option<&Bookmark>,
    ) -> Result<Vec<Pushed>> {
        check(requests, bookmark)?;
        let mut room = Room::new(asked, requests, self.changes.subscribe());
        let mut stage = None;
        let pushed = loop {
            let pushed = self.push_or_stage(room.now(), requests, bookmark, &mut stage);
            match pushed.await {
                Err(failed) => match room.wait(failed, &self.options).await {
                    Ok(()) => {}
                    Err(failed) => break Err(failed),
                },
                pushed => break pushed,
            }
        };
        if let (Err(_), Some(stage)) = (&pushed, &stage) {
            self.unstage(stage, requests.len()).await;
        }
        pushed
    }

    /// One attempt; stages the payloads first if they are large, and again if they expired meanwhile.
    async fn push_or_stage(
        &self,
        now: Timestamp,
        requests: &[NewRequest],
        bookmark: Option<&Bookmark>,
        stage: &mut Option<String>,
    ) -> Result<Vec<Pushed>> {
        let inline = bytes_of(requests) <= MAX_INLINE_BYTES;
        for _ in 0..STAGINGS {
            if !inline && stage.is_none() {
                *stage = Some(self.stage(requests).await?);
            }
            let push = self.one_push(now, requests, bookmark, stage.as_deref())?;
            let reply = self.gather.push(push).await?;
            let number = |from: usize| reply.get(from..from + 16).ok_or_else(|| damaged("a reply"));
            match reply.first() {
                Some(b'o') if reply.len() == 1 + 17 * requests.len() => {
                    return reply[1..].chunks_exact(17).map(parse_pushed).collect();
                }
                Some(b'f') => {
                    let (held, bytes) = (parse_hex(number(1)?)?, parse_hex(number(17)?)?);
                    return Err(self.options.full(held, bytes));
                }
                Some(b'c') => {
                    let index = usize::try_from(parse_hex(number(1)?)?).unwrap_or(usize::MAX);
                    let request = requests.get(index);
                    let key = request.and_then(|request| request.idempotency_key.as_deref());
                    let id = RequestId::from_u64(parse_hex(number(17)?)?);
                    return Err(key_conflict(key.unwrap_or_default(), id));
                }
                Some(b'u') => *stage = None,
                _ => return Err(damaged("a reply")),
            }
        }
        Err(Error::unavailable(
            "the Redis server drops payloads while they are being pushed; its memory is too small",
        ))
    }

    fn one_push(
        &self,
        now: Timestamp,
        requests: &[NewRequest],
        bookmark: Option<&Bookmark>,
        stage: Option<&str>,
    ) -> Result<Push> {
        let forgotten = now.after(self.options.idempotency_window);
        let head = format!(
            "{:016x}{:016x}{:08x}{}{}",
            now.as_nanos(),
            forgotten.as_nanos(),
            requests.len(),
            u8::from(bookmark.is_some()),
            stage.unwrap_or_default()
        );
        let mut args = vec![head.into()];
        if let Some(bookmark) = bookmark {
            args.extend([bookmark.source.clone().into(), bookmark.value.clone()]);
        }
        for request in requests {
            args.push(head_of(now, request)?);
            if stage.is_none() {
                args.push(request.payload.clone());
            }
        }
        Ok(Push {
            now,
            args,
            requests: requests.len(),
        })
    }

    /// Sends payloads ahead, under keys that expire unless a push takes them; answers their name.
    async fn stage(&self, requests: &[NewRequest]) -> Result<String> {
        let stage = token();
        let mut index = 0;
        while index < requests.len() {
            let mut commands = redis::pipe();
            let mut bytes = 0;
            while index < requests.len() && bytes < MAX_INLINE_BYTES {
                let payload = &requests[index].payload;
                commands
                    .cmd("SET")
                    .arg(self.calls.keys.staged(&stage, index))
                    .arg(&payload[..])
                    .arg("EX")
                    .arg(STAGED_SECONDS);
                bytes += payload.len() as u64 + OVERHEAD_BYTES;
                index += 1;
            }
            self.calls.shared.link.pipeline(&commands).await?;
            point("redis.staged");
        }
        Ok(stage)
    }

    /// Takes staged payloads back; those that this misses expire.
    async fn unstage(&self, stage: &str, count: usize) {
        for from in (0..count).step_by(1000) {
            let mut command = redis::cmd("UNLINK");
            for index in from..count.min(from + 1000) {
                command.arg(self.calls.keys.staged(stage, index));
            }
            let taken: Result<u64> = self.calls.shared.link.query(&command).await;
            if let Err(error) = taken {
                tracing::debug!(%error, "staged payloads are left to expire");
                return;
            }
        }
    }
}

fn check(requests: &[NewRequest], bookmark: Option<&Bookmark>) -> Result<()> {
    bookmark.map_or(Ok(()), Bookmark::validate)?;
    if requests.len() > MAX_PUSHED {
        return Err(Error::invalid(format!(
            "a push of {} requests is over the {MAX_PUSHED} that a Redis server takes in one step; push them in parts",
            requests.len()
        )));
    }
    requests.iter().try_for_each(NewRequest::validate)
}

fn bytes_of(requests: &[NewRequest]) -> u64 {
    requests
        .iter()
        .map(|request| request.payload.len() as u64)
        .sum()
}

fn parse_pushed(reply: &[u8]) -> Result<Pushed> {
    Ok(Pushed {
        id: RequestId::from_u64(parse_hex(&reply[..16])?),
        duplicate: reply[16] == b'1',
    })
}

/// The most requests of one push: a command has at most 1,048,576 arguments.
const MAX_PUSHED: usize = 500_000;
/// Payloads up to this travel with the script; it is also the size of a step of staging.
pub(super) const MAX_INLINE_BYTES: u64 = 4 << 20;
/// What a staged payload costs beside its bytes.
pub(super) const OVERHEAD_BYTES: u64 = 100;
/// For how long staged payloads wait for their push.
const STAGED_SECONDS: u64 = 600;
/// How often payloads are staged before a push gives up.
const STAGINGS: u32 = 3;
