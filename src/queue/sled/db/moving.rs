//! Has sled move pages out of segments that are nearly empty, so that those are used again.
//!
//! sled moves a page whenever it writes another one anew, if it knows of one that is to be moved. So one small page is written anew
//! again and again. When that is worth it:
//! ```text
//! opening          the snapshot tells how many pages lie in sparse segments; none are moved while the file is not
//!                  much larger than what lies in it
//! the file grows   there was no segment to be used again, so there may be sparse ones: some are moved, until that is in vain
//! ```

use std::sync::atomic::Ordering;

use super::{Db, held};
use crate::{
    error::Result,
    fault::{point, step},
    queue::sled::usage::{SEGMENT, SLACK_BYTES},
};

/// What is known of pages that are to be moved.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// How many moves are to be made.
    left: u64,
    /// What sled was given since the last moves.
    given: u64,
    /// How many bytes sled writes for some moves if there is nothing to be moved.
    idle_bytes: Option<usize>,
    /// How often nothing was moved, one time after the other, and whether anything was since the file has grown.
    in_vain: u32,
    is_of_use: bool,
    /// How large the file is when moves are planned next, and by how much it was to grow for that.
    mark: u64,
    step: u64,
}

impl Moving {
    /// Plans moves if the file has grown, the later the more often they were in vain.
    fn look(&mut self, file: u64) {
        if file < self.mark {
            return;
        }
        self.step = if self.is_of_use {
            SEGMENT
        } else {
            (self.step * 2).min(MAX_STEP)
        };
        self.mark = file.max(SLACK_BYTES) + self.step;
        if file > SLACK_BYTES {
            (self.left, self.is_of_use) = (self.left.max(GROWN_MOVES), false);
        }
    }

    /// Notes that some moves were made, and what sled wrote for them.
    fn made(&mut self, moves: u64, written: usize) {
        self.left = self.left.saturating_sub(moves);
        if self
            .idle_bytes
            .is_some_and(|idle| written <= idle + MORE_BYTES)
        {
            self.in_vain += 1;
        } else {
            (self.in_vain, self.is_of_use) = (0, true);
        }
        if self.in_vain >= MAX_IN_VAIN {
            (self.in_vain, self.left) = (0, 0);
        }
    }
}

impl Db {
    /// Plans so many moves for a database that was just opened, whose file has this many bytes.
    pub(in crate::queue::sled) fn plan_moves(&self, (moves, file): (u64, u64)) -> Result<()> {
        // There is nothing to be moved yet, before anything was written.
        self.write_all()?;
        let idle_bytes = self.change(MOVES)?;
        let mut moving = held(&self.moving);
        moving.idle_bytes = Some(idle_bytes).filter(|bytes| IDLE_BYTES.contains(bytes));
        (moving.left, moving.step) = (moves, SEGMENT);
        moving.mark = file.max(SLACK_BYTES) + SEGMENT;
        Ok(())
    }

    /// How many moves are planned.
    pub(in crate::queue::sled) fn moves(&self) -> u64 {
        held(&self.moving).left
    }

    /// Plans none any more: what lies in the file is about to be copied.
    pub(in crate::queue::sled) fn move_nothing(&self) {
        let mut moving = held(&self.moving);
        (moving.left, moving.mark) = (0, u64::MAX);
    }

    /// Syncs first if too much would be unsynced with so many bytes more.
    ///
    /// sled takes for granted that what it wrote before its last two segments is on the disk: it looks for the end of its
    /// log there only, and writes over a segment when what has replaced it lies further back. With less than a segment
    /// unsynced that is so. Else a disk that keeps some of it leaves a gap that sled does not see, or keeps what was written
    /// over a segment and loses what had replaced it.
    pub(super) fn make_way(&self, bytes: usize) -> Result<()> {
        let unsynced = self.unsynced.load(Ordering::Acquire);
        let is_too_much = unsynced > 0 && unsynced + bytes > MAX_UNSYNCED_BYTES;
        if is_too_much && self.guard("a sync", || Ok(step("sled.make_way")?))? {
            self.sync()?;
        }
        self.unsynced.fetch_add(bytes, Ordering::AcqRel);
        held(&self.moving).given += bytes as u64;
        Ok(())
    }

    /// Whether pages are to be moved.
    pub(in crate::queue::sled) fn has_moves(&self) -> bool {
        let mut moving = held(&self.moving);
        if let Ok(file) = self.file.metadata() {
            moving.look(file.len());
        }
        if moving.left == 0 {
            moving.given = 0;
        }
        moving.left > 0
    }

    /// Moves some pages, more of them after large writes.
    ///
    /// What is moved is the same before and after, and sled writes over the old place only once the new one is far behind
    /// in its log. Few moves may be most of a segment, so they are all that is unsynced then ([`make_way`](Db::make_way)).
    pub(in crate::queue::sled) fn move_some(&self) -> Result<()> {
        let given = std::mem::take(&mut held(&self.moving).given);
        for _ in 0..=(given / GIVEN_BYTES).min(MOST_ROUNDS) {
            let moves = held(&self.moving).left.min(MOVES);
            if moves == 0 {
                break;
            }
            self.write_all()?;
            if self.unsynced.load(Ordering::Acquire) > MAX_UNSYNCED_BYTES / 8 {
                self.sync()?;
            }
            let written = self.change(moves)?;
            point("sled.moved");
            held(&self.moving).made(moves, written);
            // How much was written is known of what sled did not write meanwhile.
            self.sync()?;
        }
        Ok(())
    }

    /// Has sled write a page anew so many times; how many bytes it has written for that.
    fn change(&self, moves: u64) -> Result<usize> {
        self.guard("a move", || {
            if step("sled.move")? {
                for change in 0..moves * CHANGES {
                    // sled writes nothing for a value that is there already.
                    self.sled.insert(CHANGED, &[u8::from(change % 2 == 0)])?;
                }
            }
            Ok(())
        })?;
        self.write_all()
    }

    /// Has sled write what it holds in memory, which is not durable then; how much that was.
    fn write_all(&self) -> Result<usize> {
        let written = self.guard("a move", || self.sled.flush())?;
        self.unsynced.fetch_add(written, Ordering::AcqRel);
        Ok(written)
    }
}

/// sled was seen to write up to five times as much, and a segment is eight times as large.
const MAX_UNSYNCED_BYTES: usize = 1 << 20;
/// So many are moved at a time: each takes up to a mebibyte, and what is unsynced has to stay well below a segment.
const MOVES: u64 = 4;
/// sled writes a page anew with each tenth change to it.
const CHANGES: u64 = 10;
/// The key that is changed, in the tree that every database of sled has and that holds nothing else.
const CHANGED: &[u8] = b"moved";
/// So much may be written for each time that some are moved.
const GIVEN_BYTES: u64 = 32 << 10;
/// How often some are moved at most, and once more, while callers wait.
const MOST_ROUNDS: u64 = 31;
/// How many moves are made for a file that has grown.
const GROWN_MOVES: u64 = 2_048;
/// How often nothing is moved before no more is tried.
const MAX_IN_VAIN: u32 = 32;
/// By how much a file grows at most before it is tried again.
const MAX_STEP: u64 = 64 * SEGMENT;
/// What moves in vain take: other figures are of something else, and say nothing.
const IDLE_BYTES: std::ops::Range<usize> = 600..2_000;
/// A note that a page is free, which is the smallest page, takes more.
const MORE_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn moving() -> Moving {
        Moving {
            idle_bytes: Some(700),
            mark: SLACK_BYTES + SEGMENT,
            step: SEGMENT,
            ..Moving::default()
        }
    }

    #[test]
    fn moves_are_planned_when_the_file_grows_and_later_when_they_are_in_vain() {
        let mut moving = moving();
        let mut planned = Vec::new();
        for segment in 8..60 {
            moving.look(segment * SEGMENT);
            if moving.left > 0 {
                planned.push(segment);
            }
            while moving.left > 0 {
                moving.made(MOVES, 705);
            }
        }
        assert_eq!(planned, [9, 11, 15, 23, 39]);
        // Once something is moved, it is tried at each segment again.
        moving.look(71 * SEGMENT);
        moving.made(MOVES, 5_000);
        moving.left = 0;
        moving.look(200 * SEGMENT);
        assert_eq!((moving.left, moving.mark), (GROWN_MOVES, 201 * SEGMENT));
    }

    #[test]
    fn moves_end_when_nothing_was_moved_many_times_or_all_are_made() {
        let mut moving = moving();
        moving.look(9 * SEGMENT);
        let mut made = 0;
        while moving.left > 0 {
            made += 1;
            // Now and then one small page is moved.
            moving.made(MOVES, if made % 20 == 0 { 720 } else { 700 });
        }
        assert_eq!(made, GROWN_MOVES / MOVES);
        moving.look(11 * SEGMENT);
        moving.idle_bytes = None;
        (0..MAX_IN_VAIN).for_each(|_| moving.made(MOVES, 700));
        assert!(
            moving.left > 0,
            "what is not known is not taken for in vain"
        );
    }
}
