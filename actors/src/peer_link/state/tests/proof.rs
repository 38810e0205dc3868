//! Which senders join, and what proves that nothing lands any more.

use super::super::proof::SENDERS_KNOWN_MAX;
use super::*;
use crate::messages::{NothingOutstanding, ProcessWatched};

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

#[test]
fn a_lost_session_that_held_no_credit_needs_no_proof() {
    for ends_first in [true, false] {
        let mut state = state(false);
        let begun = up(&mut state, A, 1);
        state.on_end(begun.session, "eof".into());
        let nothing = NothingOutstanding { session: begun.session };
        let effects = if ends_first {
            [state.on_closed(begun.session, false), hear(&mut state, nothing)]
        } else {
            [hear(&mut state, nothing), state.on_closed(begun.session, false)]
        };
        assert_eq!(effects.concat(), [begun.drained()]);
        assert!(state.sessions.is_empty(), "it is forgotten");
    }
}
