//! What is written for batch APIs, and how what they answer is read.
//!
//! The files in `golden` say what comes of what; `BATCHYARD_BLESS=1` writes them anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod golden;
mod properties;
mod values;

use batchyard::{Attributes, Member, Position, RequestId, Timestamp};

/// A member with this number for its id.
fn member(number: u64, payload: &[u8], custom_id: Option<&str>) -> Member {
    let mut attributes = Attributes::new();
    if let Some(custom_id) = custom_id {
        attributes.insert("custom_id".into(), custom_id.into());
    }
    Member {
        id: RequestId::from_u64(number),
        position: Position::from_u64(number),
        attempt: 1,
        pushed_at: Timestamp::EPOCH,
        payload: payload.to_vec().into(),
        attributes,
        outcome: None,
    }
}
