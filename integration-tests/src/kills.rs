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

use crate::fixtures::{Prompt, prompts};
use crate::process::{STATE_WITHIN, until};
use clients::{Leaving, Waiting};
use parts::Parts;

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
    /// From the kill until each of its requests has failed or is running again: the receiver has no session with the dead and
    /// no page promised to a hand-over; where it is the receiver that died, every client has heard; where clients left, the
    /// receiver holds no page for them.
    pub accounted: Duration,
    /// From the kill until a surviving sender has no prefill and holds no page for it: the step that its engine was in is over.
    pub cleared: Option<Duration>,
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
        let mut round = Round::default();
        if kill != Kill::Receiver {
            (round.accounted, round.cleared) = (self.accounted(kill, struck)?, self.cleared(kill, struck)?);
        }
        for client in clients {
            match client.end()? {
                Ok(()) => round.right += 1,
                Err(_) if kill == Kill::Receiver => round.failed += 1,
                Err(error) => return Err(error.context("a request failed whose receiver lives")),
            }
        }
        round.settled = Some(struck.elapsed());
        if kill == Kill::Receiver {
            (round.accounted, round.cleared) = (self.accounted(kill, struck)?, self.cleared(kill, struck)?);
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
        let address = self.parts.frontend().to_owned();
        let mut clients = Vec::new();
        for prompt in prompts {
            let mut ids = prompt.prompt_ids;
            // Nobody will see the words, and nobody has computed this prompt before.
            ids[0] = 1000 + self.random(40_000) as u32;
            clients.push(Leaving::ask(&address, &ids, if long { 200 } else { 600 })?);
        }
        if long {
            let all = || Ok(self.parts.prefills_live()? == self.terms.in_flight as u64);
            until("all prompts are with the sender", STATE_WITHIN, all)?;
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
        let (accounted, cleared) = (self.accounted(kill, gone)?, self.cleared(kill, gone)?);
        let after = self.parts.receiver_metrics()?;
        let more = |name| Ok::<_, anyhow::Error>(after.get(name)? - before.get(name)?);
        let (cut, over) = (more("baton_requests_aborted_total")?, more("baton_requests_finished_total")?);
        // On a busy machine the first stream may be over before the last one begins.
        let all = cut > 0 && cut + over == self.terms.in_flight as u64;
        ensure!(all, "{cut} requests were ended by their clients, and {over} ended before");
        Ok(Round { left: self.terms.in_flight, accounted, cleared, ..Round::default() })
    }

    /// Waits until nothing at the receiver waits for what is dead: see [`Round::accounted`]. Of a dead receiver, the clients know.
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
            until("nothing waits for what is dead", STATE_WITHIN, nothing)?;
        }
        let (accounted, silence) = (since.elapsed(), if kill.is_silent() { SILENCE } else { Duration::ZERO });
        let limit = silence + self.terms.accounted;
        ensure!(accounted <= limit, "requests waited for what is dead for {accounted:?}, not {limit:?}");
        Ok(accounted)
    }

    /// Waits until a surviving sender has done with it too: see [`Round::cleared`].
    fn cleared(&self, kill: Kill, since: Instant) -> Result<Option<Duration>> {
        let names: &[&str] = match kill {
            Kill::Sender | Kill::SenderStops => return Ok(None),
            Kill::ClientsMidStream | Kill::ClientsMidPrefill => &["baton_prefills_live", "baton_pages_live"],
            Kill::Receiver | Kill::LinkCloses | Kill::LinkStalls => {
                &["baton_sessions_ready", "baton_prefills_live", "baton_pages_live"]
            }
        };
        let nothing = || self.parts.sender_metrics()?.are_all_zero(names);
        until("the sender has done with what is dead", STATE_WITHIN, nothing)?;
        Ok(Some(since.elapsed()))
    }
}
