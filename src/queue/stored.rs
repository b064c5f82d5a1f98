//! What the embedded backends store in the same way.

use crate::request::DeadReason;

/// Cuts an error text to what is kept of it.
pub(super) fn shortened(mut error: String) -> String {
    if error.len() > MAX_ERROR_BYTES {
        error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
        error.push('…');
    }
    error
}

/// The number of a reason on disk; never reused.
pub(super) fn reason_number(reason: DeadReason) -> u8 {
    match reason {
        DeadReason::Rejected => 0,
        DeadReason::Exhausted => 1,
        DeadReason::TooLarge => 2,
        DeadReason::Undecodable => 3,
        DeadReason::Damaged => 4,
    }
}

/// The reason that has this number.
pub(super) fn reason(number: u8) -> DeadReason {
    match number {
        1 => DeadReason::Exhausted,
        2 => DeadReason::TooLarge,
        3 => DeadReason::Undecodable,
        4 => DeadReason::Damaged,
        _ => DeadReason::Rejected,
    }
}

/// The longest error text that is kept.
const MAX_ERROR_BYTES: usize = 8 << 10;
