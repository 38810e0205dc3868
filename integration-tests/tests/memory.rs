//! Many large bodies at once: resident memory grows by less than twice the budget, and shrinks again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::client::Connection;
use integration_tests::folders::small_models;
use integration_tests::process::{Process, until};

/// More large bodies at once than the budget allows. Each has the largest size that the server accepts.
const CLIENTS: usize = 64;
const BODY_BYTES: usize = 8 << 20;
/// The default of `request.input_bytes`.
const BUDGET_MIB: f64 = 256.0;
const BACK_WITHIN_MIB: f64 = 64.0;

/// A body of the largest size, filled with this element.
fn body(element: &str) -> String {
    let (head, tail) = (r#"{"prompt":["#, "]}");
    let elements = (BODY_BYTES - head.len() - tail.len() + 1) / (element.len() + 1);
    format!("{head}{}{tail}", vec![element; elements].join(","))
}

/// Sends a body and returns the status and the answer.
fn post(address: &str, body: &str) -> Result<(u16, String)> {
    Connection::post(address, "/v1/completions", body)?.answer()
}

/// The peak resident memory until `done`, in MiB.
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
    let folder = small_models()?.first().context("there is no test model")?.write("memory")?;
    let model = folder.path().display().to_string();
    let small = ["--set", "frontend.port=0", "--set", "engine.kv_bytes=16MiB", "--model", &model];
    let process = Process::start(&small, &[])?;
    let address = process.wait_healthy("frontend.port")?;
    for (element, words) in [("[1,1]", "the request asks for"), ("1", "prompt has more than 256 tokens")] {
        let body = body(element);
        // Memory that the first request allocates for the life of the process is not counted.
        ensure!(post(&address, &body)?.1.contains(words));
        let before = process.resident_mib()?;
        let done = AtomicBool::new(false);
        let (answers, peak) = std::thread::scope(|scope| -> Result<(Vec<(u16, String)>, f64)> {
            let watch = scope.spawn(|| peak(&process, &done));
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| post(&address, &body))).collect();
            let answers: Result<Vec<(u16, String)>> =
                clients.into_iter().map(|client| client.join().expect("the thread did not panic")).collect();
            done.store(true, Ordering::Relaxed);
            Ok((answers?, watch.join().expect("the thread did not panic")?))
        })?;
        for (status, answer) in &answers {
            let refused = answer.contains(words) || answer.contains("request.input_bytes (256 MiB)");
            // On a busy machine a body may arrive too late.
            ensure!(refused || *status == 408, "{status}: {answer:?}");
        }
        ensure!(
            answers.iter().any(|(_, answer)| answer.contains(words)),
            "no request was within the budget: {answers:?}"
        );
        let grown = peak - before;
        println!("{element}: {before:.0} MiB resident, {grown:+.0} MiB at the peak");
        ensure!(grown < 2.0 * BUDGET_MIB, "{grown:.0} MiB more than {before:.0}");
        until("memory has shrunk again", Duration::from_secs(10), || {
            Ok(process.resident_mib()? < before + BACK_WITHIN_MIB)
        })?;
    }
    Ok(())
}
