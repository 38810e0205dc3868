use super::*;
use crate::request::FinishReason;

const S: SessionId = SessionId(1);
const R: RequestId = RequestId(5);
const KEY: Key = (S, R);

/// The first prefill of a state.
const FIRST: SequenceId = SequenceId::Peer(1);

fn state() -> PrefillerState {
    PrefillerState::new(PrefillerConfig {
        page_tokens: 4,
        pool_pages: 8,
        vocabulary: 100,
        context_tokens: 40,
    })
}

fn prefill(tokens: u32) -> StartPrefill {
    StartPrefill { session: S, request: R, prompt: (0..tokens).collect(), remaining_ms: 1000 }
}

fn reserved(pages: u32) -> PagesReserved {
    PagesReserved { sequence: FIRST, pages: (0..pages).map(PageId).collect() }
}

fn advanced(resident: u32, token: Option<u32>, ended: Option<SequenceEnd>) -> SequenceAdvanced {
    SequenceAdvanced { sequence: FIRST, resident, token, running_micros: 9, ended }
}

fn put(first_page: u32, pages: std::ops::Range<u32>) -> Action {
    Action::Put(SchedulePut { session: S, request: R, first_page, pages: pages.map(PageId).collect() })
}

#[test]
fn pages_go_out_as_soon_as_they_are_final() {
    let mut state = state();
    assert_eq!(
        state.on_prefill(Instant::now(), prefill(10)),
        [Action::Reserve(ReservePages { sequence: FIRST, here: 3, landing: 0 })]
    );
    assert!(matches!(&state.on_reserved(reserved(3))[..], [Action::Start(start)] if start.sample == 1));
    assert_eq!(
        state.on_advanced(advanced(6, None, None)),
        [put(0, 0..1)],
        "tokens 4 and 5 leave page 1 open"
    );
    assert_eq!(state.on_advanced(advanced(7, None, None)), []);
    let finished = Some(SequenceEnd::Finished(FinishReason::Length));
    let frame = Frame::PrefillFinished { request: 5, token: 3, prefill_micros: 9 };
    assert_eq!(state.on_advanced(advanced(10, Some(3), finished)), [put(1, 1..3), Action::Frame(S, frame)]);
    assert_eq!(state.on_sent(KEY, 2), []);
    assert_eq!(state.on_sent(KEY, 1), [Action::Cancel(KEY)]);
    assert_eq!(state.on_drained(KEY), [Action::Release(FIRST)]);
    assert!(state.is_empty());
}

#[test]
fn what_cannot_be_prefilled_is_said() {
    let mut state = state();
    let strange = StartPrefill { prompt: vec![1, 100], ..prefill(1) };
    for (start, expect) in [
        (prefill(0), "empty"),
        (prefill(33), "needs 9 pages"),
        (prefill(41), "41 tokens and the model takes 40"),
        (strange, "token 100"),
    ] {
        let actions = state.on_prefill(Instant::now(), start);
        let [Action::Frame(_, Frame::PrefillFailed { reason, .. })] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert!(reason.contains(expect), "{reason}");
    }
    assert!(state.is_empty());
}

#[test]
fn a_cancel_waits_for_the_engine_and_the_puts() {
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    state.on_reserved(reserved(3));
    state.on_advanced(advanced(4, None, None));
    assert_eq!(state.on_cancel(KEY), [Action::Stop(FIRST)]);
    assert_eq!(state.on_drained(KEY), [], "the engine still has it");
    assert_eq!(state.on_advanced(advanced(8, None, Some(SequenceEnd::Stopped))), [Action::Cancel(KEY)]);
    assert_eq!(state.on_drained(KEY), [Action::Release(FIRST)]);
}

#[test]
fn a_number_that_is_used_again_mixes_nothing_up() {
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    assert_eq!(state.on_cancel(KEY), [Action::Release(FIRST)]);
    state.on_prefill(Instant::now(), prefill(10));
    assert_eq!(state.on_reserved(reserved(3)), [], "those pages went back with the first one");
    let second = PagesReserved { sequence: SequenceId::Peer(2), pages: vec![PageId(4); 3] };
    assert!(matches!(&state.on_reserved(second)[..], [Action::Start(_)]));
}

#[test]
fn an_engine_that_fails_is_said_and_drained() {
    let mut state = state();
    state.on_prefill(Instant::now(), prefill(10));
    state.on_reserved(reserved(3));
    let actions = state.on_advanced(advanced(0, None, Some(SequenceEnd::Failed("smoke".into()))));
    assert!(
        matches!(&actions[0], Action::Frame(S, Frame::PrefillFailed { reason, .. }) if reason == "smoke")
    );
    assert_eq!(actions[1..], [Action::Cancel(KEY)]);
    assert_eq!(state.on_peer_lost(S), [], "it is draining");
    assert_eq!(state.on_drained(KEY), [Action::Release(FIRST)]);
}

#[test]
fn a_lost_receiver_and_a_deadline_end_it() {
    let now = Instant::now();
    for phase in 0..3 {
        for lost in [true, false] {
            let mut state = state();
            state.on_prefill(now, prefill(4));
            if phase > 0 {
                state.on_reserved(reserved(1));
            }
            if phase > 1 {
                let finished = Some(SequenceEnd::Finished(FinishReason::Length));
                state.on_advanced(advanced(4, Some(3), finished));
            }
            assert_eq!(state.on_tick(now), []);
            let actions = if lost {
                state.on_peer_lost(S)
            } else {
                state.on_tick(now + Duration::from_secs(2)).split_off(1)
            };
            let expect = match phase {
                0 => Action::Release(FIRST),
                1 => Action::Stop(FIRST),
                _ => Action::Cancel(KEY),
            };
            assert_eq!(actions, [expect]);
        }
    }
}
