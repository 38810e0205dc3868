//! Load reports.

use crate::effect::ToDecoder;
use crate::messages::{LoadReport, StepFinished, Tick};

use super::*;

#[test]
fn the_load_is_reported_when_it_has_changed() {
    let mut state = scheduler(4, 8, 16, false);
    let told = |state: &mut GeneratorState| state.on(0, Tick.into());
    let report = |waiting_tokens, begun_tokens, nanos_per_token, decoding| {
        let load = LoadReport { waiting_tokens, begun_tokens, nanos_per_token, decoding, decode: None };
        vec![to::proxy(load), to::decoder(load), to::peer_link(load)]
    };
    assert_eq!(told(&mut state), report(0, 0, None, 0));
    assert_eq!(told(&mut state), []);
    state.on_start(start(1, 10, 3));
    state.on_start(start(2, 3, 3));
    assert_eq!(told(&mut state), report(13, 0, None, 0));
    // The shorter prompt and one token of the other are computed in 2 ms.
    state.plan(0).expect("there is work");
    assert_eq!(told(&mut state), [], "the tokens of a step in flight still wait");
    state.on_step(Ok(result(vec![(1, 7.into())])), 2000);
    assert_eq!(told(&mut state), report(9, 1, Some(500_000), 1));
}

#[test]
fn a_load_that_changes_is_reported_every_50_ms_between_ticks() {
    let mut state = scheduler(4, 8, 16, false);
    let is_report = |effects: &[Effect]| effects.contains(&to::proxy(state_load(10)));
    let started = state.on(1, start(1, 10, 3).into());
    assert!(is_report(&started), "{started:?}");
    let mut reports = Vec::new();
    for step in 1..=4_u64 {
        let now = 1 + 20_000 * step;
        let finished = StepFinished { outcome: Ok(result(vec![(0, 7.into())])) };
        let effects = state.on(now, finished.into());
        reports.push(effects.iter().any(|effect| matches!(effect, Effect::Proxy(_))));
    }
    assert_eq!(reports, [false, false, true, false]);
}

#[test]
fn the_first_step_of_a_sequence_is_announced_if_that_is_wanted() {
    let mut state = scheduler(4, 4, 16, false);
    let begun = |effects: Vec<Effect>| {
        let names = effects.into_iter().filter_map(|effect| match effect {
            Effect::Decoder(ToDecoder::SequenceBegun(begun)) => Some(begun.sequence),
            _ => None,
        });
        names.collect::<Vec<_>>()
    };
    let wanted = |request, prompt| StartSequence { announce: true, ..start(request, prompt, 3) };
    assert_eq!(begun(state.on(0, wanted(1, 4).into())), [name(1)]);
    // The first step has no room for these.
    assert_eq!(begun(state.on(0, wanted(2, 3).into())), []);
    assert_eq!(begun(state.on(0, start(3, 1, 3).into())), []);
    let mut finish = || {
        let finished = StepFinished { outcome: Ok(result(vec![(0, 7.into())])) };
        begun(state.on(1, finished.into()))
    };
    assert_eq!(finish(), [name(2)]);
    assert_eq!(finish(), []);
    // A prompt of two chunks: the first one samples nothing.
    let mut state = scheduler(4, 4, 16, false);
    assert_eq!(begun(state.on(0, wanted(4, 6).into())), []);
    let finished = StepFinished { outcome: Ok(result(Vec::new())) };
    assert_eq!(begun(state.on(1, finished.into())), [name(4)]);
}

fn state_load(waiting_tokens: u64) -> LoadReport {
    LoadReport { waiting_tokens, begun_tokens: 0, nanos_per_token: None, decoding: 0, decode: None }
}
