//! Who holds each page: own sequences, prompts of peers, or both.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use engine::PageId;

use crate::messages::SequenceId;

/// The number of sequences that hold each page.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// A page without an entry is held by no sequence.
    pages: HashMap<PageId, Count>,
    /// Pages that only prompts of peers hold.
    of_peers: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    own: u32,
    peers: u32,
}

impl Count {
    fn of(&mut self, sequence: SequenceId) -> &mut u32 {
        match sequence {
            SequenceId::Own(_) => &mut self.own,
            SequenceId::Peer(_) => &mut self.peers,
        }
    }

    fn is_of_peers(self) -> bool {
        self.own == 0 && self.peers > 0
    }
}

impl Holders {
    /// The sequence holds the page.
    pub(super) fn add(&mut self, page: PageId, sequence: SequenceId) {
        let count = self.pages.entry(page).or_default();
        let before = count.is_of_peers();
        *count.of(sequence) += 1;
        self.of_peers = self.of_peers + u32::from(count.is_of_peers()) - u32::from(before);
    }

    /// The sequence holds the page no longer. Returns true if no sequence holds it now.
    pub(super) fn remove(&mut self, page: PageId, sequence: SequenceId) -> bool {
        let Entry::Occupied(mut entry) = self.pages.entry(page) else { return false };
        let count = entry.get_mut();
        let before = count.is_of_peers();
        *count.of(sequence) -= 1;
        self.of_peers = self.of_peers + u32::from(count.is_of_peers()) - u32::from(before);
        let is_free = count.own + count.peers == 0;
        if is_free {
            entry.remove();
        }
        is_free
    }

    /// Number of held pages.
    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }

    /// True if a sequence holds the page.
    pub(super) fn holds(&self, page: PageId) -> bool {
        self.pages.contains_key(&page)
    }

    /// True if an own sequence holds the page.
    pub(super) fn is_own(&self, page: PageId) -> bool {
        self.pages.get(&page).is_some_and(|count| count.own > 0)
    }

    /// Number of pages that only prompts of peers hold.
    pub(super) fn of_peers(&self) -> u32 {
        self.of_peers
    }
}
