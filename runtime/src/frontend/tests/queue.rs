//! Requests that wait for permits.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use actors::request::RequestId;

use super::super::{Limits, bind, prepare};
use super::harness::{PERMITS, Script, Server, Setup};
use super::http::{BLANK_LINE, JSON, Leave, RawClient, SOON, WAIT, read};

/// A server whose permits are all held by running requests, with these requests and their clients.
fn full(setup: Setup) -> (Server, Vec<RawClient>, Vec<RequestId>) {
    let server = Server::start_with(setup);
    let (mut clients, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..PERMITS {
        clients.push(server.http.ask(""));
        requests.push(server.next_request());
    }
    (server, clients, requests)
}

#[test]
fn requests_wait_in_order() {
    let (server, mut clients, mut requests) = full(Setup::new(Script::Hold(1)));
    for waiting in 1..=3 {
        clients.push(server.http.ask(""));
        server.until(PERMITS, waiting);
    }
    assert_eq!(server.http.get("/load"), (200, r#"{"server_load":5,"running":2,"waiting":3}"#.to_owned()));
    for (n, mut client) in clients.into_iter().enumerate() {
        server.finish(requests[n]);
        assert!(client.until("}]").starts_with("HTTP/1.1 200 OK"));
        if n < 3 {
            requests.push(server.next_request());
        }
    }
    server.all_permits_return();
}

#[test]
fn a_request_of_several_answers_is_not_overtaken() {
    let (server, _clients, requests) = full(Setup::new(Script::Hold(0)));
    let _both = server.http.ask(r#", "n": 2"#);
    server.until(PERMITS, 2);
    let _later = server.http.ask("");
    server.until(PERMITS, 3);
    server.finish(requests[0]);
    server.until(1, 3);
    assert!(
        server.accepted.recv_timeout(SOON).is_err(),
        "one permit is free, and the first request needs two"
    );
    server.finish(requests[1]);
    server.until(2, 1);
}

#[test]
fn a_client_that_leaves_frees_its_place_in_the_queue() {
    // For a whole answer, and for a stream before and after its response has begun.
    for (more, keep_alive) in [("", WAIT), (r#", "stream": true"#, WAIT), (r#", "stream": true"#, SOON)] {
        for leave in [Leave::Close, Leave::HalfClose, Leave::Reset] {
            let limits = Limits { keep_alive, ..Limits::default() };
            let (server, _clients, _) = full(Setup { queue: 1, limits, ..Setup::new(Script::Hold(0)) });
            let mut waits = server.http.ask(more);
            server.until(PERMITS, 1);
            server.http.refused(
                "/v1/completions",
                r#"{"prompt": "a"}"#,
                429,
                "",
                "the queue (request.queue) is full",
            );
            if keep_alive == SOON {
                waits.until(BLANK_LINE);
            }
            let _kept = waits.leave(leave);
            server.until(PERMITS, 0);
            let _next = server.http.ask("");
            server.until(PERMITS, 1);
            assert!(server.aborts.try_recv().is_err(), "{leave:?}: there was nothing to abort");
        }
    }
}

#[test]
fn a_stream_that_waits_sends_blank_lines() {
    let limits = Limits { keep_alive: SOON, ..Limits::default() };
    let (server, _clients, requests) = full(Setup { limits, ..Setup::new(Script::Hold(1)) });
    let mut waits = server.http.ask(r#", "stream": true, "stream_options": {"include_usage": true}"#);
    let head = waits.until(BLANK_LINE);
    assert!(head.starts_with("HTTP/1.1 200 OK") && !head.contains("data: "), "{head}");
    waits.until(BLANK_LINE);
    server.finish(requests[0]);
    let request = server.next_request();
    assert!(waits.until("data: ").contains(r#""text":"a""#));
    server.finish(request);
    waits.until("data: [DONE]");
}

#[test]
fn the_deadline_includes_the_wait() {
    let deadline = Duration::from_millis(300);
    let limits = Limits { grace: WAIT, keep_alive: SOON, ..Limits::default() };
    let (server, _clients, _) = full(Setup { deadline, limits, ..Setup::new(Script::Hold(0)) });
    server.http.refused("/v1/completions", r#"{"prompt": "a"}"#, 504, "", "deadline of 300 ms");
    let (status, text) = server.http.post("/v1/completions", r#"{"prompt": "a", "stream": true}"#);
    assert_eq!(status, 200, "the response began before the deadline");
    assert!(text.contains("deadline of 300 ms") && text.ends_with("data: [DONE]\n\n"), "{text}");
    server.until(PERMITS, 0);
}

#[test]
fn a_trusted_header_shortens_the_deadline() {
    let check = |trusts_header, header: &str, deadline_ms: u64, expect: &str| {
        let deadline = Duration::from_millis(deadline_ms);
        let limits = Limits { grace: Duration::ZERO, ..Limits::default() };
        let setup = Setup { deadline, trusts_header, limits, ..Setup::new(Script::Hold(0)) };
        let server = Server::start_with(setup);
        let headers = [JSON, ("x-envoy-expected-rq-timeout-ms", header)];
        let (status, text) = read(server.http.send("/v1/completions", r#"{"prompt": "a"}"#, &headers));
        assert_eq!(status, 504, "{text}");
        assert!(text.contains(expect), "{text}");
        let deadline = server.accepted.recv_timeout(WAIT).unwrap().deadline;
        assert!(deadline < Instant::now(), "the decoder has the same deadline");
    };
    check(true, "300", 600_000, "deadline of 300 ms");
    check(true, "600000", 300, "deadline of 300 ms");
    check(true, "soon", 300, "deadline of 300 ms");
    check(false, "1", 300, "deadline of 300 ms");
}

#[test]
fn the_deadline_runs_from_the_arrival_of_the_head() {
    let deadline = Duration::from_millis(300);
    let server = Server::start_with(Setup { deadline, ..Setup::new(Script::Hold(0)) });
    let mut client = server.http.connect();
    let body = r#"{"prompt": "a"}"#;
    client.post_head(&format!("content-length: {}", body.len()));
    std::thread::sleep(deadline + SOON);
    client.write(body);
    assert!(client.until("deadline of 300 ms").starts_with("HTTP/1.1 504 "));
    assert!(server.accepted.try_recv().is_err(), "the request did not run");
}

#[test]
fn waiting_requests_fail_when_the_process_ends() {
    let limits = Limits { keep_alive: SOON, ..Limits::default() };
    let (server, _clients, _) = full(Setup { limits, ..Setup::new(Script::Hold(0)) });
    let mut whole = server.http.ask("");
    let mut stream = server.http.ask(r#", "stream": true"#);
    stream.until(BLANK_LINE);
    server.until(PERMITS, 2);
    server.shared.admission.close();
    let refused = whole.until("server is draining");
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("\r\nx-baton-draining: true\r\n"),
        "{refused}"
    );
    stream.until("server is draining");
    server.until(PERMITS, 0);
}

#[test]
fn a_burst_of_connections_fits_the_backlog() {
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let burst = allowed.trim().parse::<usize>().unwrap().min(500);
    let listener = bind("frontend.port", "127.0.0.1", 0).unwrap();
    prepare(&listener, &Limits { connections: 1000, ..Limits::default() }).unwrap();
    let address = listener.local_addr().unwrap();
    // The listener accepts none of them. The system retries a connection that finds the backlog full after seconds.
    let clients: Vec<_> =
        (0..burst).map(|_| TcpStream::connect_timeout(&address, WAIT).expect("there is room")).collect();
    drop(clients);
}
