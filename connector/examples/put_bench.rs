//! Puts pages from one process into another over UCX and prints GB/s. `--idle` also prints the CPU use of idle processes.
//!
//! ```text
//! cargo run --release -p connector --example put_bench -- --page 737280 --window 4
//! cargo run --release -p connector --example put_bench -- --idle
//! ```
//! UCX has the settings of `UcxConfig`, except for variables that are set in the environment. To compare with `ucx_perftest`, use the
//! same settings and peer error handling (`-e`):
//!
//! ```text
//! export UCX_TLS=tcp UCX_NET_DEVICES=lo UCX_RNDV_THRESH=inf
//! ucx_perftest -e &
//! ucx_perftest -e -t ucp_put_bw -s 737280 -O 4 -n 4000 -w 200 127.0.0.1
//! ```

use common::cache_folder;
use connector::memory::Region;
use connector::transport::*;
use connector::ucx::{UcxConfig, UcxTransport};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const REGION_BYTES: u64 = 64 << 20;
const SESSION: TransportSession = TransportSession(1);
const DEADLINE: Duration = Duration::from_secs(30);

fn start() -> (UcxTransport, Receiver<Event>) {
    let mut config = UcxConfig::default();
    if let Ok(cache) = cache_folder::locate(|name| std::env::var_os(name)) {
        config.search.push(cache.join(cache_folder::UCX));
    }
    config.defaults.retain(|(name, _)| std::env::var_os(name).is_none());
    let (send, events) = channel();
    let sink: EventSink = Box::new(move |batch| batch.into_iter().for_each(|event| drop(send.send(event))));
    let transport =
        UcxTransport::start(vec![Region::host(REGION_BYTES as usize)], &config, Box::new(|| ()), sink);
    (transport.unwrap_or_else(|error| panic!("{error}")), events)
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(DEADLINE).expect("an event within 30 s")
}

fn opened(transport: &UcxTransport, events: &Receiver<Event>) -> Descriptor {
    transport.submit(Command::Open { session: SESSION }).expect("the queue has room");
    match next(events) {
        Event::Opened { result, .. } => result.expect("the session opens"),
        other => panic!("{other:?}"),
    }
}

/// CPU seconds (user and system) of this process and of its transport thread.
fn cpu() -> (f64, f64) {
    let seconds = |path: PathBuf| {
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        let words: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // Fields 14 and 15 in proc(5), in ticks of 10 ms. Two fields come before the closing parenthesis.
        words[11..13].iter().filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() / 100.0
    };
    let tasks =
        std::fs::read_dir("/proc/self/task").expect("/proc can be read").flatten().map(|task| task.path());
    let ucx = tasks
        .filter(|task| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "baton-ucx")
        })
        .map(|task| seconds(task.join("stat")))
        .sum();
    (seconds("/proc/self/stat".into()), ucx)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("the text is hex");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn receiver() {
    let (transport, events) = start();
    let peer = opened(&transport, &events);
    for ShardDescriptor { worker_address, rkey, base, bytes } in peer.shards {
        println!("{} {} {base} {bytes}", hex(&worker_address), hex(&rkey));
    }
    for line in std::io::stdin().lines() {
        line.expect("standard input can be read");
        let (process, thread) = cpu();
        println!("{process} {thread}");
    }
}

/// The process that receives, and what it prints.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start() -> Self {
        let mut child = Process::new(std::env::current_exe().expect("own path"))
            .arg("--receive")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the receiver starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, input, output }
    }

    fn line(&mut self) -> String {
        self.output.next().expect("an answer").expect("text")
    }

    /// The first line: where to put pages.
    fn descriptor(&mut self) -> Descriptor {
        let line = self.line();
        let words: Vec<_> = line.split(' ').collect();
        let shard = ShardDescriptor {
            worker_address: unhex(words[0]),
            rkey: unhex(words[1]),
            base: words[2].parse().expect("base"),
            bytes: words[3].parse().expect("bytes"),
        };
        Descriptor { transport: "ucx".into(), shards: vec![shard] }
    }

    /// CPU seconds of the receiver and of its transport thread.
    fn cpu(&mut self) -> (f64, f64) {
        writeln!(self.input, "cpu").expect("the receiver reads");
        let line = self.line();
        let (process, thread) = line.split_once(' ').expect("two numbers");
        (process.parse().expect("number"), thread.parse().expect("number"))
    }

    /// Prints the CPU use of both idle processes.
    fn print_idle(&mut self, state: &str) {
        std::thread::sleep(Duration::from_secs(2));
        let (before, began) = ((cpu(), self.cpu()), Instant::now());
        std::thread::sleep(Duration::from_secs(10));
        let (after, wall) = ((cpu(), self.cpu()), began.elapsed().as_secs_f64());
        let percent = |after: f64, before: f64| 100.0 * (after - before) / wall;
        println!(
            "{state}: sender {:.2} % of a core (thread {:.2} %), receiver {:.2} % (thread {:.2} %)",
            percent(after.0.0, before.0.0),
            percent(after.0.1, before.0.1),
            percent(after.1.0, before.1.0),
            percent(after.1.1, before.1.1),
        );
    }
}

/// A connected session, and the puts posted in it so far.
struct Puts {
    transport: UcxTransport,
    events: Receiver<Event>,
    page: u64,
    window: u64,
    completed: u64,
}

impl Puts {
    fn post(&self, number: u64) {
        let (page, pages) = (self.page, REGION_BYTES / self.page);
        let (local_offset, remote_offset) = (number % pages * page, number * 31 % pages * page);
        let ticket = Ticket(number);
        self.transport
            .submit(Command::Put {
                session: SESSION,
                ticket,
                lane: 0,
                local_offset,
                remote_offset,
                bytes: page,
            })
            .expect("the queue has room for a window");
    }

    /// GB/s of so many puts and a flush.
    fn run(&mut self, puts: u64) -> f64 {
        let (began, target) = (Instant::now(), self.completed + puts);
        let mut sent = self.completed;
        while self.completed < target {
            while sent < target && sent < self.completed + self.window {
                self.post(sent);
                sent += 1;
            }
            match next(&self.events) {
                Event::PutCompleted { result, .. } => result.expect("put"),
                other => panic!("{other:?}"),
            }
            self.completed += 1;
        }
        let flush = Command::Flush { session: SESSION, ticket: Ticket(u64::MAX), lane: 0 };
        self.transport.submit(flush).expect("the queue has room");
        match next(&self.events) {
            Event::Flushed { result, .. } => result.expect("flush"),
            other => panic!("{other:?}"),
        }
        (puts * self.page) as f64 / began.elapsed().as_secs_f64() / 1e9
    }
}

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--receive") {
        return receiver();
    }
    let number = |name: &str, default: u64| match args.iter().position(|arg| arg == name) {
        Some(at) => args.get(at + 1).and_then(|value| value.parse().ok()).expect("a number after the flag"),
        None => default,
    };
    let (page, window, count) = (number("--page", 737_280), number("--window", 4), number("--count", 4000));
    let is_idle = args.iter().any(|arg| arg == "--idle");
    let mut receiver = Peer::start();
    let peer = receiver.descriptor();
    let (transport, events) = start();
    let library = transport.library();
    println!("UCX {} at {}", library.version(), library.path().display());
    opened(&transport, &events);
    let mut idle = |state: &str| {
        if is_idle {
            receiver.print_idle(state);
        }
    };
    idle("opened");
    transport.submit(Command::Connect { session: SESSION, peer }).expect("the queue has room");
    match next(&events) {
        Event::Connected { lane, .. } => println!("lane {lane}"),
        other => panic!("{other:?}"),
    }
    idle("connected");
    let mut puts = Puts { transport, events, page, window, completed: 0 };
    puts.run(count.div_ceil(20));
    let rates: Vec<_> = (0..3).map(|_| format!("{:.2}", puts.run(count))).collect();
    println!("{count} puts of {page} bytes, window {window}, then a flush: {} GB/s", rates.join(", "));
    idle("after puts");
    puts.transport.shutdown();
    let Peer { mut child, input, .. } = receiver;
    drop(input);
    child.wait().expect("the receiver ends");
}
