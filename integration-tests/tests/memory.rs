//! Large bodies at the same moment: resident memory stays within twice the budget, and comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::folders::llamas;
use integration_tests::process::{PATIENCE, Process, until};

/// As many bodies as all permits, each as large as the server takes.
const CLIENTS: usize = 64;
const BODY_BYTES: usize = 8 << 20;
/// `request.input_bytes` where nothing sets it.
const BUDGET_MIB: f64 = 256.0;
const BACK_WITHIN_MIB: f64 = 64.0;

/// A body of as many of these elements as fit.
fn body(element: &str) -> String {
    let (head, tail) = (r#"{"prompt":["#, "]}");
    let elements = (BODY_BYTES - head.len() - tail.len() + 1) / (element.len() + 1);
    format!("{head}{}{tail}", vec![element; elements].join(","))
}

/// Sends a body and returns the answer.
fn post(address: &str, body: &str) -> Result<String> {
    let mut client = TcpStream::connect(address)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        client,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    )?;
    client.write_all(body.as_bytes())?;
    let mut answer = String::new();
    match client.read_to_string(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(answer),
    }
}

/// The most that is resident until `done`, in MiB.
fn peak(process: &Process, done: &AtomicBool) -> Result<f64> {
    let mut peak: f64 = 0.0;
    while !done.load(Ordering::Relaxed) {
        peak = peak.max(process.resident_mib()?);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(peak)
}

#[test]
fn large_bodies_at_once_stay_within_the_budget() -> Result<()> {
    let folder = llamas()?.first().context("a model")?.write("memory")?;
    let model = folder.path().display().to_string();
    let small = ["--set", "frontend.port=0", "--set", "engine.kv_bytes=16MiB", "--model", &model];
    let process = Process::start(&small, &[])?;
    process.wait_line(&["ready in"])?;
    let address = process.address("frontend.port")?;
    for (element, words) in [("[1,1]", "the request asks for"), ("1", "prompt has more than 256 tokens")] {
        let body = body(element);
        // What the first requests need for good is there.
        ensure!(post(&address, &body)?.contains(words));
        let before = process.resident_mib()?;
        let done = AtomicBool::new(false);
        let (answers, peak) = std::thread::scope(|scope| -> Result<(Vec<String>, f64)> {
            let watch = scope.spawn(|| peak(&process, &done));
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| post(&address, &body))).collect();
            let answers: Result<Vec<String>> =
                clients.into_iter().map(|client| client.join().expect("no panic")).collect();
            done.store(true, Ordering::Relaxed);
            Ok((answers?, watch.join().expect("no panic")?))
        })?;
        for answer in &answers {
            let refused = answer.contains(words) || answer.contains("request.input_bytes (256 MiB)");
            // On a busy machine a body may be late.
            ensure!(refused || answer.starts_with("HTTP/1.1 408"), "{answer:?}");
        }
        ensure!(
            answers.iter().any(|answer| answer.contains(words)),
            "some are within the budget: {answers:?}"
        );
        let grown = peak - before;
        println!("{element}: {before:.0} MiB resident, {grown:+.0} MiB at the peak");
        ensure!(grown < 2.0 * BUDGET_MIB, "{grown:.0} MiB more than {before:.0}");
        until("memory is back", Duration::from_secs(10), || {
            Ok(process.resident_mib()? < before + BACK_WITHIN_MIB)
        })?;
    }
    Ok(())
}
