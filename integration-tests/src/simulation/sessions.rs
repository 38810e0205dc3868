//! Connections and what runs over them: dialling, handshakes, frames, and the actions of both peer links.

use std::collections::VecDeque;

use actors::first_token;
use actors::messages::{PageFilled, PrefillFailed, PrefillFinished, SessionId, StartPrefill};
use actors::peer_link::state::{Action, SenderSession, SessionOver};
use actors::request::RequestId;
use connector::frame::{Frame, Incarnation};

use super::lane::OutletName;
use super::machine::next_token;
use super::node::{Actor, Mail, incarnation};
use super::plan::{MS, SECOND};
use super::world::{Event, RECEIVER, World};

/// Longest wait of a dialler for an answer.
const HANDSHAKE: u64 = 5 * SECOND;

/// One TCP connection, dialled by a sender. Of each pair the receiver's is first.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) sender: usize,
    pub(super) lives: [u32; 2],
    pub(super) sessions: [Option<SessionId>; 2],
    /// Frames on their way to each side.
    frames: [VecDeque<Frame>; 2],
    /// Each side still hears what comes.
    pub(super) open: [bool; 2],
    /// Each side takes frames: its handshake is over, and its session is not.
    carried: [bool; 2],
}

impl World {
    fn node_of(&self, conn: u64, side: usize) -> Option<usize> {
        let found = self.conns.get(&conn)?;
        Some(if side == 0 { RECEIVER } else { found.sender })
    }

    /// The process at this side of the connection, if it is the one that made it.
    fn living(&self, conn: u64, side: usize) -> Option<usize> {
        let node = self.node_of(conn, side)?;
        let process = &self.nodes[node];
        (process.alive && process.life == self.conns[&conn].lives[side]).then_some(node)
    }

    pub(super) fn reachable(&self, sender: usize) -> bool {
        self.nodes[RECEIVER].alive && self.cut_until.get(&sender).copied().unwrap_or_default() <= self.now
    }

    /// A sender's dialling task makes an attempt.
    pub(super) fn dial(&mut self, node: usize) {
        let reachable = self.reachable(node);
        let lives = [self.nodes[RECEIVER].life, self.nodes[node].life];
        let conn = self.conns.len() as u64;
        let Some(sender) = self.nodes[node].sender() else { return };
        if sender.unwell {
            return self.at_node(node, 2 * SECOND, Event::Dial);
        }
        let attempt = sender.line.dial();
        if !reachable {
            return self.redial(node);
        }
        sender.dialling = Some(conn);
        self.conns.insert(
            conn,
            Conn {
                sender: node,
                lives,
                sessions: [None; 2],
                frames: [VecDeque::new(), VecDeque::new()],
                open: [true; 2],
                carried: [false; 2],
            },
        );
        // A Hello may lie in a buffer until long after its dialler has given up.
        let late = self.plan.late_hellos && self.dice.one_in(4);
        let wait = if late { self.dice.between(MS, 12 * SECOND) } else { self.dice.wait(2 * MS, 7 * SECOND) };
        let hello = Mail::Hello { conn, attempt, incarnation: incarnation(node, lives[1]) };
        self.at_node(RECEIVER, wait, Event::Mail(Actor::Link, Box::new(hello)));
        self.at_node(node, HANDSHAKE, Event::HandshakeLate(conn));
    }

    fn redial(&mut self, node: usize) {
        let wait = self.dice.between(200 * MS, 2 * SECOND);
        self.at_node(node, wait, Event::Dial);
    }

    pub(super) fn handshake_late(&mut self, node: usize, conn: u64) {
        let Some(sender) = self.nodes[node].sender() else { return };
        if sender.dialling == Some(conn) {
            sender.dialling = None;
            self.hang_up(conn, 1, false);
            self.redial(node);
        }
    }

    /// One side closes the connection; the other hears of it, with a goodbye or without.
    pub(super) fn hang_up(&mut self, conn: u64, side: usize, goodbye: bool) {
        let Some(found) = self.conns.get_mut(&conn) else { return };
        (found.open[side], found.carried[side]) = (false, false);
        let other = 1 - side;
        if std::mem::take(&mut found.open[other]) {
            let wait = self.dice.wait(MS, 3 * SECOND);
            self.link_ends(conn, other, wait, goodbye);
        }
    }

    /// A side hears after `wait` that its connection is over.
    pub(super) fn link_ends(&mut self, conn: u64, side: usize, wait: u64, goodbye: bool) {
        let Some(node) = self.living(conn, side) else { return };
        match self.conns[&conn].sessions[side] {
            Some(session) => {
                let mail = Mail::LinkEnded { session, goodbye };
                self.at_node(node, wait, Event::Mail(Actor::Link, Box::new(mail)));
            }
            // A dialler in its handshake: the attempt has failed.
            None if side == 1 => self.at_node(node, wait, Event::HandshakeLate(conn)),
            None => {}
        }
    }

    fn send(&mut self, conn: u64, side: usize, frame: Frame) {
        let Some(found) = self.conns.get_mut(&conn).filter(|found| found.open[side]) else { return };
        found.frames[side].push_back(frame);
        let wait = self.dice.wait(MS, 500 * MS);
        self.at(wait, None, Event::FrameArrives(conn, side));
    }

    pub(super) fn frame_arrives(&mut self, conn: u64, side: usize) {
        let Some(node) = self.living(conn, side) else { return };
        let stopped = self.nodes[node].stopped_until;
        if stopped > self.now {
            return self.at(stopped - self.now + 1, None, Event::FrameArrives(conn, side));
        }
        let Some(found) = self.conns.get_mut(&conn) else { return };
        if !found.open[side] {
            return;
        }
        let Some(session) = found.sessions[side].filter(|_| found.carried[side]) else {
            // It waits in the socket until the handshake is over.
            return self.at(MS, None, Event::FrameArrives(conn, side));
        };
        if let Some(frame) = found.frames[side].pop_front() {
            self.post(node, Actor::Link, Mail::Frame(session, frame));
        }
    }

    pub(super) fn link_takes(&mut self, node: usize, mail: Mail) {
        let now = self.instant();
        let link = &mut self.nodes[node].link;
        let actions = match mail {
            Mail::Hello { conn, attempt, incarnation } => return self.hello(conn, attempt, incarnation),
            Mail::Welcomed { conn, descriptor, ring_pages } => {
                let Some(sender) = self.nodes[node].sender() else { return };
                if sender.dialling != Some(conn) {
                    return;
                }
                sender.dialling = None;
                let link = &mut self.nodes[node].link;
                if link.is_closing() {
                    return;
                }
                let (session, actions) = link.on_handshake(now, None, Some(descriptor));
                self.nodes[node].conns.insert(session, conn);
                if let Some(found) = self.conns.get_mut(&conn) {
                    found.sessions[1] = Some(session);
                }
                let seed = seed(conn);
                self.post(node, Actor::Transfer, Mail::SessionOpened { session, ring_pages, seed });
                if !self.conns[&conn].open[1] {
                    self.link_ends(conn, 1, 0, false);
                }
                actions
            }
            Mail::Frame(session, frame) => return self.frame(node, session, frame),
            Mail::LinkEnded { session, goodbye: true } => link.on_goodbye(session),
            Mail::LinkEnded { session, .. } => link.on_end(session, "link broke".into()),
            Mail::Send(send) => {
                let probed = matches!(send.frame, Frame::LinkProbed { .. });
                let actions = if probed { link.on_probed(send.session) } else { Vec::new() };
                self.link_does(node, actions);
                if let Some(conn) = self.nodes[node].conns.get(&send.session).copied() {
                    self.send(conn, usize::from(node == RECEIVER), send.frame);
                }
                return;
            }
            Mail::Break(session, reason) => link.on_end(session, reason),
            Mail::Opened(session, descriptor) => link.on_opened(session, Ok(descriptor)),
            Mail::LaneFailed(session) => link.on_end(session, "lane failed".into()),
            Mail::Closed(session, drained) => link.on_closed(session, drained),
            Mail::ProcessGone(incarnation) => link.on_process_gone(&incarnation),
            Mail::Health(fault) => {
                let actions = link.on_health(fault.clone());
                if let Some(sender) = self.nodes[node].sender() {
                    sender.unwell = fault.is_some();
                }
                actions
            }
            Mail::Over(SessionOver { drained, .. }) => {
                if let Some(sender) = self.nodes[node].sender() {
                    sender.line.on_over(drained);
                }
                return self.redial(node);
            }
            Mail::Tick => link.on_tick(now),
            other => return self.fail(format!("the link was sent {other:?}")),
        };
        self.link_does(node, actions);
    }

    fn hello(&mut self, conn: u64, attempt: actors::peer_link::dial_line::Attempt, incarnation: Incarnation) {
        let now = self.instant();
        let (line, number) = (attempt.line, attempt.session);
        let sender = SenderSession { incarnation, line, number, is_watched: !self.plan.blind };
        let link = &mut self.nodes[RECEIVER].link;
        let actions = link.on_hello(sender, attempt.previous, attempt.previous_drained);
        self.link_does(RECEIVER, actions);
        let link = &mut self.nodes[RECEIVER].link;
        if link.admit(sender).is_err() {
            return self.hang_up(conn, 0, false);
        }
        let (session, actions) = link.on_handshake(now, Some(sender), None);
        self.nodes[RECEIVER].conns.insert(session, conn);
        if let Some(found) = self.conns.get_mut(&conn) {
            found.sessions[0] = Some(session);
        }
        // A process that had gone before anybody looked is seen to be gone when somebody does.
        let (of, life) = (incarnation.pid as usize, incarnation.start_ticks as u32);
        let gone = !self.nodes[of].alive || self.nodes[of].life != life;
        if gone && !self.plan.blind {
            self.post(RECEIVER, Actor::Link, Mail::ProcessGone(incarnation));
        }
        if !self.conns[&conn].open[0] {
            let wait = self.dice.wait(MS, SECOND);
            self.link_ends(conn, 0, wait, false);
        }
        self.link_does(RECEIVER, actions);
    }

    fn frame(&mut self, node: usize, session: SessionId, frame: Frame) {
        let Some(conn) = self.nodes[node].conns.get(&session).copied() else { return };
        if !self.conns[&conn].carried[usize::from(node != RECEIVER)] {
            return;
        }
        let pid = self.conns[&conn].sender as u32;
        use Actor::{Buffers, Decoder, Prefiller, Proxy, Transfer};
        let mut probed = false;
        let (actor, mail) = match frame {
            Frame::PageFilled { first, count, owner, hashes, transfer_micros } => {
                let filled = PageFilled { session, first, count, owner, hashes, transfer_micros };
                (Buffers, Mail::Filled(filled))
            }
            Frame::PrefillFinished { request, token, logprobs, prefill_micros } => {
                let token = first_token::join(token, logprobs);
                let request = RequestId(request);
                let finished = PrefillFinished { session, request, token, prefill_micros };
                (Decoder, Mail::PrefillFinished(finished))
            }
            Frame::PrefillFailed { request, reason } => {
                let failed = PrefillFailed { session, request: RequestId(request), reason };
                (Decoder, Mail::PrefillFailed(failed))
            }
            Frame::LinkProbed { .. } => {
                probed = true;
                self.post(node, Decoder, Mail::PeerReady(session, pid));
                (Proxy, Mail::PeerReady(session, pid))
            }
            Frame::Leaving => (Proxy, Mail::PeerLeaving(session)),
            Frame::RingShare { pages } => (Transfer, Mail::RingShared(session, pages)),
            Frame::Grant { first, pages } => (Transfer, Mail::Granted(session, first, pages)),
            Frame::Prefill { request, prompt, resident, sampling, remaining_ms } => {
                let (request, sampling) = (RequestId(request), first_token::from_frame(sampling).into());
                let start = StartPrefill { session, request, prompt, resident, sampling, remaining_ms };
                (Prefiller, Mail::StartPrefill(start))
            }
            Frame::CancelPrefill { request } => (Prefiller, Mail::CancelPrefill(session, RequestId(request))),
            Frame::Heartbeat | Frame::Goodbye => return,
        };
        self.post(node, actor, mail);
        if probed {
            let actions = self.nodes[node].link.on_probed(session);
            self.link_does(node, actions);
        }
    }

    pub(super) fn link_does(&mut self, node: usize, actions: Vec<Action>) {
        let life = self.nodes[node].life;
        for action in actions {
            match action {
                Action::Open(session) => {
                    let descriptor = if node == RECEIVER {
                        self.open_lane(session)
                    } else {
                        self.outlets.entry(OutletName { node, life, session }).or_default();
                        connector::transport::Descriptor {
                            transport: String::new(),
                            worker_address: Vec::new(),
                            rkey: Vec::new(),
                            base: 0,
                            bytes: 0,
                        }
                    };
                    let wait = self.dice.wait(2 * MS, SECOND);
                    let opened = Mail::Opened(session, descriptor);
                    self.at_node(node, wait, Event::Mail(Actor::Link, Box::new(opened)));
                }
                Action::Connect(session, peer) => {
                    if let Some(found) =
                        self.nodes[node].conns.get(&session).and_then(|c| self.conns.get_mut(c))
                    {
                        found.carried[1] = true;
                    }
                    self.connect(OutletName { node, life, session }, &peer);
                }
                Action::Welcome(session, descriptor) => self.welcome(session, descriptor),
                Action::End { session, orderly, .. } => {
                    let to: &[Actor] = if node == RECEIVER {
                        &[Actor::Proxy, Actor::Decoder, Actor::Buffers]
                    } else {
                        &[Actor::Transfer, Actor::Prefiller]
                    };
                    to.iter().for_each(|actor| self.post(node, *actor, Mail::PeerLost(session)));
                    if let Some(conn) = self.nodes[node].conns.get(&session).copied() {
                        self.hang_up(conn, usize::from(node != RECEIVER), orderly);
                    }
                    self.close_transport(node, session);
                }
                Action::Over(session, over) => {
                    self.nodes[node].conns.remove(&session);
                    let dials = node != RECEIVER && !self.nodes[node].link.is_closing();
                    if dials {
                        self.post(node, Actor::Link, Mail::Over(over));
                    }
                }
                Action::Proved(session) => self.post(node, Actor::Buffers, Mail::Drained(session)),
            }
        }
    }

    fn welcome(&mut self, session: SessionId, descriptor: connector::transport::Descriptor) {
        let Some(conn) = self.nodes[RECEIVER].conns.get(&session).copied() else { return };
        let ring_pages = self.plan.ring_pages;
        let Some(found) = self.conns.get_mut(&conn) else { return };
        found.carried[0] = true;
        let (open, sender) = (found.open[1], found.sender);
        let opened = Mail::SessionOpened { session, ring_pages, seed: seed(conn) };
        self.post(RECEIVER, Actor::Buffers, opened);
        if open && self.living(conn, 1).is_some() {
            let wait = self.dice.wait(2 * MS, SECOND);
            let welcomed = Mail::Welcomed { conn, descriptor, ring_pages };
            self.at_node(sender, wait, Event::Mail(Actor::Link, Box::new(welcomed)));
        }
    }

    fn close_transport(&mut self, node: usize, session: SessionId) {
        let life = self.nodes[node].life;
        if node != RECEIVER {
            return self.close_outlet(OutletName { node, life, session });
        }
        let lane = self.lanes.iter().find(|(_, lane)| lane.life == life && lane.session == session);
        if let Some((number, _)) = lane {
            let number = *number;
            let wait = self.dice.wait(5 * MS, SECOND);
            self.at(wait, None, Event::LaneCloses(number));
        }
    }
}

/// What both sides of a connection seed their hashes with.
fn seed(conn: u64) -> u64 {
    u64::from(next_token(&[conn as u32])) << 32 | conn
}
