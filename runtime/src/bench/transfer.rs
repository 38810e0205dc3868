//! `runtime bench transfer`: how fast pages go from one process's pool into another's, beside what the lane does by itself.
//!
//! Two processes run everything that serves a request but the model: the engine takes no time and hands a prompt's pages over
//! all at once. The clock runs from the moment at which the first put is given to the transport to the receiver's first decode step, which
//! needs the last page adopted; so actors, ring, hash, puts, flush, frames and checks are all in it.

mod first_put;
mod idle_engine;
mod peer;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actors::node::{self, LinkConfig, LinkRole, Node, NodeConfig};
use actors::request::{Generate, RequestId, Route, StreamEvent, Timings};
use actors::transfer::state::PAGES_IN_FLIGHT;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use common::statistics::{median, quartiles};

use crate::config::{Config, DeviceSetting, Flag};
use crate::roles;
use first_put::FirstPut;
use idle_engine::IdleEngine;

/// The longest that a process may take to come up, or a page table to travel.
const PATIENCE: Duration = Duration::from_secs(60);
/// Page tables moved before the measurement.
const WARM_UPS: usize = 3;
/// Pages in each pool for each of a page table: the ring is half of it, and what was moved before need not be overwritten at once.
const POOLS: u32 = 4;

/// What is moved, and how often.
#[derive(Clone, Args)]
pub struct TransferOptions {
    /// Pages of a page table
    #[arg(long, default_value_t = 83)]
    pub pages: u32,
    /// KiB of a page [default: 720, and 8192 on GPUs]
    #[arg(long)]
    pub page_kib: Option<u32>,
    /// Takes pages from all over both pools, so that no two go as one put
    #[arg(long)]
    pub scattered: bool,
    /// Most pages in flight
    #[arg(long, default_value_t = PAGES_IN_FLIGHT)]
    pub in_flight: usize,
    /// Page tables moved in each cycle
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// Cycles; each measures the lane alone, a pair without the page hash and one with it, one after the other
    #[arg(long, default_value_t = 15)]
    pub cycles: usize,
    /// Sets one configuration key; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = Flag::parse)]
    pub set: Vec<Flag>,
    /// The sender's part, for the receiver at this address
    #[arg(long, hide = true)]
    pub dial: Option<String>,
    /// The part that copies from one GPU to the other
    #[arg(long, hide = true)]
    pub peer_copy: bool,
}

impl TransferOptions {
    fn page_bytes(&self, config: &Config) -> u64 {
        let usual = if config.engine.device == DeviceSetting::Cuda { 8192 } else { 720 };
        u64::from(self.page_kib.unwrap_or(usual)) << 10
    }
}

/// One page table's journey.
struct TransferSample {
    /// From the first put to the first decode step.
    seconds: f64,
    /// What the sender saw of it: from the first put to the last flush.
    puts_seconds: f64,
}

/// Measures and prints.
///
/// # Errors
/// A process that does not come up, or pages that do not arrive.
pub(super) fn run(options: &TransferOptions, config: Config) -> Result<()> {
    ensure!(options.pages > 0 && options.page_kib != Some(0), "--pages and --page-kib must be above 0");
    let counts = [options.rounds, options.cycles, options.in_flight];
    ensure!(!counts.contains(&0), "--rounds, --cycles and --in-flight must be above 0");
    if let Some(address) = &options.dial {
        return send(options, &config, address);
    }
    let page_bytes = options.page_bytes(&config);
    if options.peer_copy {
        return peer::copy(page_bytes * u64::from(options.pages));
    }
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
            let samples = measure(options, &config, page_hash)?;
            row.push(Some(bytes / median(samples.iter().map(|sample| sample.seconds))));
            row.push(Some(bytes / median(samples.iter().map(|sample| sample.puts_seconds))));
        }
        println!("{}", line(&row));
        columns.iter_mut().zip(row).for_each(|(column, value)| column.extend(value));
    }
    let quartiles = columns.map(|column| (!column.is_empty()).then(|| quartiles(column)));
    for (quarter, name) in ["lower quartiles", "medians", "upper quartiles"].into_iter().enumerate() {
        println!("{}  {name}", line(&quartiles.map(|column| column.map(|column| column[quarter]))));
    }
    let [lane, off, _, on, _] = quartiles.map(|column| column.map(|column| column[1]));
    if let (Some(lane), Some(off), Some(on)) = (lane, off, on) {
        println!("of the lane alone: {:.2} without the hash, {:.2} with it (medians)", off / lane, on / lane);
    }
    Ok(())
}

/// Rates in bytes a second, shown in GB/s.
fn line(rates: &[Option<f64>]) -> String {
    let shown = |rate: &Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{:.2}", rate / 1e9));
    let mut columns = rates.iter().map(shown);
    let first = columns.next().unwrap_or_default();
    columns.fold(format!("{first:>10}"), |line, column| format!("{line} {column:>8}"))
}

/// Nanoseconds on the clock that the two processes share.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// A node around an engine that tells `asked` whenever it is asked for a token; `first_put` hears of the transport's puts.
fn start(
    options: &TransferOptions,
    config: &Config,
    role: LinkRole,
    page_hash: bool,
    asked: Box<dyn Fn() + Send>,
    first_put: Option<FirstPut>,
) -> Result<Node> {
    let device = config.engine.device;
    let engine = IdleEngine::new(device, options.page_bytes(config), options.pages * POOLS, asked)?;
    let transport = roles::transport(config, &engine.pool());
    let link = LinkConfig {
        role,
        secret: None,
        http: String::new(),
        ring_bytes: config.ring.bytes.0,
        page_hash,
        // Whatever it is, it is to be measured.
        min_gigabytes_per_second: 0.0,
        pages_in_flight: options.in_flight,
        transport: match first_put {
            None => transport,
            Some(first_put) => Box::new(move |sink| Ok(first_put.over(transport(sink)?))),
        },
    };
    let prefill_chunk_tokens = engine.step_tokens();
    let engine = Box::new(engine);
    Ok(node::start(NodeConfig {
        engine,
        prefill_chunk_tokens,
        prefix_cache: false,
        scattered: options.scattered,
        // Never.
        local_if_sooner_by: Duration::MAX,
        link: Some(link),
    })?)
}

/// The sender's process: a line with the time of each prompt's first put, until standard input ends.
fn send(options: &TransferOptions, config: &Config, address: &str) -> Result<()> {
    let (put, times) = channel();
    std::thread::spawn(move || times.into_iter().for_each(|time: u64| println!("{time}")));
    let first_put = FirstPut::new(put);
    let awaited = first_put.awaited();
    let asked = Box::new(move || awaited.store(true, Ordering::Release));
    actix::System::new().block_on(async {
        let role = LinkRole::Sender(vec![address.to_owned()]);
        let node = start(options, config, role, config.transport.page_hash, asked, Some(first_put))?;
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let _ = ended.await;
        node.shut_down(Duration::ZERO).await;
        Ok(())
    })
}

/// The sender's process, which ends with this value.
struct Sending {
    process: Child,
    /// When each prompt's first page was put.
    put_at: Receiver<u64>,
}

impl Sending {
    fn spawn(options: &TransferOptions, address: &str, page_hash: bool) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "transfer", "--dial", address])
            .args(["--pages", &options.pages.to_string()])
            .args(options.page_kib.iter().flat_map(|kib| ["--page-kib".to_owned(), kib.to_string()]))
            .args(options.scattered.then_some("--scattered"))
            .args(["--in-flight", &options.in_flight.to_string()])
            // The second GPU; nothing where there is none.
            .env("CUDA_VISIBLE_DEVICES", "1")
            .args(
                options.set.iter().flat_map(|flag| ["--set".into(), format!("{}={}", flag.key, flag.value)]),
            )
            .args(["--set", &format!("transport.page_hash={page_hash}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the sender's process")?;
        let lines = BufReader::new(process.stdout.take().context("it has an output")?).lines();
        let (heard, put_at) = channel();
        std::thread::spawn(move || {
            for time in lines.map_while(Result::ok).filter_map(|line| line.parse().ok()) {
                let _ = heard.send(time);
            }
        });
        Ok(Self { process, put_at })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// One pair, from its start to its end.
fn measure(options: &TransferOptions, config: &Config, page_hash: bool) -> Result<Vec<TransferSample>> {
    actix::System::new().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let (decoding, decoding_at) = channel();
        let asked = Box::new(move || {
            // Whoever asks has gone.
            let _ = decoding.send(clock());
        });
        let node = start(options, config, LinkRole::Receiver(listener), page_hash, asked, None)?;
        let sending = Sending::spawn(options, &address, page_hash)?;
        let began = Instant::now();
        while node.peers() == 0 {
            ensure!(began.elapsed() < PATIENCE, "the sender's process did not join within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut samples = Vec::with_capacity(options.rounds);
        for round in 0..WARM_UPS + options.rounds {
            let timings = hand_over(options, &node, config.page_tokens(), round as u64).await?;
            let put_at = sending.put_at.recv_timeout(PATIENCE).context("the sender is silent")?;
            let decoding_at = decoding_at.recv_timeout(PATIENCE).context("nothing was decoded")?;
            if round >= WARM_UPS {
                samples.push(TransferSample {
                    seconds: decoding_at.saturating_sub(put_at) as f64 / 1e9,
                    puts_seconds: timings.transfer_ms / 1e3,
                });
            }
        }
        drop(sending);
        node.shut_down(Duration::ZERO).await;
        Ok(samples)
    })
}

/// One request of two tokens: the second needs every page.
async fn hand_over(
    options: &TransferOptions,
    node: &Node,
    node_page_tokens: u32,
    number: u64,
) -> Result<Timings> {
    let request = RequestId(number);
    let max_tokens = 2;
    let mut events = node.streams.open(request, max_tokens, ());
    let tokens = options.pages * node_page_tokens;
    let generate = Generate {
        request,
        prompt: vec![0; tokens as usize].into(),
        max_tokens,
        sampling: Arc::default(),
        ignore_eos: true,
        deadline: Instant::now() + PATIENCE,
        route: Route::Auto,
    };
    node.generate().send(generate).await?;
    while let Some(event) = events.recv().await {
        match event {
            StreamEvent::Token(_) => {}
            StreamEvent::Finished { timings, .. } => {
                ensure!(
                    timings.pages == options.pages,
                    "{} of {} pages travelled",
                    timings.pages,
                    options.pages
                );
                return Ok(*timings);
            }
            StreamEvent::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the request was dropped")
}
