//! Requests for the log probabilities of their prompts.

use engine::Logprobs;

use super::*;
use crate::messages::{PromptLogprobs, StreamPrompt};

fn logprobs(from: u32, count: u32) -> Vec<Logprobs> {
    (from..from + count).map(|n| Logprobs { sampled: -(n as f32), rank: 1, top: vec![(n, -1.0)] }).collect()
}

/// The client gets the log probabilities of its prompt.
fn prompt(logprobs: Vec<Logprobs>) -> Effect {
    to::streams(StreamPrompt { request: R, logprobs })
}

fn reported(first: u32, logprobs: Vec<Logprobs>) -> PromptLogprobs {
    PromptLogprobs { session: SESSION, request: R, first, logprobs }
}

/// A request that waits for a sender, or runs here.
fn begun(now: Instant, on: Option<SessionId>) -> DecoderState {
    let mut state = state();
    let mut decode = decode(now, 6, 5, on);
    decode.generate.prompt_logprobs = Some(1);
    let effects = state.on_decode(now, decode);
    assert!(
        matches!(&effects[0], Effect::BufferManager(ToBufferManager::ReservePages(reserve)) if !reserve.reads_cache),
        "{effects:?}"
    );
    match on {
        Some(_) => state.on_reserved(now, landing(&[8])),
        None => state.on_reserved(now, reserved(&[6, 7, 8])),
    };
    state
}

fn is_cancelled(effects: &[Effect]) -> bool {
    matches!(frame(&effects[..1]), Some(Frame::CancelPrefill { request: 5 }))
}

#[test]
fn they_come_once_before_the_first_token() {
    let now = Instant::now();
    let mut state = begun(now, None);
    let scored =
        |from, count| SequenceAdvanced { prompt_logprobs: logprobs(from, count), ..advanced(None, None) };
    assert_eq!(state.on_advanced(now, scored(0, 2)), []);
    assert_eq!(state.on_advanced(now, scored(2, 3)), []);
    let effects = state.on_advanced(now, advanced(Some(7), None));
    assert!(effects.windows(2).any(|two| two == [prompt(logprobs(0, 5)), token(7)]), "{effects:?}");
    let effects = state.on_advanced(now, advanced(Some(8), None));
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Streams(_))).count(), 1);
}

#[test]
fn a_preempted_prompt_is_scored_again_from_its_first_token() {
    let now = Instant::now();
    let mut state = begun(now, None);
    let scored =
        |from, count| SequenceAdvanced { prompt_logprobs: logprobs(from, count), ..advanced(None, None) };
    state.on_advanced(now, scored(0, 2));
    state.on_short(PagesShort { releases: 0 });
    state.on_advanced(now, advanced(None, Some(SequenceEnd::Stopped)));
    let effects = state.on_reserved(now, reserved(&[1, 2, 3]));
    assert!(
        matches!(&effects[0], Effect::Generator(ToGenerator::StartSequence(start)) if start.prompt_logprobs == Some(1)),
        "{effects:?}"
    );
    state.on_advanced(now, scored(0, 5));
    assert!(state.on_advanced(now, advanced(Some(7), None)).contains(&prompt(logprobs(0, 5))));
}

#[test]
fn a_sender_reports_them_in_order() {
    let now = Instant::now();
    let mut state = begun(now, Some(SESSION));
    assert_eq!(state.on_prompt_logprobs(reported(0, logprobs(0, 2))), []);
    assert_eq!(state.on_prompt_logprobs(reported(2, logprobs(2, 3))), []);
    let effects = state.on_prefill_finished(now, prefilled(7));
    assert!(effects.windows(2).any(|two| two == [prompt(logprobs(0, 5)), token(7)]), "{effects:?}");
    state.on_adopted(now, adopted(0, 4));
    let effects = state.on_adopted(now, adopted(1, 5));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Generator(ToGenerator::StartSequence(start))
            if start.prompt_logprobs.is_none())),
        "they are delivered: {effects:?}"
    );
}

#[test]
fn wrong_or_missing_ones_are_an_error_of_the_sender() {
    let now = Instant::now();
    let unknown = vec![Logprobs { sampled: 0.0, rank: 1, top: vec![(u32::MAX, 0.0)] }];
    let wrong = [reported(1, logprobs(1, 1)), reported(0, logprobs(0, 6)), reported(0, unknown)];
    for reported in wrong {
        let mut state = begun(now, Some(SESSION));
        let effects = state.on_prompt_logprobs(reported);
        assert!(is_cancelled(&effects), "{effects:?}");
    }
    let mut state = begun(now, Some(SESSION));
    state.on_prompt_logprobs(reported(0, logprobs(0, 4)));
    let effects = state.on_prefill_finished(now, prefilled(7));
    assert!(is_cancelled(&effects), "one is missing: {effects:?}");
    // Computed here, all of them come from this process.
    state.on_grown(grown(&[6, 7]));
    let scored = SequenceAdvanced { prompt_logprobs: logprobs(0, 5), ..advanced(None, None) };
    state.on_advanced(now, scored);
    assert!(state.on_advanced(now, advanced(Some(7), None)).contains(&prompt(logprobs(0, 5))));
}
