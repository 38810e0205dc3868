//! Mutual TLS of the link between a receiver and a sender.

use anyhow::Result;
use integration_tests::certificates::{Authority, PemFolder};
use integration_tests::client::{complete, metrics};
use integration_tests::process::{Event, Pair, start_member, start_sender};
use serde_json::json;

use super::{HERE, all};

/// Settings of a link with a certificate for `names`, and of the names that it allows.
fn settings(files: &PemFolder, authority: &Authority, names: &[&str], allowed: &str) -> Result<Vec<String>> {
    let mut settings = files.link(&authority.signs(names)?, authority)?.to_vec();
    if !allowed.is_empty() {
        settings.push(format!("link.tls_allowed_names={allowed}"));
    }
    Ok(settings)
}

#[test]
fn a_pair_with_certificates_hands_prompts_over() -> Result<()> {
    let (authority, files) = (Authority::new()?, PemFolder::new()?);
    let allowed = settings(&files, &authority, &["baton"], "other,baton")?;
    let pair = Pair::start(&all(&allowed))?;
    let answer = complete(&pair.frontend, &json!("Once upon a time, there was a"), 5)?;
    assert_eq!((answer.ids.len(), &answer.timings["prefill_pid"]), (5, &json!(pair.sender.pid())));

    // New certificates of another authority: sessions that live go on.
    let next = Authority::new()?;
    files.link(&next.signs(&["baton"])?, &next)?;
    for process in [&pair.receiver, &pair.sender] {
        process.wait_event(Event::PemRenewed, &["the certificates of the link"])?;
    }
    assert_eq!(complete(&pair.frontend, &json!("The capital of France is"), 5)?.ids.len(), 5);
    let second = start_sender(&pair.receiver, &all(&allowed))?;
    second.wait_peers(1)?;
    let opened = metrics(&pair.receiver.address("http.port")?)?.get("baton_sessions_ready")?;
    assert_eq!(opened, 2, "the session from before, and one with the new certificates");
    Ok(())
}

#[test]
fn both_ends_name_the_reason_of_a_refusal() -> Result<()> {
    let authority = Authority::new()?;
    let files = PemFolder::new()?;
    let receiver = start_member("receiver", &all(&settings(&files, &authority, &HERE, "sender-1")?))?;
    let check = |settings: &[String], receiver_says: &str, sender_says: &str| -> Result<()> {
        // A sender that its only receiver refuses ends.
        let mut sender = start_sender(&receiver, &all(settings))?;
        assert_eq!(sender.wait()?.code(), Some(1));
        let log = sender.log();
        let line = log.lines().last().unwrap_or_default();
        assert!(line.starts_with("error: ") && line.contains(sender_says), "{line:?} lacks {sender_says:?}");
        receiver.wait_event(Event::ConnectionRefused, &[receiver_says])?;
        Ok(())
    };
    let (stranger, folder) = (Authority::new()?, PemFolder::new()?);
    check(
        &settings(&folder, &stranger, &["sender-1"], "")?,
        "peer refuses the certificate of this process: no authority in its link.tls_ca_file signed it",
        "peer's certificate is signed by no authority in link.tls_ca_file",
    )?;
    let folder = PemFolder::new()?;
    check(
        &settings(&folder, &authority, &["sender-2"], "")?,
        "peer's certificate is for sender-2, but this process expects sender-1",
        "add one of its names to link.tls_allowed_names of the peer",
    )?;
    let folder = PemFolder::new()?;
    check(
        &settings(&folder, &authority, &["sender-1"], "receiver-9")?,
        "it has no name that the peer expects",
        "but this process expects receiver-9; set link.tls_allowed_names",
    )?;
    check(
        &[],
        "peer speaks without TLS on the link, but this process with TLS",
        "peer speaks TLS on the link",
    )
}
