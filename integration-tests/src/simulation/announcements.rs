//! The checks of KV events: at all times, routers know exactly the cached pages without a salt.

use actors::messages::{CacheChanged, CacheEvent, PrefixHash};

use super::plan::PAGE_TOKENS;
use super::world::World;

impl World {
    /// A process announces changes of its prefix cache.
    pub(super) fn cache_changed(&mut self, node: usize, CacheChanged(events): CacheChanged) {
        for event in &events {
            let announced = &mut self.nodes[node].announced;
            let is_right = match event {
                CacheEvent::Cleared => false,
                CacheEvent::Stored { parent, hashes, tokens } => {
                    let mut before = *parent;
                    let mut pages = tokens.chunks(PAGE_TOKENS as usize);
                    before.is_none_or(|parent| announced.contains(&parent))
                        && hashes.len() * PAGE_TOKENS as usize == tokens.len()
                        && hashes.iter().all(|hash| {
                            let own = pages.next().map(|page| PrefixHash::of(before, page));
                            before = own;
                            own == Some(*hash) && announced.insert(*hash)
                        })
                }
                CacheEvent::Removed { hashes } => hashes.iter().all(|hash| announced.remove(hash)),
            };
            if !is_right {
                return self.fail(format!(
                    "process {node} announces {event:?}, which does not fit its earlier events"
                ));
            }
        }
        let (known, cached) = (self.nodes[node].announced.len(), self.nodes[node].pool.unsalted());
        if known != cached {
            self.fail(format!(
                "routers know {known} pages of process {node}, which has {cached} cached pages without a salt"
            ));
        }
    }
}
