mod grammars;
mod scores;

use std::sync::Arc;

use engine::PageId;

use super::*;
use crate::effect::{ToGenerator, ToPeerLink, ToTraces};
use crate::messages::{CancelPuts, PrefillTraced, ReservePages, ReservePriority, SchedulePut, StopSequence};
use crate::request::{CacheSalt, FinishReason};
use connector::frame::{PrefillFault, TraceContext};

const S: SessionId = SessionId(1);
const R: RequestId = RequestId(5);
const KEY: Key = (S, R);
/// The salt of every request.
const SALT: Option<CacheSalt> = Some(CacheSalt([3; 32]));

/// The first prefill of a state.
const FIRST: SequenceId = SequenceId::Peer(1);

fn state() -> PrefillerState {
    PrefillerState::new(PrefillerConfig {
        page_tokens: 4,
        page_bytes: 100,
        pool_pages: 8,
        vocabulary: 100,
        context_tokens: 40,
        compiles_grammars: true,
        records_traces: true,
    })
}

/// More pages are visible at the receiver; the lane carried them for 7 µs.
fn sent(count: u32) -> PagesSent {
    PagesSent { session: KEY.0, request: KEY.1, count, put_micros: 7 }
}

fn prefill(tokens: u32) -> StartPrefill {
    StartPrefill {
        session: S,
        request: R,
        prompt: (0..tokens).collect(),
        resident: 0,
        sampling: Arc::default(),
        salt: SALT,
        grammar: None,
        prompt_logprobs: None,
        remaining_ms: 1000,
        trace: None,
    }
}

fn reserved(pages: u32) -> PagesReserved {
    let pages = (0..pages).map(PageId).collect();
    PagesReserved { sequence: FIRST, resident: 0, landing: 0, pages }
}

fn advanced(resident: u32, token: Option<u32>, ended: Option<SequenceEnd>) -> SequenceAdvanced {
    SequenceAdvanced {
        sequence: FIRST,
        resident,
        prompt_logprobs: Vec::new(),
        token: token.map(Into::into),
        running_micros: 9,
        ended,
    }
}

fn put(first_page: u32, pages: std::ops::Range<u32>) -> Effect {
    to::transfer(SchedulePut { session: S, request: R, first_page, pages: pages.map(PageId).collect() })
}

/// The sequence releases all pages that it holds or waits for.
fn release(sequence: SequenceId) -> Effect {
    to::buffer_manager(ReleasePages { sequence })
}

/// The engine stops the first prefill.
fn stop() -> Effect {
    to::generator(StopSequence { sequence: FIRST })
}

/// Transfer puts no more pages of the prefill.
fn no_more_puts() -> Effect {
    to::transfer(CancelPuts { session: S, request: R })
}

/// The log says that the first prefill was handed over.
fn stored(tokens: u32, bytes: u64, put_micros: u64) -> Effect {
    to::log(LogLine::Stored { request: R, tokens, bytes, put_micros })
}

/// The first effect, if it starts a sequence.
fn started(effects: &[Effect]) -> Option<&StartSequence> {
    match effects.first() {
        Some(Effect::Generator(ToGenerator::StartSequence(start))) => Some(start),
        _ => None,
    }
}

/// The fault and the reason in the first effect, if it is a `PrefillFailed` frame.
fn told_failed(effects: &[Effect]) -> Option<(PrefillFault, &str)> {
    match effects.first() {
        Some(Effect::PeerLink(ToPeerLink::SendFrame(SendFrame {
            session: S,
            frame: Frame::PrefillFailed { request: 5, fault, reason },
        }))) => Some((*fault, reason)),
        _ => None,
    }
}

#[test]
fn pages_go_out_as_soon_as_they_are_final() {
    let now = Instant::now();
    let mut state = state();
    assert_eq!(
        state.on_prefill(Instant::now(), prefill(10)),
        [to::buffer_manager(ReservePages {
            reads_cache: true,
            sequence: FIRST,
            tokens: (0..10).collect(),
            salt: SALT,
            pages: 3,
            landing: None,
            priority: ReservePriority::New
        })]
    );
    let effects = state.on_reserved(now, reserved(3));
    assert_eq!(started(&effects).map(|start| start.sample), Some(1));
    assert_eq!(effects.len(), 1, "{effects:?}");
    assert_eq!(
        state.on_advanced(now, advanced(6, None, None)),
        [put(0, 0..1)],
        "tokens 4 and 5 leave page 1 open"
    );
    assert_eq!(state.on_advanced(now, advanced(7, None, None)), []);
    let finished = Some(SequenceEnd::Finished(FinishReason::Length));
    let frame = Frame::PrefillFinished { request: 5, token: 3, logprobs: None, cached: 0, prefill_micros: 9 };
    let pages = (0..3).map(PageId).collect();
    let tokens = (0..10).collect();
    let computed = to::buffer_manager(PagesComputed { sequence: FIRST, tokens, salt: SALT, pages });
    let effects = state.on_advanced(now, advanced(10, Some(3), finished));
    assert_eq!(effects, [put(1, 1..3), to::peer_link(SendFrame { session: S, frame }), computed]);
    assert_eq!(state.on_sent(now, &sent(2)), []);
    assert_eq!(state.on_sent(now, &sent(1)), [stored(10, 300, 14), no_more_puts()]);
    assert_eq!(state.on_drained(now, KEY), [release(FIRST)]);
    assert!(state.is_empty());
}

#[test]
fn cached_pages_are_neither_computed_nor_sent() {
    let now = Instant::now();
    // Of ten tokens: how many the receiver has, how many are cached here, and what is put before and after the first step.
    let check = |there: u32, here: u32, before: Option<Effect>, after: Effect| {
        let mut state = state();
        state.on_prefill(Instant::now(), StartPrefill { resident: there, ..prefill(10) });
        let effects = state.on_reserved(now, PagesReserved { resident: here, ..reserved(3) });
        assert_eq!(started(&effects).map(|start| start.resident), Some(here), "{effects:?}");
        assert_eq!(effects[1..], *before.as_slice());
        let finished = Some(SequenceEnd::Finished(FinishReason::Length));
        let effects = state.on_advanced(now, advanced(10, Some(3), finished));
        assert_eq!(effects[0], after);
        let frame =
            Frame::PrefillFinished { request: 5, token: 3, logprobs: None, cached: here, prefill_micros: 9 };
        assert_eq!(effects[1], to::peer_link(SendFrame { session: S, frame }));
        let bytes = u64::from(3 - there / 4) * 100;
        let stored = stored(10 - there, bytes, 7);
        assert_eq!(state.on_sent(now, &sent(3 - there / 4)), [stored, no_more_puts()]);
    };
    check(0, 8, Some(put(0, 0..2)), put(2, 2..3));
    check(4, 8, Some(put(1, 1..2)), put(2, 2..3));
    check(8, 4, None, put(2, 2..3));
    check(4, 0, None, put(1, 1..3));
}

#[test]
fn a_prompt_that_cannot_be_prefilled_is_refused() {
    let mut state = state();
    let strange = StartPrefill { prompt: vec![1, 100], ..prefill(1) };
    let scored = StartPrefill { prompt_logprobs: Some(0), resident: 4, ..prefill(10) };
    for (start, expect) in [
        (prefill(0), "empty"),
        (prefill(33), "needs 9 pages"),
        (prefill(41), "41 tokens and the model's context has 40"),
        (strange, "token 100"),
        (StartPrefill { resident: 4, ..prefill(4) }, "4 of 4 tokens"),
        (StartPrefill { resident: 3, ..prefill(9) }, "3 of 9 tokens"),
        (scored, "4 resident tokens have no log probabilities"),
    ] {
        let effects = state.on_prefill(Instant::now(), start);
        let (fault, reason) = told_failed(&effects).expect("a prompt that is not prefilled");
        assert!(fault == PrefillFault::Refused && reason.contains(expect), "{reason}");
        assert_eq!(effects.len(), 1, "{effects:?}");
    }
    assert!(state.is_empty());
}

#[test]
fn a_cancel_waits_for_the_engine_and_the_puts() {
    let now = Instant::now();
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    state.on_reserved(now, reserved(3));
    state.on_advanced(now, advanced(4, None, None));
    assert_eq!(state.on_cancel(now, KEY), [stop()]);
    assert_eq!(state.on_drained(now, KEY), [], "the engine has not stopped it");
    assert_eq!(state.on_advanced(now, advanced(8, None, Some(SequenceEnd::Stopped))), [no_more_puts()]);
    assert_eq!(state.on_drained(now, KEY), [release(FIRST)]);
}

#[test]
fn a_request_number_may_be_used_again() {
    let now = Instant::now();
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    assert_eq!(state.on_cancel(now, KEY), [release(FIRST)]);
    state.on_prefill(Instant::now(), prefill(10));
    assert_eq!(state.on_reserved(now, reserved(3)), [], "those pages were released with the first prefill");
    let second = PagesReserved { sequence: SequenceId::Peer(2), ..reserved(3) };
    let effects = state.on_reserved(now, second);
    assert!(started(&effects).is_some() && effects.len() == 1, "{effects:?}");
}

#[test]
fn an_engine_error_is_reported_and_the_puts_drain() {
    let now = Instant::now();
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    state.on_reserved(now, reserved(3));
    let effects = state.on_advanced(now, advanced(0, None, Some(SequenceEnd::Failed("smoke".into()))));
    assert_eq!(told_failed(&effects), Some((PrefillFault::Failed, "smoke")));
    assert_eq!(effects[1..], [no_more_puts()]);
    assert_eq!(state.on_peer_lost(now, S), [], "it is draining");
    assert_eq!(state.on_drained(now, KEY), [release(FIRST)]);
}

#[test]
fn a_lost_receiver_and_a_deadline_end_a_prefill() {
    let now = Instant::now();
    for phase in 0..3 {
        for lost in [true, false] {
            let mut state = state();
            state.on_prefill(now, prefill(4));
            if phase > 0 {
                state.on_reserved(now, reserved(1));
            }
            if phase > 1 {
                let finished = Some(SequenceEnd::Finished(FinishReason::Length));
                state.on_advanced(now, advanced(4, Some(3), finished));
            }
            assert_eq!(state.on_tick(now), []);
            let effects = if lost {
                state.on_peer_lost(now, S)
            } else {
                let mut effects = state.on_tick(now + Duration::from_secs(2));
                let reason = "the request's deadline passed on the sender";
                assert_eq!(told_failed(&effects), Some((PrefillFault::Failed, reason)));
                effects.split_off(1)
            };
            let expect = match phase {
                0 => release(FIRST),
                1 => stop(),
                _ => no_more_puts(),
            };
            assert_eq!(effects, [expect]);
        }
    }
}

#[test]
fn prompts_whose_session_gets_no_credit_are_given_up() {
    let (mut state, began) = (state(), Instant::now());
    let after = |seconds| began + Duration::from_secs(seconds);
    let start = |request| StartPrefill { request, remaining_ms: 1_000_000, ..prefill(8) };
    state.on_prefill(began, start(R));
    state.on_reserved(began, reserved(2));
    state.on_advanced(began, advanced(4, None, None));
    // This prompt has no page to send.
    let idle = RequestId(6);
    state.on_prefill(began, start(idle));
    assert_eq!(state.on_tick(after(0)), []);
    assert_eq!(state.on_tick(after(29)), []);
    // A page was sent and the next one is ready. The time counts from the next tick.
    state.on_sent(began, &sent(1));
    state.on_advanced(began, advanced(8, Some(3), Some(SequenceEnd::Finished(FinishReason::Length))));
    assert_eq!(state.on_tick(after(31)), []);
    assert_eq!(state.on_tick(after(60)), []);
    let effects = state.on_tick(after(61));
    let reason = "the receiver granted no credit for 30 s";
    assert_eq!(told_failed(&effects), Some((PrefillFault::Failed, reason)));
    assert_eq!(effects[1..], [no_more_puts()]);
    assert_eq!(state.on_drained(began, KEY), [release(FIRST)]);
    assert_eq!(state.on_tick(after(1000)).len(), 2, "the idle prompt ends at its deadline");
    assert_eq!((state.len(), state.waiting_since.len()), (0, 0));
}

/// The prompt fits the pages for prompts of peers, but they are in use.
#[test]
fn a_prompt_without_room_may_be_sent_again_later() {
    let now = Instant::now();
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    let effects = state.on_denied(now, &PagesDenied { sequence: FIRST, needed: 3, usable: 2 });
    let reason = "the prompt needs 3 pages of KV and 2 are usable now";
    assert_eq!(told_failed(&effects), Some((PrefillFault::Busy, reason)));
    assert_eq!(effects[1..], [release(FIRST)]);
    assert!(state.is_empty());
}

#[test]
fn a_session_has_at_most_so_many_prefills() {
    let (mut state, now) = (state(), Instant::now());
    let start = |state: &mut PrefillerState, session, request| {
        let start = StartPrefill { session, request: RequestId(request), ..prefill(4) };
        match &state.on(now, start.into())[..] {
            [
                Effect::PeerLink(ToPeerLink::SendFrame(SendFrame {
                    frame: Frame::PrefillFailed { fault, .. },
                    ..
                })),
            ] => {
                assert_eq!(*fault, PrefillFault::Busy, "it may be prefilled later");
                false
            }
            _ => true,
        }
    };
    let most = PREFILLS_MAX as u64;
    assert!((0..most).all(|request| start(&mut state, S, request)));
    assert!(!start(&mut state, S, most), "the session is at its limit");
    let effects = state.on_prefill(now, StartPrefill { request: R, prompt: vec![], ..prefill(4) });
    assert_eq!(told_failed(&effects).map(|told| told.0), Some(PrefillFault::Refused), "a wrong prompt");
    assert!(start(&mut state, SessionId(2), 0), "another session has room");
    assert_eq!(state.on_cancel(now, (S, RequestId(3))), [release(SequenceId::Peer(4))]);
    assert!(start(&mut state, S, most), "one has ended");
    assert!(!start(&mut state, S, most + 1));
    state.on_peer_lost(now, S);
    assert_eq!((state.len(), state.serials.len(), state.of_session.len()), (1, 1, 1));
}

#[test]
fn a_prefill_of_a_trace_is_recorded_at_its_end() {
    let (mut state, came) = (state(), Instant::now());
    let after = |seconds| came + Duration::from_secs(seconds);
    let context = TraceContext { trace: [1; 16], span: [2; 8], flags: 1 };
    state.on_prefill(came, StartPrefill { trace: Some(context), ..prefill(10) });
    state.on_reserved(after(1), PagesReserved { resident: 4, ..reserved(3) });
    state.on_advanced(after(2), advanced(8, None, None));
    state.on_sent(after(3), &sent(2));
    let finished = Some(SequenceEnd::Finished(FinishReason::Length));
    state.on_advanced(after(4), advanced(10, Some(3), finished));
    state.on_sent(after(5), &sent(1));
    let traced = PrefillTraced {
        context,
        session: S,
        request: R,
        prompt_tokens: 10,
        resident_tokens: 0,
        cached_tokens: 4,
        came,
        begun: Some(after(1)),
        chunks: vec![(after(2), 8), (after(4), 10)],
        sampled: Some(after(4)),
        running_micros: 9,
        flushed: vec![(after(3), 2), (after(5), 3)],
        last_flush: Some(after(5)),
        ended: after(6),
        failure: None,
    };
    assert_eq!(state.on_drained(after(6), KEY), [release(FIRST), to::traces(traced)]);
}

#[test]
fn the_record_of_a_prefill_says_why_it_failed() {
    let reason = |end: fn(&mut PrefillerState, Instant) -> Vec<Effect>| {
        let (mut state, now) = (state(), Instant::now());
        let context = TraceContext { trace: [1; 16], span: [2; 8], flags: 1 };
        state.on_prefill(now, StartPrefill { trace: Some(context), ..prefill(10) });
        let mut effects = end(&mut state, now);
        effects.extend(state.on_drained(now, KEY));
        let traced = effects.into_iter().find_map(|effect| match effect {
            Effect::Traces(ToTraces::PrefillTraced(traced)) => Some(traced.failure),
            _ => None,
        });
        traced.expect("the prefill is recorded").unwrap_or_default()
    };
    assert_eq!(reason(|state, now| state.on_cancel(now, KEY)), "cancelled");
    assert_eq!(reason(|state, now| state.on_peer_lost(now, S)), "receiver_lost");
    assert_eq!(reason(|state, now| state.on_tick(now + Duration::from_secs(2))), "deadline");
    let denied = |state: &mut PrefillerState, now| {
        state.on_denied(now, &PagesDenied { sequence: FIRST, needed: 3, usable: 2 })
    };
    assert_eq!(reason(denied), "no_pages");
    let fails = |state: &mut PrefillerState, now| {
        state.on_reserved(now, reserved(3));
        state.on_advanced(now, advanced(0, None, Some(SequenceEnd::Failed("smoke".into()))))
    };
    assert_eq!(reason(fails), "engine");
    let has_its_token = |state: &mut PrefillerState, now| {
        state.on_reserved(now, reserved(3));
        let finished = Some(SequenceEnd::Finished(FinishReason::Length));
        state.on_advanced(now, advanced(10, Some(3), finished));
        state.on_cancel(now, KEY)
    };
    assert_eq!(reason(has_its_token), "", "the receiver needed only the first token");
    // A prompt that is refused on arrival has a record too.
    let refused = |start: StartPrefill| {
        let context = TraceContext { trace: [1; 16], span: [2; 8], flags: 1 };
        let effects = state().on_prefill(Instant::now(), StartPrefill { trace: Some(context), ..start });
        effects.into_iter().find_map(|effect| match effect {
            Effect::Traces(ToTraces::PrefillTraced(traced)) => traced.failure,
            _ => None,
        })
    };
    assert_eq!(refused(StartPrefill { prompt: Vec::new(), ..prefill(10) }), Some("refused"));
}
