//! The instructions of the frontend per request: without traces, with a collector and no recorded request, and with every hundredth request
//! recorded.
//!
//! A frontend runs under valgrind's callgrind, and this program is its only client and its collector. Two runs with different numbers of
//! requests give the instructions per request. Debian's package `valgrind` is needed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::client::Connection;
use runtime::traces::Traces;

use super::{ask, frontend, request};

/// The argument of the process under valgrind.
pub(super) const SERVE: &str = "--serve";

/// Requests of the shorter run.
const FEW: u64 = 200;

/// Serves until its standard input ends. `words` are the collector's URL and the share of recorded requests, or nothing.
pub(super) fn serve(words: &[String]) -> Result<()> {
    let traces = match words {
        [collector, share] => Traces::start(collector, share.parse()?, "local", None)?,
        _ => Traces::default(),
    };
    println!("{}", frontend(1, traces.clone())?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    traces.end();
    Ok(())
}

/// A collector that takes everything.
fn collector() -> Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    Ok(url)
}

/// The instructions of a frontend with these arguments that answers this many requests.
fn instructions(arguments: &[&str], requests: u64) -> Result<u64> {
    let mut server = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .arg(SERVE)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run valgrind; install it")?;
    let mut address = String::new();
    BufReader::new(server.stdout.take().context("no output")?).read_line(&mut address)?;
    let mut connection = Connection::open(address.trim())?;
    for _ in 0..requests {
        ask(&mut connection, &request())?;
    }
    drop(server.stdin.take());
    let output = server.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let count = errors.lines().find_map(|line| line.split_once("Collected :"));
    let count = count.with_context(|| format!("valgrind printed no count: {errors}"))?.1;
    Ok(count.trim().parse()?)
}

/// Prints the instructions per request, without traces and with them.
pub(super) fn compare(requests: Option<&String>) -> Result<()> {
    let more = requests.map_or(Ok(2000), |text| text.parse()).context("REQUESTS is not a number")?;
    let url = collector()?;
    println!("instructions per request, {more} requests after the first {FEW}");
    let mut off = None;
    for (name, arguments) in [
        ("no traces", &[][..]),
        ("collector, none recorded", &[url.as_str(), "0"]),
        ("1 of 100 recorded", &[url.as_str(), "0.01"]),
    ] {
        let all = instructions(arguments, FEW + more)?.saturating_sub(instructions(arguments, FEW)?);
        let each = all as f64 / more as f64;
        let off = *off.get_or_insert(each);
        println!("{name:<26} {each:>10.0} {:>+7.2} %", (each / off - 1.0) * 100.0);
    }
    Ok(())
}
