use super::*;

const SALT: u64 = 7;

/// Two pieces of two requests, with other bytes between them.
fn stretch() -> (Vec<u8>, Stretch) {
    let mut out = Vec::new();
    let mut stretch = Stretch {
        first: 10,
        last: 21,
        segment: 3,
        offset: 4096,
        requests: 4,
        ready: 4,
        ..Stretch::default()
    };
    let place = Place {
        segment: stretch.segment,
        offset: stretch.offset,
    };
    let anchor = Anchor { salt: SALT, place };
    for piece in 1..3_u64 {
        let from = out.len();
        let back = u32::try_from(from).unwrap() - stretch.tail;
        begin_piece(&mut out, anchor.behind(from), back);
        let mut roster = Roster::default();
        for request in 0..2 {
            let new = NewRequest::new(format!("payload {piece} {request}"));
            let new = match request {
                0 => new,
                _ => new.attribute("a", "b"),
            };
            let id = 10 * piece + request;
            let draft = Draft::new(new, None, None);
            let at = anchor.behind(out.len());
            draft.put(id, 7, at, &mut out);
            roster.add(id, draft.payload.len() as u64);
        }
        end_piece(&mut out, (from, anchor.behind(from)), back, &roster);
        stretch.tail = u32::try_from(from).unwrap();
        if piece == 1 {
            out.extend_from_slice(&[0xee; 100]);
        }
    }
    stretch.bytes = u32::try_from(out.len()).unwrap();
    (out, stretch)
}

/// All of them are ready.
fn known() -> Known {
    Known {
        salt: SALT,
        ..Known::default()
    }
}

fn ids(found: &[Found]) -> Vec<u64> {
    found.iter().map(|found| found.id).collect()
}

#[test]
fn the_requests_of_a_stretch_are_found_in_order() {
    let (bytes, stretch) = stretch();
    let found = requests(&bytes, &stretch, &known());
    assert_eq!(ids(&found), [10, 11, 20, 21]);
    let bytes = Bytes::from(bytes);
    assert_eq!(found[3].payload(&bytes).unwrap(), "payload 2 1");
    assert_eq!(found[3].extras(&bytes).unwrap().attributes["a"], "b");
    assert_eq!(found[0].extras(&bytes).unwrap(), Extras::default());
}

#[test]
fn a_flipped_byte_costs_one_request_which_is_still_known() {
    let (whole, stretch) = stretch();
    let shared = Bytes::from(whole.clone());
    let all = requests(&whole, &stretch, &known());
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let found = requests(&bytes, &stretch, &known());
        let bytes = Bytes::from(bytes);
        let mut lost = 0;
        assert_eq!(ids(&found), [10, 11, 20, 21], "byte {at}");
        for (found, original) in found.iter().zip(&all) {
            assert_eq!(found.bytes, original.bytes, "byte {at}");
            match found.payload(&bytes) {
                Ok(payload) => assert_eq!(Ok(payload), original.payload(&shared), "byte {at}"),
                Err(_) => lost += 1,
            }
        }
        assert!(lost <= 1, "byte {at}: {lost} requests are lost");
    }
}

#[test]
fn whatever_is_overwritten_there_are_as_many_requests_as_were_pushed() {
    let (whole, stretch) = stretch();
    let shared = Bytes::from(whole.clone());
    let all = requests(&whole, &stretch, &known());
    for from in 0..whole.len() {
        for to in from + 1..=whole.len() {
            let mut bytes = whole.clone();
            bytes[from..to].fill(0);
            let found = requests(&bytes, &stretch, &known());
            let bytes = Bytes::from(bytes);
            let mut known = ids(&found);
            known.dedup();
            assert!(
                known.is_sorted() && known.len() == 4,
                "{from}..{to}: {known:?}"
            );
            for found in found {
                assert!((10..=21).contains(&found.id), "{from}..{to}: {known:?}");
                if let Ok(payload) = found.payload(&bytes) {
                    let original = all.iter().find(|original| original.id == found.id);
                    let original = original.unwrap().payload(&shared);
                    assert_eq!(Ok(payload), original, "{from}..{to}");
                }
            }
        }
    }
    let found = requests(&[], &stretch, &known());
    assert_eq!(found.len(), 4);
}

#[test]
fn a_payload_that_is_a_copy_of_requests_is_not_taken_for_them() {
    let (copy, other) = stretch();
    let anchor = Anchor {
        salt: SALT,
        place: Place {
            segment: other.segment,
            offset: other.offset + other.bytes,
        },
    };
    let new = NewRequest::new(copy.clone());
    let mut bytes = Vec::new();
    begin_piece(&mut bytes, anchor, 0);
    Draft::new(new, None, None).put(15, 7, anchor.behind(bytes.len()), &mut bytes);
    // Neither a header nor a trailer that tells where requests lie.
    bytes[PIECE_HEADER] ^= 1;
    bytes[0] ^= 1;
    let stretch = Stretch {
        first: 10,
        last: 21,
        segment: anchor.place.segment,
        offset: anchor.place.offset,
        requests: 1,
        bytes: u32::try_from(bytes.len()).unwrap(),
        ..Stretch::default()
    };
    let found = requests(&bytes, &stretch, &known());
    assert_eq!(found.len(), 1);
    assert!(found[0].payload(&Bytes::from(bytes)).is_err());
    // Nor where the copied ones lay, in another store.
    let found = requests(
        &copy,
        &other,
        &Known {
            salt: SALT + 1,
            ..known()
        },
    );
    let copy = Bytes::from(copy);
    assert!(found.iter().all(|found| found.payload(&copy).is_err()));
}
