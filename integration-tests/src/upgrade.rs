//! An upgrade from another build of `runtime` to this one: pairs of both builds, and four nodes that are replaced one after the other under
//! load. `examples/upgrade.rs` runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::{ask_all, complete, get};
use crate::fixtures::{Prompt, prompts};
use crate::process::{Process, field, free_port, until};

/// Clients that ask at the same time.
const CLIENTS: usize = 8;
/// Tokens of each answer.
const TOKENS: u32 = 8;
/// Maximum time for a phase of the rolling upgrade.
const PHASE_WITHIN: Duration = Duration::from_secs(300);

/// Settings of every process: small enough for four of them on a workstation. Every prompt is computed, and not read from a cache.
const SETTINGS: [&str; 7] = [
    "http.port=0",
    "frontend.port=0",
    "engine.threads=1",
    "engine.kv_bytes=128MiB",
    "engine.prefix_cache=false",
    "frontend.local_if_sooner_by=1h",
    "request.context_tokens=256",
];

/// The outcome of a phase.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// What ran.
    pub name: String,
    /// Requests with status 200 and the tokens of the reference.
    pub answered: usize,
    /// Those of them whose prompt another process prefilled.
    pub handed_over: usize,
    /// Why requests failed, one text for each.
    pub failed: Vec<String>,
    /// The protocol versions of the sessions, as far as processes of the new build log them.
    pub versions: BTreeSet<String>,
    /// How long the answers took.
    pub took: Vec<Duration>,
}

impl Phase {
    fn note(&mut self, prompt: &Prompt, asked: Instant, answer: Result<crate::client::Answer>) {
        match answer {
            Ok(answer) if prompt.ids.starts_with(&answer.ids) && answer.ids.len() == TOKENS as usize => {
                self.answered += 1;
                self.handed_over += usize::from(answer.timings["disaggregated"] == true);
                self.took.push(asked.elapsed());
            }
            Ok(answer) => self.failed.push(format!("{}: wrong tokens: {:?}", prompt.name, answer.text)),
            Err(error) => self.failed.push(format!("{}: {error:#}", prompt.name)),
        }
    }
}

/// Prompts whose answers have no near tie and that fit [`SETTINGS`].
fn short_prompts() -> Result<Vec<Prompt>> {
    let mut short = prompts()?;
    short.retain(|prompt| prompt.near_ties.is_empty() && prompt.prompt_ids.len() <= 130);
    ensure!(!short.is_empty(), "the fixture lacks short prompts");
    Ok(short)
}

/// Starts a process with [`SETTINGS`]; `sets` come after them.
fn start(program: &Path, role: &str, sets: &[&str]) -> Result<Process> {
    let mut arguments = vec!["--role", role];
    SETTINGS.iter().chain(sets).for_each(|set| arguments.extend(["--set", *set]));
    Process::start_program(program, &arguments, &[])
}

/// The protocol versions of the sessions that the process has, as far as it logs them.
fn versions(process: &Process) -> BTreeSet<String> {
    let mut open = BTreeMap::new();
    for line in process.log().lines() {
        let session = field(line, "session").map(str::to_owned);
        match (session, field(line, "version")) {
            (Some(session), Some(version)) if line.contains(" session opening ") => {
                open.insert(session, version.to_owned());
            }
            (Some(session), _) if line.contains(" session over ") => drop(open.remove(&session)),
            _ => {}
        }
    }
    open.into_values().collect()
}

/// Sends `requests` requests to a receiver, whose sender prefills all of them. `name` says which builds these are.
///
/// # Errors
/// A process does not start or does not become ready.
pub fn pair(name: &str, [sender, receiver]: [&Path; 2], requests: usize) -> Result<Phase> {
    let prompts = short_prompts()?;
    let receiver = start(receiver, "receiver", &["link.port=0"])?;
    let frontend = receiver.wait_healthy("frontend.port")?;
    let peer = format!("link.peers={}", receiver.address("link.port")?);
    let sender = start(sender, "sender", &[&peer])?;
    receiver.wait_peers(1)?;
    sender.wait_peers(1)?;
    let phase = Mutex::new(Phase { name: name.to_owned(), ..Phase::default() });
    let asked: Vec<&Prompt> = prompts.iter().cycle().take(requests).collect();
    ask_all(&asked, CLIENTS, |prompt| {
        let began = Instant::now();
        let answer = complete(&frontend, &prompt.input(), TOKENS);
        lock(&phase).note(prompt, began, answer);
        Ok(())
    })?;
    let mut phase = phase.into_inner().unwrap_or_else(PoisonError::into_inner);
    phase.versions.extend([&receiver, &sender].into_iter().flat_map(versions));
    Ok(phase)
}

/// The ports of a node, which stay the same when the node is replaced.
struct Place {
    http: u16,
    link: u16,
}

/// The nodes of a fleet, and the proxies in front of them.
struct Fleet {
    places: Vec<Place>,
    nodes: Vec<Process>,
    proxies: Vec<Process>,
    fronts: Vec<String>,
}

impl Fleet {
    /// Starts `count` nodes of one build and a proxy of each of `proxies`.
    fn start(count: usize, build: &Path, proxies: [&Path; 2]) -> Result<Self> {
        let place = |_| Ok(Place { http: free_port()?, link: free_port()? });
        let places = (0..count).map(place).collect::<Result<Vec<_>>>()?;
        let mut fleet = Self { places, nodes: Vec::new(), proxies: Vec::new(), fronts: Vec::new() };
        fleet.nodes = (0..count).map(|number| fleet.start_node(number, build)).collect::<Result<_>>()?;
        let ports: Vec<String> =
            fleet.places.iter().map(|place| format!("127.0.0.1:{}", place.http)).collect();
        let nodes = format!("fleet.nodes={}", ports.join(","));
        for build in proxies {
            let proxy = start(build, "proxy", &[&nodes])?;
            fleet.fronts.push(proxy.address("frontend.port")?);
            fleet.proxies.push(proxy);
        }
        fleet.until_whole()?;
        Ok(fleet)
    }

    fn start_node(&self, number: usize, build: &Path) -> Result<Process> {
        let links: Vec<String> =
            self.places.iter().map(|place| format!("127.0.0.1:{}", place.link)).collect();
        let Place { http, link } = &self.places[number];
        let sets = [
            format!("http.port={http}"),
            format!("link.port={link}"),
            format!("link.peers={}", links.join(",")),
        ];
        start(build, "node", &sets.each_ref().map(String::as_str))
    }

    /// Waits until each node has a session in each direction with every other node, and the proxies see all nodes.
    fn until_whole(&self) -> Result<()> {
        let others = self.nodes.len() as u64 - 1;
        self.nodes.iter().try_for_each(|node| node.wait_peers(2 * others))?;
        for (proxy, front) in self.proxies.iter().zip(&self.fronts) {
            proxy.until("all nodes report", || {
                Ok(get(front, "/health").is_ok_and(|(_, health)| health["nodes_ready"] == self.nodes.len()))
            })?;
        }
        Ok(())
    }

    /// Ends a node in order and starts the other build in its place.
    fn replace(&mut self, number: usize, build: &Path) -> Result<()> {
        self.nodes[number].signal("-TERM")?;
        let status = self.nodes[number].wait()?;
        ensure!(status.success(), "node {number} ended with {status}:\n{}", self.nodes[number].log());
        self.nodes[number] = self.start_node(number, build)?;
        self.until_whole()
    }

    fn versions(&self) -> BTreeSet<String> {
        self.nodes.iter().flat_map(versions).collect()
    }
}

fn lock(phase: &Mutex<Phase>) -> MutexGuard<'_, Phase> {
    phase.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces `nodes` nodes of the build `old` by `new`, one after the other, under load. A proxy of each build is in front of them. Returns a
/// phase for each number of replaced nodes; each has at least `requests` requests.
///
/// # Errors
/// A process does not start, end or become ready.
pub fn rolling(nodes: usize, old: &Path, new: &Path, requests: usize) -> Result<Vec<Phase>> {
    let prompts = short_prompts()?;
    let mut fleet = Fleet::start(nodes, old, [old, new])?;
    let (phase, stop, next) = (Mutex::new(Phase::default()), AtomicBool::new(false), AtomicUsize::new(0));
    let fronts = fleet.fronts.clone();
    let client = || {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (prompt, front) = (&prompts[number % prompts.len()], &fronts[number % fronts.len()]);
            let began = Instant::now();
            let answer = complete(front, &prompt.input(), TOKENS);
            lock(&phase).note(prompt, began, answer);
        }
    };
    std::thread::scope(|scope| {
        (0..CLIENTS).for_each(|_| drop(scope.spawn(client)));
        let mut phases = Vec::new();
        let mut upgrade = || {
            for replaced in 0..=nodes {
                if let Some(number) = replaced.checked_sub(1) {
                    fleet.replace(number, new).with_context(|| format!("node {number}"))?;
                }
                until("the phase has its requests", PHASE_WITHIN, || {
                    let phase = lock(&phase);
                    Ok(phase.answered + phase.failed.len() >= requests)
                })?;
                let mut over = std::mem::take(&mut *lock(&phase));
                over.name = format!("{} old nodes, {replaced} new", nodes - replaced);
                over.versions = fleet.versions();
                phases.push(over);
            }
            Ok::<_, anyhow::Error>(())
        };
        let outcome = upgrade();
        stop.store(true, Ordering::Relaxed);
        outcome.map(|()| phases)
    })
}
