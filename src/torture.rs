//! Proves on a disk of one's own that nothing answered is ever lost: `batchyard torture`.
//!
//! ```text
//!   parent: cycle ──starts──▶ child: workload ──▶ a store below the folder
//!     │  kills it, or its disk,        │
//!     │  at any moment                 │
//!     ▼                                │ a line for each call before it is made, and for each answer after
//!   ledger ◀───────────────────────────┘
//!     │  compared with what the next child finds, before that does anything
//!     ▼
//!   report: held, or BROKEN with the seed, what was expected and what was seen
//! ```
//! | module | holds |
//! |---|---|
//! | `event` | the lines between child and parent |
//! | `name` | requests whose every byte follows from their name |
//! | `workload` | the child's producers, holders, and who looks after the queue |
//! | `survey` | the child's reading of all that a store holds |
//! | `ledger` | what was promised, as a function of the lines alone; and the comparison |
//! | `cycle` | the parent: lives and deaths of its children |
//! | `forgetful` | a disk that loses what was not synced (feature `fuse`) |
//! | `figures` | memory, descriptors, disk use and opening times: whether they stay flat |
//! | `report` | the verdict |

mod backend;
pub mod cycle;
pub mod event;
pub mod figures;
#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod forgetful;
pub mod ledger;
pub mod name;
pub mod report;
mod survey;
mod workload;

pub use self::{
    backend::Backend,
    workload::{Life, live},
};
