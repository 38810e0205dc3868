mod named;

use std::time::Duration;

use super::*;
use connector::frame::{GRAMMAR_BYTES_MAX, PROMPT_TOKENS_MAX};

use crate::grammar::testing::named;
use crate::messages::{BeginDrain, HandOverEnded, LoadReport, PrefillOutcome, RoomChanged};
use crate::request::{AbortRequest, RequestId};

fn generate(prompt: usize, max_tokens: u32, route: Route) -> Generate {
    Generate {
        request: RequestId(1),
        prompt: vec![1; prompt].into(),
        max_tokens,
        sampling: Default::default(),
        grammar: None,
        salt: None,
        ignore_eos: false,
        prompt_logprobs: None,
        sent: Instant::now(),
        deadline: Instant::now(),
        route,
        trace: None,
    }
}

/// The configuration of a node of 1000 pages. Nothing is known of caches.
fn config(request_pages: u32) -> ProxyConfig {
    ProxyConfig {
        page_tokens: 16,
        pool_pages: 1000,
        request_pages,
        name: 1,
        http: None,
        routing: RoutingConfig { index_bytes: 0, ttft_target: Duration::ZERO, ..RoutingConfig::default() },
    }
}

fn proxy(request_pages: u32) -> ProxyState {
    ProxyState::new(config(request_pages))
}

fn ready(session: SessionId) -> PeerReady {
    PeerReady { session, pid: 100, name: 100 + session.0, http: None }
}

fn placement(on: Option<SessionId>, tokens: u32) -> Placement {
    Placement { on, tokens, may_fall_back: true }
}

fn computed(on: SessionId, tokens: u32, micros: u64) -> PrefillOver {
    PrefillOver {
        placement: placement(Some(on), tokens),
        outcome: PrefillOutcome::Computed { tokens, micros },
    }
}

fn failed(on: SessionId, tokens: u32) -> PrefillOver {
    PrefillOver { placement: placement(Some(on), tokens), outcome: PrefillOutcome::Failed }
}

/// Where the request is prefilled.
fn route(state: &mut ProxyState, now: Instant, generate: &Generate) -> Result<Option<SessionId>, Refused> {
    state.route(now, generate).map(|placement| placement.on)
}

#[test]
fn a_prompt_goes_to_the_place_with_the_earliest_predicted_end() {
    let (fast, slow) = (SessionId(1), SessionId(2));
    let (mut state, now) = (proxy(1000), Instant::now());
    state.on_peer_ready(ready(fast));
    state.on_peer_ready(ready(slow));
    let to = |state: &mut ProxyState, tokens| route(state, now, &generate(tokens, 1, Route::Auto)).unwrap();
    for _ in 0..2 {
        to(&mut state, 100);
    }
    state.on_prefill_over(now, &computed(fast, 100, 100_000));
    state.on_prefill_over(now, &computed(slow, 100, 300_000));
    assert_eq!(state.waiting(), 0);
    // 1 and 3 ms per token: 0.1, 0.2, 0.3 and 0.3 s.
    let chosen: Vec<_> = (0..4).map(|_| to(&mut state, 100)).collect();
    assert_eq!(chosen, [Some(fast), Some(fast), Some(slow), Some(fast)].to_vec());
    // 0.8 s and then 1.3 s at the fast sender, 0.5 s here: this node is not sooner by more than 1 s.
    assert_eq!([to(&mut state, 500), to(&mut state, 500)], [Some(fast); 2]);
    // 1.9 s at the fast sender, 2.1 s at the slow one, 0.6 s here.
    assert_eq!(to(&mut state, 600), None);
    assert_eq!(to(&mut state, 600), Some(fast), "a prompt already waits here");
    state.on_peer_lost(fast);
    state.on_prefill_over(now, &failed(fast, 100));
    assert_eq!(state.waiting(), 100 + 600);
}

#[test]
fn senders_take_turns_and_leave() {
    let (mut state, now) = (proxy(10), Instant::now());
    assert_eq!(route(&mut state, now, &generate(1, 1, Route::Auto)), Ok(None));
    state.on_peer_ready(ready(SessionId(1)));
    state.on_peer_ready(ready(SessionId(2)));
    let first = route(&mut state, now, &generate(1, 1, Route::Auto));
    let second = route(&mut state, now, &generate(1, 1, Route::Auto));
    assert_ne!(first, second);
    assert_eq!(route(&mut state, now, &generate(1, 1, Route::Local)), Ok(None));
    state.on_peer_lost(SessionId(1));
    assert_eq!(route(&mut state, now, &generate(1, 1, Route::Auto)), Ok(Some(SessionId(2))));
}

#[test]
fn an_abort_reaches_the_decoder_after_its_request() {
    let (mut state, now) = (proxy(10), Instant::now());
    let generate = generate(1, 1, Route::Auto);
    let effects = state.on(now, generate.clone().into());
    assert_eq!(effects, [to::decoder(Decode { generate, placement: placement(None, 1) })]);
    for abort in [AbortRequest::cancelled(RequestId(1)), AbortRequest::completed(RequestId(1), 3)] {
        assert_eq!(state.on(now, abort.into()), [to::decoder(abort)]);
    }
}

#[test]
fn a_request_that_does_not_fit_beside_the_quarantine_is_refused_with_the_numbers() {
    let (mut state, now) = (proxy(10), Instant::now());
    let large = |state: &mut ProxyState| route(state, now, &generate(100, 29, Route::Auto));
    assert_eq!(large(&mut state), Ok(None));
    state.on(now, RoomChanged { pages: 20, usable: 7, quarantined: 3 }.into());
    assert_eq!(large(&mut state), Err(Refused::NoRoom { needed: 8, usable: 7 }));
    state.on(now, RoomChanged { pages: 20, usable: 10, quarantined: 0 }.into());
    assert_eq!(large(&mut state), Ok(None));
}

#[test]
fn a_request_that_can_never_fit_is_refused() {
    let (mut state, now) = (proxy(10), Instant::now());
    assert_eq!(route(&mut state, now, &generate(100, 61, Route::Auto)), Ok(None));
    let refused = Err(Refused::TooLarge { needed: 11, usable: 10 });
    assert_eq!(route(&mut state, now, &generate(100, 62, Route::Auto)), refused);
    state.on(now, BeginDrain.into());
    assert_eq!(route(&mut state, now, &generate(1, 1, Route::Auto)), Err(Refused::ShuttingDown));
}

#[test]
fn a_sender_whose_prefills_fail_is_not_preferred() {
    let (good, broken) = (SessionId(1), SessionId(2));
    let (mut state, mut now) = (proxy(1000), Instant::now());
    state.on_peer_ready(ready(good));
    state.on_peer_ready(ready(broken));
    let to = |state: &mut ProxyState, now| route(state, now, &generate(100, 1, Route::Auto)).unwrap();
    // Both senders are idle, and each gets four prompts.
    let in_progress: Vec<_> = (0..8).map(|_| to(&mut state, now)).collect();
    assert_eq!(in_progress.iter().filter(|on| **on == Some(broken)).count(), 4);
    for _ in 0..4 {
        state.on_prefill_over(now, &failed(broken, 100));
    }
    // The broken sender fails at once, so no prompt ever waits there. For 30 s a prompt arrives every 10 ms; the good sender
    // finishes its prompts.
    let mut tried = Vec::new();
    for tick in 0..3000 {
        now += Duration::from_millis(10);
        match to(&mut state, now) {
            Some(on) if on == broken => {
                tried.push(tick);
                state.on_prefill_over(now, &failed(broken, 100));
            }
            on => assert_eq!(on, Some(good)),
        }
        state.on_prefill_over(now, &computed(good, 100, 1000));
    }
    // The four failures at the start count once; the pauses are 0.5, 1, 2, 4, 8 and 16 s.
    assert_eq!(tried, [49, 149, 349, 749, 1549]);
    // The broken sender recovers.
    now += Duration::from_secs(30);
    assert!((0..2).any(|_| to(&mut state, now) == Some(broken)), "both are idle");
    let during: Vec<_> = (0..3).map(|_| to(&mut state, now)).collect();
    assert_eq!(during, [Some(good); 3], "only one prompt is sent to it until one succeeds");
    state.on_prefill_over(now, &computed(broken, 100, 1000));
    let turns: Vec<_> = (0..4).map(|_| to(&mut state, now)).collect();
    assert!(turns.contains(&Some(broken)), "{turns:?}");
}

#[test]
fn this_node_prefills_if_all_senders_fail() {
    let (mut state, now) = (proxy(1000), Instant::now());
    state.on_peer_ready(ready(SessionId(1)));
    let to = |state: &mut ProxyState, now| route(state, now, &generate(100, 1, Route::Auto)).unwrap();
    assert_eq!(to(&mut state, now), Some(SessionId(1)));
    state.on_prefill_over(now, &failed(SessionId(1), 100));
    assert_eq!(to(&mut state, now), None);
    // A withdrawn prompt is neither a success nor a failure: it leaves the pause as it was.
    let later = now + Duration::from_secs(1);
    assert_eq!(to(&mut state, later), Some(SessionId(1)));
    let outcome = PrefillOutcome::Withdrawn;
    state.on_prefill_over(later, &PrefillOver { placement: placement(Some(SessionId(1)), 100), outcome });
    assert_eq!(to(&mut state, later), Some(SessionId(1)));
    state.on_prefill_over(later, &failed(SessionId(1), 100));
    assert_eq!(to(&mut state, later + Duration::from_millis(999)), None);
    assert_eq!(to(&mut state, later + Duration::from_secs(1)), Some(SessionId(1)));
}

#[test]
fn frontend_local_decides_who_prefills() {
    let now = Instant::now();
    let check = |local, peers: u64, on: Route, expect: Result<Placement, Refused>| {
        let routing = RoutingConfig { local, ..config(10).routing };
        let mut state = ProxyState::new(ProxyConfig { routing, ..config(10) });
        (1..=peers).for_each(|session| state.on_peer_ready(ready(SessionId(session))));
        assert_eq!(
            state.route(now, &generate(5, 1, on.clone())),
            expect,
            "{local:?}, {peers} senders, {on:?}"
        );
    };
    let here = Ok(placement(None, 5));
    let on_sender = |may_fall_back| Ok(Placement { on: Some(SessionId(1)), tokens: 5, may_fall_back });
    check(LocalPrefill::Auto, 0, Route::Auto, here.clone());
    check(LocalPrefill::Auto, 1, Route::Auto, on_sender(true));
    check(LocalPrefill::Always, 1, Route::Auto, here.clone());
    check(LocalPrefill::Never, 1, Route::Auto, on_sender(false));
    check(LocalPrefill::Never, 0, Route::Auto, Err(Refused::NoPrefiller));
    check(LocalPrefill::Never, 1, Route::Local, here);
}

#[test]
fn a_request_that_must_not_be_prefilled_here_is_placed_again_elsewhere() {
    let now = Instant::now();
    let routing = RoutingConfig { local: LocalPrefill::Never, ..config(10).routing };
    let mut state = ProxyState::new(ProxyConfig { routing, ..config(10) });
    (1..=2).for_each(|session| state.on_peer_ready(ready(SessionId(session))));
    state.on(now, BeginDrain.into());
    let mut again = |tried: &[u64]| {
        let tried = tried.iter().map(|session| SessionId(*session)).collect();
        state.on(now, PlaceAgain { generate: generate(5, 1, Route::Auto), tried }.into())
    };
    let placed = |on| {
        let placement = Placement { on: Some(SessionId(on)), tokens: 5, may_fall_back: false };
        [to::decoder(PlacedAgain { request: RequestId(1), placement: Some(placement) })]
    };
    assert_eq!(again(&[1]), placed(2));
    assert_eq!(again(&[2]), placed(1));
    assert_eq!(again(&[1, 2]), [to::decoder(PlacedAgain { request: RequestId(1), placement: None })]);
    assert_eq!(state.waiting(), 10);
}

/// A prompt or grammar that does not fit into a frame is prefilled here.
#[test]
fn a_request_too_large_for_a_frame_goes_to_no_sender() {
    let now = Instant::now();
    let check = |local, generate: &Generate, expect| {
        let routing = RoutingConfig { local, ..config(1).routing };
        let mut state = ProxyState::new(ProxyConfig { routing, ..config(100_000) });
        state.on_peer_ready(ready(SessionId(1)));
        assert_eq!(route(&mut state, now, generate), expect);
    };
    let sender = Ok(Some(SessionId(1)));
    let longest = generate(PROMPT_TOKENS_MAX, 1, Route::Auto);
    check(LocalPrefill::Auto, &longest, sender.clone());
    let longer = generate(PROMPT_TOKENS_MAX + 1, 1, Route::Auto);
    check(LocalPrefill::Auto, &longer, Ok(None));
    check(LocalPrefill::Never, &longer, Err(Refused::TooLargeToSend));
    let grammar = |bytes: usize| {
        let mut generate = generate(5, 1, Route::Auto);
        generate.grammar = Some(named(&"a".repeat(bytes)));
        generate
    };
    check(LocalPrefill::Auto, &grammar(GRAMMAR_BYTES_MAX), sender);
    check(LocalPrefill::Auto, &grammar(GRAMMAR_BYTES_MAX + 1), Ok(None));
}

#[test]
fn reported_queues_count() {
    let (busy, idle) = (SessionId(1), SessionId(2));
    let (mut state, now) = (proxy(1000), Instant::now());
    state.on_peer_ready(ready(busy));
    state.on_peer_ready(ready(idle));
    let report = |session, waiting_tokens| {
        let load = LoadReport {
            waiting_tokens,
            begun_tokens: 0,
            nanos_per_token: Some(1_000_000),
            decoding: 0,
            decode: None,
        };
        PeerLoad { session, load, cache_pages: 100 }
    };
    state.on(now, report(busy, 500).into());
    state.on(now, report(idle, 0).into());
    let to = |state: &mut ProxyState| route(state, now, &generate(100, 1, Route::Auto)).unwrap();
    let chosen: Vec<_> = (0..5).map(|_| to(&mut state)).collect();
    assert_eq!(chosen, [Some(idle); 5], "100 to 500 ms there and at least 600 ms at the other one");
    // Our own prompts are part of the report and count once.
    state.on(now, report(idle, 500).into());
    assert_eq!([to(&mut state), to(&mut state)], [Some(busy), Some(idle)]);
    // The receiver itself is as fast and has no queue, which is not enough to prefill here.
    state.on(
        now,
        LoadReport {
            waiting_tokens: 0,
            begun_tokens: 0,
            nanos_per_token: Some(1_000_000),
            decoding: 0,
            decode: None,
        }
        .into(),
    );
    state.on(now, report(busy, 5000).into());
    state.on(now, report(idle, 5000).into());
    assert_eq!(to(&mut state), None, "5 s later there");
}

#[test]
fn a_slow_hand_over_counts() {
    let (slow, fast) = (SessionId(1), SessionId(2));
    let (mut state, now) = (proxy(1000), Instant::now());
    for session in [slow, fast] {
        state.on_peer_ready(ready(session));
        let load = LoadReport {
            waiting_tokens: 0,
            begun_tokens: 0,
            nanos_per_token: Some(1_000_000),
            decoding: 0,
            decode: None,
        };
        state.on(now, PeerLoad { session, load, cache_pages: 100 }.into());
    }
    state.on(now, HandOverEnded { session: slow, exposed_micros: 300_000 }.into());
    let chosen: Vec<_> =
        (0..4).map(|_| route(&mut state, now, &generate(100, 1, Route::Auto)).unwrap()).collect();
    assert_eq!(chosen, [Some(fast), Some(fast), Some(fast), Some(slow)]);
}
