//! Sequences with grammars.

use super::*;
use crate::grammar::GrammarError;
use crate::grammar::testing::{Counting, compiled};

fn constrained(request: u64, prompt: u32, sample: u32) -> StartSequence {
    StartSequence { grammar: Some(compiled(Counting::default())), ..start(request, prompt, sample) }
}

#[test]
fn a_constrained_sequence_runs_ahead_like_others() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(StartSequence { tokens: vec![10, 11, 3, 4], ..constrained(1, 2, 9) });
    let first = state.plan(0).expect("there is work");
    let told = |plan: &RunStep| {
        let sample = plan.chunks[0].sample.clone().expect("it is sampled");
        sample.constraint.expect("it is constrained").tokens
    };
    assert_eq!(told(&first), [3, 4], "the tokens after the prompt are told once");
    let second = state.plan(0).expect("there is a next step");
    assert_eq!((rows(&second), told(&second)), (vec![(0, 4, true)], vec![]));
}

#[test]
fn a_late_sequence_is_computed_again_and_delays_no_other() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(constrained(1, 2, 9));
    state.on_start(start(2, 2, 9));
    let first = state.plan(0).expect("both prompts");
    let second = state.plan(0).expect("both follow");
    assert_eq!(rows(&second), [(0, 2, true), (1, 2, true)]);
    // The engine leaves sequence 0 out of the second step, because the first did not sample it.
    let late = |plan: &RunStep| {
        let mut samples = samples(plan, 7);
        samples.tokens.retain(|(key, _)| *key != 0);
        StepResult { late: vec![0], ..samples }
    };
    let events = state.on_step(Ok(late(&first)), 0);
    assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [name(2)]);
    let third = state.plan(0).expect("the plain sequence is not delayed");
    assert_eq!(rows(&third), [(1, 3, true), (0, 1, false)], "the last token of sequence 0 again");
    assert_eq!((&third.chunks[1].tokens[..], third.chunks[1].source), (&[11][..], TokenSource::Prompt));
    state.on_step(Ok(late(&second)), 0);
    let fourth = state.plan(0).expect("both follow the third step");
    assert_eq!(rows(&fourth), [(1, 4, true), (0, 2, true)]);
    let events = state.on_step(Ok(samples(&third, 8)), 0);
    let of_late = events.iter().find(|event| event.sequence == name(1)).expect("it is sampled now");
    assert_eq!((of_late.resident, &of_late.token), (2, &Some(8.into())));
}

#[test]
fn a_late_sequence_that_was_stopped_ends_with_the_last_step_that_has_it() {
    let mut state = scheduler(4, 64, 16, true);
    state.on_start(constrained(1, 2, 9));
    let first = state.plan(0).expect("there is work");
    let second = state.plan(0).expect("there is a next step");
    assert_eq!(state.on_stop(name(1), 0), None);
    assert_eq!(state.on_step(Ok(StepResult { late: vec![0], ..StepResult::default() }), 0), []);
    let events = state.on_step(Ok(StepResult { late: vec![0], ..StepResult::default() }), 0);
    assert_eq!(events[0].ended, Some(SequenceEnd::Stopped));
    assert!(state.is_empty() && first.chunks.len() == second.chunks.len());
}

#[test]
fn a_failed_grammar_ends_its_sequence_only() {
    for is_ahead in [false, true] {
        let mut state = scheduler(4, 64, 16, is_ahead);
        state.on_start(constrained(1, 2, 9));
        state.on_start(start(2, 2, 9));
        assert_eq!(state.plan(0).map(|plan| plan.chunks.len()), Some(2));
        let second = state.plan(0);
        assert_eq!(second.is_some(), is_ahead);
        let refused = vec![(0, GrammarError::Panicked("index".to_owned()))];
        let tokens = vec![(1, 7.into())];
        let mut events = state.on_step(Ok(StepResult { tokens, refused, ..StepResult::default() }), 0);
        if let Some(second) = second {
            assert_eq!(events.len(), 1, "the second step may write its pages");
            events.extend(state.on_step(Ok(samples(&second, 7)), 0));
        }
        let failed = events.iter().find(|event| event.sequence == name(1)).expect("it has ended");
        assert!(matches!(&failed.ended, Some(SequenceEnd::GrammarFailed(text)) if text.contains("index")));
        assert!(events.iter().all(|event| event.sequence == name(1) || event.ended.is_none()));
        assert_eq!(state.len(), 1);
    }
}
