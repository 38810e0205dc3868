use actors::grammar::GrammarSource;

use super::*;
use crate::grammar::testing::Nothing;

fn source(name: usize) -> GrammarSource {
    GrammarSource::Regex(name.to_string())
}

fn compiled(name: usize) -> Outcome {
    Ok(Nothing::compiled(&source(name)))
}

fn named(next: &Next) -> &'static str {
    match next {
        Next::Done(Ok(_)) => "compiled",
        Next::Done(Err(_)) => "refused",
        Next::Wait(_) => "wait",
        Next::Start => "start",
        Next::Full => "full",
    }
}

#[test]
fn equal_sources_compile_once_and_others_need_a_thread() {
    let (mut state, now) = (State::default(), Instant::now());
    let mut next = |name: usize, now| named(&state.next(source(name).hash(), now));
    assert_eq!((next(0, now), next(0, now)), ("start", "wait"));
    for name in 1..THREADS {
        assert_eq!(next(name, now), "start");
    }
    assert_eq!((next(THREADS, now), next(1, now)), ("full", "wait"));
    state.finish(source(0).hash(), compiled(0), 1, now);
    let mut next = |name: usize, now| named(&state.next(source(name).hash(), now));
    assert_eq!((next(0, now), next(THREADS, now), next(9, now)), ("compiled", "start", "full"));
}

#[test]
fn a_compilation_that_does_not_return_is_refused_and_keeps_its_thread() {
    let (mut state, now) = (State::default(), Instant::now());
    let hash = source(0).hash();
    assert_eq!(named(&state.next(hash, now)), "start");
    assert!(state.cached(hash, now).is_none());
    let late = now + DEADLINE;
    assert_eq!(named(&state.next(hash, late)), "refused");
    assert!(matches!(state.cached(hash, late), Some(Err(GrammarError::TooLarge(_)))));
    assert_eq!(state.running(), 1);
    state.finish(hash, compiled(0), 1, late);
    assert_eq!((named(&state.next(hash, late)), state.running()), ("compiled", 0));
}

#[test]
fn failures_are_cached_briefly() {
    let (mut state, now) = (State::default(), Instant::now());
    let hash = source(0).hash();
    assert_eq!(named(&state.next(hash, now)), "start");
    state.finish(hash, Err(GrammarError::Invalid("x".to_owned())), 1, now);
    assert_eq!(named(&state.next(hash, now)), "refused");
    assert_eq!(named(&state.next(hash, now + FAILURE_KEPT)), "start");
    assert_eq!(state.running(), 1);
    state.finish(hash, Err(GrammarError::Busy("no thread".to_owned())), 1, now);
    assert_eq!((named(&state.next(hash, now)), state.running()), ("start", 1), "not cached");
}

#[test]
fn the_least_recently_used_grammar_is_removed_first() {
    let (mut state, now) = (State::default(), Instant::now());
    let compile = |state: &mut State, name: usize, bytes| {
        assert_eq!(named(&state.next(source(name).hash(), now)), "start", "{name}");
        state.finish(source(name).hash(), compiled(name), bytes, now);
    };
    for name in 0..ENTRIES_MAX {
        compile(&mut state, name, 10);
    }
    assert!(state.cached(source(0).hash(), now).is_some(), "used again");
    compile(&mut state, 1000, 10);
    assert!(state.cached(source(0).hash(), now).is_some());
    assert!(state.cached(source(1).hash(), now).is_none(), "removed");
    // Large grammars push the small ones out.
    for name in 2000..2010 {
        compile(&mut state, name, GrammarSource::BYTES_MAX);
        assert!(state.bytes <= BYTES_MAX, "{}", state.bytes);
    }
    assert!(state.entries.len() < 5);
    assert!(state.cached(source(2009).hash(), now).is_some());
}
