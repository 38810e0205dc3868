//! The other endpoints, the API key and the sockets.

use std::time::Duration;

use actors::request::Route;
use serde_json::{Value, json};
use socket2::SockRef;

use super::super::model_text::testing::EOS;
use super::super::{DecodeReport, HealthState, Limits, NodeReport, NodeState, bind, prepare};
use super::dated;
use super::harness::{Script, Server, Setup};
use super::http::{JSON, WAIT, read};
use crate::drain::{Drain, DrainStage};

#[test]
fn texts_are_tokenized_and_detokenized() {
    let server = Server::start(Script::Echo);
    let check = |path: &str, body: Value, expect: Value| {
        let (status, text) = server.http.post(path, &body.to_string());
        assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()), (200, expect), "{body}");
    };
    let tokens = json!({"count": 2, "max_model_len": 64, "tokens": [97, 260], "token_strs": null});
    check("/tokenize", json!({"model": "m", "prompt": "a he", "add_special_tokens": false}), tokens);
    let named = json!({"count": 1, "max_model_len": 64, "tokens": [258], "token_strs": ["he"]});
    check("/tokenize", json!({"prompt": "he", "return_token_strs": true}), named);
    check("/detokenize", json!({"tokens": [97, 260, EOS]}), json!({"prompt": "a he<|im_end|>"}));
    let (_, text) = server.http.post("/tokenize", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["count"], 20, "{text}");
    server.http.refused("/tokenize", "{}", 400, "prompt", "prompt is missing");
    server.http.refused("/tokenize", r#"{"prompt": "a", "model": "x"}"#, 404, "model", "does not exist");
    server.http.refused("/detokenize", r#"{"tokens": [262]}"#, 400, "tokens", "tokens[0] is token 262");
    server.all_permits_return();
}

#[test]
fn probes_are_answered() {
    let server = Server::start(Script::Hold(0));
    assert_eq!(server.http.get("/ping"), (200, String::new()));
    assert_eq!(server.http.post("/ping", "").0, 200);
    assert_eq!(
        server.http.get("/version"),
        (200, format!(r#"{{"version":"{}"}}"#, env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(server.http.get("/load"), (200, r#"{"server_load":0,"running":0,"waiting":0}"#.to_owned()));
    let client = server.http.ask("");
    server.next_request();
    assert_eq!(server.http.get("/load"), (200, r#"{"server_load":1,"running":1,"waiting":0}"#.to_owned()));
    drop(client);
    *server.shared.state.lock().unwrap() = HealthState::Down { reason: "x".to_owned() };
    assert_eq!(server.http.get("/ping").0, 503);
}

#[test]
fn a_model_is_shown_by_name() {
    let server = Server::start(Script::Echo);
    let (status, text) = server.http.get("/v1/models/m");
    assert_eq!((status, &serde_json::from_str::<Value>(&text).unwrap()["id"]), (200, &json!("m")));
    let (status, text) = server.http.get("/v1/models/org/other");
    assert_eq!(status, 404);
    assert!(text.contains("org/other"), "{text}");
}

#[test]
fn requests_without_the_api_key_are_refused() {
    let server = Server::start_with(Setup { api_key: Some("k1".to_owned()), ..Setup::new(Script::Echo) });
    let ask = |key: Option<&str>| {
        let bearer = key.map(|key| format!("Bearer {key}"));
        let key = bearer.iter().map(|bearer| ("authorization", &**bearer));
        let headers: Vec<(&str, &str)> = [JSON].into_iter().chain(key).collect();
        read(server.http.send("/v1/completions", r#"{"prompt": "a"}"#, &headers))
    };
    for key in [None, Some("k2"), Some("k"), Some("")] {
        assert_eq!(ask(key), (401, r#"{"error":"Unauthorized"}"#.to_owned()), "{key:?}");
    }
    assert_eq!(ask(Some("k1")).0, 200);
    assert_eq!(server.http.get("/v1/models").0, 401);
    assert_eq!(server.http.get("/v1/none").0, 401);
    for open in ["/health", "/ping", "/live", "/version", "/load", "/metrics", "/openapi.json"] {
        assert_eq!(server.http.get(open).0, 200, "{open}");
    }
}

/// A report, and the text of the answer that has it.
fn node_report() -> (NodeReport, &'static str) {
    let report = NodeReport {
        incarnation: "00000000000000ff".to_owned(),
        role: "node".to_owned(),
        prefills: true,
        decodes: true,
        state: NodeState::Draining,
        reason: None,
        model: "m".to_owned(),
        fingerprint: "ab".repeat(2),
        context_tokens: 4096,
        page_tokens: 16,
        pool_pages: 100,
        used_pages: 7,
        cache_pages: 120,
        waiting_tokens: 5,
        begun_tokens: 3,
        nanos_per_token: Some(9000),
        decoding: 4,
        decode: Some(DecodeReport { rows: 3, micros: 5000, least_micros: 4000 }),
        running: 2,
        waiting: 1,
        http: Some("10.0.0.1:8200".parse().unwrap()),
        prefillers: vec!["10.0.0.2:8200".parse().unwrap(), "[fd00::1]:8200".parse().unwrap()],
    };
    let text = r#"{"incarnation":"00000000000000ff","role":"node","prefills":true,"decodes":true,"state":"draining","reason":null,"model":"m","fingerprint":"abab","context_tokens":4096,"page_tokens":16,"pool_pages":100,"used_pages":7,"cache_pages":120,"waiting_tokens":5,"begun_tokens":3,"nanos_per_token":9000,"decoding":4,"decode":{"rows":3,"micros":5000,"least_micros":4000},"running":2,"waiting":1,"http":"10.0.0.1:8200","prefillers":["10.0.0.2:8200","[fd00::1]:8200"]}"#;
    (report, text)
}

#[test]
fn the_node_is_reported_on_its_own_port_only() {
    let (report, text) = node_report();
    let api_key = Some("k1".to_owned());
    let setup = Setup { node: Some(report.clone()), api_key, ..Setup::new(Script::Echo) };
    assert_eq!(Server::start_with(setup).http.get("/node"), (200, text.to_owned()));
    assert_eq!(Server::start(Script::Echo).http.get("/node").0, 404);
    // A reader of this version ignores fields of later ones.
    let later = text.replacen('{', r#"{"later":[1],"#, 1);
    assert_eq!(serde_json::from_str::<NodeReport>(&later).unwrap(), report);
}

#[test]
fn a_drain_is_started_by_post_and_reported_by_get() {
    const PATH: &str = "/admin/drain";
    let answer = |state: &str| {
        format!(r#"{{"state":"{state}","running":0,"waiting":0,"prefills":0,"landing_pages":0}}"#)
    };
    let drain = Drain::new(Duration::from_secs(3600));
    let server = Server::start_with(Setup { drain: Some(drain.clone()), ..Setup::new(Script::Echo) });
    assert_eq!(server.http.get(PATH), (200, answer("serving")));
    // A page that a browser on this machine shows.
    for header in [("host", "rebound.example"), ("origin", "http://example.com")] {
        let (status, text) = read(server.http.send(PATH, "", &[header]));
        assert!(status == 403 && text.contains("request.api_key"), "{status} {text}");
    }
    assert_eq!(drain.stage(), DrainStage::Serving);
    for _ in 0..2 {
        assert_eq!(server.http.post(PATH, ""), (202, answer("draining")));
        assert_eq!(server.http.get(PATH), (202, answer("draining")));
    }
    assert_eq!(drain.stage(), DrainStage::Leaving);

    // The key replaces the check of the address.
    let (drain, api_key) = (Drain::new(Duration::from_secs(3600)), Some("k1".to_owned()));
    let server =
        Server::start_with(Setup { drain: Some(drain.clone()), api_key, ..Setup::new(Script::Echo) });
    let ask = |key: &str| read(server.http.send(PATH, "", &[("host", "node"), ("authorization", key)])).0;
    assert_eq!((ask("Bearer k2"), server.http.get(PATH).0, drain.stage()), (401, 401, DrainStage::Serving));
    assert_eq!((ask("Bearer k1"), drain.stage()), (202, DrainStage::Leaving));

    let server = Server::start(Script::Echo);
    assert_eq!((server.http.post(PATH, "").0, server.http.get(PATH).0), (404, 404), "the port of clients");
}

#[test]
fn a_trusted_header_names_the_prefiller_of_every_answer() {
    let check = |trusts_header, headers: &[(&str, &str)], expect: Route| {
        let server = Server::start_with(Setup { trusts_header, ..Setup::new(Script::Echo) });
        let headers: Vec<(&str, &str)> = [JSON].into_iter().chain(headers.iter().copied()).collect();
        let body = r#"{"prompt": "a", "max_tokens": 1, "n": 2}"#;
        assert_eq!(read(server.http.send("/v1/completions", body, &headers)).0, 200);
        let routes = [(); 2].map(|()| server.accepted.recv_timeout(WAIT).unwrap().route);
        assert_eq!(routes, [expect.clone(), expect], "{headers:?}");
    };
    let header = ("x-prefiller-host-port", "10.0.0.2:8100,10.0.0.1:8100");
    let both = ["10.0.0.2:8100", "10.0.0.1:8100"].map(|text| text.parse().unwrap());
    check(true, &[header], Route::On(both.into()));
    check(true, &[("X-Prefiller-Host-Port", "nonsense")], Route::On([].into()));
    check(true, &[], Route::Auto);
    check(false, &[header], Route::Auto);
}

#[test]
fn metrics_are_text() {
    let server = Server::start(Script::Echo);
    let text = "# HELP baton_pages Pages.\n# TYPE baton_pages gauge\nbaton_pages 1\n";
    assert_eq!(server.http.get("/metrics"), (200, text.to_owned()));
}

#[test]
fn models_and_health() {
    let server = Server::start(Script::Echo);
    let (status, text) = server.http.get("/v1/models");
    let created = serde_json::from_str::<Value>(&text).unwrap()["data"][0]["created"].clone();
    assert_eq!(status, 200);
    assert_eq!(
        text,
        dated(
            r#"{"object":"list","data":[{"id":"m","object":"model","created":CREATED,"owned_by":"baton","root":"/m/m.gguf","parent":null,"max_model_len":64,"permission":[]}]}"#,
            &created
        )
    );
    let pid = std::process::id();
    let check = |state: HealthState, status: u16, live: u16, fields: &str| {
        *server.shared.state.lock().unwrap() = state;
        let expect = format!(r#"{{{fields},"role":"local","pid":{pid},"peers":0,"live_requests":0}}"#);
        assert_eq!(server.http.get("/health"), (status, expect));
        assert_eq!(server.http.get("/ping").0, status);
        assert_eq!(server.http.get("/live"), (live, String::new()));
    };
    let reason = "engine stopped".to_owned();
    check(HealthState::Ok, 200, 200, r#""status":"ok""#);
    let fields = r#""status":"degraded","reason":"engine stopped""#;
    check(HealthState::Degraded { reason: reason.clone() }, 200, 200, fields);
    let fields = r#""status":"draining","reason":"engine stopped""#;
    check(HealthState::Draining { reason: reason.clone() }, 503, 200, fields);
    check(HealthState::Down { reason }, 503, 503, r#""status":"down","reason":"engine stopped""#);
}

#[test]
fn a_port_in_use_is_an_error_that_names_the_key() {
    let taken = bind("frontend.port", "127.0.0.1", 0).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = bind("http.port", "127.0.0.1", port).unwrap_err();
    let expect = format!("http port {port} on 127.0.0.1 is in use; stop the other process or set http.port");
    assert_eq!((error.to_string(), error.kind()), (expect, "in_use"));
    let error = bind("link.port", "192.0.2.1", 0).unwrap_err();
    assert!(error.to_string().starts_with("cannot listen on 192.0.2.1:0 (link.port): "), "{error}");
}

#[test]
fn accepted_sockets_send_at_once_and_notice_a_gone_client() {
    let check = |socket: SockRef<'_>| {
        assert!(socket.tcp_nodelay().unwrap(), "the second token of a kept connection would wait 40 ms");
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    };
    let server = Server::start(Script::Echo);
    check(SockRef::from(&server.listener));
    // Accepted sockets inherit the options.
    let listener = bind("frontend.port", "127.0.0.1", 0).unwrap();
    prepare(&listener, &Limits::default()).unwrap();
    let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    check(SockRef::from(&accepted));
}
