//! Requests to remote batch APIs: how they are written, sent, and how their answers are read; pure, and without a feature.
//!
//! ```text
//!              Format::check                  BatchFile::add                LineReader · Reconciler::read
//!   payload ─────────────────▶ Call   members ─────────────▶ JSON Lines   output, errors ─────────────▶ an answer a member,
//!              Call::route ──▶ Route, a queue    CustomIds       │             │                            and who is missing
//!                                                  Profile · Limits · Submission · RemoteBatch
//! ```
//! - [`Call`] is what one request asks for, read by `requests_type` and `request_kwargs`; its [`Route`] says which queue it belongs to.
//! - [`BatchFile`] writes the members of a batch as a [`Profile`] wants them and no more than its [`Limits`] allow; a member
//!   that can't be written is told alone ([`Refusal`]).
//! - [`CustomIds`] says under which id a member was sent, and makes the same ones after a crash.
//! - [`Answer`] is a line of what came back, read leniently; [`Reconciler`] gives each to its member.
//! - [`RemoteBatch`] is a batch as its provider describes it, [`Token`] how it is found again.
//!
//! What is known about providers, and how to add one: [remote batches](crate::documentation::remote_batches).

mod answer;
mod batch_file;
mod call;
mod custom_ids;
mod endpoint;
mod failure;
mod lines;
mod packing;
mod profile;
mod reconcile;
mod state;
mod submission;
mod tokens;

pub use self::{
    answer::{Answer, BadLine, Verdict},
    batch_file::{Added, BatchFile, Finished, Format, LineShape},
    call::{Call, Refusal, own_custom_id},
    custom_ids::CustomIds,
    endpoint::{Endpoint, Route},
    failure::ProviderError,
    lines::{Line, LineReader},
    packing::{Limits, Load, Misfit, Packing},
    profile::{Dialect, Paths, Profile, Recognition, Source},
    reconcile::{Reading, Reconciler},
    state::{RemoteBatch, RemoteCounts, RemoteFile, RemotePage, RemoteState},
    submission::{Submission, Token},
    tokens::{Price, Tokens, Usage},
};
