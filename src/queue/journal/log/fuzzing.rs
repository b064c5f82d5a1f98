//! Doors into the log for the fuzz targets: headers, and checksums that are right whatever they are of.

use super::{
    Place,
    format::{
        CLOSING, FrameHeader, HEADER, Head, Kind, PAGE, RootSlot, SECTOR, SegmentHeader, put, word,
    },
};

/// Headers of any bytes, with the checksums they have and with right ones.
pub(in crate::queue::journal) fn headers(bytes: &[u8], salt: u64) {
    let mut sector = [0; SECTOR as usize];
    let some = bytes.len().min(sector.len());
    sector[..some].copy_from_slice(&bytes[..some]);
    let mut sealed = sector.to_vec();
    reseal_sector(&mut sealed, salt);
    let sealed: [u8; SECTOR as usize] = sealed.try_into().expect("as long as it was");
    for sector in [sector, sealed] {
        if let Head::Header(header) = SegmentHeader::decode(&sector, salt) {
            let again = SegmentHeader::decode(&header.encode(salt), salt);
            assert_eq!(again, Head::Header(header));
        }
        if let Some(slot) = RootSlot::decode(&sector, salt) {
            assert_eq!(RootSlot::decode(&slot.encode(salt), salt), Some(slot));
        }
    }
    let mut frame = sector.to_vec();
    if let Some(mut header) = seal_frame(&mut frame, Place::default(), salt) {
        let again = FrameHeader::decode(&header.encode(salt), salt, header.place);
        assert_eq!(again, Some(header));
        assert!(header.end() >= HEADER + CLOSING);
    }
}

/// Gives all headers, groups and closings in a file of a log the checksums that they need to be believed, and has
/// each group follow the one before it.
pub(crate) fn reseal(file: &mut [u8], salt: u64) {
    // The second slot of a root is a page behind the first.
    for at in [0, PAGE as usize] {
        if let Some(sector) = file.get_mut(at..at + SECTOR as usize) {
            reseal_sector(sector, salt);
        }
    }
    let mut at = PAGE as usize;
    let mut previous = None;
    while at + HEADER as usize <= file.len() {
        if let Some(previous) = previous
            && file[at..].starts_with(b"BYGR")
        {
            put(file, at + 28, previous);
        }
        let offset = u32::try_from(at).unwrap_or(u32::MAX);
        let place = Place {
            segment: word(file, at + 48),
            offset,
        };
        match seal_frame(&mut file[at..], place, salt) {
            Some(header) => {
                previous = Some(header.checksum);
                at = header.end().max(offset + SECTOR) as usize;
            }
            None => at += SECTOR as usize,
        }
    }
}

fn reseal_sector(sector: &mut [u8], salt: u64) {
    if sector.starts_with(b"BYSEGMNT") || sector.starts_with(b"BYROOT..") {
        sector[16..24].copy_from_slice(&salt.to_le_bytes());
        let sum = crc32fast::hash(&[&sector[..12], &sector[16..]].concat());
        put(sector, 12, sum);
    }
}

/// Makes what begins here with the magic of a frame one, if it has a kind and an end.
fn seal_frame(bytes: &mut [u8], place: Place, salt: u64) -> Option<FrameHeader> {
    if bytes.len() < HEADER as usize || !bytes.starts_with(b"BYGR") {
        return None;
    }
    let kind = match word(bytes, 32) % 4 {
        2 => Kind::Mark,
        3 => Kind::Continues(word(bytes, 36).max(place.segment.saturating_add(1))),
        _ => Kind::Group,
    };
    let mut header = FrameHeader {
        kind,
        place,
        epoch: word(bytes, 8),
        sequence: u64::from(word(bytes, 40)) | u64::from(word(bytes, 44)) << 32,
        previous: word(bytes, 28),
        body_bytes: word(bytes, 12),
        events_bytes: word(bytes, 16),
        body_checksum: 0,
        events_checksum: 0,
        checksum: 0,
    };
    let body = HEADER as usize..(HEADER as usize).checked_add(header.body_bytes as usize)?;
    let events = body.end..body.end.checked_add(header.events_bytes as usize)?;
    let closing = events.end..events.end.checked_add(CLOSING as usize)?;
    if closing.end <= bytes.len() {
        header.body_checksum = crc32fast::hash(&bytes[body]);
        header.events_checksum = header.seed(salt).checksum(&bytes[events]);
    }
    let encoded = header.encode(salt);
    bytes[..HEADER as usize].copy_from_slice(&encoded);
    if let Some(bytes) = bytes.get_mut(closing) {
        bytes.copy_from_slice(&header.closing());
    }
    Some(header)
}
