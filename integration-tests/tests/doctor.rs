//! `runtime doctor` names the fault and the remedy in staged situations. `docs/doctor.md` lists them; the tests of `runtime::doctor` have those that
//! only facts can stage, such as a GPU without peer access.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use connector::frame::{Challenge, Incarnation, Versions};
use integration_tests::folders::{Folder, small_models};
use integration_tests::fp8_folders::fp8_models;
use integration_tests::process::{Process, binary};
use serde_json::Value;

/// Small pages, and any free ports.
const SMALL: [&str; 8] = [
    "--set",
    "engine.kv_bytes=16MiB",
    "--set",
    "http.port=0",
    "--set",
    "frontend.port=0",
    "--set",
    "link.port=0",
];

/// A small model of this test; `of` is its place among the small models.
fn model(test: &str, of: usize) -> Result<Folder> {
    small_models()?.get(of).context("there are more small models")?.write(&format!("doctor-{test}"))
}

fn path(folder: &Folder) -> String {
    folder.path().display().to_string()
}

/// Runs `doctor` with these arguments and variables.
fn doctor(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars() {
        if ["BATON_", "UCX_", "HF_"].iter().any(|start| name.starts_with(start)) {
            command.env_remove(name);
        }
    }
    Ok(command.arg("doctor").args(arguments).envs(variables.iter().copied()).output()?)
}

fn findings(output: &Output) -> Result<Vec<Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// The states that a finding may have.
const FAULT: &str = "fault";
const WARNING: &str = "warning";

/// Checks that the report has a finding of this check and state with all of `words` in its sentence and its remedy.
fn has(report: &Output, check: &str, state: &str, words: &[&str]) -> Result<()> {
    let all = findings(report)?;
    let text = |finding: &Value| format!("{} {}", finding["what"], finding["remedy"]);
    let is_it = |finding: &&Value| {
        finding["check"] == check
            && finding["state"] == state
            && finding["remedy"].is_string()
            && words.iter().all(|word| text(finding).contains(word))
    };
    let found = all.iter().find(is_it);
    println!("{}", found.with_context(|| format!("no {state} of {check} with {words:?} in {all:#?}"))?);
    let faults = all.iter().any(|finding| finding["state"] == FAULT);
    assert_eq!(report.status.code(), Some(i32::from(faults)), "{all:#?}");
    Ok(())
}

/// Checks that the situation is in the list of the documentation.
fn staged(title: &str) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.md");
    ensure!(fs::read_to_string(&page)?.contains(title), "{title:?} is not in {}", page.display());
    println!("{title}:");
    Ok(())
}

/// Runs `doctor` for a local process with this model.
fn local(model: &str, more: &[&str]) -> Result<Output> {
    doctor(&[&["--json", "--role", "local", "--model", model], &SMALL[..], more].concat(), &[])
}

/// Runs `doctor` for a receiver with this model.
fn receiver(model: &str, more: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    doctor(&[&["--json", "--role", "receiver", "--model", model], &SMALL[..], more].concat(), variables)
}

/// Runs `doctor` for a sender with this model and peer.
fn sender(model: &str, peer: &str, more: &[&str]) -> Result<Output> {
    let peers = format!("link.peers={peer}");
    doctor(
        &[&["--json", "--role", "sender", "--model", model, "--set", &peers], &SMALL[..], more].concat(),
        &[],
    )
}

#[test]
fn a_machine_that_is_ready_has_no_fault() -> Result<()> {
    let model = model("ready", 0)?;
    // The command has a time limit of its own, which a busy machine can exceed.
    let mut report = receiver(&path(&model), &[], &[])?;
    for _ in 0..4 {
        if !String::from_utf8_lossy(&report.stdout).contains("did not end") {
            break;
        }
        report = receiver(&path(&model), &[], &[])?;
    }
    let all = findings(&report)?;
    assert!(all.iter().all(|finding| finding["state"] != FAULT), "{all:#?}");
    assert_eq!(report.status.code(), Some(0));
    for check in ["build", "model", "tokenizer", "memory", "disk", "open files", "link.port", "ucx", "put"] {
        assert!(all.iter().any(|finding| finding["check"] == check), "no {check} in {all:#?}");
    }
    let put = all.iter().find(|finding| finding["check"] == "put").context("there is a put")?;
    assert!(put["what"].as_str().is_some_and(|what| what.contains("tcp/lo")), "{put}");
    // For people, the last line sums up.
    let table = doctor(&[&["--role", "local", "--model", &path(&model)], &SMALL[..]].concat(), &[])?;
    let text = String::from_utf8(table.stdout)?;
    println!("{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("0 faults, ")), "{text}");
    Ok(())
}

#[test]
fn a_model_in_fp8_is_complete() -> Result<()> {
    let model = fp8_models()?.into_iter().find(|model| model.small.name == "fp8-block-sharded");
    let folder = model.context("no such model")?.write("doctor-fp8")?;
    let report = local(&path(&folder), &[])?;
    let all = findings(&report)?;
    let found = all.iter().find(|finding| finding["check"] == "model").context("the model is checked")?;
    assert_eq!(found["state"], "ok", "{found}");
    // config.json and two files with weights.
    assert!(
        found["what"].as_str().is_some_and(|what| what.contains("is complete") && what.contains("3 files")),
        "{found}"
    );
    Ok(())
}

#[test]
fn a_wrong_configuration_is_refused() -> Result<()> {
    let report = doctor(&["--set", "link.port=high"], &[])?;
    assert_eq!(report.status.code(), Some(2));
    assert!(String::from_utf8(report.stderr)?.contains("--set link.port"));
    staged("The build has no CUDA, but engine.device is cuda")?;
    let report = doctor(&["--set", "engine.device=cuda"], &[])?;
    let error = String::from_utf8(report.stderr)?;
    assert!(error.contains("cargo xtask cuda"), "{error}");
    assert_eq!(report.status.code(), Some(2));
    Ok(())
}

#[test]
fn faults_of_a_model_are_named() -> Result<()> {
    staged("The model is missing")?;
    has(&local("/nowhere/model.gguf", &[])?, "model", FAULT, &["/nowhere/model.gguf", "--model"])?;

    staged("A file of the model is truncated")?;
    let folder = model("truncated", 0)?;
    let files: Vec<PathBuf> = fs::read_dir(folder.path())?.flatten().map(|entry| entry.path()).collect();
    let weights = files.iter().find(|file| file.extension().is_some_and(|end| end == "safetensors"));
    let weights = weights.context("the model has weights")?;
    let bytes = fs::metadata(weights)?.len();
    fs::File::options().write(true).open(weights)?.set_len(bytes - 8)?;
    has(&local(&path(&folder), &[])?, "model", FAULT, &["truncated", "fetch it again"])?;

    staged("A file of the model is missing")?;
    fs::remove_file(weights)?;
    has(&local(&path(&folder), &[])?, "model", FAULT, &["safetensors", "cannot be read", "fetch"])?;

    staged("The architecture is not supported")?;
    let folder = model("architecture", 0)?;
    let config = folder.path().join("config.json");
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&config)?)?;
    value["model_type"] = "mamba".into();
    fs::write(&config, value.to_string())?;
    has(&local(&path(&folder), &[])?, "model", FAULT, &["mamba", "not supported", "families"])
}

#[test]
fn faults_of_the_text_of_a_model_are_named() -> Result<()> {
    staged("The model folder has no tokenizer")?;
    let folder = model("text", 0)?;
    let (tokenizer, settings) =
        (folder.path().join("tokenizer.json"), folder.path().join("tokenizer_config.json"));
    let whole = fs::read(&tokenizer)?;
    fs::remove_file(&tokenizer)?;
    has(&local(&path(&folder), &[])?, "tokenizer", WARNING, &["token ids only", "tokenizer.json"])?;

    staged("The tokenizer is damaged")?;
    fs::write(&tokenizer, &whole[..whole.len() / 2])?;
    has(&local(&path(&folder), &[])?, "tokenizer", FAULT, &["tokenizer", "fetch"])?;

    staged("The chat template is damaged")?;
    fs::write(&tokenizer, &whole)?;
    fs::write(&settings, r#"{"chat_template": "{% for m in messages %}"}"#)?;
    has(&local(&path(&folder), &[])?, "tokenizer", FAULT, &["chat template", "invalid", "fetch"])?;

    staged("The Hugging Face token has a wrong form")?;
    let model = path(&folder);
    let arguments = [&["--json", "--model", &model], &SMALL[..]].concat();
    let report = doctor(&arguments, &[("HF_TOKEN", "not-a-token")])?;
    has(&report, "hf token", WARNING, &["does not start with hf_", "huggingface.co"])
}

#[test]
fn faults_of_the_machine_are_named() -> Result<()> {
    let model = model("machine", 0)?;
    let model = path(&model);

    staged("A port is in use")?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = format!("frontend.port={}", taken.local_addr()?.port());
    let holder = format!("process {} (", std::process::id());
    has(
        &local(&model, &["--set", &port])?,
        "frontend.port",
        FAULT,
        &["in use", &holder, "set frontend.port"],
    )?;

    staged("A host is not an address of this machine")?;
    let report = receiver(&model, &["--set", "http.host=240.0.0.1"], &[])?;
    has(&report, "http.port", FAULT, &["240.0.0.1", "set another host"])?;

    staged("Other hosts reach a port without a secret")?;
    let report = receiver(&model, &["--set", "link.host=0.0.0.0"], &[])?;
    has(&report, "link.port", WARNING, &["can join and write KV pages", "set link.secret"])?;

    staged("The limit of open files is too low")?;
    let line = ["--json", "--role", "receiver", "--model", &model];
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 256 && exec \"$@\"", "sh"]).arg(binary()?).arg("doctor");
    has(&shell.args(line).args(SMALL).output()?, "open files", FAULT, &["256 open files", "ulimit -Hn"])?;

    staged("The KV pages do not fit in memory")?;
    let report = local(&model, &["--set", "engine.kv_bytes=100000GiB"])?;
    has(&report, "memory", FAULT, &["a start takes up to", "lower engine.kv_bytes"])
}

#[test]
fn faults_of_the_transport_are_named() -> Result<()> {
    let model = model("transport", 0)?;
    let model = path(&model);

    staged("The UCX library is missing")?;
    let report = receiver(&model, &["--set", "transport.ucx_library=/nowhere/libucp.so.0"], &[])?;
    has(&report, "ucx", FAULT, &["/nowhere/libucp.so.0", "transport.ucx_library"])?;
    has(&report, "put", FAULT, &["/nowhere/libucp.so.0"])?;

    staged("The lane is slower than wanted")?;
    let report = receiver(&model, &["--set", "transport.min_gigabytes_per_second=100000"], &[])?;
    has(&report, "put", FAULT, &["GB/s", "below", "lower transport.min_gigabytes_per_second"])?;

    staged("UCX_NET_DEVICES names a device that does not exist")?;
    let report = receiver(&model, &[], &[("UCX_NET_DEVICES", "eth77")])?;
    has(&report, "network device", FAULT, &["eth77", "does not have", "set UCX_NET_DEVICES"])?;

    staged("A peer is on another host, but UCX uses loopback")?;
    let report = sender(&model, "240.0.0.1:55555", &[])?;
    has(&report, "network device", FAULT, &["lo only", "240.0.0.1:55555", "set UCX_NET_DEVICES"])
}

/// The network namespace of the command has a loopback device that is down. Kernels that forbid namespaces for users skip this.
#[test]
fn a_namespace_without_loopback_is_named() -> Result<()> {
    staged("The network namespace has no loopback")?;
    let model = model("loopback", 0)?;
    let unshare = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).arg(program);
        command
    };
    if !unshare(Path::new("true")).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "`unshare` makes a network namespace");
        eprintln!("skipped, because `unshare` makes no network namespace here");
        return Ok(());
    }
    let mut command = unshare(&binary()?);
    let report = command.args(["doctor", "--json", "--model", &path(&model)]).args(SMALL).output()?;
    has(&report, "loopback", FAULT, &["127.0.0.1 does not answer", "ip link set lo up"])
}

/// A listener that sends these bytes to each connection at once, and then reads until its end.
fn listener_that_sends(bytes: Vec<u8>) -> Result<String> {
    listener(move |stream| stream.write_all(&bytes))
}

/// A listener that sends these bytes to each connection after the first bytes of a request, and then reads until its
/// end. An HTTP client refuses an answer that comes before its request.
fn listener_that_answers(bytes: Vec<u8>) -> Result<String> {
    listener(move |stream| {
        let _ = stream.read(&mut [0; 4096])?;
        stream.write_all(&bytes)
    })
}

/// A listener that does this with each connection, and then reads until its end.
fn listener(begin: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let begin = Arc::new(begin);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let begin = begin.clone();
            thread::spawn(move || {
                let _ = begin(&mut stream);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    Ok(address)
}

#[test]
fn faults_of_peers_are_named() -> Result<()> {
    let (own, other) = (model("peers", 0)?, model("peers", 1)?);
    let own = path(&own);

    staged("Nothing listens at the address of a peer")?;
    let gone = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    has(&sender(&own, &gone, &[])?, "peers", WARNING, &["nothing listens", &gone, "start the peer"])?;

    staged("A peer speaks another version of the protocol")?;
    let incarnation = Incarnation::current()?;
    let challenge = Challenge { versions: Versions::new(90, 91), nonce: [1; 32], incarnation };
    let bytes = connector::wire::encode(&challenge)?;
    let frame = [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
    let report = sender(&own, &listener_that_sends(frame)?, &[])?;
    has(&report, "peers", FAULT, &["versions 90 to 91", "upgrade the sender"])?;

    staged("A peer is another program")?;
    let report = sender(&own, &listener_that_sends(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())?, &[])?;
    has(&report, "peers", FAULT, &["does not speak baton's link protocol", "check the address"])?;

    let started = |model: &str, more: &[&str]| -> Result<(Process, String)> {
        let process =
            Process::start(&[&["--role", "receiver", "--model", model], &SMALL[..], more].concat(), &[])?;
        process.wait_healthy("http.port")?;
        let address = process.address("link.port")?;
        Ok((process, address))
    };
    staged("A peer has another model")?;
    let (_process, address) = started(&path(&other), &[])?;
    has(&sender(&own, &address, &[])?, "peers", FAULT, &["peer serves model", "same --model"])?;

    staged("A peer rounds its weights")?;
    let (_process, address) = started(&own, &["--quantization", "fp8_weights"])?;
    has(&sender(&own, &address, &[])?, "peers", FAULT, &["peer serves model", "same engine.quantization"])?;

    staged("A peer has KV pages in another format")?;
    let (_process, address) = started(&own, &["--kv-cache-dtype", "fp8"])?;
    let words = ["It says: peer's KV element type is f32 and ours is fp8", "same engine.kv_dtype"];
    has(&sender(&own, &address, &[])?, "peers", FAULT, &words)?;
    let report = sender(&own, &address, &["--kv-cache-dtype", "fp8"])?;
    let all = findings(&report)?;
    let states: Vec<_> =
        all.iter().filter(|finding| finding["check"] == "peers").map(|finding| &finding["state"]).collect();
    assert_eq!(states, ["ok"], "the same format on both sides");

    staged("A peer has another secret")?;
    let (process, address) = started(&own, &["--set", "link.secret=one"])?;
    has(
        &sender(&own, &address, &["--set", "link.secret=two"])?,
        "peers",
        FAULT,
        &["same link.secret on both sides"],
    )?;
    has(&sender(&own, &address, &[])?, "peers", FAULT, &["same link.secret on both sides"])?;

    let right = sender(&own, &address, &["--set", "link.secret=one"])?;
    let all = findings(&right)?;
    let peer = all.iter().find(|finding| finding["check"] == "peers").context("the peer was asked")?;
    assert!(
        peer["state"] == "ok" && peer["what"].as_str().is_some_and(|what| what.contains("accepts sessions")),
        "{peer}"
    );
    // The questions have opened no session. One of them was refused, because its secret is another one.
    assert!(process.log().contains("a process asked whether sessions are accepted"), "{}", process.log());
    assert!(
        !process.log().contains("sender ready") && !process.log().contains("session="),
        "{}",
        process.log()
    );

    staged("A peer has no secret, but this process has one")?;
    let (_process, address) = started(&own, &[])?;
    has(&sender(&own, &address, &["--set", "link.secret=two"])?, "peers", FAULT, &["has no link.secret"])
}

#[test]
fn faults_of_etcd_are_named() -> Result<()> {
    let model = model("etcd", 0)?;
    let model = path(&model);
    let with = |endpoint: &str, more: &[&str]| {
        let endpoints = format!("fleet.etcd_endpoints={endpoint}");
        receiver(&model, &[&["--set", &*endpoints], more].concat(), &[])
    };
    staged("etcd does not answer")?;
    let silent = listener_that_sends(Vec::new())?;
    has(&with(&format!("http://{silent}"), &[])?, "etcd", FAULT, &["no answer in 3 s", "start etcd"])?;

    staged("etcd wants a user and a password")?;
    let message =
        r#"{"error":"etcdserver: user name is empty","code":3,"message":"etcdserver: user name is empty"}"#;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{message}",
        message.len()
    );
    let closed = listener_that_answers(answer.into_bytes())?;
    has(
        &with(&format!("http://{closed}"), &[])?,
        "etcd",
        FAULT,
        &["user name is empty", "fleet.etcd_password_file"],
    )?;

    staged("A certificate file of etcd is missing")?;
    let report = with("https://127.0.0.1:1", &["--set", "fleet.etcd_ca_file=/nowhere/ca.pem"])?;
    has(&report, "etcd", FAULT, &["/nowhere/ca.pem", "fleet.etcd_ca_file"])
}
