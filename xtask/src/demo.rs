//! `cargo xtask demo`: two processes, one question, and where its time went.

mod child;
mod client;
mod options;
mod pair;
mod screen;
mod sse;
mod timeline;

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::{binary, fetch};
use client::Answer;
pub(crate) use options::Options;
use options::Ports;
use pair::Pair;
use screen::Screen;
use timeline::Timeline;

const QUESTION: &str = "What is the capital of France, and why is it famous?";

/// Runs the demo.
///
/// # Errors
/// Whatever went wrong, and also an answer that was empty or came out of one process only.
pub(crate) fn run(options: &Options) -> Result<()> {
    let ports = options.ports()?;
    ports.require_free()?;
    fetch::run([fetch::UCX, fetch::MODEL])?;
    let runtime = match &options.runtime {
        Some(path) => path.clone(),
        None => {
            let [runtime] = binary::build([binary::RUNTIME], &[])?;
            runtime
        }
    };
    let screen = Screen::new();
    screen.say(&format!("starting two processes of {}", runtime.display()));
    let start = Instant::now();
    let mut pair = Pair::launch(&runtime, ports, &screen)?;
    pair.wait_until_ready()?;
    screen.say(&format!("both are ready after {:.1} s\n", start.elapsed().as_secs_f64()));

    let answer = ask(&mut pair, &screen, ports)?;
    let timeline = Timeline::from_json(answer.timings.as_ref())?;
    screen.say(&format!("\n{timeline}\n"));
    let verdict = judge(&answer, &timeline, pair.pids());
    if options.once || verdict.is_err() {
        return verdict.and(pair.stop());
    }
    screen.say(&format!("{}\n\nserving until Ctrl-C", curl_line(ports)));
    pair.serve()
}

fn body() -> Value {
    json!({
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 128,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
        "return_timings": true,
    })
}

fn ask(pair: &mut Pair, screen: &Screen, ports: Ports) -> Result<Answer> {
    screen.say(&format!("> {QUESTION}\n"));
    let answer = {
        let line = screen.hold_logs();
        client::chat(ports.frontend, &body(), |text| line.print(text))
    };
    if answer.is_err() {
        // A process that died, or a Ctrl-C, explains a broken stream better than the stream does.
        pair.explain()?;
    }
    answer
}

/// Whether this is what the demo is there to show.
fn judge(answer: &Answer, timeline: &Timeline, (receiver, sender): (u32, u32)) -> Result<()> {
    ensure!(!answer.text.trim().is_empty(), "the answer is empty");
    ensure!(timeline.disaggregated, "the request was not disaggregated: one process did all of it");
    let (prefill, decode) = (timeline.prefill_pid, timeline.decode_pid);
    if prefill == decode {
        bail!("process {prefill} claims both the prefill and the decoding");
    }
    ensure!(
        (prefill, decode) == (sender.into(), receiver.into()),
        "processes {prefill} and {decode} claim prefill and decoding, but sender and receiver are {sender} and {receiver}"
    );
    Ok(())
}

fn curl_line(ports: Ports) -> String {
    format!(
        "Ask it yourself, from another terminal:\n\n  \
         curl -N http://127.0.0.1:{}/v1/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Name three rivers.\"}}], \"max_tokens\": 64, \"stream\": true}}'",
        ports.frontend
    )
}

#[cfg(test)]
mod tests;
