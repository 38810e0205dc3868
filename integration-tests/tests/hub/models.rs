//! The cache: processes that share it, Python's client, the list of its models and their removal.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use integration_tests::client::complete;
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::hub::{ConnectProxy, FakeHub, Fault, HubHome, RepoFiles, certificate};
use integration_tests::process::{Process, until};
use serde_json::{Value, json};

use super::{last_line, printed, sharded};

const REPO: &str = "some-org/Tiny-1B";

/// The bytes of each file that the hub has sent since the last call.
fn sent(hub: &FakeHub) -> BTreeMap<String, u64> {
    let mut sent = BTreeMap::new();
    for request in hub.requests().into_iter().filter(|request| request.sent > 0) {
        let path = request.path.split_once("/resolve/").map_or("", |(_, rest)| rest);
        let (_, file) = path.split_once('/').unwrap_or_default();
        *sent.entry(file.to_owned()).or_default() += request.sent;
    }
    sent
}

/// The sizes of files by path.
fn sizes(files: &RepoFiles) -> BTreeMap<String, u64> {
    files.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)).collect()
}

/// The files of a model that a process needs.
fn needed(files: &RepoFiles) -> RepoFiles {
    let is_needed = |path: &str| !["README.md", "pytorch_model.bin", "original/params.json"].contains(&path);
    files
        .iter()
        .filter(|(path, _)| is_needed(path))
        .map(|(path, bytes)| (path.clone(), bytes.clone()))
        .collect()
}

/// Python's client; `None` if `cargo xtask test` has not fetched it.
fn python(home: &HubHome, arguments: &[&str]) -> Result<Option<Command>> {
    let cache = common::cache_folder::locate(|name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    let packages = cache.join("huggingface_hub-2.4.0");
    if !packages.is_dir() {
        println!("skipped: {} does not exist; `cargo xtask test` fetches it", packages.display());
        return Ok(None);
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/hub_client.py");
    let mut command = Command::new("python3");
    command
        .arg(script)
        .args(arguments)
        .envs(home.variables())
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN_PATH");
    command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1").env("HF_HUB_DISABLE_XET", "1");
    // An empty variable is a value to Python.
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "SSL_CERT_FILE"]
        .iter()
        .for_each(|name| {
            command.env_remove(name);
        });
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "60");
    Ok(Some(command))
}

fn json_of(mut command: Command) -> Result<Value> {
    let output = command.output().context("cannot run python3")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_str(&printed(&output))?)
}

/// A sender and a receiver that start together on an empty cache fetch each byte once.
#[test]
fn a_pair_downloads_each_byte_once() -> Result<()> {
    let (model, files) = sharded()?;
    let hub = FakeHub::start()?;
    hub.put(REPO, files.clone());
    let home = HubHome::new(&hub)?;
    let common = [
        "--model",
        REPO,
        "--set",
        "engine.kv_bytes=4MiB",
        "--set",
        "ring.bytes=64KiB",
        "--set",
        "http.port=0",
    ];
    // The receiver's port is not known before it has the model, so both get one that is free.
    let port = integration_tests::process::free_port()?;
    let link = format!("link.port={port}");
    let start = |role: &[&str]| home.start(&[role, &common, &["--set", &link]].concat());
    let receiver = start(&["--role", "receiver", "--set", "frontend.port=0"])?;
    let sender = start(&["--role", "sender"])?;
    receiver.wait_peers(1)?;
    sender.wait_peers(1)?;
    let answer = complete(&receiver.address("frontend.port")?, &json!(model.prompt), model.ids.len() as u32)?;
    assert_eq!(answer.ids, model.ids);
    assert_eq!(sent(&hub), sizes(&needed(&files)));
    Ok(())
}

/// Processes of both kinds take turns at the files. The cache is right for all of them.
#[test]
fn two_processes_and_python_share_a_cache() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    let commit = hub.put(REPO, files.clone());
    let home = HubHome::new(&hub)?;
    let Some(mut python_command) = python(&home, &["download", REPO])? else { return Ok(()) };
    let mut both = Vec::new();
    // The first process waits in the middle of a file until the others have started.
    let heard = hub.alarm(50_000, true);
    both.push(home.command(&["pull", REPO])?.stdout(Stdio::piped()).spawn()?);
    heard.recv_timeout(STATE_WITHIN).context("the download does not begin")?;
    both.push(home.command(&["pull", REPO])?.stdout(Stdio::piped()).spawn()?);
    let other = python_command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    hub.resume();
    for child in both {
        let output = child.wait_with_output()?;
        assert!(output.status.success(), "{output:?}");
        assert!(printed(&output).ends_with(&commit), "{output:?}");
    }
    let output = other.wait_with_output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(printed(&output).trim_matches('"').ends_with(&commit), "{output:?}");
    assert_eq!(sent(&hub), sizes(&files), "each byte once");
    assert_eq!(home.check(REPO, &files), files.len());
    Ok(())
}

#[test]
fn python_and_baton_read_the_same_cache() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    let commit = hub.put(REPO, files.clone());
    // Python reads what Baton wrote.
    let home = HubHome::new(&hub)?;
    let Some(scan) = python(&home, &["scan", REPO])? else { return Ok(()) };
    assert!(home.run(&["pull", REPO])?.status.success());
    let found = json_of(scan)?;
    let bytes: usize = needed(&files).values().map(Vec::len).sum();
    assert_eq!(found["warnings"], json!([]));
    let revision = &found["revisions"][0];
    assert_eq!(
        (&revision["name"], &revision["commit"], &revision["refs"]),
        (&json!(REPO), &json!(commit), &json!(["main"]))
    );
    assert_eq!(
        (&revision["bytes"], revision["files"].as_array().map(Vec::len)),
        (&json!(bytes), Some(needed(&files).len()))
    );
    hub.requests();
    let patterns: Vec<String> = needed(&files).into_keys().collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let offline = python(&home, &[&["offline", REPO], &patterns[..]].concat())?.context("it was there")?;
    assert!(json_of(offline)?.as_str().is_some_and(|folder| folder.ends_with(&commit)));
    // Python knows from Baton's list that files are missing, and downloads only those.
    let whole = python(&home, &["offline", REPO])?.context("it was there")?;
    assert!(json_of(whole).is_err_and(|error| error.to_string().contains("incomplete")));
    json_of(python(&home, &["download", REPO])?.context("it was there")?)?;
    let rest: Vec<String> = sent(&hub).into_keys().collect();
    assert_eq!(rest, ["README.md", "original/params.json", "pytorch_model.bin"]);
    // Baton reads what Python wrote.
    let home = HubHome::new(&hub)?;
    json_of(python(&home, &["download", REPO])?.context("it was there")?)?;
    sent(&hub);
    let output = home.run(&["pull", REPO])?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(sent(&hub), BTreeMap::new());
    let offline = home.with("HF_HUB_OFFLINE", "1");
    assert_eq!(printed(&offline.run(&["pull", REPO])?), printed(&output));
    assert_eq!(hub.requests().len(), 0);
    Ok(())
}

/// A proxy and the key `tokenizer` download no weights. A model is not downloaded for the tokenizer of another one.
#[test]
fn a_proxy_downloads_no_weights() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    hub.put(REPO, files.clone());
    let home = HubHome::new(&hub)?;
    let proxy = |model: &[&str]| {
        let fixed = ["--role", "proxy", "--set", "fleet.nodes=127.0.0.1:1", "--set", "frontend.port=0"];
        home.start(&[&fixed, model].concat())
    };
    let process = proxy(&["--model", "any/Other", "--set", &format!("tokenizer={REPO}")])?;
    process.address("frontend.port")?;
    let texts = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(sent(&hub).into_keys().collect::<Vec<_>>(), texts);
    drop(process);
    let process = proxy(&["--model", REPO])?;
    process.address("frontend.port")?;
    assert_eq!(sent(&hub), BTreeMap::new());
    let models = home.run(&["models"])?;
    assert!(printed(&models).ends_with("without weights"), "{models:?}");
    // A process that needs the weights completes the folder.
    assert!(home.run(&["pull", REPO])?.status.success());
    assert_eq!(
        sent(&hub).into_keys().filter(|file| file.ends_with(".json")).collect::<Vec<_>>(),
        ["model.safetensors.index.json"]
    );
    assert!(printed(&home.run(&["models"])?).ends_with("complete"));
    Ok(())
}

#[test]
fn models_are_listed_and_removed() -> Result<()> {
    let (_, mut files) = sharded()?;
    let hub = FakeHub::start()?;
    let old = hub.put(REPO, files.clone());
    let home = HubHome::new(&hub)?;
    assert!(printed(&home.run(&["models"])?).starts_with("There are no models in "));
    assert!(last_line(&home.run(&["models", "remove", REPO])?).contains("is not in"));
    assert!(home.run(&["pull", REPO])?.status.success());
    files.insert("config.json".to_owned(), [files["config.json"].as_slice(), b"\n"].concat());
    let new = hub.put(REPO, files.clone());
    sent(&hub);
    assert!(home.run(&["pull", REPO])?.status.success());
    assert_eq!(sent(&hub).into_keys().collect::<Vec<_>>(), ["config.json"], "the other files are shared");
    let list =
        || -> Result<Vec<Value>> { Ok(serde_json::from_str(&printed(&home.run(&["models", "--json"])?))?) };
    let found = list()?;
    let bytes: u64 = sizes(&needed(&files)).values().sum();
    let of =
        |commit: &str| found.iter().find(|model| model["commit"] == commit).context("the commit is listed");
    assert_eq!((&of(&old)?["revisions"], &of(&new)?["revisions"]), (&json!([]), &json!(["main"])));
    assert_eq!(
        (&of(&new)?["bytes"], &of(&new)?["state"], &of(&new)?["name"]),
        (&json!(bytes), &json!("complete"), &json!(REPO))
    );
    let table = printed(&home.run(&["models"])?);
    let words = [REPO, "main", &new[..12], "complete", "COMMIT", "LAST USED"];
    words.iter().for_each(|word| assert!(table.contains(word), "{table}"));
    // Only the old configuration is freed.
    let output = home.run(&["models", "remove", &format!("{REPO}@{}", &old[..12])])?;
    let freed = files["config.json"].len() - 1;
    assert_eq!(printed(&output), format!("removed {REPO}@{}: {freed} bytes are free again", &old[..12]));
    assert_eq!(list()?.len(), 1);
    assert_eq!(home.check(REPO, &files), needed(&files).len());
    // The rest.
    let output = home.run(&["models", "remove", REPO])?;
    assert_eq!(printed(&output), format!("removed {REPO}: {bytes} bytes are free again"));
    assert!(!home.repo(REPO).exists());
    assert_eq!(list()?.len(), 0);
    Ok(())
}

#[test]
fn a_model_that_is_being_downloaded_is_not_removed() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    hub.put(REPO, files);
    let home = HubHome::new(&hub)?;
    let heard = hub.alarm(50_000, true);
    let mut process = home.start(&["pull", REPO])?;
    heard.recv_timeout(STATE_WITHIN).context("the download does not begin")?;
    let refused = || -> Result<bool> {
        let line = last_line(&home.run(&["models", "remove", REPO])?);
        Ok(line.contains("being downloaded by another process"))
    };
    assert!(refused()?);
    let listed: Vec<Value> = serde_json::from_str(&printed(&home.run(&["models", "--json"])?))?;
    assert_eq!(listed[0]["state"], "incomplete");
    hub.resume();
    assert!(process.wait()?.success());
    until("the model is removed", STATE_WITHIN, || Ok(!refused()?))
}

/// Without a hub, what is in the cache serves.
#[test]
fn the_cache_serves_when_the_hub_does_not() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    let old = hub.put(REPO, files.clone());
    let home = HubHome::new(&hub)?;
    let pull = |name: &str| -> Result<(String, String)> {
        let output = home.run(&["pull", name])?;
        Ok((printed(&output), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (folder, _) = pull(REPO)?;
    hub.requests();
    assert_eq!(pull(&format!("{REPO}@{old}"))?.0, folder);
    assert_eq!(hub.requests().len(), 0, "a commit never changes");
    for fault in [Fault::Closed, Fault::Status { status: 503, headers: "", times: 1 }, Fault::NoHub] {
        let failing = FakeHub::start()?;
        failing.fault("/api/models/", fault);
        let home = HubHome::of(&home, &failing);
        let output = home.run(&["pull", REPO])?;
        assert_eq!(printed(&output), folder, "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("the one in the cache is used"),
            "{output:?}"
        );
    }
    // A newer revision that cannot be completed leaves the old one.
    let mut newer = files.clone();
    newer.insert("config.json".to_owned(), [files["config.json"].as_slice(), b"\n"].concat());
    hub.put(REPO, newer);
    hub.fault("config.json", Fault::Status { status: 403, headers: "X-Error-Code: GatedRepo", times: 1 });
    assert!(pull(REPO)?.1.contains("is gated"));
    let offline = HubHome::of(&home, &hub).with("HF_HUB_OFFLINE", "1");
    assert_eq!(printed(&offline.run(&["pull", REPO])?), folder);
    // Without a hub, one sentence names what is missing.
    let shard = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.ends_with("tokenizer.json"));
    fs::remove_file(shard.context("there is a tokenizer")?)?;
    let missing = last_line(&offline.run(&["pull", REPO])?);
    assert!(
        missing.contains("HF_HUB_OFFLINE is set, but")
            && missing.contains("tokenizer.json of some-org/Tiny-1B"),
        "{missing}"
    );
    let absent = last_line(&offline.run(&["pull", "some-org/Other"])?);
    assert!(absent.contains("does not have some-org/Other"), "{absent}");
    Ok(())
}

#[test]
fn tls_and_a_proxy_are_used() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    let commit = hub.put(REPO, files.clone());
    let url = hub.listen_tls()?;
    let proxy = ConnectProxy::start()?;
    let address = format!("http://user:word@{}", proxy.address);
    let home = HubHome::new(&hub)?.with("HF_ENDPOINT", &url);
    let refused = last_line(&home.run(&["pull", REPO])?);
    assert!(
        refused.contains("cannot reach https://localhost") && refused.contains("certificate"),
        "{refused}"
    );
    let file = home.cache().with_file_name("ca.pem");
    let home = home.with("SSL_CERT_FILE", file.to_str().context("a path")?);
    let refused = last_line(&home.run(&["pull", REPO])?);
    assert!(refused.contains("SSL_CERT_FILE is") && refused.contains("cannot be read"), "{refused}");
    fs::write(&file, certificate())?;
    let through = home.with("HTTPS_PROXY", &address);
    let output = through.run(&["pull", REPO])?;
    assert!(printed(&output).ends_with(&commit), "{output:?}");
    let heads = proxy.heads();
    let host = url.trim_start_matches("https://");
    assert!(
        !heads.is_empty() && heads.iter().all(|head| head.starts_with(&format!("CONNECT {host} "))),
        "{heads:?}"
    );
    assert!(heads[0].contains("Basic dXNlcjp3b3Jk"), "{heads:?}");
    // Without the proxy.
    let direct = through.with("NO_PROXY", "localhost");
    assert!(direct.run(&["models", "remove", REPO])?.status.success());
    assert!(direct.run(&["pull", REPO])?.status.success());
    assert_eq!(proxy.heads().len(), heads.len());
    assert_eq!(direct.check(REPO, &files), needed(&files).len());
    let wrong = last_line(&direct.with("HTTPS_PROXY", "://").run(&["pull", REPO])?);
    assert!(wrong.contains("HTTPS_PROXY is"), "{wrong}");
    Ok(())
}

/// A receiver without a network starts from the cache of the sender's machine: a copied folder works, because links are relative.
#[test]
fn a_copied_cache_works() -> Result<()> {
    let (_, files) = sharded()?;
    let hub = FakeHub::start()?;
    hub.put(REPO, files.clone());
    let (home, copy) = (HubHome::new(&hub)?, HubHome::new(&hub)?.with("HF_HUB_OFFLINE", "1"));
    assert!(home.run(&["pull", REPO])?.status.success());
    let copied =
        Command::new("cp").arg("-r").arg("--preserve=links").arg(home.cache()).arg(copy.cache()).status()?;
    assert!(copied.success());
    fs::remove_dir_all(home.cache())?;
    assert_eq!(copy.check(REPO, &files), needed(&files).len());
    let process: Process =
        copy.start(&["--model", REPO, "--set", "frontend.port=0", "--set", "engine.kv_bytes=4MiB"])?;
    process.wait_healthy("frontend.port")?;
    Ok(())
}
