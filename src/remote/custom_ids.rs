//! Under which `custom_id` each member of a batch is sent, so that its answer comes home.

use std::collections::HashMap;

use crate::{batch::Member, request::RequestId};

use super::call::own_custom_id;

/// The `custom_id` of every member of a batch, and the member of every `custom_id`.
///
/// A member keeps its own if every provider takes it, no member before it has the same, and it does not look like a
/// request id; else it is its request id, 16 hexadecimal digits. So the same members in the same order always have the
/// same, whatever has become of them meanwhile: they are made anew after a crash.
#[derive(Clone, Debug, Default)]
pub struct CustomIds {
    members: HashMap<RequestId, Option<Box<str>>>,
    requests: HashMap<Box<str>, RequestId>,
}

impl CustomIds {
    /// Those of no members yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next member, as it is stored, and answers its `custom_id`. Members that are not sent are added as well.
    pub fn add(&mut self, member: &Member) -> String {
        let is_free = |own: &String| {
            own.parse::<RequestId>().is_err() && !self.requests.contains_key(own.as_str())
        };
        let own = own_custom_id(&member.payload, &member.attributes).filter(is_free);
        let own = own.map(String::into_boxed_str);
        if let Some(own) = &own {
            self.requests.insert(own.clone(), member.id);
        }
        self.members.insert(member.id, own);
        self.of(member.id)
    }

    /// That of a member.
    pub fn of(&self, id: RequestId) -> String {
        match self.members.get(&id) {
            Some(Some(own)) => own.as_ref().to_owned(),
            _ => id.to_string(),
        }
    }

    /// The member that was sent under it.
    pub fn request(&self, custom_id: &str) -> Option<RequestId> {
        let by_own = self.requests.get(custom_id).copied();
        by_own.or_else(|| {
            let id = custom_id.parse().ok()?;
            // One with an id of its own was not sent under ours.
            let is_ours = self.members.get(&id).is_some_and(Option::is_none);
            is_ours.then_some(id)
        })
    }

    /// All members, in no order.
    pub fn members(&self) -> impl Iterator<Item = RequestId> {
        self.members.keys().copied()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}
