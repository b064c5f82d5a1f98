//! A small store with a record of every kind, damaged in every place: all bits, all lengths, whole pages and files,
//! alone and in pairs.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;

use super::{
    IDENTITY, Rig, SALT,
    damage::{Image, Sound, Told, check, panic_text},
    options, script, seeds,
};
use crate::{
    queue::{
        journal::{
            codec::Codec,
            disk::Disk,
            log::{
                Found, Place,
                fault::{self, Fault},
            },
            open::{log_options, replay},
            record,
            simulated::SimDisk,
            state::{Blob, Need, State},
            verify::look,
            view,
        },
        progress::Pulse,
    },
    testing::proof,
};

/// What a log holds, read without being changed.
#[derive(PartialEq)]
struct Held {
    state: Vec<u8>,
    /// Of each queue, by id: those that can be served.
    payloads: BTreeMap<(u32, u64), Bytes>,
    /// Outcomes, results and errors that are whole.
    blobs: BTreeMap<Blob, Bytes>,
}

fn held(image: &Image) -> Result<Held, String> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::from_image(image.clone()));
    let found = Found::look(disk, log_options(SALT, &options())).map_err(|why| why.to_string())?;
    let (state, _) =
        replay(&found, SALT, &mut Vec::new(), &mut Vec::new()).map_err(|why| why.to_string())?;
    let reader = found.reader();
    let (mut payloads, mut blobs) = (BTreeMap::new(), BTreeMap::new());
    for (number, queue) in &state.queues {
        for stretch in queue.stored.stretches.values() {
            let known = queue.known([stretch], SALT);
            let read = view::read_together(&reader, &[*stretch], &known);
            let (loaded, _) = read.map_err(|why| why.to_string())?;
            for found in &loaded[0].requests {
                if let (Need::Whole, Ok(payload)) =
                    (queue.need(found.id), found.payload(&loaded[0].bytes))
                {
                    payloads.insert((*number, found.id), payload);
                }
            }
        }
        for blob in queue.blobs() {
            let place = Place {
                segment: blob.segment,
                offset: blob.offset,
            };
            let bytes = reader.read(place, blob.bytes).unwrap_or_default();
            if record::check_blob(blob, &bytes).is_ok() {
                blobs.insert(blob, bytes);
            }
        }
    }
    Ok(Held {
        state: encoded(&state),
        payloads,
        blobs,
    })
}

/// The file in which the log ends, and where.
fn end(image: &Image) -> (String, usize) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::from_image(image.clone()));
    let found = Found::look(disk, log_options(SALT, &options())).unwrap();
    let (_, tail) = replay(&found, SALT, &mut Vec::new(), &mut Vec::new()).unwrap();
    let file = found.reader().file_of(tail.end.segment).unwrap();
    let name = file.strip_prefix("log/").unwrap().to_owned();
    (name, tail.end.offset as usize)
}

fn encoded(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.put(&mut bytes);
    bytes
}

/// A store that was closed or killed, and what it held.
struct Store {
    sound: Sound,
    held: Held,
    /// The file in which the log ends, and where.
    end: (String, usize),
    /// Of everything that was ever pushed, by queue and id.
    pushed: BTreeMap<(u32, u64), Bytes>,
}

fn store(is_closed: bool) -> Store {
    let disk = SimDisk::new();
    let script = script::everything(&disk, is_closed);
    let image = disk.image();
    let now = script.now();
    let rig = Rig::open(&SimDisk::from_image(image.clone()), false).unwrap();
    let view = rig.see(now, &[]).unwrap();
    view.check(&script.payloads).unwrap();
    let first = script
        .payloads
        .iter()
        .map(|(id, payload)| ((0, id), payload));
    let other = script.others.iter().map(|(id, payload)| ((1, id), payload));
    let pushed = first.chain(other);
    let pushed = pushed.map(|((queue, id), payload)| ((queue, id.as_u64()), payload.clone()));
    Store {
        held: held(&image).unwrap(),
        end: end(&image),
        pushed: pushed.collect(),
        sound: Sound {
            image,
            view,
            now,
            payloads: script.payloads,
        },
    }
}

/// Whether verifying finds a damage; if it does not, nothing has changed. What would be served is right anyhow.
fn is_found(store: &Store, image: &Image) -> Result<bool, String> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::from_image(image.clone()));
    let looked = look(disk, IDENTITY, Path::new("simulated"), &Pulse::default())
        .map_err(|why| why.to_string())?;
    let held = held(image)?;
    for (id, payload) in &held.payloads {
        if store.pushed.get(id) != Some(payload) {
            return Err(format!("wrong data would be served of {id:?}"));
        }
    }
    for (blob, bytes) in &held.blobs {
        if store
            .held
            .blobs
            .get(blob)
            .is_some_and(|right| right != bytes)
        {
            return Err(format!("wrong data would be served of {blob:?}"));
        }
    }
    if looked.findings.is_empty() && held != store.held {
        return Err("something is gone or changed, and is not found".into());
    }
    Ok(!looked.findings.is_empty())
}

/// A part of a test: it says what it does.
type Part<'a> = Box<dyn FnOnce(&dyn Fn(String)) -> Result<(), String> + Send + 'a>;

/// Each in a thread of its own, which has to say within a minute that it goes on.
fn within_a_minute_each(parts: Vec<Part<'_>>) {
    let (goes_on, going) = mpsc::channel();
    thread::scope(|scope| {
        for part in parts {
            let goes_on = goes_on.clone();
            scope.spawn(move || {
                let told = |what: String| drop(goes_on.send(Ok(what)));
                let done = part(&told);
                drop(goes_on.send(Err(done)));
            });
        }
        drop(goes_on);
        let mut last = String::new();
        loop {
            match going.recv_timeout(Duration::from_secs(60)) {
                Ok(Ok(what)) => last = what,
                Ok(Err(done)) => done.unwrap(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                // Nothing ends a thread that hangs but the end of the process.
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    eprintln!("it hangs after {last}");
                    std::process::exit(1);
                }
            }
        }
    });
}

fn is_long() -> bool {
    std::env::var_os("BATCHYARD_LONG").is_some()
}

/// Which bits of a file are changed: of headers and of what else is used one bit of some bytes, in the long run one of
/// each byte, and all with `BATCHYARD_CYCLES`; now and then one where nothing is.
fn bits(bytes: &[u8]) -> Vec<(usize, u8)> {
    let is_all = std::env::var_os("BATCHYARD_CYCLES").is_some();
    let (of_headers, of_others) = if is_all || is_long() { (1, 1) } else { (5, 29) };
    let mut all = Vec::new();
    for (sector, start) in bytes.chunks(512).zip((0..).step_by(512)) {
        let used = sector.iter().rposition(|byte| *byte != 0);
        let is_header = sector.starts_with(b"BY");
        for at in 0..sector.len() {
            let step = match used {
                Some(_) if is_header && at < 112 => of_headers,
                Some(used) if at <= used + 16 => of_others,
                _ => 128,
            };
            // Other bytes of each sector.
            if (at + start / 512) % step != 0 {
                continue;
            }
            let bit = u8::try_from((at * 5 + start / 512) % 8).unwrap();
            let bits = if is_all { 0..8 } else { bit..bit + 1 };
            all.extend(bits.map(|bit| (start + at, bit)));
        }
    }
    all
}

#[test]
fn any_bit_that_changes_is_found_or_changes_nothing() {
    let stores = [store(true), store(false)];
    let counts = std::sync::Mutex::new((0, 0));
    let parts = stores.iter().map(|store| {
        let counts = &counts;
        let part = move |goes_on: &dyn Fn(String)| {
            let (mut images, mut found) = (0, 0);
            let mut image = store.sound.image.clone();
            for (name, bytes) in &store.sound.image {
                for (at, bit) in bits(bytes) {
                    image.get_mut(name).unwrap()[at] ^= 1 << bit;
                    let what = format!("bit {bit} of byte {at} of {name}");
                    let one = catch_unwind(AssertUnwindSafe(|| is_found(store, &image)));
                    let one = one.unwrap_or_else(|panic| Err(panic_text(&*panic)));
                    let one = one.map_err(|why| format!("{what}: {why}"))?;
                    image.get_mut(name).unwrap()[at] ^= 1 << bit;
                    images += 1;
                    found += usize::from(one);
                    goes_on(what);
                }
            }
            let mut counts = counts.lock().unwrap();
            *counts = (counts.0 + images, counts.1 + found);
            Ok(())
        };
        Box::new(part) as Part<'_>
    });
    within_a_minute_each(parts.collect());
    let (images, found) = *counts.lock().unwrap();
    assert!(found > images / 8, "{found} of {images} are found");
    proof(
        "G5 G8",
        "journal",
        format!("{images} changed bits, {found} found and the others without effect"),
        &["TrustPayloads", "TrustEvents"],
    );
}

#[test]
fn a_checksum_that_is_not_checked_is_noticed() {
    // Behind the last baseline of a killed store there are events.
    let store = store(false);
    for fault in [Fault::TrustPayloads, Fault::TrustEvents] {
        let store = &store;
        let noticed = thread::scope(|scope| {
            let search = move || {
                fault::plant(fault);
                let mut image = store.sound.image.clone();
                store.sound.image.iter().any(|(name, bytes)| {
                    bits(bytes).into_iter().any(|(at, bit)| {
                        image.get_mut(name).unwrap()[at] ^= 1 << bit;
                        let one = catch_unwind(AssertUnwindSafe(|| is_found(store, &image)));
                        image.get_mut(name).unwrap()[at] ^= 1 << bit;
                        !matches!(one, Ok(Ok(_)))
                    })
                })
            };
            scope.spawn(search).join().unwrap()
        });
        assert!(noticed, "nobody noticed {fault:?}");
    }
}

/// What becomes of the files of a store, and how it is called.
fn damages(image: &Image, is_long: bool) -> Vec<(String, Image)> {
    let mut all = Vec::new();
    let mut add = |what: String, change: &dyn Fn(&mut Image)| {
        let mut damaged = image.clone();
        change(&mut damaged);
        if damaged != *image {
            all.push((what, damaged));
        }
    };
    for (name, bytes) in image {
        add(format!("without {name}"), &|image| drop(image.remove(name)));
        let lengths = (0..bytes.len()).step_by(if is_long { 64 } else { 512 });
        for at in lengths {
            // A sector in which nothing is looks like the one before it.
            let is_used = bytes[at..].iter().take(512).any(|byte| *byte != 0);
            for length in [at.saturating_sub(1), at, at + 1] {
                if is_used || (at % 4096 == 0 && length == at) {
                    let cut = |image: &mut Image| image.get_mut(name).unwrap().truncate(length);
                    add(format!("{name} ends at {length}"), &cut);
                }
            }
        }
        for at in (0..bytes.len()).step_by(4096) {
            let blank = |image: &mut Image| {
                let file = image.get_mut(name).unwrap();
                let end = file.len().min(at + 4096);
                file[at..end].fill(0);
            };
            add(format!("page {at} of {name} is blank"), &blank);
        }
        for (other, others) in image.iter().filter(|(other, _)| *other != name) {
            let copy = |image: &mut Image| drop(image.insert(name.clone(), others.clone()));
            add(format!("{name} is {other}"), &copy);
            let swap = |image: &mut Image| {
                image.insert(name.clone(), others.clone());
                image.insert(other.clone(), bytes.clone());
            };
            if name < other {
                add(format!("{name} and {other} are swapped"), &swap);
            }
        }
        let twice = |image: &mut Image| drop(image.insert("segment-077.log".into(), bytes.clone()));
        add(format!("{name} is there twice"), &twice);
    }
    all
}

#[test]
fn any_file_that_is_cut_blank_swapped_repeated_or_gone_is_told() {
    let stores = [store(true), store(false)];
    let parts = stores.iter().map(|store| {
        let part = move |goes_on: &dyn Fn(String)| {
            let mut told = Told::default();
            let mut failures = Vec::new();
            for (what, image) in damages(&store.sound.image, is_long()) {
                try_one(store, (&what, &image), &mut told, &mut failures);
                goes_on(what);
            }
            println!("{told:?}");
            summed(&failures)
        };
        Box::new(part) as Part<'_>
    });
    within_a_minute_each(parts.collect());
    let images: usize = stores
        .iter()
        .map(|store| damages(&store.sound.image, is_long()).len())
        .sum();
    let what = format!("{images} cut, blank, swapped, repeated and missing files, opened twice");
    proof("G5 G8", "journal", what, &[]);
}

#[test]
fn any_two_damages_at_once_are_told() {
    let stores = [store(true), store(false)];
    let pairs = if is_long() { 1500 } else { 60 };
    let parts = stores.iter().map(|store| {
        let part = move |goes_on: &dyn Fn(String)| {
            let mut told = Told::default();
            let mut failures = Vec::new();
            let singles = damages(&store.sound.image, false);
            for seed in seeds(pairs) {
                let mut dice = fastrand::Rng::with_seed(seed);
                let (first, mut image) = singles[dice.usize(..singles.len())].clone();
                let name = image
                    .keys()
                    .nth(dice.usize(..image.len()))
                    .cloned()
                    .unwrap();
                let file = image.get_mut(&name).unwrap();
                if file.is_empty() {
                    continue;
                }
                let at = dice.usize(..file.len());
                let end = file.len().min(at + dice.usize(1..600));
                file[at..end]
                    .iter_mut()
                    .for_each(|byte| *byte = dice.u8(..));
                let what = format!("seed {seed}: {first}, then {at} to {end} of {name}");
                try_one(store, (&what, &image), &mut told, &mut failures);
                goes_on(what);
            }
            println!("{told:?}");
            summed(&failures)
        };
        Box::new(part) as Part<'_>
    });
    within_a_minute_each(parts.collect());
    proof(
        "G5 G8",
        "journal",
        format!("{} pairs of damages", 2 * pairs),
        &[],
    );
}

fn try_one(
    store: &Store,
    (what, image): (&str, &Image),
    told: &mut Told,
    failures: &mut Vec<String>,
) {
    let checked = catch_unwind(AssertUnwindSafe(|| check(&store.sound, image, told)));
    let checked = checked.unwrap_or_else(|panic| Err(format!("a panic: {}", panic_text(&*panic))));
    if let Err(why) = checked {
        // Of a killed store the end of the log, all of it zeros, looks as if it had never been written.
        if !(why.starts_with("untold") && is_without_its_end(store, image)) {
            failures.push(format!("{what}: {why}"));
        }
    }
}

/// Whether all that was taken from a file is what it, or the log in it, ended with.
fn is_without_its_end(store: &Store, damaged: &Image) -> bool {
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let (last, end) = &store.end;
    store.sound.image.iter().all(|(name, bytes)| {
        let other = damaged.get(name).map_or(&[][..], |other| other);
        let kept = used(other).min(other.len()).min(bytes.len());
        // What lies behind the log's end is from an earlier use of the file.
        let first = bytes
            .iter()
            .zip(other)
            .position(|(one, other)| one != other);
        let to_the_end = |from: usize| other[from..*end].iter().all(|byte| *byte == 0);
        bytes.len() == other.len()
            && (bytes[..kept] == other[..kept]
                || (name == last && first.is_none_or(|from| from < *end && to_the_end(from))))
    })
}

fn summed(failures: &[String]) -> Result<(), String> {
    match failures.first() {
        None => Ok(()),
        Some(_) => Err(format!(
            "{} failures:\n{}",
            failures.len(),
            failures[..failures.len().min(12)].join("\n")
        )),
    }
}
