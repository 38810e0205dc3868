//! `cargo xtask demo`: starts a receiver and a sender, asks one question, and shows where its time went. With `--fleet` it starts a whole
//! fleet and kills one process of it.

mod child;
mod client;
mod fleet;
mod group;
mod options;
mod pair;
mod screen;
mod sse;
mod timeline;

use std::path::PathBuf;
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
/// A step fails, the answer is empty, or one process computed all of it. For a fleet: see [`fleet::run`].
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.fleet { fleet::run(options) } else { run_pair(options) }
}

/// Fetches what the runtime needs, builds it unless the options name one, and returns its path.
fn prepare(options: &Options) -> Result<PathBuf> {
    fetch::run([fetch::UCX, fetch::MODEL])?;
    match &options.runtime {
        Some(path) => Ok(path.clone()),
        None => {
            let [runtime] = binary::build([binary::RUNTIME], &[])?;
            Ok(runtime)
        }
    }
}

fn run_pair(options: &Options) -> Result<()> {
    let ports = options.ports()?;
    ports.require_free()?;
    let runtime = prepare(options)?;
    let screen = Screen::new();
    screen.print_line(&format!("starting a receiver and a sender from {}", runtime.display()));
    let start = Instant::now();
    let mut pair = Pair::launch(&runtime, ports, &screen)?;
    pair.wait_until_ready()?;
    screen.print_line(&format!("both processes are ready after {:.1} s\n", start.elapsed().as_secs_f64()));

    let answer = ask(&mut pair, &screen, ports)?;
    let timeline = Timeline::from_json(answer.timings.as_ref())?;
    screen.print_line(&format!("\n{timeline}\n"));
    let verdict = judge(&answer, &timeline, pair.pids()?);
    if options.once || verdict.is_err() {
        return verdict.and(pair.group.stop());
    }
    screen.print_line(&format!("{}\n\nserving until Ctrl-C", curl_line(ports.frontend)));
    pair.group.serve()
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
    screen.print_line(&format!("> {QUESTION}\n"));
    let answer = {
        let line = screen.hold_logs();
        client::chat(ports.frontend, &body(), |text| line.print(text))
    };
    if answer.is_err() {
        // If a process has ended or Ctrl-C was pressed, that is the error to report, not the broken stream.
        pair.group.explain()?;
    }
    answer
}

/// Checks that the answer has text, that one process prefilled it, and that the other one decoded it.
fn judge(answer: &Answer, timeline: &Timeline, (receiver, sender): (u32, u32)) -> Result<()> {
    ensure!(!answer.text.trim().is_empty(), "the answer is empty");
    ensure!(
        timeline.disaggregated,
        "the request was not disaggregated: one process prefilled and decoded it"
    );
    let (prefill, decode) = (timeline.prefill_pid, timeline.decode_pid);
    if prefill == decode {
        bail!("process {prefill} reports that it prefilled and decoded");
    }
    ensure!(
        (prefill, decode) == (sender.into(), receiver.into()),
        "process {prefill} prefilled and process {decode} decoded, but the sender ({sender}) must prefill and the receiver ({receiver}) must decode"
    );
    Ok(())
}

fn curl_line(port: u16) -> String {
    format!(
        "Send a request of your own from another terminal:\n\n  \
         curl -N http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Name three rivers.\"}}], \"max_tokens\": 64, \"stream\": true}}'"
    )
}

#[cfg(test)]
mod tests;
