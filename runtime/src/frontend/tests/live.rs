//! The live page and its data.

use std::io::{BufRead, BufReader, Lines};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use ureq::{Body, BodyReader};

use super::super::HealthState;
use super::harness::{PERMITS, Script, Server, Setup};
use super::http::{WAIT, read};
use crate::drain::Drain;

const DATA: &str = "/debug/live";

/// The snapshots of a stream, as they come.
struct Snapshots(Lines<BufReader<BodyReader<'static>>>);

impl Snapshots {
    fn of(response: ureq::http::Response<Body>) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self(BufReader::new(response.into_body().into_reader()).lines())
    }

    /// The next snapshot; `None` at the end.
    fn next(&mut self) -> Option<Value> {
        self.0.next().map(|line| serde_json::from_str(&line.unwrap()).unwrap())
    }
}

/// The text between two marks.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap();
    rest.split_once(after).unwrap().0
}

#[test]
fn the_page_may_run_its_own_script_only() {
    let server = Server::start_with(Setup { api_key: Some("k".to_owned()), ..Setup::new(Script::Echo) });
    let response = server.http.begin("/", &[("host", "anything.example")]);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/html; charset=utf-8");
    assert_eq!(
        (header("x-content-type-options"), header("referrer-policy")),
        ("nosniff".into(), "no-referrer".into())
    );
    let policy = header("content-security-policy");
    let (status, html) = read(response);
    assert_eq!(status, 200);
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let script = between(&html, "<script type=\"module\">", "</script>");
    let style = between(&html, "<style>", "</style>");
    let expect = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        hash(script),
        hash(style)
    );
    assert_eq!(policy, expect);
    assert!(script.contains("fetch(\"/debug/live\"") && style.contains("prefers-color-scheme"), "{html}");
    // A second element would have no hash, and markup could reach the document only in these ways.
    assert_eq!((html.matches("<script").count(), html.matches("<style").count()), (1, 1));
    for risky in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "localStorage"]
    {
        assert!(!html.contains(risky), "{risky}");
    }
    let addresses: Vec<&str> =
        html.split("http").skip(1).map(|rest| rest.split(['"', ' ']).next().unwrap()).collect();
    assert_eq!(addresses, ["://www.w3.org/2000/svg"], "the page asks no other server");
}

#[test]
fn a_port_without_the_page_has_neither_path() {
    let server = Server::start_with(Setup { page: false, ..Setup::new(Script::Echo) });
    for path in ["/", DATA] {
        let (status, text) = server.http.get(path);
        assert_eq!(status, 404, "{text}");
        assert!(text.contains(&format!("path {path} does not exist")), "{text}");
    }
}

#[test]
fn data_needs_the_key_or_a_program_on_this_machine() {
    let check = |server: &Server, headers: &[(&str, &str)], expect: u16| {
        assert_eq!(server.http.begin(DATA, headers).status(), expect, "{headers:?}");
    };
    let server = Server::start_with(Setup { api_key: Some("k".to_owned()), ..Setup::new(Script::Echo) });
    check(&server, &[], 401);
    check(&server, &[("authorization", "Bearer other")], 401);
    check(&server, &[("authorization", "Bearer k"), ("host", "baton.example")], 200);
    assert_eq!(server.http.get("/x").0, 401, "only the page itself is open");

    let server = Server::start(Script::Echo);
    check(&server, &[("sec-fetch-site", "same-origin")], 200);
    for header in
        [("host", "rebound.example"), ("origin", "http://127.0.0.1"), ("sec-fetch-site", "cross-site")]
    {
        check(&server, &[header], 403);
    }
}

#[test]
fn a_snapshot_has_the_state_of_the_process() {
    let server = Server::start(Script::Echo);
    let counters = &server.shared.counters;
    for (cell, value) in [
        (counters.pages(), 100),
        (counters.pages_live(), 40),
        (counters.pages_reserved(), 3),
        (counters.pages_cached(), 20),
        (counters.pages_quarantined(), 2),
        (counters.pages_outstanding(), 5),
        (counters.prefills_live(), 1),
        (counters.prompt_tokens_computed(), 77),
    ] {
        cell.store(value, Ordering::Relaxed);
    }
    let body = r#"{"prompt": "a", "max_tokens": 3}"#;
    assert_eq!(server.http.post("/v1/completions", body).0, 200);
    *server.shared.state.lock().unwrap() = HealthState::Degraded { reason: "act".to_owned() };
    let mut snapshots = Snapshots::of(server.http.begin(DATA, &[]));
    let mut first = snapshots.next().unwrap();
    let requests = first["requests"].take();
    assert_eq!(requests.as_array().map(Vec::len), Some(1), "{requests}");
    assert_eq!((&requests[0]["outcome"], &requests[0]["completion_tokens"]), (&json!("length"), &json!(3)));
    assert!(
        first["uptime_s"].as_f64().unwrap() >= 0.0 && first["time"].as_str().unwrap().ends_with('Z'),
        "{first}"
    );
    for varies in ["uptime_s", "time"] {
        first.as_object_mut().unwrap().remove(varies);
    }
    let expect = json!({
        "role": "local", "model": "m", "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(),
        "state": "degraded", "reason": "act", "chat": true, "peers": [], "prefills": 1,
        "pages": {"pool": 100, "used": 40, "reserved": 3, "cached": 20, "quarantined": 2},
        "ring": {"outstanding": 5, "pages": 8},
        "queue": {"running": 0, "waiting": 0, "concurrency": PERMITS},
        "totals": {"finished": 1, "failed": 0, "turned_away": 0, "prompt_tokens": 1, "prompt_tokens_computed": 77, "sampled_tokens": 3},
        "ended": 1, "requests": null,
    });
    assert_eq!(first, expect);

    // A later snapshot has only the requests that have ended since.
    let mut ended = 1;
    server.http.post("/v1/completions", body);
    while ended < 2 {
        let later = snapshots.next().unwrap();
        let new = later["ended"].as_u64().unwrap();
        assert_eq!(later["requests"].as_array().unwrap().len() as u64, new - ended, "{later}");
        ended = new;
    }
}

#[test]
fn at_most_eight_streams_are_open() {
    let server = Server::start(Script::Echo);
    let mut streams: Vec<_> = (0..8).map(|_| Snapshots::of(server.http.begin(DATA, &[]))).collect();
    let (status, text) = read(server.http.begin(DATA, &[]));
    assert_eq!(status, 429, "{text}");
    assert!(text.contains("close another live page"), "{text}");
    assert!(streams.iter_mut().all(|stream| stream.next().is_some()), "the others go on");
    // A place is free again when the server notices that a client has left.
    drop(streams.pop());
    let end = Instant::now() + WAIT;
    while server.http.begin(DATA, &[]).status() != 200 {
        assert!(Instant::now() < end, "no place is free");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn streams_end_when_the_process_refuses_requests() {
    let drain = Drain::new(Duration::ZERO);
    let server = Server::start_with(Setup { drain: Some(drain.clone()), ..Setup::new(Script::Echo) });
    let mut snapshots = Snapshots::of(server.http.begin(DATA, &[]));
    assert!(snapshots.next().is_some());
    drain.begin();
    actix::System::new().block_on(drain.run(|| (), || (), async {}));
    // Snapshots may have been on their way.
    let end = Instant::now() + WAIT;
    while snapshots.next().is_some() {
        assert!(Instant::now() < end, "the stream goes on");
    }
    let mut later = Snapshots::of(server.http.begin(DATA, &[]));
    assert!(later.next().is_some() && later.next().is_none(), "one snapshot shows the state");
}
