//! Locks, threads and waiting, for what is written by hand with them.
//!
//! They are those of `std` and tokio. The tests of interleavings are built with `--cfg shuttle` and have those of
//! `shuttle` instead, which runs one thread at a time and chooses at each of these calls who goes on:
//!
//! ```text
//! RUSTFLAGS='--cfg shuttle' CARGO_TARGET_DIR=target/shuttle CARGO_PROFILE_DEV_OPT_LEVEL=1 \
//!     cargo test --locked --lib --no-default-features --features journal,testing interleavings
//! ```

#[cfg(not(all(test, shuttle)))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::{Builder, JoinHandle},
};

#[cfg(not(all(test, shuttle)))]
pub(crate) use tokio::task::spawn_blocking;

#[cfg(all(test, shuttle))]
pub(crate) use self::chosen::*;

#[cfg(all(test, shuttle))]
mod chosen {
    use std::{
        cell::Cell,
        sync::{LockResult, PoisonError},
        time::Duration,
    };

    pub(crate) use shuttle::{
        sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
        thread::{Builder, JoinHandle},
    };

    pub(crate) fn spawn_blocking<T: Send + 'static>(
        call: impl FnOnce() -> T + Send + 'static,
    ) -> shuttle::future::JoinHandle<T> {
        shuttle::future::spawn(async move { call() })
    }

    thread_local! {
        static TIME_OUTS: Cell<u32> = const { Cell::new(0) };
    }

    /// From now on so many waits may end by time passing; then time stands still, so that a wake-up that is lost stays
    /// lost and is found.
    pub(crate) fn let_time_pass(time_outs: u32) {
        TIME_OUTS.set(time_outs);
    }

    /// That of `shuttle` never times out.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
        ) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait(guard)
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, TimedOut)> {
            use shuttle::rand::Rng;
            let left = TIME_OUTS.get();
            if left > 0 && shuttle::rand::thread_rng().gen_bool(0.3) {
                TIME_OUTS.set(left - 1);
                return Ok((guard, TimedOut(true)));
            }
            let woken = self.0.wait(guard);
            woken
                .map(|guard| (guard, TimedOut(false)))
                .map_err(|error| PoisonError::new((error.into_inner(), TimedOut(false))))
        }
    }

    pub(crate) struct TimedOut(bool);

    impl TimedOut {
        pub(crate) fn timed_out(&self) -> bool {
            self.0
        }
    }
}
