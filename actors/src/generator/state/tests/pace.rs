//! Tests of the bound on the time of steps.

use std::time::Duration;

use super::*;

/// Runs steps on an engine that needs 5 ms and 20 us for each prompt token. Returns the time of each step, whether rows decoded in it, and the
/// prompt tokens in it.
fn run(state: &mut GeneratorState, now: &mut u64, steps: usize) -> Vec<(u64, bool, usize)> {
    let mut taken = Vec::new();
    for _ in 0..steps {
        let Some(plan) = state.plan(*now) else { break };
        let prompts = plan.chunks.iter().filter(|chunk| chunk.source == TokenSource::Prompt);
        let prompt_tokens: usize = prompts.map(|chunk| chunk.tokens.len()).sum();
        let decodes = plan.chunks.iter().any(|chunk| chunk.source == TokenSource::Sampled);
        let micros = 5_000 + 20 * prompt_tokens as u64;
        *now += micros;
        let sampling = plan.chunks.iter().filter(|chunk| chunk.sample.is_some());
        let sampled = sampling.map(|chunk| (chunk.key, 7.into())).collect();
        state.on_step(Ok(result(sampled)), *now);
        taken.push((micros, decodes, prompt_tokens));
    }
    taken
}

fn long(request: u64, prompt: u32, sample: u32) -> StartSequence {
    let pages = (0..700).map(PageId).collect();
    StartSequence { pages, ..start(request, prompt, sample) }
}

#[test]
fn a_bound_limits_the_prompts_of_steps_in_which_rows_decode() {
    let limits = StepLimits { tokens: 4096, rows: 64 };
    let finish = FinishRule::new(vec![EOS]);
    let mut state = GeneratorState::new(GeneratorConfig {
        chunk_tokens: 2048,
        inter_token_bound: Some(Duration::from_millis(25)),
        limits,
        page_tokens: 16,
        finish,
        runs_ahead: false,
    });
    let mut now = 0;
    state.on_start(long(1, 4096, 1000));
    let alone = run(&mut state, &mut now, 2);
    assert_eq!(alone[0], (5_000 + 20 * 2048, false, 2048), "no row decodes, so the whole chunk is computed");
    run(&mut state, &mut now, 10);
    state.on_start(long(2, 8192, 1));
    let mixed = run(&mut state, &mut now, 8);
    assert!(mixed.iter().all(|(micros, decodes, _)| *micros <= 25_000 && *decodes), "{mixed:?}");
    let tokens: usize = mixed.iter().map(|(_, _, tokens)| tokens).sum();
    assert!(tokens > 8 * 780, "the prompt gets what the bound leaves: {mixed:?}");
}

#[test]
fn the_time_of_a_step_that_was_planned_ahead_begins_when_the_step_before_it_returns() {
    let limits = StepLimits { tokens: 4096, rows: 64 };
    let finish = FinishRule::new(vec![EOS]);
    let mut state = GeneratorState::new(GeneratorConfig {
        chunk_tokens: 2048,
        inter_token_bound: Some(Duration::from_millis(25)),
        limits,
        page_tokens: 16,
        finish,
        runs_ahead: true,
    });
    state.on_start(long(1, 64, 1000));
    let mut now = 0;
    assert!(state.plan(now).is_some());
    // Two steps of 10 ms each are in flight nearly all the time.
    for _ in 0..100 {
        assert!(state.plan(now).is_some(), "a step is planned while one runs");
        now += 10_000;
        state.on_step(Ok(result(vec![(0, 7.into())])), now);
    }
    state.on_start(long(2, 8192, 1));
    for _ in 0..2 {
        now += 10_000;
        state.on_step(Ok(result(vec![(0, 7.into())])), now);
    }
    let plan = state.plan(now).expect("the prompt is planned when both steps have returned");
    let tokens = plan.chunks.iter().map(|chunk| chunk.tokens.len()).max();
    // 12.5 ms are left beside the rows. The first prompt took 10 ms for 64 tokens.
    assert!((64..=100).contains(&tokens.unwrap_or(0)), "{tokens:?}");
}
