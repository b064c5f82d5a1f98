//! The guides: how it works, what is promised, and how to build on it.

#[doc = include_str!("_documentation/how_it_works.md")]
pub mod how_it_works {}

#[doc = include_str!("_documentation/durability.md")]
pub mod durability {}

#[doc = include_str!("_documentation/command_line.md")]
pub mod command_line {}

#[doc = include_str!("_documentation/operations.md")]
pub mod operations {}

#[doc = include_str!("_documentation/configuration.md")]
pub mod configuration {}

#[doc = include_str!("_documentation/remote_batches.md")]
pub mod remote_batches {}

#[doc = include_str!("_documentation/safety.md")]
pub mod safety {}

#[doc = include_str!("_documentation/metrics.md")]
pub mod metrics {}

#[doc = include_str!("_documentation/tracing.md")]
pub mod tracing {}

#[doc = include_str!("_documentation/upgrades.md")]
pub mod upgrades {}

#[doc = include_str!("_documentation/your_own_queue.md")]
pub mod your_own_queue {}

#[doc = include_str!("_documentation/coming_from_langbatch.md")]
pub mod coming_from_langbatch {}

#[doc = include_str!("_documentation/design.md")]
pub mod design {}
