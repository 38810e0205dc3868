//! The metrics of real processes, and what is made of them: the page of reference, the alerts, their runbooks, and the dashboard.
//!
//! `promtool` checks the metrics and the alerts. It is Debian's (package `prometheus`); `cargo xtask test` fetches it if it is not in `PATH`. TypeScript
//! checks the dashboard against Grafana's types. A test whose program is absent is skipped and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::metrics::{Metric, MetricKind};
use figment::providers::{Format, Yaml};
use integration_tests::client::{get_text, post};
use integration_tests::process::{Pair, start_local, start_proxy, start_receiver};
use runtime::metrics_page::{self, groups};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// A file or folder that `cargo xtask test` puts into the cache folder.
fn fetched(name: &str) -> Result<PathBuf> {
    let cache = common::cache_folder::locate(|name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    Ok(cache.join(name))
}

/// The command `promtool`. `None`, with a line that says so, if it is absent.
fn promtool() -> Result<Option<Command>> {
    let fetched = fetched("promtool")?;
    for program in [Path::new("promtool"), &fetched] {
        let mut version = Command::new(program);
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        if version.status().is_ok_and(|status| status.success()) {
            return Ok(Some(Command::new(program)));
        }
    }
    println!(
        "skipped: promtool is not in PATH; Debian's package prometheus has it, and `cargo xtask test` fetches it"
    );
    Ok(None)
}

/// Runs a command that reads `input`. Returns whether it succeeded, and what it printed.
fn run(command: &mut Command, input: &str) -> Result<(bool, String)> {
    let (stdin, stdout, stderr) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
    let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
    child.stdin.take().context("stdin was piped")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&printed).into_owned()))
}

#[test]
fn the_page_equals_the_code() -> Result<()> {
    assert_eq!(
        read("docs/metrics.md")?,
        metrics_page::render(),
        "write the page again: cargo run -p integration-tests --example metric_table > docs/metrics.md"
    );
    Ok(())
}

/// Metrics of the processes that have an engine, and of a proxy.
fn metrics_of(is_proxy: bool) -> Vec<Metric> {
    let has = |roles: &str| {
        roles.starts_with("All") || roles.starts_with(if is_proxy { "Proxies" } else { "Receivers" })
    };
    groups().into_iter().filter(|group| has(group.roles)).flat_map(|group| group.metrics).collect()
}

/// `# HELP` and `# TYPE` of a page, by name.
fn families(page: &str) -> BTreeMap<&str, (&str, &str)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("# ")?.split_once(' '));
    let mut families: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for (what, rest) in rows {
        let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let family = families.entry(name).or_default();
        *(if what == "HELP" { &mut family.0 } else { &mut family.1 }) = text;
    }
    families
}

/// Checks a page: it has the metrics of the table, and promtool finds nothing but the colons of vLLM's names.
fn check_page(page: &str, is_proxy: bool, promtool: Option<&mut Command>) -> Result<()> {
    let expect = metrics_of(is_proxy);
    let expect: BTreeMap<_, _> =
        expect.iter().map(|metric| (metric.name, (metric.help, metric.kind.word()))).collect();
    assert_eq!(families(page), expect);
    let Some(promtool) = promtool else { return Ok(()) };
    let (_, printed) = run(promtool.args(["check", "metrics"]), page)?;
    let findings: Vec<&str> = printed
        .lines()
        .filter(|line| !(line.starts_with("vllm:") && line.ends_with("metric names should not contain ':'")))
        .collect();
    assert_eq!(findings, [""; 0], "promtool check metrics");
    Ok(())
}

/// The value of the sample whose name and labels are these.
fn sample(page: &str, name_and_labels: &str) -> Result<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name_and_labels} in\n{page}"))
}

#[test]
fn every_role_has_the_metrics_of_the_table_and_promtool_finds_nothing() -> Result<()> {
    let pair = Pair::start(&[])?;
    let (local, local_address) = start_local(&[])?;
    let node = pair.receiver.address("http.port")?;
    let proxy = start_proxy(std::slice::from_ref(&node), &[])?;
    let proxy_address = proxy.wait_healthy("frontend.port")?;
    for address in [&pair.frontend, &proxy_address, &local_address] {
        let body = json!({ "prompt": "one two three four five six seven eight", "max_tokens": 6, "ignore_eos": true });
        let (status, answer) = post(address, "/v1/completions", &body)?;
        ensure!(status == 200, "{answer}");
    }
    let receiver = get_text(&pair.frontend, "/metrics")?;
    let sender = get_text(&pair.sender.address("http.port")?, "/metrics")?;
    let (of_local, of_proxy) = (get_text(&local_address, "/metrics")?, get_text(&proxy_address, "/metrics")?);
    for (page, is_proxy) in [(&receiver, false), (&sender, false), (&of_local, false), (&of_proxy, true)] {
        check_page(page, is_proxy, promtool()?.as_mut())?;
    }
    check_receiver(&receiver, &pair.sender.address("http.port")?)?;
    assert_eq!(sample(&of_local, "baton_prompts_prefilled_total{peer=\"own\"}")?, 1.0);
    let answered = format!("baton_proxy_attempts_total{{node=\"{node}\",outcome=\"answered\"}}");
    for (name, expect) in [
        (&*answered, 1.0),
        ("baton_proxy_responses_total{status=\"200\",source=\"node\"}", 1.0),
        ("baton_proxy_first_byte_seconds_count", 1.0),
        ("baton_proxy_request_seconds_count", 1.0),
    ] {
        assert_eq!(sample(&of_proxy, name)?, expect, "{name}");
    }
    drop(local);
    Ok(())
}

/// The receiver has answered two requests, one of them through the proxy, and the sender at this address has prefilled at least one of them.
fn check_receiver(page: &str, sender: &str) -> Result<()> {
    let own = "baton_prompts_prefilled_total{peer=\"own\"}";
    let by_sender = |name: &str| sample(page, &format!("{name}{{peer=\"{sender}\"}}"));
    let prefilled = by_sender("baton_prompts_prefilled_total")?;
    assert!(prefilled >= 1.0, "{page}");
    assert_eq!(prefilled + sample(page, own)?, 2.0);
    assert_eq!(by_sender("baton_handover_seconds_count")?, prefilled);
    assert_eq!(by_sender("baton_handover_exposed_seconds_count")?, prefilled);
    assert!(
        by_sender("baton_handover_pages_total")? >= 1.0 && by_sender("baton_handover_bytes_total")? > 0.0
    );
    let count = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("vllm:{name}_count{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).with_context(|| name.to_owned())
    };
    // Six tokens each: five times between two of them.
    assert_eq!(count("inter_token_latency_seconds")?, 10.0);
    assert_eq!((count("request_prefill_time_seconds")?, count("request_generation_tokens")?), (2.0, 2.0));
    Ok(())
}

#[test]
fn a_prompt_without_a_prefiller_is_turned_away() -> Result<()> {
    let receiver = start_receiver(&["frontend.local=never"])?;
    let address = receiver.address("frontend.port")?;
    let body = json!({ "prompt": "one two three four five six seven eight", "max_tokens": 6 });
    let (status, answer) = post(&address, "/v1/completions", &body)?;
    ensure!(status == 503, "{answer}");
    let page = get_text(&address, "/metrics")?;
    assert_eq!(sample(&page, "baton_requests_turned_away_total{status=\"503\"}")?, 1.0);
    Ok(())
}

/// Words that look like a metric of a process.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words
        .map(|word| word.trim_end_matches(['_', ':']))
        .filter(|word| ["vllm:", "baton_", "process_"].iter().any(|start| word.starts_with(start)))
        .collect()
}

/// Words in the documentation that are no metrics.
const OTHER_WORDS: &[&str] = &["baton_choice", "baton_passages", "baton_serve"];

#[test]
fn every_metric_that_is_named_exists() -> Result<()> {
    let all: Vec<Metric> = groups().into_iter().flat_map(|group| group.metrics).collect();
    let exists = |word: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        all.iter().any(|metric| {
            metric.name == word || metric.kind == MetricKind::Histogram && of_histogram == Some(metric.name)
        })
    };
    let mut files = vec![
        "configs/grafana/baton.json".to_owned(),
        "configs/prometheus/alerts.yaml".to_owned(),
        "README.md".to_owned(),
        "CHANGELOG.md".to_owned(),
        "SECURITY.md".to_owned(),
    ];
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        files.extend(name.ends_with(".md").then(|| format!("docs/{name}")));
    }
    files.extend(alert_tests()?);
    let mut count = 0;
    for file in &files {
        let text = read(file)?;
        for word in named(&text).into_iter().filter(|word| !OTHER_WORDS.contains(word)) {
            assert!(exists(word), "{file} names {word}, which is no metric");
            count += 1;
        }
    }
    assert!(count > 150, "only {count} metrics are named: the search finds nothing");
    Ok(())
}

/// The files with unit tests of the alerts.
fn alert_tests() -> Result<Vec<String>> {
    let folder = "configs/prometheus/tests";
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(folder))? {
        files.push(format!("{folder}/{}", entry?.file_name().to_string_lossy()));
    }
    Ok(files)
}

#[test]
fn every_alert_has_a_runbook_and_a_test_for_both_cases() -> Result<()> {
    let rules: Value = Yaml::from_str(&read("configs/prometheus/alerts.yaml")?)?;
    let mut tests = Vec::new();
    for file in alert_tests()? {
        let file: Value = Yaml::from_str(&read(&file)?)?;
        tests.extend(file["tests"].as_array().context("no tests")?.clone());
    }
    let page = read("docs/alerts.md")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let alerts: Vec<Value> = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"])).collect();
    assert!(alerts.len() >= 20, "{alerts:?}");
    for alert in &alerts {
        let name = alert["alert"].as_str().context("a rule is no alert")?;
        let expected = format!("docs/alerts.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], *expected, "{name}");
        let (_, section) =
            page.split_once(&format!("\n### {name}\n")).with_context(|| format!("{name} has no runbook"))?;
        let section = section.split("\n#").next().unwrap_or_default();
        let places: Vec<_> =
            ["**Meaning.**", "**See more.**", "**Do.**"].iter().map(|part| section.find(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{name}: {section}");
        let expression = alert["expr"].as_str().context("no expr")?;
        let severity = alert["labels"]["severity"].as_str().context("no severity")?;
        let held = alert["for"].as_str().map(|held| format!(", for {held}")).unwrap_or_default();
        let line = format!("\n*{severity}*: `{expression}`{held}\n");
        assert!(section.contains(&line), "{name}: the runbook has no line{line}");
        // How often each test expects the alert, and how often it expects none.
        let counts = tests.iter().map(|test| {
            let cases = list(&test["alert_rule_test"]).into_iter().filter(|case| case["alertname"] == name);
            let (fires, is_silent): (Vec<_>, Vec<_>) =
                cases.partition(|case| !list(&case["exp_alerts"]).is_empty());
            (fires.len(), is_silent.len())
        });
        let counts: Vec<(usize, usize)> = counts.collect();
        assert!(
            counts.iter().any(|(fires, _)| *fires > 0) && counts.contains(&(0, 1)),
            "{name} needs a test that fires and one that does not"
        );
        assert!(
            held.is_empty() || counts.iter().any(|(fires, is_silent)| *fires > 0 && *is_silent > 0),
            "{name} needs a test in which it is silent first{held}, and fires then"
        );
    }
    let sections = page.lines().filter(|line| line.starts_with("### Baton")).count();
    assert_eq!(sections, alerts.len(), "docs/alerts.md explains alerts that do not exist");
    Ok(())
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests() -> Result<()> {
    for (kind, files) in
        [("check", vec!["configs/prometheus/alerts.yaml".to_owned()]), ("test", alert_tests()?)]
    {
        let Some(mut promtool) = promtool()? else { return Ok(()) };
        let (succeeded, printed) = run(promtool.current_dir(root()).args([kind, "rules"]).args(&files), "")?;
        ensure!(succeeded, "promtool {kind} rules {files:?}: {printed}");
    }
    Ok(())
}

fn dashboard() -> Result<(String, Value)> {
    let text = read("configs/grafana/baton.json")?;
    let value = serde_json::from_str(&text)?;
    Ok((text, value))
}

/// Grafana replaces its variables before Prometheus reads an expression.
#[test]
fn promtool_accepts_the_expressions_of_the_dashboard() -> Result<()> {
    let (_, dashboard) = dashboard()?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions: Vec<&str> = targets.filter_map(|target| target["expr"].as_str()).collect();
    assert!(expressions.len() > 50, "{expressions:?}");
    let rule = |(n, expression): (usize, &&str)| {
        let expression = expression.replace("$__rate_interval", "5m");
        json!({ "record": format!("panel_{n}"), "expr": expression })
    };
    let rules: Vec<Value> = expressions.iter().enumerate().map(rule).collect();
    // JSON is YAML.
    let text = json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    let Some(mut promtool) = promtool()? else { return Ok(()) };
    let file = std::env::temp_dir().join(format!("baton-dashboard-{}.yaml", std::process::id()));
    fs::write(&file, text)?;
    let (succeeded, printed) = run(promtool.args(["check", "rules"]).arg(&file), "")?;
    fs::remove_file(&file)?;
    ensure!(succeeded, "{printed}");
    Ok(())
}

#[test]
fn the_dashboard_has_grafanas_types() -> Result<()> {
    let (schema, typescript) = (fetched("npm-grafana-schema-13.2.3")?, fetched("npm-typescript-5.9.3")?);
    if !schema.is_dir() || !typescript.is_dir() {
        println!("skipped: {} does not exist; `cargo xtask test` fetches it with npm", schema.display());
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("baton-dashboard-{}", std::process::id()));
    fs::create_dir_all(folder.join("node_modules/@grafana"))?;
    std::os::unix::fs::symlink(&schema, folder.join("node_modules/@grafana/schema"))?;
    let check = |text: &str| {
        let head =
            "import type { Dashboard } from \"@grafana/schema\";\nexport const dashboard: Dashboard = ";
        fs::write(folder.join("check.ts"), format!("{head}{text};\n"))?;
        let mut node = Command::new("node");
        node.current_dir(&folder).arg(typescript.join("lib/tsc.js")).args([
            "--noEmit",
            "--strict",
            "--skipLibCheck",
            "--moduleResolution",
            "bundler",
            "--module",
            "esnext",
            "--target",
            "es2022",
            "check.ts",
        ]);
        run(&mut node, "")
    };
    let (text, _) = dashboard()?;
    let right = check(&text)?;
    let wrong = check(&text.replace("\"schemaVersion\"", "\"schemaVersoin\""))?;
    fs::remove_dir_all(&folder)?;
    ensure!(right.0, "{}", right.1);
    ensure!(!wrong.0 && wrong.1.contains("schemaVersoin"), "the types are not checked: {}", wrong.1);
    Ok(())
}
