//! Connections between processes: dialling, handshakes and frames, each with random delays.

use std::collections::{BTreeSet, VecDeque};

use actors::effect::{Effect, Endpoint, ToPeerLink, ToSockets, to};
use actors::messages::{
    Carry, Challenged, ConnectionId, DialDue, DialFailed, FrameCame, HelloCame, LinkEnd, LinkEnded,
    ProcessWatched, ReceiverId, SayHello, SayWelcome, SenderSession, WatchProcess, Welcomed,
};
use connector::frame::Frame;

use super::machine::next_token;
use super::node::incarnation;
use super::parts::Conn;
use super::plan::{MS, SECOND};
use super::world::{Event, RECEIVER, World};

/// Maximum time that a dialler waits for an answer.
const HANDSHAKE: u64 = 5 * SECOND;

/// Which side of a connection a process has.
fn side_of(node: usize) -> usize {
    usize::from(node != RECEIVER)
}

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
            ToSockets::Refuse(refuse) => self.hang_up(refuse.connection.0, side_of(node), false),
            ToSockets::SayWelcome(welcome) => self.welcome(welcome),
            ToSockets::Carry(carry) => self.carry(node, carry),
            ToSockets::WriteFrame(write) => self.send(write.connection.0, side_of(node), write.frame),
            ToSockets::HangUp(hang_up) => {
                let (conn, side) = (hang_up.connection.0, side_of(node));
                if let Some(sender) = self.nodes[node].sender() {
                    sender.dialling = sender.dialling.filter(|dialling| *dialling != conn);
                }
                let goodbye = self.conns.get(&conn).is_some_and(|found| found.carried[side]);
                self.hang_up(conn, side, goodbye);
            }
            ToSockets::WatchProcess(watch) => self.watch(node, watch),
        }
    }

    fn node_of(&self, conn: u64, side: usize) -> Option<usize> {
        let found = self.conns.get(&conn)?;
        Some(if side == 0 { RECEIVER } else { found.sender })
    }

    /// The process at this side of the connection, if it is still in the life that made the connection.
    fn living(&self, conn: u64, side: usize) -> Option<usize> {
        let node = self.node_of(conn, side)?;
        let process = &self.nodes[node];
        (process.alive && process.life == self.conns[&conn].lives[side]).then_some(node)
    }

    fn reachable(&self, sender: usize) -> bool {
        self.nodes[RECEIVER].alive && self.cut_until.get(&sender).copied().unwrap_or_default() <= self.now
    }

    fn dial(&mut self, node: usize, receiver: ReceiverId) {
        if !self.reachable(node) {
            let wait = self.dice.wait(MS, SECOND);
            return self.dial_fails(node, wait);
        }
        let lives = [self.nodes[RECEIVER].life, self.nodes[node].life];
        let conn = self.conns.len() as u64;
        let Some(sender) = self.nodes[node].sender() else { return };
        if sender.dialling.replace(conn).is_some() {
            return self.fail(format!("sender {node} dials {receiver:?} twice at once"));
        }
        self.conns.insert(
            conn,
            Conn {
                sender: node,
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
            incarnation: incarnation(RECEIVER, lives[0]),
        };
        self.at_node(node, wait, Event::Answered(conn, Box::new(to::peer_link(challenged))));
        self.at_node(node, HANDSHAKE, Event::HandshakeLate(conn));
    }

    fn say_hello(&mut self, node: usize, hello: SayHello) {
        let SayHello { connection: ConnectionId(conn), attempt, .. } = hello;
        let Some(lives) = self.conns.get(&conn).map(|found| found.lives) else { return };
        // A Hello may stay in a buffer long after its dialler has given up.
        let late = self.plan.late_hellos && self.dice.one_in(4);
        let wait = if late { self.dice.between(MS, 12 * SECOND) } else { self.dice.wait(2 * MS, 7 * SECOND) };
        let incarnation = incarnation(node, lives[1]);
        let hello = to::peer_link(HelloCame {
            connection: ConnectionId(conn),
            address: format!("sender {node}"),
            http: String::new(),
            sender: SenderSession { incarnation, number: attempt.session, is_watched: !self.plan.blind },
            previous: attempt.previous,
            drained: attempt.previous_drained,
            seed: seed(conn),
        });
        // The Hello does not reach another life of the receiver.
        if self.nodes[RECEIVER].alive && self.nodes[RECEIVER].life == lives[0] {
            self.send_later(RECEIVER, wait, Endpoint::Sockets, hello);
        }
    }

    fn dial_fails(&mut self, node: usize, wait: u64) {
        let receiver = ReceiverId(0);
        let failed = DialFailed { receiver, reason: "no answer".to_owned(), permanent: false };
        self.send_later(node, wait, Endpoint::Sockets, to::peer_link(failed));
    }

    pub(super) fn handshake_late(&mut self, node: usize, conn: u64) {
        let Some(sender) = self.nodes[node].sender() else { return };
        if sender.dialling == Some(conn) {
            sender.dialling = None;
            self.hang_up(conn, 1, false);
            self.dial_fails(node, 0);
        }
    }

    fn welcome(&mut self, welcome: SayWelcome) {
        let SayWelcome { connection: ConnectionId(conn), session, descriptor } = welcome;
        let Some(found) = self.conns.get_mut(&conn) else { return };
        (found.sessions[0], found.carried[0]) = (Some(session), true);
        let (sender, life) = (found.sender, found.lives[0]);
        if !found.open[0] {
            let wait = self.dice.wait(MS, SECOND);
            return self.link_ends(conn, 0, wait, false);
        }
        if self.conns[&conn].open[1] && self.living(conn, 1).is_some() {
            let wait = self.dice.wait(2 * MS, SECOND);
            let welcomed = Welcomed {
                receiver: ReceiverId(0),
                connection: ConnectionId(conn),
                address: "receiver".to_owned(),
                incarnation: incarnation(RECEIVER, life),
                descriptor,
                ring_pages: self.plan.ring_pages,
                seed: seed(conn),
            };
            self.at_node(sender, wait, Event::Answered(conn, Box::new(to::peer_link(welcomed))));
        }
    }

    /// The answer of the receiver reaches the dialler, unless the dialler has given up. A Welcome ends the handshake.
    pub(super) fn answered(&mut self, node: usize, conn: u64, answer: Effect) {
        let Some(sender) = self.nodes[node].sender() else { return };
        if sender.dialling == Some(conn) {
            if matches!(answer, Effect::PeerLink(ToPeerLink::Welcomed(_))) {
                sender.dialling = None;
            }
            self.perform(node, Endpoint::Sockets, vec![answer]);
        }
    }

    fn carry(&mut self, node: usize, carry: Carry) {
        let (conn, side) = (carry.connection.0, side_of(node));
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
                self.asked.insert(request, found.sender);
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

    /// The process of a sender has ended.
    pub(super) fn process_ended(&mut self, of: usize, life: u32) {
        if self.nodes[RECEIVER].watched.remove(&(of, life)) {
            let wait = self.dice.wait(5 * MS, SECOND);
            let watched = ProcessWatched { incarnation: incarnation(of, life), gone: true };
            self.send_later(RECEIVER, wait, Endpoint::Sockets, to::peer_link(watched));
        }
    }
}

/// The seed of the hashes of both sides of a connection.
fn seed(conn: u64) -> u64 {
    u64::from(next_token(&[conn as u32])) << 32 | conn
}
