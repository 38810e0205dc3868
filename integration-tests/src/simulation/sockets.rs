//! Connections between processes: dialling, handshakes and frames, each with random delays.

use std::collections::{BTreeSet, VecDeque};

use actors::effect::{Effect, Endpoint, ToPeerLink, ToSockets, to};
use actors::messages::{
    Carry, Challenged, ConnectionId, DialDue, DialFailed, FrameCame, HelloCame, LinkEnd, LinkEnded,
    ProcessWatched, ReceiverId, SayHello, SayWelcome, SenderSession, WatchProcess, Welcomed,
};
use connector::frame::{Frame, Versions};

use super::machine::next_token;
use super::node::incarnation;
use super::parts::Conn;
use super::plan::{MS, SECOND};
use super::world::{Event, World};

/// Maximum time that a dialler waits for an answer.
const HANDSHAKE: u64 = 5 * SECOND;

impl World {
    /// Performs a command of the peer link of a process.
    pub(super) fn command_sockets(&mut self, node: usize, message: ToSockets) {
        match message {
            ToSockets::WakeDialler(wake) => {
                let due = to::peer_link(DialDue { receiver: wake.receiver });
                self.send_later(node, wake.pause.as_micros() as u64, Endpoint::Sockets, due);
            }
            ToSockets::Dial(dial) => self.dial(node, dial.receiver),
            ToSockets::SayHello(hello) => self.say_hello(node, hello),
            ToSockets::Refuse(refuse) => {
                self.trace_event(|| {
                    format!("{node} refuses connection {}: {}", refuse.connection.0, refuse.reason)
                });
                self.hang_up(refuse.connection.0, 0, false);
            }
            ToSockets::SayWelcome(welcome) => self.welcome(welcome),
            ToSockets::Carry(carry) => self.carry(node, carry),
            ToSockets::WriteFrame(write) => {
                let conn = write.connection.0;
                self.send(conn, self.side_of(conn, node), write.frame);
            }
            ToSockets::HangUp(hang_up) => {
                let conn = hang_up.connection.0;
                let side = self.side_of(conn, node);
                self.nodes[node].dialling.retain(|_, dialling| *dialling != conn);
                let goodbye = self.conns.get(&conn).is_some_and(|found| found.carried[side]);
                self.hang_up(conn, side, goodbye);
            }
            ToSockets::WatchProcess(watch) => self.watch(node, watch),
        }
    }

    /// Which side of a connection a process has: 0 if it listens, 1 if it dials.
    fn side_of(&self, conn: u64, node: usize) -> usize {
        self.conns.get(&conn).map_or(0, |found| usize::from(found.ends[1] == node))
    }

    /// The process at this side of the connection, if it is still in the life that made the connection.
    fn living(&self, conn: u64, side: usize) -> Option<usize> {
        let found = self.conns.get(&conn)?;
        let node = found.ends[side];
        let process = &self.nodes[node];
        (process.alive && process.life == found.lives[side]).then_some(node)
    }

    fn is_reachable(&self, dialler: usize, listener: usize) -> bool {
        let cut_until = self.cut_until.get(&(dialler, listener)).copied().unwrap_or_default();
        self.nodes[listener].alive && cut_until <= self.now
    }

    /// The dialler's name for a listener.
    fn receiver_of(&self, [listener, dialler]: [usize; 2]) -> ReceiverId {
        let mut dials = self.plan.nodes[dialler].dials.iter();
        ReceiverId(dials.position(|dialled| *dialled == listener).unwrap_or_default() as u32)
    }

    fn dial(&mut self, node: usize, receiver: ReceiverId) {
        let listener = self.plan.nodes[node].dials[receiver.0 as usize];
        let ends = [listener, node];
        if !self.is_reachable(node, listener) {
            let wait = self.dice.wait(MS, SECOND);
            return self.dial_fails(ends, wait);
        }
        let lives = ends.map(|node| self.nodes[node].life);
        let conn = self.conns.len() as u64;
        if self.nodes[node].dialling.insert(listener, conn).is_some() {
            return self.fail(format!("node {node} dials {receiver:?} twice at once"));
        }
        self.conns.insert(
            conn,
            Conn {
                ends,
                lives,
                sessions: [None; 2],
                grammars: BTreeSet::new(),
                frames: [VecDeque::new(), VecDeque::new()],
                open: [true; 2],
                carried: [false; 2],
            },
        );
        let wait = self.dice.wait(2 * MS, SECOND);
        let challenged = Challenged {
            receiver,
            connection: ConnectionId(conn),
            incarnation: incarnation(listener, lives[0]),
        };
        self.at_node(node, wait, Event::Answered(conn, Box::new(to::peer_link(challenged))));
        self.at_node(node, HANDSHAKE, Event::HandshakeLate(conn));
    }

    fn say_hello(&mut self, node: usize, hello: SayHello) {
        let SayHello { connection: ConnectionId(conn), attempt, .. } = hello;
        let Some((ends, lives)) = self.conns.get(&conn).map(|found| (found.ends, found.lives)) else {
            return;
        };
        if ends[0] == ends[1] {
            return self.fail(format!("node {node} begins a session with itself"));
        }
        // A Hello may stay in a buffer long after its dialler has given up.
        let late = self.plan.late_hellos && self.dice.one_in(4);
        // Without faults, a handshake is never so slow that the dialler gives up.
        let slow = if self.plan.bound.is_some() { SECOND } else { 7 * SECOND };
        let wait = if late { self.dice.between(MS, 12 * SECOND) } else { self.dice.wait(2 * MS, slow) };
        let incarnation = incarnation(node, lives[1]);
        let hello = to::peer_link(HelloCame {
            connection: ConnectionId(conn),
            address: format!("node {node}"),
            http: String::new(),
            sender: SenderSession { incarnation, number: attempt.session, is_watched: !self.plan.blind },
            previous: attempt.previous,
            drained: attempt.previous_drained,
            version: Versions::OURS.highest,
            seed: seed(conn),
        });
        // The Hello does not reach another life of the listener.
        let listener = ends[0];
        if self.nodes[listener].alive && self.nodes[listener].life == lives[0] {
            self.send_later(listener, wait, Endpoint::Sockets, hello);
        }
    }

    fn dial_fails(&mut self, ends: [usize; 2], wait: u64) {
        let receiver = self.receiver_of(ends);
        let failed = DialFailed { receiver, reason: "no answer".to_owned(), permanent: false };
        self.send_later(ends[1], wait, Endpoint::Sockets, to::peer_link(failed));
    }

    /// True if this node is in the handshake of this connection.
    fn is_dialling(&self, node: usize, conn: u64) -> bool {
        self.nodes[node].dialling.get(&self.conns[&conn].ends[0]) == Some(&conn)
    }

    pub(super) fn handshake_late(&mut self, node: usize, conn: u64) {
        if self.is_dialling(node, conn) {
            let ends = self.conns[&conn].ends;
            self.nodes[node].dialling.remove(&ends[0]);
            self.hang_up(conn, 1, false);
            self.dial_fails(ends, 0);
        }
    }

    fn welcome(&mut self, welcome: SayWelcome) {
        let SayWelcome { connection: ConnectionId(conn), session, descriptor } = welcome;
        let Some(found) = self.conns.get_mut(&conn) else { return };
        (found.sessions[0], found.carried[0]) = (Some(session), true);
        let (ends, life) = (found.ends, found.lives[0]);
        if !found.open[0] {
            let wait = self.dice.wait(MS, SECOND);
            return self.link_ends(conn, 0, wait, false);
        }
        if self.conns[&conn].open[1] && self.living(conn, 1).is_some() {
            let wait = self.dice.wait(2 * MS, SECOND);
            let welcomed = Welcomed {
                receiver: self.receiver_of(ends),
                connection: ConnectionId(conn),
                address: format!("node {}", ends[0]),
                incarnation: incarnation(ends[0], life),
                descriptor,
                ring_pages: self.plan.nodes[ends[0]].ring_pages,
                version: Versions::OURS.highest,
                seed: seed(conn),
            };
            self.at_node(ends[1], wait, Event::Answered(conn, Box::new(to::peer_link(welcomed))));
        }
    }

    /// The answer of the listener reaches the dialler, unless the dialler has given up. A Welcome ends the handshake.
    pub(super) fn answered(&mut self, node: usize, conn: u64, answer: Effect) {
        if self.is_dialling(node, conn) {
            if matches!(answer, Effect::PeerLink(ToPeerLink::Welcomed(_))) {
                self.nodes[node].dialling.remove(&self.conns[&conn].ends[0]);
            }
            self.perform(node, Endpoint::Sockets, vec![answer]);
        }
    }

    fn carry(&mut self, node: usize, carry: Carry) {
        let conn = carry.connection.0;
        let side = self.side_of(conn, node);
        let Some(found) = self.conns.get_mut(&conn) else { return };
        (found.sessions[side], found.carried[side]) = (Some(carry.session), true);
        if !found.open[side] {
            self.link_ends(conn, side, 0, false);
        }
    }

    /// One side closes the connection, with or without a goodbye. The other side is told.
    pub(super) fn hang_up(&mut self, conn: u64, side: usize, goodbye: bool) {
        let Some(found) = self.conns.get_mut(&conn) else { return };
        (found.open[side], found.carried[side]) = (false, false);
        let other = 1 - side;
        if std::mem::take(&mut found.open[other]) {
            let wait = self.dice.wait(MS, 3 * SECOND);
            self.link_ends(conn, other, wait, goodbye);
        }
    }

    /// A side is told after `wait` that its connection has ended.
    pub(super) fn link_ends(&mut self, conn: u64, side: usize, wait: u64, goodbye: bool) {
        let Some(node) = self.living(conn, side) else { return };
        match self.conns[&conn].sessions[side] {
            Some(session) => {
                let end = if goodbye { LinkEnd::Goodbye } else { LinkEnd::Broken("link broke".into()) };
                let ended = to::peer_link(LinkEnded { session, end });
                self.send_later(node, wait, Endpoint::Sockets, ended);
            }
            // The dialler is in its handshake, so its attempt has failed.
            None if side == 1 => self.at_node(node, wait, Event::HandshakeLate(conn)),
            None => {}
        }
    }

    fn send(&mut self, conn: u64, side: usize, frame: Frame) {
        let other = 1 - side;
        let Some(found) = self.conns.get_mut(&conn).filter(|found| found.open[other]) else { return };
        match frame {
            Frame::Prefill { request, .. } => {
                self.asked.insert(request, found.ends[1]);
            }
            Frame::Grammar { index, .. } => {
                self.report.grammars_replaced += u64::from(!found.grammars.insert(index));
            }
            _ => {}
        }
        found.frames[other].push_back(frame);
        let wait = self.dice.wait(MS, 500 * MS);
        self.at(wait, None, Event::FrameArrives(conn, other));
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
            // The frame waits in the socket until the handshake ends.
            return self.at(MS, None, Event::FrameArrives(conn, side));
        };
        if let Some(frame) = found.frames[side].pop_front() {
            self.perform(node, Endpoint::Sockets, vec![to::peer_link(FrameCame { session, frame })]);
        }
    }

    /// The end of a process that ended before it was watched is reported at once.
    fn watch(&mut self, node: usize, watch: WatchProcess) {
        let WatchProcess { incarnation, .. } = watch;
        let (of, life) = (incarnation.pid as usize, incarnation.start_ticks as u32);
        let lives = self.nodes[of].alive && self.nodes[of].life == life;
        if !lives {
            let watched = ProcessWatched { incarnation, gone: true };
            self.send_later(node, 0, Endpoint::Sockets, to::peer_link(watched));
        } else {
            self.nodes[node].watched.insert((of, life));
        }
    }

    /// A process has ended.
    pub(super) fn process_ended(&mut self, of: usize, life: u32) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].watched.remove(&(of, life)) {
                let wait = self.dice.wait(5 * MS, SECOND);
                let watched = ProcessWatched { incarnation: incarnation(of, life), gone: true };
                self.send_later(node, wait, Endpoint::Sockets, to::peer_link(watched));
            }
        }
    }
}

/// The seed of the hashes of both sides of a connection.
fn seed(conn: u64) -> u64 {
    u64::from(next_token(&[conn as u32])) << 32 | conn
}
