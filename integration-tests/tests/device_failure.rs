//! A process whose device has failed fails its requests and ends, and a panic ends a process at once. The device is simulated by an engine
//! on the CPU that fails for certain prompts (see `examples/failing_device.rs`).

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context, Result};
use integration_tests::client::{complete, get, post};
use integration_tests::process::{Process, failing_device, start_receiver};
use serde_json::{Value, json};

/// A prompt that makes the device fail.
const FAILS: [u32; 4] = [1, 777, 777, 777];
/// A prompt that makes the device fail and then hang when the process ends.
const HANGS: [u32; 4] = [1, 778, 778, 778];
/// A prompt that makes the engine panic.
const PANICS: [u32; 4] = [1, 779, 779, 779];

fn start(arguments: &[&str]) -> Result<Process> {
    Process::start_program(&failing_device()?, arguments, &[])
}

/// Checks that the process ends with exit code 1 and that its last line has the reason and the advice to restart.
fn ends_with_the_reason(process: &mut Process) -> Result<()> {
    let status = process.wait()?;
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().context("the process printed no log")?;
    let reason = "error: the GPU failed: cuEventQuery failed: CUDA_ERROR_ILLEGAL_ADDRESS (700); ";
    assert!(last.starts_with(reason) && last.contains("restart"), "{log}");
    Ok(())
}

fn ask(address: &str, prompt: &[u32], tokens: u32) -> Result<(u16, Value)> {
    let body = json!({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true});
    post(address, "/v1/completions", &body)
}

#[test]
fn a_local_process_fails_its_requests_and_ends() -> Result<()> {
    let mut local = start(&["--role", "local", "--set", "frontend.port=0"])?;
    let address = local.address("frontend.port")?;
    assert_eq!(complete(&address, &json!([1, 2, 3]), 4)?.ids.len(), 4);
    let long = std::thread::spawn({
        let address = address.clone();
        move || ask(&address, &[1, 2, 3], 4000)
    });
    while get(&address, "/health")?.1["live_requests"] != 1 {
        std::thread::yield_now();
    }
    for (status, answer) in [ask(&address, &FAILS, 4)?, long.join().expect("the thread did not panic")?] {
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, 500, "{answer}");
        assert!(message.starts_with("engine failed: the GPU failed: cuEventQuery failed"), "{answer}");
    }
    ends_with_the_reason(&mut local)
}

#[test]
fn a_sender_returns_its_requests_and_ends() -> Result<()> {
    let receiver = start_receiver(&[])?;
    let frontend = receiver.address("frontend.port")?;
    let peers = format!("link.peers={}", receiver.address("link.port")?);
    let mut sender = start(&["--role", "sender", "--set", "http.port=0", "--set", &peers])?;
    receiver.wait_peers(1)?;
    assert_eq!(complete(&frontend, &json!([1, 2, 3]), 4)?.timings["disaggregated"], true);
    let answer = complete(&frontend, &json!(FAILS), 4)?;
    assert_eq!((answer.ids.len(), &answer.timings["disaggregated"]), (4, &json!(false)));
    ends_with_the_reason(&mut sender)?;
    let (status, health) = get(&frontend, "/health")?;
    assert_eq!((status, &health["status"]), (200, &json!("ok")), "{health}");
    assert_eq!(complete(&frontend, &json!([4, 5, 6]), 4)?.timings["disaggregated"], false);
    Ok(())
}

#[test]
fn a_process_ends_although_its_device_hangs() -> Result<()> {
    let mut local = start(&["--role", "local", "--set", "frontend.port=0", "--set", "shutdown.drain=1ms"])?;
    let address = local.address("frontend.port")?;
    assert_eq!(ask(&address, &HANGS, 4)?.0, 500);
    ends_with_the_reason(&mut local)
}

/// A process that drains and still accepts requests, and its address.
fn draining() -> Result<(Process, String)> {
    let local = start(&["--role", "local", "--set", "frontend.port=0", "--set", "shutdown.delay=1h"])?;
    let address = local.address("frontend.port")?;
    assert_eq!(complete(&address, &json!([1, 2, 3]), 4)?.ids.len(), 4);
    local.signal("-TERM")?;
    local.until("it drains", || Ok(get(&address, "/health")?.1["status"] == "draining"))?;
    Ok((local, address))
}

#[test]
fn a_device_that_fails_during_a_drain_ends_the_process_with_the_reason() -> Result<()> {
    let (mut local, address) = draining()?;
    assert_eq!(ask(&address, &FAILS, 4)?.0, 500);
    ends_with_the_reason(&mut local)
}

#[test]
fn a_panic_on_the_engine_thread_ends_the_process_also_while_it_drains() -> Result<()> {
    const ABORTED: i32 = 6;
    let serving = start(&["--role", "local", "--set", "frontend.port=0"])?;
    let address = serving.address("frontend.port")?;
    for (mut local, address) in [(serving, address), draining()?] {
        assert!(ask(&address, &PANICS, 4).is_err(), "the connection breaks");
        let status = local.wait()?;
        assert_eq!(status.signal(), Some(ABORTED), "{}", local.log());
        assert!(local.log().contains("the engine panics on purpose"), "{}", local.log());
    }
    Ok(())
}
