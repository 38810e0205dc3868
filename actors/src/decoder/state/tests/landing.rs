//! Requests that a sender prefills.

use super::*;
use crate::messages::{LoadReport, SequenceBegun};

#[test]
fn the_proxy_is_told_whether_a_sender_has_failed() {
    let now = Instant::now();
    let begun = || {
        let mut state = state();
        state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
        state.on_reserved(now, landing(&[8]));
        state
    };
    let outcome = |effects: Vec<Effect>| {
        let told = effects.iter().find_map(|effect| match effect {
            Effect::Proxy(ToProxy::PrefillOver(PrefillOver {
                placement: Placement { on: Some(SESSION), .. },
                outcome,
            })) => Some(*outcome),
            _ => None,
        });
        told.expect("the proxy is told")
    };
    for (fault, expect) in
        [(PrefillFault::Failed, PrefillOutcome::Failed), (PrefillFault::Refused, PrefillOutcome::Withdrawn)]
    {
        let failed = PrefillFailed { fault, ..prefill_failed(SESSION) };
        assert_eq!(outcome(begun().on_prefill_failed(failed)), expect);
    }
    assert_eq!(outcome(begun().on_peer_lost(SESSION)), PrefillOutcome::Failed);
    // An abort, a deadline or a preemption is no information about the sender.
    assert_eq!(outcome(begun().on_abort(R)), PrefillOutcome::Withdrawn);
    assert_eq!(outcome(begun().on_tick(now + Duration::from_secs(3600))), PrefillOutcome::Withdrawn);
    assert_eq!(outcome(begun().on_short(PagesShort { releases: 0 })), PrefillOutcome::Withdrawn);
}

#[test]
fn a_handed_over_request_starts_with_its_first_token_and_all_pages() {
    for token_first in [true, false] {
        let (mut state, now) = (state(), Instant::now());
        let effects = state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
        assert_eq!(effects, [reserve(&PROMPT, 3, true)]);
        let effects = state.on_reserved(now, landing(&[8]));
        assert!(
            matches!(frame(&effects), Some(Frame::Prefill { request: 5, resident: 0, salt, .. })
                if salt.map(CacheSalt) == SALT),
            "{effects:?}"
        );
        let mut effects = Vec::new();
        if token_first {
            assert_eq!(
                state.on_prefill_finished(now, prefilled(7)),
                [over_after(Some(SESSION), 2000), token(7)],
                "the token is delivered at once"
            );
        }
        assert_eq!(state.on_adopted(now, adopted(1, 4)), []);
        effects.extend(state.on_adopted(now, adopted(0, 6)));
        if !token_first {
            assert_eq!(effects, []);
            effects = state.on_prefill_finished(now, prefilled(7));
            assert_eq!(effects.remove(0), over_after(Some(SESSION), 2000));
            assert_eq!(effects.remove(0), token(7));
        }
        let [
            Effect::BufferManager(ToBufferManager::PagesComputed(computed)),
            Effect::Generator(ToGenerator::StartSequence(start)),
            Effect::Proxy(ToProxy::HandOverEnded(ended)),
        ] = &effects[..]
        else {
            panic!("{effects:?}")
        };
        assert_eq!(*ended, HandOverEnded { session: SESSION, exposed_micros: 0 });
        assert_eq!((&computed.tokens[..], &computed.pages), (&PROMPT[..], &start.pages));
        assert_eq!(computed.salt, SALT);
        assert_eq!(start.pages, [PageId(6), PageId(4), PageId(8)], "pages are in the order of their tokens");
        assert_eq!((start.resident, start.sample, start.tokens.last()), (6, 4, Some(&7)));
    }
}

/// A decoder that holds first tokens while its process computes prompts, which it does if `waiting_tokens` is not 0.
fn holding(waiting_tokens: u64) -> DecoderState {
    let config = DecoderConfig { holds_first_token: true, ..state().config };
    let mut state = DecoderState { config, ..state() };
    let load = LoadReport { waiting_tokens, ..LoadReport::default() };
    assert_eq!(state.on(Instant::now(), load.into()), []);
    state
}

#[test]
fn a_first_token_waits_for_its_sequence_while_prompts_are_computed_here() {
    let (mut state, now) = (holding(1), Instant::now());
    state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
    state.on_reserved(now, landing(&[8]));
    assert_eq!(state.on_prefill_finished(now, prefilled(7)), [over_after(Some(SESSION), 2000)]);
    let effects = state.on_adopted(now + Duration::from_millis(3), adopted(0, 4));
    assert_eq!(effects, []);
    let effects = state.on_adopted(now + Duration::from_millis(4), adopted(1, 6));
    let [
        _,
        Effect::Generator(ToGenerator::StartSequence(start)),
        Effect::Proxy(ToProxy::HandOverEnded(ended)),
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((start.announce, start.sample, start.tokens.last()), (true, 4, Some(&7)));
    assert_eq!(ended.exposed_micros, 4000, "from the arrival of the token");
    let begun = now + Duration::from_millis(20);
    assert_eq!(state.on(begun, SequenceBegun { sequence: OWN }.into()), [token(7)]);
    assert_eq!(state.on(begun, SequenceBegun { sequence: OWN }.into()), [], "once");
    let advanced = |token: u32, reason| SequenceAdvanced {
        sequence: OWN,
        resident: 7,
        prompt_logprobs: Vec::new(),
        token: Some(token.into()),
        running_micros: 1,
        ended: reason,
    };
    let end = SequenceEnd::Finished(FinishReason::Stop);
    let effects = state.on_advanced(now + Duration::from_millis(30), advanced(EOS, Some(end)));
    assert_eq!(effects[0], token(EOS));
    let Some(StreamEvent::Finished { timings, .. }) = reason(&effects) else { panic!("{effects:?}") };
    assert_eq!((timings.first_token_ms, timings.decode_ms), (20.0, 10.0), "as the client sees them");
}

#[test]
fn a_first_token_waits_for_nothing_if_it_is_the_last_or_if_steps_are_short() {
    let first = |mut state: DecoderState, max_tokens| {
        let now = Instant::now();
        state.on_decode(now, decode(now, 6, max_tokens, Some(SESSION)));
        state.on_reserved(now, landing(&[8]));
        state.on_prefill_finished(now, prefilled(7)).contains(&token(7))
    };
    assert!(first(holding(1), 1));
    assert!(first(holding(0), 5));
    assert!(!first(holding(1), 5));
}

#[test]
fn a_held_token_is_not_delivered_after_the_end() {
    let (mut state, now) = (holding(1), Instant::now());
    state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
    state.on_reserved(now, landing(&[8]));
    state.on_prefill_finished(now, prefilled(7));
    state.on_adopted(now, adopted(0, 4));
    state.on_adopted(now, adopted(1, 6));
    assert_eq!(state.on_abort(R), [failed(RequestError::Aborted), stop()]);
    assert_eq!(state.on(now, SequenceBegun { sequence: OWN }.into()), []);
}

#[test]
fn a_held_token_outlives_its_sender() {
    let (mut state, now) = (holding(1), Instant::now());
    state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
    state.on_reserved(now, landing(&[8]));
    state.on_prefill_finished(now, prefilled(7));
    assert_eq!(state.on_peer_lost(SESSION), [here()]);
    let effects = state.on_grown(grown(&[5, 4]));
    let [Effect::Generator(ToGenerator::StartSequence(start))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((start.announce, start.sample, start.tokens.last()), (true, 4, Some(&7)));
    assert_eq!(state.on(now, SequenceBegun { sequence: OWN }.into()), [token(7)]);
}

#[test]
fn a_first_token_that_ends_the_request_ends_it() {
    for (max_tokens, token, expect) in [(1, 7, FinishReason::Length), (9, EOS, FinishReason::Stop)] {
        let (mut state, now) = (state(), Instant::now());
        state.on_decode(now, decode(now, 6, max_tokens, Some(SESSION)));
        state.on_reserved(now, landing(&[]));
        let effects = state.on_prefill_finished(now, prefilled(token));
        assert!(matches!(reason(&effects), Some(StreamEvent::Finished { reason, .. }) if *reason == expect));
        assert_eq!(effects.last(), Some(&release()));
    }
}

#[test]
fn a_lost_sender_costs_a_recompute_but_no_token() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
    state.on_reserved(now, landing(&[8]));
    state.on_prefill_finished(now, prefilled(7));
    assert_eq!(state.on_peer_lost(SESSION), [here()]);
    assert_eq!(state.counts().recomputes, 1);
    assert_eq!(
        state.on_adopted(now, adopted(1, 6)),
        [],
        "a page that landed before is kept, but its content is not"
    );
    let effects = state.on_grown(grown(&[5]));
    let [Effect::Generator(ToGenerator::StartSequence(start))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((start.resident, start.sample, start.tokens.last()), (0, 4, Some(&7)));
    assert_eq!(start.pages, pages(&[8, 6, 5]));
}

#[test]
fn a_request_without_a_page_for_its_first_token_gets_one() {
    let least = |effects: &[Effect]| match effects.last() {
        Some(Effect::BufferManager(ToBufferManager::GrowPages(grow))) => grow.least,
        other => panic!("{other:?}"),
    };
    let (mut joins, now) = (state(), Instant::now());
    joins.on_decode(now, decode(now, 8, 5, Some(SESSION)));
    joins.on_reserved(now, landing(&[]));
    joins.on_prefill_finished(now, prefilled(7));
    joins.on_adopted(now, adopted(0, 3));
    assert_eq!(least(&joins.on_adopted(now, adopted(1, 4))), 1, "it runs, and its next token needs a page");
    let mut fails = state();
    fails.on_decode(now, decode(now, 8, 5, Some(SESSION)));
    fails.on_reserved(now, landing(&[]));
    fails.on_prefill_finished(now, prefilled(7));
    fails.on_peer_lost(SESSION);
    let effects = fails.on_grown(grown(&[3, 4]));
    assert_eq!((effects.len(), least(&effects)), (1, 1), "nine tokens need three pages");
    let effects = fails.on_grown(grown(&[5]));
    let [Effect::Generator(ToGenerator::StartSequence(start))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((start.tokens.len(), &start.pages), (9, &pages(&[3, 4, 5])));
}

#[test]
fn a_failed_prefill_is_logged_and_recomputed_here() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
    assert_eq!(state.on_prefill_failed(prefill_failed(SESSION)), [], "the sender has not been asked yet");
    state.on_reserved(now, landing(&[8]));
    assert_eq!(state.on_prefill_failed(prefill_failed(SessionId(2))), [], "another sender was asked");
    let line = LogLine::PrefillFailed { request: R, session: SESSION, reason: "full".into() };
    let expect = [to::log(line), here(), over(Some(SESSION), PrefillOutcome::Failed)];
    assert_eq!(state.on_prefill_failed(prefill_failed(SESSION)), expect);
    assert_eq!(state.counts().recomputes, 1);
    assert_eq!(
        state.on_prefill_failed(prefill_failed(SESSION)),
        [],
        "the request no longer waits for that sender"
    );
}

#[test]
fn invalid_messages_of_a_sender_discard_its_work() {
    let now = Instant::now();
    let begun = || {
        let mut state = state();
        state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
        state.on_reserved(now, landing(&[8]));
        state
    };
    let wrong_page = |place| move |state: &mut DecoderState| state.on_adopted(now, adopted(place, 5));
    let wrong_end = |finished: PrefillFinished| {
        move |state: &mut DecoderState| state.on_prefill_finished(now, finished.clone())
    };
    type Wrong = Box<dyn Fn(&mut DecoderState) -> Vec<Effect>>;
    let cases: [(Wrong, &[u32]); 6] = [
        (Box::new(wrong_page(2)), &[4, 8, 5]),
        (Box::new(wrong_page(u32::MAX)), &[4, 8, 5]),
        (Box::new(wrong_page(1)), &[4, 8, 5]),
        (Box::new(wrong_end(prefilled(100))), &[4, 8]),
        (Box::new(wrong_end(PrefillFinished { cached: 6, ..prefilled(7) })), &[4, 8]),
        (Box::new(|state| state.on_rejected(R)), &[4, 8]),
    ];
    for (wrong, held) in cases {
        let mut state = begun();
        state.on_adopted(now, adopted(1, 4));
        let effects = wrong(&mut state);
        assert_eq!(effects, [cancel(SESSION, R), here(), over(Some(SESSION), PrefillOutcome::Failed)]);
        // The request keeps its pages, also one that landed at a wrong place, and computes all of them.
        let effects = state.on_grown(grown(&[9]));
        let [Effect::Generator(ToGenerator::StartSequence(start))] = &effects[..] else {
            panic!("{effects:?}")
        };
        assert_eq!((&start.pages[..], start.resident), (&pages(&[held, &[9]].concat())[..], 0));
    }
}

#[test]
fn a_sender_lost_before_the_reservation_causes_a_recompute() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 5, Some(SESSION)));
    assert_eq!(state.on_peer_lost(SESSION), []);
    let effects = state.on_reserved(now, landing(&[8]));
    assert_eq!(effects, [here(), over(Some(SESSION), PrefillOutcome::Failed)]);
}

#[test]
fn a_resident_prefix_is_not_put() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 12, 5, Some(SESSION)));
    let reserved = PagesReserved { sequence: OWN, resident: 4, landing: 2, pages: pages(&[7, 8]) };
    let effects = state.on_reserved(now, reserved);
    assert!(matches!(frame(&effects), Some(Frame::Prefill { resident: 4, .. })), "{effects:?}");
    state.on_prefill_finished(now, prefilled(7));
    state.on_adopted(now, adopted(2, 5));
    let effects = state.on_adopted(now, adopted(1, 4));
    let [_, Effect::Generator(ToGenerator::StartSequence(start)), _] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((&start.pages, start.resident), (&pages(&[7, 4, 5, 8]), 12));
}

#[test]
fn cached_tokens_are_those_of_the_process_that_prefills() {
    let (mut state, now) = (state(), Instant::now());
    let cached = |effects: &[Effect]| match reason(effects) {
        Some(StreamEvent::Finished { timings, .. }) => (timings.resident_tokens, timings.cached_tokens),
        other => panic!("{other:?}"),
    };
    // The decoder has four tokens of the prompt, and the sender eight of them. The sender computes four tokens.
    state.on_decode(now, decode(now, 12, 1, Some(SESSION)));
    state.on_reserved(now, PagesReserved { sequence: OWN, resident: 4, landing: 2, pages: pages(&[7]) });
    let effects = state.on_prefill_finished(now, PrefillFinished { cached: 8, ..prefilled(7) });
    let outcome = PrefillOutcome::Computed { tokens: 4, micros: 2000 };
    let over = PrefillOver { placement: placement(Some(SESSION), 12), outcome };
    assert_eq!((&effects[0], cached(&effects)), (&to::proxy(over), (4, 8)));
    // The sender fails, and the decoder computes the prompt with the tokens that it has.
    state.on_decode(now, decode(now, 12, 1, Some(SESSION)));
    state.on_reserved(now, PagesReserved { sequence: OWN, resident: 4, landing: 2, pages: pages(&[7]) });
    state.on_prefill_failed(prefill_failed(SESSION));
    let effects = state.on_grown(grown(&[8, 9]));
    let [Effect::Generator(ToGenerator::StartSequence(start))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((start.resident, &start.pages), (4, &pages(&[7, 8, 9])));
    let last = advanced(Some(7), Some(SequenceEnd::Finished(FinishReason::Length)));
    assert_eq!(cached(&state.on_advanced(now, SequenceAdvanced { resident: 12, ..last })), (4, 4));
}
