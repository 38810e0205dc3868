//! Load reports.

use crate::messages::{LoadReport, Tick};

use super::*;

#[test]
fn the_load_is_reported_when_it_has_changed() {
    let mut state = scheduler(4, 8, 16, false);
    let told = |state: &mut GeneratorState| state.on(0, Tick.into());
    let report = |waiting_tokens, nanos_per_token| {
        let load = LoadReport { waiting_tokens, nanos_per_token };
        vec![to::proxy(load), to::peer_link(load)]
    };
    assert_eq!(told(&mut state), report(0, None));
    assert_eq!(told(&mut state), []);
    state.on_start(start(1, 10, 3));
    state.on_start(start(2, 3, 3));
    assert_eq!(told(&mut state), report(13, None));
    // The shorter prompt and one token of the other are computed in 2 ms.
    state.plan(0).expect("there is work");
    assert_eq!(told(&mut state), [], "the tokens of a step in flight still wait");
    state.on_step(Ok(result(vec![(1, 7.into())])), 2000);
    assert_eq!(told(&mut state), report(9, Some(500_000)));
}
