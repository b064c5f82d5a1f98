//! Buffers to read into, used again: fresh memory of this size costs more than copying from the page cache into it.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use crate::sync::{Mutex, MutexGuard};

/// The buffers that nobody holds; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// As many bytes as `fill` puts into them; what it fills was any bytes before.
    pub(super) fn filled<E>(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        if !(LEAST..=LENGTH).contains(&bytes) {
            let mut buffer = vec![0; bytes];
            fill(&mut buffer)?;
            return Ok(buffer.into());
        }
        let free = self.lock().pop();
        let mut lent = Lent {
            buffer: free.unwrap_or_else(|| vec![0; LENGTH]),
            bytes,
            home: self.clone(),
        };
        fill(&mut lent.buffer[..bytes])?;
        Ok(Bytes::from_owner(lent))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes home when the last slice of it is dropped.
struct Lent {
    buffer: Vec<u8>,
    bytes: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.bytes]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut free = self.home.lock();
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// What the allocator asks the system for each time, and gives back.
const LEAST: usize = 128 << 10;
/// How long a buffer is: for a read of several stretches.
const LENGTH: usize = 512 << 10;
const KEPT: usize = 8;
