//! HMAC-SHA256 over a time and a body, so that a receiver knows who sent it and when.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What requests are signed with. It has no `Debug`, so nothing can print it.
#[derive(Clone)]
pub(super) struct Secret(Hmac<Sha256>);

impl Secret {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    /// Begins a signature made at this time.
    pub(super) fn sign(&self, unix_seconds: u64) -> Signing {
        let mut mac = self.0.clone();
        mac.update(format!("{unix_seconds}.").as_bytes());
        Signing { unix_seconds, mac }
    }
}

/// A signature whose body is still passing by.
pub(super) struct Signing {
    unix_seconds: u64,
    mac: Hmac<Sha256>,
}

impl Signing {
    pub(super) fn update(&mut self, body: &[u8]) {
        self.mac.update(body);
    }

    /// The value of the header.
    pub(super) fn finish(self) -> String {
        let mut header = format!("t={},v1=", self.unix_seconds);
        for byte in self.mac.finalize().into_bytes() {
            write!(header, "{byte:02x}").expect("a string is always writable");
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_covers_the_time_a_full_stop_and_the_body() {
        // printf '7.{}\n' | openssl dgst -sha256 -hmac secret
        let mut signing = Secret::new(b"secret").sign(7);
        signing.update(b"{}");
        signing.update(b"\n");
        let want = "t=7,v1=e356d913a1193b4441a403dca815d9d34b7b6efb7ac7985f425e5303d8ee5fc9";
        assert_eq!(signing.finish(), want);
    }
}
