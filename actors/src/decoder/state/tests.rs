mod elsewhere;
mod grammars;
mod landing;
mod property;
mod scores;

use std::sync::Arc;
use std::time::Duration;

use engine::PageId;

use super::*;
use crate::effect::{ToBufferManager, ToGenerator, ToPeerLink, ToProxy, ToStreams};
use crate::log::LogLine;
use crate::messages::{
    ComputeHere, ExtendSequence, PagesGrown, PagesShort, PlacedAgain, Placement, PrefillFailed, PrefillOver,
    SendFrame, StopSequence, StreamEnd, StreamToken,
};
use crate::request::{CacheSalt, FinishReason, Refused, Route, StreamEvent};
use connector::frame::{Frame, PrefillFault};

const SESSION: SessionId = SessionId(1);
const EOS: u32 = 2;
const R: RequestId = RequestId(5);
const OWN: SequenceId = SequenceId::Own(R);
/// The salt of every request.
const SALT: Option<CacheSalt> = Some(CacheSalt([3; 32]));

fn state() -> DecoderState {
    let mut state = DecoderState::new(DecoderConfig {
        page_tokens: 4,
        page_bytes: 100,
        finish: FinishRule::new(vec![EOS]),
        vocabulary: 100,
        pid: 1,
        growth_tokens: 256,
        grammars_per_session: 2,
        holds_first_token: false,
    });
    assert_eq!(state.on_peer_ready(PeerReady { session: SESSION, pid: 9, name: 9, http: None }), []);
    state
}

fn decode(now: Instant, prompt: u32, max_tokens: u32, on: Option<SessionId>) -> Decode {
    let generate = Generate {
        request: R,
        prompt: (0..prompt).map(|n| n + 10).collect::<Arc<[u32]>>(),
        max_tokens,
        sampling: Arc::default(),
        grammar: None,
        salt: SALT,
        ignore_eos: false,
        prompt_logprobs: None,
        sent: now,
        deadline: now + Duration::from_secs(10),
        route: Route::Auto,
        trace: None,
    };
    Decode { generate, placement: placement(on, prompt) }
}

fn placement(on: Option<SessionId>, tokens: u32) -> Placement {
    Placement { on, tokens, may_fall_back: true }
}

fn pages(numbers: &[u32]) -> Vec<PageId> {
    numbers.iter().map(|page| PageId(*page)).collect()
}

/// A reservation for a request that is prefilled here.
fn reserved(numbers: &[u32]) -> PagesReserved {
    PagesReserved { sequence: OWN, resident: 0, landing: 0, pages: pages(numbers) }
}

/// A reservation for a request whose two prompt pages land.
fn landing(own: &[u32]) -> PagesReserved {
    PagesReserved { landing: 2, ..reserved(own) }
}

/// The reservation of a new request with these tokens.
fn reserve(tokens: &[u32], pages: u32, landing: bool) -> Effect {
    to::buffer_manager(ReservePages {
        reads_cache: true,
        sequence: OWN,
        tokens: tokens.into(),
        salt: SALT,
        pages,
        landing: landing.then_some(SESSION),
        priority: ReservePriority::New,
    })
}

/// The request wants free pages in place of those that will not land.
fn here() -> Effect {
    to::buffer_manager(ComputeHere { sequence: OWN })
}

/// The pages that the request gets after [`here`].
fn grown(numbers: &[u32]) -> PagesGrown {
    PagesGrown { sequence: OWN, pages: pages(numbers) }
}

/// The request releases all pages that it holds or waits for.
fn release() -> Effect {
    to::buffer_manager(ReleasePages { sequence: OWN })
}

/// The generator is to stop the request's sequence.
fn stop() -> Effect {
    to::generator(StopSequence { sequence: OWN })
}

/// The client gets a token.
fn token(id: u32) -> Effect {
    to::streams(StreamToken { request: R, token: id.into() })
}

/// The client gets the reason why the request failed.
fn failed(error: RequestError) -> Effect {
    to::streams(StreamEnd { request: R, event: StreamEvent::Failed(error) })
}

/// The proxy is told that the prompt no longer waits.
fn over(on: Option<SessionId>, outcome: PrefillOutcome) -> Effect {
    to::proxy(PrefillOver { placement: placement(on, 6), outcome })
}

/// The same for a prompt that was computed.
fn over_after(on: Option<SessionId>, micros: u64) -> Effect {
    over(on, PrefillOutcome::Computed { tokens: 6, micros })
}

const PROMPT: [u32; 6] = [10, 11, 12, 13, 14, 15];

fn adopted(first_page: u32, page: u32) -> PagesAdopted {
    PagesAdopted { request: R, first_page, pages: vec![PageId(page)], transfer_micros: 1000 }
}

fn prefilled(token: u32) -> PrefillFinished {
    PrefillFinished { session: SESSION, request: R, token: token.into(), cached: 0, prefill_micros: 2000 }
}

fn prefill_failed(session: SessionId) -> PrefillFailed {
    PrefillFailed { session, request: R, fault: PrefillFault::Failed, reason: "full".into() }
}

fn advanced(token: Option<u32>, ended: Option<SequenceEnd>) -> SequenceAdvanced {
    SequenceAdvanced {
        sequence: OWN,
        resident: 0,
        prompt_logprobs: Vec::new(),
        token: token.map(Into::into),
        running_micros: 0,
        ended,
    }
}

/// The final event, if there is one.
fn reason(effects: &[Effect]) -> Option<&StreamEvent> {
    effects.iter().find_map(|effect| match effect {
        Effect::Streams(ToStreams::StreamEnd(StreamEnd { request: R, event })) => Some(event),
        _ => None,
    })
}

/// The frame, if the only effect is one.
fn frame(effects: &[Effect]) -> Option<&Frame> {
    match effects {
        [Effect::PeerLink(ToPeerLink::SendFrame(SendFrame { session: SESSION, frame }))] => Some(frame),
        _ => None,
    }
}

#[test]
fn a_request_that_is_aborted_before_its_pages_come_does_not_run() {
    for on in [None, Some(SESSION)] {
        let (mut state, now) = (state(), Instant::now());
        let abort = || AbortRequest::cancelled(R).into();
        assert_eq!(state.on(now, abort()), [], "the decoder does not know the request yet");
        assert_eq!(state.on_decode(now, decode(now, 6, 3, on)), [reserve(&PROMPT, 2, on.is_some())]);
        assert_eq!(
            state.on(now, abort()),
            [failed(RequestError::Aborted), over(on, PrefillOutcome::Withdrawn), release()]
        );
        assert!(state.is_empty());
        let counts = DecoderCounts { taken: 1, aborted: 1, ..DecoderCounts::default() };
        assert_eq!(state.counts(), counts, "the request is counted like any other");
        assert_eq!(
            state.on_reserved(now, reserved(&[1, 2])),
            [],
            "these pages were released before they arrived"
        );
    }
}

#[test]
fn a_local_request_runs_and_releases() {
    let (mut state, now) = (state(), Instant::now());
    let effects = state.on_decode(now, decode(now, 6, 3, None));
    assert_eq!(effects, [reserve(&PROMPT, 2, false)]);
    let effects = state.on_reserved(now, reserved(&[3, 1]));
    let [Effect::Generator(ToGenerator::StartSequence(start))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((start.resident, start.sample, start.tokens.len()), (0, 3, 6));
    assert_eq!(state.on_advanced(now, advanced(None, None)), [], "a prefill chunk samples nothing");
    let computed = |tokens: &[u32]| {
        let (tokens, pages) = (tokens.into(), pages(&[3, 1]));
        to::buffer_manager(PagesComputed { sequence: OWN, tokens, salt: SALT, pages })
    };
    let first = SequenceAdvanced { resident: 6, ..advanced(Some(7), None) };
    assert_eq!(state.on_advanced(now, first), [over_after(None, 0), token(7), computed(&PROMPT)]);
    let end = advanced(Some(EOS), Some(SequenceEnd::Finished(FinishReason::Stop)));
    let effects = state.on_advanced(now, SequenceAdvanced { resident: 7, ..end });
    assert_eq!(effects[..2], [token(EOS), computed(&[10, 11, 12, 13, 14, 15, 7])]);
    assert!(
        matches!(reason(&effects[2..3]), Some(StreamEvent::Finished { reason: FinishReason::Stop, timings })
        if timings.completion_tokens == 2 && !timings.disaggregated)
    );
    assert_eq!(effects[3..], [release()]);
    assert!(state.is_empty());
    assert_eq!(state.counts(), DecoderCounts { taken: 1, finished: 1, ..DecoderCounts::default() });
}

#[test]
fn a_client_can_complete_its_request_early() {
    let ends_with = |effects: &[Effect], tokens: u32| {
        let Some(StreamEvent::Finished { reason: FinishReason::Stop, timings }) = reason(effects) else {
            panic!("{effects:?}")
        };
        assert_eq!(timings.completion_tokens, tokens);
    };
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 9, None));
    state.on_reserved(now, reserved(&[3, 1]));
    for token in [7, 8, 9] {
        state.on_advanced(now, advanced(Some(token), None));
    }
    let effects = state.on_complete(R, 2);
    ends_with(&effects, 2);
    assert_eq!(effects[1..], [stop()], "its pages are released after the engine has stopped");
    assert_eq!(state.on_complete(R, 2), [], "once is enough");
    assert_eq!(state.on_advanced(now, advanced(None, Some(SequenceEnd::Stopped))), [release()]);

    state.on_decode(now, decode(now, 6, 9, Some(SESSION)));
    state.on_reserved(now, landing(&[8]));
    state.on_prefill_finished(now, prefilled(7));
    let effects = state.on_complete(R, 1);
    ends_with(&effects, 1);
    assert_eq!((&effects[0], &effects[2..]), (&cancel(SESSION, R), &[release()][..]));
}

#[test]
fn an_engine_error_ends_the_request() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 5, None));
    state.on_reserved(now, reserved(&[1, 2, 3]));
    let effects = state.on_advanced(now, advanced(None, Some(SequenceEnd::Failed("smoke".into()))));
    let expect = StreamEvent::Failed(RequestError::Engine("smoke".into()));
    assert_eq!(reason(&effects), Some(&expect));
    assert_eq!(effects.last(), Some(&release()));
    assert_eq!(state.counts(), DecoderCounts { taken: 1, engine_failures: 1, ..DecoderCounts::default() });
}

#[test]
fn shutdown_fails_every_request() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 5, None));
    let effects = state.on_abort_all();
    assert_eq!(reason(&effects), Some(&StreamEvent::Failed(RequestError::ShuttingDown)));
    assert_eq!(effects.last(), Some(&release()));
    assert_eq!(state.counts(), DecoderCounts { taken: 1, cut_at_the_end: 1, ..DecoderCounts::default() });
}

#[test]
fn an_abort_releases_after_the_engine_has_stopped() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 5, None));
    state.on_reserved(now, reserved(&[1, 2, 3]));
    let effects = state.on_abort(R);
    assert_eq!(effects.last(), Some(&stop()));
    assert_eq!(state.on_abort(R), [], "once is enough");
    assert_eq!(state.on_advanced(now, advanced(Some(7), None)), [], "the client has left");
    let effects = state.on_advanced(now, advanced(None, Some(SequenceEnd::Stopped)));
    assert_eq!(effects, [over(None, PrefillOutcome::Withdrawn), release()]);
}

#[test]
fn a_deadline_fails_a_request_in_every_phase() {
    let now = Instant::now();
    let late = now + Duration::from_secs(11);
    for steps in 0..3 {
        let mut state = state();
        state.on_decode(now, decode(now, 6, 5, (steps == 1).then_some(SESSION)));
        if steps > 0 {
            state.on_reserved(now, if steps == 1 { landing(&[3]) } else { reserved(&[1, 2, 3]) });
        }
        assert_eq!(state.on_tick(now), []);
        let effects = state.on_tick(late);
        let expect = StreamEvent::Failed(RequestError::Deadline { deadline_ms: 10_000 });
        assert_eq!(reason(&effects), Some(&expect));
        assert_eq!(state.on_tick(late), [], "the client is told once");
        assert_eq!(
            state.counts(),
            DecoderCounts { taken: 1, deadlines_missed: 1, ..DecoderCounts::default() }
        );
    }
}

#[test]
fn a_request_grows_early_and_at_most_to_its_last_token() {
    let now = Instant::now();
    let mut state = DecoderState::new(DecoderConfig { growth_tokens: 4, ..state().config });
    let effects = state.on_decode(now, decode(now, 6, 9, None));
    let [Effect::BufferManager(ToBufferManager::ReservePages(reserve))] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(reserve.pages, 3, "six tokens and four ahead");
    state.on_reserved(now, reserved(&[1, 2, 3]));
    let token = |n: u32| SequenceAdvanced { resident: 5 + n, ..advanced(Some(7), None) };
    let asks = |effects: &[Effect]| {
        effects.iter().find_map(|effect| match effect {
            Effect::BufferManager(ToBufferManager::GrowPages(grow)) => Some((grow.least, grow.most)),
            _ => None,
        })
    };
    assert_eq!([1, 2].map(|n| asks(&state.on_advanced(now, token(n)))), [None, None]);
    assert_eq!(asks(&state.on_advanced(now, token(3))), Some((1, 1)), "token 9 begins the last page");
    assert_eq!(asks(&state.on_advanced(now, token(4))), None, "it asks once");
    let extend = ExtendSequence { sequence: OWN, pages: pages(&[9]) };
    let grown = PagesGrown { sequence: OWN, pages: pages(&[9]) };
    assert_eq!(state.on_grown(grown), [to::generator(extend)]);
    assert_eq!(asks(&state.on_advanced(now, token(5))), None, "fourteen tokens of KV are its maximum");
}

#[test]
fn the_youngest_request_is_preempted_and_resumes_with_its_tokens() {
    let (mut state, now) = (state(), Instant::now());
    state.on_decode(now, decode(now, 6, 50, None));
    state.on_reserved(now, reserved(&[1, 2]));
    let mut other = decode(now + Duration::from_millis(1), 6, 50, Some(SESSION));
    other.generate.request = RequestId(6);
    let young = SequenceId::Own(RequestId(6));
    state.on_decode(now + Duration::from_millis(1), other);
    state.on_reserved(now, PagesReserved { sequence: young, ..landing(&[3]) });
    // The younger request is landing. It reserves new pages, to be computed here.
    let effects = state.on_short(PagesShort { releases: state.releases });
    assert_eq!(effects[0], cancel(SESSION, RequestId(6)));
    assert_eq!(effects[1], to::buffer_manager(ReleasePages { sequence: young }));
    assert!(matches!(&effects[2], Effect::BufferManager(ToBufferManager::ReservePages(reserve))
        if reserve.landing.is_none() && reserve.sequence == young));
    assert_eq!(state.on_short(PagesShort { releases: 0 }), [], "the message was sent before the release");
    // Now only the older request holds pages.
    state.on_advanced(now, SequenceAdvanced { resident: 6, ..advanced(Some(7), None) });
    assert_eq!(state.on_short(PagesShort { releases: state.releases }), [stop()]);
    assert_eq!(state.on_short(PagesShort { releases: state.releases }), [], "a request is already stopping");
    let stopped = SequenceAdvanced { resident: 6, ..advanced(None, Some(SequenceEnd::Stopped)) };
    let effects = state.on_advanced(now, stopped);
    let [
        Effect::BufferManager(ToBufferManager::PagesComputed(_)),
        Effect::BufferManager(ToBufferManager::ReleasePages(ReleasePages { sequence: OWN })),
        Effect::BufferManager(ToBufferManager::ReservePages(again)),
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((again.tokens.len(), again.priority), (7, ReservePriority::Resumed));
    assert_eq!(state.counts().preemptions, 2);
}
