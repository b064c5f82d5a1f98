//! What a handler said that panicked.

use std::any::Any;

use crate::handler::HandlerError;

/// A panic as an error: it may work next time.
pub(super) fn panicked(error: tokio::task::JoinError) -> HandlerError {
    let said = match error.try_into_panic() {
        Ok(panic) => panic_text(&*panic),
        Err(_) => "it was aborted".to_owned(),
    };
    HandlerError::transient(format!("the handler panicked: {said}"))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no text)".to_owned())
}
