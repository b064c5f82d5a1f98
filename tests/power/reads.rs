//! The n-th read of a life fails, once or for good, while verbs are at work.
//!
//! The kernel caches nothing of this disk, and sled next to nothing of a store that it has just opened, so that verbs read. What fails says so and what
//! it is; nothing that is answered is wrong. When the disk is sound again the journal goes on as it is, and sled once it is
//! opened again: all that was answered is there, and is handed out.

use std::collections::BTreeMap;

use batchyard::{
    Error, ErrorKind, Lease, NewRequest,
    testing::proof,
    torture::forgetful::{Call, DiskError, FailPlan},
};

use crate::{
    Disk,
    errors::is_poisoned,
    fresh::{check, drain},
    life::{self, Life, Side},
    store::{Backend, Held, How, Opened},
    stride,
};

#[tokio::test]
async fn no_read_that_fails_costs_what_sled_answered() {
    fail_everywhere(Backend::Sled).await;
}

#[tokio::test]
async fn no_read_that_fails_costs_what_the_journal_answered() {
    fail_everywhere(Backend::Journal).await;
}

async fn fail_everywhere(backend: Backend) {
    let Some(disk) = Disk::new() else { return };
    let life = life::short().await;
    let empty = disk.forgetful.keep();
    let mut tally = BTreeMap::<String, u32>::new();
    for begin in (0..life.moments.len()).step_by(4) {
        disk.forgetful.go_back(&empty);
        let leases = live_until(&disk, backend, &life, begin).await;
        let begun = disk.forgetful.keep();
        for once in [true, false] {
            for skip in (0..).step_by(every(backend)) {
                disk.forgetful.go_back(&begun);
                let opened = backend.open_with(&disk.store(), AS_BEFORE).await.unwrap();
                let plan = FailPlan {
                    call: Call::Read,
                    skip,
                    once,
                    error: DiskError::Broken,
                };
                let before = disk.forgetful.failures();
                disk.forgetful.fail(Some(plan));
                let side = Side::with(opened.queue.clone(), leases.clone());
                let (answered, error) = live(&opened, side, &life, begin).await;
                disk.forgetful.fail(None);
                if disk.forgetful.failures() == before {
                    opened.end().await.unwrap();
                    break;
                }
                let kind = error.as_ref().map(Error::kind);
                *tally
                    .entry(format!("{begin:2} to {answered:2}: {kind:?}"))
                    .or_default() += 1;
                let context = format!(
                    "{}, from {begin}: {plan:?}: {answered} steps were answered, then {error:?}",
                    backend.name()
                );
                let goes_on = goes_on(&disk, backend, &life, opened, (answered, error)).await;
                goes_on.unwrap_or_else(|why| panic!("{context}: {why}"));
            }
        }
    }
    println!("{tally:#?}");
    let failed: u32 = tally.values().sum();
    assert!(tally.len() > 10, "verbs read hardly anything");
    let done = format!("{failed} reads that fail under verbs");
    proof("G1 G8", backend.name(), done, &[]);
}

/// One read of so many fails: a store of sled takes its time to open.
fn every(backend: Backend) -> usize {
    let short = match backend {
        Backend::Sled => 13,
        Backend::Journal => 1,
    };
    usize::try_from(stride(short, 1)).unwrap()
}

/// Lives so many steps, and closes the store; the leases that are left.
async fn live_until(disk: &Disk, backend: Backend, life: &Life, steps: usize) -> Vec<Lease> {
    let opened = backend.open(&disk.store()).await.unwrap();
    if backend == Backend::Sled {
        // A store with so much in it is not read as a whole when it is opened, and so is not in memory then.
        let other = opened.store.queue(&"other".parse().unwrap()).await.unwrap();
        let keyed = |number: u32| NewRequest::new("").idempotency_key(number.to_string());
        let all = (0..10_500).map(keyed).collect();
        other.push(life.now, all).await.unwrap();
    }
    let mut side = Side::new(opened.queue.clone());
    for moment in &life.moments[..steps] {
        assert!(side.goes_on(moment).await);
    }
    let leases = side.end();
    opened.end().await.unwrap();
    leases
}

/// Lives on until something fails, and looks at all that is there; how many steps were answered, and what failed.
async fn live(
    opened: &Opened,
    mut side: Side,
    life: &Life,
    begin: usize,
) -> (usize, Option<Error>) {
    for (answered, moment) in life.moments.iter().enumerate().skip(begin) {
        let taken = side.take(moment.now, &moment.step).await;
        let kind = taken.as_ref().err().map(Error::kind);
        if kind != moment.refused {
            return (answered, Some(taken.expect_err("refused")));
        }
    }
    let last = life.moments.last().unwrap();
    let held = Held::of(&*opened.queue, last.now).await;
    if let Ok(held) = &held {
        assert_eq!(*held, last.held, "{}", last.held.difference(held));
    }
    (life.moments.len(), held.err())
}

/// The disk is sound again.
async fn goes_on(
    disk: &Disk,
    backend: Backend,
    life: &Life,
    opened: Opened,
    (answered, error): (usize, Option<Error>),
) -> Result<(), String> {
    let text = error.as_ref().map(Error::to_string).unwrap_or_default();
    let is_told = error.is_none() || text.contains("Input/output error");
    if !is_told {
        return Err(format!("it does not say what it is: {text}"));
    }
    match (backend, error.map(|error| error.kind())) {
        (Backend::Journal, None | Some(ErrorKind::Unavailable)) => {
            life.find(&*opened.queue, answered).await?;
            drain(&*opened.queue, life).await?;
            return opened.end().await.map_err(|error| error.to_string());
        }
        (Backend::Sled, Some(ErrorKind::Poisoned)) => {
            is_poisoned(&*opened.queue, life).await;
            let _ = opened.end().await;
        }
        (Backend::Sled, None) => opened.end().await.map_err(|error| error.to_string())?,
        (_, kind) => return Err(format!("it should not be {kind:?}")),
    }
    let (opened, _) = check(disk, backend, life, answered).await?;
    drain(&*opened.queue, life).await?;
    opened.end().await.map_err(|error| error.to_string())
}

/// Whoever held a batch goes on with it. With such a cache sled has to read again what it has just read, also while it writes.
const AS_BEFORE: How = How {
    low_space_mark: 0,
    cache_bytes: 1 << 10,
    offer_held: false,
};
