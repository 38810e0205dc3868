//! Requests whose header names the prefiller.

use super::*;
use crate::effect::ToLog;
use crate::messages::PeerLeaving;

const HTTP: &str = "10.0.0.9:8200";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn on(addresses: &[&str]) -> Route {
    Route::On(addresses.iter().map(|text| address(text)).collect())
}

fn ready_at(session: u64, http: &str) -> PeerReady {
    PeerReady { http: Some(address(http)), ..ready(SessionId(session)) }
}

/// A node at [`HTTP`] with senders at 10.0.0.1 and 10.0.0.2, whose sessions are 1 and 2, and a sender without an address.
fn node(local: LocalPrefill) -> ProxyState {
    let config = config(1000);
    let routing = RoutingConfig { local, ..config.routing };
    let mut state = ProxyState::new(ProxyConfig { http: Some(address(HTTP)), routing, ..config });
    state.on_peer_ready(ready_at(1, "10.0.0.1:8100"));
    state.on_peer_ready(ready_at(2, "10.0.0.2:8100"));
    state.on_peer_ready(ready(SessionId(3)));
    state
}

/// The number of placements per session after `count` requests.
fn chosen(state: &mut ProxyState, count: usize, route: &Route) -> Vec<Option<SessionId>> {
    let now = Instant::now();
    let all = (0..count).map(|_| state.route(now, &generate(100, 1, route.clone())).unwrap().on);
    let mut all: Vec<_> = all.collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn the_first_connected_address_prefills() {
    let check = |addresses: &[&str], expect: Option<u64>| {
        let mut state = node(LocalPrefill::Auto);
        let expect = expect.map(SessionId);
        assert_eq!(chosen(&mut state, 10, &on(addresses)), [expect], "{addresses:?}");
        assert_eq!(state.waiting(), 1000, "{addresses:?}: the prompts count as waiting there");
    };
    check(&["10.0.0.2:8100"], Some(2));
    check(&["10.0.0.1:8100", "10.0.0.2:8100"], Some(1));
    check(&["10.0.0.7:8100", "10.0.0.2:8101", "10.0.0.2:8100", "10.0.0.1:8100"], Some(2));
    check(&[HTTP], None);
    check(&["10.0.0.7:8100", HTTP, "10.0.0.1:8100"], None);
}

#[test]
fn a_header_without_a_connected_address_is_counted_and_the_node_chooses() {
    let mut state = node(LocalPrefill::Auto);
    let all = [1, 2, 3].map(|session| Some(SessionId(session)));
    assert_eq!(chosen(&mut state, 6, &Route::Auto), all);
    assert_eq!(chosen(&mut state, 6, &on(&["10.0.0.7:8100"])), all);
    assert_eq!(chosen(&mut state, 6, &on(&[])), all);
    let ask = |state: &mut ProxyState, route| {
        let effects = state.on(Instant::now(), generate(1, 1, route).into());
        assert!(matches!(effects.last(), Some(Effect::Decoder(_))), "{effects:?}");
        state.headers_unknown()
    };
    assert_eq!(ask(&mut state, on(&["10.0.0.7:8100"])), 1);
    assert_eq!(ask(&mut state, on(&[])), 2);
    assert_eq!(ask(&mut state, on(&["10.0.0.1:8100"])), 2);
    assert_eq!(ask(&mut state, on(&[HTTP])), 2);
    assert_eq!(ask(&mut state, Route::Auto), 2);
    state.on(Instant::now(), PeerLeaving { session: SessionId(1) }.into());
    assert_eq!(ask(&mut state, on(&["10.0.0.1:8100"])), 3, "it accepts no new prefills");
}

#[test]
fn headers_without_a_connected_address_are_logged_once_a_minute() {
    let (mut state, now) = (node(LocalPrefill::Auto), Instant::now());
    let mut logged = |seconds: u64| {
        let effects =
            state.on(now + Duration::from_secs(seconds), generate(1, 1, on(&["10.0.0.7:8100"])).into());
        effects.into_iter().find_map(|effect| match effect {
            Effect::Log(ToLog::LogLine(LogLine::UnknownPrefiller { total, .. })) => Some(total),
            _ => None,
        })
    };
    let totals: Vec<_> = [0, 1, 59, 60, 61, 119, 120].into_iter().map(&mut logged).collect();
    assert_eq!(totals, [Some(1), None, None, Some(4), None, None, Some(7)]);
}

#[test]
fn a_named_sender_prefills_while_it_pauses() {
    let (mut state, now) = (node(LocalPrefill::Auto), Instant::now());
    state.on_prefill_over(now, &failed(SessionId(1), 100));
    let pauses: Vec<_> =
        (0..6).map(|_| route(&mut state, now, &generate(100, 1, Route::Auto)).unwrap()).collect();
    assert!(!pauses.contains(&Some(SessionId(1))), "{pauses:?}");
    let named = generate(100, 1, on(&["10.0.0.1:8100"]));
    assert_eq!(route(&mut state, now, &named), Ok(Some(SessionId(1))));
}

#[test]
fn a_named_sender_prefills_although_this_node_always_may() {
    let mut state = node(LocalPrefill::Always);
    assert_eq!(chosen(&mut state, 3, &on(&["10.0.0.1:8100"])), [Some(SessionId(1))]);
    assert_eq!(chosen(&mut state, 3, &on(&["10.0.0.7:8100"])), [None]);
}

#[test]
fn a_node_that_must_not_prefill_ignores_its_own_address() {
    let (mut state, now) = (node(LocalPrefill::Never), Instant::now());
    let place = |state: &mut ProxyState, addresses: &[&str]| {
        state.route(now, &generate(5, 1, on(addresses))).map(|placed| (placed.on, placed.may_fall_back))
    };
    assert_eq!(place(&mut state, &["10.0.0.2:8100"]), Ok((Some(SessionId(2)), false)));
    let (sender, may_fall_back) = place(&mut state, &[HTTP]).unwrap();
    assert!(sender.is_some() && !may_fall_back, "{sender:?}");
    state.on(now, generate(5, 1, on(&[HTTP])).into());
    assert_eq!(state.headers_unknown(), 1);
}

#[test]
fn a_named_sender_that_failed_is_replaced_by_the_next_one() {
    let (mut state, now) = (node(LocalPrefill::Never), Instant::now());
    let mut again = |tried: &[u64], addresses: &[&str]| {
        let tried = tried.iter().map(|session| SessionId(*session)).collect();
        let effects = state.on(now, PlaceAgain { generate: generate(5, 1, on(addresses)), tried }.into());
        match &effects[..] {
            [Effect::Decoder(crate::effect::ToDecoder::PlacedAgain(placed))] => {
                placed.placement.and_then(|placement| placement.on)
            }
            other => panic!("{other:?}"),
        }
    };
    let both = ["10.0.0.1:8100", "10.0.0.2:8100"];
    assert_eq!(again(&[1], &both), Some(SessionId(2)));
    assert_eq!(again(&[1, 2], &both), Some(SessionId(3)));
    assert_eq!(again(&[1, 2, 3], &both), None);
    assert_eq!(state.headers_unknown(), 0, "the header named connected senders");
}

#[test]
fn a_named_sender_gets_no_request_that_is_too_large_for_a_frame() {
    let now = Instant::now();
    let check = |local, expect| {
        let routing = RoutingConfig { local, ..config(1).routing };
        let mut state = ProxyState::new(ProxyConfig { routing, ..config(100_000) });
        state.on_peer_ready(ready_at(1, "10.0.0.1:8100"));
        let longer = generate(PROMPT_TOKENS_MAX + 1, 1, on(&["10.0.0.1:8100"]));
        assert_eq!(route(&mut state, now, &longer), expect);
    };
    check(LocalPrefill::Auto, Ok(None));
    check(LocalPrefill::Never, Err(Refused::TooLargeToSend));
}

#[test]
fn the_later_of_two_senders_with_one_address_has_it() {
    let mut state = node(LocalPrefill::Auto);
    let named = on(&["10.0.0.1:8100"]);
    state.on_peer_ready(ready_at(4, "10.0.0.1:8100"));
    assert_eq!(chosen(&mut state, 3, &named), [Some(SessionId(4))]);
    state.on_peer_lost(SessionId(4));
    assert_eq!(chosen(&mut state, 3, &named), [Some(SessionId(1))]);
}

#[test]
fn the_report_has_the_load_and_the_addresses_of_senders() {
    let mut state = node(LocalPrefill::Auto);
    state.on_peer_ready(ready_at(4, "10.0.0.1:8100"));
    let load = LoadReport {
        waiting_tokens: 7,
        begun_tokens: 3,
        nanos_per_token: Some(5),
        decoding: 0,
        decode: None,
    };
    state.on(Instant::now(), load.into());
    let prefillers = ["10.0.0.1:8100", "10.0.0.2:8100"].map(address).to_vec();
    assert_eq!(state.report(), ProxyReport { load, prefillers });
    state.on_peer_lost(SessionId(2));
    assert_eq!(state.report().prefillers, [address("10.0.0.1:8100")]);
}
