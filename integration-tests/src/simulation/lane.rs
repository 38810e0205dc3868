//! The lanes: when a put reads its bytes, when they land, when it completes, and when a flush completes.
//!
//! A session has one lane for each piece of a page that its nodes divide. The lanes have random times of their own, so the pieces of a page land in any
//! order. A put reads its bytes between its posting and its completion, and they land before or after the completion. A flush completes when all puts of
//! its lane before the flush have landed. If the receiver copies the bytes (TCP), nothing lands after its part of the session is closed. On a foreign lane the
//! sender writes directly, and only the end of the putting process stops a posted put. If a plan has foreign lanes, every second lane is one. The
//! sender names the lane in `LaneConnected`.

use actors::buffer_manager::state::PageUse;
use actors::effect::{Effect, Endpoint, to};
use actors::messages::{SessionId, TransportEvents};
use connector::ring::CreditNumber;
use connector::shards::{Lanes, Piece};
use connector::transport::{
    Command, Descriptor, Event as LaneEvent, ShardDescriptor, TransportError, TransportSession,
};
use engine::PageId;

use super::node::Node;
use super::parts::{Lane, OutletName, Put, PutName};
use super::plan::{HEADS, MS, SECOND, VOCABULARY};
use super::world::{Event, World};

/// How much later a failed put may land.
const LATE: u64 = 20 * SECOND;

fn failure(text: &str) -> TransportError {
    TransportError::Call { call: "lane", status: text.to_owned() }
}

fn outcome(failed: Option<&str>) -> Result<(), TransportError> {
    failed.map_or(Ok(()), |text| Err(failure(text)))
}

fn named(session: SessionId) -> TransportSession {
    TransportSession(session.0)
}

/// A completion, for the transfer actor.
fn completed(event: LaneEvent) -> Effect {
    to::transfer(TransportEvents(vec![event]))
}

/// Any other event, for the peer link.
fn changed(event: LaneEvent) -> Effect {
    to::peer_link(TransportEvents(vec![event]))
}

impl World {
    /// The transport of a process gets a command.
    pub(super) fn command_transport(&mut self, node: usize, command: Command) {
        let life = self.nodes[node].life;
        let outlet = |session: TransportSession| OutletName { node, life, session: SessionId(session.0) };
        match command {
            Command::Open { session } => {
                let descriptor = self.open_lane(node, SessionId(session.0));
                let wait = self.dice.wait(2 * MS, SECOND);
                let opened = changed(LaneEvent::Opened { session, result: Ok(descriptor) });
                self.send_later(node, wait, Endpoint::Transport, opened);
            }
            Command::Connect { session, peer } => self.connect(outlet(session), &peer),
            Command::Put { session, ticket, lane, local_offset, remote_offset, bytes } => {
                self.put(outlet(session), ticket.0, Piece { lane, local_offset, remote_offset, bytes });
            }
            Command::Flush { session, ticket, lane } => self.flush(outlet(session), ticket.0, lane),
            Command::Close { session } if self.outlets.contains_key(&outlet(session)) => {
                self.close_outlet(outlet(session));
            }
            // Pages never left this node in this session.
            Command::Close { session } => {
                let mut lanes = self.lanes.iter();
                let of_session = (node, life, SessionId(session.0));
                let lane = lanes.find(|(_, lane)| (lane.node, lane.life, lane.session) == of_session);
                if let Some(number) = lane.map(|(number, _)| *number) {
                    let wait = self.dice.wait(5 * MS, SECOND);
                    self.at(wait, None, Event::LaneCloses(number));
                }
            }
        }
    }

    /// The transport of a node creates its worker of a session. A peer may connect to it.
    fn open_lane(&mut self, node: usize, session: SessionId) -> Descriptor {
        let number = self.lanes.len() as u64;
        let life = self.nodes[node].life;
        let foreign = self.plan.foreign && number.is_multiple_of(2);
        self.lanes.insert(number, Lane { node, life, session, open: true, foreign });
        let shard = ShardDescriptor { worker_address: Vec::new(), rkey: Vec::new(), base: number, bytes: 0 };
        let shards = vec![shard; self.plan.nodes[node].shards as usize];
        Descriptor { transport: "sim".into(), shards }
    }

    /// The transport of a dialler connects to a receiving end.
    fn connect(&mut self, name: OutletName, peer: &Descriptor) {
        let lanes = Lanes::between(self.plan.nodes[name.node].shards, peer.shards.len() as u32);
        let outlet = self.outlets.entry(name).or_default();
        (outlet.lane, outlet.lanes) = (peer.shards.first().map(|shard| shard.base), lanes.ok());
        let wait = self.dice.wait(5 * MS, 2 * SECOND);
        let session = named(name.session);
        let event = if self.lane_is_open(name) {
            let lane = if self.is_foreign(name) { "cuda_ipc/sim,tcp/sim" } else { "rc_mlx5/sim,tcp/sim" };
            LaneEvent::Connected { session, lane: lane.to_owned() }
        } else {
            LaneEvent::Failed { session, error: failure("no such lane") }
        };
        self.send_later(name.node, wait, Endpoint::Transport, changed(event));
    }

    pub(super) fn lane_of(&self, name: OutletName) -> Option<&Lane> {
        self.lanes.get(&self.outlets.get(&name)?.lane?)
    }

    /// True if puts from this outlet can land.
    fn lane_is_open(&self, name: OutletName) -> bool {
        self.lane_of(name).is_some_and(|lane| {
            let receiver = &self.nodes[lane.node];
            receiver.alive && receiver.life == lane.life && (lane.open || lane.foreign)
        })
    }

    fn is_foreign(&self, name: OutletName) -> bool {
        self.lane_of(name).is_some_and(|lane| lane.foreign)
    }

    fn putter_lives(&self, name: OutletName) -> bool {
        self.nodes[name.node].alive && self.nodes[name.node].life == name.life
    }

    /// The put of a piece of one page, or of the pieces of adjacent pages. `None` if it is no such piece.
    fn put_of(&self, name: OutletName, piece: &Piece) -> Option<Put> {
        let lanes = self.outlets.get(&name)?.lanes?;
        let heads = HEADS / lanes.count();
        let pages = piece.bytes as u32 / heads;
        let (local, remote) = lanes.shards(piece.lane);
        let peer = self.lane_of(name)?.node;
        let (page, first) = self.nodes[name.node].memory.place(local, piece.local_offset);
        let (into, there) = self.nodes[peer].memory.place(remote, piece.remote_offset);
        // Pieces of adjacent pages are adjacent only in pools that have no other piece of them.
        let fits =
            [name.node, peer].iter().all(|node| pages == 1 || self.plan.nodes[*node].shards == lanes.count());
        let is_piece = pages > 0 && pages * heads == piece.bytes as u32 && piece.lane * heads == first;
        let heads = first..first + heads;
        (is_piece && fits && first == there).then(|| Put {
            lane: piece.lane,
            heads,
            page,
            into,
            pages,
            ..Put::default()
        })
    }

    fn put(&mut self, name: OutletName, ticket: u64, piece: Piece) {
        if self.outlets.get(&name).is_none_or(|outlet| outlet.closing) {
            return self.put_is_over(name, ticket, Some("closed"));
        }
        let Some(put) = self.put_of(name, &piece) else {
            return self
                .fail(format!("put {ticket} of {name:?} moves {piece:?}, which is no piece of a page"));
        };
        self.report.pieces += u64::from(put.heads.len() < HEADS as usize);
        let read = self.dice.wait(MS, 50 * MS);
        let lands = read + self.dice.wait(3 * MS, SECOND);
        let completes = if self.dice.one_in(2) { lands } else { self.dice.between(read, lands) };
        let fails_now = self.dice.one_in(2);
        let Some(outlet) = self.outlets.get_mut(&name) else { return };
        let (fails, is_owned) = (outlet.fails && fails_now, outlet.probed);
        let lands_at = self.now + lands;
        let put = Put { is_owned, lands_at, fails, ..put };
        outlet.puts.insert(ticket, put);
        self.at(read, None, Event::PutIsRead((name, ticket)));
        // A put that failed at a device may land much later, as long as its process lives.
        let is_late = fails && self.plan.foreign && self.dice.one_in(2);
        let lands = if is_late { lands + self.dice.between(0, LATE) } else { lands };
        self.at(lands, None, Event::PutLands((name, ticket)));
        self.at(completes, None, Event::PutCompletes((name, ticket)));
    }

    fn put_is_over(&mut self, name: OutletName, ticket: u64, failed: Option<&str>) {
        let (session, ticket) = (named(name.session), connector::transport::Ticket(ticket));
        self.tell(name, completed(LaneEvent::PutCompleted { session, ticket, result: outcome(failed) }));
    }

    fn flush_is_answered(&mut self, name: OutletName, ticket: u64, failed: Option<&str>) {
        let (session, ticket) = (named(name.session), connector::transport::Ticket(ticket));
        self.tell(name, completed(LaneEvent::Flushed { session, ticket, result: outcome(failed) }));
    }

    /// Delivers an event to the node of this outlet, if it is still in the life that made the outlet.
    fn tell(&mut self, name: OutletName, effect: Effect) {
        if self.putter_lives(name) {
            self.perform(name.node, Endpoint::Transport, vec![effect]);
        }
    }

    pub(super) fn put_is_read(&mut self, (name, ticket): PutName) {
        if !self.putter_lives(name) {
            return;
        }
        let Node { memory, pool, .. } = &self.nodes[name.node];
        let put = self.outlets.get_mut(&name).and_then(|outlet| outlet.puts.get_mut(&ticket));
        let Some(put) = put.filter(|put| put.content.is_none()) else { return };
        let pages = put.page..put.page + put.pages;
        let heads = &put.heads;
        put.content = Some(pages.clone().map(|page| memory.heads(page, heads.clone()).to_vec()).collect());
        let mut used = pages.map(|page| (page, pool.page_use(PageId(page))));
        let free = used.find(|(_, used)| !matches!(used, PageUse::Held(_)));
        if let (true, false, Some((page, used))) = (put.is_owned, put.completed, free) {
            self.fail(format!("put {ticket} of {name:?} reads page {page}, which is {used:?}"));
        }
    }

    pub(super) fn put_lands(&mut self, (name, ticket): PutName) {
        // Bytes that were read stay in socket buffers, but a device stops with its process.
        let foreign = self.is_foreign(name);
        let lost = !self.putter_lives(name) && (foreign || self.dice.one_in(2));
        if lost || !self.lane_is_open(name) {
            return;
        }
        let Some((node, session)) = self.lane_of(name).map(|lane| (lane.node, lane.session)) else { return };
        let stopped = self.nodes[node].stopped_until;
        if !foreign && stopped > self.now {
            // The receiver copies the bytes, and it is stopped.
            return self.at(stopped - self.now + 1, None, Event::PutLands((name, ticket)));
        }
        self.put_is_read((name, ticket));
        let Some(put) = self.outlets.get_mut(&name).and_then(|outlet| outlet.puts.get_mut(&ticket)) else {
            return;
        };
        let Some(mut content) = put.content.clone() else { return };
        put.landed = true;
        let (into, first) = (put.into, put.heads.start);
        let lost = std::mem::take(&mut self.lose);
        if std::mem::take(&mut self.flip) {
            let page = self.dice.between(0, content.len() as u64 - 1) as usize;
            let head = self.dice.between(0, content[page].len() as u64 - 1) as usize;
            let tokens = &mut content[page][head].tokens;
            let place = self.dice.between(0, tokens.len() as u64 - 1) as usize;
            tokens[place] = (tokens[place].wrapping_add(1)) % VOCABULARY;
        }
        for (into, content) in (into..).zip(content) {
            let used = self.nodes[node].pool.page_use(PageId(into));
            if !matches!(used, PageUse::Outstanding(of) | PageUse::Quarantined(of) if of == session) {
                return self.fail(format!(
                    "a put of {session} lands in page {into} of node {node}, which is {used:?}"
                ));
            }
            // If the same bytes are there already, no process can tell that the piece is lost.
            if !lost || self.nodes[node].memory.has_tokens(into, first, &content) {
                self.nodes[node].memory.write_heads(into, first, &content);
                self.report.landed += 1;
            }
        }
        self.trace_event(|| format!("{name:?} {ticket} lands in page {into}"));
    }

    pub(super) fn put_completes(&mut self, (name, ticket): PutName) {
        if !self.putter_lives(name) || self.outlets.get(&name).is_none_or(|outlet| outlet.hangs) {
            return;
        }
        self.complete(name, ticket, false);
    }

    fn complete(&mut self, name: OutletName, ticket: u64, forced: bool) {
        self.put_is_read((name, ticket));
        let open = self.lane_is_open(name);
        let Some(put) = self.outlets.get_mut(&name).and_then(|outlet| outlet.puts.get_mut(&ticket)) else {
            return;
        };
        if put.completed {
            return;
        }
        put.completed = true;
        put.fails |= forced || !open;
        let failed = put.fails.then_some("connection reset");
        self.put_is_over(name, ticket, failed);
    }

    fn flush(&mut self, name: OutletName, ticket: u64, lane: u32) {
        let wait = self.dice.wait(MS, 20 * MS);
        let Some(outlet) = self.outlets.get_mut(&name).filter(|outlet| !outlet.closing) else {
            return self.flush_is_answered(name, ticket, Some("closed"));
        };
        outlet.flushes.insert(ticket, lane);
        let covers = outlet.puts.len() as u64;
        self.at(wait, None, Event::FlushIsOver(name, ticket, covers));
    }

    pub(super) fn flush_is_over(&mut self, name: OutletName, ticket: u64, covers: u64) {
        let open = self.lane_is_open(name);
        let Some(outlet) = self.outlets.get_mut(&name) else { return };
        let Some(lane) = outlet.flushes.get(&ticket).copied().filter(|_| !outlet.hangs) else { return };
        let covered = || outlet.puts.values().take(covers as usize).filter(|put| put.lane == lane);
        let failed = !open || covered().any(|put| put.fails);
        if !failed && covered().any(|put| !put.landed) {
            return self.at(MS, None, Event::FlushIsOver(name, ticket, covers));
        }
        outlet.flushes.remove(&ticket);
        self.flush_is_answered(name, ticket, failed.then_some("connection reset"));
    }

    /// The dialler reports the end of its probe.
    pub(super) fn is_probed(&mut self, name: OutletName) {
        self.outlets.entry(name).or_default().probed = true;
    }

    /// A frame reports the pages of these credits as filled. Checks that no put into these pages is in flight.
    pub(super) fn has_landed(&mut self, name: OutletName, first: CreditNumber, count: u32) {
        let Some(outlet) = self.outlets.get(&name) else { return };
        let named = outlet.credits.iter().skip(first.0 as usize).take(count as usize);
        let into: Vec<u32> = named.map(|page| page.0).collect();
        let is_into = |put: &Put| (put.into..put.into + put.pages).any(|page| into.contains(&page));
        let early = outlet.puts.iter().find(|(_, put)| !put.landed && is_into(put));
        if let Some((ticket, _)) = early {
            self.fail(format!("put {ticket} of {name:?} is reported as filled but has not landed"));
        }
    }

    /// The transport of a dialler closes a session: in order if possible, and by force otherwise.
    fn close_outlet(&mut self, name: OutletName) {
        let force = self.dice.one_in(4);
        let outlet = self.outlets.entry(name).or_default();
        if std::mem::replace(&mut outlet.closing, true) {
            return;
        }
        let last = outlet.puts.values().map(|put| put.lands_at).max().unwrap_or_default();
        let force = force || outlet.hangs;
        let wait = last.saturating_sub(self.now) + MS;
        let wait = if force { self.dice.wait(5 * MS, SECOND) } else { wait };
        self.at(wait, None, Event::OutletCloses(name, force));
    }

    pub(super) fn outlet_closes(&mut self, name: OutletName, force: bool) {
        let Some(outlet) = self.outlets.get(&name) else { return };
        let open: Vec<u64> =
            outlet.puts.iter().filter(|(_, put)| !put.completed).map(|(ticket, _)| *ticket).collect();
        open.into_iter().for_each(|ticket| self.complete(name, ticket, force));
        let Some(outlet) = self.outlets.get_mut(&name) else { return };
        let drained = outlet.puts.values().all(|put| put.landed && !put.fails);
        outlet.drained = Some(drained);
        for ticket in std::mem::take(&mut outlet.flushes).into_keys() {
            self.flush_is_answered(name, ticket, (!drained).then_some("closed"));
        }
        self.tell(name, changed(LaneEvent::Closed { session: named(name.session), drained }));
    }

    /// The receiving end of a session is destroyed.
    pub(super) fn lane_closes(&mut self, number: u64) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        lane.open = false;
        let (node, life, session) = (lane.node, lane.life, lane.session);
        if self.nodes[node].life == life {
            let closed = changed(LaneEvent::Closed { session: named(session), drained: true });
            self.perform(node, Endpoint::Transport, vec![closed]);
        }
    }
}
