//! Answers matched with the members of the batch that they are to, whatever their order and however often.

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    answer::{Answer, BadLine},
    custom_ids::CustomIds,
};
use crate::request::RequestId;

/// Which members of a batch have been answered, as the provider's files are read.
///
/// The first answer to a member counts: so the output file is read before that with errors. Every line is one of
/// [`Reading`], and when all are read, [`missing`](Self::missing) is who has none.
#[derive(Clone, Debug)]
pub struct Reconciler {
    ids: CustomIds,
    answered: HashSet<RequestId>,
}

/// What a line turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The first answer to this member.
    Answer(RequestId, Box<Answer>),
    /// A further one, or to a member that had an outcome before.
    Repeated(RequestId),
    /// An answer to nobody: its `custom_id` is missing, or no member was sent under it.
    Stranger(Option<String>),
    /// Not an answer.
    Bad(BadLine),
}

impl Reconciler {
    /// Nobody is answered yet.
    pub fn new(ids: CustomIds) -> Self {
        Self {
            ids,
            answered: HashSet::new(),
        }
    }

    /// A member that has an outcome, or was not sent: it is not missing.
    pub fn settled(&mut self, id: RequestId) {
        self.answered.insert(id);
    }

    /// Reads a line.
    pub fn read(&mut self, line: Bytes) -> Reading {
        let answer = match Answer::read(line) {
            Ok(answer) => answer,
            Err(bad) => return Reading::Bad(bad),
        };
        let of = answer
            .custom_id
            .as_deref()
            .and_then(|id| self.ids.request(id));
        match of {
            Some(id) if self.answered.insert(id) => Reading::Answer(id, Box::new(answer)),
            Some(id) => Reading::Repeated(id),
            None => Reading::Stranger(answer.custom_id),
        }
    }

    /// The members that have neither an answer nor an outcome, by id.
    pub fn missing(&self) -> Vec<RequestId> {
        let missing = self.ids.members().filter(|id| !self.answered.contains(id));
        let mut missing: Vec<_> = missing.collect();
        missing.sort_unstable();
        missing
    }

    /// Under which ids the members were sent.
    pub fn ids(&self) -> &CustomIds {
        &self.ids
    }
}
