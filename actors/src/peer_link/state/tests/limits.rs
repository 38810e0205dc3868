//! Tests of the bound of the sessions, and of the room for peers that wait.

use connector::frame::PrefillFault;

use super::*;

const IDLE: Duration = Duration::from_secs(600);
const SECOND: ReceiverId = ReceiverId(1);

/// A state with sessions to both receivers, which may have no other session, and the time at which they began.
fn full() -> (PeerLinkState, [Begun; 2], Instant) {
    let (mut state, now) =
        (state(true).with_limits(SessionLimits { sessions: 2, idle: IDLE }), Instant::now());
    let begun = [(FIRST, C), (SECOND, B)].map(|(receiver, peer)| {
        let connection = ConnectionId(u64::from(receiver.0));
        state.on(now, Challenged { receiver, connection, incarnation: peer }.into());
        let welcomed = Welcomed { receiver, incarnation: peer, ..welcomed(connection.0) };
        let session = opening(&state.on(now, welcomed.into()));
        state.on_opened(Instant::now(), session, Ok(descriptor("ours")));
        connect_lane(&mut state, session);
        state.on(now, SendFrame { session, frame: probed() }.into());
        Begun { session, peer, connection, is_incoming: false }
    });
    (state, begun, now)
}

/// A sender dials. True if it is admitted.
fn is_admitted(state: &mut PeerLinkState, now: Instant) -> bool {
    let effects = state.on(now, hello_came(A, 1).into());
    !matches!(&effects[..], [Effect::Sockets(message)] if format!("{message:?}").contains("link.sessions"))
}

fn prefill(request: u64) -> Frame {
    Frame::Prefill {
        request,
        prompt: vec![1],
        resident: 0,
        sampling: first_token::to_frame(&engine::Sampling::default(), None),
        salt: None,
        grammar: None,
        remaining_ms: 1,
    }
}

fn ended(begun: &Begun) -> Vec<Effect> {
    begun.ended("the session was idle, and another peer needs a session; raise link.sessions", true)
}

#[test]
fn the_session_that_was_idle_longest_makes_room_for_a_peer_that_waits() {
    let (mut state, [first, second], began) = full();
    assert!(!is_admitted(&mut state, began));
    // Both sessions were used too recently.
    assert_eq!(state.on_tick(began + IDLE - Duration::from_secs(1)), []);
    let failed = Frame::PrefillFailed { request: 5, fault: PrefillFault::Refused, reason: String::new() };
    state.on(began, FrameCame { session: first.session, frame: prefill(5) }.into());
    state.on(began + Duration::from_secs(1), SendFrame { session: first.session, frame: failed }.into());
    let later = began + IDLE * 2;
    assert_eq!(state.on_tick(later), [], "the peer waits no longer");
    assert!(!is_admitted(&mut state, later));
    assert_eq!(state.on_tick(later), ended(&second));
    assert!(is_admitted(&mut state, later));
    assert_eq!(state.on_tick(later), [], "one peer waited");
    // The peer whose session ended comes after the one that waited.
    assert_eq!(
        state.on(later, closed(second.session, true).into()),
        [to::sockets(WakeDialler { receiver: SECOND, pause: Duration::from_secs(30) })]
    );
}

#[test]
fn a_session_with_a_prefill_in_progress_is_not_idle() {
    let (mut state, [first, second], began) = full();
    for session in [first.session, second.session] {
        state.on(began, FrameCame { session, frame: prefill(5) }.into());
    }
    let later = began + IDLE * 2;
    assert!(!is_admitted(&mut state, later));
    assert_eq!(state.on_tick(later), []);
    let cancel = Frame::CancelPrefill { request: 5 };
    state.on(later, FrameCame { session: second.session, frame: cancel }.into());
    let later = later + IDLE;
    assert!(!is_admitted(&mut state, later));
    assert_eq!(state.on_tick(later), ended(&second));
}

#[test]
fn idle_sessions_stay_while_no_peer_waits() {
    let (mut state, _, began) = full();
    assert_eq!(state.on_tick(began + IDLE * 100), []);
    assert_eq!(state.ready(), 2);
}

#[test]
fn a_process_with_all_its_sessions_dials_later() {
    let mut state = state(true).with_limits(SessionLimits { sessions: 1, idle: IDLE });
    let begun = up(&mut state, A, 1);
    let challenged = Challenged { receiver: FIRST, connection: ConnectionId(60), incarnation: C };
    for is_news in [true, false] {
        let line = LogLine::Full { address: "first".into(), sessions: 1, is_news };
        let hang_up = to::sockets(HangUp { connection: ConnectionId(60) });
        assert_eq!(deliver(&mut state, challenged), [hang_up, to::log(line), wake(FIRST, 2_000)]);
    }
    state.on_end(begun.session, "eof".into());
    let effects = deliver(&mut state, challenged);
    assert!(
        matches!(&effects[..], [Effect::Sockets(message)] if format!("{message:?}").contains("SayHello"))
    );
    // The handshake counts.
    let second = Challenged { receiver: SECOND, incarnation: B, ..challenged };
    assert_eq!(
        deliver(&mut state, second)[2..],
        [to::sockets(WakeDialler { receiver: SECOND, pause: Duration::from_secs(2) })]
    );
}

#[test]
fn another_address_of_a_connected_process_needs_no_room() {
    let (mut state, _, began) = full();
    // The process at the second address is connected over the first one too, so no session has to end for it.
    let challenged = Challenged { receiver: SECOND, connection: ConnectionId(60), incarnation: C };
    let effects = state.on(began, challenged.into());
    assert!(
        matches!(&effects[1], Effect::Log(line) if format!("{line:?}").contains("SameReceiver")),
        "{effects:?}"
    );
    assert_eq!(state.on_tick(began + IDLE * 2), [], "no peer waits");
}

#[test]
fn a_failure_of_an_attempt_that_was_hung_up_on_wakes_no_second_time() {
    let (mut state, _, began) = full();
    let challenged = Challenged { receiver: SECOND, connection: ConnectionId(60), incarnation: A };
    let effects = state.on(began, challenged.into());
    assert!(effects.iter().any(|effect| *effect == wake(SECOND, 2_000)), "{effects:?}");
    let late = DialFailed { receiver: SECOND, reason: "no answer".into(), permanent: false };
    assert_eq!(deliver(&mut state, late.clone()), []);
    deliver(&mut state, DialDue { receiver: SECOND });
    assert_ne!(deliver(&mut state, late), [], "the failure of the next attempt counts");
}
