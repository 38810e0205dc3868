//! Rounds in which a part of a pair, or of two nodes, dies at a random time, for `examples/kills.rs` and `tests/kills.rs`.
//!
//! A round sends requests, causes one kind of death, observes the surviving processes, repairs the pair, and waits until it is whole again.
//! An outcome that is not allowed is an error. The result of a round is how long each phase took.

mod clients;
mod parts;
mod proxy;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connector::link::SILENCE;

use crate::deadline::STATE_WITHIN;
use crate::fixtures::{Prompt, prompts};
use crate::process::until;
use clients::{Leaving, Waiting};
use parts::Parts;

/// A kind of death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The sender is killed, and another one is started.
    Sender,
    /// The receiver is killed, and another one is started.
    Receiver,
    /// All clients disconnect after their first token.
    ClientsMidStream,
    /// All clients disconnect while their prompts of several hundred tokens are computed.
    ClientsMidPrefill,
    /// The sender is stopped and continued later.
    SenderStops,
    /// The control link is closed and cannot be opened again for a while.
    LinkCloses,
    /// The control link stays open and carries nothing for longer than the allowed silence.
    LinkStalls,
}

impl Kill {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Sender,
        Self::Receiver,
        Self::ClientsMidStream,
        Self::ClientsMidPrefill,
        Self::SenderStops,
        Self::LinkCloses,
        Self::LinkStalls,
    ];

    /// True if only silence reveals this death.
    fn is_silent(self) -> bool {
        matches!(self, Self::SenderStops | Self::LinkStalls)
    }

    fn is_of_clients(self) -> bool {
        matches!(self, Self::ClientsMidStream | Self::ClientsMidPrefill)
    }
}

/// The roles of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    /// A receiver and a sender.
    Pair,
    /// Two nodes that prefill for each other. The first is called the receiver, the second the sender. Both decode, and in rounds in which a
    /// part dies, both have clients.
    Nodes,
}

/// The load of a round and its limits.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Requests in flight at the time of the death; for nodes: at each.
    pub in_flight: usize,
    /// Maximum time from the moment when a death can be noticed until nothing waits for the dead process.
    pub accounted: Duration,
    /// Minimum time for which a sender stays stopped.
    pub stop: Duration,
}

/// The result of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// Answers with status 200 and the right tokens.
    pub correct: usize,
    /// Requests that failed because their process was killed.
    pub failed: usize,
    /// Requests whose clients disconnected.
    pub left: usize,
    /// Prompts that the receiver recomputed.
    pub recomputed: u64,
    /// Time until nothing waits for the dead part. If the sender or link died, the receiver has no session and no page reserved for a hand-over.
    /// If the receiver died, every client has an error. If clients disconnected, the receiver holds no page for them.
    pub accounted: Duration,
    /// Time until a surviving sender has no prefill and holds no page. Its engine has then finished its step. A node has then also answered its
    /// clients.
    pub cleared: Option<Duration>,
    /// Time until the last request has ended; `None` if all clients disconnected.
    pub settled: Option<Duration>,
    /// Time from the start of the repair until a request was handed over and every page and credit was free. The repair includes the start of a
    /// process.
    pub whole: Duration,
}

impl Round {
    /// Waits for the end of a request and counts it. `killed` says whether the process that it was sent to was killed.
    fn count(&mut self, client: Waiting, killed: bool) -> Result<()> {
        match client.end()? {
            Ok(()) => self.correct += 1,
            Err(_) if killed => self.failed += 1,
            Err(error) => return Err(error.context("a request failed although its process lives")),
        }
        Ok(())
    }
}

/// Two processes and their test load.
pub struct Bench {
    parts: Parts,
    /// Prompts whose answers have no near tie.
    short: Vec<Prompt>,
    long: Vec<Prompt>,
    terms: Terms,
    random: u64,
    /// Clients of the sender, if it is a node. If it is stopped, they are answered after the repair.
    of_sender: Vec<Waiting>,
}

impl Bench {
    /// Starts both processes. `lanes` sets `UCX_TLS`, the transports that carry pages. The same seed gives the same rounds up to their timing.
    ///
    /// # Errors
    /// A process does not start or does not become ready.
    pub fn start(roles: Roles, seed: u64, lanes: Option<&str>, terms: Terms) -> Result<Self> {
        let mut short = prompts()?;
        short.retain(|prompt| prompt.near_ties.is_empty());
        let mut long = short.clone();
        short.retain(|prompt| prompt.prompt_ids.len() <= 130);
        long.retain(|prompt| prompt.prompt_ids.len() >= 300);
        ensure!(!short.is_empty() && !long.is_empty(), "the fixture lacks short or long prompts");
        let parts = Parts::start(roles, lanes)?;
        parts.until_whole(&short[0])?;
        Ok(Self { parts, short, long, terms, random: seed, of_sender: Vec::new() })
    }

    /// The logs and metrics of both processes, to explain a failed round.
    pub fn report(&self) -> String {
        self.parts.report()
    }

    /// Runs one round.
    ///
    /// # Errors
    /// The outcome is not allowed.
    pub fn round(&mut self, kill: Kill) -> Result<Round> {
        let mut round = if kill.is_of_clients() { self.leave(kill)? } else { self.inject(kill)? };
        let began = Instant::now();
        self.parts.repair(kill)?;
        for client in std::mem::take(&mut self.of_sender) {
            round.count(client, kill == Kill::Sender)?;
        }
        self.parts.until_whole(&self.short[0])?;
        round.whole = began.elapsed();
        Ok(round)
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    fn choose(&mut self, from: fn(&Self) -> &[Prompt]) -> Vec<Prompt> {
        let choice = from(self).len() as u64;
        let chosen: Vec<_> = (0..self.terms.in_flight).map(|_| self.random(choice) as usize).collect();
        chosen.into_iter().map(|n| from(self)[n].clone()).collect()
    }

    /// A part dies while clients wait for answers.
    fn inject(&mut self, kill: Kill) -> Result<Round> {
        let name = "baton_recomputes_total";
        let before = self.parts.receiver_metrics()?.get(name)?;
        let prompts = self.choose(|bench| &bench.short);
        let address = self.parts.frontend();
        let clients: Vec<_> = prompts.into_iter().map(|prompt| Waiting::ask(address, prompt)).collect();
        if let Some(address) = self.parts.frontend_of_sender()? {
            let prompts = self.choose(|bench| &bench.short);
            self.of_sender = prompts.into_iter().map(|prompt| Waiting::ask(&address, prompt)).collect();
        }
        let delay = Duration::from_millis(self.random(1500));
        std::thread::sleep(delay);
        let began = Instant::now();
        self.parts.inject(kill)?;
        let mut round = Round::default();
        if kill != Kill::Receiver {
            (round.accounted, round.cleared) = (self.accounted(kill, began)?, self.cleared(kill, began)?);
        }
        for client in clients {
            round.count(client, kill == Kill::Receiver)?;
        }
        round.settled = Some(began.elapsed());
        if kill == Kill::Receiver {
            (round.accounted, round.cleared) = (self.accounted(kill, began)?, self.cleared(kill, began)?);
        } else {
            round.recomputed = self.parts.receiver_metrics()?.get(name)? - before;
            self.parts.check_quarantine_health()?;
        }
        if kill == Kill::SenderStops {
            std::thread::sleep(self.terms.stop.saturating_sub(began.elapsed()));
        }
        Ok(round)
    }

    /// All clients disconnect.
    fn leave(&mut self, kill: Kill) -> Result<Round> {
        let before = self.parts.receiver_metrics()?;
        let long = kill == Kill::ClientsMidPrefill;
        let prompts = self.choose(if long { |bench| &bench.long } else { |bench| &bench.short });
        let address = self.parts.frontend().to_owned();
        let mut clients = Vec::new();
        for prompt in prompts {
            let mut ids = prompt.prompt_ids;
            // The tokens are not compared, and the prompt must not have been computed before.
            ids[0] = 1000 + self.random(40_000) as u32;
            clients.push(Leaving::ask(&address, &ids, if long { 200 } else { 600 })?);
        }
        if long {
            let all = || Ok(self.parts.prefills_live()? == self.terms.in_flight as u64);
            until("the sender has all prompts", STATE_WITHIN, all)?;
        } else {
            clients.iter_mut().try_for_each(Leaving::read_a_token)?;
        }
        let delay = Duration::from_millis(self.random(300));
        std::thread::sleep(delay);
        if long {
            let untouched = clients.iter().map(Leaving::has_nothing).collect::<Result<Vec<_>>>()?;
            let computing = untouched.contains(&true) && self.parts.prefills_live()? > 0;
            ensure!(computing, "all prompts were computed before their clients disconnected");
        }
        let gone = Instant::now();
        drop(clients);
        let (accounted, cleared) = (self.accounted(kill, gone)?, self.cleared(kill, gone)?);
        let after = self.parts.receiver_metrics()?;
        let more = |name| Ok::<_, anyhow::Error>(after.get(name)? - before.get(name)?);
        let (cut, over) = (more("baton_requests_aborted_total")?, more("baton_requests_finished_total")?);
        // On a busy machine the first stream may end before the last one starts.
        let all = cut > 0 && cut + over == self.terms.in_flight as u64;
        ensure!(
            all,
            "{cut} requests were aborted and {over} finished, not {} in total",
            self.terms.in_flight
        );
        Ok(Round { left: self.terms.in_flight, accounted, cleared, ..Round::default() })
    }

    /// Waits until nothing at the receiver waits for the dead part: see [`Round::accounted`]. If the receiver died, its clients have noticed.
    fn accounted(&self, kill: Kill, since: Instant) -> Result<Duration> {
        let names: &[&str] = match kill {
            Kill::Receiver => &[],
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => &["baton_pages_live", "baton_pages_reserved"],
            Kill::Sender | Kill::SenderStops | Kill::LinkCloses | Kill::LinkStalls => {
                &["baton_sessions_ready", "baton_pages_reserved"]
            }
        };
        if !names.is_empty() {
            let nothing = || self.parts.receiver_metrics()?.are_all_zero(names);
            until("nothing waits for the dead part", STATE_WITHIN, nothing)?;
        }
        let (accounted, silence) = (since.elapsed(), if kill.is_silent() { SILENCE } else { Duration::ZERO });
        let limit = silence + self.terms.accounted;
        ensure!(
            accounted <= limit,
            "requests waited for the dead part for {accounted:?}; the limit is {limit:?}"
        );
        Ok(accounted)
    }

    /// Waits until a surviving sender has nothing left of the requests: see [`Round::cleared`].
    fn cleared(&self, kill: Kill, since: Instant) -> Result<Option<Duration>> {
        let names: &[&str] = match kill {
            Kill::Sender | Kill::SenderStops => return Ok(None),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => &["baton_prefills_live", "baton_pages_live"],
            Kill::Receiver | Kill::LinkCloses | Kill::LinkStalls => {
                &["baton_sessions_ready", "baton_prefills_live", "baton_pages_live"]
            }
        };
        let nothing = || self.parts.sender_metrics()?.are_all_zero(names);
        until("the sender has no prefill and no page", STATE_WITHIN, nothing)?;
        Ok(Some(since.elapsed()))
    }
}
