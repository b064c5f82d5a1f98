//! The log's own tests.

mod crash;
mod damage;
mod script;
mod space;

use std::{io::IoSlice, sync::Arc};

use super::{Cursor, Found, Log, LogOptions, Place, Reader, Root, Scanned};
use crate::{
    error::{ErrorKind, Result},
    queue::journal::{
        disk::{Disk, Folder},
        simulated::SimDisk,
    },
};

const OPTIONS: LogOptions = LogOptions {
    segment_bytes: 64 * 1024,
    spares: 2,
    zero_ahead: 4096,
    salt: 7,
};

/// What a scan met: groups with their events and bodies, and damage.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    groups: Vec<(Vec<u8>, Vec<u8>)>,
    damage: Vec<String>,
    unconfirmed: Option<u64>,
}

fn open(
    disk: &Arc<dyn Disk>,
    options: LogOptions,
) -> Result<(Log, Cursor, Reader, Seen, Option<Root>)> {
    let found = Found::look(disk.clone(), options)?;
    let mut seen = Seen::default();
    let reader = found.reader();
    let root = found.root();
    let from = root.map_or(found.oldest(), |root| root.from);
    let tail = found.scan(from, true, &mut |scanned| {
        match scanned {
            Scanned::Group {
                body,
                body_bytes,
                events,
            } => {
                // What can't be read was reported just before.
                let body = reader.read(body, body_bytes).unwrap_or_default();
                seen.groups.push((events.to_vec(), body.to_vec()));
            }
            Scanned::Damage { from, bytes, what } => {
                seen.damage.push(format!("{from:?} {bytes} {what}"));
            }
        }
        Ok(())
    })?;
    seen.unconfirmed = tail.unconfirmed.map(|(_, bytes)| bytes);
    let (log, cursor, reader) = found.recover(tail, &mut Vec::new())?;
    Ok((log, cursor, reader, seen, root))
}

/// Appends a group and tells where its body lies.
fn append(log: &mut Log, cursor: &mut Cursor, body: &[u8], events: &[u8]) -> Result<Place> {
    if !cursor.fits(body.len(), events.len()) {
        *cursor = cursor.next_segment();
    }
    log.append(*cursor, &[IoSlice::new(body)], events)?;
    let place = cursor.body();
    *cursor = cursor.after(body.len(), events.len());
    Ok(place)
}

#[test]
fn what_was_appended_is_found_again_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(Folder::open(folder.path()).unwrap());
    let mut expected = Vec::new();
    for round in 0_u8..4 {
        let (mut log, mut cursor, reader, seen, _) = open(&disk, OPTIONS).unwrap();
        assert_eq!(seen.groups, expected);
        assert_eq!((seen.damage, seen.unconfirmed), (Vec::new(), None));
        for group in 0..40_u16 {
            let bytes = usize::from(group) * 150;
            let body = vec![round ^ 0x55; bytes];
            let events = vec![round; usize::from(group)];
            let place = append(&mut log, &mut cursor, &body, &events).unwrap();
            let length = u32::try_from(bytes).unwrap();
            assert_eq!(reader.read(place, length).unwrap(), body);
            expected.push((events, body));
        }
        if round == 2 {
            let body = vec![9; 300_000];
            append(&mut log, &mut cursor, &body, b"large").unwrap();
            expected.push((b"large".to_vec(), body));
        }
        if round == 1 {
            // All so far may go, from the start of the next segment on.
            cursor = cursor.next_segment();
            let from = Place {
                offset: 4096,
                ..cursor.body()
            };
            append(&mut log, &mut cursor, b"first", b"of all").unwrap();
            expected = vec![(b"of all".to_vec(), b"first".to_vec())];
            log.set_root(Root {
                oldest: from.segment,
                from,
                note: [3; 64],
            })
            .unwrap();
        }
    }
}

#[test]
fn what_is_pinned_is_not_reused_and_the_rest_oldest_first() {
    assert_eq!(reuse_under_a_reader(), Ok(()));
}

/// Frees a segment that is pinned, appends until files are reused, and reads it again; then lets it go.
fn reuse_under_a_reader() -> std::result::Result<(), String> {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, reader, ..) = open(&shared, script::OPTIONS).unwrap();
    let place = append(&mut log, &mut cursor, &[7; 5000], b"").unwrap();
    let pin = reader.pin(place.segment..=place.segment);
    for _ in 0..20 {
        append(&mut log, &mut cursor, &[8; 5000], b"").unwrap();
        let from = Place::start_of(cursor.body().segment);
        let root = Root {
            oldest: from.segment,
            from,
            note: [0; 64],
        };
        log.set_root(root).unwrap();
        match reader.read(place, 5000) {
            Ok(read) if read == [7; 5000][..] => {}
            Ok(_) => return Err("it holds other bytes".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    drop(pin);
    for _ in 0..20 {
        append(&mut log, &mut cursor, &[9; 5000], b"").unwrap();
        script::check_order(&disk)?;
    }
    let gone = reader.read(place, 5000).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    Ok(())
}

#[test]
fn the_end_of_a_recycled_file_is_a_zeroed_sector() {
    assert_eq!(end_in_recycled_files(), Ok(()));
}

/// Groups that end with a page, in files that are full of older ones: nothing is to be set aside.
fn end_in_recycled_files() -> std::result::Result<(), String> {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut log, mut cursor, ..) = open(&shared, script::OPTIONS).unwrap();
    for _ in 0..30 {
        append(&mut log, &mut cursor, &[5; 4000], b"").unwrap();
        let from = Place::start_of(cursor.body().segment);
        let root = Root {
            oldest: from.segment,
            from,
            note: [0; 64],
        };
        log.set_root(root).unwrap();
        let image: Arc<dyn Disk> = Arc::new(disk.restart());
        let (.., seen, _) = open(&image, script::OPTIONS).unwrap();
        if let Some(bytes) = seen.unconfirmed {
            return Err(format!("{bytes} old bytes pass for new ones"));
        }
    }
    Ok(())
}
