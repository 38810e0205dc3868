//! The commands of `runtime bench` as a user types them, with servers that answer at once.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use roxmltree::Document;
use serde_json::Value;

/// The prompts that arrived at any server, each with the server's name, in order.
type Arrivals = Arc<Mutex<Vec<(&'static str, String)>>>;

/// Starts a server that answers the prompt with three tokens, and with status 500 from the `fails_after`th request on. Returns its URL.
fn server(name: &'static str, arrivals: &Arrivals, fails_after: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("the socket is bound"));
    let arrivals = Arc::clone(arrivals);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let arrivals = Arc::clone(&arrivals);
            std::thread::spawn(move || {
                serve(stream.expect("a connection is accepted"), name, &arrivals, fails_after)
            });
        }
    });
    url
}

/// Reads the next request. Returns its path and its body; `None` at the end of the connection.
fn next(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        length = line
            .strip_prefix("content-length: ")
            .map_or(length, |text| text.parse().expect("a length is a number"));
        if path.is_empty() {
            path = line.split(' ').nth(1)?.to_owned();
        } else if line.is_empty() {
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            return Some((path, body));
        }
    }
}

fn serve(mut stream: TcpStream, name: &'static str, arrivals: &Arrivals, fails_after: usize) {
    let mut reader = BufReader::new(stream.try_clone().expect("the socket can be duplicated"));
    while let Some((path, body)) = next(&mut reader) {
        let answer = |status: &str, kind: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let text = if path == "/v1/models" {
            answer("200 OK", "application/json", r#"{"data": [{"id": "fake", "root": "/nowhere"}]}"#)
        } else {
            let body: Value = serde_json::from_slice(&body).expect("the body is JSON");
            let count = {
                let mut arrivals = arrivals.lock().expect("no thread has panicked");
                arrivals.push((name, body["prompt"].as_str().expect("the prompt is a text").to_owned()));
                arrivals.iter().filter(|arrival| arrival.0 == name).count()
            };
            let token = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
            let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n";
            if count > fails_after {
                answer("500 Internal Server Error", "text/plain", "<full>")
            } else {
                answer(
                    "200 OK",
                    "text/event-stream",
                    &format!("{token}{token}{token}{usage}data: [DONE]\n\n"),
                )
            }
        };
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// A folder of this test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    /// The folder has a dataset of these prompts.
    fn with_prompts(test: &str, prompts: usize) -> Self {
        let path = std::env::temp_dir().join(format!("baton-bench-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the folder can be created");
        let lines: String = (0..prompts).map(|n| format!("{{\"prompt\": \"prompt {n}\"}}\n")).collect();
        std::fs::write(path.join("prompts.jsonl"), lines).expect("the folder can be written");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).expect("the result is JSON")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `runtime bench` in a folder. Returns what it printed, and whether it succeeded.
fn bench(folder: &Folder, arguments: &[&str]) -> (String, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
    let output =
        command.arg("bench").args(arguments).current_dir(&folder.0).output().expect("the binary starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (format!("{out}{err}"), output.status.success())
}

/// Options of the custom dataset: prompts in the order of the file, without a tokenizer.
const CUSTOM: [&str; 6] = [
    "--dataset-name",
    "custom",
    "--dataset-path",
    "prompts.jsonl",
    "--skip-chat-template",
    "--disable-shuffle",
];

/// Texts of the elements with this tag.
fn texts(svg: &str, tag: &str) -> Vec<String> {
    let document = Document::parse(svg).expect("the plot is XML");
    let found = document.descendants().filter(|node| node.has_tag_name(tag));
    found.filter_map(|node| node.text()).map(str::to_owned).collect()
}

#[test]
fn serve_draws_its_results_and_plot_draws_them_again() {
    let (folder, arrivals) = (Folder::with_prompts("serve", 12), Arrivals::default());
    let url = server("a", &arrivals, 10);
    let files = ["--plot", "a.svg", "--save-result", "--result-filename", "a.json"];
    let load = ["serve", "--base-url", &url, "--num-prompts", "12", "--max-concurrency", "1"];
    let (printed, done) = bench(&folder, &[&load[..], &CUSTOM, &files].concat());
    assert!(done && printed.contains("wrote the plot to a.svg"), "{printed}");

    let results = folder.json("a.json");
    assert_eq!((&results["completed"], &results["failed"]), (&10.into(), &2.into()), "{results}");
    assert_eq!((&results["total_input_tokens"], &results["dataset_name"]), (&50.into(), &"custom".into()));
    let times = |field: &str| -> Vec<f64> {
        results[field].as_array().unwrap().iter().map(|seconds| seconds.as_f64().unwrap()).collect()
    };
    // One after the other: the last request waited in the client for all others.
    let waited = times("queue_times").into_iter().fold(0.0, f64::max);
    let latencies = times("latencies");
    assert!(latencies.iter().all(|seconds| *seconds > 0.0), "also of failed requests: {results}");
    let longest = latencies.iter().copied().fold(0.0, f64::max);
    assert!(waited >= latencies.iter().sum::<f64>() - longest, "{results}");
    let svg = folder.text("a.svg");
    let titles = texts(&svg, "title");
    // The time of the dot of p50, which is the median that the results have.
    let p50: Vec<f64> = titles
        .iter()
        .filter_map(|text| text.strip_prefix("p50: ")?.split(' ').next()?.parse().ok())
        .collect();
    let (ttft, itl) =
        (results["median_ttft_ms"].as_f64().unwrap(), results["median_itl_ms"].as_f64().unwrap());
    assert_eq!(p50.len(), 2, "{titles:?}");
    assert!(
        (p50[0] - ttft).abs() <= 0.01 * ttft + 5e-5 && (p50[1] - itl).abs() <= 0.01 * itl + 5e-5,
        "{p50:?} {results}"
    );
    let failed =
        titles.iter().filter(|text| text.contains("failed: 500 Internal Server Error: <full>")).count();
    assert_eq!(failed, 2, "{titles:?}");
    let waits = titles.iter().filter(|text| text.starts_with("request 3: sent at ")).count();
    assert_eq!(waits, 2, "a bar of waiting and one of decoding: {titles:?}");

    let (printed, done) = bench(&folder, &["plot", "a.json", "--plot", "b.svg"]);
    assert!(done, "{printed}");
    assert_eq!(folder.text("b.svg"), svg, "the saved results give the same plot");
}

#[test]
fn compare_sends_the_same_requests_in_turns() {
    let (folder, arrivals) = (Folder::with_prompts("compare", 14), Arrivals::default());
    let (a, b) = (server("a", &arrivals, usize::MAX), server("b", &arrivals, usize::MAX));
    let load = ["serve", "--base-url", &a, "--compare", &b, "--num-prompts", "12", "--max-concurrency", "1"];
    let files = [
        "--num-warmups",
        "2",
        "--compare-blocks",
        "6",
        "--plot",
        "c.svg",
        "--save-result",
        "--result-filename",
        "c.json",
    ];
    let (printed, done) = bench(&folder, &[&load[..], &CUSTOM, &files].concat());
    assert!(done, "{printed}");

    let arrivals = arrivals.lock().unwrap();
    let servers: Vec<&str> = arrivals.iter().map(|arrival| arrival.0).collect();
    // The first two blocks are the warm-ups.
    let turns: Vec<&str> = servers.chunks(2).map(|block| block[0]).collect();
    assert_eq!(turns, ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a", "a", "b", "b", "a"]);
    assert!(servers.chunks(2).all(|block| block.iter().all(|name| *name == block[0])), "{servers:?}");
    for name in ["a", "b"] {
        let of = arrivals.iter().filter(|arrival| arrival.0 == name).map(|arrival| arrival.1.clone());
        let mut of: Vec<String> = of.collect();
        // The two requests of a block may be sent in any order.
        of.chunks_mut(2).for_each(|block| block.sort_by_key(|prompt| (prompt.len(), prompt.clone())));
        let expect: Vec<String> = (0..14).map(|n| format!("prompt {n}")).collect();
        assert_eq!(of, expect, "{name}");
    }
    let results = folder.json("c.json");
    let rows = results["comparison"].as_array().unwrap();
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert_eq!(results["totals"]["succeeded_at_both"], 12, "{results}");
    assert!(printed.contains("12 of 12 requests that succeeded at both servers"), "{printed}");
    for row in rows {
        let ratio = row["median_b"].as_f64().unwrap() / row["median_a"].as_f64().unwrap();
        assert!((row["ratio"].as_f64().unwrap() - ratio).abs() < 1e-9, "{row}");
        let [low, high] = [0, 1].map(|n| row["ratio_interval_95"][n].as_f64().unwrap());
        assert!(low <= high, "{row}");
        let says = row["verdict"].as_str().unwrap();
        assert_eq!(says.contains("includes 1"), low <= 1.0 && 1.0 <= high, "{row}");
        assert!(printed.contains(says), "{printed}");
    }
    let titles = texts(&folder.text("c.svg"), "text");
    let name = |letter: &str, url: &str| format!("{letter}: {}", url.trim_start_matches("http://"));
    assert!(titles.contains(&name("A", &a)) && titles.contains(&name("B", &b)), "{titles:?}");
}

#[test]
fn sweep_finds_the_rate_at_which_requests_fail() {
    let (folder, arrivals) = (Folder::with_prompts("sweep", 170), Arrivals::default());
    // Answers all requests of the first two rates.
    let url = server("a", &arrivals, 60);
    let load = ["sweep", "--base-url", &url, "--seconds", "0.1", "--rates", "10,20,400,800", "--bisect", "1"];
    let limits = ["--ttft", "1e7", "--gap", "1e7", "--json", "s.json", "--plot", "s.svg"];
    let (printed, done) = bench(&folder, &[&load[..], &CUSTOM, &limits].concat());
    assert!(done, "{printed}");

    let results = folder.json("s.json");
    let rates = results["rates"].as_array().unwrap();
    let of = |field: &str| rates.iter().map(|rate| rate[field].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("rate"), [10.0, 20.0, 400.0, 210.0], "{printed}");
    // At least 30; the first rate that misses the target is measured twice.
    assert_eq!(of("requests"), [30.0, 30.0, 80.0, 30.0], "{printed}");
    assert_eq!(of("good_percent"), [100.0, 100.0, 0.0, 0.0], "{printed}");
    // A tenth of the way from all to none.
    let arrived = of("arrived");
    let lowest = arrived[2].min(arrived[3]);
    let expect = arrived[1] + 0.1 * (lowest - arrived[1]);
    let goodput = results["goodput"].as_f64().unwrap();
    assert!((goodput - expect).abs() < 1e-9, "{results}");
    assert!(printed.contains(&format!("Goodput: {goodput:.2} requests/s")), "{printed}");

    let prompts: Vec<String> = arrivals.lock().unwrap().iter().map(|arrival| arrival.1.clone()).collect();
    let mut distinct = prompts.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((prompts.len(), distinct.len()), (170, 170), "each rate has its own prompts");

    let svg = folder.text("s.svg");
    let dots = texts(&svg, "title");
    for rate in &arrived {
        let dot = dots.iter().any(|text| {
            let rate_of = |text: &str| text.split(' ').next()?.parse::<f64>().ok();
            text.ends_with("% good") && rate_of(text).is_some_and(|shown| (shown / rate - 1.0).abs() < 0.01)
        });
        assert!(dot, "no dot at {rate}: {dots:?}");
    }
    let (printed, done) = bench(&folder, &["plot", "s.json", "--plot", "again.svg"]);
    assert!(done && folder.text("again.svg") == svg, "{printed}");
}

#[test]
fn sweep_says_which_prompts_it_repeats_and_stops_without_oversampling() {
    let (folder, arrivals) = (Folder::with_prompts("repeat", 40), Arrivals::default());
    let url = server("a", &arrivals, usize::MAX);
    let load = ["sweep", "--base-url", &url, "--seconds", "0.1", "--rates", "100,200", "--json", "s.json"];
    let limits = ["--ttft", "1e7", "--gap", "1e7"];
    let (printed, done) = bench(&folder, &[&load[..], &CUSTOM, &limits].concat());
    assert!(done && printed.contains("20 of the next 30 prompts are sent again"), "{printed}");
    let (printed, done) = bench(&folder, &[&load[..], &CUSTOM, &limits, &["--no-oversample"]].concat());
    assert!(!done && printed.contains("the dataset has 10 unsent prompts"), "{printed}");
    assert_eq!(folder.json("s.json")["rates"].as_array().unwrap().len(), 1, "the first rate is kept");
}

#[test]
fn wrong_datasets_and_results_are_one_sentence() {
    let (folder, arrivals) = (Folder::with_prompts("wrong", 2), Arrivals::default());
    let url = server("a", &arrivals, usize::MAX);
    std::fs::write(Path::new(&folder.path("bad.jsonl")), "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
    std::fs::write(Path::new(&folder.path("bare.json")), "{\"completed\": 1}").unwrap();
    let serve = ["serve", "--base-url", &url, "--dataset-name", "custom"];
    for (arguments, expect) in [
        (
            [&serve[..], &["--dataset-path", "bad.jsonl", "--skip-chat-template"]].concat(),
            "bad.jsonl, line 2: no prompt",
        ),
        (
            [&serve[..], &["--dataset-path", "none.jsonl", "--skip-chat-template"]].concat(),
            "cannot read none.jsonl",
        ),
        (
            [&serve[..], &["--dataset-path", "prompts.jsonl"]].concat(),
            "which is not on this machine; set --tokenizer",
        ),
        (serve.to_vec(), "set both or neither"),
        (
            [&serve[..], &["--dataset-path", "prompts.jsonl", "--plot", "none/x.svg"]].concat(),
            "cannot write none/x.svg",
        ),
        (vec!["sweep", "--rates", "2,1"], "--rates must be numbers above 0 in rising order"),
        (vec!["plot", "bare.json", "--plot", "x.svg"], "the result has no \"start_times\""),
    ] {
        let (printed, done) = bench(&folder, &arguments);
        assert!(!done && printed.contains(expect), "{arguments:?}: {printed}");
        assert_eq!(printed.trim_end().lines().count(), 1, "{printed}");
    }
    assert!(arrivals.lock().unwrap().is_empty(), "nothing was sent");
}
