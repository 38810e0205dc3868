mod dialling;
mod frames;
mod limits;
mod proof;

use connector::frame::PageOwner;
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::{ShardDescriptor, Ticket, TransportError};

use super::*;
use crate::effect::{ToPrefiller, ToTransport};
use crate::first_token;
use crate::log::LaneSpeed;
use crate::messages::{
    AnnounceLeaving, Attempt, BreakSession, CancelPrefill, Challenged, CloseLinks, CreditsGranted, Dial,
    DialDue, DialFailed, FrameCame, HealthSeen, PageFilled, PeerLeaving, PeerReady, PeersFound,
    PrefillFailed, PrefillFinished, ProcessFault, RingShared, SayHello, SenderSession, SessionDrained,
    SessionOpened, StartDialling, StartPrefill, TransportEvents, WakeDialler, Welcomed,
};
use crate::request::RequestId;

const RING: u32 = 8;
const A: Incarnation = Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 };
const B: Incarnation = Incarnation { pid: 2, ..A };
/// The process that we dial.
const C: Incarnation = Incarnation { pid: 9, ..A };
const FIRST: ReceiverId = ReceiverId(0);
const SEED: u64 = 77;

/// A sender without a session.
const NEXT: SenderSession =
    SenderSession { incarnation: Incarnation { pid: 3, ..A }, number: 1, is_watched: true };

/// The descriptor of our worker or of a receiver's worker.
fn descriptor(of: &str) -> Descriptor {
    let shard = ShardDescriptor { worker_address: vec![], rkey: vec![], base: 0, bytes: 0 };
    Descriptor { transport: of.into(), shards: vec![shard.clone(), shard] }
}

/// Delivers a message to the state and returns the effects.
fn deliver(state: &mut PeerLinkState, mail: impl Into<ToPeerLink>) -> Vec<Effect> {
    state.on(Instant::now(), mail.into())
}

/// Delivers the statement of a Hello: attempt `number`, after session `previous`, which has drained.
fn hello(state: &mut PeerLinkState, incarnation: Incarnation, number: u64, previous: u64) -> Vec<Effect> {
    state.on_hello(SenderSession { incarnation, number, is_watched: true }, previous, true)
}

/// The message with which the sockets report the Hello of an attempt.
fn hello_came(incarnation: Incarnation, number: u64) -> HelloCame {
    HelloCame {
        connection: ConnectionId(u64::from(incarnation.pid) * 100 + number),
        address: "sender".into(),
        http: "sender:8100".into(),
        sender: SenderSession { incarnation, number, is_watched: true },
        previous: 0,
        drained: true,
        version: VERSION,
        seed: SEED,
    }
}

/// The Welcome of the first receiver, over this connection.
fn welcomed(connection: u64) -> Welcomed {
    Welcomed {
        receiver: FIRST,
        connection: ConnectionId(connection),
        address: "receiver".into(),
        incarnation: C,
        descriptor: descriptor("theirs"),
        ring_pages: 5,
        version: VERSION,
        seed: SEED,
    }
}

/// The protocol version of all sessions.
const VERSION: u32 = 13;
/// This process.
const OWN: Incarnation = Incarnation { pid: 8, ..A };

/// A state that dials two receivers and accepts senders.
fn state(close_ends_writes: bool) -> PeerLinkState {
    state_with(close_ends_writes, RING, &["first", "second"])
}

/// A state that dials these receivers.
fn state_with(close_ends_writes: bool, ring_pages: u32, receivers: &[&str]) -> PeerLinkState {
    let receivers = receivers.iter().map(|address| (*address).to_owned()).collect();
    PeerLinkState::new(PeerLinkConfig { own: OWN, close_ends_writes, ring_pages, receivers, cache_pages: 50 })
}

/// A session as a test sees it.
#[derive(Clone, Copy)]
struct Begun {
    session: SessionId,
    peer: Incarnation,
    connection: ConnectionId,
    is_incoming: bool,
}

impl Begun {
    fn opening(&self) -> [Effect; 2] {
        let (session, peer, address) = (self.session, self.peer, self.address());
        [
            to::log(LogLine::SessionOpening { session, peer, address, version: VERSION, http: self.http() }),
            to::transport(Command::Open { session: name(session) }),
        ]
    }

    fn http(&self) -> String {
        if self.is_incoming { "sender:8100" } else { "" }.to_owned()
    }

    fn address(&self) -> String {
        if self.is_incoming { "sender" } else { "receiver" }.to_owned()
    }

    /// All effects of the end of the session, in order.
    fn ended(&self, reason: &str, orderly: bool) -> Vec<Effect> {
        let (session, peer, address) = (self.session, self.peer, self.address());
        let lost = PeerLost { session };
        let line = LogLine::SessionOver { session, peer, address, reason: reason.into(), orderly };
        let mut effects = vec![to::log(line)];
        if self.is_incoming {
            effects.extend([to::proxy(lost), to::decoder(lost), to::buffer_manager(lost)]);
        } else {
            effects.extend([to::transfer(lost), to::prefiller(lost)]);
        }
        effects.push(to::sockets(HangUp { connection: self.connection }));
        effects.push(to::transport(Command::Close { session: name(session) }));
        effects
    }

    /// The effect that tells the buffer manager that no write of the session can land any more.
    fn drained(&self) -> Effect {
        to::buffer_manager(SessionDrained { session: self.session })
    }

    fn writes(&self, frame: Frame) -> Effect {
        to::sockets(WriteFrame { session: self.session, connection: self.connection, frame })
    }

    fn receives(&self, state: &mut PeerLinkState, frame: Frame) -> Vec<Effect> {
        deliver(state, FrameCame { session: self.session, frame })
    }
}

/// The session that the transport is asked to open.
fn opening(effects: &[Effect]) -> SessionId {
    let open = |effect: &Effect| match effect {
        Effect::Transport(ToTransport::Command(Command::Open { session })) => Some(SessionId(session.0)),
        _ => None,
    };
    effects.iter().find_map(open).unwrap_or_else(|| panic!("no session opens: {effects:?}"))
}

fn join(state: &mut PeerLinkState, now: Instant, peer: Incarnation, number: u64) -> Begun {
    join_with(state, now, hello_came(peer, number))
}

fn join_with(state: &mut PeerLinkState, now: Instant, came: HelloCame) -> Begun {
    let (connection, peer) = (came.connection, came.sender.incarnation);
    let session = opening(&state.on_hello_came(now, came));
    Begun { session, peer, connection, is_incoming: true }
}

/// A sender's session that is up.
fn up(state: &mut PeerLinkState, peer: Incarnation, number: u64) -> Begun {
    let begun = connecting(state, peer, number);
    begun.receives(state, lane_connected("cuda_ipc/cuda"));
    begun
}

/// A session with a sender that has our Welcome and has not named its lane yet.
fn connecting(state: &mut PeerLinkState, peer: Incarnation, number: u64) -> Begun {
    let begun = join(state, Instant::now(), peer, number);
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    begun
}

fn lane_connected(lane: &str) -> Frame {
    Frame::LaneConnected { lane: lane.into() }
}

/// The transport reports that the lane of an outgoing session is connected.
fn connect_lane(state: &mut PeerLinkState, session: SessionId) -> Vec<Effect> {
    let connected = Event::Connected { session: name(session), lane: "tcp/lo".into() };
    deliver(state, TransportEvents(vec![connected]))
}

/// A session with the first receiver, right after its Welcome.
fn reach(state: &mut PeerLinkState) -> Begun {
    if !state.targets.contains_key(&FIRST) {
        dials(state);
    }
    let session = opening(&deliver(state, welcomed(7)));
    Begun { session, peer: C, connection: ConnectionId(7), is_incoming: false }
}

/// A session with the first receiver that is up.
fn up_outgoing(state: &mut PeerLinkState) -> Begun {
    let begun = reach(state);
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    connect_lane(state, begun.session);
    begun
}

fn probed() -> Frame {
    Frame::LinkProbed { lane: "tcp/lo".into(), bytes: 1000, micros: 10 }
}

fn wake(receiver: ReceiverId, millis: u64) -> Effect {
    to::sockets(WakeDialler { receiver, pause: Duration::from_millis(millis) })
}

/// Dials the first address, which answers with a challenge. Returns the effect that sends the Hello.
fn dials(state: &mut PeerLinkState) -> Effect {
    assert_eq!(
        deliver(state, DialDue { receiver: FIRST }),
        [to::sockets(Dial { receiver: FIRST, address: "first".into() })]
    );
    let connection = ConnectionId(60);
    let effects = deliver(state, Challenged { receiver: FIRST, connection, incarnation: C });
    assert_eq!(effects.len(), 1, "{effects:?}");
    effects[0].clone()
}

fn sends_hello(session: u64, previous: u64, previous_drained: bool) -> Effect {
    let attempt = Attempt { session, previous, previous_drained };
    to::sockets(SayHello { receiver: FIRST, connection: ConnectionId(60), attempt })
}

fn closed(session: SessionId, drained: bool) -> TransportEvents {
    TransportEvents(vec![Event::Closed { session: name(session), drained }])
}

fn dial_failed(reason: &str, permanent: bool) -> DialFailed {
    DialFailed { receiver: FIRST, reason: reason.into(), permanent }
}

#[test]
fn a_listener_sends_welcome_and_a_dialler_connects() {
    let mut state = state(true);
    let effects = deliver(&mut state, hello_came(A, 1));
    let session = opening(&effects);
    let joined = Begun { session, peer: A, connection: ConnectionId(101), is_incoming: true };
    assert_eq!(
        effects[0],
        to::sockets(WatchProcess { connection: hello_came(A, 1).connection, incarnation: A })
    );
    assert_eq!(effects[1..], joined.opening());
    let (connection, ours) = (joined.connection, descriptor("ours"));
    assert_eq!(
        state.on_opened(Instant::now(), session, Ok(ours.clone())),
        [to::sockets(SayWelcome { connection, session, descriptor: ours.clone() })]
    );
    assert_eq!(state.on_opened(Instant::now(), session, Ok(ours.clone())), [], "a session opens once");
    let opened = to::buffer_manager(SessionOpened { session, ring_pages: RING, seed: SEED });
    assert_eq!(joined.receives(&mut state, lane_connected("tcp/lo")), [opened], "the lane is named");

    dials(&mut state);
    let effects = deliver(&mut state, welcomed(7));
    let session = opening(&effects);
    let reached = Begun { session, peer: C, connection: ConnectionId(7), is_incoming: false };
    assert_eq!(effects, reached.opening());
    let opened = SessionOpened { session, ring_pages: 5, seed: SEED };
    assert_eq!(
        state.on_opened(Instant::now(), session, Ok(ours)),
        [
            to::transfer(opened),
            to::sockets(Carry { connection: reached.connection, session }),
            to::transport(Command::Connect { session: name(session), peer: descriptor("theirs") }),
        ]
    );
    let lane = "tcp/lo".to_owned();
    let named = reached.writes(lane_connected(&lane));
    let connected = to::transfer(LaneConnected { session, lane, shards: 2 });
    assert_eq!(connect_lane(&mut state, session), [named, connected], "named before the first put");
    assert_eq!(connect_lane(&mut state, session), [], "a lane connects once");
    assert_eq!(state.counts(), LinkCounts { opened: 2, ..LinkCounts::default() });
}

#[test]
fn a_session_ends_once_and_closes_once() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    assert_eq!(state.on_end(begun.session, "eof".into()), begun.ended("eof", false));
    assert_eq!(state.on_end(begun.session, "lane".into()), []);
    assert_eq!(state.on_closed(begun.session, false), [begun.drained()]);
    assert_eq!(state.on_closed(begun.session, false), []);
    assert_eq!(state.held(), 0);
    assert_eq!(state.counts(), LinkCounts { opened: 1, ended: 1, stale_frames: 0 });
}

#[test]
fn a_session_must_probe_its_lane_once_and_in_time() {
    let (mut state, now) = (state(true), Instant::now());
    let begun = up(&mut state, A, 1);
    // The limit counts from the first credit.
    assert_eq!((state.on_tick(now + PROBE_LIMIT * 3), state.ready()), (vec![], 0));
    state.on(now, SendFrame { session: begun.session, frame: grant() }.into());
    assert_eq!((state.on_tick(now + PROBE_LIMIT), state.ready()), (vec![], 0));
    assert_eq!((begun.receives(&mut state, probed()).len(), state.ready()), (4, 1));
    assert_eq!(state.on_tick(now + PROBE_LIMIT * 2), []);
    let twice = begun.receives(&mut state, probed());
    assert_eq!(twice, begun.ended("LinkProbed was sent for a lane that is already probed", false));
    assert_eq!(state.on_closed(begun.session, true), [begun.drained()]);
}

fn grant() -> Frame {
    Frame::Grant { first: CreditNumber(0), pages: vec![PageIndex(0)] }
}

#[test]
fn each_step_of_the_beginning_of_a_session_is_limited() {
    let after = Instant::now() + PROBE_LIMIT + Duration::from_secs(1);
    let check = |begun: Begun, mut state: PeerLinkState, reason: &str| {
        assert_eq!(state.on_tick(after), begun.ended(reason, false));
    };
    let mut first = state(true);
    check(
        join(&mut first, Instant::now(), A, 1),
        first,
        "the transport did not open the session within 20 s",
    );
    let mut first = state(true);
    check(connecting(&mut first, A, 1), first, "the sender did not name its lane within 20 s");
    let mut first = state(true);
    let begun = up(&mut first, A, 1);
    deliver(&mut first, SendFrame { session: begun.session, frame: grant() });
    check(begun, first, "the lane moved no page within 20 s");

    let mut first = state(true);
    let begun = reach(&mut first);
    first.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    check(begun, first, "the lane was not connected within 20 s");
    let mut first = state(true);
    let begun = reach(&mut first);
    first.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    connect_lane(&mut first, begun.session);
    begun.receives(&mut first, grant());
    check(begun, first, "the lane moved no page within 20 s");
}

#[test]
fn the_lane_is_named_once_and_before_all_else() {
    let mut state = state(true);
    for (number, early) in [(1, probed()), (2, Frame::Leaving)] {
        let begun = connecting(&mut state, A, number);
        let reason = format!("peer sent a {} frame before LaneConnected", early.name());
        assert_eq!(begun.receives(&mut state, early), begun.ended(&reason, false));
    }
    let begun = reach(&mut state);
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    let reason = "peer sent a Grant frame before LaneConnected";
    assert_eq!(begun.receives(&mut state, grant()), begun.ended(reason, false), "we have not named our lane");
    let twice = up(&mut state, A, 3);
    let effects = twice.receives(&mut state, lane_connected("tcp/lo"));
    assert_eq!(effects, twice.ended("peer sent LaneConnected twice", false));
}

#[test]
fn a_sender_that_leaves_says_so_after_it_has_named_its_lane() {
    let mut state = state(true);
    let begun = reach(&mut state);
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    assert_eq!(deliver(&mut state, AnnounceLeaving), [], "the receiver does not know the session yet");
    let effects = connect_lane(&mut state, begun.session);
    assert_eq!(effects[..2], [begun.writes(lane_connected("tcp/lo")), begun.writes(Frame::Leaving)]);
}

#[test]
fn our_own_probe_is_sent_once() {
    let mut state = state(true);
    let begun = reach(&mut state);
    let send = SendFrame { session: begun.session, frame: probed() };
    assert_eq!(deliver(&mut state, send.clone()), [], "the session is not up yet");
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    connect_lane(&mut state, begun.session);
    assert_eq!(state.ready(), 0);
    let load = Frame::Load { waiting_tokens: 0, begun_tokens: 0, nanos_per_token: None, cache_pages: 50 };
    assert_eq!(deliver(&mut state, send.clone()), [begun.writes(probed()), begun.writes(load)]);
    assert_eq!(state.ready(), 1);
    let reason = "LinkProbed was sent for a lane that is already probed";
    assert_eq!(deliver(&mut state, send), begun.ended(reason, false));
}

#[test]
fn events_of_the_transport_reach_the_session() {
    let mut state = state(true);
    let refused = join(&mut state, Instant::now(), A, 1);
    let failed = Event::Opened { session: name(refused.session), result: Err(TransportError::Closed) };
    let reason = TransportError::Closed.to_string();
    assert_eq!(deliver(&mut state, TransportEvents(vec![failed])), refused.ended(&reason, false));

    let begun = up_outgoing(&mut state);
    let session = begun.session;
    let put = Event::PutCompleted { session: name(session), ticket: Ticket(1), result: Ok(()) };
    let flushed = Event::Flushed { session: name(session), ticket: Ticket(2), result: Ok(()) };
    let effects = deliver(&mut state, TransportEvents(vec![put, flushed]));
    assert_eq!(effects, [], "the transfer actor gets these events from the transport");
    let failed = Event::Failed { session: name(session), error: TransportError::Closed };
    assert_eq!(deliver(&mut state, TransportEvents(vec![failed])), begun.ended(&reason, false));
}

#[test]
fn a_broken_rule_and_a_broken_connection_end_the_session() {
    let mut state = state(true);
    for (number, breaks) in [(1, true), (2, false)] {
        let Begun { session, .. } = up(&mut state, A, number);
        let begun = Begun { session, peer: A, connection: ConnectionId(100 + number), is_incoming: true };
        let reason = "why".to_owned();
        let effects = if breaks {
            deliver(&mut state, BreakSession { session, reason })
        } else {
            deliver(&mut state, LinkEnded { session, end: LinkEnd::Broken(reason) })
        };
        assert_eq!(effects, begun.ended("why", false));
    }
}
