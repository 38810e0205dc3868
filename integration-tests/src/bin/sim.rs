//! Runs random histories of nodes that prefill for each other in virtual time for a given time.
//!
//! ```text
//! cargo xtask sim [--minutes N] [--histories N] [--seed S]     starts at seed S and uses every core
//! cargo xtask sim --trace SEED                                 one history, with a trace on standard error
//! ```
//! Ends with an error at the first violation. The error names the seed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use integration_tests::simulation::{Report, Violation, history};

struct Options {
    limit: Duration,
    histories: u64,
    seed: u64,
    trace: Option<u64>,
}

fn options() -> Result<Options> {
    let mut options = Options { limit: Duration::from_secs(60), histories: u64::MAX, seed: 1, trace: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a number"))?;
        let number: f64 = value.parse().with_context(|| format!("{name} needs a number, not {value:?}"))?;
        match name.as_str() {
            "--minutes" => options.limit = Duration::from_secs_f64(number * 60.0),
            "--histories" => (options.histories, options.limit) = (number as u64, Duration::MAX),
            "--seed" => options.seed = number as u64,
            "--trace" => options.trace = Some(value.parse()?),
            other => {
                bail!("unknown option {other}; the options are --minutes, --histories, --seed and --trace")
            }
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    if let Some(seed) = options.trace {
        println!("{:#?}", history(seed, true)?);
        return Ok(());
    }
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let total: Mutex<(u64, Report, Option<Violation>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < options.limit {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= options.histories {
                        return;
                    }
                    let outcome = history(options.seed + n, false);
                    let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    match outcome {
                        Ok(report) => {
                            total.0 += 1;
                            total.1.add(&report);
                        }
                        Err(violation) => {
                            stop.store(true, Ordering::Relaxed);
                            let first = total.2.as_ref().is_none_or(|earlier| earlier.seed > violation.seed);
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
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!(
        "{histories} histories in {:.1} s, {:.0} per minute; {:.1} virtual hours, {:.1} million events",
        minutes * 60.0,
        histories as f64 / minutes,
        report.micros as f64 / 3.6e9,
        report.events as f64 / 1e6
    );
    let failed: Vec<String> = report.failed.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!(
        "requests: {} finished, {} of them handed over, {} recomputed, {} preempted; {}",
        report.finished,
        report.disaggregated,
        report.recomputes,
        report.preemptions,
        failed.join(", ")
    );
    println!(
        "pages: {} landed, {} shared, {} damaged; {} sessions",
        report.landed, report.resident, report.damaged, report.sessions
    );
    println!(
        "prefills by peers: {} refused without room, {} given up without credits",
        report.no_room, report.no_credit
    );
    println!(
        "grammars: {} prefilled by peers, {} replaced, {} lost while they were compiled",
        report.constrained, report.grammars_replaced, report.lost_while_compiling
    );
    let faults: Vec<String> = report.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("faults: {}", faults.join(", "));
    match violation {
        None => Ok(()),
        Some(violation) => {
            bail!("{violation}\nto trace this history: cargo xtask sim --trace {}", violation.seed)
        }
    }
}
