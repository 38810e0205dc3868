//! Cancelled requests, lost sessions and lanes that fail.

use super::*;

#[test]
fn a_cancelled_request_drains_and_its_pages_are_announced_without_owner() {
    let mut peer = Peer::probed(32);
    peer.grant();
    peer.schedule(0, 20);
    assert_eq!(peer.puts.len(), PAGES_IN_FLIGHT);
    assert_eq!(peer.state.on_cancel(S, R), [], "puts are in flight");
    while !peer.puts.is_empty() {
        assert_eq!(peer.drained, 0);
        peer.complete(0, Ok(()));
    }
    assert_eq!(peer.drained, 1);
    while !peer.flushes.is_empty() {
        peer.flush();
    }
    assert_eq!(peer.filled, [(None, 8); 2], "a flush follows every eight pages");
    assert_eq!(peer.sent, 0);
}

#[test]
fn a_lost_session_still_waits_for_its_puts() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 3);
    assert_eq!(peer.state.on(1, PeerLost { session: S }.into()), []);
    assert_eq!(peer.state.on_cancel(S, R), []);
    for _ in 0..3 {
        assert_eq!(peer.drained, 0);
        peer.complete(0, Err(lane_error("connection reset")));
    }
    assert_eq!(peer.drained, 1);
    assert!(peer.broken.is_empty(), "the session is already lost");
    assert_eq!(peer.state.on_cancel(S, R), [drained()], "a removed session has no puts");
}

#[test]
fn an_error_of_the_lane_or_the_ring_breaks_the_session() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 1);
    peer.complete(0, Err(lane_error("connection reset")));
    assert_eq!(peer.broken, ["put failed: ucp_put_nbx failed: connection reset"]);
    peer.flush();
    assert_eq!(peer.filled, [], "nothing is announced in a session that broke");

    let mut peer = Peer::probed(8);
    let effects = peer.state.on(1, granted(999, &[0]).into());
    assert!(broken(&effects).is_some_and(|reason| reason.contains("credit 999")), "{effects:?}");
    assert_eq!(peer.state.on(1, granted(999, &[0]).into()), [], "the session is broken once");
}

#[test]
fn a_stuck_operation_breaks_the_session() {
    for flushing in [false, true] {
        let mut peer = Peer::probed(8);
        peer.grant();
        peer.schedule(0, 1);
        if flushing {
            peer.complete(0, Ok(()));
            assert_eq!(peer.flushes.len(), 1);
        }
        assert_eq!(peer.state.on_tick(OPERATION_MICROS_MAX), []);
        let effects = peer.state.on_tick(OPERATION_MICROS_MAX + 10);
        assert!(broken(&effects).is_some(), "{effects:?}");
        assert_eq!(peer.state.on_tick(OPERATION_MICROS_MAX + 10), [], "the session is broken once");
    }
}

#[test]
fn a_flush_that_fails_or_comes_late_announces_nothing() {
    for lost in [true, false] {
        let mut peer = Peer::probed(8);
        peer.grant();
        peer.schedule(0, 1);
        peer.complete(0, Ok(()));
        let ticket = peer.flushes[0];
        if lost {
            assert_eq!(peer.state.on(1, PeerLost { session: S }.into()), []);
        }
        let result = if lost { Ok(()) } else { Err(lane_error("reset")) };
        let effects = peer.state.on(9, flushed(ticket, result).into());
        let expect = (!lost).then_some("flush failed: ucp_put_nbx failed: reset");
        assert_eq!((broken(&effects), effects.len()), (expect, usize::from(!lost)), "{effects:?}");
        peer.perform(effects);
        assert_eq!(peer.filled, []);
        assert_eq!(peer.state.on_cancel(S, R), [drained()]);
    }
}

#[test]
fn a_cancelled_request_waits_for_its_hashes_too() {
    let mut peer = Peer::probed(8);
    peer.hashes_late = true;
    peer.grant();
    peer.schedule(0, 1);
    assert_eq!(peer.state.on_cancel(S, R), []);
    peer.complete(0, Ok(()));
    peer.flush();
    assert_eq!((peer.drained, peer.filled.len()), (0, 0), "the hash thread may be reading the page");
    peer.hash();
    assert_eq!((peer.drained, &peer.filled[..]), (1, &[(None, 1)][..]));
}

#[test]
fn a_slow_lane_is_refused() {
    let mut peer = Peer::new(8);
    peer.state.config.min_gigabytes_per_second = 1e3;
    while peer.broken.is_empty() {
        peer.turn();
    }
    assert!(!peer.measured);
    assert!(peer.broken[0].contains("transport.min_gigabytes_per_second is 1000"), "{:?}", peer.broken);
}

#[test]
fn the_error_of_a_broken_lane_names_a_remedy() {
    for (on_device, remedy) in [(false, "check what UCX_TLS"), (true, "shareProcessNamespace")] {
        let mut peer = Peer::new(8);
        peer.state.config.on_device = on_device;
        peer.grant();
        peer.complete(0, Err(lane_error("Request canceled")));
        let expect = "lane tcp/lo cannot carry pages (ucp_put_nbx failed: Request canceled); ";
        let reason = &peer.broken[0];
        assert!(reason.starts_with(expect) && reason.contains(remedy), "{reason}");
    }
}
