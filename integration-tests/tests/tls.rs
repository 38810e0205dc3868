//! TLS of the HTTP ports, of the connections between a proxy and nodes, and of the link, with real processes. `docs/tls.md` describes it.

#[path = "tls/link.rs"]
mod link;
#[path = "tls/nodes.rs"]
mod nodes;
#[path = "tls/renewal.rs"]
mod renewal;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::certificates::{Authority, PemFolder};
use integration_tests::client::{complete, get, trusting};
use integration_tests::process::{Event, Process, binary, start_local};
use serde_json::{Value, json};

/// The names of this machine.
const HERE: [&str; 2] = ["127.0.0.1", "localhost"];

/// Settings as the functions that start processes take them.
fn all(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

#[test]
fn https_is_served_to_clients_that_trust_the_authority() -> Result<()> {
    let (authority, other, files) = (Authority::new()?, Authority::new()?, PemFolder::new()?);
    let (process, address) = start_local(&all(&files.http(&authority.signs(&HERE)?)?))?;
    assert!(address.starts_with("https://127.0.0.1:"), "{address}");
    let by_name = address.replace("127.0.0.1", "localhost");
    for url in [&address, &by_name] {
        let answer = trusting(&authority).get(format!("{url}/health")).call()?;
        assert_eq!(answer.status().as_u16(), 200);
    }
    assert_eq!(complete(&address, &json!("Once upon a time"), 5)?.ids.len(), 5);

    let refused = trusting(&other).get(format!("{address}/health")).call().err().context("refused")?;
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
    process.wait_event(
        Event::HandshakeFailed,
        &["give it the authority of the certificate", "peer=\"127.0.0.1:"],
    )?;
    // The port serves no plain HTTP.
    let plain = address.replace("https://", "http://");
    assert!(get(&plain, "/health").is_err());
    assert_eq!(get(&address, "/health")?.0, 200, "the port serves others after that");

    // The tools of this program reach it with the authorities of the variable.
    let bench = |variables: &[(&str, &str)]| {
        let arguments =
            ["bench", "serve", "--base-url", &address, "--num-prompts", "2", "--random-input-len", "8"];
        let more = ["--random-output-len", "2", "--dataset-name", "random"];
        let command =
            Command::new(binary()?).args(arguments).args(more).envs(variables.iter().copied()).output();
        anyhow::Ok(command?)
    };
    files.put("", "ca.pem", &authority.pem())?;
    let ca = files.path().join("ca.pem").display().to_string();
    let measured = bench(&[("SSL_CERT_FILE", &ca)])?;
    let text = String::from_utf8_lossy(&measured.stdout);
    ensure!(measured.status.success(), "{text}{}", String::from_utf8_lossy(&measured.stderr));
    files.put("", "other.pem", &other.pem())?;
    let ca = files.path().join("other.pem").display().to_string();
    let refused = String::from_utf8_lossy(&bench(&[("SSL_CERT_FILE", &ca)])?.stderr).into_owned();
    assert!(refused.contains(&address) && refused.contains("UnknownIssuer"), "{refused}");
    drop(process);
    Ok(())
}

/// A start with files that cannot be used ends with one sentence, before the model is read. The doctor has the same sentence.
#[test]
fn files_that_cannot_be_used_end_the_start() -> Result<()> {
    let (authority, files) = (Authority::new()?, PemFolder::new()?);
    let check = |role: &str, settings: &[String], words: &[&str]| {
        let mut arguments = vec!["--role", role, "--model", "/nowhere"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        let mut process = Process::start(&arguments, &[])?;
        assert_eq!(process.wait()?.code(), Some(1), "{}", process.log());
        let log = process.log();
        let line = log.lines().last().context("a process that does not start says why")?;
        let found = words.iter().all(|word| line.contains(word));
        ensure!(line.starts_with("error: ") && found, "{line:?} lacks one of {words:?}");
        let report = Command::new(binary()?).arg("doctor").arg("--json").args(&arguments).output()?;
        let findings: Value = serde_json::from_slice(&report.stdout)?;
        let of_files = findings.as_array().into_iter().flatten().filter(|one| one["check"] == "certificates");
        let texts: Vec<String> = of_files.map(|one| format!("{} {}", one["what"], one["remedy"])).collect();
        let is_found = |text: &String| words.iter().all(|word| text.contains(word));
        ensure!(texts.iter().any(is_found), "no finding has all of {words:?}: {texts:?}");
        anyhow::Ok(())
    };
    let pair = authority.signs(&HERE)?;
    let mut mixed = pair.clone();
    mixed.key = authority.signs(&HERE)?.key;
    check(
        "local",
        &files.http(&mixed)?,
        &["http_own.key (tls.key_file) does not belong", "http_own.pem (tls.cert_file)"],
    )?;
    let expired = authority.signs_until(&HERE, 2020)?;
    check(
        "receiver",
        &files.link(&expired, &authority)?,
        &["link_own.pem (link.tls_cert_file) expired on 2020-01-01"],
    )?;
    let mut link = files.link(&pair, &authority)?.to_vec();
    link.push("link.tls_allowed_names=node-1".to_owned());
    link[2] = "link.tls_ca_file=/nowhere/ca.pem".to_owned();
    check("sender", &link, &["link.tls_ca_file is /nowhere/ca.pem", "cannot be read"])?;
    let proxy =
        [files.put("fleet.nodes_ca_file", "ca.pem", "nothing")?, "fleet.nodes=127.0.0.1:1".to_owned()];
    check("proxy", &proxy, &["fleet.nodes_ca_file is ", "has no certificate"])
}
