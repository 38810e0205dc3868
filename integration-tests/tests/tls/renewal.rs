//! New certificates are used without a restart and without an effect on live streams.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use integration_tests::certificates::{Authority, PemFolder, SignedPair};
use integration_tests::client::trusting;
use integration_tests::process::{Event, start_local};
use serde_json::json;

use super::HERE;

/// Replaces the files as Kubernetes does: they are links through the link `..data`, which is renamed.
fn replace(files: &PemFolder, version: &str, pair: &SignedPair) -> Result<()> {
    let at = |name: &str| files.path().join(name);
    fs::create_dir(at(version))?;
    fs::write(at(version).join("cert.pem"), &pair.certificate)?;
    fs::write(at(version).join("key.pem"), &pair.key)?;
    symlink(version, at("..tmp"))?;
    Ok(fs::rename(at("..tmp"), at("..data"))?)
}

#[test]
fn a_stream_goes_on_while_certificates_change() -> Result<()> {
    let (first, second, files) = (Authority::new()?, Authority::new()?, PemFolder::new()?);
    replace(&files, "..1", &first.signs(&HERE)?)?;
    for name in ["cert.pem", "key.pem"] {
        symlink(Path::new("..data").join(name), files.path().join(name))?;
    }
    let [certificate, key] = [("tls.cert_file", "cert.pem"), ("tls.key_file", "key.pem")]
        .map(|(setting, name)| format!("{setting}={}", files.path().join(name).display()));
    let (process, address) = start_local(&[&certificate, &key])?;
    let answers = |authority: &Authority| trusting(authority).get(format!("{address}/live")).call().is_ok();
    assert!(answers(&first) && !answers(&second));

    // The client reads no further until the certificate has changed. The answer is longer than the buffers between the two.
    let body = json!({
        "prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": true, "stream": true, "temperature": 0,
        "logprobs": 5,
    });
    let agent = trusting(&first);
    let stream = agent.post(format!("{address}/v1/completions")).send_json(&body)?;
    let mut lines = BufReader::new(stream.into_body().into_reader()).lines();
    let begun = lines.next().context("the stream begins")??;
    assert!(begun.starts_with("data: "), "{begun}");

    replace(&files, "..2", &second.signs(&HERE)?)?;
    process.wait_event(Event::PemRenewed, &["the certificate of the HTTP ports"])?;
    assert!(answers(&second) && !answers(&first), "new connections get the new certificate");

    let mut bad = first.signs(&HERE)?;
    bad.key.clear();
    replace(&files, "..3", &bad)?;
    process.wait_event(Event::PemUnusable, &["tls.key_file is ", "no private key"])?;
    assert!(answers(&second), "the old certificate stays in use");

    let mut ended = false;
    for line in lines {
        ended = line?.contains("[DONE]") || ended;
    }
    assert!(ended, "the stream is whole");
    Ok(())
}
