//! Kills at random moments, with eight requests in flight, and a table of how long recovery took.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example kills -- [ROUNDS] [SEED]
//! ```
//! Every answer with status 200 must have the right tokens; every request must end; afterwards every page is back, the
//! survivor is the process that it was, and the next request is handed over again. Anything else ends the program with
//! an error.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::client::{complete, get_text};
use integration_tests::fixtures::{Prompt, prompts};
use integration_tests::process::{PATIENCE, Process, start_receiver, start_sender};

const IN_FLIGHT: usize = 8;
const TOKENS: u32 = 32;

/// What happens to whom.
#[derive(Clone, Copy, Debug)]
enum Kill {
    Sender,
    Receiver,
    SenderStops,
    ClientsGo,
}

struct Bench {
    prompts: Vec<Prompt>,
    receiver: Process,
    sender: Process,
    frontend: String,
    link: String,
    random: u64,
}

/// What the requests of a round came to.
#[derive(Default)]
struct Round {
    right: usize,
    failed: usize,
    /// From the kill to the last request's end, and to the pair being whole again.
    settled: Duration,
    whole: Duration,
}

impl Bench {
    fn start(seed: u64) -> Result<Self> {
        let mut prompts = prompts()?;
        // Of all lengths up to 130 tokens, and firm to the end.
        prompts.retain(|prompt| prompt.near_ties.is_empty() && prompt.prompt_ids.len() <= 130);
        // Below the ports that the kernel gives to connections, so that it is free again after a kill.
        let free = (21_000..29_000u16).rev().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        let link = format!("link.port={}", free.context("a free port")?);
        let receiver = start_receiver(&["request.deadline=60s", &link])?;
        let sender = start_sender(&receiver, &[])?;
        receiver.wait_line(&["sender ready"])?;
        let frontend = receiver.address("frontend.port")?;
        Ok(Self { prompts, receiver, sender, frontend, link, random: seed })
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    fn round(&mut self, kill: Kill) -> Result<Round> {
        let chosen: Vec<Prompt> = (0..IN_FLIGHT)
            .map(|_| {
                let n = self.random(self.prompts.len() as u64) as usize;
                self.prompts[n].clone()
            })
            .collect();
        let delay = Duration::from_millis(self.random(1500));
        let address = self.frontend.clone();
        if let Kill::ClientsGo = kill {
            let sockets: Vec<TcpStream> =
                chosen.iter().map(|prompt| ask_and_hold(&address, prompt)).collect::<Result<_>>()?;
            std::thread::sleep(delay);
            let gone = Instant::now();
            drop(sockets);
            self.until_whole()?;
            return Ok(Round { whole: gone.elapsed(), failed: IN_FLIGHT, ..Round::default() });
        }
        let clients: Vec<_> = chosen
            .into_iter()
            .map(|prompt| {
                let address = address.clone();
                std::thread::spawn(move || (complete(&address, &prompt.input(), TOKENS), prompt))
            })
            .collect();
        std::thread::sleep(delay);
        let killed = Instant::now();
        match kill {
            Kill::Sender => self.sender.signal("-KILL")?,
            Kill::Receiver => self.receiver.signal("-KILL")?,
            Kill::SenderStops => self.sender.signal("-STOP")?,
            Kill::ClientsGo => {}
        }
        let mut round = Round::default();
        for client in clients {
            let (answer, prompt) = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            match answer {
                Ok(answer) => {
                    ensure!(answer.ids == prompt.ids, "{}: wrong words with status 200", prompt.name);
                    round.right += 1;
                }
                Err(_) => round.failed += 1,
            }
        }
        round.settled = killed.elapsed();
        match kill {
            Kill::Sender => self.sender = start_sender(&self.receiver, &[])?,
            Kill::Receiver => {
                // Its ports are free when it is gone, which is a little after the kill.
                self.receiver.wait()?;
                let same = ["request.deadline=60s", &self.link];
                self.receiver = start_receiver(&same)?;
                self.frontend = self.receiver.address("frontend.port")?;
            }
            Kill::SenderStops => self.sender.signal("-CONT")?,
            Kill::ClientsGo => {}
        }
        self.until_whole()?;
        round.whole = killed.elapsed();
        Ok(round)
    }

    /// Waits until the next request is handed over, and every page is back.
    fn until_whole(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let prompt = &self.prompts[0];
        loop {
            let answer = complete(&self.frontend, &prompt.input(), 2)?;
            if answer.timings["disaggregated"] == true {
                ensure!(
                    answer.timings["prefill_pid"] == self.sender.pid(),
                    "another sender: {}",
                    answer.timings
                );
                break;
            }
            ensure!(
                Instant::now() < end,
                "no hand-over any more; the receiver said:\n{}",
                self.receiver.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        for name in ["baton_pages_reserved", "baton_pages_live", "baton_pages_quarantined"] {
            while metric(&self.frontend, name)? != 0 {
                ensure!(Instant::now() < end, "{name} does not go back to 0");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// Asks for a long stream, and reads nothing of it.
fn ask_and_hold(address: &str, prompt: &Prompt) -> Result<TcpStream> {
    let body = serde_json::json!({
        "prompt": prompt.prompt_ids, "max_tokens": 200, "ignore_eos": true, "stream": true,
    })
    .to_string();
    let mut socket = TcpStream::connect(address)?;
    write!(
        socket,
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(socket)
}

fn metric(address: &str, name: &str) -> Result<u64> {
    let text = get_text(address, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("{name} in {text}"))?.parse()?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(Ok(10), |text| text.parse()).context("rounds")?;
    let seed: u64 = arguments.next().map_or(Ok(1), |text| text.parse()).context("seed")?;
    let mut bench = Bench::start(seed)?;
    println!("{rounds} rounds each, {IN_FLIGHT} requests of {TOKENS} tokens in flight, seed {seed}");
    println!(
        "{:<14} {:>6} {:>7} {:>22} {:>22}",
        "", "right", "failed", "settled ms med / max", "whole ms med / max"
    );
    for kill in [Kill::Sender, Kill::Receiver, Kill::SenderStops, Kill::ClientsGo] {
        let results: Vec<Round> = (0..rounds).map(|_| bench.round(kill)).collect::<Result<_>>()?;
        let spread = |of: fn(&Round) -> Duration| {
            let mut times: Vec<u128> = results.iter().map(|round| of(round).as_millis()).collect();
            times.sort_unstable();
            format!("{} / {}", times[times.len() / 2], times[times.len() - 1])
        };
        println!(
            "{:<14} {:>6} {:>7} {:>22} {:>22}",
            format!("{kill:?}"),
            results.iter().map(|round| round.right).sum::<usize>(),
            results.iter().map(|round| round.failed).sum::<usize>(),
            spread(|round| round.settled),
            spread(|round| round.whole)
        );
    }
    Ok(())
}
