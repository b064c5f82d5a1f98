//! Requests that can be told apart, and whose every byte follows from their name.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    error::{Error, Result},
    request::{Attributes, NewRequest},
};

/// The number of a push, and which of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    /// Of the push.
    pub push: u64,
    /// Of the request in it.
    pub index: u32,
}

impl Name {
    /// How long it lives at the most, if no batch takes it. The first request of a push lives until it is settled, so
    /// that a push which was never answered is either there to be seen, or was never made.
    pub fn ttl(self) -> Option<Duration> {
        let mut random = self.random(0);
        let short = self.index > 0 && random.u8(..16) == 0;
        short.then(|| Duration::from_millis(random.u64(50..3_000)))
    }

    /// How long it is delayed.
    pub fn delay(self) -> Option<Duration> {
        let mut random = self.random(1);
        (random.u8(..16) == 0).then(|| Duration::from_millis(random.u64(1..2_000)))
    }

    /// Mostly small; now and then large enough to be stored in parts.
    pub fn payload(self) -> Bytes {
        let mut random = self.random(2);
        let most = match random.u16(..1_000) {
            0 => 300_000,
            1..800 => 500,
            _ => 4_000,
        };
        bytes(&mut random, most)
    }

    /// What is kept of it once it is done.
    pub fn result(self) -> Bytes {
        let mut random = self.random(3);
        bytes(&mut random, 200)
    }

    /// The request, as pushed at this time.
    pub fn request(self, now: Timestamp, keyed: bool) -> NewRequest {
        NewRequest {
            payload: self.payload(),
            attributes: Attributes::from([(NAME.to_owned(), self.to_string())]),
            not_before: self.delay().map(|delay| now.after(delay)),
            ttl: self.ttl(),
            idempotency_key: keyed.then(|| self.to_string()),
        }
    }

    /// The name that a request carries.
    pub fn of(attributes: &Attributes) -> Option<Self> {
        attributes.get(NAME)?.parse().ok()
    }

    fn random(self, what: u64) -> fastrand::Rng {
        let mut random = fastrand::Rng::with_seed(self.push);
        let seed = random.u64(..) ^ (u64::from(self.index) << 8 | what);
        fastrand::Rng::with_seed(seed)
    }
}

fn bytes(random: &mut fastrand::Rng, most: usize) -> Bytes {
    let mut bytes = vec![0; random.usize(..most)];
    random.fill(&mut bytes);
    bytes.into()
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.push, self.index)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('.').and_then(|(push, index)| {
            Some(Self {
                push: u64::from_str_radix(push, 16).ok()?,
                index: index.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| Error::invalid(format!("{text:?} is not the name of a request")))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

const NAME: &str = "name";
