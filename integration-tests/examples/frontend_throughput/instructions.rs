//! The instructions of the frontend per request: without traces, with a collector and no recorded request, and with every hundredth request
//! recorded.
//!
//! A process with three frontends runs under valgrind's callgrind, and this program is its only client and its collector. The frontends share the
//! model, because the hash tables of another process have other keys, which changes the count by 1 %. They are asked in turn, and callgrind
//! counts each turn by itself. A turn ends when the exporter has sent its spans, so its instructions count too. Debian's package `valgrind` is needed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::statistics::median;
use integration_tests::client::Connection;
use runtime::traces::Traces;

use super::{ask, frontend, model, request};

/// The argument of the process under valgrind.
pub(super) const SERVE: &str = "--serve";

/// Requests to each frontend before the first turn.
const FEW: u64 = 200;

/// Turns of each frontend.
const TURNS: usize = 12;

/// Longer than the exporter waits for more spans.
const FLUSHED: Duration = Duration::from_secs(6);

/// What the frontends are, in the order of their addresses.
const NAMES: [&str; 3] = ["no traces", "collector, none recorded", "1 of 100 recorded"];

/// Serves until its standard input ends. Prints an address for each of [`NAMES`]. `collector` is a URL.
pub(super) fn serve(collector: &str) -> Result<()> {
    let model = model()?;
    let recorded = |share| Traces::start(collector, share, "local", None);
    let traces = [Traces::default(), recorded(0.0)?, recorded(0.01)?];
    for traces in &traces {
        println!("{}", frontend(&model, 1, traces.clone())?);
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    traces.iter().for_each(Traces::end);
    Ok(())
}

/// A collector that takes everything, and keeps its connections.
fn collector() -> Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                while let Some(length) = head(&mut stream) {
                    let mut body = (&mut stream).take(length);
                    if std::io::copy(&mut body, &mut std::io::sink()).is_err() {
                        return;
                    }
                    let _ = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
            });
        }
    });
    Ok(url)
}

/// Reads the head of a request. Returns the length of its body, or `None` at the end of the connection.
fn head(stream: &mut impl std::io::BufRead) -> Option<u64> {
    let mut length = None;
    for line in stream.lines() {
        let line = line.ok()?;
        match line.split_once(": ") {
            _ if line.is_empty() => return length,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok(),
            _ => (),
        }
    }
    None
}

/// The process under valgrind.
struct Valgrind {
    process: Child,
    /// The addresses of its frontends.
    frontends: Vec<String>,
    /// Where callgrind writes its counts.
    file: String,
    counts: usize,
}

impl Valgrind {
    fn start(folder: &Path) -> Result<Self> {
        let file = folder.join("counts").display().to_string();
        let mut process = Command::new("valgrind")
            .args(["--tool=callgrind", &format!("--callgrind-out-file={file}")])
            .arg(std::env::current_exe()?)
            .args([SERVE, &collector()?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run valgrind; install it")?;
        let lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let frontends = lines.take(NAMES.len()).collect::<Result<_, _>>()?;
        Ok(Self { process, frontends, file, counts: 0 })
    }

    /// The instructions since the last call.
    fn count(&mut self) -> Result<u64> {
        let pid = self.process.id().to_string();
        let dump = Command::new("callgrind_control").args(["--dump", &pid]).output()?;
        ensure!(dump.status.success(), "callgrind_control: {}", String::from_utf8_lossy(&dump.stderr));
        self.counts += 1;
        let path = format!("{}.{}", self.file, self.counts);
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        Ok(total.with_context(|| format!("{path} has no totals"))?.trim().parse()?)
    }

    /// The instructions of this many requests to a frontend.
    fn turn(&mut self, frontend: usize, requests: u64) -> Result<u64> {
        self.count()?;
        // A connection that is idle during the turns of the others would be closed.
        let mut connection = Connection::open(&self.frontends[frontend])?;
        for _ in 0..requests {
            ask(&mut connection, &request())?;
        }
        std::thread::sleep(FLUSHED);
        self.count()
    }
}

impl Drop for Valgrind {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The instructions per request of each turn, for each of [`NAMES`].
fn count_all(folder: &Path, requests: u64) -> Result<Vec<Vec<f64>>> {
    let mut valgrind = Valgrind::start(folder)?;
    for frontend in 0..NAMES.len() {
        valgrind.turn(frontend, FEW)?;
    }
    let mut each = vec![Vec::new(); NAMES.len()];
    for _ in 0..TURNS {
        for (frontend, each) in each.iter_mut().enumerate() {
            each.push(valgrind.turn(frontend, requests)? as f64 / requests as f64);
        }
    }
    Ok(each)
}

/// Prints the instructions per request, without traces and with them.
pub(super) fn compare(requests: Option<&String>) -> Result<()> {
    let requests = requests.map_or(Ok(2000), |text| text.parse()).context("REQUESTS is not a number")?;
    let folder = std::env::temp_dir().join(format!("baton-instructions-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let each = count_all(&folder, requests);
    std::fs::remove_dir_all(&folder)?;
    let each = each?;
    println!("instructions per request, median and range of {TURNS} turns of {requests} requests");
    let off = median(each[0].clone());
    for (name, each) in NAMES.iter().zip(each) {
        let (least, most) =
            each.iter().fold((f64::MAX, 0.0_f64), |(least, most), n| (least.min(*n), most.max(*n)));
        let middle = median(each);
        println!(
            "{name:<26} {middle:>10.0} {:>+7.2} %  ({least:.0} to {most:.0})",
            (middle / off - 1.0) * 100.0
        );
    }
    Ok(())
}
