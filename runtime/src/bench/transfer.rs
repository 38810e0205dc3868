//! `runtime bench transfer`: measures the transfer of KV pages from one process's pool to another's, and the lane alone.
//!
//! Two processes run everything that serves a request except for the model: the engine computes nothing and finishes all pages of a
//! prompt at once. The measured time is from the first put to the receiver's first decode step, which needs all pages adopted. So it
//! includes the actors, the ring, the hash, the puts, the flush, the frames and the checks.

mod first_put;
mod idle_engine;
mod once;
mod peer;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actors::node::{self, LinkConfig, Node, NodeConfig};
use actors::peer_link::state::SessionLimits;
use actors::request::{Generate, RequestId, Route, StreamEvent, Timings};
use actors::routing::RoutingConfig;
use actors::streams::StreamReader;
use actors::transfer::state::PAGES_IN_FLIGHT;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use common::statistics::{median, quartiles};
use connector::frame::Versions;
use jiff::Timestamp;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::json;

use super::{files, plot};
use crate::config::{Config, DeviceSetting, Flag};
use crate::roles;
use first_put::FirstPut;
use idle_engine::IdleEngine;

pub use once::PutMeasurement;

/// Maximum time for the start of a process, and for the transfer of a page table.
const PATIENCE: Duration = Duration::from_secs(60);
/// Number of page tables transferred before the measurement.
const WARM_UPS: usize = 3;
/// Size of each pool, in page tables. The ring is half of the pool, and pages are not overwritten right after their transfer.
const POOLS: u32 = 4;

/// The options of `bench transfer`.
#[derive(Clone, Args)]
pub struct TransferOptions {
    /// Number of pages in a page table
    #[arg(long, default_value_t = 83)]
    pub pages: u32,
    /// Size of a page in KiB [default: 720, on GPUs 8192]
    #[arg(long)]
    pub page_kib: Option<u32>,
    /// Uses scattered pages, so that no two pages are transferred in one put
    #[arg(long)]
    pub scattered: bool,
    /// Maximum number of pages in flight
    #[arg(long, default_value_t = PAGES_IN_FLIGHT)]
    pub in_flight: usize,
    /// Number of page tables in each cycle
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// Number of cycles; each measures the lane alone, then a pair without the page hash, then a pair with it
    #[arg(long, default_value_t = 15)]
    pub cycles: usize,
    /// Writes the results to this JSON file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draws the results into this SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Sets one configuration key; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Flag::parse)]
    pub set: Vec<Flag>,
    /// Runs the sender for the receiver at this address
    #[arg(long, hide = true)]
    pub dial: Option<String>,
    /// Runs the copy from one GPU to the other
    #[arg(long, hide = true)]
    pub peer_copy: bool,
    /// Measures one pair and prints JSON
    #[arg(long, hide = true)]
    pub once: bool,
    /// The GPU of the sender, as in CUDA_VISIBLE_DEVICES
    #[arg(long, hide = true, default_value = "1")]
    pub sender_gpu: String,
}

impl TransferOptions {
    fn page_bytes(&self, config: &Config) -> u64 {
        let usual = if config.engine.device == DeviceSetting::Cuda { 8192 } else { 720 };
        u64::from(self.page_kib.unwrap_or(usual)) << 10
    }
}

/// The times of one page table.
struct TransferSample {
    /// From the first put to the first decode step.
    seconds: f64,
    /// From the first put to the last flush, at the sender.
    puts_seconds: f64,
}

/// Measures and prints the results.
///
/// # Errors
/// A process does not start, or pages do not arrive.
pub(super) fn run(options: &TransferOptions, config: Config) -> Result<()> {
    ensure!(options.pages > 0 && options.page_kib != Some(0), "set --pages and --page-kib to at least 1");
    let counts = [options.rounds, options.cycles, options.in_flight];
    ensure!(!counts.contains(&0), "set --rounds, --cycles and --in-flight to at least 1");
    if options.once || options.dial.is_some() {
        end_with_parent();
    }
    if let Some(address) = &options.dial {
        return send(options, &config, address);
    }
    if options.once {
        return once::run(options, &config);
    }
    let page_bytes = options.page_bytes(&config);
    if options.peer_copy {
        return peer::copy(page_bytes * u64::from(options.pages));
    }
    files::check(options.json.iter().chain(&options.plot))?;
    let bytes = (page_bytes * u64::from(options.pages)) as f64;
    println!(
        "{} {} pages of {} KiB a page table; GB/s, medians of {} page tables",
        options.pages,
        if options.scattered { "scattered" } else { "neighbouring" },
        page_bytes >> 10,
        options.rounds
    );
    println!("{:>10} {:>8} {:>8} {:>8} {:>8}", "lane alone", "no hash", "puts", "hash", "puts");
    let mut columns: [Vec<f64>; 5] = Default::default();
    for _ in 0..options.cycles {
        let mut row = vec![peer::bandwidth(options, &config)?];
        for page_hash in [false, true] {
            let samples = measure(options, &config, page_hash)?.0;
            row.push(Some(bytes / median(samples.iter().map(|sample| sample.seconds))));
            row.push(Some(bytes / median(samples.iter().map(|sample| sample.puts_seconds))));
        }
        println!("{}", line(&row));
        columns.iter_mut().zip(row).for_each(|(column, value)| column.extend(value));
    }
    let quartiles =
        columns.each_ref().map(|column| (!column.is_empty()).then(|| quartiles(column.iter().copied())));
    for (quarter, name) in ["lower quartiles", "medians", "upper quartiles"].into_iter().enumerate() {
        println!("{}  {name}", line(&quartiles.map(|column| column.map(|column| column[quarter]))));
    }
    let [lane, off, _, on, _] = quartiles.map(|column| column.map(|column| column[1]));
    if let (Some(lane), Some(off), Some(on)) = (lane, off, on) {
        println!("of the lane alone: {:.2} without the hash, {:.2} with it (medians)", off / lane, on / lane);
    }
    write(options, page_bytes, &columns)
}

/// Names of the columns in plots.
const COLUMNS: [&str; 5] = ["lane alone", "no hash", "no hash, puts", "hash", "hash, puts"];

/// Writes the files that the options ask for. `columns` are in bytes per second.
fn write(options: &TransferOptions, page_bytes: u64, columns: &[Vec<f64>; 5]) -> Result<()> {
    let columns: Vec<_> = COLUMNS
        .iter()
        .zip(columns)
        .map(|(name, rates)| {
            let rates: Vec<f64> = rates.iter().map(|rate| rate / 1e9).collect();
            json!({"name": name, "gigabytes_per_second": rates})
        })
        .collect();
    let results = json!({
        "kind": "transfer", "date": Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string(),
        "pages": options.pages, "page_kib": page_bytes >> 10, "scattered": options.scattered,
        "in_flight": options.in_flight, "rounds": options.rounds, "cycles": options.cycles,
        "columns": columns,
    });
    if let Some(path) = &options.json {
        files::write(path, &results)?;
        println!("wrote the results to {}", path.display());
    }
    options.plot.as_ref().map_or(Ok(()), |path| plot::write(&results, path))
}

/// Formats rates in bytes per second as GB/s.
fn line(rates: &[Option<f64>]) -> String {
    let shown = |rate: &Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.2}", rate / 1e9));
    let mut columns = rates.iter().map(shown);
    let first = columns.next().unwrap_or_default();
    columns.fold(format!("{first:>10}"), |line, column| format!("{line} {column:>8}"))
}

/// Nanoseconds of the system clock, which both processes read.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Starts a node. Its engine calls `asked` for each step that samples a token. `first_put` observes the puts of the transport.
fn start(
    options: &TransferOptions,
    config: &Config,
    (listener, peers): (Option<TcpListener>, Vec<String>),
    page_hash: bool,
    asked: Box<dyn Fn() + Send>,
    first_put: Option<FirstPut>,
) -> Result<Node> {
    let device = config.engine.device;
    let engine = IdleEngine::new(device, options.page_bytes(config), options.pages * POOLS, asked)?;
    let transport = roles::transport(config, &engine.pool());
    let link = LinkConfig {
        listener,
        peers,
        versions: Versions::OURS,
        finds_peers: false,
        secret: None,
        tls: None,
        http: None,
        ring_bytes: config.ring.bytes.0,
        limits: SessionLimits::default(),
        prefill_pages: None,
        context_tokens: u32::MAX,
        page_hash,
        // Measure lanes of any speed.
        min_gigabytes_per_second: 0.0,
        pages_in_flight: options.in_flight,
        transport: match first_put {
            None => transport,
            Some(first_put) => Box::new(move |sink| Ok(first_put.over(transport(once::naming(sink))?))),
        },
    };
    let prefill_chunk_tokens = engine.step_tokens();
    let engine = Box::new(engine);
    Ok(node::start(NodeConfig {
        engine,
        grammars: None,
        prefill_chunk_tokens,
        inter_token_bound: None,
        prefix_cache: false,
        scattered: options.scattered,
        // Never prefill locally.
        routing: RoutingConfig { local_if_sooner_by: Duration::MAX, ..RoutingConfig::default() },
        kv_events: None,
        traces: None,
        link: Some(link),
    })?)
}

/// Has the kernel end this process when the one that started it has ended, however that ends. Standard input alone does not end a process that hangs.
fn end_with_parent() {
    // An error means that the kernel does not know the call. Then standard input decides.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Runs the sender. Prints the time of the first put of each prompt, one per line, until standard input ends.
fn send(options: &TransferOptions, config: &Config, address: &str) -> Result<()> {
    let (put, times) = channel();
    std::thread::spawn(move || times.into_iter().for_each(|time: u64| println!("{time}")));
    let first_put = FirstPut::new(put);
    let awaited = first_put.awaited();
    let asked = Box::new(move || awaited.store(true, Ordering::Release));
    actix::System::new().block_on(async {
        let peers = vec![address.to_owned()];
        let node = start(options, config, (None, peers), config.transport.page_hash, asked, Some(first_put))?;
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let _ = ended.await;
        node.shut_down(Duration::ZERO).await;
        Ok(())
    })
}

/// The sender's process. It ends when this value is dropped.
struct Sending {
    process: Child,
    /// The time of the first put of each prompt.
    put_at: Receiver<u64>,
    /// The name of the lane, once it is connected.
    lane: Arc<Mutex<String>>,
}

impl Sending {
    fn spawn(
        options: &TransferOptions,
        device: DeviceSetting,
        address: &str,
        page_hash: bool,
    ) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "transfer", "--dial", address])
            .args(["--pages", &options.pages.to_string()])
            .args(options.page_kib.iter().flat_map(|kib| ["--page-kib".to_owned(), kib.to_string()]))
            .args(options.scattered.then_some("--scattered"))
            .args(["--in-flight", &options.in_flight.to_string()])
            // The receiver uses the first GPU. On CPUs, this has no effect.
            .env("CUDA_VISIBLE_DEVICES", &options.sender_gpu)
            .args(
                options.set.iter().flat_map(|flag| ["--set".into(), format!("{}={}", flag.key, flag.value)]),
            )
            .args(["--set", &format!("transport.page_hash={page_hash}")])
            .args(["--set", &format!("engine.device={}", device.name())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the process of the sender")?;
        let lines =
            BufReader::new(process.stdout.take().context("the output of the sender is not piped")?).lines();
        let (heard, put_at) = channel();
        let lane = Arc::new(Mutex::new(String::new()));
        let named = Arc::clone(&lane);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(name) = line.strip_prefix(once::LANE) {
                    name.clone_into(&mut named.lock().unwrap_or_else(PoisonError::into_inner));
                } else if let Ok(time) = line.parse() {
                    let _ = heard.send(time);
                }
            }
        });
        Ok(Self { process, put_at, lane })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// Starts a pair, measures it, and ends it. Returns the samples and the name of the lane.
fn measure(
    options: &TransferOptions,
    config: &Config,
    page_hash: bool,
) -> Result<(Vec<TransferSample>, String)> {
    actix::System::new().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let (decoding, decoding_at) = channel();
        let asked = Box::new(move || {
            // Fails after the measurement has ended.
            let _ = decoding.send(clock());
        });
        let node = start(options, config, (Some(listener), Vec::new()), page_hash, asked, None)?;
        let sending = Sending::spawn(options, config.engine.device, &address, page_hash)?;
        let began = Instant::now();
        while node.peers() == 0 {
            ensure!(began.elapsed() < PATIENCE, "the sender's process did not join within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut samples = Vec::with_capacity(options.rounds);
        for round in 0..WARM_UPS + options.rounds {
            let timings = hand_over(options, &node, node.facts.page_tokens, round as u64).await?;
            let put_at = sending
                .put_at
                .recv_timeout(PATIENCE)
                .context("the sender did not report its first put in time")?;
            let decoding_at =
                decoding_at.recv_timeout(PATIENCE).context("the receiver did not decode in time")?;
            if round >= WARM_UPS {
                samples.push(TransferSample {
                    seconds: decoding_at.saturating_sub(put_at) as f64 / 1e9,
                    puts_seconds: timings.transfer_ms / 1e3,
                });
            }
        }
        let lane = sending.lane.lock().unwrap_or_else(PoisonError::into_inner).clone();
        drop(sending);
        node.shut_down(Duration::ZERO).await;
        Ok((samples, lane))
    })
}

/// Runs one request of two tokens. The second token needs all pages.
async fn hand_over(
    options: &TransferOptions,
    node: &Node,
    node_page_tokens: u32,
    number: u64,
) -> Result<Timings> {
    let request = RequestId(number);
    let max_tokens = 2;
    let mut events = StreamReader::start(&node.streams).open(request, max_tokens, ());
    let tokens = options.pages * node_page_tokens;
    let generate = Generate {
        request,
        prompt: vec![0; tokens as usize].into(),
        max_tokens,
        sampling: Arc::default(),
        grammar: None,
        salt: None,
        ignore_eos: true,
        prompt_logprobs: None,
        sent: Instant::now(),
        deadline: Instant::now() + PATIENCE,
        route: Route::Auto,
        trace: None,
    };
    node.generate().send(generate).await?;
    while let Some(event) = events.recv().await {
        match event {
            StreamEvent::Prompt(_) | StreamEvent::Token(_) => {}
            StreamEvent::Finished { timings, .. } => {
                ensure!(
                    timings.pages == options.pages,
                    "{} of {} pages were handed over",
                    timings.pages,
                    options.pages
                );
                return Ok(*timings);
            }
            StreamEvent::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the request ended without an event")
}
