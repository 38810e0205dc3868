//! Several senders for one receiver, and the quarantine of pages that a lost sender may still write.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use integration_tests::client::{complete, get, metrics};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{
    Event, Pair, Process, start_receiver, start_sender, start_sender_with, until,
};
use serde_json::{Value, json};

fn prompt() -> Value {
    json!("The lighthouse keeper counted the ships that passed in the night and wrote their names in a book")
}

fn gauge(address: &str, name: &str) -> Result<u64> {
    metrics(address)?.get(name)
}

#[test]
fn senders_share_requests_and_the_loss_of_one_leaves_the_others() -> Result<()> {
    let receiver = start_receiver(&["ring.bytes=12MiB"])?;
    let frontend = receiver.address("frontend.port")?;
    let mut senders: Vec<Process> = Vec::new();
    for peers in 1..=3 {
        senders.push(start_sender(&receiver, &[])?);
        receiver.wait_peers(peers)?;
    }
    let expect = complete(&receiver.address("http.port")?, &prompt(), 4)?.ids;
    let prefilled_by = |requests: usize| -> Result<BTreeSet<u64>> {
        (0..requests)
            .map(|_| {
                let answer = complete(&frontend, &prompt(), 4)?;
                ensure!(answer.ids == expect, "other tokens: {:?}", answer.text);
                answer.timings["prefill_pid"].as_u64().context("the timings have no prefill_pid")
            })
            .collect()
    };
    let pids = |senders: &[Process]| senders.iter().map(|sender| u64::from(sender.pid())).collect();
    assert_eq!(prefilled_by(6)?, pids(&senders), "all senders prefill");
    assert_eq!(gauge(&frontend, "baton_sessions_ready")?, 3, "all sessions last");

    let mut first = senders.remove(0);
    first.signal("-TERM")?;
    assert_eq!(first.wait()?.code(), Some(0), "{}", first.log());
    assert_eq!(prefilled_by(6)?, pids(&senders));
    let second = senders.remove(0);
    second.signal("-KILL")?;
    receiver.wait_peers(1)?;
    assert_eq!(prefilled_by(6)?, pids(&senders));
    assert_eq!(gauge(&frontend, "baton_pages_quarantined")?, 0);
    Ok(())
}

/// Lanes on which a sender writes the memory of the receiver without its help. Closing the session at the receiver then does not prove that
/// the sender has stopped writing.
const FOREIGN: [(&str, &str); 1] = [("UCX_TLS", "posix,cma,tcp")];

#[test]
fn pages_that_a_lost_sender_may_write_wait_for_proof() -> Result<()> {
    let pair = Pair::start_with(&[], &FOREIGN)?;
    let expect = complete(&pair.receiver.address("http.port")?, &prompt(), 4)?.ids;
    let quarantined = || gauge(&pair.frontend, "baton_pages_quarantined");
    assert_eq!(complete(&pair.frontend, &prompt(), 4)?.timings["disaggregated"], true);

    // The receiver loses a stopped sender. But the sender can still continue and write.
    pair.sender.signal("-STOP")?;
    pair.receiver.wait_peers(0)?;
    until("its pages are in quarantine", STATE_WITHIN, || Ok(quarantined()? > 0))?;
    let (status, health) = get(&pair.frontend, "/health")?;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")), "{health}");
    let answer = complete(&pair.frontend, &prompt(), 4)?;
    assert_eq!((answer.ids, &answer.timings["disaggregated"]), (expect.clone(), &json!(false)));

    // The sender continues, dials again, and reports that no put is in flight. That is proof.
    pair.sender.signal("-CONT")?;
    until("the report of the sender frees the pages", STATE_WITHIN, || Ok(quarantined()? == 0))?;
    until("the sender hands over again", STATE_WITHIN, || {
        Ok(complete(&pair.frontend, &prompt(), 4)?.timings["disaggregated"] == true)
    })?;

    // The end of the sender is proof too.
    pair.sender.signal("-STOP")?;
    until("its pages are in quarantine", STATE_WITHIN, || Ok(quarantined()? > 0))?;
    pair.sender.signal("-KILL")?;
    until("the end of the sender frees the pages", STATE_WITHIN, || Ok(quarantined()? == 0))?;
    assert_eq!(get(&pair.frontend, "/health")?.1["status"], "ok");
    let next = start_sender_with(&pair.receiver, &[], &FOREIGN)?;
    next.wait_peers(1)?;
    until("the next sender hands over", STATE_WITHIN, || {
        let answer = complete(&pair.frontend, &prompt(), 4)?;
        ensure!(answer.ids == expect, "other tokens: {:?}", answer.text);
        Ok(answer.timings["prefill_pid"] == next.pid())
    })
}

/// One receiver refuses the sender and another one accepts it. The sender serves the receiver that accepts it.
#[test]
fn a_refusal_ends_only_the_link_of_that_receiver() -> Result<()> {
    let receiver = start_receiver(&[])?;
    let stranger = start_receiver(&["link.secret=another"])?;
    let peers = format!("link.peers={},{}", receiver.address("link.port")?, stranger.address("link.port")?);
    let sender = start_sender(&receiver, &[&peers])?;
    sender.wait_peers(1)?;
    receiver.wait_peers(1)?;
    sender.wait_event(Event::ReceiverRefuses, &["link.secret"])?;
    let frontend = receiver.address("frontend.port")?;
    for _ in 0..3 {
        let answer = complete(&frontend, &prompt(), 4)?;
        assert_eq!(answer.timings["prefill_pid"].as_u64(), Some(u64::from(sender.pid())));
    }
    assert_eq!(sender.count_events(Event::ReceiverRefuses), 1, "{}", sender.log());
    Ok(())
}
