//! Dialling: when to dial an address, and how to handle the answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Agreed, Dialler, Direction, PeerLinkState};
use crate::effect::{Effect, to};
use crate::log::LogLine;
use crate::messages::{
    Challenged, Dial, DialFailed, HangUp, ProcessFault, ReceiverId, SayHello, WakeDialler, Welcomed,
};

impl PeerLinkState {
    pub(super) fn on_start_dialling(&mut self) -> Vec<Effect> {
        let wake =
            |receiver: &ReceiverId| to::sockets(WakeDialler { receiver: *receiver, pause: Duration::ZERO });
        self.diallers.keys().map(wake).collect()
    }

    /// Dials the addresses that are new, and stops dialling those that are missing. Sessions continue in both cases.
    pub(super) fn on_peers_found(&mut self, addresses: &[String]) -> Vec<Effect> {
        self.finds_peers = true;
        let mut new: BTreeSet<&String> = addresses.iter().collect();
        for dialler in self.diallers.values_mut() {
            let is_wanted = new.remove(&dialler.address().to_owned());
            dialler.set_wanted(is_wanted);
        }
        let mut effects = Vec::new();
        for address in new {
            let receiver = ReceiverId(self.next_receiver);
            self.next_receiver += 1;
            self.diallers.insert(receiver, Dialler::new(address.clone()));
            effects.push(to::sockets(WakeDialler { receiver, pause: Duration::ZERO }));
        }
        effects
    }

    /// The dialler of this receiver; `None` if this process does not dial it any more. A dialler whose address has left the fleet ends here: it
    /// has neither an attempt nor a session now.
    fn dialler(&mut self, receiver: ReceiverId) -> Option<&mut Dialler> {
        if self.diallers.get(&receiver).is_some_and(|dialler| !dialler.is_wanted()) {
            self.diallers.remove(&receiver);
        }
        if self.is_ending() { None } else { self.diallers.get_mut(&receiver) }
    }

    /// The pause before dialling this receiver is over.
    pub(super) fn on_dial_due(&mut self, receiver: ReceiverId) -> Vec<Effect> {
        let is_unhealthy = self.fault.is_some();
        let Some(dialler) = self.dialler(receiver) else { return Vec::new() };
        dialler.begin();
        if is_unhealthy {
            return vec![to::sockets(WakeDialler { receiver, pause: dialler.short_pause() })];
        }
        vec![to::sockets(Dial { receiver, address: dialler.address().to_owned() })]
    }

    pub(super) fn dial_again(&mut self, receiver: ReceiverId) -> Vec<Effect> {
        match self.dialler(receiver) {
            Some(dialler) => vec![to::sockets(WakeDialler { receiver, pause: dialler.pause() })],
            None => Vec::new(),
        }
    }

    /// Dials this receiver again after 30 s, so that a peer that waits for a session comes first.
    pub(super) fn dial_later(&mut self, receiver: ReceiverId) -> Vec<Effect> {
        match self.dialler(receiver) {
            Some(dialler) => vec![to::sockets(WakeDialler { receiver, pause: dialler.long_pause() })],
            None => Vec::new(),
        }
    }

    /// A receiver answered with its challenge. If it is this process, or a process that is already connected over another address, the address is
    /// dialled again after 30 s, because another process may be there by then. If this process has as many sessions as it may have, it dials again
    /// after two seconds: the session that ends to make room is not dialled for 30 s, and the peer may make room too. In a fleet that
    /// may have more members than sessions, it dials again after 30 s.
    pub(super) fn on_challenged(&mut self, now: Instant, challenged: Challenged) -> Vec<Effect> {
        let Challenged { receiver, connection, incarnation } = challenged;
        let (own, is_full) = (self.own, self.is_full() && !self.attempts.is_live(incarnation));
        let (sessions, finds_peers) = (self.limits.sessions, self.finds_peers);
        let Some(dialler) = self.dialler(receiver) else {
            return vec![to::sockets(HangUp { connection })];
        };
        if incarnation == own {
            let address = dialler.address().to_owned();
            let is_news = dialler.on_failed("this process");
            dialler.hang_up();
            return vec![
                to::sockets(HangUp { connection }),
                to::log(LogLine::OwnAddress { address, is_news }),
                to::sockets(WakeDialler { receiver, pause: dialler.long_pause() }),
            ];
        }
        if is_full {
            let address = dialler.address().to_owned();
            let is_news = dialler.on_failed("full");
            dialler.hang_up();
            // A fleet may have more members than sessions.
            let pause = if finds_peers { dialler.long_pause() } else { dialler.short_pause() };
            self.crowd.note(now);
            return vec![
                to::sockets(HangUp { connection }),
                to::log(LogLine::Full { address, sessions, is_news }),
                to::sockets(WakeDialler { receiver, pause }),
            ];
        }
        let Some(attempt) = self.attempts.begin(incarnation) else {
            let Some(dialler) = self.dialler(receiver) else {
                return vec![to::sockets(HangUp { connection })];
            };
            let address = dialler.address().to_owned();
            let is_news = dialler.on_failed(&format!("same process as {incarnation}"));
            dialler.hang_up();
            return vec![
                to::sockets(HangUp { connection }),
                to::log(LogLine::SameReceiver { address, peer: incarnation, is_news }),
                to::sockets(WakeDialler { receiver, pause: dialler.long_pause() }),
            ];
        };
        self.targets.insert(receiver, incarnation);
        vec![to::sockets(SayHello { receiver, connection, attempt })]
    }

    /// The receiver was not reached, or refused us. A refusal that only a changed setting can end affects only this link. It ends
    /// the process only if this process decodes for no peer, this is its only receiver and no fleet can name others, and no session with it has ever
    /// worked.
    pub(super) fn on_dial_failed(&mut self, failed: DialFailed) -> Vec<Effect> {
        let DialFailed { receiver, reason, permanent } = failed;
        if let Some(incarnation) = self.targets.remove(&receiver) {
            self.attempts.failed(incarnation);
        }
        // A process that decodes works without this receiver.
        let is_only = self.diallers.len() == 1 && self.ring_pages == 0 && !self.finds_peers;
        let Some(dialler) = self.dialler(receiver) else { return Vec::new() };
        if dialler.has_hung_up() {
            return Vec::new();
        }
        let address = dialler.address().to_owned();
        if permanent && is_only && !dialler.has_worked() {
            return vec![to::process(ProcessFault(format!("receiver at {address}: {reason}")))];
        }
        let is_news = dialler.on_failed(&reason);
        if permanent {
            let pause = dialler.long_pause();
            let line = LogLine::Refused { address, reason, is_news };
            return vec![to::log(line), to::sockets(WakeDialler { receiver, pause })];
        }
        let line = to::log(LogLine::Unreachable { address, reason, is_news });
        [vec![line], self.dial_again(receiver)].concat()
    }

    /// A receiver that we dialled sent its Welcome.
    pub(super) fn on_welcomed(&mut self, now: Instant, welcomed: Welcomed) -> Vec<Effect> {
        let Welcomed {
            receiver,
            connection,
            address,
            incarnation: peer,
            descriptor,
            ring_pages,
            version,
            seed,
        } = welcomed;
        let challenged = self.targets.remove(&receiver);
        if ring_pages == 0 {
            let reason =
                "the receiver's ring has no pages, so it cannot receive KV; raise its ring.bytes or its pool"
                    .to_owned();
            self.targets.extend(challenged.map(|challenged| (receiver, challenged)));
            let failed = DialFailed { receiver, reason, permanent: false };
            return [vec![to::sockets(HangUp { connection })], self.on_dial_failed(failed)].concat();
        }
        if self.is_ending() || challenged != Some(peer) {
            challenged.into_iter().for_each(|challenged| self.attempts.failed(challenged));
            let hang_up = to::sockets(HangUp { connection });
            return [vec![hang_up], self.dial_again(receiver)].concat();
        }
        let direction = Direction::Outgoing { receiver, descriptor };
        let agreed = Agreed { direction, connection, peer, address, ring_pages, version, seed };
        self.begin(now, String::new(), agreed)
    }
}
