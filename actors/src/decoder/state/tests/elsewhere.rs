//! Requests whose prompts must not be prefilled here.

use super::*;
use crate::messages::PlaceAgain;

const OTHER: SessionId = SessionId(2);

fn only_on(on: SessionId) -> Placement {
    Placement { may_fall_back: false, ..placement(Some(on), 6) }
}

/// A state with two senders, the first of which is to prefill a request.
fn begun(now: Instant) -> (DecoderState, Generate) {
    let mut state = state();
    state.on_peer_ready(PeerReady { session: OTHER, pid: 10, name: 10, http: None });
    let decode = Decode { placement: only_on(SESSION), ..decode(now, 6, 5, None) };
    let generate = decode.generate.clone();
    assert_eq!(state.on_decode(now, decode), [reserve(&PROMPT, 3, true)]);
    (state, generate)
}

fn over(on: SessionId, outcome: PrefillOutcome) -> Effect {
    to::proxy(PrefillOver { placement: only_on(on), outcome })
}

fn again(generate: &Generate, tried: &[SessionId]) -> Effect {
    to::proxy(PlaceAgain { generate: generate.clone(), tried: tried.to_vec() })
}

/// The reservation of a request that was placed again.
fn resumed(on: SessionId, reads_cache: bool) -> Effect {
    to::buffer_manager(ReservePages {
        sequence: OWN,
        tokens: PROMPT.into(),
        reads_cache,
        salt: SALT,
        pages: 3,
        landing: Some(on),
        priority: ReservePriority::Resumed,
    })
}

fn placed(on: Option<SessionId>) -> PlacedAgain {
    PlacedAgain { request: R, placement: on.map(only_on) }
}

#[test]
fn a_failed_prefill_is_placed_again() {
    let now = Instant::now();
    type Fail = fn(&mut DecoderState) -> Vec<Effect>;
    let fails: [(Fail, usize, PrefillOutcome); 4] = [
        (|state| state.on_peer_lost(SESSION), 0, PrefillOutcome::Failed),
        (|state| state.on_rejected(R), 1, PrefillOutcome::Failed),
        (|state| state.on_prefill_failed(prefill_failed(SESSION)), 1, PrefillOutcome::Failed),
        (
            |state| {
                let fault = PrefillFault::Refused;
                state.on_prefill_failed(PrefillFailed { fault, ..prefill_failed(SESSION) })
            },
            1,
            PrefillOutcome::Withdrawn,
        ),
    ];
    for (fail, before, outcome) in fails {
        let (mut state, generate) = begun(now);
        state.on_reserved(now, landing(&[8]));
        state.on_adopted(now, adopted(0, 4));
        // A cancel or a log line comes first.
        let effects = fail(&mut state).split_off(before);
        assert_eq!(effects, [release(), over(SESSION, outcome), again(&generate, &[SESSION])]);
        assert_eq!(state.on_placed_again(placed(Some(OTHER))), [resumed(OTHER, true)]);
        let effects = state.on_reserved(now, landing(&[8]));
        assert!(
            matches!(
                &effects[..],
                [Effect::PeerLink(ToPeerLink::SendFrame(SendFrame {
                    session: OTHER,
                    frame: Frame::Prefill { request: 5, .. }
                }))]
            ),
            "{effects:?}"
        );
        // The second sender fails too, and there is no third one.
        let effects = state.on_peer_lost(OTHER);
        let both = [SESSION, OTHER];
        assert_eq!(effects, [release(), over(OTHER, PrefillOutcome::Failed), again(&generate, &both)]);
        let refused = RequestError::Refused(Refused::NoPrefiller);
        assert_eq!(state.on_placed_again(placed(None)), [failed(refused)], "it has no pages to release");
        assert!(state.is_empty());
        assert_eq!(state.counts().recomputes, 0);
    }
}

#[test]
fn a_delivered_token_stays_when_the_prompt_is_prefilled_again() {
    let (now, mut state) = (Instant::now(), begun(Instant::now()).0);
    state.on_reserved(now, landing(&[8]));
    assert!(state.on_prefill_finished(now, prefilled(7)).contains(&token(7)));
    state.on_peer_lost(SESSION);
    // Only the pages of the prompt land.
    assert_eq!(state.on_placed_again(placed(Some(OTHER))), [resumed(OTHER, true)]);
    state.on_reserved(now, landing(&[8]));
    state.on_adopted(now, adopted(0, 4));
    assert_eq!(state.on_adopted(now, adopted(1, 5)), [], "its sender has not finished");
    let second = PrefillFinished { session: OTHER, ..prefilled(9) };
    let effects = state.on_prefill_finished(now + Duration::from_millis(9), second);
    let computed = PrefillOutcome::Computed { tokens: 6, micros: 2000 };
    assert_eq!(effects[0], over(OTHER, computed));
    let [_, _, Effect::Generator(ToGenerator::StartSequence(start)), ended] = &effects[..] else {
        panic!("the token of the second sender is ignored: {effects:?}")
    };
    assert_eq!((&start.tokens[6..], start.resident, start.sample), (&[7][..], 6, 4));
    // Its pages landed before its token. The token of the first sender is no measure of this.
    assert_eq!(*ended, to::proxy(HandOverEnded { session: OTHER, exposed_micros: 0 }));
}

#[test]
fn a_sender_that_is_gone_is_not_replaced_by_this_process() {
    let now = Instant::now();
    let mut state = state();
    let decode = Decode { placement: only_on(OTHER), ..decode(now, 6, 5, None) };
    let generate = decode.generate.clone();
    let effects = state.on_decode(now, decode);
    assert_eq!(effects, [over(OTHER, PrefillOutcome::Withdrawn), again(&generate, &[OTHER])]);
    // The sender is lost while the request waits for its pages.
    assert_eq!(state.on_placed_again(placed(Some(SESSION))), [resumed(SESSION, true)]);
    state.on_peer_lost(SESSION);
    let effects = state.on_reserved(now, reserved(&[1, 2, 3]));
    let both = [OTHER, SESSION];
    assert_eq!(effects, [release(), over(SESSION, PrefillOutcome::Failed), again(&generate, &both)]);
}

#[test]
fn a_prompt_that_is_almost_cached_is_sent_as_a_whole() {
    let (now, (mut state, _)) = (Instant::now(), begun(Instant::now()));
    let cached = PagesReserved { resident: 4, ..reserved(&[1, 2, 3]) };
    assert_eq!(state.on_reserved(now, cached), [release(), resumed(SESSION, false)]);
    let effects = state.on_reserved(now, landing(&[8]));
    assert!(matches!(frame(&effects), Some(Frame::Prefill { resident: 0, .. })), "{effects:?}");
}

#[test]
fn an_answer_that_comes_too_late_gives_its_placement_back() {
    let (now, (mut state, generate)) = (Instant::now(), begun(Instant::now()));
    state.on_reserved(now, landing(&[8]));
    assert_eq!(state.on_peer_lost(SESSION).last(), Some(&again(&generate, &[SESSION])));
    assert_eq!(state.on_abort(R), [failed(RequestError::Aborted)]);
    assert_eq!(state.on_placed_again(placed(Some(OTHER))), [over(OTHER, PrefillOutcome::Withdrawn)]);
    assert_eq!(state.on_placed_again(placed(None)), []);
}

#[test]
fn only_running_requests_are_preempted() {
    let (now, (mut state, _)) = (Instant::now(), begun(Instant::now()));
    state.on_reserved(now, landing(&[8]));
    assert_eq!(state.on_short(PagesShort { releases: 0 }), []);
    state.on_prefill_finished(now, prefilled(7));
    state.on_adopted(now, adopted(0, 4));
    state.on_adopted(now, adopted(1, 5));
    assert_eq!(state.on_short(PagesShort { releases: 0 }), [stop()]);
    // Its prompt was computed once: it is recomputed here.
    let effects = state.on_advanced(now, advanced(None, Some(SequenceEnd::Stopped)));
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::BufferManager(ToBufferManager::ReservePages(ReservePages { landing: None, .. }))
    )));
}

#[test]
fn the_next_sender_sends_the_log_probabilities_of_the_prompt_from_the_start() {
    use crate::messages::PromptLogprobs;
    use engine::Logprobs;

    let now = Instant::now();
    let mut state = state();
    state.on_peer_ready(PeerReady { session: OTHER, pid: 10, name: 10, http: None });
    let mut decode = Decode { placement: only_on(SESSION), ..decode(now, 6, 5, None) };
    decode.generate.prompt_logprobs = Some(1);
    state.on_decode(now, decode);
    let part = |session| {
        let logprobs = vec![Logprobs { sampled: -1.0, rank: 1, top: Vec::new() }; 2];
        PromptLogprobs { session, request: R, first: 0, logprobs }
    };
    state.on_reserved(now, landing(&[8]));
    assert_eq!(state.on_prompt_logprobs(part(SESSION)), []);
    state.on_peer_lost(SESSION);
    state.on_placed_again(placed(Some(OTHER)));
    state.on_reserved(now, landing(&[8]));
    assert_eq!(state.on_prompt_logprobs(part(OTHER)), [], "they are accepted");
}

#[test]
fn a_prompt_whose_prefills_all_fail_is_not_sent_to_every_sender() {
    let now = Instant::now();
    let (mut state, _) = begun(now);
    let third = SessionId(3);
    state.on_peer_ready(PeerReady { session: third, pid: 11, name: 11, http: None });
    for (on, next) in [(SESSION, OTHER), (OTHER, third)] {
        state.on_reserved(now, landing(&[8]));
        let effects = state.on_peer_lost(on);
        assert!(matches!(effects.last(), Some(Effect::Proxy(ToProxy::PlaceAgain(_)))), "{effects:?}");
        state.on_placed_again(placed(Some(next)));
    }
    state.on_reserved(now, landing(&[8]));
    let refused = RequestError::Refused(Refused::NoPrefiller);
    assert_eq!(
        state.on_peer_lost(third),
        [release(), over(third, PrefillOutcome::Failed), failed(refused)],
        "it is the third failure"
    );
    assert!(state.is_empty());
}

/// The sender has no room for the request.
fn busy(session: SessionId) -> PrefillFailed {
    PrefillFailed { fault: PrefillFault::Busy, ..prefill_failed(session) }
}

#[test]
fn a_request_waits_for_room_at_the_senders_until_its_deadline() {
    let now = Instant::now();
    let (mut state, generate) = begun(now);
    let withdrawn = |on| over(on, PrefillOutcome::Withdrawn);
    state.on_reserved(now, landing(&[8]));
    // The second sender does not prefill the request either, and not for want of room. So it is not asked again.
    let effects = state.on_prefill_failed(busy(SESSION)).split_off(1);
    assert_eq!(effects, [release(), withdrawn(SESSION), again(&generate, &[SESSION])]);
    state.on_placed_again(placed(Some(OTHER)));
    state.on_reserved(now, landing(&[8]));
    let refused = PrefillFailed { fault: PrefillFault::Refused, ..prefill_failed(OTHER) };
    let effects = state.on_prefill_failed(refused).split_off(1);
    assert_eq!(effects, [release(), withdrawn(OTHER), again(&generate, &[SESSION, OTHER])]);
    assert_eq!(state.on_placed_again(placed(None)), [], "the first sender may have room later");
    for wait in [1, 2, 4, 8, 8] {
        for _ in 1..wait {
            assert_eq!(state.on_tick(now), [], "each wait is twice as long as the one before, up to a bound");
        }
        assert_eq!(state.on_tick(now), [again(&generate, &[OTHER])]);
        assert_eq!(state.on_tick(now), [], "it was placed again");
        let effects = state.on_placed_again(placed(Some(SESSION)));
        assert_eq!(effects, [reserve(&PROMPT, 3, true)], "after the requests that wait for pages here");
        state.on_reserved(now, landing(&[8]));
        let effects = state.on_prefill_failed(busy(SESSION));
        let all = [OTHER, SESSION];
        assert_eq!(effects, [release(), withdrawn(SESSION), again(&generate, &all)], "without a log line");
        assert_eq!(state.on_placed_again(placed(None)), []);
    }
    let late = RequestError::Deadline { deadline_ms: 10_000 };
    assert_eq!(state.on_tick(now + Duration::from_secs(10)), [failed(late)], "it has no pages to release");
    assert!(state.is_empty());
}

#[test]
fn a_request_that_waits_for_room_ends_with_its_last_sender_or_its_client() {
    let now = Instant::now();
    let wait = || {
        let (mut state, generate) = begun(now);
        state.on_reserved(now, landing(&[8]));
        state.on_prefill_failed(busy(SESSION));
        assert_eq!(state.on_placed_again(placed(None)), []);
        (state, generate)
    };
    let (mut state, generate) = wait();
    state.on_peer_lost(SESSION);
    assert_eq!(state.on_tick(now), [again(&generate, &[])]);
    let refused = RequestError::Refused(Refused::NoPrefiller);
    assert_eq!(state.on_placed_again(placed(None)), [failed(refused)], "no sender is left");
    let (mut state, _) = wait();
    assert_eq!(state.on_abort(R), [failed(RequestError::Aborted)]);
    assert_eq!(state.on_tick(now), []);
}

#[test]
fn of_many_requests_that_wait_for_room_a_few_ask_again_at_each_tick_and_all_in_turn() {
    const REQUESTS: u64 = 100;
    let now = Instant::now();
    let mut state = state();
    for number in 1..=REQUESTS {
        let request = RequestId(number);
        let mut decode = Decode { placement: only_on(SESSION), ..decode(now, 6, 5, None) };
        decode.generate.request = request;
        // The request with the highest number is the oldest.
        state.on_decode(now - Duration::from_millis(number), decode);
        let sequence = SequenceId::Own(request);
        state.on_reserved(now, PagesReserved { sequence, ..landing(&[8]) });
        state.on_prefill_failed(PrefillFailed { request, ..busy(SESSION) });
        state.on_placed_again(PlacedAgain { request, placement: None });
    }
    let asked = |effects: Vec<Effect>| -> Vec<RequestId> {
        let ask = |effect: Effect| match effect {
            Effect::Proxy(ToProxy::PlaceAgain(again)) => Some(again.generate.request),
            _ => None,
        };
        effects.into_iter().filter_map(ask).collect()
    };
    let mut order = Vec::new();
    while order.len() < 3 * REQUESTS as usize {
        let round = asked(state.on_tick(now));
        assert!(!round.is_empty() && round.len() <= 8, "{round:?}");
        for request in &round {
            // No sender has room again.
            let placement = Some(only_on(SESSION));
            state.on_placed_again(PlacedAgain { request: *request, placement });
            let sequence = SequenceId::Own(*request);
            state.on_reserved(now, PagesReserved { sequence, ..landing(&[8]) });
            state.on_prefill_failed(PrefillFailed { request: *request, ..busy(SESSION) });
            state.on_placed_again(PlacedAgain { request: *request, placement: None });
        }
        order.extend(round);
    }
    let oldest_first: Vec<RequestId> = (1..=REQUESTS).rev().map(RequestId).collect();
    assert_eq!(order[..REQUESTS as usize], oldest_first, "the first turn");
    let most = |request| order.iter().filter(|asked| **asked == request).count();
    let [least, most] =
        [oldest_first.iter().map(|r| most(*r)).min(), oldest_first.iter().map(|r| most(*r)).max()];
    assert!(least >= Some(2) && most <= Some(4), "{least:?} {most:?}");
}
