//! Where a request goes: the decisions of the proxy, without actix, clock or I/O.

use crate::messages::SessionId;
use crate::request::{Generate, Refused, Route};

/// The senders that can prefill, and what this node can hold.
#[derive(Debug)]
pub struct ProxyState {
    page_tokens: u32,
    request_pages: u32,
    peers: Vec<SessionId>,
    next: usize,
    draining: bool,
}

impl ProxyState {
    /// No senders; a request may need at most `request_pages` pages of `page_tokens` tokens.
    pub fn new(page_tokens: u32, request_pages: u32) -> Self {
        Self { page_tokens, request_pages, peers: Vec::new(), next: 0, draining: false }
    }

    /// A sender can prefill.
    pub fn on_peer_ready(&mut self, session: SessionId) {
        self.peers.push(session);
    }

    /// A sender is gone, or takes no new prefills.
    pub fn on_peer_lost(&mut self, session: SessionId) {
        self.peers.retain(|peer| *peer != session);
    }

    /// No new requests from now on.
    pub fn on_drain(&mut self) {
        self.draining = true;
    }

    /// Which sender prefills this request, in turn; `None`: this node.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn route(&mut self, generate: &Generate) -> Result<Option<SessionId>, Refused> {
        if self.draining {
            return Err(Refused::ShuttingDown);
        }
        let tokens = generate.prompt.len() as u64 + u64::from(generate.max_tokens).saturating_sub(1);
        let needed = tokens.div_ceil(u64::from(self.page_tokens)) as u32;
        if needed > self.request_pages {
            return Err(Refused::TooLarge { needed, usable: self.request_pages });
        }
        if generate.route == Route::Local || self.peers.is_empty() {
            return Ok(None);
        }
        self.next = (self.next + 1) % self.peers.len();
        Ok(Some(self.peers[self.next]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::request::RequestId;

    fn generate(prompt: usize, max_tokens: u32, route: Route) -> Generate {
        Generate {
            request: RequestId(1),
            prompt: vec![1; prompt].into(),
            max_tokens,
            sampling: Default::default(),
            ignore_eos: false,
            deadline: Instant::now(),
            route,
        }
    }

    #[test]
    fn senders_take_turns_and_leave() {
        let mut state = ProxyState::new(16, 10);
        assert_eq!(state.route(&generate(1, 1, Route::Auto)), Ok(None));
        state.on_peer_ready(SessionId(1));
        state.on_peer_ready(SessionId(2));
        let first = state.route(&generate(1, 1, Route::Auto));
        let second = state.route(&generate(1, 1, Route::Auto));
        assert_ne!(first, second);
        assert_eq!(state.route(&generate(1, 1, Route::Local)), Ok(None));
        state.on_peer_lost(SessionId(1));
        assert_eq!(state.route(&generate(1, 1, Route::Auto)), Ok(Some(SessionId(2))));
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let mut state = ProxyState::new(16, 10);
        assert_eq!(state.route(&generate(100, 61, Route::Auto)), Ok(None));
        let refused = Err(Refused::TooLarge { needed: 11, usable: 10 });
        assert_eq!(state.route(&generate(100, 62, Route::Auto)), refused);
        state.on_drain();
        assert_eq!(state.route(&generate(1, 1, Route::Auto)), Err(Refused::ShuttingDown));
    }
}
