//! A crash after every operation of a script, in every way; then another one inside the recovery from it.

use std::{fmt, io, sync::Arc, thread};

use super::{
    Seen, append, end_in_recycled_files, open, reuse_under_a_reader,
    script::{self, History, OPTIONS},
};
use crate::{
    error::ErrorKind,
    queue::journal::{
        disk::Disk,
        log::{
            Root,
            fault::{self, Fault},
        },
        simulated::{Crash, SimDisk},
    },
    testing::proof,
};

/// What a test went through.
#[derive(Default)]
struct Figures {
    operations: usize,
    crashes: usize,
    second_crashes: usize,
    failures: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operations,
            crashes,
            second_crashes,
            failures,
        } = self;
        write!(
            f,
            "{operations} operations, {crashes} crashes, {second_crashes} crashes in recovery, {failures} failures"
        )
    }
}

/// What recovery from a crash delivered, and what was done then.
struct Recovered {
    disk: SimDisk,
    seen: Seen,
    root: Option<Root>,
    /// Operations before it was answered.
    ready: usize,
    /// Of the group that was appended then.
    answered: Option<usize>,
}

const AFTER: (&[u8], &[u8]) = (b"the group after", b"the crash");

#[test]
fn after_any_crash_every_answered_group_is_there() {
    everywhere(crash_everywhere);
}

#[test]
fn after_any_failure_every_answered_group_is_there() {
    everywhere(fail_everywhere);
}

/// Does it with each seed, and tells what was tried.
fn everywhere(attempt: fn(u64, usize) -> Result<Figures, String>) {
    let mut all = Figures::default();
    for seed in seeds() {
        match attempt(seed, STEPS) {
            Ok(figures) => {
                println!("seed {seed}: {figures}");
                all.operations += figures.operations;
                all.crashes += figures.crashes;
                all.second_crashes += figures.second_crashes;
                all.failures += figures.failures;
            }
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    proof("G1 G2 G8 G10", "journal", format!("the log: {all}"), &[]);
}

#[test]
fn planted_faults_are_found() {
    let faults = [
        Fault::AnswerBeforeSync,
        Fault::SkipHeaderSync,
        Fault::SkipFolderSync,
        Fault::ContinueBeforeHeader,
        Fault::FreeBeforeRoot,
        Fault::RecycleOutOfOrder,
        Fault::RecycleUnderReader,
        Fault::TrustWhatIsReadable,
        Fault::TrustTheRoot,
        Fault::AcceptStale,
        Fault::LeaveTheEnd,
        Fault::KeepTheTail,
    ];
    let find = |fault: Fault| {
        let search = move || {
            fault::plant(fault);
            seeds().find_map(|seed| {
                let short = reuse_under_a_reader().and_then(|()| end_in_recycled_files());
                let failures = short.and_then(|()| fail_everywhere(seed, STEPS));
                failures.and_then(|_| crash_everywhere(seed, STEPS)).err()
            })
        };
        // A panic counts as well: nothing may pass in silence.
        thread::spawn(search)
            .join()
            .unwrap_or_else(|_| Some("a panic".to_owned()))
    };
    let missed: Vec<_> = faults
        .into_iter()
        .filter(|fault| {
            let found = find(*fault);
            println!("{fault:?}: {found:?}");
            found.is_none()
        })
        .collect();
    assert!(missed.is_empty(), "nobody noticed {missed:?}");
    let names = faults.map(|fault| format!("{fault:?}"));
    let names = names.each_ref().map(String::as_str);
    proof("G1 G2 G8 G10", "journal", "the log, until found", &names);
}

fn crash_everywhere(seed: u64, steps: usize) -> Result<Figures, String> {
    let disk = SimDisk::new();
    let history = script::run(&disk, seed, steps);
    sound(&history)?;
    if let Some(error) = history.error {
        return Err(format!("the script ended with {error:?}"));
    }
    let mut figures = Figures {
        operations: disk.operations(),
        ..Figures::default()
    };
    for after in 0..=disk.operations() {
        let killed = disk.crash(after, Crash::Killed, 0);
        // Without anything to lose, all crashes are the same.
        let modes = if killed.has_unsynced() {
            &Crash::ALL[..]
        } else {
            &Crash::ALL[..1]
        };
        for mode in modes.iter().copied() {
            let crash_seed = seed * 1_000_003 + after as u64;
            let image = disk.crash(after, mode, crash_seed);
            figures.crashes += 1;
            let context = |why| format!("crash after {after} in mode {mode:?}: {why}");
            let recovered = recover(&image, &history, after).map_err(context)?;
            figures.second_crashes +=
                crash_again(&recovered, &history, after, crash_seed).map_err(context)?;
        }
    }
    Ok(figures)
}

/// Opens an image, checks what is delivered, and appends one more group.
fn recover(image: &SimDisk, history: &History, after: usize) -> Result<Recovered, String> {
    let disk: Arc<dyn Disk> = Arc::new(image.clone());
    let opened = open(&disk, OPTIONS).map_err(|error| format!("it does not open: {error}"))?;
    let (mut log, mut cursor, _, seen, root) = opened;
    check(history, after, &seen, root, &[])?;
    let ready = image.operations();
    append(&mut log, &mut cursor, AFTER.1, AFTER.0).map_err(|error| error.to_string())?;
    Ok(Recovered {
        disk: image.clone(),
        seen,
        root,
        ready,
        answered: Some(image.operations()),
    })
}

/// Goes down at every operation of what was recovered.
fn crash_again(
    first: &Recovered,
    history: &History,
    after: usize,
    seed: u64,
) -> Result<usize, String> {
    for again in 0..=first.disk.operations() {
        let mode =
            Crash::ALL[fastrand::Rng::with_seed(seed ^ again as u64).usize(..Crash::ALL.len())];
        let context = |why| format!("again after {again} in mode {mode:?}: {why}");
        let image = first.disk.crash(again, mode, seed + again as u64);
        let disk: Arc<dyn Disk> = Arc::new(image);
        let opened =
            open(&disk, OPTIONS).map_err(|error| context(format!("it does not open: {error}")))?;
        let found = (opened.3, opened.4);
        check_again(first, history, after, again, found).map_err(context)?;
    }
    Ok(first.disk.operations() + 1)
}

fn check_again(
    first: &Recovered,
    history: &History,
    after: usize,
    again: usize,
    (mut seen, root): (Seen, Option<Root>),
) -> Result<(), String> {
    let appended = (AFTER.0.to_vec(), AFTER.1.to_vec());
    let has_appended = seen.groups.last() == Some(&appended);
    if has_appended {
        seen.groups.pop();
    }
    if first.answered.is_some_and(|answered| answered <= again) && !has_appended {
        return Err("the group appended after recovery is gone".to_owned());
    }
    if again < first.ready {
        // What is set aside by then may be found again, or have gone.
        seen.unconfirmed = None;
        return check(history, after, &seen, root, &[]);
    }
    let in_flight = again > first.ready && first.answered.is_none_or(|answered| again < answered);
    if !in_flight {
        seen.unconfirmed.map_or(Ok(()), |bytes| {
            Err(format!("{bytes} bytes are unconfirmed"))
        })?;
    }
    if root != first.root {
        return Err(format!("the root was {:?} and is {root:?}", first.root));
    }
    if seen.groups != first.seen.groups || !seen.damage.is_empty() {
        return Err(format!(
            "{} groups were delivered, and now there are {}; damage: {:?}",
            first.seen.groups.len(),
            seen.groups.len(),
            seen.damage
        ));
    }
    Ok(())
}

/// Whether this is what may be found after so many operations.
fn check(
    history: &History,
    after: usize,
    seen: &Seen,
    root: Option<Root>,
    more: &[(Vec<u8>, Vec<u8>)],
) -> Result<(), String> {
    let is_done = |answered: Option<usize>| answered.is_some_and(|answered| answered <= after);
    let mut roots = history
        .roots
        .iter()
        .filter(|stored| is_done(stored.answered));
    let last = roots.next_back().map(|stored| stored.root);
    let begun = history
        .roots
        .iter()
        .find(|stored| stored.began < after && !is_done(stored.answered));
    if root != last && (root.is_none() || root != begun.map(|stored| stored.root)) {
        return Err(format!(
            "the root is {root:?} and should be {last:?} or {begun:?}"
        ));
    }
    let from = root.unwrap_or_default().from;
    let groups = history.groups.iter().filter(|group| group.place >= from);
    let pair = |events: &Vec<u8>, body: &Vec<u8>| (events.clone(), body.clone());
    let must = groups.clone().filter(|group| is_done(group.answered));
    let mut must: Vec<_> = must.map(|group| pair(&group.events, &group.body)).collect();
    must.extend_from_slice(more);
    let mut in_flight = groups.filter(|group| group.began < after && !is_done(group.answered));
    let in_flight = in_flight
        .next()
        .map(|group| pair(&group.events, &group.body));
    if !seen.damage.is_empty() {
        return Err(format!("damage is reported: {:?}", seen.damage));
    }
    if let Some(bytes) = seen.unconfirmed
        && in_flight.is_none()
    {
        return Err(format!(
            "{bytes} bytes are unconfirmed, and nothing was begun"
        ));
    }
    let (found, rest) = seen.groups.split_at(must.len().min(seen.groups.len()));
    if found != must {
        return Err(format!(
            "{} answered groups, and {} are found or they differ",
            must.len(),
            found.len()
        ));
    }
    if !rest.is_empty() && (rest.len() > 1 || rest.first() != in_flight.as_ref()) {
        return Err(format!("{} groups that nobody appended", rest.len()));
    }
    Ok(())
}

fn sound(history: &History) -> Result<(), String> {
    history.misread.clone().map_or(Ok(()), Err)
}

/// Lets each operation of a script fail, then dies, recovers, goes on, and loses power.
fn fail_everywhere(seed: u64, steps: usize) -> Result<Figures, String> {
    let whole = SimDisk::new();
    script::run(&whole, seed, steps);
    let mut figures = Figures {
        operations: whole.operations(),
        ..Figures::default()
    };
    for at in 0..whole.operations() {
        for (kind, for_good) in FAILURES {
            let context = |why| format!("{kind:?} at {at}, for good: {for_good}: {why}");
            figures.failures += 1;
            fail_once(seed, steps, at, kind, for_good).map_err(context)?;
        }
    }
    Ok(figures)
}

fn fail_once(
    seed: u64,
    steps: usize,
    at: usize,
    kind: io::ErrorKind,
    for_good: bool,
) -> Result<(), String> {
    let disk = SimDisk::new();
    disk.fail_at(at, kind, for_good);
    let history = script::run(&disk, seed, steps);
    sound(&history)?;
    if !matches!(
        history.error,
        None | Some(ErrorKind::Poisoned | ErrorKind::QueueFull)
    ) {
        return Err(format!("the script ended with {:?}", history.error));
    }
    let after = disk.operations();
    for mode in [Crash::Killed, Crash::Lost, Crash::Shuffled] {
        let context = |why| format!("then {mode:?}: {why}");
        let image = disk.crash(after, mode, seed);
        let first = recover(&image, &history, after + 1).map_err(context)?;
        let last = image.operations();
        for mode in [Crash::Lost, Crash::Shuffled] {
            let image: Arc<dyn Disk> = Arc::new(image.crash(last, mode, seed));
            let opened = open(&image, OPTIONS).map_err(|error| context(error.to_string()))?;
            check_again(&first, &history, after + 1, last, (opened.3, opened.4))
                .map_err(context)?;
        }
    }
    Ok(())
}

const FAILURES: [(io::ErrorKind, bool); 3] = [
    (io::ErrorKind::Other, false),
    (io::ErrorKind::Other, true),
    (io::ErrorKind::StorageFull, false),
];
const SCRIPTS: u64 = 2;

/// More of them for a longer run, or a certain one: `BATCHYARD_SEEDS=100..200`.
fn seeds() -> std::ops::Range<u64> {
    let wanted = std::env::var("BATCHYARD_SEEDS").unwrap_or_default();
    let range = wanted
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or(0..SCRIPTS)
}
const STEPS: usize = 32;
