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
        page_bytes: 100,
        pool_pages: 8,
        vocabulary: 100,
        context_tokens: 40,
    })
}

/// Pages that the receiver has now, on which the lane spent 7 µs.
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
        remaining_ms: 1000,
    }
}

fn reserved(pages: u32) -> PagesReserved {
    let pages = (0..pages).map(PageId).collect();
    PagesReserved { sequence: FIRST, resident: 0, landing: 0, pages }
}

fn advanced(resident: u32, token: Option<u32>, ended: Option<SequenceEnd>) -> SequenceAdvanced {
    SequenceAdvanced { sequence: FIRST, resident, token: token.map(Into::into), running_micros: 9, ended }
}

fn put(first_page: u32, pages: std::ops::Range<u32>) -> Action {
    Action::Put(SchedulePut { session: S, request: R, first_page, pages: pages.map(PageId).collect() })
}

#[test]
fn pages_go_out_as_soon_as_they_are_final() {
    let mut state = state();
    assert_eq!(
        state.on_prefill(Instant::now(), prefill(10)),
        [Action::Reserve(ReservePages {
            sequence: FIRST,
            tokens: (0..10).collect(),
            pages: 3,
            landing: false,
            again: false
        })]
    );
    assert!(matches!(&state.on_reserved(reserved(3))[..], [Action::Start(start)] if start.sample == 1));
    assert_eq!(
        state.on_advanced(advanced(6, None, None)),
        [put(0, 0..1)],
        "tokens 4 and 5 leave page 1 open"
    );
    assert_eq!(state.on_advanced(advanced(7, None, None)), []);
    let finished = Some(SequenceEnd::Finished(FinishReason::Length));
    let frame = Frame::PrefillFinished { request: 5, token: 3, logprobs: None, prefill_micros: 9 };
    let pages = (0..3).map(PageId).collect();
    let computed = Action::Computed(PagesComputed { sequence: FIRST, tokens: (0..10).collect(), pages });
    let actions = state.on_advanced(advanced(10, Some(3), finished));
    assert_eq!(actions, [put(1, 1..3), Action::Frame(S, frame), computed]);
    assert_eq!(state.on_sent(&sent(2)), []);
    let stored = Action::Stored { request: KEY.1, tokens: 10, bytes: 300, put_micros: 14 };
    assert_eq!(state.on_sent(&sent(1)), [stored, Action::Cancel(KEY)]);
    assert_eq!(state.on_drained(KEY), [Action::Release(FIRST)]);
    assert!(state.is_empty());
}

#[test]
fn what_is_there_already_is_neither_computed_nor_sent() {
    // Of ten tokens, how many the receiver has and how many stand here; what is put before and after the first step.
    let check = |there: u32, here: u32, before: Option<Action>, after: Action| {
        let mut state = state();
        state.on_prefill(Instant::now(), StartPrefill { resident: there, ..prefill(10) });
        let actions = state.on_reserved(PagesReserved { resident: here, ..reserved(3) });
        assert!(matches!(&actions[0], Action::Start(start) if start.resident == here), "{actions:?}");
        assert_eq!(actions[1..], *before.as_slice());
        let finished = Some(SequenceEnd::Finished(FinishReason::Length));
        assert_eq!(state.on_advanced(advanced(10, Some(3), finished))[0], after);
        let bytes = u64::from(3 - there / 4) * 100;
        let stored = Action::Stored { request: KEY.1, tokens: 10 - there, bytes, put_micros: 7 };
        assert_eq!(state.on_sent(&sent(3 - there / 4)), [stored, Action::Cancel(KEY)]);
    };
    check(0, 8, Some(put(0, 0..2)), put(2, 2..3));
    check(4, 8, Some(put(1, 1..2)), put(2, 2..3));
    check(8, 4, None, put(2, 2..3));
    check(4, 0, None, put(1, 1..3));
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
        (StartPrefill { resident: 4, ..prefill(4) }, "4 of 4 tokens"),
        (StartPrefill { resident: 3, ..prefill(9) }, "3 of 9 tokens"),
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
    let second = PagesReserved { sequence: SequenceId::Peer(2), ..reserved(3) };
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
