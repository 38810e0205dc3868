//! What becomes of a pair when its parts die at random moments: one round at a time, for `examples/kills.rs` and
//! `tests/kills.rs`.
//!
//! A round asks for some answers, lets something happen, watches what the survivors do about it, mends it, and waits until
//! the pair is whole. Every outcome that is not allowed is an error; how long the allowed ones took is the result.

mod clients;
mod parts;
mod proxy;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connector::link::SILENCE;

use crate::client::Metrics;
use crate::fixtures::{Prompt, prompts};
use crate::process::PATIENCE;
use clients::{Leaving, Waiting};
use parts::{Parts, until};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The sender is killed, and another one started.
    Sender,
    /// The receiver is killed, and another one started.
    Receiver,
    /// All clients leave after their first token.
    ClientsMidStream,
    /// All clients leave while their prompts of several hundred tokens are computed.
    ClientsMidPrefill,
    /// The sender is stopped, and goes on later.
    SenderStops,
    /// The control link is closed in the middle, and cannot be made again for a while.
    LinkCloses,
    /// The control link carries nothing any more and nobody is told, for longer than silence may last.
    LinkStalls,
}

impl Kill {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Sender,
        Self::Receiver,
        Self::ClientsMidStream,
        Self::ClientsMidPrefill,
        Self::SenderStops,
        Self::LinkCloses,
        Self::LinkStalls,
    ];

    /// Nobody is told: only silence gives it away.
    fn is_silent(self) -> bool {
        matches!(self, Self::SenderStops | Self::LinkStalls)
    }

    fn is_of_clients(self) -> bool {
        matches!(self, Self::ClientsMidStream | Self::ClientsMidPrefill)
    }
}

/// How much is at stake, and how long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Requests in flight when it happens.
    pub in_flight: usize,
    /// From the moment at which a death can be known to the moment at which nothing waits for the dead any more.
    pub accounted: Duration,
    /// How long a stopped sender stays so, at least.
    pub stop: Duration,
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// Answers with status 200; their words are right.
    pub right: usize,
    /// Requests that failed with the process that had them.
    pub failed: usize,
    /// Requests whose clients left.
    pub left: usize,
    /// Prompts that were computed again by the receiver.
    pub again: u64,
    /// From the kill until no survivor has a session with the dead, or anything that waits for it: no page of the receiver is
    /// promised to a hand-over, no prefill of the sender is live, and no page of its pool in use. Where the receiver died, also
    /// until every client has heard.
    pub accounted: Duration,
    /// From the kill to the end of the last request that a client waits for; nothing where all clients left.
    pub settled: Option<Duration>,
    /// From the mending (of what a kill has ended, the start of another process included) until a request was handed over
    /// again and every page and credit was back.
    pub whole: Duration,
}

/// A pair, and what is done to it.
pub struct Bench {
    parts: Parts,
    /// With answers that no rounding decides.
    short: Vec<Prompt>,
    long: Vec<Prompt>,
    terms: Terms,
    random: u64,
}

impl Bench {
    /// Starts a pair; pages travel over `lanes` (`UCX_TLS`) where that is given. The same seed gives the same rounds, as far as
    /// their timing can be repeated.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(seed: u64, lanes: Option<&str>, terms: Terms) -> Result<Self> {
        let mut short = prompts()?;
        short.retain(|prompt| prompt.near_ties.is_empty());
        let mut long = short.clone();
        short.retain(|prompt| prompt.prompt_ids.len() <= 130);
        long.retain(|prompt| prompt.prompt_ids.len() >= 300);
        ensure!(!short.is_empty() && !long.is_empty(), "the fixture has prompts of both lengths");
        let parts = Parts::start(lanes)?;
        parts.until_whole(&short[0])?;
        Ok(Self { parts, short, long, terms, random: seed })
    }

    /// What both processes have logged and count, for whoever has to find out why a round failed.
    pub fn report(&self) -> String {
        self.parts.report()
    }

    /// Lets it happen once.
    ///
    /// # Errors
    /// An outcome that is not allowed.
    pub fn round(&mut self, kill: Kill) -> Result<Round> {
        let mut round = if kill.is_of_clients() { self.leave(kill)? } else { self.strike(kill)? };
        let mending = Instant::now();
        self.parts.mend(kill)?;
        self.parts.until_whole(&self.short[0])?;
        round.whole = mending.elapsed();
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

    /// Something dies while clients wait for their answers.
    fn strike(&mut self, kill: Kill) -> Result<Round> {
        let again = "baton_recomputes_total";
        let before = self.parts.receiver_metrics()?.get(again)?;
        let prompts = self.choose(|bench| &bench.short);
        let address = self.parts.frontend();
        let clients: Vec<_> = prompts.into_iter().map(|prompt| Waiting::ask(address, prompt)).collect();
        let delay = Duration::from_millis(self.random(1500));
        std::thread::sleep(delay);
        let struck = Instant::now();
        self.parts.strike(kill)?;
        let mut round = Round { accounted: self.accounted(kill, struck)?, ..Round::default() };
        for client in clients {
            match client.end()? {
                Ok(()) => round.right += 1,
                Err(_) if kill == Kill::Receiver => round.failed += 1,
                Err(error) => return Err(error.context("a request failed whose receiver lives")),
            }
        }
        round.settled = Some(struck.elapsed());
        if kill == Kill::Receiver {
            round.accounted = struck.elapsed();
            ensure!(round.accounted <= self.terms.accounted, "clients heard after {:?}", round.accounted);
        } else {
            round.again = self.parts.receiver_metrics()?.get(again)? - before;
            self.parts.quarantine_is_said()?;
        }
        if kill == Kill::SenderStops {
            std::thread::sleep(self.terms.stop.saturating_sub(struck.elapsed()));
        }
        Ok(round)
    }

    /// Clients go away.
    fn leave(&mut self, kill: Kill) -> Result<Round> {
        let before = self.parts.receiver_metrics()?;
        let long = kill == Kill::ClientsMidPrefill;
        let prompts = self.choose(if long { |bench| &bench.long } else { |bench| &bench.short });
        let address = self.parts.frontend();
        let mut clients: Vec<_> = prompts
            .iter()
            .map(|prompt| Leaving::ask(address, &prompt.prompt_ids, if long { 200 } else { 600 }))
            .collect::<Result<_>>()?;
        if long {
            let all = || Ok(self.parts.prefills_live()? == self.terms.in_flight as u64);
            until("all prompts are with the sender", PATIENCE, all)?;
        } else {
            clients.iter_mut().try_for_each(Leaving::read_a_token)?;
        }
        let delay = Duration::from_millis(self.random(300));
        std::thread::sleep(delay);
        if long {
            let untouched = clients.iter().map(Leaving::has_nothing).collect::<Result<Vec<_>>>()?;
            let computing = untouched.contains(&true) && self.parts.prefills_live()? > 0;
            ensure!(computing, "the prompts were computed before their clients could leave");
        }
        let gone = Instant::now();
        drop(clients);
        let accounted = self.accounted(kill, gone)?;
        let after = self.parts.receiver_metrics()?;
        let more = |name| Ok::<_, anyhow::Error>(after.get(name)? - before.get(name)?);
        let (cut, over) = (more("baton_requests_aborted_total")?, more("baton_requests_finished_total")?);
        // On a busy machine the first stream may be over before the last one begins.
        let all = cut > 0 && cut + over == self.terms.in_flight as u64;
        ensure!(all, "{cut} requests were ended by their clients, and {over} ended before");
        Ok(Round { left: self.terms.in_flight, accounted, ..Round::default() })
    }

    /// Waits until no survivor has anything left for what is dead: see [`Round::accounted`].
    fn accounted(&self, kill: Kill, since: Instant) -> Result<Duration> {
        let (at_receiver, at_sender): (&[&str], &[&str]) = match kill {
            Kill::Sender | Kill::SenderStops => (&["baton_sessions_ready", "baton_pages_reserved"], &[]),
            Kill::Receiver => (&[], &["baton_sessions_ready", "baton_prefills_live", "baton_pages_live"]),
            Kill::LinkCloses | Kill::LinkStalls => (
                &["baton_sessions_ready", "baton_pages_reserved"],
                &["baton_sessions_ready", "baton_prefills_live", "baton_pages_live"],
            ),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => {
                (&["baton_pages_live", "baton_pages_reserved"], &["baton_prefills_live", "baton_pages_live"])
            }
        };
        // The dead are not asked.
        let nothing = |of: &dyn Fn() -> Result<Metrics>, names: &[&str]| -> Result<bool> {
            let Some(metrics) = (!names.is_empty()).then(of).transpose()? else { return Ok(true) };
            names.iter().try_fold(true, |all, name| Ok(all && metrics.get(name)? == 0))
        };
        let known = since + if kill.is_silent() { SILENCE } else { Duration::ZERO };
        let limit = (known + self.terms.accounted).saturating_duration_since(Instant::now());
        until("the survivors have done with what is dead", limit, || {
            Ok(nothing(&|| self.parts.receiver_metrics(), at_receiver)?
                && nothing(&|| self.parts.sender_metrics(), at_sender)?)
        })?;
        Ok(since.elapsed())
    }
}
