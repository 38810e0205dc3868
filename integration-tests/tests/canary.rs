//! Secrets and prompts occur nowhere but where they belong.
//!
//! Each secret and the prompt have a word that occurs nowhere else. Processes of all kinds run at the log level `trace`, and get requests that
//! succeed and that fail. Then the test looks for the words in everything that the processes print and answer. The answers to good requests may have
//! the words of their prompts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use integration_tests::certificates::{Authority, PemFolder};
use integration_tests::client::{get_text, post_with};
use integration_tests::folders::small_models;
use integration_tests::hub::{FakeHub, HubHome, RepoFiles};
use integration_tests::process::{Event, Process, binary};
use serde_json::{Value, json};

const API_KEY: &str = "canary-apikey-7d1f";
const WRONG_KEY: &str = "canary-wrongkey-31ac";
const LINK_SECRET: &str = "canary-linksecret-90be";
const OTHER_SECRET: &str = "canary-othersecret-55d0";
const HUB_TOKEN: &str = "hf_canaryhubtoken4c77";
const ETCD_PASSWORD: &str = "canary-etcdpassword-e08b";
const PROMPT: &str = "canaryprompt2f6e";

/// Everything that was printed or answered, each with a name.
struct Seen {
    texts: Vec<(String, String)>,
    /// Words that may occur nowhere, by what they are.
    words: Vec<(&'static str, String)>,
}

impl Seen {
    fn add(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.texts.push((name.into(), text.into()));
    }

    /// Runs a command to its end and adds what it prints.
    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let output = command.output()?;
        let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
        ensure!(text.iter().any(|part| !part.is_empty()), "{name} printed nothing");
        self.add(name, text.concat());
        Ok(())
    }

    /// Checks that no text has a word.
    fn check(&self) {
        let mut shown = Vec::new();
        for (name, text) in &self.texts {
            for (what, word) in &self.words {
                let line = text.lines().find(|line| line.contains(word.as_str()));
                shown.extend(line.map(|line| format!("{name} shows {what}: {line}")));
            }
        }
        assert!(shown.is_empty(), "{}", shown.join("\n"));
    }
}

/// A level at which all crates log all events.
const ALL_EVENTS: &str = "trace,actix_server=trace,actix_http=trace,actix_http::h1=trace,actix_web=trace,mio=trace,tokenizers=trace";

/// Starts a process whose standard output is in its log too.
fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
    // `env` sets the variables, because `start_command` removes those that begin with `BATON_`.
    let mut command = Command::new("env");
    command.args(variables.iter().map(|(name, value)| format!("{name}={value}")));
    command.args(["sh", "-c", "exec \"$@\" 1>&2", "sh"]).arg(binary()?);
    command.args(arguments).args(["--log", ALL_EVENTS]);
    Process::start_command(command)
}

/// What the process list shows of a process.
fn command_line(process: &Process) -> Result<String> {
    let proc = format!("/proc/{}", process.pid());
    let bytes = std::fs::read(format!("{proc}/cmdline"))?;
    let title = std::fs::read_to_string(format!("{proc}/comm"))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\0', " ") + &title)
}

/// An etcd that refuses every login.
fn refusing_etcd() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let Ok(copy) = socket.try_clone() else { continue };
            let (mut reader, mut length) = (BufReader::new(copy), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
                    break;
                }
                let line = line.trim().to_ascii_lowercase();
                length =
                    line.strip_prefix("content-length: ").map_or(length, |text| text.parse().unwrap_or(0));
            }
            // A connection that is closed before its request is read is reset.
            let _ = std::io::copy(&mut reader.take(length), &mut std::io::sink());
            let body =
                r#"{"error":"etcdserver: authentication failed, invalid user ID or password","code":3}"#;
            // The process asks again if this fails.
            let _ = write!(
                socket,
                "HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    Ok(format!("http://{address}"))
}

/// Requests that fail, each with the word of the prompt: path and body.
fn bad_requests() -> Vec<(&'static str, Value)> {
    let long = format!("{PROMPT} ").repeat(20_000);
    vec![
        ("/v1/completions", json!({"prompt": PROMPT, "max_tokens": "many"})),
        ("/v1/completions", json!({"prompt": PROMPT, "max_tokens": 4, "n": 0})),
        ("/v1/completions", json!({"prompt": long, "max_tokens": 4})),
        ("/v1/completions", json!({"prompt": [PROMPT, 5], "max_tokens": 4})),
        ("/v1/completions", json!({"prompt": {"text": PROMPT}, "max_tokens": 4})),
        ("/v1/completions", json!({"prompt": PROMPT, "model": "absent", "max_tokens": 4})),
        ("/v1/completions", json!({"prompt": PROMPT, "guided_regex": "(", "max_tokens": 4})),
        ("/v1/chat/completions", json!({"messages": PROMPT})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": {"text": PROMPT}}]})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": [PROMPT]}]}]}),
        ),
        ("/v1/responses", json!({"input": [{"role": "user", "content": {"text": PROMPT}}]})),
        ("/tokenize", json!({"prompt": {"text": PROMPT}})),
    ]
}

/// Sends requests to a port, and adds the answers that may have no word.
fn ask(seen: &mut Seen, address: &str) -> Result<()> {
    let key = format!("Bearer {API_KEY}");
    let with_key: [(&str, &str); 1] = [("authorization", &key)];
    let good = json!({"prompt": format!("Say {PROMPT} and"), "max_tokens": 4, "temperature": 0});
    let (status, answer) = post_with(address, "/v1/completions", &with_key, &good)?;
    ensure!(status == 200, "{answer}");
    let chat = json!({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "n": 2});
    let (status, answer) = post_with(address, "/v1/chat/completions", &with_key, &chat)?;
    ensure!(status == 200, "{answer}");
    for (path, body) in bad_requests() {
        let (status, answer) = post_with(address, path, &with_key, &body)?;
        ensure!((400..500).contains(&status), "{path} answered {status} to a bad request: {answer}");
        seen.add(format!("{address}{path}"), answer.to_string());
    }
    let wrong = format!("Bearer {WRONG_KEY}");
    let (status, answer) = post_with(address, "/v1/completions", &[("authorization", &wrong)], &good)?;
    ensure!(status == 401, "{answer}");
    seen.add(format!("{address} 401"), answer.to_string());
    for path in [
        "/health",
        "/live",
        "/node",
        "/load",
        "/version",
        "/metrics",
        "/openapi.json",
        "/debug",
        "/debug/config",
    ] {
        seen.add(format!("{address}{path}"), get_text(address, path)?);
    }
    Ok(())
}

/// A receiver and a sender with all secrets, and senders that are refused.
fn pair(seen: &mut Seen, tls: &[String], variables: &[(&str, &str)]) -> Result<()> {
    let mut arguments = vec!["--set", "http.port=0", "--set", "engine.prefix_cache=false"];
    arguments.extend(["--set", "frontend.local_if_sooner_by=1h"]);
    tls.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let ports = ["--set", "frontend.port=0", "--set", "link.port=0"];
    let receiver = start(&[&["--role", "receiver"], &ports[..], &arguments].concat(), variables)?;
    let frontend = receiver.wait_healthy("frontend.port")?;
    let peers = format!("link.peers={}", receiver.address("link.port")?);
    let sender_arguments = [&["--role", "sender", "--set", &peers], &arguments[..]].concat();
    let sender = start(&sender_arguments, variables)?;
    receiver.wait_peers(1)?;
    sender.wait_peers(1)?;
    for address in [&frontend, &receiver.address("http.port")?, &sender.address("http.port")?] {
        ask(seen, address)?;
    }
    let other = [variables, &[("BATON_LINK__SECRET", OTHER_SECRET)]].concat();
    let mut stranger = start(&sender_arguments, &other)?;
    ensure!(stranger.wait()?.code() == Some(1), "a sender that its only receiver refuses ends");
    seen.add("the log of a stranger", stranger.log());
    receiver.wait_event(Event::ConnectionRefused, &["link.secret"])?;
    for (name, process) in [("receiver", &receiver), ("sender", &sender)] {
        seen.add(format!("the command line of the {name}"), command_line(process)?);
    }
    // What a process prints last counts too.
    for (name, mut process) in [("receiver", receiver), ("sender", sender)] {
        process.signal("-TERM")?;
        process.wait()?;
        ensure!(process.log().contains("TRACE"), "the {name} does not log all events");
        seen.add(format!("the log of the {name}"), process.log());
    }
    for command in [&["doctor"][..], &["doctor", "--json"], &["--print-config"]] {
        let mut program = Command::new(binary()?);
        program.args(command).args(&sender_arguments).envs(variables.iter().copied());
        seen.run(&format!("{command:?}"), &mut program)?;
    }
    Ok(())
}

/// A proxy that cannot log in to its etcd.
fn proxy(seen: &mut Seen, files: &PemFolder, variables: &[(&str, &str)]) -> Result<()> {
    let password = files.put("fleet.etcd_password_file", "etcd-password", ETCD_PASSWORD)?;
    let etcd = format!("fleet.etcd_endpoints={}", refusing_etcd()?);
    let mut arguments = vec!["--role", "proxy", "--set", "frontend.port=0"];
    for setting in [&etcd, &password, "fleet.etcd_user=baton"] {
        arguments.extend(["--set", setting]);
    }
    let mut process = start(&arguments, variables)?;
    process.wait_event(Event::MembersUnread, &["400 Bad Request"])?;
    let address = process.address("frontend.port")?;
    let body = json!({"prompt": PROMPT, "max_tokens": 4});
    let key = format!("Bearer {API_KEY}");
    let (status, answer) = post_with(&address, "/v1/completions", &[("authorization", &key)], &body)?;
    ensure!(status == 503, "{status}: {answer}");
    seen.add("the proxy's answer", answer.to_string());
    for path in ["/health", "/metrics"] {
        seen.add(format!("proxy {path}"), get_text(&address, path)?);
    }
    seen.add("the command line of the proxy", command_line(&process)?);
    process.signal("-TERM")?;
    process.wait()?;
    seen.add("the log of the proxy", process.log());
    seen.run(
        "doctor of the proxy",
        Command::new(binary()?).arg("doctor").args(&arguments).envs(variables.iter().copied()),
    )
}

/// A process downloads its model with a token, and one whose token the hub does not accept.
fn hub(seen: &mut Seen) -> Result<()> {
    let model = small_models()?.into_iter().next().context("there are small models")?;
    let folder = model.write("canary-model")?;
    let mut files = RepoFiles::new();
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?);
    }
    let hub = FakeHub::start()?;
    hub.put("some-org/Tiny-1B", files);
    hub.require(HUB_TOKEN);
    let arguments =
        ["--model", "some-org/Tiny-1B", "--set", "frontend.port=0", "--set", "engine.kv_bytes=4MiB"];
    let home = HubHome::new(&hub)?.with("HF_TOKEN", HUB_TOKEN);
    let mut served = start(&arguments, &home.variables())?;
    served.wait_healthy("frontend.port")?;
    ensure!(hub.requests().iter().any(|request| request.has_token), "the token was sent to the hub");
    seen.add("the command line of a process with a token", command_line(&served)?);
    served.signal("-TERM")?;
    served.wait()?;
    seen.add("the log of a process with a token", served.log());

    hub.require("another");
    let home = HubHome::new(&hub)?.with("HF_TOKEN", HUB_TOKEN);
    let mut refused = start(&arguments, &home.variables())?;
    ensure!(refused.wait()?.code() == Some(1), "the hub does not accept the token");
    seen.add("the log of a process whose token is refused", refused.log());
    seen.run("pull", &mut home.command(&["pull", "some-org/Tiny-1B"])?)?;
    seen.run("doctor with a token", home.command(&["doctor", "--role", "local"])?.args(arguments))
}

/// Configurations that are refused do not show a secret.
fn refusals(seen: &mut Seen, files: &PemFolder) -> Result<()> {
    let cases = [
        format!("link:\n  secrt: {LINK_SECRET}\n"),
        format!("link:\n  secret: [{LINK_SECRET}]\n"),
        format!("request:\n  api_key: {{key: {API_KEY}}}\n"),
        format!("request: {API_KEY}\n"),
        format!("link:\n  secret: \"{LINK_SECRET}\n"),
    ];
    for (n, text) in cases.into_iter().enumerate() {
        files.put("", "baton.yaml", &text)?;
        let output = Command::new(binary()?).arg("--config").arg(files.path().join("baton.yaml")).output()?;
        ensure!(output.status.code() == Some(2), "configuration {n} is accepted");
        seen.add(format!("the refusal of configuration {n}"), String::from_utf8_lossy(&output.stderr));
    }
    let output = Command::new(binary()?).env("BATON_LINK__SECRT", LINK_SECRET).output()?;
    ensure!(output.status.code() == Some(2), "an unknown variable is accepted");
    seen.add("the refusal of a variable", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn secrets_and_prompts_are_shown_nowhere() -> Result<()> {
    let (authority, files) = (Authority::new()?, PemFolder::new()?);
    let (http, link) = (authority.signs(&["127.0.0.1"])?, authority.signs(&["127.0.0.1"])?);
    let line = |key: &str| key.lines().nth(1).map(str::to_owned).context("a key has lines");
    let words = [
        ("the API key", API_KEY.to_owned()),
        ("a wrong API key", WRONG_KEY.to_owned()),
        ("the link secret", LINK_SECRET.to_owned()),
        ("another link secret", OTHER_SECRET.to_owned()),
        ("the token for the hub", HUB_TOKEN.to_owned()),
        ("the password for etcd", ETCD_PASSWORD.to_owned()),
        ("the key of the HTTP ports", line(&http.key)?),
        ("the key of the link", line(&link.key)?),
        ("a prompt", PROMPT.to_owned()),
    ];
    let mut seen = Seen { texts: Vec::new(), words: words.into() };
    let variables = [("BATON_REQUEST__API_KEY", API_KEY), ("BATON_LINK__SECRET", LINK_SECRET)];
    let tls = [files.http(&http)?.to_vec(), files.link(&link, &authority)?.to_vec()].concat();
    pair(&mut seen, &tls, &variables)?;
    proxy(&mut seen, &files, &variables)?;
    hub(&mut seen)?;
    refusals(&mut seen, &files)?;
    assert!(seen.texts.len() > 60, "only {} texts were looked at", seen.texts.len());
    seen.check();
    Ok(())
}
