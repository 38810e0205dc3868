//! Many requests and few pages: the pool has no room for all requests, and the ring has one, two or four pages.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::client::{Answer, complete, metrics};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::fixtures::prompts;
use integration_tests::process::{Nodes, Pair, start_local, until};
use serde_json::Value;

/// Bytes of a page of the test model: 16 tokens, 30 layers, keys and values of 3 heads of 64 floats.
const PAGE_BYTES: u64 = 16 * 30 * 2 * 3 * 64 * 4;
const PAGE_TOKENS: usize = 16;
const TOKENS: u32 = 8;
/// Tokens of the prompts, in the order in which they come in. The prompt of 750 tokens needs 48 pages with its answer, while the prompts
/// before it hold 41 of 56: it waits at the head of the queue. The prompt behind it waits too, although there is room for it.
const LENGTHS: [usize; 16] = [200, 10, 225, 17, 125, 750, 64, 150, 23, 175, 9, 50, 30, 41, 13, 32];
/// Room for four prompts of 200 tokens. All sixteen need 136 pages with their answers.
const POOL_PAGES: u64 = 56;
/// Pages of the longest request.
const LONGEST_PAGES: u64 = 48;

/// Prompts cut from the tokens of the fixtures. Each prompt starts at another place.
fn inputs() -> Result<Vec<Value>> {
    let tokens: Vec<u32> = prompts()?.into_iter().flat_map(|prompt| prompt.prompt_ids).collect();
    let prompt = |(n, length): (usize, &usize)| -> Vec<u32> {
        tokens.iter().copied().cycle().skip(311 * n).take(*length).collect()
    };
    Ok(LENGTHS.iter().enumerate().map(prompt).map(Value::from).collect())
}

/// An answer, and the earliest and latest time at which its first token can have come.
struct Answered {
    answer: Answer,
    first_token: (Instant, Instant),
}

/// Sends the prompts in order, each as soon as the server has taken the one before it, and waits for all answers.
fn send_all(address: &str, inputs: &[Value], ring_pages: u64) -> Result<Vec<Answered>> {
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for (n, input) in (1..).zip(inputs) {
            let sent = Instant::now();
            let client = scope.spawn(move || complete(address, input, TOKENS));
            while metrics(address)?.get("baton_requests_taken_total")? < n {
                ensure!(sent.elapsed() < STATE_WITHIN, "request {n} is not taken");
                std::thread::yield_now();
            }
            clients.push((client, sent, Instant::now()));
        }
        while clients.iter().any(|(client, ..)| !client.is_finished()) {
            let outstanding = metrics(address)?.get("baton_pages_outstanding")?;
            ensure!(
                outstanding <= ring_pages,
                "{outstanding} pages are under credits, more than {ring_pages}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let answered = |(client, sent, taken): (std::thread::ScopedJoinHandle<'_, Result<Answer>>, _, _)| {
            let answer = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            let waited =
                answer.timings["first_token_ms"].as_f64().context("the timings have no first_token_ms")?;
            let waited = Duration::from_secs_f64(waited / 1e3);
            Ok(Answered { answer, first_token: (sent + waited, taken + waited) })
        };
        clients.into_iter().map(answered).collect()
    })
}

/// Checks that no request starves. Pages are reserved in the order of arrival, and of the prompts with pages the shortest runs first. So no
/// first token waits for a longer request that arrived later.
fn check_order(answered: &[Answered]) {
    for (late, later) in answered.iter().enumerate() {
        for (early, earlier) in answered[..late].iter().enumerate() {
            let overtook = later.first_token.1 < earlier.first_token.0;
            assert!(
                !overtook || LENGTHS[late] < LENGTHS[early],
                "request {late} of {} tokens overtook request {early} of {}",
                LENGTHS[late],
                LENGTHS[early]
            );
        }
    }
}

/// Waits until a gauge has the expected value.
fn check_gauge(address: &str, name: &str, expect: u64) -> Result<()> {
    until(&format!("{name} is {expect}"), STATE_WITHIN, || Ok(metrics(address)?.get(name)? == expect))
}

/// The answers of one process with a large pool.
fn expected(inputs: &[Value]) -> Result<Vec<Vec<u32>>> {
    let (_local, alone) = start_local(&[])?;
    inputs.iter().map(|input| Ok(complete(&alone, input, TOKENS)?.ids)).collect()
}

#[test]
fn sixteen_requests_share_a_tight_pool_and_a_tiny_ring() -> Result<()> {
    let inputs = inputs()?;
    let pages = |length: usize| length.div_ceil(PAGE_TOKENS) as u64;
    let all_pages: u64 = LENGTHS.into_iter().map(pages).sum();
    assert!(all_pages > 2 * POOL_PAGES);
    let expect = expected(&inputs)?;
    // Each pair lives until all pairs have answered: an idle sender returns its credits after 5 s, and the pairs wait together.
    let mut idle = Vec::new();
    for ring_pages in [1, 2, 4] {
        let ring = format!("ring.bytes={}", ring_pages * PAGE_BYTES);
        let pool = format!("engine.kv_bytes={}", POOL_PAGES * PAGE_BYTES);
        let pair = Pair::start(&[&ring, &pool])?;
        assert_eq!(metrics(&pair.frontend)?.get("baton_pages")?, POOL_PAGES);
        let began = Instant::now();
        let answered = send_all(&pair.frontend, &inputs, ring_pages)?;
        println!("ring of {ring_pages}: {:.1} s", began.elapsed().as_secs_f64());
        for ((answered, expect), length) in answered.iter().zip(&expect).zip(LENGTHS) {
            let (ids, timings) = (&answered.answer.ids, &answered.answer.timings);
            assert_eq!(ids, expect, "{length} tokens through a ring of {ring_pages}: {timings}");
            assert_eq!(timings["disaggregated"], true, "{length} tokens: {timings}");
            assert_eq!(timings["pages"], pages(length), "{length} tokens: {timings}");
        }
        check_order(&answered);
        idle.push(pair);
    }
    for pair in idle {
        let (receiver, sender) = (&*pair.frontend, &*pair.sender.address("http.port")?);
        // An idle sender holds no credits.
        let gauges = [
            "baton_pages_reserved",
            "baton_pages_live",
            "baton_pages_quarantined",
            "baton_pages_outstanding",
        ];
        for name in gauges {
            check_gauge(receiver, name, 0)?;
        }
        check_gauge(sender, "baton_pages_live", 0)?;
        check_gauge(sender, "baton_prefills_live", 0)?;
        assert_eq!(metrics(receiver)?.get("baton_pages_adopted_total")?, all_pages);
        assert_eq!(metrics(receiver)?.get("baton_recomputes_total")?, 0);
        assert_eq!(metrics(receiver)?.get("baton_page_hash_mismatches_total")?, 0);
    }
    Ok(())
}

/// Both nodes have the requests of the pair at the same time, as many pages for them, and a quota for one of the longest prompts of the other.
/// A prompt that finds no room at the peer is computed where it is decoded.
#[test]
fn two_nodes_with_tight_pools_do_not_wait_for_each_other() -> Result<()> {
    let inputs = inputs()?;
    let expect = expected(&inputs)?;
    for ring_pages in [1, 4] {
        let ring = format!("ring.bytes={}", ring_pages * PAGE_BYTES);
        let pages = POOL_PAGES + LONGEST_PAGES;
        let pool = format!("engine.kv_bytes={}", pages * PAGE_BYTES);
        let context = format!("request.context_tokens={}", LONGEST_PAGES * PAGE_TOKENS as u64);
        let nodes = Nodes::start(&[&ring, &pool, &context])?;
        let answers = std::thread::scope(|scope| {
            let inputs = &inputs;
            let loads = (nodes.frontends.each_ref())
                .map(|address| scope.spawn(move || send_all(address, inputs, ring_pages)));
            loads.map(|load| load.join().expect("the thread did not panic"))
        });
        for (answers, frontend) in answers.into_iter().zip(&nodes.frontends) {
            let (mut by_peer, mut adopted) = (0, 0);
            for ((answered, expect), length) in answers?.iter().zip(&expect).zip(LENGTHS) {
                let (ids, timings) = (&answered.answer.ids, &answered.answer.timings);
                assert_eq!(ids, expect, "{length} tokens through a ring of {ring_pages}: {timings}");
                let handed_over = timings["disaggregated"] == true;
                by_peer += usize::from(handed_over);
                adopted += if handed_over { timings["pages"].as_u64().unwrap_or_default() } else { 0 };
            }
            println!(
                "ring of {ring_pages}: the peer of {frontend} prefilled {by_peer} of {} prompts",
                LENGTHS.len()
            );
            assert!(by_peer > 0, "the peer of {frontend} prefilled no prompt");
            assert!(metrics(frontend)?.get("baton_pages_adopted_total")? >= adopted);
            assert_eq!(metrics(frontend)?.get("baton_page_hash_mismatches_total")?, 0);
            let gauges = [
                "baton_pages_reserved",
                "baton_pages_live",
                "baton_pages_quarantined",
                "baton_pages_outstanding",
                "baton_prefills_live",
            ];
            for name in gauges {
                check_gauge(frontend, name, 0)?;
            }
        }
    }
    Ok(())
}
