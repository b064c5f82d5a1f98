//! Bytes that change or vanish while nobody looks.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Seen, append, open,
    script::{self, OPTIONS},
};
use crate::{
    error::ErrorKind,
    queue::journal::{
        disk::Disk,
        log::{Found, Place, Root, Scanned, found::ROOT},
        simulated::SimDisk,
    },
};

type Image = BTreeMap<String, Vec<u8>>;

/// A log that was closed cleanly, and the events and bodies of all its groups.
struct Sound {
    image: Image,
    groups: Vec<(Vec<u8>, Vec<u8>)>,
    all: Vec<(Vec<u8>, Vec<u8>)>,
}

fn sound_log(seed: u64) -> Sound {
    let disk = SimDisk::new();
    let history = script::run(&disk, seed, 40);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, cursor, _, met, _) = open(&shared, OPTIONS).unwrap();
    log.mark(cursor).unwrap();
    let all = history.groups.into_iter();
    Sound {
        image: disk.image(),
        groups: met.groups,
        all: all.map(|group| (group.events, group.body)).collect(),
    }
}

/// Opens a damaged image. Whatever comes is what was appended, in order; what is missing is told; and the log
/// goes on, and is found without new damage then.
fn check(sound: &Sound, image: Image, what: &str) -> Seen {
    let is_root = image.get(ROOT) != sound.image.get(ROOT);
    check_disk(sound, SimDisk::from_image(image), is_root, what)
}

fn check_disk(sound: &Sound, disk: SimDisk, is_root: bool, what: &str) -> Seen {
    let simulated = disk.clone();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let (mut log, mut cursor, _, seen, root) = match open(&disk, OPTIONS) {
        Ok(opened) => opened,
        Err(error) => {
            // What may be the end of the log is not written over because it can't be read now.
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
            assert_eq!(simulated.operations(), 0, "{what}: something was changed");
            return Seen::default();
        }
    };
    let mut all = sound.all.iter();
    for (events, body) in &seen.groups {
        let is_it = |(written_events, written_body): &&(Vec<u8>, Vec<u8>)| {
            written_events == events && (written_body == body || !seen.damage.is_empty())
        };
        assert!(
            all.any(|group| is_it(&group)),
            "{what}: a group nobody appended, or out of order"
        );
    }
    let is_told = !seen.damage.is_empty() || seen.unconfirmed.is_some() || root.is_none();
    if !is_told && !is_root {
        assert_eq!(
            seen.groups, sound.groups,
            "{what}: groups are gone or changed in silence"
        );
    }
    append(&mut log, &mut cursor, b"goes", b"on").unwrap();
    drop(log);
    let (.., again, _) = open(&disk, OPTIONS).unwrap();
    assert_eq!(
        again.groups.last(),
        Some(&(b"on".to_vec(), b"goes".to_vec())),
        "{what}"
    );
    assert_eq!(again.unconfirmed, None, "{what}");
    assert!(
        again.damage.len() <= seen.damage.len() + 1,
        "{what}: {:?}",
        again.damage
    );
    seen
}

#[test]
fn a_changed_byte_is_told_and_costs_what_it_hit() {
    for seed in 0..2 {
        let sound = sound_log(seed);
        let mut dice = fastrand::Rng::with_seed(seed);
        println!("seed {seed}: {} groups", sound.groups.len());
        for (name, bytes) in &sound.image {
            // Headers and the starts of frames in full, the rest at random.
            let starts =
                (0..bytes.len()).filter(|at| at % 512 < 80 && at % 3 == 0 && dice.u8(..) < 40);
            let starts: Vec<_> = starts.collect();
            let others = std::iter::repeat_with(|| dice.usize(..bytes.len())).take(60);
            for at in starts.into_iter().chain(others.collect::<Vec<_>>()) {
                let mut image = sound.image.clone();
                image.get_mut(name).unwrap()[at] ^= 1 << dice.u8(..8);
                let seen = check(&sound, image, &format!("seed {seed}, byte {at} of {name}"));
                let lost = sound.groups.len().saturating_sub(seen.groups.len());
                assert!(
                    name == ROOT || lost <= 1,
                    "seed {seed}, byte {at} of {name} cost {lost} groups"
                );
            }
        }
    }
}

#[test]
fn a_bad_sector_a_short_file_and_a_missing_file_are_told() {
    let sound = sound_log(2);
    for (name, bytes) in &sound.image {
        let mut image = sound.image.clone();
        image.remove(name);
        check(&sound, image, &format!("without {name}"));
        for at in (0..bytes.len()).step_by(512) {
            let mut image = sound.image.clone();
            image.get_mut(name).unwrap()[at..at + 512].fill(0);
            check(&sound, image, &format!("sector {at} of {name} is blank"));
            let disk = SimDisk::from_image(sound.image.clone());
            disk.spoil(name, at);
            let what = format!("sector {at} of {name} is unreadable");
            check_disk(&sound, disk, name == ROOT, &what);
            let mut image = sound.image.clone();
            image.get_mut(name).unwrap().truncate(at);
            check(&sound, image, &format!("{name} ends at {at}"));
            let mut image = sound.image.clone();
            image.get_mut(name).unwrap().truncate(at + 77);
            check(&sound, image, &format!("{name} ends behind {at}"));
        }
    }
}

#[test]
fn without_a_root_all_that_is_left_is_found() {
    let sound = sound_log(3);
    let mut image = sound.image.clone();
    image.get_mut(ROOT).unwrap().fill(0xff);
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::from_image(image));
    let found = Found::look(disk.clone(), OPTIONS).unwrap();
    assert_eq!((found.root(), found.is_new()), (None, false));
    let (mut log, cursor, _, seen, _) = open(&disk, OPTIONS).unwrap();
    assert_eq!(seen.damage, Vec::<String>::new());
    assert!(seen.groups.ends_with(&sound.groups));
    let root = Root {
        oldest: 1,
        from: cursor.body(),
        note: [1; 64],
    };
    log.set_root(root).unwrap();
    let found = Found::look(disk, OPTIONS).unwrap();
    assert_eq!(found.root(), Some(root));
}

#[test]
fn a_segment_without_a_header_is_known_by_its_groups() {
    let sound = sound_log(1);
    let live = sound.image.keys().filter(|name| *name != ROOT);
    for name in live {
        let mut image = sound.image.clone();
        image.get_mut(name).unwrap()[..4096].fill(0xa5);
        let seen = check(&sound, image, &format!("{name} has no header"));
        assert_eq!(seen.groups, sound.groups, "{name}");
    }
}

#[test]
fn an_empty_folder_is_new_and_another_stores_files_are_not_ours() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let found = Found::look(disk, OPTIONS).unwrap();
    assert!(found.is_new() && found.root().is_none());
    assert_eq!(found.oldest(), Place::start_of(1));
    let sound = sound_log(0);
    let other = super::LogOptions {
        salt: OPTIONS.salt + 1,
        ..OPTIONS
    };
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::from_image(sound.image));
    let (.., seen, root) = open(&disk, other).unwrap();
    assert_eq!((seen.groups, root), (Vec::new(), None));
}

#[test]
fn a_scan_may_begin_at_any_group_or_at_the_end() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let (mut log, mut cursor, ..) = open(&disk, OPTIONS).unwrap();
    let mut places = Vec::new();
    for number in 0..20_u8 {
        let body = append(&mut log, &mut cursor, &[number; 2000], &[number]).unwrap();
        places.push(Place {
            offset: body.offset - 64,
            ..body
        });
    }
    places.push(Place {
        offset: cursor.body().offset - 64,
        ..cursor.body()
    });
    drop(log);
    for (index, from) in places.into_iter().enumerate() {
        let found = Found::look(disk.clone(), OPTIONS).unwrap();
        let mut numbers = Vec::new();
        let mut each = |scanned: Scanned<'_>| {
            match scanned {
                Scanned::Group { events, .. } => numbers.push(usize::from(events[0])),
                damage @ Scanned::Damage { .. } => panic!("{damage:?}"),
            }
            Ok(())
        };
        let tail = found.scan(from, false, &mut each).unwrap();
        assert_eq!(numbers, (index..20).collect::<Vec<_>>());
        let (mut log, cursor, _) = found.recover(tail, &mut Vec::new()).unwrap();
        log.mark(cursor).unwrap();
    }
}
