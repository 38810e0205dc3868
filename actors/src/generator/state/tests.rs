use proptest::prelude::*;

use super::*;
use std::sync::Arc;

use engine::{PageId, Sampling, TokenSource};

use crate::messages::PlannedChunk;
use crate::request::{FinishReason, RequestId};

mod constraints;
mod load;
mod pace;
mod scores;

const EOS: u32 = 2;

fn name(request: u64) -> SequenceId {
    SequenceId::Own(RequestId(request))
}

/// A scheduler for an engine that takes `tokens` tokens and as many rows in a step.
fn scheduler(chunk_tokens: u32, tokens: u32, page_tokens: u32, runs_ahead: bool) -> GeneratorState {
    let limits = StepLimits { tokens, rows: tokens };
    let finish = FinishRule::new(vec![EOS]);
    GeneratorState::new(GeneratorConfig {
        chunk_tokens,
        inter_token_bound: None,
        limits,
        page_tokens,
        finish,
        runs_ahead,
    })
}

/// A scheduler for an engine with these limits.
fn limited(chunk_tokens: u32, limits: StepLimits) -> GeneratorState {
    let finish = FinishRule::new(vec![EOS]);
    GeneratorState::new(GeneratorConfig {
        chunk_tokens,
        inter_token_bound: None,
        limits,
        page_tokens: 16,
        finish,
        runs_ahead: false,
    })
}

fn start(request: u64, prompt: u32, sample: u32) -> StartSequence {
    StartSequence {
        sequence: name(request),
        tokens: (10..10 + prompt).collect(),
        resident: 0,
        pages: vec![PageId(request as u32)],
        prompt,
        sample,
        sampling: Arc::default(),
        grammar: None,
        ignore_eos: false,
        prompt_logprobs: None,
        announce: false,
    }
}

/// Runs one step and samples `token` for every sampling chunk. Returns the chunk lengths and the events.
fn step(state: &mut GeneratorState, token: u32) -> (Vec<usize>, Vec<SequenceAdvanced>) {
    let plan = state.plan(0).expect("there is work");
    assert_eq!(state.plan(0), None, "one step at a time");
    let lengths = plan.chunks.iter().map(|chunk| chunk.tokens.len()).collect();
    let sampled: Vec<_> = plan
        .chunks
        .iter()
        .filter(|chunk| chunk.sample.is_some())
        .map(|chunk| (chunk.key, token.into()))
        .collect();
    (lengths, state.on_step(Ok(result(sampled)), 0))
}

#[test]
fn a_prompt_is_prefilled_in_chunks_and_decoded_to_its_limit() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(start(1, 9, 2));
    for (resident, length) in [(4, 4), (8, 4)] {
        let (lengths, events) = step(&mut state, 7);
        assert_eq!(lengths, [length]);
        assert_eq!((events[0].resident, &events[0].token, &events[0].ended), (resident, &None, &None));
    }
    let (_, events) = step(&mut state, 7);
    assert_eq!((events[0].resident, &events[0].token, &events[0].ended), (9, &Some(7.into()), &None));
    let (_, events) = step(&mut state, 8);
    assert_eq!(events[0].token, Some(8.into()));
    assert_eq!(events[0].ended, Some(SequenceEnd::Finished(FinishReason::Length)));
    assert!(state.is_empty() && state.plan(0).is_none());
}

#[test]
fn a_step_mixes_decode_rows_and_a_prefill_chunk() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(start(1, 2, 9));
    step(&mut state, 7);
    state.on_start(start(2, 9, 1));
    state.on_start(start(3, 9, 1));
    assert_eq!(step(&mut state, 7).0, [4, 1], "the oldest of equal prompts goes first");
}

/// The keys of the sequences in each of the next steps.
fn order(state: &mut GeneratorState, steps: usize) -> Vec<Vec<u64>> {
    (0..steps)
        .map(|_| {
            let plan = state.plan(0).expect("there is work");
            let keys = plan.chunks.iter().map(|chunk| chunk.key).collect();
            let sampled: Vec<_> = plan
                .chunks
                .iter()
                .filter(|chunk| chunk.sample.is_some())
                .map(|chunk| (chunk.key, 7.into()))
                .collect();
            state.on_step(Ok(result(sampled)), 0);
            keys
        })
        .collect()
}

#[test]
fn short_prompts_go_first_and_share_a_step() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(start(0, 12, 1));
    state.on_start(start(1, 2, 1));
    state.on_start(start(2, 3, 1));
    assert_eq!(order(&mut state, 2), [vec![1, 2], vec![0, 2]]);
}

#[test]
fn a_long_prompt_waits_for_no_more_than_its_own_length() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(start(0, 12, 1));
    let mut waited = 0;
    for request in 1.. {
        state.on_start(start(request, 4, 1));
        if order(&mut state, 1)[0].contains(&0) {
            break;
        }
        waited += 4;
    }
    assert!(waited <= 12, "it waited for {waited} tokens");
}

#[test]
fn a_sequence_at_the_end_of_its_pages_waits_for_more() {
    let mut state = scheduler(4, 64, 2, false);
    state.on_start(start(1, 2, 9));
    assert_eq!(step(&mut state, 7).1[0].token, Some(7.into()));
    assert_eq!(state.plan(0), None, "its pages have no room for its third token");
    state.on_extend(&ExtendSequence { sequence: name(1), pages: vec![PageId(9)] });
    let plan = state.plan(0).expect("its pages have room now");
    assert_eq!(plan.chunks[0].pages[..], [PageId(1), PageId(9)]);
}

#[test]
fn a_step_never_exceeds_the_limits_of_the_engine() {
    let mut state = scheduler(4, 5, 16, false);
    (0..10).for_each(|request| state.on_start(start(request, 1, 3)));
    state.on_start(start(10, 9, 1));
    for _ in 0..20 {
        let Some(plan) = state.plan(0) else { break };
        assert!(plan.chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>() <= 5);
        let sampled: Vec<_> = plan
            .chunks
            .iter()
            .filter(|chunk| chunk.sample.is_some())
            .map(|chunk| (chunk.key, 7.into()))
            .collect();
        state.on_step(Ok(result(sampled)), 0);
    }
    assert!(state.is_empty(), "every sequence has finished");
}

#[test]
fn end_of_sequence_ends_unless_ignored() {
    for (ignore_eos, ended) in [(false, Some(SequenceEnd::Finished(FinishReason::Stop))), (true, None)] {
        let mut state = scheduler(4, 64, 16, false);
        state.on_start(StartSequence { ignore_eos, ..start(1, 2, 5) });
        assert_eq!(step(&mut state, EOS).1[0].ended, ended);
    }
}

#[test]
fn a_stop_in_flight_waits_for_the_step() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(start(1, 2, 5));
    let plan = state.plan(0).expect("there is work");
    assert_eq!(state.on_stop(name(1), 0), None, "the engine may be writing its pages");
    let events = state.on_step(Ok(result(vec![(plan.chunks[0].key, 7.into())])), 0);
    assert_eq!(events[0].ended, Some(SequenceEnd::Stopped));
    assert_eq!((events[0].token.clone(), events[0].resident), (None, 2), "the computed tokens stay resident");
    assert_eq!(state.on_stop(name(1), 0), None, "it has ended");

    state.on_start(start(2, 2, 5));
    assert_eq!(state.on_stop(name(2), 0).and_then(|event| event.ended), Some(SequenceEnd::Stopped));
}

#[test]
fn a_failed_step_fails_its_sequences() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(start(1, 2, 5));
    state.plan(0).expect("there is work");
    let events = state.on_step(Err(EngineError::WorkerPanicked), 0);
    assert_eq!(events[0].ended, Some(SequenceEnd::Failed(EngineError::WorkerPanicked.to_string())));
    assert!(state.is_empty());
}

#[test]
fn adopted_pages_are_acquired_before_their_first_step() {
    let mut state = scheduler(4, 64, 16, false);
    state.on_start(StartSequence { resident: 2, ..start(1, 3, 5) });
    let plan = state.plan(0).expect("there is work");
    assert_eq!(plan.acquire, [PageId(1)]);
    assert_eq!((plan.chunks[0].start, plan.chunks[0].tokens.len()), (2, 1));
    assert!(plan.chunks[0].sample.is_some());
}

/// The samples of a plan, all of them `token`.
fn samples(plan: &RunStep, token: u32) -> StepResult {
    let sampled = plan.chunks.iter().filter(|chunk| chunk.sample.is_some());
    result(sampled.map(|chunk| (chunk.key, token.into())).collect())
}

fn result(tokens: Vec<(u64, Token)>) -> StepResult {
    StepResult { tokens, ..StepResult::default() }
}

/// For each chunk: its key, its start, and whether the previous step samples its token.
fn rows(plan: &RunStep) -> Vec<(u64, u32, bool)> {
    plan.chunks.iter().map(|chunk| (chunk.key, chunk.start, chunk.source == TokenSource::Follows)).collect()
}

#[test]
fn rows_follow_the_step_in_flight() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(start(1, 6, 3));
    let first = state.plan(0).expect("there is work");
    assert_eq!(state.plan(0), None, "its prompt is not finished");
    state.on_step(Ok(samples(&first, 7)), 0);
    let prompt = state.plan(0).expect("the rest of the prompt");
    let second = state.plan(0).expect("there is a next step");
    assert_eq!((rows(&second), second.chunks[0].tokens.len()), (vec![(0, 6, true)], 1));
    assert_eq!(state.plan(0), None, "two steps are in flight");
    assert_eq!(state.on_step(Ok(samples(&prompt, 8)), 0)[0].token, Some(8.into()));
    let third = state.plan(0).expect("its third token");
    assert_eq!(rows(&third), [(0, 7, true)]);
    let events = state.on_step(Ok(samples(&second, 9)), 0);
    assert_eq!((events[0].resident, &events[0].token, &events[0].ended), (7, &Some(9.into()), &None));
    assert_eq!(state.plan(0), None, "the third is the last");
    let events = state.on_step(Ok(samples(&third, 9)), 0);
    assert_eq!(events[0].ended, Some(SequenceEnd::Finished(FinishReason::Length)));
    assert!(state.is_empty() && !state.is_stepping());
}

#[test]
fn a_resumed_sequence_is_computed_as_a_prompt() {
    let sources = |resident, tokens: u32, chunk_tokens| {
        let mut state = scheduler(chunk_tokens, 64, 16, false);
        let all = (10..10 + tokens).collect();
        state.on_start(StartSequence { tokens: all, resident, ..start(1, 4, 9) });
        let mut found = Vec::new();
        while found.len() < 5 {
            let plan = state.plan(0).expect("there is work");
            found.push((plan.chunks[0].tokens.len(), plan.chunks[0].source));
            state.on_step(Ok(samples(&plan, 7)), 0);
        }
        found
    };
    let (prompt, sampled) = (TokenSource::Prompt, TokenSource::Sampled);
    // A prompt of four tokens and three sampled ones. Chunking leaves one token alone.
    let cut = [(3, prompt), (3, prompt), (1, prompt), (1, sampled), (1, sampled)];
    assert_eq!(sources(0, 7, 3), cut);
    // After a hand-over only the first sampled token is missing.
    assert_eq!(sources(4, 5, 3), [(1, sampled); 5]);
}

#[test]
fn an_end_is_reported_when_no_step_contains_the_sequence() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(start(1, 2, 9));
    let first = state.plan(0).expect("there is work");
    let second = state.plan(0).expect("there is a next step");
    assert_eq!(state.on_step(Ok(samples(&first, EOS)), 0), [], "the second step writes its pages");
    assert_eq!((state.plan(0), state.on_stop(name(1), 0)), (None, None));
    let events = state.on_step(Ok(samples(&second, 7)), 0);
    assert_eq!((events[0].resident, &events[0].token), (2, &Some(EOS.into())));
    assert_eq!(events[0].ended, Some(SequenceEnd::Finished(FinishReason::Stop)), "the first end counts");
    assert!(state.is_empty());
}

#[test]
fn a_failed_or_stopped_sequence_waits_for_both_steps() {
    for fails in [true, false] {
        let mut state = scheduler(4, 64, 16, true);
        state.on_start(start(1, 2, 9));
        let first = state.plan(0).expect("there is work");
        let second = state.plan(0).expect("there is a next step");
        let outcome = if fails {
            Err(EngineError::WorkerPanicked)
        } else {
            assert_eq!(state.on_stop(name(1), 0), None);
            Ok(samples(&first, 7))
        };
        assert_eq!(state.on_step(outcome, 0), []);
        let events = state.on_step(Ok(samples(&second, 7)), 0);
        let expect = if fails {
            SequenceEnd::Failed(EngineError::WorkerPanicked.to_string())
        } else {
            SequenceEnd::Stopped
        };
        assert_eq!((events.len(), &events[0].token, &events[0].ended), (1, &None, &Some(expect)));
        assert!(state.is_empty());
    }
}

#[test]
fn no_step_runs_ahead_of_a_waiting_sequence() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(start(1, 2, 9));
    let first = state.plan(0).expect("there is work");
    state.on_start(start(2, 2, 9));
    assert_eq!(state.plan(0), None, "the second prompt waits");
    state.on_step(Ok(samples(&first, 7)), 0);
    assert_eq!(rows(&state.plan(0).expect("both")), [(1, 0, false), (0, 2, false)]);

    let mut state = scheduler(4, 64, 2, true);
    state.on_start(start(1, 2, 9));
    assert!(state.plan(0).is_some() && state.plan(0).is_none(), "its pages have no room for its third token");
}

#[test]
fn all_settings_run_ahead_and_samples_that_look_back_have_the_tokens() {
    let drawn = Sampling { temperature: 1.0, top_p: 0.9, seed: 3, ..Sampling::GREEDY };
    for (sampling, looks_back) in [
        (drawn.clone(), false),
        (Sampling { logit_bias: vec![(1, 2.0)].into(), ..drawn.clone() }, false),
        (Sampling { logprobs: Some(0), ..drawn.clone() }, false),
        (Sampling { presence_penalty: 0.5, ..drawn.clone() }, true),
        (Sampling { repetition_penalty: 1.5, ..drawn }, true),
    ] {
        let mut state = scheduler(4, 64, 16, true);
        state.on_start(StartSequence { sampling: sampling.clone().into(), ..start(1, 2, 9) });
        let [first, second] = [(); 2].map(|()| state.plan(0).expect("the engine runs ahead"));
        let history = |plan: &RunStep| {
            let sample = plan.chunks[0].sample.as_ref().expect("it samples");
            sample.history.as_ref().map(|history| history.read().clone())
        };
        assert_eq!(history(&first), looks_back.then(|| vec![10, 11]), "{sampling:?}");
        assert_eq!(first.chunks[0].sample.as_ref().map(|sample| sample.prompt), Some(2));
        assert_eq!(rows(&second), [(0, 2, true)]);
        state.on_step(Ok(samples(&first, 7)), 0);
        assert_eq!(history(&second), looks_back.then(|| vec![10, 11, 7]), "the steps share the tokens");
    }
}

#[test]
fn an_error_of_one_sequence_fails_that_one_alone() {
    let mut state = scheduler(4, 64, 16, false);
    (1..=3).for_each(|request| state.on_start(start(request, 1, 2)));
    state.plan(0).expect("there is work");
    let refused = EngineError::EmptyChunk { sequence: 1 };
    let events = state.on_step(Err(refused.clone()), 0);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].sequence, name(2));
    assert_eq!(events[0].ended, Some(SequenceEnd::Failed(refused.to_string())));
    assert_eq!(rows(&state.plan(0).expect("the others")), [(0, 0, false), (2, 0, false)]);
    // A sequence outside the step cannot be at fault. Then the whole step fails, so that it is not planned again forever.
    assert_eq!(state.on_step(Err(refused), 0).len(), 2);
    assert!(state.is_empty());
}

#[test]
fn a_step_that_follows_a_refused_one_is_ignored() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(start(1, 2, 9));
    state.on_start(start(2, 2, 9));
    let first = state.plan(0).expect("there is work");
    let second = state.plan(0).expect("there is a next step");
    assert_eq!((first.chunks.len(), second.chunks.len()), (2, 2));
    let refused = EngineError::EmptyChunk { sequence: 0 };
    assert_eq!(state.on_step(Err(refused.clone()), 0), [], "the second step may write its pages");
    assert_eq!(state.plan(0), None, "no step follows a failed step");
    let events = state.on_step(Err(EngineError::FollowsNothing { sequence: 1 }), 0);
    assert_eq!(events.len(), 1, "the second sequence is not at fault: {events:?}");
    assert_eq!(events[0].sequence, name(1));
    assert_eq!(events[0].ended, Some(SequenceEnd::Failed(refused.to_string())));
    let again = state.plan(0).expect("the second sequence from its beginning");
    assert_eq!((rows(&again), &again.chunks[0].tokens[..]), (vec![(1, 0, false)], &[10, 11][..]));
    let events = state.on_step(Ok(samples(&again, 7)), 0);
    assert_eq!((events[0].resident, &events[0].token), (2, &Some(7.into())));
}

#[test]
fn sequences_take_turns_when_rows_are_few() {
    let limits = StepLimits { tokens: 64, rows: 2 };
    let mut state = limited(4, limits);
    (0..5).for_each(|request| state.on_start(start(request, 1, 9)));
    assert_eq!(order(&mut state, 5), [[0, 1], [2, 3], [4, 0], [1, 2], [3, 0]]);
    // A new sequence waits for its turn, and its prompt is computed meanwhile except for the last token.
    state.on_start(start(5, 4, 9));
    let plan = state.plan(0).expect("there is work");
    let lengths: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.key, chunk.tokens.len())).collect();
    assert_eq!(lengths, [(5, 3), (4, 1), (1, 1)]);
    assert_eq!(plan.chunks.iter().filter(|chunk| chunk.sample.is_some()).count(), 2);
    state.on_step(Ok(samples(&plan, 7)), 0);
    assert_eq!(order(&mut state, 3), [[2, 0], [3, 1], [4, 5]]);
}

/// Maximum number of concurrent sequences, and maximum number of tokens of a prompt, in the property below.
const MOST: (usize, u32) = (12, 30);

/// A sequence in the property below.
struct Waiting {
    /// Missing tokens of its prompt, without the last one.
    prompt: u32,
    /// The log probabilities of its prompt are wanted.
    is_scored: bool,
    /// Steps since one contained it.
    steps: u32,
    /// Prompt tokens of other sequences since then.
    others: u32,
}

proptest! {
    #[test]
    fn every_sequence_moves_within_a_bounded_number_of_steps(
        (tokens, rows, chunk_tokens) in (2u32..12, 1u32..6, 1u32..12),
        arrivals in prop::collection::vec(prop::option::weighted(0.4, (1..=MOST.1, 1u32..40, any::<bool>())), 300),
    ) {
        let limits = StepLimits { tokens, rows };
        let mut state = limited(chunk_tokens, limits);
        let mut live: BTreeMap<u64, Waiting> = BTreeMap::new();
        let mut arrivals = arrivals.into_iter();
        let mut keys = 0;
        loop {
            let more = arrivals.len() > 0;
            if let Some(Some((prompt, sample, is_scored))) = arrivals.next() && live.len() < MOST.0 {
                let pages = (0..8).map(PageId).collect();
                // With one row, decode rows go before prompts that are scored.
                let prompt_logprobs = (is_scored && rows > 1).then_some(2);
                state.on_start(StartSequence { pages, prompt_logprobs, ..start(keys, prompt, sample) });
                let is_scored = prompt_logprobs.is_some();
                live.insert(keys, Waiting { prompt: prompt - 1, is_scored, steps: 0, others: 0 });
                keys += 1;
            }
            let Some(plan) = state.plan(0) else {
                prop_assert!(state.is_empty(), "every sequence has pages");
                if more { continue } else { break }
            };
            let sampled = samples(&plan, 7);
            let length = |chunk: &PlannedChunk| chunk.tokens.len() as u32;
            prop_assert!(plan.chunks.iter().map(length).sum::<u32>() <= tokens, "{plan:?}");
            let scored = |chunk: &PlannedChunk| chunk.score.as_ref().map_or(0, |score| score.targets.len());
            let scored: usize = plan.chunks.iter().map(scored).sum();
            prop_assert!((sampled.tokens.len() + scored) as u32 <= rows, "{plan:?}");
            let of_prompts = |chunk: &PlannedChunk| length(chunk).min(live[&chunk.key].prompt);
            let prefilled: u32 = plan.chunks.iter().map(of_prompts).sum();
            for (key, waiting) in &mut live {
                waiting.steps += 1;
                waiting.others += prefilled;
                if let Some(chunk) = plan.chunks.iter().find(|chunk| chunk.key == *key) {
                    let prompt = waiting.prompt.saturating_sub(length(chunk));
                    *waiting = Waiting { prompt, steps: 0, others: 0, ..*waiting };
                } else if waiting.prompt == 0 {
                    // Each other sequence gets a row before it at most once.
                    prop_assert!(waiting.steps <= MOST.0 as u32, "{key} has waited for its turn too long");
                } else {
                    // It waits for the prompts of all others, or for later and shorter ones. A scored prompt also waits for rows, of which each
                    // step gives at least one to the scored prompts before it; meanwhile the other prompts go on.
                    prop_assert!(prefilled > 0, "{key} waits for nothing");
                    let waited = if waiting.is_scored { waiting.steps } else { waiting.others };
                    prop_assert!(waited <= MOST.0 as u32 * MOST.1, "{key} was overtaken too often");
                }
            }
            for event in state.on_step(Ok(sampled), 0) {
                let SequenceId::Own(request) = event.sequence else { unreachable!() };
                if event.ended.is_some() {
                    live.remove(&request.0);
                }
            }
        }
        prop_assert!(live.is_empty());
    }
}
