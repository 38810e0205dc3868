mod dialling;

use connector::frame::PageOwner;
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::{Ticket, TransportError};

use super::*;
use crate::effect::ToTransport;
use crate::first_token;
use crate::log::LaneSpeed;
use crate::messages::{
    AnnounceLeaving, Attempt, BreakSession, CancelPrefill, Challenged, CloseLinks, CreditsGranted, Dial,
    DialDue, DialFailed, Fault, FrameCame, HealthSeen, PageFilled, PeerLeaving, PeerReady, PrefillFailed,
    PrefillFinished, RingShared, SayHello, StartDialling, StartPrefill, TransportEvents, WakeDialler,
    Welcomed,
};
use crate::request::RequestId;

const RING: u32 = 8;
const A: Incarnation = Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 };
const B: Incarnation = Incarnation { pid: 2, ..A };
/// The process that we dial.
const C: Incarnation = Incarnation { pid: 9, ..A };
const FIRST: ReceiverId = ReceiverId(0);
const SEED: u64 = 77;

/// A sender that has not come yet.
const NEXT: SenderSession =
    SenderSession { incarnation: Incarnation { pid: 3, ..A }, number: 1, is_watched: true };

/// Our worker's, or a receiver's.
fn descriptor(of: &str) -> Descriptor {
    Descriptor { transport: of.into(), worker_address: vec![], rkey: vec![], base: 0, bytes: 0 }
}

/// The state takes a message.
fn hear(state: &mut PeerLinkState, mail: impl Into<ToPeerLink>) -> Vec<Effect> {
    state.on(Instant::now(), mail.into())
}

/// The Hello of an attempt `number` whose last session was `previous` and has drained.
fn hello(state: &mut PeerLinkState, incarnation: Incarnation, number: u64, previous: u64) -> Vec<Effect> {
    state.on_hello(SenderSession { incarnation, number, is_watched: true }, previous, true)
}

/// The same Hello as it comes from the sockets.
fn hello_came(incarnation: Incarnation, number: u64) -> HelloCame {
    HelloCame {
        connection: ConnectionId(u64::from(incarnation.pid) * 100 + number),
        address: "sender".into(),
        http: "sender:8100".into(),
        sender: SenderSession { incarnation, number, is_watched: true },
        previous: 0,
        drained: true,
        seed: SEED,
    }
}

/// A receiver has welcomed us, over this connection.
fn welcomed(connection: u64) -> Welcomed {
    Welcomed {
        receiver: FIRST,
        connection: ConnectionId(connection),
        address: "receiver".into(),
        incarnation: C,
        descriptor: descriptor("theirs"),
        ring_pages: 5,
        seed: SEED,
    }
}

/// A state over a lane on which closing ends writes, or does not. It dials two receivers.
fn state(close_ends_writes: bool) -> PeerLinkState {
    PeerLinkState::new(close_ends_writes, RING, vec!["first".into(), "second".into()])
}

/// A session, and what is known of it outside.
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
            to::log(LogLine::SessionOpening { session, peer, address, http: self.http() }),
            to::transport(Command::Open { session: name(session) }),
        ]
    }

    fn http(&self) -> String {
        if self.is_incoming { "sender:8100" } else { "" }.to_owned()
    }

    fn address(&self) -> String {
        if self.is_incoming { "sender" } else { "receiver" }.to_owned()
    }

    /// All that the end of the session causes, in order.
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

    /// The buffer manager hears that nothing of the session can land any more.
    fn drained(&self) -> Effect {
        to::buffer_manager(SessionDrained { session: self.session })
    }

    fn writes(&self, frame: Frame) -> Effect {
        to::sockets(WriteFrame { session: self.session, connection: self.connection, frame })
    }

    fn hears(&self, state: &mut PeerLinkState, frame: Frame) -> Vec<Effect> {
        hear(state, FrameCame { session: self.session, frame })
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
    let came = hello_came(peer, number);
    let connection = came.connection;
    let session = opening(&state.on_hello_came(now, came));
    Begun { session, peer, connection, is_incoming: true }
}

/// A sender's session, up.
fn up(state: &mut PeerLinkState, peer: Incarnation, number: u64) -> Begun {
    let begun = join(state, Instant::now(), peer, number);
    state.on_opened(begun.session, Ok(descriptor("ours")));
    begun
}

/// The first receiver welcomes us.
fn reach(state: &mut PeerLinkState) -> Begun {
    if !state.targets.contains_key(&FIRST) {
        dials(state);
    }
    let session = opening(&hear(state, welcomed(7)));
    Begun { session, peer: C, connection: ConnectionId(7), is_incoming: false }
}

/// A session with the first receiver, up.
fn up_outgoing(state: &mut PeerLinkState) -> Begun {
    let begun = reach(state);
    state.on_opened(begun.session, Ok(descriptor("ours")));
    begun
}

fn probed() -> Frame {
    Frame::LinkProbed { lane: "tcp/lo".into(), bytes: 1000, micros: 10 }
}

fn wake(receiver: ReceiverId, millis: u64) -> Effect {
    to::sockets(WakeDialler { receiver, pause: Duration::from_millis(millis) })
}

/// The first address is dialled, and answers: what the Hello is to say.
fn dials(state: &mut PeerLinkState) -> Effect {
    assert_eq!(hear(state, DialDue { receiver: FIRST }), [to::sockets(Dial { receiver: FIRST })]);
    let connection = ConnectionId(60);
    let effects = hear(state, Challenged { receiver: FIRST, connection, incarnation: C });
    assert_eq!(effects.len(), 1, "{effects:?}");
    effects[0].clone()
}

fn says(session: u64, previous: u64, previous_drained: bool) -> Effect {
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
fn a_listener_welcomes_and_a_dialler_connects() {
    let mut state = state(true);
    let effects = hear(&mut state, hello_came(A, 1));
    let session = opening(&effects);
    let joined = Begun { session, peer: A, connection: ConnectionId(101), is_incoming: true };
    assert_eq!(
        effects[0],
        to::sockets(WatchProcess { connection: hello_came(A, 1).connection, incarnation: A })
    );
    assert_eq!(effects[1..], joined.opening());
    let opened = SessionOpened { session, ring_pages: RING, seed: SEED };
    let (connection, ours) = (joined.connection, descriptor("ours"));
    assert_eq!(
        state.on_opened(session, Ok(ours.clone())),
        [to::buffer_manager(opened), to::sockets(Welcome { connection, session, descriptor: ours.clone() })]
    );
    assert_eq!(state.on_opened(session, Ok(ours.clone())), [], "it opens once");

    dials(&mut state);
    let effects = hear(&mut state, welcomed(7));
    let session = opening(&effects);
    let reached = Begun { session, peer: C, connection: ConnectionId(7), is_incoming: false };
    assert_eq!(effects, reached.opening());
    let opened = SessionOpened { session, ring_pages: 5, seed: SEED };
    assert_eq!(
        state.on_opened(session, Ok(ours)),
        [
            to::transfer(opened),
            to::sockets(Carry { connection: reached.connection, session }),
            to::transport(Command::Connect { session: name(session), peer: descriptor("theirs") }),
        ]
    );
    assert_eq!(state.counts(), LinkCounts { opened: 2, ..LinkCounts::default() });
}

#[test]
fn a_session_ends_once_and_is_over_once() {
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
fn a_session_must_prove_its_lane_once_and_in_time() {
    let (mut state, now) = (state(true), Instant::now());
    let begun = join(&mut state, now, A, 1);
    state.on_opened(begun.session, Ok(descriptor("ours")));
    // The limit counts from its first credit.
    assert_eq!((state.on_tick(now + PROBE_LIMIT * 3), state.ready()), (vec![], 0));
    let grant = Frame::Grant { first: CreditNumber(0), pages: vec![PageIndex(0)] };
    state.on(now, SendFrame { session: begun.session, frame: grant }.into());
    assert_eq!((state.on_tick(now + PROBE_LIMIT), state.ready()), (vec![], 0));
    assert_eq!((begun.hears(&mut state, probed()).len(), state.ready()), (4, 1));
    assert_eq!(state.on_tick(now + PROBE_LIMIT * 2), []);
    let twice = begun.hears(&mut state, probed());
    assert_eq!(twice, begun.ended("lane was called probed out of turn", false), "twice is a lie");
    assert_eq!(state.on_closed(begun.session, true), [begun.drained()]);
    let late = join(&mut state, now, A, 2);
    let effects = state.on_tick(now + PROBE_LIMIT + Duration::from_secs(1));
    assert_eq!(effects, late.ended("no page had moved over its lane after 20 s", false));
}

#[test]
fn our_own_probe_is_told_once() {
    let mut state = state(true);
    let begun = reach(&mut state);
    let send = SendFrame { session: begun.session, frame: probed() };
    assert_eq!(hear(&mut state, send.clone()), [], "no frame flows yet");
    state.on_opened(begun.session, Ok(descriptor("ours")));
    assert_eq!(state.ready(), 0);
    assert_eq!(hear(&mut state, send.clone()), [begun.writes(probed())]);
    assert_eq!(state.ready(), 1);
    assert_eq!(hear(&mut state, send), begun.ended("lane was called probed out of turn", false));
}

#[test]
fn senders_are_admitted_while_the_ring_has_a_page_for_each() {
    let mut state = PeerLinkState::new(true, 2, vec![]);
    let first = up(&mut state, A, 1);
    assert_eq!(state.admit(NEXT), Ok(()));
    up(&mut state, B, 1);
    assert!(state.admit(NEXT).expect_err("two pages").contains("2 senders are connected"));
    let goodbye = LinkEnded { session: first.session, end: LinkEnd::Goodbye };
    assert_eq!(hear(&mut state, goodbye), first.ended("peer said goodbye", true));
    assert_eq!(state.admit(NEXT), Ok(()));
}

#[test]
fn a_hello_that_is_read_after_a_younger_one_is_put_off() {
    let mut state = state(false);
    let late = SenderSession { incarnation: A, number: 1, is_watched: true };
    hello(&mut state, A, 2, 0);
    state.on_hello(late, 0, true);
    assert!(state.admit(late).expect_err("its dialler has given up").contains("attempt 2"));
    let reason = "attempt 2 of this sender came before attempt 1".to_owned();
    let refuse = Refuse { connection: ConnectionId(101), reason };
    assert_eq!(hear(&mut state, hello_came(A, 1)), [to::sockets(refuse)]);
    for other in [SenderSession { number: 2, ..late }, NEXT] {
        assert_eq!(state.admit(other), Ok(()));
    }
    state.on_process_gone(&A);
    assert_eq!(state.admit(late), Ok(()), "what is gone is forgotten");
}

#[test]
fn senders_without_a_session_are_forgotten_when_there_are_many() {
    let mut state = state(false);
    let live = up(&mut state, A, 2);
    hello(&mut state, A, 2, 0);
    for pid in 0..2 * SENDERS_KNOWN_MAX as u32 {
        hello(&mut state, Incarnation { pid: 10 + pid, ..A }, 1, 0);
    }
    assert!(state.youngest.len() <= SENDERS_KNOWN_MAX);
    let late = SenderSession { incarnation: A, number: 1, is_watched: true };
    assert!(state.admit(late).is_err(), "{} is live", live.session);
}

#[test]
fn no_sender_is_admitted_at_the_end_or_in_a_process_that_is_unwell() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    let effects = hear(&mut state, HealthSeen(Some("engine stands still".into())));
    assert_eq!(effects, begun.ended("this process is unwell: engine stands still", false));
    assert!(state.admit(NEXT).expect_err("unwell").contains("engine stands still"));
    assert_eq!(hear(&mut state, HealthSeen(None)), []);
    assert_eq!(state.admit(NEXT), Ok(()));
    assert_eq!(hear(&mut state, CloseLinks), []);
    assert!(state.admit(NEXT).is_err() && state.is_closing());
    let refuse = Refuse { connection: ConnectionId(201), reason: "this process is ending".into() };
    assert_eq!(hear(&mut state, hello_came(B, 1)), [to::sockets(refuse)]);
}

#[test]
fn what_the_transport_reports_reaches_the_session() {
    let mut state = state(true);
    let refused = join(&mut state, Instant::now(), A, 1);
    let failed = Event::Opened { session: name(refused.session), result: Err(TransportError::Closed) };
    let reason = TransportError::Closed.to_string();
    assert_eq!(hear(&mut state, TransportEvents(vec![failed])), refused.ended(&reason, false));

    let begun = up_outgoing(&mut state);
    let session = begun.session;
    let connected = Event::Connected { session: name(session), lane: "tcp/lo".into() };
    let put = Event::PutCompleted { session: name(session), ticket: Ticket(1), result: Ok(()) };
    let flushed = Event::Flushed { session: name(session), ticket: Ticket(2), result: Ok(()) };
    let effects = hear(&mut state, TransportEvents(vec![connected, put, flushed]));
    assert_eq!(effects, [to::transfer(LaneConnected { session, lane: "tcp/lo".into() })]);
    let failed = Event::Failed { session: name(session), error: TransportError::Closed };
    assert_eq!(hear(&mut state, TransportEvents(vec![failed])), begun.ended(&reason, false));
}

#[test]
fn a_rule_that_a_peer_broke_and_a_broken_connection_end_the_session() {
    let mut state = state(true);
    for (number, breaks) in [(1, true), (2, false)] {
        let Begun { session, .. } = up(&mut state, A, number);
        let begun = Begun { session, peer: A, connection: ConnectionId(100 + number), is_incoming: true };
        let reason = "why".to_owned();
        let effects = if breaks {
            hear(&mut state, BreakSession { session, reason })
        } else {
            hear(&mut state, LinkEnded { session, end: LinkEnd::Broken(reason) })
        };
        assert_eq!(effects, begun.ended("why", false));
    }
}

#[test]
fn where_peers_write_by_themselves_a_closed_session_waits_for_proof() {
    // What comes after session 1 of process A was lost and closed here, and whether it proves anything.
    type Then = fn(&mut PeerLinkState) -> Vec<Effect>;
    let check = |then: Then, proves: bool| {
        let mut state = state(false);
        let begun = up(&mut state, A, 1);
        state.on_end(begun.session, "eof".into());
        assert_eq!(state.on_closed(begun.session, true), [], "our close is no proof");
        assert_eq!(state.held(), 0, "the transport holds nothing of it");
        assert_eq!(then(&mut state), if proves { vec![begun.drained()] } else { vec![] });
        let again = if proves { vec![] } else { vec![begun.drained()] };
        assert_eq!(state.on_process_gone(&A), again, "proved once");
    };
    check(|state| hello(state, A, 2, 1), true);
    check(|state| hello(state, A, 2, 0), true);
    check(|state| hello(state, A, 5, 0), true);
    check(|state| state.on_process_gone(&A), true);
    check(|state| hear(state, ProcessWatched { incarnation: A, gone: true }), true);
    check(|state| hello(state, A, 1, 0), false);
    check(|state| hello(state, A, 3, 2), false);
    check(|state| hello(state, B, 2, 1), false);
    check(
        |state| state.on_hello(SenderSession { incarnation: A, number: 2, is_watched: true }, 1, false),
        false,
    );
    check(|state| state.on_process_gone(&B), false);
    check(|state| hear(state, ProcessWatched { incarnation: A, gone: false }), false);
    check(PeerLinkState::on_shutdown, false);
}

/// A machine may be cloned with the sender in it: the end of the one on this host says nothing of the other.
#[test]
fn the_end_of_a_process_proves_only_sessions_that_it_dialled() {
    let mut state = state(false);
    let mut elsewhere = hello_came(A, 1);
    elsewhere.sender.is_watched = false;
    hear(&mut state, elsewhere);
    let twin = SessionId(state.next);
    let begun = up(&mut state, A, 1);
    for over in [twin, begun.session] {
        state.on_end(over, "eof".into());
        state.on_closed(over, true);
    }
    assert_eq!(state.on_process_gone(&A), [begun.drained()]);
}

#[test]
fn proof_that_comes_early_ends_the_session_and_waits_for_our_close() {
    type First = fn(&mut PeerLinkState) -> Vec<Effect>;
    let check = |first: First, reason: &str| {
        for close_ends_writes in [false, true] {
            let mut state = state(close_ends_writes);
            let begun = up(&mut state, A, 1);
            assert_eq!(first(&mut state), begun.ended(reason, false));
            assert_eq!(state.on_closed(begun.session, false), [begun.drained()]);
        }
    };
    check(|state| hello(state, A, 2, 1), "its sender has dialled again");
    check(|state| state.on_process_gone(&A), "its sender's process is gone");
}

#[test]
fn a_dialled_session_needs_no_proof() {
    let mut state = state(false);
    let begun = reach(&mut state);
    state.on_end(begun.session, "eof".into());
    assert_eq!(state.on_closed(begun.session, true), [wake(FIRST, 200)], "nothing of ours was written in it");
    assert!(state.sessions.is_empty());
}

#[test]
fn each_senders_process_is_watched_once() {
    let mut state = state(true);
    let watch = |number| {
        let connection = hello_came(A, number).connection;
        to::sockets(WatchProcess { connection, incarnation: A })
    };
    let mut watches = |number| hear(&mut state, hello_came(A, number)).contains(&watch(number));
    assert_eq!([1, 2].map(&mut watches), [true, false]);
    hear(&mut state, ProcessWatched { incarnation: A, gone: false });
    assert!(hear(&mut state, hello_came(A, 3)).contains(&watch(3)), "no task waits for its end any more");
}

/// Every frame that a sender may send but its probe, and where it goes.
fn of_senders(session: SessionId) -> Vec<(Frame, Effect)> {
    let (first, count, transfer_micros) = (CreditNumber(3), 2, 11);
    let owner = Some(PageOwner { request: 5, first_page: 1 });
    let hashes = vec![8, 9];
    let request = RequestId(5);
    vec![
        (
            Frame::PageFilled { first, count, owner, hashes: hashes.clone(), transfer_micros },
            to::buffer_manager(PageFilled { session, first, count, owner, hashes, transfer_micros }),
        ),
        (
            Frame::PrefillFinished { request: 5, token: 7, logprobs: None, prefill_micros: 12 },
            to::decoder(PrefillFinished { session, request, token: 7.into(), prefill_micros: 12 }),
        ),
        (
            Frame::PrefillFailed { request: 5, reason: "full".into() },
            to::decoder(PrefillFailed { session, request, reason: "full".into() }),
        ),
        (Frame::Leaving, to::proxy(PeerLeaving { session })),
    ]
}

/// Every frame that a receiver may send, and where it goes.
fn of_receivers(session: SessionId) -> Vec<(Frame, Effect)> {
    let (first, pages) = (CreditNumber(3), vec![PageIndex(4), PageIndex(6)]);
    let (request, prompt, resident, remaining_ms) = (RequestId(5), vec![1, 2, 3], 2, 1000);
    let (sampled_by, sampling) = (first_token::to_frame(&Default::default()), Default::default());
    let start = StartPrefill { session, request, prompt: prompt.clone(), resident, sampling, remaining_ms };
    vec![
        (
            Frame::Grant { first, pages: pages.clone() },
            to::transfer(CreditsGranted { session, first, pages }),
        ),
        (Frame::RingShare { pages: 4 }, to::transfer(RingShared { session, pages: 4 })),
        (
            Frame::Prefill { request: 5, prompt, resident, sampling: sampled_by, remaining_ms },
            to::prefiller(start),
        ),
        (Frame::CancelPrefill { request: 5 }, to::prefiller(CancelPrefill { session, request })),
    ]
}

#[test]
fn a_senders_frames_reach_the_actors_that_receive_pages() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    for (frame, expect) in of_senders(begun.session) {
        assert_eq!(begun.hears(&mut state, frame), [expect]);
    }
}

#[test]
fn a_receivers_frames_reach_the_actors_that_send_pages() {
    let mut state = state(true);
    let begun = up_outgoing(&mut state);
    for (frame, expect) in of_receivers(begun.session) {
        assert_eq!(begun.hears(&mut state, frame), [expect]);
    }
}

#[test]
fn the_decoder_hears_that_a_sender_is_ready_before_the_proxy_does() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    let (session, pid) = (begun.session, A.pid);
    let ready = PeerReady { session, pid };
    let lane = LaneSpeed { name: "tcp/lo".into(), bytes: 1000, micros: 10 };
    assert_eq!(
        begun.hears(&mut state, probed()),
        [
            to::buffer_manager(ready),
            to::decoder(ready),
            to::proxy(ready),
            to::log(LogLine::SenderReady { session, pid, lane })
        ]
    );
}

#[test]
fn a_frame_of_the_wrong_direction_ends_the_session() {
    let both = Frame::Heartbeat;
    let receivers = of_receivers(SessionId(0)).into_iter().map(|(frame, _)| frame);
    for frame in receivers.chain([both.clone()]) {
        let mut state = state(true);
        let begun = up(&mut state, A, 1);
        let reason = format!("peer sent a {} frame, which is not for us", frame.name());
        assert_eq!(begun.hears(&mut state, frame), begun.ended(&reason, false));
    }
    let senders = of_senders(SessionId(0)).into_iter().map(|(frame, _)| frame);
    for frame in senders.chain([probed(), both]) {
        let mut state = state(true);
        let begun = up_outgoing(&mut state);
        let reason = format!("peer sent a {} frame, which is not for us", frame.name());
        assert_eq!(begun.hears(&mut state, frame), begun.ended(&reason, false));
        assert_eq!(state.ready(), 0);
    }
}

#[test]
fn a_stale_frame_is_counted_and_dropped() {
    let mut state = state(true);
    assert_eq!(hear(&mut state, FrameCame { session: SessionId(99), frame: Frame::Leaving }), []);
    assert_eq!(state.counts().stale_frames, 1, "no session has this name");
    let begun = join(&mut state, Instant::now(), A, 1);
    assert_eq!(begun.hears(&mut state, Frame::Leaving), []);
    assert_eq!(state.counts().stale_frames, 2, "the session is not up yet");
    state.on_opened(begun.session, Ok(descriptor("ours")));
    assert_eq!(begun.hears(&mut state, Frame::Leaving).len(), 1);
    state.on_end(begun.session, "eof".into());
    assert_eq!(begun.hears(&mut state, Frame::Leaving), []);
    assert_eq!(begun.hears(&mut state, Frame::RingShare { pages: 1 }), []);
    assert_eq!(state.counts(), LinkCounts { opened: 1, ended: 1, stale_frames: 4 });
}

#[test]
fn frames_are_written_only_while_the_session_is_up() {
    let mut state = state(true);
    let begun = join(&mut state, Instant::now(), A, 1);
    let frame = Frame::RingShare { pages: 3 };
    let send = SendFrame { session: begun.session, frame: frame.clone() };
    assert_eq!(hear(&mut state, send.clone()), []);
    state.on_opened(begun.session, Ok(descriptor("ours")));
    assert_eq!(hear(&mut state, send.clone()), [begun.writes(frame.clone())]);
    begun.hears(&mut state, probed());
    assert_eq!(hear(&mut state, send.clone()), [begun.writes(frame)]);
    state.on_end(begun.session, "eof".into());
    assert_eq!(hear(&mut state, send), []);
}

#[test]
fn every_session_that_is_up_hears_that_this_process_leaves() {
    let mut state = state(true);
    let ended = up(&mut state, A, 1).session;
    state.on_end(ended, "eof".into());
    let begun = up_outgoing(&mut state);
    join(&mut state, Instant::now(), B, 1);
    assert_eq!(hear(&mut state, AnnounceLeaving), [begun.writes(Frame::Leaving)]);
    let measured = SendFrame { session: begun.session, frame: probed() };
    let effects = [hear(&mut state, measured), hear(&mut state, DialDue { receiver: FIRST })].concat();
    assert_eq!(effects, [begun.writes(probed()), begun.writes(Frame::Leaving)]);
}
