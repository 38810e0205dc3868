//! Load reports: what the peers that we prefill for know of our queue.

use connector::frame::Frame;

use super::{Direction, PeerLinkState, Session, Stage};
use crate::effect::{Effect, to};
use crate::messages::{LoadReport, WriteFrame};

impl PeerLinkState {
    /// The load of this process has changed: the peers that it prefills for are told.
    pub(super) fn on_load(&mut self, load: LoadReport) -> Vec<Effect> {
        let before = self.load_frame();
        self.load = load;
        if self.load_frame() == before {
            return Vec::new();
        }
        let prefills = |live: &&Session| {
            live.stage == Stage::Probed && matches!(live.direction, Direction::Outgoing { .. })
        };
        let (sessions, frame) = (self.sessions.iter(), self.load_frame());
        let told = sessions.filter(|(_, live)| prefills(live));
        told.map(|(session, live)| {
            let (session, connection, frame) = (*session, live.connection, frame.clone());
            to::sockets(WriteFrame { session, connection, frame })
        })
        .collect()
    }

    /// The last load of this process.
    pub(super) fn load_frame(&self) -> Frame {
        let LoadReport { waiting_tokens, begun_tokens, nanos_per_token, decoding: _, decode: _ } = self.load;
        Frame::Load { waiting_tokens, begun_tokens, nanos_per_token, cache_pages: self.cache_pages }
    }
}
