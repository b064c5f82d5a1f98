//! Proofs that need a bad world: disks that forget.

#[cfg(all(feature = "fuse", target_os = "linux"))]
pub mod forgetful;
