//! Requests whose answers must match a grammar: the sender compiles the grammar before it prefills, or refuses.

use std::collections::BTreeMap;

use ::actors::grammar::{CompiledGrammar, GrammarCompiler, GrammarError, GrammarSource};

use super::modular::Modular;
use super::*;

/// Compiles every source but two, and counts the compilations of each.
#[derive(Default)]
struct Double(Mutex<BTreeMap<String, u32>>);

impl Double {
    fn compiled(&self) -> BTreeMap<String, u32> {
        self.0.lock().expect("no holder panics").clone()
    }
}

impl GrammarCompiler for Double {
    fn compile(&self, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError> {
        *self.0.lock().expect("no holder panics").entry(source.text().to_owned()).or_default() += 1;
        match source.text() {
            "wrong" => Err(GrammarError::Invalid("it is wrong".to_owned())),
            "panics" => panic!("the double panics"),
            _ => Ok(Modular::EVERYTHING.compiled(source.clone())),
        }
    }
}

/// Runs a request with this grammar.
async fn run(node: &Node, request: u64, text: &str) -> Timings {
    let grammar = Some(Modular::EVERYTHING.compiled(GrammarSource::Regex(text.to_owned())));
    let generate = Generate { grammar, ..generate(request, 30, 5) };
    answer(send(node, generate).await, request, 30).await.expect("the request succeeds")
}

#[actix::test]
async fn a_sender_compiles_a_grammar_once_and_a_refusal_costs_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start(receiver_at(listener), 200, 4);
    let double = Arc::new(Double::default());
    let ends = sender_to(address);
    let sender = start_compiling(ends, 200, 1, &Damage::default(), Some(double.clone()), routing());
    until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
    for (request, (text, disaggregated)) in (1..).zip([
        ("a*", true),
        ("wrong", false),
        ("b*", true),
        ("panics", false),
        ("a*", true),
        ("panics", false),
        ("wrong", false),
        ("b*", true),
    ]) {
        let timings = run(&receiver, request, text).await;
        assert_eq!(timings.disaggregated, disaggregated, "{text}: {timings:?}");
    }
    let once = ["a*", "b*", "panics", "wrong"].map(|text| (text.to_owned(), 1));
    assert_eq!(double.compiled(), BTreeMap::from(once));
    // More grammars than a sender keeps: the oldest are sent and compiled again.
    let more: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
    for (request, text) in (100..).zip(more.iter().chain(&more[..2])) {
        assert!(run(&receiver, request, text).await.disaggregated, "{text}");
    }
    assert_eq!((double.compiled()["c0"], double.compiled()["c19"]), (2, 1));
    assert_eq!(receiver.counters.recomputes().load(Ordering::SeqCst), 4);
}

#[actix::test]
async fn a_sender_without_a_compiler_leaves_requests_with_a_grammar_to_the_receiver() {
    let (receiver, _sender, _) = pair(64, 4).await;
    assert!(!run(&receiver, 1, "a*").await.disaggregated);
    let timings = answer(ask(&receiver, 2, 30, 5).await, 2, 30).await.expect("the request succeeds");
    assert!(timings.disaggregated, "the sender still prefills other requests");
}
