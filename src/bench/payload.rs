//! Payloads, made before any clock starts: half random bytes, half text.

use bytes::{Bytes, BytesMut};

/// Distinct payloads of one size, given out again and again.
#[derive(Clone, Debug)]
pub struct Payloads {
    all: Vec<Bytes>,
    copied: bool,
}

impl Payloads {
    /// Payloads of this many bytes, the same at every run: as many as fit `POOL_BYTES`, at least one.
    pub fn of(bytes: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(bytes as u64);
        let count = (POOL_BYTES / bytes.max(1)).clamp(1, MOST);
        let mut pool = BytesMut::zeroed(count * bytes);
        for payload in pool.chunks_mut(bytes.max(1)) {
            let (noise, text) = payload.split_at_mut(bytes / 2);
            random.fill(noise);
            let words = TEXT.iter().cycle().skip(random.usize(..TEXT.len()));
            text.iter_mut()
                .zip(words)
                .for_each(|(to, from)| *to = *from);
        }
        let pool = pool.freeze();
        let slice = |number| pool.slice(number * bytes..(number + 1) * bytes);
        Self {
            all: (0..count).map(slice).collect(),
            copied: false,
        }
    }

    /// Each given out as bytes of its own: where what a store keeps in memory is measured.
    #[must_use]
    pub fn copied(mut self) -> Self {
        self.copied = true;
        self
    }

    /// The payload of this number.
    pub fn one(&self, number: u64) -> Bytes {
        let count = self.all.len() as u64;
        let at = usize::try_from(number % count).unwrap_or_default();
        let payload = &self.all[at];
        if self.copied {
            Bytes::copy_from_slice(payload)
        } else {
            payload.clone()
        }
    }

    /// So many payloads, from this number on.
    pub fn many(&self, first: u64, count: u64) -> Vec<Bytes> {
        (first..first + count)
            .map(|number| self.one(number))
            .collect()
    }
}

const POOL_BYTES: usize = 4 << 20;
const MOST: usize = 4096;
const TEXT: &[u8] =
    b"The engine takes what is ready, in the order in which it came, and puts it on the \
next train; whoever waits longest decides when that leaves. ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_half_text_have_their_size_and_differ() {
        for bytes in [1, 200, 1024, 1 << 20, 8 << 20] {
            let payloads = Payloads::of(bytes);
            let first = payloads.one(0);
            assert_eq!(first.len(), bytes);
            assert!(first[bytes / 2..].iter().all(u8::is_ascii), "{bytes}");
            assert_eq!(first, Payloads::of(bytes).one(0), "the same at every run");
        }
        let payloads = Payloads::of(200);
        assert_ne!(payloads.one(0), payloads.one(1));
        assert_eq!(payloads.many(3, 2), [payloads.one(3), payloads.one(4)]);
    }
}
