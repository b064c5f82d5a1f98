//! What only the sled backend promises: whose folder it takes, one sync a group, no loss at a kill,
//! damage that is never served.

#![cfg(feature = "sled")]

mod damage;
mod kills;
mod moments;
mod refusals;
mod repair;
mod restoring;
mod sparse;
mod support;
mod syncs;
mod windows;
