//! How processes start, find each other and end.

use anyhow::{Context, Result};
use integration_tests::client::{complete, get, post};
use integration_tests::process::{Event, Pair, Process, start_local, start_receiver, start_sender};
use serde_json::{Value, json};

fn prompt() -> Value {
    json!("The lighthouse keeper counted the ships")
}

#[test]
fn a_pair_serves_on_every_port_and_ends_on_sigterm() -> Result<()> {
    let mut pair = Pair::start(&[])?;
    let everywhere =
        [pair.frontend.clone(), pair.receiver.address("http.port")?, pair.sender.address("http.port")?];
    let mut ids = Vec::new();
    for (port, disaggregated) in everywhere.iter().zip([true, false, false]) {
        let answer = complete(port, &prompt(), 8)?;
        assert_eq!(answer.timings["disaggregated"], disaggregated, "{port}: {}", answer.timings);
        ids.push(answer.ids);
        let (status, models) = get(port, "/v1/models")?;
        assert_eq!((status, &models["data"][0]["id"]), (200, &json!("SmolLM2-135M-Instruct")), "{models}");
        let (status, health) = get(port, "/health")?;
        assert_eq!((status, &health["status"], &health["peers"]), (200, &json!("ok"), &json!(1)), "{health}");
    }
    assert!(ids.iter().all(|other| *other == ids[0]), "{ids:?}");
    for process in [&mut pair.sender, &mut pair.receiver] {
        process.signal("-TERM")?;
        let status = process.wait()?;
        assert_eq!(status.code(), Some(0), "{}", process.log());
        let log = process.log();
        assert!(Event::Ended.is_in(log.lines().last().context("the process printed no log")?), "{log}");
    }
    Ok(())
}

#[test]
fn a_receiver_serves_before_a_sender_connects_and_after_it_is_killed() -> Result<()> {
    let receiver = start_receiver(&[])?;
    let frontend = receiver.address("frontend.port")?;
    let alone = complete(&frontend, &prompt(), 8)?;
    assert_eq!(alone.timings["disaggregated"], false);
    for _ in 0..2 {
        let sender = start_sender(&receiver, &[])?;
        receiver.wait_peers(1)?;
        let answer = complete(&frontend, &prompt(), 8)?;
        assert_eq!(answer.timings["prefill_pid"], sender.pid(), "{}", answer.timings);
        assert_eq!(answer.ids, alone.ids);
        sender.signal("-KILL")?;
        drop(sender);
        let answer = complete(&frontend, &prompt(), 8)?;
        assert_eq!(answer.ids, alone.ids, "a lost sender changes no token");
        receiver.wait_peers(0)?;
    }
    Ok(())
}

/// The log says why no prompt is handed over, and the address to connect to.
#[test]
fn a_node_without_peers_says_that_it_works_alone() -> Result<()> {
    let ports = ["--set", "http.port=0", "--set", "frontend.port=0", "--set", "link.port=0"];
    let node = Process::start(&[&["--role", "node"][..], &ports].concat(), &[])?;
    let link = node.address("link.port")?;
    node.wait_event(Event::WorksAlone, &["link.peers", &link])?;
    let answer = complete(&node.wait_healthy("frontend.port")?, &prompt(), 4)?;
    assert_eq!(answer.timings["disaggregated"], false);
    Ok(())
}

#[test]
fn a_public_port_without_a_secret_is_a_warning() -> Result<()> {
    let warnings = |sets: &[&str]| -> Result<(usize, usize)> {
        let log = start_receiver(sets)?.log();
        let count =
            |key: &str| log.lines().filter(|line| line.contains("WARN") && line.contains(key)).count();
        Ok((count("request.api_key"), count("link.secret")))
    };
    assert_eq!(warnings(&[])?, (0, 0), "all ports are on loopback");
    let public = ["frontend.host=0.0.0.0", "link.host=0.0.0.0"];
    assert_eq!(warnings(&public)?, (1, 1));
    let secrets = ["request.api_key=k", "link.secret=s"];
    assert_eq!(warnings(&[public, secrets].concat())?, (0, 0));
    Ok(())
}

#[test]
fn a_sender_waits_for_its_receiver() -> Result<()> {
    // A port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let link = format!("link.port={port}");
    let sender = Process::start(&["--role", "sender", "--set", "http.port=0", "--set", &link], &[])?;
    sender.wait_event(Event::ReceiverUnreachable, &[])?;
    let receiver = Process::start(
        &["--role", "receiver", "--set", "http.port=0", "--set", "frontend.port=0", "--set", &link],
        &[],
    )?;
    receiver.wait_peers(1)?;
    let answer = complete(&receiver.address("frontend.port")?, &prompt(), 4)?;
    assert_eq!(answer.timings["disaggregated"], true, "{}", answer.timings);
    Ok(())
}

#[test]
fn a_request_in_flight_finishes_before_the_process_ends() -> Result<()> {
    let (mut local, address) = start_local(&[])?;
    let body = json!({"prompt": "Once", "max_tokens": 48, "temperature": 0, "ignore_eos": true});
    let client = std::thread::spawn({
        let address = address.clone();
        move || post(&address, "/v1/completions", &body)
    });
    while get(&address, "/health")?.1["live_requests"] != 1 {
        std::thread::yield_now();
    }
    local.signal("-TERM")?;
    let (status, answer) = client.join().expect("the thread did not panic")?;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(48)), "{answer}");
    assert_eq!(local.wait()?.code(), Some(0), "{}", local.log());
    Ok(())
}

#[test]
fn a_wrong_secret_is_refused_and_a_right_one_is_not() -> Result<()> {
    let receiver = start_receiver(&["link.secret=open-sesame"])?;
    let mut stranger = start_sender(&receiver, &["link.secret=guess"])?;
    assert_eq!(stranger.wait()?.code(), Some(1));
    assert!(stranger.log().contains("link.secret"), "{}", stranger.log());
    let friend = start_sender(&receiver, &["link.secret=open-sesame"])?;
    friend.wait_peers(1)
}
