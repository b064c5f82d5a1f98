//! Metrics: what is on the page, what the guide, the dashboard and the alerts say of it, and clients of every kind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

mod contrib;
mod exposition;
mod life;
mod program;
