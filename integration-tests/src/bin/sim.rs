//! Runs random histories in virtual time for a given time: of nodes that prefill for each other, or of a whole fleet.
//!
//! ```text
//! cargo xtask sim [--minutes N] [--histories N] [--seed S]     starts at seed S and uses every core
//! cargo xtask sim --trace SEED                                 one history, with a trace on standard error
//! cargo xtask sim --fleet [--nodes N] [--requests N] [--proxies N] [the options above]
//! ```
//! Ends with an error at the first violation. The error names the seed.

use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use integration_tests::{fleet_simulation as fleet, simulation};

struct Options {
    limit: Duration,
    histories: u64,
    seed: u64,
    trace: Option<u64>,
    /// Histories of a fleet, of this size.
    fleet: Option<fleet::Shape>,
}

fn options() -> Result<Options> {
    let mut options =
        Options { limit: Duration::from_secs(60), histories: u64::MAX, seed: 1, trace: None, fleet: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--fleet" {
            options.fleet.get_or_insert_default();
            continue;
        }
        let value = arguments.next().with_context(|| format!("{name} needs a number"))?;
        let number: f64 = value.parse().with_context(|| format!("{name} needs a number, not {value:?}"))?;
        let shape = options.fleet.as_mut();
        match (name.as_str(), shape) {
            ("--minutes", _) => options.limit = Duration::from_secs_f64(number * 60.0),
            ("--histories", _) => (options.histories, options.limit) = (number as u64, Duration::MAX),
            ("--seed", _) => options.seed = number as u64,
            ("--trace", _) => options.trace = Some(value.parse()?),
            ("--nodes", Some(shape)) => shape.nodes = Some(number as usize),
            ("--requests", Some(shape)) => shape.requests = Some(number as u64),
            ("--proxies", Some(shape)) => shape.proxies = Some(number as usize),
            ("--nodes" | "--requests" | "--proxies", None) => bail!("{name} comes after --fleet"),
            (other, _) => {
                bail!(
                    "unknown option {other}; the options are --minutes, --histories, --seed, --trace, --fleet, --nodes, --requests and --proxies"
                )
            }
        }
    }
    Ok(options)
}

/// What histories of one kind have in common.
trait History: Sync {
    type Report: Default + Send;
    type Violation: Display + Send;
    fn run(&self, seed: u64) -> Result<Self::Report, Self::Violation>;
    fn add(total: &mut Self::Report, other: &Self::Report);
    fn seed_of(violation: &Self::Violation) -> u64;
    /// Virtual microseconds and events.
    fn size(report: &Self::Report) -> (u64, u64);
    fn print(report: &Self::Report);
    /// The arguments that repeat a history with a trace.
    fn again(&self) -> String;
}

struct Fleet(fleet::Shape);

impl History for Fleet {
    type Report = fleet::Report;
    type Violation = fleet::Violation;

    fn run(&self, seed: u64) -> Result<Self::Report, Self::Violation> {
        fleet::history(seed, &self.0, false)
    }

    fn add(total: &mut Self::Report, other: &Self::Report) {
        total.add(other);
    }

    fn seed_of(violation: &Self::Violation) -> u64 {
        violation.seed
    }

    fn size(report: &Self::Report) -> (u64, u64) {
        (report.micros, report.events)
    }

    fn print(report: &Self::Report) {
        println!("{report}");
    }

    fn again(&self) -> String {
        let fleet::Shape { nodes, requests, proxies } = self.0;
        let options = [
            nodes.map(|nodes| format!(" --nodes {nodes}")),
            requests.map(|requests| format!(" --requests {requests}")),
            proxies.map(|proxies| format!(" --proxies {proxies}")),
        ];
        format!("--fleet{}", options.into_iter().flatten().collect::<String>())
    }
}

struct Nodes;

impl History for Nodes {
    type Report = simulation::Report;
    type Violation = simulation::Violation;

    fn run(&self, seed: u64) -> Result<Self::Report, Self::Violation> {
        simulation::history(seed, false)
    }

    fn add(total: &mut Self::Report, other: &Self::Report) {
        total.add(other);
    }

    fn seed_of(violation: &Self::Violation) -> u64 {
        violation.seed
    }

    fn size(report: &Self::Report) -> (u64, u64) {
        (report.micros, report.events)
    }

    fn print(report: &Self::Report) {
        let failed: Vec<String> =
            report.failed.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!(
            "requests: {} finished, {} of them handed over, {} recomputed, {} preempted; {}",
            report.finished,
            report.disaggregated,
            report.recomputes,
            report.preemptions,
            failed.join(", ")
        );
        println!(
            "pages: {} landed, {} shared, {} damaged, {} puts of pieces; {} sessions",
            report.landed, report.resident, report.damaged, report.pieces, report.sessions
        );
        println!(
            "prefills by peers: {} refused without room, {} given up without credits",
            report.no_room, report.no_credit
        );
        println!(
            "grammars: {} prefilled by peers, {} replaced, {} lost while they were compiled",
            report.constrained, report.grammars_replaced, report.lost_while_compiling
        );
        let faults: Vec<String> =
            report.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("faults: {}", faults.join(", "));
    }

    fn again(&self) -> String {
        String::new()
    }
}

fn main() -> Result<()> {
    let options = options()?;
    match (options.trace, &options.fleet) {
        (Some(seed), None) => println!("{:#?}", simulation::history(seed, true)?),
        (Some(seed), Some(shape)) => println!("{}", fleet::history(seed, shape, true)?),
        (None, None) => search(&options, &Nodes)?,
        (None, Some(shape)) => search(&options, &Fleet(shape.clone()))?,
    }
    Ok(())
}

/// Runs histories on every core until the time is over, or one of them breaks a rule.
fn search<H: History>(options: &Options, kind: &H) -> Result<()> {
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let total: Mutex<(u64, H::Report, Option<H::Violation>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < options.limit {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= options.histories {
                        return;
                    }
                    let outcome = kind.run(options.seed + n);
                    let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match outcome {
                        Ok(report) => {
                            total.0 += 1;
                            H::add(&mut total.1, &report);
                        }
                        Err(violation) => {
                            stop.store(true, Ordering::Relaxed);
                            let seed = H::seed_of(&violation);
                            let first = total.2.as_ref().is_none_or(|earlier| H::seed_of(earlier) > seed);
                            if first {
                                total.2 = Some(violation);
                            }
                        }
                    }
                }
            });
        }
    });
    let (histories, report, violation) =
        total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (micros, events) = H::size(&report);
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!(
        "{histories} histories in {:.1} s, {:.0} per minute; {:.1} virtual hours, {:.1} million events",
        minutes * 60.0,
        histories as f64 / minutes,
        micros as f64 / 3.6e9,
        events as f64 / 1e6
    );
    H::print(&report);
    match violation {
        None => Ok(()),
        Some(violation) => {
            let seed = H::seed_of(&violation);
            bail!("{violation}\nto trace this history: cargo xtask sim {} --trace {seed}", kind.again())
        }
    }
}
