//! Requests with grammars, in the same steps as requests without.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::actors::grammar::GrammarSource;
use ::actors::node::Node;
use ::actors::request::{Generate, RequestError, RequestId, Route, StreamEvent};
use ::actors::streams::{AnswerEvents, StreamReader};

use super::echo::{allowed_from, next_token};
use super::modular::Modular;
use super::{PATIENCE, answer, ask, pair, prompt};

async fn ask_for(node: &Node, request: u64, tokens: u32, max_tokens: u32, grammar: Modular) -> AnswerEvents {
    let events = StreamReader::start(&node.streams).open(RequestId(request), max_tokens, ());
    let source = GrammarSource::Regex(format!("{grammar:?}"));
    let generate = Generate {
        request: RequestId(request),
        prompt: prompt(request, tokens).into(),
        max_tokens,
        sampling: Arc::default(),
        grammar: Some(grammar.compiled(source)),
        salt: None,
        ignore_eos: true,
        prompt_logprobs: None,
        sent: Instant::now(),
        deadline: Instant::now() + PATIENCE,
        route: Route::Local,
        trace: None,
    };
    node.generate().send(generate).await.expect("it is alive");
    events
}

/// Reads all tokens of a constrained answer and its end. Returns the number of tokens.
async fn constrained(
    mut source: AnswerEvents,
    request: u64,
    prompt_tokens: u32,
) -> Result<usize, RequestError> {
    let mut tokens = prompt(request, prompt_tokens);
    loop {
        let event = tokio::time::timeout(PATIENCE, source.recv()).await.expect("in time").expect("it ends");
        match event {
            StreamEvent::Prompt(_) => panic!("nothing asked for it"),
            StreamEvent::Token(token) => {
                let count = tokens.len() as u32 - prompt_tokens;
                let expect = allowed_from(&Modular::SEVENS.mask(count), next_token(tokens.iter().copied()));
                assert_eq!(token.id, expect, "request {request} at {count}");
                tokens.push(token.id);
            }
            StreamEvent::Finished { .. } => return Ok(tokens.len() - prompt_tokens as usize),
            StreamEvent::Failed(error) => return Err(error),
        }
    }
}

#[actix::test]
async fn constrained_and_plain_requests_share_steps_and_pages() {
    let (receiver, _sender, _) = pair(40, 3).await;
    let (mut masked, mut plain) = (Vec::new(), Vec::new());
    for request in 0..24 {
        let tokens = 1 + request as u32 * 7 % 60;
        if request % 3 == 0 {
            plain.push((request, tokens, ask(&receiver, request, tokens, 30).await));
        } else {
            // Some masks are late.
            let takes = Duration::from_micros(request % 4 * 300);
            let sevens = Modular { takes, ..Modular::SEVENS };
            masked.push((request, tokens, ask_for(&receiver, request, tokens, 30, sevens).await));
        }
    }
    for (request, tokens, source) in masked {
        assert_eq!(constrained(source, request, tokens).await, Ok(30));
    }
    for (request, tokens, source) in plain {
        answer(source, request, tokens).await.expect("the request succeeds");
    }
}

#[actix::test]
async fn a_slow_grammar_delays_no_other_request() {
    let (receiver, _sender, _) = pair(200, 3).await;
    let slow = Modular { takes: Duration::from_millis(100), ..Modular::SEVENS };
    let slow = ask_for(&receiver, 1, 6, 20, slow).await;
    let ended = Arc::new(Mutex::new(Vec::new()));
    let note = |name| {
        let ended = Arc::clone(&ended);
        move || ended.lock().expect("no panic").push(name)
    };
    let (slow_ended, plain_ended) = (note("slow"), note("plain"));
    let plain = ask(&receiver, 2, 6, 300).await;
    let slow = async {
        assert_eq!(constrained(slow, 1, 6).await, Ok(20));
        slow_ended();
    };
    let plain = async {
        answer(plain, 2, 6).await.expect("the request succeeds");
        plain_ended();
    };
    tokio::join!(slow, plain);
    assert_eq!(*ended.lock().expect("no panic"), ["plain", "slow"]);
}

#[actix::test]
async fn masks_that_take_longer_than_a_step_waits_are_used_by_a_later_step() {
    let (receiver, _sender, _) = pair(200, 3).await;
    let slow = Modular { takes: Duration::from_millis(1500), ..Modular::SEVENS };
    let source = ask_for(&receiver, 1, 6, 2, slow).await;
    assert_eq!(constrained(source, 1, 6).await, Ok(2));
}

#[actix::test]
async fn a_panic_of_the_grammar_library_fails_its_request_only() {
    let (receiver, _sender, _) = pair(200, 3).await;
    for panics_after in [0, 3] {
        let request = u64::from(panics_after);
        let bad = Modular { panics_after: Some(panics_after), ..Modular::SEVENS };
        let bad = ask_for(&receiver, request + 1, 6, 20, bad).await;
        let good = ask_for(&receiver, request + 2, 6, 20, Modular::SEVENS).await;
        let plain = ask(&receiver, request + 3, 6, 20).await;
        let error = constrained(bad, request + 1, 6).await.expect_err("it fails");
        assert!(
            matches!(&error, RequestError::Grammar(text) if text.contains("the double panics")),
            "{error}"
        );
        assert_eq!(constrained(good, request + 2, 6).await, Ok(20));
        answer(plain, request + 3, 6).await.expect("the request succeeds");
    }
    assert_eq!(receiver.counters.grammar_failures().load(Ordering::SeqCst), 2);
    assert!(receiver.streams.is_empty());
}
