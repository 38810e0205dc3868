//! A proxy in front of two nodes.

use anyhow::{Context, Result, ensure};
use integration_tests::client::{ask_all, complete, get, metrics, post};
use integration_tests::process::{Nodes, start_proxy};
use serde_json::{Value, json};

/// A prompt of token ids that shares no page with a prompt of another number.
fn prompt(number: u32) -> Value {
    json!((0..96).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<u32>>())
}

#[test]
fn a_proxy_gives_the_answers_of_its_nodes_and_survives_the_loss_of_one() -> Result<()> {
    let Nodes { nodes: [mut first, second], .. } = Nodes::start(&["engine.prefix_cache=true"])?;
    let ports = [first.address("http.port")?, second.address("http.port")?];
    let proxy = start_proxy(&ports, &[])?;
    let address = proxy.address("frontend.port")?;
    proxy.until("both nodes report", || Ok(get(&address, "/health")?.1["nodes_ready"] == 2))?;
    assert_eq!(get(&address, "/v1/models")?.1["data"].as_array().map(Vec::len), Some(1));

    let prompts: Vec<Value> = (0..24).map(prompt).collect();
    let answers = ask_all(&prompts, 8, |prompt| complete(&address, prompt, 6))?;
    let pids = |name: &str| -> Result<std::collections::BTreeSet<u64>> {
        answers.iter().map(|answer| answer.timings[name].as_u64().context("no pid")).collect()
    };
    assert_eq!(pids("decode_pid")?.len(), 2, "both nodes answer");

    // A continuation goes to a node that has the beginning: the one that prefilled it or the one that decoded it.
    for (turn, answer) in answers.iter().enumerate().take(6) {
        let longer: Vec<u32> = answer.prompt_ids.iter().chain(&answer.ids).copied().chain(5..40).collect();
        let next = complete(&address, &json!(longer), 4)?;
        let cached = next.timings["cached_tokens"].as_u64().context("no cached_tokens")?;
        assert!(cached >= 80, "conversation {turn}: {cached} of {} tokens were cached", longer.len());
    }
    // The nodes' caches have nothing that the proxy does not know, until now.
    let expect = ask_all(&prompts, 4, |prompt| complete(&ports[1], prompt, 6))?;
    for (answer, expect) in answers.iter().zip(&expect) {
        ensure!(answer.ids == expect.ids, "{:?} instead of {:?}", answer.ids, expect.ids);
    }
    // The node's own words: the proxy passes its errors on.
    let (status, error) = post(&address, "/v1/completions", &json!({ "prompt": "a", "temperature": -1 }))?;
    assert_eq!(status, 400, "{error}");
    assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains("temperature")), "{error}");
    let (status, _) = post(&address, "/v1/completions", &json!({ "prompt": "a", "model": "other" }))?;
    assert_eq!(status, 404);

    // A node is killed: the requests that come then are all answered by the other one.
    first.signal("-KILL")?;
    first.wait()?;
    let after = ask_all(&prompts, 8, |prompt| complete(&address, prompt, 6))?;
    for (answer, expect) in after.iter().zip(&expect) {
        ensure!(answer.ids == expect.ids, "{:?} instead of {:?}", answer.ids, expect.ids);
        ensure!(answer.timings["decode_pid"] == u64::from(second.pid()), "{:?}", answer.timings);
    }
    assert_eq!(metrics(&address)?.get("baton_proxy_requests_live")?, 0);
    Ok(())
}
