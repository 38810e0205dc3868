//! Prefills whose answers must match a grammar.

use super::super::grammars::COMPILATIONS_MAX;
use super::*;
use crate::effect::ToGrammarThread;
use crate::grammar::testing::named;
use crate::messages::{CompileGrammar, GrammarCompiled, StoreGrammar};

fn store(state: &mut PrefillerState, index: u32, text: &str) {
    let source = named(text).source().clone();
    assert_eq!(state.on(Instant::now(), StoreGrammar { session: S, index, source }.into()), []);
}

/// A prefill of four tokens with this grammar.
fn ask(state: &mut PrefillerState, request: u64, text: &str) -> Vec<Effect> {
    let grammar = Some(named(text).hash());
    state.on(Instant::now(), StartPrefill { request: RequestId(request), grammar, ..prefill(4) }.into())
}

/// The grammar thread is to compile this grammar.
fn compile(text: &str) -> Effect {
    let grammar = named(text);
    to::grammar_thread(CompileGrammar { session: S, hash: grammar.hash(), source: grammar.source().clone() })
}

/// The grammar thread has compiled the grammar, or not.
fn answered(state: &mut PrefillerState, text: &str, error: Option<GrammarError>) -> Vec<Effect> {
    let grammar = named(text);
    let hash = grammar.hash();
    let outcome = error.map_or(Ok(grammar), Err);
    state.on(Instant::now(), GrammarCompiled { session: S, hash, outcome }.into())
}

/// The pages of the prefill with this serial are reserved.
fn reserve(serial: u64) -> Effect {
    to::buffer_manager(ReservePages {
        reads_cache: true,
        sequence: SequenceId::Peer(serial),
        tokens: (0..4).collect(),
        salt: SALT,
        pages: 1,
        landing: None,
        priority: ReservePriority::New,
    })
}

/// The reason why the only effect refuses this request.
fn refused(effects: &[Effect], request: u64) -> &str {
    match effects {
        [
            Effect::PeerLink(ToPeerLink::SendFrame(SendFrame {
                session: S,
                frame: Frame::PrefillFailed { request: of, fault: PrefillFault::Refused, reason },
            })),
        ] if *of == request => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_prompt_gets_pages_only_after_its_grammar_is_compiled() {
    let now = Instant::now();
    let mut state = state();
    store(&mut state, 0, "a");
    assert_eq!(ask(&mut state, 1, "a"), [compile("a")]);
    assert_eq!(ask(&mut state, 2, "a"), [], "both prompts wait for one compilation");
    assert_eq!(answered(&mut state, "a", None), [reserve(1), reserve(2)]);
    let effects = state.on_reserved(now, PagesReserved { sequence: SequenceId::Peer(2), ..reserved(1) });
    assert_eq!(started(&effects).and_then(|start| start.grammar.clone()), Some(named("a")));
    assert_eq!(ask(&mut state, 3, "a"), [reserve(3)], "the grammar stays compiled");
    assert_eq!(state.on_prefill(Instant::now(), prefill(4)), [reserve(4)], "a prompt without a grammar");
    let effects = state.on_reserved(now, PagesReserved { sequence: SequenceId::Peer(4), ..reserved(1) });
    assert_eq!(started(&effects).map(|start| start.grammar.is_none()), Some(true));
}

#[test]
fn a_grammar_that_cannot_be_compiled_is_refused_and_the_answer_is_kept() {
    let mut state = state();
    store(&mut state, 0, "a");
    ask(&mut state, 1, "a");
    let effects = answered(&mut state, "a", Some(GrammarError::Panicked("index 7".into())));
    assert!(refused(&effects, 1).contains("failed on this grammar: index 7"), "{effects:?}");
    assert!(state.is_empty());
    assert!(refused(&ask(&mut state, 2, "a"), 2).contains("index 7"));
    assert!(refused(&ask(&mut state, 3, "b"), 3).contains("does not have the request's grammar"));
    let mut state = PrefillerState::new(PrefillerConfig { compiles_grammars: false, ..state.config });
    store(&mut state, 0, "a");
    assert!(refused(&ask(&mut state, 1, "a"), 1).contains("does not compile grammars"));
    assert!(state.is_empty());
}

#[test]
fn a_replaced_grammar_is_used_only_by_prompts_that_were_there_before() {
    let now = Instant::now();
    let mut state = state();
    store(&mut state, 0, "a");
    store(&mut state, 1, "b");
    ask(&mut state, 1, "a");
    store(&mut state, 0, "c");
    assert!(refused(&ask(&mut state, 2, "a"), 2).contains("does not have"));
    assert_eq!(ask(&mut state, 3, "c"), [compile("c")]);
    assert_eq!(ask(&mut state, 4, "b"), [compile("b")]);
    assert_eq!(answered(&mut state, "a", None), [reserve(1)]);
    assert_eq!(answered(&mut state, "c", None), [reserve(2)]);
    let effects = state.on_reserved(now, PagesReserved { sequence: SequenceId::Peer(2), ..reserved(1) });
    assert_eq!(started(&effects).and_then(|start| start.grammar.clone()), Some(named("c")));
    // Another session does not see the grammars of this one.
    let other = SessionId(2);
    let start = StartPrefill { session: other, grammar: Some(named("b").hash()), ..prefill(4) };
    let effects = state.on_prefill(Instant::now(), start);
    assert!(matches!(&effects[..], [Effect::PeerLink(ToPeerLink::SendFrame(send))] if send.session == other));
}

#[test]
fn only_so_many_grammars_wait_for_the_grammar_thread() {
    let now = Instant::now();
    let mut state = state();
    let texts: Vec<String> = (0..=COMPILATIONS_MAX).map(|n| n.to_string()).collect();
    for (index, text) in texts.iter().enumerate() {
        store(&mut state, index as u32, text);
    }
    let (last, others) = texts.split_last().expect("there is one");
    for (request, text) in others.iter().enumerate() {
        assert_eq!(ask(&mut state, request as u64, text), [compile(text)]);
    }
    assert!(refused(&ask(&mut state, 99, last), 99).contains("16 other grammars"));
    state.on_peer_lost(now, S);
    assert!(state.is_empty());
    assert!(refused(&ask(&mut state, 98, &texts[0]), 98).contains("does not have"), "nothing is kept");
    // The answers for the lost session make room.
    for text in others {
        assert_eq!(answered(&mut state, text, None), []);
    }
    store(&mut state, 0, last);
    assert_eq!(ask(&mut state, 99, last), [compile(last)]);
}

#[test]
fn a_prompt_that_waits_for_its_grammar_can_end() {
    let now = Instant::now();
    let waiting = |remaining_ms| {
        let mut state = state();
        store(&mut state, 0, "a");
        let grammar = Some(named("a").hash());
        let effects = state.on_prefill(now, StartPrefill { grammar, remaining_ms, ..prefill(4) });
        assert!(matches!(&effects[..], [Effect::GrammarThread(ToGrammarThread::CompileGrammar(_))]));
        state
    };
    let over = |mut state: PrefillerState| {
        assert!(state.is_empty());
        assert_eq!(answered(&mut state, "a", None), [], "the grammar comes too late");
    };
    let mut state = waiting(1000);
    assert_eq!(state.on_cancel(now, KEY), [], "it has no pages to release");
    over(state);
    let mut state = waiting(1000);
    assert_eq!(state.on_peer_lost(now, S), []);
    over(state);
    let mut state = waiting(1000);
    assert_eq!(state.on_tick(now + Duration::from_millis(999)), []);
    let effects = state.on_tick(now + Duration::from_millis(1000));
    assert_eq!(refused(&effects, 5), "the grammar was not compiled in time on the sender");
    over(state);
    let mut state = waiting(60_000);
    let effects = state.on_tick(now + COMPILING_MAX);
    assert_eq!(refused(&effects, 5), "the grammar was not compiled in time on the sender");
    over(state);
}
