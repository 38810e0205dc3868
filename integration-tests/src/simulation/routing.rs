//! Delivers effects in virtual time: to the states of a process through mailboxes, and to its clients, threads and sockets.
//!
//! Messages stay in order on each edge between two endpoints. Each edge has its own delays, so messages of different edges have no order. An
//! effect that is not in the table of messages is a violation.

use actors::effect::{
    Effect, Endpoint, ToDecoder, ToEngine, ToGrammarThread, ToHashThread, ToKvEvents, ToLog, ToPeerLink,
    ToProcess, ToProxy, ToStreams, ToTraces, ToTransport, to,
};
use actors::log::LogLine;
use actors::messages::{PageToHash, PagesHashed, SendFrame, SessionId};
use actors::request::{AbortRequest, RequestId};
use actors::routing::LocalPrefill;
use connector::frame::{Frame, PageOwner};
use connector::page_hash::PageSeed;
use connector::ring::CreditNumber;
use engine::PageId;

use super::parts::OutletName;
use super::plan::{MS, SECOND};
use super::world::{Event, World};

/// Time after which no request may still wait for a lost session, unless the receiver's process was stopped.
const FORGETTING: u64 = 2 * SECOND;

impl World {
    /// Delivers the effects of an endpoint of a process in order.
    pub(super) fn perform(&mut self, node: usize, from: Endpoint, effects: Vec<Effect>) {
        for effect in effects {
            if !effect.row().from.contains(&from) {
                return self
                    .fail(format!("{from:?} sends {effect:?}, which is not in the table of messages"));
            }
            match effect {
                Effect::Streams(message) => self.tell_client(node, message),
                Effect::Engine(ToEngine::RunStep(plan)) => self.give_step(node, plan),
                Effect::HashThread(ToHashThread::HashPages(pages)) => {
                    pages.0.into_iter().for_each(|page| self.hash(node, page));
                }
                Effect::GrammarThread(ToGrammarThread::CompileGrammar(compile)) => {
                    self.compile(node, compile)
                }
                Effect::Traces(ToTraces::PrefillTraced(traced)) => self.prefill_traced(node, &traced),
                Effect::KvEvents(ToKvEvents::CacheChanged(changed)) => self.cache_changed(node, changed),
                Effect::Transport(ToTransport::Command(command)) => self.command_transport(node, command),
                Effect::Sockets(message) => self.command_sockets(node, message),
                Effect::Log(ToLog::LogLine(line)) => self.note(node, &line),
                Effect::Process(ToProcess::ProcessFault(fault)) => {
                    return self.fail(format!("process {node} reports a fault: {}", fault.0));
                }
                Effect::PeerLink(ToPeerLink::SendFrame(send)) if from == Endpoint::Transfer => {
                    let outlet = OutletName { node, life: self.nodes[node].life, session: send.session };
                    self.look_at_frame(outlet, &send.frame);
                    self.pages_are_sent(outlet, &send.frame);
                    for frame in self.as_sent(outlet, send.frame) {
                        self.post(node, from, to::peer_link(SendFrame { session: send.session, frame }));
                    }
                }
                effect => self.post(node, from, effect),
            }
        }
    }

    /// Puts a message into the mailbox of its edge.
    fn post(&mut self, node: usize, from: Endpoint, effect: Effect) {
        let process = &mut self.nodes[node];
        if !process.alive {
            return;
        }
        let edge = (from, effect.row().to);
        process.mailboxes.entry(edge).or_default().push_back(effect);
        let wait = self.dice.wait(100, 30 * MS);
        self.at_node(node, wait, Event::Deliver(edge));
    }

    /// Sends a message after `wait` from an endpoint that is not a state.
    pub(super) fn send_later(&mut self, node: usize, wait: u64, from: Endpoint, effect: Effect) {
        self.at_node(node, wait, Event::Send(from, Box::new(effect)));
    }

    /// A state handles a message.
    pub(super) fn deliver(&mut self, node: usize, (from, actor): (Endpoint, Endpoint), effect: Effect) {
        self.trace_event(|| format!("{node} {from:?} → {effect:?}"));
        let (now, micros, hashed) = (self.instant(), self.now, self.plan.hashed);
        self.is_allowed(node, &effect);
        let process = &mut self.nodes[node];
        let effects = match effect {
            Effect::BufferManager(mail) => {
                let may_use = self.plan.nodes[node].request_pages();
                let memory = &process.memory;
                let hasher = |pages: &[(PageId, PageSeed)]| -> Vec<u64> {
                    pages.iter().map(|(page, seed)| memory.hash(*page, *seed)).collect()
                };
                let effects = process.pool.on(now, mail, hashed.then_some(&hasher));
                let (needed, lost) = (process.pool.needed_most(), process.pool.lasting_quarantine());
                if needed > may_use.saturating_sub(lost) {
                    return self.fail(format!(
                        "a request waits for {needed} pages; {may_use} are usable, and {lost} of them in lasting quarantines"
                    ));
                }
                self.may_stall(node, &effects);
                effects
            }
            Effect::Generator(mail) => process.generator.on(micros, mail),
            Effect::PeerLink(mail) => {
                let effects = process.link.on(now, mail);
                let (ready, most) = (process.link.ready(), self.plan.limits.unwrap_or_default().sessions);
                if ready > most as usize {
                    return self.fail(format!("node {node} has {ready} sessions, but may have {most}"));
                }
                effects
            }
            Effect::Proxy(mail) => match &mut process.decoding {
                Some(decoding) => decoding.proxy.on(now, mail),
                // In the simulator, a node that only prefills serves no requests of its own.
                None if matches!(mail, ToProxy::LoadReport(_)) => Vec::new(),
                None => return self.fail(format!("node {node} has no proxy")),
            },
            Effect::Decoder(mail) => match &mut process.decoding {
                Some(decoding) => {
                    let lost = match &mail {
                        ToDecoder::PeerLost(lost) => Some(lost.session),
                        _ => None,
                    };
                    let effects = decoding.decoder.on(now, mail);
                    if lost.is_some_and(|session| decoding.decoder.waiting_for(session) > 0) {
                        return self.fail(format!("requests still wait for the lost {lost:?}"));
                    }
                    effects
                }
                None if matches!(mail, ToDecoder::LoadReport(_)) => Vec::new(),
                None => return self.fail(format!("node {node} has no decoder")),
            },
            Effect::Prefiller(mail) => match &mut process.prefilling {
                Some(prefilling) => prefilling.prefiller.on(now, mail),
                None => return self.fail(format!("node {node} has no prefiller")),
            },
            Effect::Transfer(mail) => match &mut process.prefilling {
                Some(prefilling) => prefilling.transfer.on(micros, mail),
                None => return self.fail(format!("node {node} has no transfer actor")),
            },
            other => return self.fail(format!("{other:?} is not a message to a state")),
        };
        self.perform(node, actor, effects);
    }

    /// Checks messages that must fit the client's request.
    fn is_allowed(&mut self, node: usize, effect: &Effect) {
        match effect {
            Effect::Generator(mail) => self.sequence_runs(node, mail),
            Effect::BufferManager(mail) => self.pages_are_for(node, mail),
            Effect::Prefiller(mail) => self.prefiller_hears(node, mail),
            Effect::Transfer(mail) => self.transfer_hears(node, mail),
            _ => {}
        }
    }

    fn tell_client(&mut self, node: usize, message: ToStreams) {
        match message {
            ToStreams::StreamPrompt(prompt) => self.prompt_scored(prompt.request, &prompt.logprobs),
            ToStreams::StreamToken(token) => {
                if !self.token(token.request, token.token.id) {
                    let abort = AbortRequest::cancelled(token.request);
                    self.perform(node, Endpoint::Streams, vec![to::decoder(abort)]);
                }
            }
            ToStreams::StreamEnd(end) => self.end(end.request, &end.event),
        }
    }

    fn hash(&mut self, node: usize, page: PageToHash) {
        let PageToHash { session, page, seed } = page;
        let hash = self.nodes[node].memory.hash(page, seed);
        let wait = self.dice.wait(1, 20 * MS);
        let hashed = PagesHashed(vec![(session, CreditNumber(seed.credit), hash)]);
        self.send_later(node, wait, Endpoint::HashThread, to::transfer(hashed));
    }

    fn note(&mut self, node: usize, line: &LogLine) {
        match line {
            LogLine::SessionOver { session, reason, .. } => {
                self.may_end(node, *session, reason);
                let look = Event::MustBeForgotten { session: *session, is_last: false };
                self.at_node(node, FORGETTING, look);
            }
            LogLine::PrefillFailed { reason, .. } if reason.contains("no credit") => {
                self.report.no_credit += 1
            }
            LogLine::PrefillFailed { reason, .. } if reason.contains("are usable now") => {
                self.report.no_room += 1;
            }
            LogLine::ReceiverReady { .. } => self.report.sessions += 1,
            LogLine::PageDamaged { .. } => self.report.damaged += 1,
            _ => {}
        }
    }

    /// Checks that the statements of a frame are true before it is sent.
    fn look_at_frame(&mut self, outlet: OutletName, frame: &Frame) {
        match frame {
            Frame::PageFilled { first, count, .. } => self.has_landed(outlet, *first, *count),
            Frame::LinkProbed { .. } => self.is_probed(outlet),
            _ => {}
        }
    }

    /// A live request of the outlet's peer whose latest prefill was asked of another node. If requests are placed again, it could be asked of this
    /// node before the wrong frame arrives, and only a hash would show that the page is another one.
    fn landing_elsewhere(&self, outlet: OutletName) -> Option<u64> {
        if self.plan.local == LocalPrefill::Never && !self.plan.hashed {
            return None;
        }
        let home = self.lane_of(outlet)?.node;
        let lives = |request: u64| {
            let client = self.clients.get(&RequestId(request));
            client.is_some_and(|client| client.home == home && client.end.is_none())
        };
        let mut asked = self.asked.iter().rev();
        asked.find(|(request, node)| **node != outlet.node && lives(**request)).map(|(request, _)| *request)
    }

    /// No request waits for a session that was lost long ago.
    pub(super) fn must_be_forgotten(&mut self, node: usize, session: SessionId, is_last: bool) {
        let Some(decoding) = &self.nodes[node].decoding else { return };
        let waiting = decoding.decoder.waiting_for(session);
        if waiting > 0 && is_last {
            self.fail(format!("{waiting} requests still wait for {session}, which was lost long ago"));
        } else if waiting > 0 {
            // The process may have been stopped in the meantime, so it gets the same time again.
            self.at_node(node, FORGETTING, Event::MustBeForgotten { session, is_last: true });
        }
    }

    /// The frames that are sent: the given frame, or wrong frames if the node miscounts. It waits for a request that another node prefills,
    /// but not for long.
    fn as_sent(&mut self, outlet: OutletName, frame: Frame) -> Vec<Frame> {
        let counts = matches!(frame, Frame::PageFilled { owner: Some(_), .. });
        if !counts || !self.miscounts.contains(&outlet.node) {
            return vec![frame];
        }
        let elsewhere = self.landing_elsewhere(outlet);
        if elsewhere.is_none() && !self.dice.one_in(4) {
            return vec![frame];
        }
        self.miscounts.remove(&outlet.node);
        match (frame, elsewhere) {
            (
                Frame::PageFilled { first, count, owner: Some(owner), hashes, transfer_micros },
                Some(request),
            ) => {
                let owner = Some(PageOwner { request, ..owner });
                vec![Frame::PageFilled { first, count, owner, hashes, transfer_micros }]
            }
            (Frame::PageFilled { first, count, owner, hashes, transfer_micros }, _)
                if self.dice.one_in(2) =>
            {
                let first = CreditNumber(first.0 + 1);
                vec![Frame::PageFilled { first, count, owner, hashes, transfer_micros }]
            }
            (frame, _) => vec![frame.clone(), frame],
        }
    }
}
