//! Requests for the log probabilities of their prompts. `answer` checks them.

use super::*;

async fn run(node: &Node, request: u64, tokens: u32, route: Route) -> Timings {
    let generate = Generate { prompt_logprobs: Some(1), route, ..generate(request, tokens, 9) };
    let mut events = send(node, generate).await;
    let first = tokio::time::timeout(PATIENCE, events.recv()).await.expect("in time").expect("an event");
    assert_eq!(first, StreamEvent::Prompt(scores(&prompt(request, tokens))));
    answer(events, request, tokens).await.expect("the request succeeds")
}

#[actix::test]
async fn all_tokens_but_the_first_are_scored_here_and_by_a_sender() {
    let (receiver, sender, _) = pair(64, 3).await;
    for (request, tokens) in [1, 2, 3, 9, 33, 100].into_iter().enumerate() {
        // The second time, the prompt is in the prefix cache of the process.
        for _ in 0..2 {
            let timings = run(&receiver, request as u64, tokens, Route::Auto).await;
            assert!(timings.disaggregated && timings.cached_tokens == 0, "{timings:?}");
            let timings = run(&receiver, request as u64, tokens, Route::Local).await;
            assert!(!timings.disaggregated && timings.cached_tokens == 0, "{timings:?}");
        }
    }
    sender.shut_down(PATIENCE).await;
    receiver.shut_down(PATIENCE).await;
}
