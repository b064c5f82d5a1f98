//! A producer: single pushes and bulk ones, with and without keys, some of them made twice.

use std::sync::Arc;

use super::{Child, Over};
use crate::torture::{
    event::{Answer, Verb},
    name::Name,
};

/// Pushes until it is over; first what it is told to repeat.
pub(super) async fn produce(
    child: Arc<Child>,
    random: fastrand::Rng,
    number: u32,
    repeat: Vec<(u64, u32)>,
) {
    let producer = Producer {
        child,
        random,
        next: u64::from(number) << 24,
    };
    // How it ended, it has told.
    let _ = producer.run(repeat).await;
}

struct Producer {
    child: Arc<Child>,
    random: fastrand::Rng,
    next: u64,
}

impl Producer {
    async fn run(mut self, repeat: Vec<(u64, u32)>) -> Result<(), Over> {
        for (push, requests) in repeat {
            self.push(push, requests, true).await?;
        }
        loop {
            self.child.go_on()?;
            let push = u64::from(self.child.life) << 32 | self.next;
            self.next += 1;
            let requests = match self.random.u8(..100) {
                0..2 => self.random.u32(500..2_000),
                2..30 => self.random.u32(2..50),
                _ => 1,
            };
            let keyed = self.random.u8(..3) == 0;
            let was_pushed = self.push(push, requests, keyed).await?;
            if !was_pushed {
                self.child.pause().await;
            } else if keyed && self.random.u8(..6) == 0 {
                self.push(push, requests, keyed).await?;
            }
        }
    }

    /// Whether there was room.
    async fn push(&mut self, push: u64, requests: u32, keyed: bool) -> Result<bool, Over> {
        let verb = Verb::Push {
            push,
            requests,
            keyed,
        };
        let call = self.child.begin(verb);
        let new = (0..requests).map(|index| Name { push, index }.request(call.now, keyed));
        let pushed = self.child.queue.push(call.now, new.collect()).await;
        let ids = pushed.map(|pushed| {
            let ids: Vec<_> = pushed.iter().map(|new| (new.id, new.duplicate)).collect();
            (Answer::Pushed(ids.clone()), ids)
        });
        let ids = Child::end(&call, ids)?;
        self.child
            .note(ids.iter().flatten().map(|(id, _duplicate)| *id));
        Ok(ids.is_some())
    }
}
