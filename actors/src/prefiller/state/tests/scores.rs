//! Prompts whose log probabilities the receiver wants.

use engine::Logprobs;

use super::*;
use crate::effect::ToBufferManager;

fn logprobs(count: usize) -> Vec<Logprobs> {
    (0..count).map(|n| Logprobs { sampled: -(n as f32), rank: 1, top: Vec::new() }).collect()
}

/// The first index and the number of tokens of each frame with log probabilities.
fn reported(effects: &[Effect]) -> Vec<(u32, usize)> {
    let frames = effects.iter().filter_map(|effect| match effect {
        Effect::PeerLink(ToPeerLink::SendFrame(send)) => Some(&send.frame),
        _ => None,
    });
    let reported = frames.filter_map(|frame| match frame {
        Frame::PromptLogprobs { request: 5, first, tokens } => Some((*first, tokens.len())),
        _ => None,
    });
    reported.collect()
}

#[test]
fn log_probabilities_travel_in_bounded_frames_before_the_first_token() {
    let now = Instant::now();
    let mut state = state();
    let start = StartPrefill { prompt_logprobs: Some(2), ..prefill(10) };
    let effects = state.on_prefill(Instant::now(), start);
    assert!(
        matches!(&effects[..], [Effect::BufferManager(ToBufferManager::ReservePages(reserve))] if !reserve.reads_cache),
        "cached tokens have no log probabilities: {effects:?}"
    );
    let effects = state.on_reserved(now, reserved(3));
    assert_eq!(started(&effects).and_then(|start| start.prompt_logprobs), Some(2));
    let scored = |count| SequenceAdvanced { prompt_logprobs: logprobs(count), ..advanced(0, None, None) };
    assert_eq!(reported(&state.on_advanced(now, scored(3))), [(0, 3)]);
    assert_eq!(reported(&state.on_advanced(now, scored(2500))), [(3, 1024), (1027, 1024), (2051, 452)]);
    state.on_cancel(now, KEY);
    assert_eq!(reported(&state.on_advanced(now, scored(3))), [], "the receiver does not want them any more");
}
