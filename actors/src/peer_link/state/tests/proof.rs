//! Tests of the admission of senders, and of the proof that no write of a lost session can land any more.

use super::super::proof::SENDERS_KNOWN_MAX;
use super::*;
use crate::messages::{NothingOutstanding, ProcessWatched, RoomChanged};

#[test]
fn at_most_one_sender_per_page_of_the_ring_is_admitted() {
    let mut state = state_with(true, 2, &["first"]);
    let first = up(&mut state, A, 1);
    up_outgoing(&mut state);
    assert_eq!(state.admit(NEXT), Ok(()), "a session with a receiver needs no page of the ring");
    up(&mut state, B, 1);
    assert!(state.admit(NEXT).expect_err("two pages").contains("2 senders are connected"));
    let goodbye = LinkEnded { session: first.session, end: LinkEnd::Goodbye };
    assert_eq!(deliver(&mut state, goodbye), first.ended("peer said goodbye", true));
    assert_eq!(state.admit(NEXT), Ok(()));
}

#[test]
fn a_hello_that_is_read_after_a_newer_one_is_refused() {
    let mut state = state(false);
    let late = SenderSession { incarnation: A, number: 1, is_watched: true };
    hello(&mut state, A, 2, 0);
    state.on_hello(late, 0, true);
    assert!(state.admit(late).expect_err("its dialler has given up").contains("attempt 2"));
    let reason = "attempt 1 arrived after attempt 2 of the same sender".to_owned();
    let refuse = Refuse { connection: ConnectionId(101), reason };
    assert_eq!(deliver(&mut state, hello_came(A, 1)), [to::sockets(refuse)]);
    for other in [SenderSession { number: 2, ..late }, NEXT] {
        assert_eq!(state.admit(other), Ok(()));
    }
    state.on_process_gone(&A);
    assert_eq!(state.admit(late), Ok(()), "the attempts of an ended process are forgotten");
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
fn a_process_that_is_unhealthy_or_shutting_down_admits_no_sender() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    let effects = deliver(&mut state, HealthSeen(Some("engine does not respond".into())));
    assert_eq!(effects, begun.ended("this process is unhealthy: engine does not respond", false));
    assert!(state.admit(NEXT).expect_err("unhealthy").contains("engine does not respond"));
    assert_eq!(deliver(&mut state, HealthSeen(None)), []);
    assert_eq!(state.admit(NEXT), Ok(()));
    assert_eq!(deliver(&mut state, CloseLinks), []);
    assert!(state.admit(NEXT).is_err() && state.is_closing());
    let refuse = Refuse { connection: ConnectionId(201), reason: "this process is shutting down".into() };
    assert_eq!(deliver(&mut state, hello_came(B, 1)), [to::sockets(refuse)]);
}

#[test]
fn new_senders_wait_while_too_many_pages_are_quarantined() {
    for (close_ends_writes, quarantined, admits) in [(false, 5, true), (false, 6, false), (true, 6, true)] {
        let mut state = state(close_ends_writes);
        deliver(&mut state, RoomChanged { pages: 20, usable: 10, quarantined });
        let reason = "lost senders may still write 6 of 20 pages; they become free when those processes end on this host or dial again";
        assert_eq!(state.admit(NEXT), if admits { Ok(()) } else { Err(reason.to_owned()) });
    }
}

#[test]
fn a_closed_session_waits_for_proof_if_peers_write_without_our_worker() {
    // An event after session 1 of process A was lost and closed here, and whether it is proof.
    type Then = fn(&mut PeerLinkState) -> Vec<Effect>;
    let check = |then: Then, proves: bool| {
        let mut state = state(false);
        let begun = up(&mut state, A, 1);
        state.on_end(begun.session, "eof".into());
        assert_eq!(state.on_closed(begun.session, true), [], "closing our side is no proof");
        assert_eq!(state.held(), 0, "the transport has closed the session");
        assert_eq!(then(&mut state), if proves { vec![begun.drained()] } else { vec![] });
        let again = if proves { vec![] } else { vec![begun.drained()] };
        assert_eq!(state.on_process_gone(&A), again, "SessionDrained is sent once");
    };
    check(|state| hello(state, A, 2, 1), true);
    check(|state| hello(state, A, 2, 0), true);
    check(|state| hello(state, A, 5, 0), true);
    check(|state| state.on_process_gone(&A), true);
    check(|state| deliver(state, ProcessWatched { incarnation: A, gone: true }), true);
    check(|state| hello(state, A, 1, 0), false);
    check(|state| hello(state, A, 3, 2), false);
    check(|state| hello(state, B, 2, 1), false);
    check(
        |state| state.on_hello(SenderSession { incarnation: A, number: 2, is_watched: true }, 1, false),
        false,
    );
    check(|state| state.on_process_gone(&B), false);
    check(|state| deliver(state, ProcessWatched { incarnation: A, gone: false }), false);
    check(PeerLinkState::on_shutdown, false);
}

/// A session whose sender has named its transports and is not measured yet, in a process whose configuration allows lanes that need proof.
#[test]
fn a_closed_session_needs_no_further_proof_if_its_lane_ends_with_our_worker() {
    let check = |lane: &str, proves: bool| {
        let mut state = state(false);
        let begun = connecting(&mut state, A, 1);
        assert_eq!(begun.receives(&mut state, lane_connected(lane)).len(), 1);
        assert_eq!(
            state.on_end(begun.session, "eof".into()),
            begun.ended("eof", false),
            "no proof before it is closed"
        );
        let expect = if proves { vec![begun.drained()] } else { vec![] };
        assert_eq!(state.on_closed(begun.session, true), expect, "{lane:?}");
    };
    check("rc_mlx5/mlx5_0:1,tcp/eth0", true);
    check("tcp/eth0", true);
    check("cuda_ipc/cuda,tcp/lo", false);
    check("cma/memory,posix/memory,tcp/lo", false);
    check("dc_mlx5/mlx5_0:1,tcp/eth0", false);
    check("unknown", false);
}

/// Only `LaneConnected` comes before the first credit.
#[test]
fn the_lane_in_link_probed_is_no_proof() {
    let mut state = state(false);
    let begun = up(&mut state, A, 1);
    assert_eq!(begun.receives(&mut state, probed()).len(), 4);
    state.on_end(begun.session, "eof".into());
    assert_eq!(state.on_closed(begun.session, true), []);
}

/// A virtual machine may be cloned together with a sender in it. The end of the process on this host is no proof for the sessions
/// of the clone.
#[test]
fn the_end_of_a_process_proves_only_sessions_that_it_dialled() {
    let mut state = state(false);
    let mut elsewhere = hello_came(A, 1);
    elsewhere.sender.is_watched = false;
    deliver(&mut state, elsewhere);
    let clone = SessionId(state.next);
    let begun = up(&mut state, A, 1);
    for over in [clone, begun.session] {
        state.on_end(over, "eof".into());
        state.on_closed(over, true);
    }
    assert_eq!(state.on_process_gone(&A), [begun.drained()]);
}

#[test]
fn proof_for_a_live_session_ends_it_and_takes_effect_when_it_is_closed() {
    type First = fn(&mut PeerLinkState) -> Vec<Effect>;
    let check = |first: First, reason: &str| {
        for close_ends_writes in [false, true] {
            let mut state = state(close_ends_writes);
            let begun = up(&mut state, A, 1);
            assert_eq!(first(&mut state), begun.ended(reason, false));
            assert_eq!(state.on_closed(begun.session, false), [begun.drained()]);
        }
    };
    check(|state| hello(state, A, 2, 1), "the sender dialled again");
    check(|state| state.on_process_gone(&A), "the sender's process has ended");
}

#[test]
fn a_dialled_session_needs_no_proof() {
    let mut state = state(false);
    let begun = reach(&mut state);
    state.on_end(begun.session, "eof".into());
    assert_eq!(state.on_closed(begun.session, true), [wake(FIRST, 200)], "the peer wrote no page of ours");
    assert!(state.sessions.is_empty());
}

#[test]
fn each_senders_process_is_watched_once() {
    let mut state = state(true);
    let watch = |number| {
        let connection = hello_came(A, number).connection;
        to::sockets(WatchProcess { connection, incarnation: A })
    };
    let mut watches = |number| deliver(&mut state, hello_came(A, number)).contains(&watch(number));
    assert_eq!([1, 2].map(&mut watches), [true, false]);
    deliver(&mut state, ProcessWatched { incarnation: A, gone: false });
    assert!(
        deliver(&mut state, hello_came(A, 3)).contains(&watch(3)),
        "no task watches the process any more"
    );
}

#[test]
fn a_lost_session_that_held_no_credit_needs_no_proof() {
    // The second sender has not named its lane.
    for (ends_first, begin) in
        [(true, up as fn(&mut _, _, _) -> _), (false, up), (true, connecting), (false, connecting)]
    {
        let mut state = state(false);
        let begun = begin(&mut state, A, 1);
        state.on_end(begun.session, "eof".into());
        let nothing = NothingOutstanding { session: begun.session };
        let effects = if ends_first {
            [state.on_closed(begun.session, false), deliver(&mut state, nothing)]
        } else {
            [deliver(&mut state, nothing), state.on_closed(begun.session, false)]
        };
        assert_eq!(effects.concat(), [begun.drained()]);
        assert!(state.sessions.is_empty(), "the session is removed");
    }
}
