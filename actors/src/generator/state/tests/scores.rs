//! Prompts whose log probabilities are wanted.

use super::*;
use engine::Logprobs;

/// The targets of a plan's chunks.
fn targets(plan: &RunStep) -> Vec<Vec<u32>> {
    let of_chunk = |chunk: &PlannedChunk| chunk.score.clone().map_or(Vec::new(), |score| score.targets);
    plan.chunks.iter().map(of_chunk).collect()
}

/// Log probabilities that name their target.
fn scores(plan: &RunStep) -> Vec<(u64, Vec<Logprobs>)> {
    let of_target = |target: &u32| Logprobs { sampled: -(*target as f32), rank: 1, top: Vec::new() };
    let scored = plan.chunks.iter().filter_map(|chunk| Some((chunk.key, chunk.score.as_ref()?)));
    scored.map(|(key, score)| (key, score.targets.iter().map(of_target).collect())).collect()
}

#[test]
fn every_prompt_token_but_the_first_is_scored_once() {
    let limits = StepLimits { tokens: 64, rows: 5 };
    let mut state = limited(64, limits);
    state.on_start(StartSequence { prompt_logprobs: Some(2), ..start(1, 9, 2) });
    let (mut found, mut tokens) = (Vec::new(), 0);
    while let Some(plan) = state.plan(0) {
        let result = StepResult { scores: scores(&plan), ..samples(&plan, 7) };
        for event in state.on_step(Ok(result), 0) {
            assert!(event.prompt_logprobs.is_empty() || event.token.is_none(), "they come before the token");
            found.extend(event.prompt_logprobs.iter().map(|logprobs| -logprobs.sampled as u32));
            tokens += u32::from(event.token.is_some());
        }
    }
    assert_eq!((found, tokens), ((11..19).collect::<Vec<_>>(), 2));
}

#[test]
fn scored_rows_leave_half_of_the_rows_to_decode_rows() {
    let mut state = limited(64, StepLimits { tokens: 64, rows: 4 });
    state.on_start(start(1, 1, 9));
    state.on_start(StartSequence { prompt_logprobs: Some(0), ..start(2, 6, 2) });
    state.on_start(StartSequence { prompt_logprobs: Some(0), ..start(3, 6, 2) });
    let mut seen = Vec::new();
    for _ in 0..4 {
        let plan = state.plan(0).expect("there is work");
        let keys: Vec<u64> = plan.chunks.iter().map(|chunk| chunk.key).collect();
        seen.push((keys, targets(&plan).concat()));
        state.on_step(Ok(StepResult { scores: scores(&plan), ..samples(&plan, 7) }), 0);
    }
    assert_eq!(
        seen,
        [
            (vec![1, 0], vec![11, 12]),
            (vec![1, 0], vec![13, 14]),
            // The last token of a prompt has no target, so the second prompt gets the other row.
            (vec![1, 2, 0], vec![15, 11]),
            (vec![2, 0, 1], vec![12, 13]),
        ]
    );
}

#[test]
fn a_late_row_keeps_its_scores() {
    let mut state = scheduler(64, 64, 16, false);
    let grammar = Some(crate::grammar::testing::compiled(Default::default()));
    state.on_start(StartSequence { grammar, prompt_logprobs: Some(0), ..start(1, 3, 2) });
    let plan = state.plan(0).expect("the prompt");
    let late = StepResult { scores: scores(&plan), late: vec![0], ..StepResult::default() };
    let events = state.on_step(Ok(late), 0);
    assert_eq!(events.iter().map(|event| event.prompt_logprobs.len()).collect::<Vec<_>>(), [2]);
    let again = state.plan(0).expect("its last token");
    assert_eq!((targets(&again), again.chunks[0].tokens.len()), (vec![vec![]], 1));
}
