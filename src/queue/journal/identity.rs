//! Which store a log is of: what FORMAT states of it, and what the log itself tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    path::Path,
};

use super::{
    disk::Folder,
    log::{has_segments, salts},
};
use crate::{
    error::{Error, ErrorKind, Result},
    queue::{
        folder::Kind,
        stated::{self, JOURNAL, names_a_store},
    },
};

/// Which store it is, and whether it is known to have been used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) salt: u64,
    pub(super) is_used: bool,
}

/// The salt that FORMAT states or, if that is damaged, the one that lies in the files of the log; and whether it is
/// the latter. A few other digits are damage; another salt altogether is the log of another store.
pub(super) fn salt(
    path: &Path,
    stated: &BTreeMap<String, String>,
    there: &BTreeSet<u64>,
) -> Result<(u64, bool)> {
    let digits = stated.get(SALT).map_or("", String::as_str);
    let salt = u64::from_str_radix(digits, 16);
    let salt = salt.ok().filter(|_| digits.len() == 16);
    if let Some(salt) = salt
        && (there.is_empty() || there.contains(&salt))
    {
        return Ok((salt, false));
    }
    let is_near = |other: u64| {
        let other = format!("{other:016x}");
        let same = digits
            .bytes()
            .zip(other.bytes())
            .filter(|(one, other)| one == other);
        salt.is_none() || same.count() >= NEAR_DIGITS
    };
    match (there.first(), there.len()) {
        (Some(only), 1) if is_near(*only) => Ok((*only, true)),
        _ => Err(Error::corrupt(format!(
            "the FORMAT of {path} and the files in {path}/{LOG} are not of the same store: one of them is damaged, or comes \
             from elsewhere; bring back the one that belongs here",
            path = path.display()
        ))),
    }
}

/// What is to be done if FORMAT is not what it was, or gone, and beside it lies what a log is made of.
pub(super) fn lost_format(path: &Path, error: Error) -> Error {
    let is_refused = matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound);
    // What the system says is its own, and not about the store.
    let Ok(text) = stated::read(path) else {
        return error;
    };
    if !is_refused || error.source().is_some() || text.is_some_and(|text| names_a_store(&text)) {
        return error;
    }
    let Ok(log) = Folder::read_only(path.join(LOG)) else {
        return error;
    };
    if !has_segments(&log).unwrap_or_default() {
        return error;
    }
    let lost = format!(
        "the FORMAT of {} is damaged or gone, and beside it lies the log of a journal store",
        path.display()
    );
    let there = salts(&log).unwrap_or_default();
    match there.first() {
        Some(salt) if there.len() == 1 => Error::corrupt(format!(
            "{lost}; write FORMAT again, in these four lines: {magic:?}, \"version {version}\", \"{SALT} {salt:016x}\", \"{USED} {YES}\"",
            magic = KIND.magic,
            version = KIND.version,
        )),
        _ => Error::corrupt(format!(
            "{lost}, which does not tell what was in it; bring FORMAT back from a copy of the store"
        )),
    }
}

/// What is said of a FORMAT that does not state this salt.
pub(super) fn wrong_salt(stated: &BTreeMap<String, String>, salt: u64) -> String {
    let was = stated.get(SALT).map_or("none", String::as_str);
    format!("FORMAT did not name the salt of the log, {salt:016x}, but {was}")
}

pub(super) fn fields(identity: Identity) -> BTreeMap<String, String> {
    let salt = (SALT.to_owned(), format!("{:016x}", identity.salt));
    let used = identity.is_used.then(|| (USED.to_owned(), YES.to_owned()));
    used.into_iter().chain([salt]).collect()
}

pub(super) const KIND: Kind = Kind {
    magic: JOURNAL,
    version: 1,
};
pub(super) const SALT: &str = "salt";
/// So many of its 16 digits prove that a salt is meant.
const NEAR_DIGITS: usize = 8;
/// That the log has segments.
pub(super) const USED: &str = "used";
const YES: &str = "yes";
/// The folder of the log within that of the store.
pub(super) const LOG: &str = "log";
