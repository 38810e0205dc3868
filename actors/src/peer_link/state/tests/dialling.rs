//! Tests of dialling: the pauses, and the sessions that result.

use super::*;

#[test]
fn each_receiver_is_dialled() {
    let mut state = state(true);
    let second = ReceiverId(1);
    assert_eq!(deliver(&mut state, StartDialling), [wake(FIRST, 0), wake(second, 0)]);
    assert_eq!(dials(&mut state), sends_hello(1, 0, true));
    let dial = Dial { receiver: second, address: "second".into() };
    assert_eq!(deliver(&mut state, DialDue { receiver: second }), [to::sockets(dial)]);
    assert_eq!(deliver(&mut state, DialDue { receiver: ReceiverId(2) }), [], "there is no third receiver");
}

#[test]
fn an_unhealthy_process_waits_before_it_dials() {
    let mut state = state(true);
    deliver(&mut state, HealthSeen(Some("engine does not respond".into())));
    for _ in 0..3 {
        assert_eq!(deliver(&mut state, DialDue { receiver: FIRST }), [wake(FIRST, 2000)]);
    }
    deliver(&mut state, HealthSeen(None));
    assert_eq!(dials(&mut state), sends_hello(1, 0, true), "the waits were no attempts");
    let line = LogLine::Unreachable { address: "first".into(), reason: "refused".into(), is_news: true };
    let effects = deliver(&mut state, dial_failed("refused", false));
    assert_eq!(effects, [to::log(line), wake(FIRST, 200)], "the waits have not lengthened the pause");
}

#[test]
fn a_receiver_that_is_not_reached_is_dialled_again_after_longer_pauses() {
    let mut state = state(true);
    for (attempt, pause) in (1..).zip([200, 400, 800, 1600, 2000, 2000]) {
        assert_eq!(dials(&mut state), sends_hello(attempt, 0, true));
        let (address, reason, is_news) = ("first".into(), "refused".into(), attempt == 1);
        let line = LogLine::Unreachable { address, reason, is_news };
        let effects = deliver(&mut state, dial_failed("refused", false));
        assert_eq!(effects, [to::log(line), wake(FIRST, pause)]);
    }
}

#[test]
fn after_a_session_its_receiver_is_dialled_again() {
    // Whether the transport has drained the session, whether its lane had moved pages, and the pause before the next attempt.
    for (drained, moved, pause) in
        [(true, false, 400), (false, false, 400), (true, true, 200), (false, true, 200)]
    {
        let mut state = state(true);
        deliver(&mut state, DialDue { receiver: FIRST });
        deliver(&mut state, dial_failed("refused", false));
        assert_eq!(dials(&mut state), sends_hello(1, 0, true));
        let begun = up_outgoing(&mut state);
        if moved {
            deliver(&mut state, SendFrame { session: begun.session, frame: probed() });
        }
        let end = LinkEnded { session: begun.session, end: LinkEnd::Broken("eof".into()) };
        assert_eq!(
            deliver(&mut state, end),
            begun.ended("eof", false),
            "no dialling before the transport has closed it"
        );
        assert_eq!(deliver(&mut state, closed(begun.session, drained)), [wake(FIRST, pause)]);
        let next = if drained { sends_hello(2, 0, true) } else { sends_hello(2, 1, false) };
        assert_eq!(dials(&mut state), next);
        let line = LogLine::Unreachable { address: "first".into(), reason: "refused".into(), is_news: moved };
        let effects = deliver(&mut state, dial_failed("refused", false));
        assert_eq!(effects[0], to::log(line), "the reason is new after a session that worked");
    }
}

#[test]
fn a_process_that_is_shutting_down_does_not_dial() {
    let mut state = state(true);
    deliver(&mut state, DialDue { receiver: FIRST });
    let begun = up_outgoing(&mut state);
    assert_eq!(deliver(&mut state, CloseLinks), begun.ended("this process is shutting down", true));
    assert_eq!(deliver(&mut state, closed(begun.session, true)), [], "the receiver is not dialled again");
    assert_eq!(deliver(&mut state, DialDue { receiver: ReceiverId(1) }), []);
    let hang_up = to::sockets(HangUp { connection: ConnectionId(8) });
    assert_eq!(deliver(&mut state, welcomed(8)), [hang_up], "the Welcome arrived too late");
    assert_eq!((state.held(), state.counts().opened), (0, 1));
}

#[test]
fn a_refusal_affects_only_its_link() {
    let refused = |reason: &str, is_news| {
        to::log(LogLine::Refused { address: "first".into(), reason: reason.into(), is_news })
    };
    // The process has two receivers. It keeps dialling the one that refuses, with long pauses, and logs each reason once.
    let mut state = state(true);
    for (reason, is_news) in [("another model", true), ("another model", false), ("wrong secret", true)] {
        dials(&mut state);
        let effects = deliver(&mut state, dial_failed(reason, true));
        assert_eq!(effects, [refused(reason, is_news), wake(FIRST, 30_000)]);
    }
    let begun = up_outgoing(&mut state);
    assert!(state.sessions[&begun.session].is_up(), "a session comes up once the receiver accepts");
}

#[test]
fn a_process_whose_only_receiver_refuses_it_at_start_ends() {
    let only = || state_with(true, 0, &["first"]);
    let mut state = only();
    dials(&mut state);
    let fault = ProcessFault("receiver at first: another model".into());
    assert_eq!(deliver(&mut state, dial_failed("another model", true)), [to::process(fault)]);
    // A process that has worked with the receiver before does not end: the receiver was replaced by one that does not fit.
    let mut state = only();
    let begun = up_outgoing(&mut state);
    deliver(&mut state, SendFrame { session: begun.session, frame: probed() });
    state.on_end(begun.session, "eof".into());
    deliver(&mut state, closed(begun.session, true));
    dials(&mut state);
    let effects = deliver(&mut state, dial_failed("another model", true));
    assert_eq!(effects[1..], [wake(FIRST, 30_000)]);
}

#[test]
fn a_process_that_decodes_does_not_end_when_its_only_receiver_refuses_it() {
    let mut state = state_with(true, RING, &["first"]);
    dials(&mut state);
    let effects = deliver(&mut state, dial_failed("another model", true));
    assert_eq!(effects[1..], [wake(FIRST, 30_000)]);
    assert!(matches!(&effects[0], Effect::Log(_)), "{effects:?}");
}

#[test]
fn an_address_that_leads_to_this_process_is_dialled_again_after_a_while() {
    let mut state = state(true);
    deliver(&mut state, DialDue { receiver: FIRST });
    let connection = ConnectionId(60);
    for is_news in [true, false] {
        let effects = deliver(&mut state, Challenged { receiver: FIRST, connection, incarnation: OWN });
        let line = LogLine::OwnAddress { address: "first".into(), is_news };
        let again = WakeDialler { receiver: FIRST, pause: Duration::from_secs(30) };
        assert_eq!(effects, [to::sockets(HangUp { connection }), to::log(line), to::sockets(again)]);
    }
}

#[test]
fn two_processes_that_dial_each_other_have_a_session_in_each_direction() {
    let mut state = state(true);
    let outgoing = up_outgoing(&mut state);
    let incoming = up(&mut state, C, 1);
    deliver(&mut state, SendFrame { session: outgoing.session, frame: probed() });
    incoming.receives(&mut state, probed());
    assert_eq!(state.ready(), 2);
    // Only the peer's link on which this process prefills is told that it leaves.
    assert_eq!(deliver(&mut state, AnnounceLeaving), [outgoing.writes(Frame::Leaving)]);
    // The end of one session leaves the other.
    let end = LinkEnded { session: incoming.session, end: LinkEnd::Broken("eof".into()) };
    assert_eq!(deliver(&mut state, end), incoming.ended("eof", false));
    assert_eq!(state.ready(), 1);
}

#[test]
fn two_addresses_of_one_process_make_one_session() {
    let mut state = state(true);
    let begun = up_outgoing(&mut state);
    let (second, connection) = (ReceiverId(1), ConnectionId(61));
    for is_news in [true, false] {
        deliver(&mut state, DialDue { receiver: second });
        let effects = deliver(&mut state, Challenged { receiver: second, connection, incarnation: C });
        let line = LogLine::SameReceiver { address: "second".into(), peer: C, is_news };
        assert_eq!(effects, [to::sockets(HangUp { connection }), to::log(line), wake(second, 30_000)]);
    }
    // When the session over the first address has ended, the second address is used.
    state.on_end(begun.session, "eof".into());
    deliver(&mut state, closed(begun.session, false));
    deliver(&mut state, DialDue { receiver: second });
    let attempt = Attempt { session: 2, previous: 1, previous_drained: false };
    let sends_hello = to::sockets(SayHello { receiver: second, connection, attempt });
    assert_eq!(
        deliver(&mut state, Challenged { receiver: second, connection, incarnation: C }),
        [sends_hello]
    );
}

#[test]
fn a_close_command_that_the_transport_refuses_is_sent_again() {
    for (error, expect_held) in [(SubmitError::Full, 1), (SubmitError::ShutDown, 0)] {
        let mut state = state(true);
        let begun = up(&mut state, A, 1);
        state.on_end(begun.session, "eof".into());
        let error = TransportError::NotTaken(error);
        let failed = TransportEvents(vec![Event::Failed { session: name(begun.session), error }]);
        let effects = deliver(&mut state, failed);
        let close = to::transport(Command::Close { session: name(begun.session) });
        assert_eq!((effects == [close], state.held()), (expect_held == 1, expect_held), "{effects:?}");
    }
}

#[test]
fn no_session_begins_with_a_receiver_whose_ring_has_no_pages() {
    let mut state = state(true);
    dials(&mut state);
    let effects = deliver(&mut state, Welcomed { ring_pages: 0, ..welcomed(7) });
    assert_eq!(effects[0], to::sockets(HangUp { connection: ConnectionId(7) }));
    let logged = |effect: &Effect| matches!(effect, Effect::Log(line) if format!("{line:?}").contains("ring has no pages"));
    assert!(logged(&effects[1]), "{effects:?}");
    assert_eq!(effects[2..], [wake(FIRST, 200)]);
    assert!(state.sessions.is_empty());
    assert_eq!(dials(&mut state), sends_hello(2, 0, true), "the next attempt has a new number");
}

fn found(state: &mut PeerLinkState, addresses: &[&str]) -> Vec<Effect> {
    let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
    deliver(state, PeersFound { addresses })
}

#[test]
fn peers_that_join_are_dialled_and_peers_that_leave_are_dialled_no_more() {
    let mut state = state_with(true, RING, &[]);
    assert_eq!(found(&mut state, &["first", "second"]), [wake(FIRST, 0), wake(ReceiverId(1), 0)]);
    assert_eq!(found(&mut state, &["first", "second", "second"]), [], "nothing is new");
    assert_eq!(found(&mut state, &["first"]), []);
    assert_eq!(deliver(&mut state, DialDue { receiver: ReceiverId(1) }), [], "it has left");
    assert_eq!(found(&mut state, &["first", "second"]), [wake(ReceiverId(2), 0)], "numbers are not reused");
    assert_eq!(dials(&mut state), sends_hello(1, 0, true));
}

#[test]
fn a_session_outlives_the_membership_of_its_peer() {
    let mut state = state_with(true, RING, &[]);
    found(&mut state, &["first"]);
    dials(&mut state);
    let begun = up_outgoing(&mut state);
    assert_eq!(found(&mut state, &[]), [], "the session continues");
    assert!(state.sessions[&begun.session].is_up());
    assert_eq!(found(&mut state, &["first"]), [], "its dialler is still there");
    assert_eq!(found(&mut state, &[]), []);
    state.on_end(begun.session, "eof".into());
    assert_eq!(deliver(&mut state, closed(begun.session, true)), [], "the peer is not dialled again");
    assert!(state.diallers.is_empty());
    assert_eq!(found(&mut state, &["first"]), [wake(ReceiverId(1), 0)]);
}

#[test]
fn a_peer_that_leaves_during_a_handshake_gets_no_hello() {
    let mut state = state_with(true, RING, &[]);
    found(&mut state, &["first"]);
    deliver(&mut state, DialDue { receiver: FIRST });
    found(&mut state, &[]);
    let connection = ConnectionId(60);
    let effects = deliver(&mut state, Challenged { receiver: FIRST, connection, incarnation: C });
    assert_eq!(effects, [to::sockets(HangUp { connection })]);
    assert!(state.diallers.is_empty());
}

#[test]
fn a_member_that_refuses_does_not_end_a_process_of_a_fleet() {
    let mut state = state_with(true, 0, &[]);
    found(&mut state, &["first"]);
    dials(&mut state);
    assert_eq!(deliver(&mut state, dial_failed("another model", true))[1..], [wake(FIRST, 30_000)]);
}
