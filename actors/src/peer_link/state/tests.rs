use super::*;

const RING: u32 = 8;
const A: Incarnation = Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 };
const B: Incarnation = Incarnation { pid: 2, ..A };

fn descriptor() -> Descriptor {
    Descriptor { transport: "t".into(), worker_address: vec![], rkey: vec![], base: 0, bytes: 0 }
}

fn of(incarnation: Incarnation, number: u64) -> Option<SenderSession> {
    Some(SenderSession { incarnation, line: 0, number, is_watched: true })
}

/// Somebody who has not come yet.
const NEXT: SenderSession =
    SenderSession { incarnation: Incarnation { pid: 3, ..A }, line: 0, number: 1, is_watched: true };

/// The Hello of an attempt `number` whose last session was `previous` and has drained.
fn hello(state: &mut PeerLinkState, incarnation: Incarnation, number: u64, previous: u64) -> Vec<Action> {
    state.on_hello(SenderSession { incarnation, line: 0, number, is_watched: true }, previous, true)
}

/// A listener over a lane on which closing ends writes, or does not.
fn listener(close_ends_writes: bool) -> PeerLinkState {
    PeerLinkState::new(close_ends_writes, RING)
}

fn up(state: &mut PeerLinkState, incarnation: Incarnation, number: u64) -> SessionId {
    let (session, _) = state.on_handshake(Instant::now(), of(incarnation, number), None);
    state.on_opened(session, Ok(descriptor()));
    session
}

fn end(session: SessionId, reason: &str, orderly: bool) -> Action {
    Action::End { session, reason: reason.into(), orderly }
}

fn over(session: SessionId, drained: bool, probed: bool) -> Action {
    Action::Over(session, SessionOver { drained, probed })
}

#[test]
fn a_listener_welcomes_and_a_dialer_connects() {
    let mut state = listener(true);
    let (session, actions) = state.on_handshake(Instant::now(), of(A, 1), None);
    assert_eq!(actions, [Action::Open(session)]);
    assert_eq!(state.on_opened(session, Ok(descriptor())), [Action::Welcome(session, descriptor())]);
    let (session, _) = state.on_handshake(Instant::now(), None, Some(descriptor()));
    assert_eq!(state.on_opened(session, Ok(descriptor())), [Action::Connect(session, descriptor())]);
}

#[test]
fn a_session_ends_once_and_is_over_once() {
    let mut state = listener(true);
    let session = up(&mut state, A, 1);
    assert_eq!(state.on_end(session, "eof".into()), [end(session, "eof", false)]);
    assert_eq!(state.on_end(session, "lane".into()), []);
    assert_eq!(state.on_closed(session, false), [over(session, false, false), Action::Proved(session)]);
    assert_eq!(state.on_closed(session, false), []);
    assert_eq!(state.held(), 0);
}

#[test]
fn a_session_must_prove_its_lane_once_and_in_time() {
    let (mut state, now) = (listener(true), Instant::now());
    let (session, _) = state.on_handshake(now, of(A, 1), None);
    state.on_opened(session, Ok(descriptor()));
    assert_eq!((state.on_tick(now + PROBE_LIMIT), state.ready()), (vec![], 0));
    assert_eq!((state.on_probed(session), state.ready()), (vec![], 1));
    assert_eq!(state.on_tick(now + PROBE_LIMIT * 2), []);
    assert!(matches!(&state.on_probed(session)[..], [Action::End { .. }]), "twice is a lie");
    assert_eq!(state.on_closed(session, true)[0], over(session, true, true));
    let (session, _) = state.on_handshake(now, of(A, 2), None);
    let actions = state.on_tick(now + PROBE_LIMIT + Duration::from_secs(1));
    assert!(matches!(&actions[..], [Action::End { session: ended, .. }] if *ended == session), "{actions:?}");
}

#[test]
fn senders_are_admitted_while_the_ring_has_a_page_for_each() {
    let mut state = PeerLinkState::new(true, 2);
    let first = up(&mut state, A, 1);
    assert_eq!(state.admit(NEXT), Ok(()));
    up(&mut state, B, 1);
    assert!(state.admit(NEXT).expect_err("two pages").contains("2 senders are connected"));
    assert!(matches!(&state.on_goodbye(first)[..], [Action::End { orderly: true, .. }]));
    assert_eq!(state.admit(NEXT), Ok(()));
}

#[test]
fn a_hello_that_is_read_after_a_younger_one_is_put_off() {
    let mut state = listener(false);
    let late = SenderSession { incarnation: A, ..NEXT };
    hello(&mut state, A, 2, 0);
    state.on_hello(late, 0, true);
    assert!(state.admit(late).expect_err("nobody waits for its answer").contains("attempt 2"));
    for other in [SenderSession { number: 2, ..late }, SenderSession { line: 1, ..late }, NEXT] {
        assert_eq!(state.admit(other), Ok(()));
    }
    state.on_process_gone(&A);
    assert_eq!(state.admit(late), Ok(()), "what is gone is forgotten");
}

#[test]
fn lines_without_a_session_are_forgotten_when_there_are_many() {
    let mut state = listener(false);
    let live = up(&mut state, A, 2);
    hello(&mut state, A, 2, 0);
    for pid in 0..2 * LINES_MAX as u32 {
        hello(&mut state, Incarnation { pid: 10 + pid, ..A }, 1, 0);
    }
    assert!(state.youngest.len() <= LINES_MAX);
    assert!(state.admit(SenderSession { incarnation: A, ..NEXT }).is_err(), "{live} is live");
}

#[test]
fn nobody_is_admitted_at_the_end_or_in_a_process_that_is_unwell() {
    let mut state = listener(true);
    let session = up(&mut state, A, 1);
    let actions = state.on_health(Some("engine stands still".into()));
    assert_eq!(actions, [end(session, "this process is unwell: engine stands still", false)]);
    assert!(state.admit(NEXT).expect_err("unwell").contains("engine stands still"));
    assert_eq!(state.on_health(None), []);
    assert_eq!(state.admit(NEXT), Ok(()));
    assert_eq!(state.on_shutdown(), []);
    assert!(state.admit(NEXT).is_err() && state.is_closing());
}

#[test]
fn a_worker_that_cannot_be_made_ends_the_session() {
    let mut state = listener(true);
    let (session, _) = state.on_handshake(Instant::now(), of(A, 1), None);
    assert_eq!(state.on_opened(session, Err("no".into())), [end(session, "no", false)]);
}

#[test]
fn where_peers_write_by_themselves_a_closed_session_waits_for_proof() {
    // What comes after session 1 of process A was lost and closed here, and whether it proves anything.
    type Then = fn(&mut PeerLinkState) -> Vec<Action>;
    let check = |then: Then, proves: bool| {
        let mut state = listener(false);
        let session = up(&mut state, A, 1);
        state.on_end(session, "eof".into());
        assert_eq!(state.on_closed(session, true), [over(session, true, false)], "our close is no proof");
        assert_eq!(state.held(), 0, "the transport holds nothing of it");
        assert_eq!(then(&mut state), if proves { vec![Action::Proved(session)] } else { vec![] });
        let again = if proves { vec![] } else { vec![Action::Proved(session)] };
        assert_eq!(state.on_process_gone(&A), again, "proved once");
    };
    check(|state| hello(state, A, 2, 1), true);
    check(|state| hello(state, A, 2, 0), true);
    check(|state| hello(state, A, 5, 0), true);
    check(|state| state.on_process_gone(&A), true);
    check(|state| hello(state, A, 1, 0), false);
    check(|state| hello(state, A, 3, 2), false);
    check(|state| hello(state, B, 2, 1), false);
    check(|state| state.on_hello(SenderSession { incarnation: A, number: 2, ..NEXT }, 1, false), false);
    check(
        |state| state.on_hello(SenderSession { incarnation: A, line: 1, number: 2, ..NEXT }, 1, true),
        false,
    );
    check(|state| state.on_process_gone(&B), false);
    check(PeerLinkState::on_shutdown, false);
}

/// A machine may be cloned with the sender in it: the end of the one on this host says nothing of the other.
#[test]
fn the_end_of_a_process_proves_only_sessions_that_it_dialled() {
    let mut state = listener(false);
    let elsewhere = SenderSession { incarnation: A, is_watched: false, ..NEXT };
    let (twin, _) = state.on_handshake(Instant::now(), Some(elsewhere), None);
    let session = up(&mut state, A, 1);
    for over in [twin, session] {
        state.on_end(over, "eof".into());
        state.on_closed(over, true);
    }
    assert_eq!(state.on_process_gone(&A), [Action::Proved(session)]);
}

#[test]
fn proof_that_comes_early_ends_the_session_and_waits_for_our_close() {
    type First = fn(&mut PeerLinkState) -> Vec<Action>;
    let check = |first: First, reason: &str| {
        for close_ends_writes in [false, true] {
            let mut state = listener(close_ends_writes);
            let session = up(&mut state, A, 1);
            assert_eq!(first(&mut state), [end(session, reason, false)]);
            let closed = state.on_closed(session, false);
            assert_eq!(closed, [over(session, false, false), Action::Proved(session)]);
        }
    };
    check(|state| hello(state, A, 2, 1), "its sender has dialled again");
    check(|state| state.on_process_gone(&A), "its sender's process is gone");
}

#[test]
fn a_dialled_session_needs_no_proof() {
    let mut state = listener(false);
    let (session, _) = state.on_handshake(Instant::now(), None, Some(descriptor()));
    state.on_end(session, "eof".into());
    assert_eq!(state.on_closed(session, true), [over(session, true, false), Action::Proved(session)]);
}
