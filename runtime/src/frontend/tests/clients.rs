//! Clients that are slow, silent or gone.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use actors::request::{RequestError, StreamEvent};
use serde_json::{Value, json};

use super::super::Limits;
use super::harness::{PERMITS, Script, Server, Setup};
use super::http::{BLANK_LINE, Leave, LiveStream, RawClient, SOON, WAIT};

/// A head that announces a body in chunks.
const CHUNKED: &str = "transfer-encoding: chunked";

fn start(script: Script, limits: Limits) -> Server {
    Server::start_with(Setup { limits, ..Setup::new(script) })
}

#[test]
fn a_silent_stream_sends_blank_lines() {
    let server = start(Script::Hold(0), Limits { keep_alive: SOON, ..Limits::default() });
    let mut stream = server.http.ask(r#", "stream": true"#);
    let request = server.next_request();
    for _ in 0..2 {
        assert!(!stream.until(BLANK_LINE).contains("data: "));
    }
    assert!(server.shared.streams.batch().token(request, 97.into()));
    stream.until(r#""text":"a""#);
    stream.until(BLANK_LINE);
    server.finish(request);
    stream.until("data: [DONE]");
}

#[test]
fn a_chat_sends_blank_lines_before_its_first_event() {
    let server = start(Script::Hold(0), Limits { keep_alive: SOON, ..Limits::default() });
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true}).to_string();
    let mut stream = server.http.connect();
    stream.write(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let request = server.next_request();
    for _ in 0..2 {
        assert!(!stream.until(BLANK_LINE).contains("data: "));
    }
    assert!(server.shared.streams.batch().token(request, 97.into()));
    let events = stream.until(r#""content":"a""#);
    let first = events.lines().find(|line| line.starts_with("data: ")).unwrap();
    assert!(first.contains(r#""role":"assistant""#), "{first}");
    server.finish(request);
    stream.until("data: [DONE]");
}

#[test]
fn a_failure_after_the_start_is_an_event() {
    let server = start(Script::Hold(0), Limits { keep_alive: SOON, ..Limits::default() });
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true}).to_string();
    let mut stream = LiveStream::of(server.http.send("/v1/chat/completions", &body, &[]));
    let request = server.next_request();
    assert!(
        server.shared.streams.batch().end(request, StreamEvent::Failed(RequestError::Engine("x".into())))
    );
    assert_eq!(
        stream.next_event(),
        r#"{"error":{"message":"engine failed: x","type":"InternalServerError","param":null,"code":500}}"#
    );
    assert_eq!(stream.next_event(), "[DONE]");
    assert_eq!(stream.next(), None);
    server.all_permits_return();
    assert!(server.aborts.try_recv().is_err(), "there was nothing to abort");
}

#[test]
fn a_connection_takes_one_open_file() {
    let server = Server::start(Script::Echo);
    let open = |_| {
        let mut client = server.http.connect();
        client.write("GET /live HTTP/1.1\r\nhost: x\r\n\r\n");
        client.until("\r\n\r\n");
        client
    };
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let _first = open(0);
    let before = files();
    let clients: Vec<_> = (0..100).map(open).collect();
    // The client's end of each connection is in this process too. Other tests in this process may open and close a few files.
    let of_each = (files() as f64 - before as f64) / clients.len() as f64;
    assert_eq!(of_each.round() as i64, 2, "{of_each} files for each connection");
}

#[test]
fn a_body_that_does_not_arrive_is_answered_408() {
    let server = start(Script::Echo, Limits { body: SOON, ..Limits::default() });
    for (framing, drip) in [
        ("content-length: 900", None),
        ("content-length: 900", Some(" ")),
        // actix-http reads such a body to its end, even after the response.
        (CHUNKED, Some("1\r\n \r\n")),
    ] {
        let mut client = server.http.connect();
        client.post_head(framing);
        let answer = std::thread::scope(|scope| {
            let mut reader = RawClient { socket: client.socket.try_clone().unwrap() };
            let answer = scope.spawn(move || reader.rest());
            while let Some(drip) = drip.filter(|_| !answer.is_finished()) {
                // Fails once the server has closed the connection.
                let _ = client.socket.write_all(drip.as_bytes());
                std::thread::sleep(Duration::from_millis(5));
            }
            answer.join().unwrap()
        });
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(head.contains("\r\nconnection: close"), "{answer}");
        let error = serde_json::from_str::<Value>(body).unwrap()["error"].clone();
        assert_eq!(
            error["message"], "body did not arrive within 100ms; send all of it at once",
            "{framing} {drip:?}"
        );
        assert_eq!((&error["type"], &error["code"]), (&json!("RequestTimeoutError"), &json!(408)));
    }
}

#[test]
fn a_body_that_no_handler_reads_is_cut_off() {
    let short = Limits { head: SOON, idle: SOON, ..Limits::default() };
    let server = start(Script::Echo, short);
    let mut client = server.http.connect();
    client.write(format!("POST /health HTTP/1.1\r\nhost: x\r\n{CHUNKED}\r\n\r\n"));
    let end = Instant::now() + WAIT;
    while client.socket.write_all(b"1\r\n \r\n").is_ok() {
        assert!(Instant::now() < end, "the server reads on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_request_whose_body_arrives_holds_no_permit() {
    let server = Server::start(Script::Echo);
    let clients: Vec<_> = (0..=PERMITS)
        .map(|_| {
            let mut client = server.http.connect();
            client.post_head("expect: 100-continue\r\ncontent-length: 9");
            client.expect("HTTP/1.1 100 Continue");
            client.write("{");
            client
        })
        .collect();
    assert_eq!(server.shared.admission.running(), 0);
    let (status, text) = server.http.post("/v1/completions", r#"{"prompt": "a"}"#);
    assert_eq!(status, 200, "{text}");
    drop(clients);
}

#[test]
fn bodies_share_a_budget() {
    let server = Server::start_with(Setup { input_bytes: 1 << 20, ..Setup::new(Script::Echo) });
    let body = format!(r#"{{"prompt": [{}1]}}"#, "1,".repeat(300_000));
    let content_length = format!("content-length: {}", body.len());
    // A client that announces a large body and sends little takes little memory.
    let mut first = server.http.connect();
    first.post_head(&content_length);
    first.write(&body[..1]);
    server.until_used(1..=20_000);
    first.write(&body[1..500_000]);
    server.until_used(500_000..=600_100);
    for _ in 0..2 {
        server.http.refused(
            "/v1/completions",
            &body,
            503,
            "",
            "more memory than request.input_bytes (1 MiB) allows; retry",
        );
    }
    // Small bodies still fit.
    assert_eq!(server.http.post("/v1/completions", r#"{"prompt": "a"}"#).0, 200);
    first.write(&body[500_000..]);
    // It has too many tokens.
    first.expect("HTTP/1.1 400");
    server.http.refused("/v1/completions", &body, 400, "prompt", "has more than 64 tokens");
    // The memory of a client that leaves is freed at once.
    let mut leaves = server.http.connect();
    leaves.post_head(&content_length);
    leaves.write(&body[..500_000]);
    server.until_used(500_000..=600_100);
    drop(leaves);
    server.until_used(0..=0);
}

#[test]
fn a_request_holds_memory_until_it_is_answered() {
    let server = Server::start(Script::Hold(1));
    let client = server.http.ask(r#", "stream": true"#);
    let request = server.next_request();
    server.until_used(4096..=8192);
    server.finish(request);
    server.until_used(0..=0);
    drop(client);
}

#[test]
fn a_chunked_body_is_read_up_to_the_size_limit() {
    let server = Server::start(Script::Echo);
    let post = |chunks: &[String], answer: &str| {
        let mut client = server.http.connect();
        client.post_head(CHUNKED);
        for chunk in chunks {
            client.write(format!("{:x}\r\n{chunk}\r\n", chunk.len()));
        }
        client.write("0\r\n\r\n");
        client.expect(answer);
    };
    post(&[r#"{"pro"#.to_owned(), r#"mpt": "a"}"#.to_owned()], "HTTP/1.1 200");
    let space = " ".repeat(1 << 16);
    post(&vec![space; 129], "HTTP/1.1 413");
    server.until_used(0..=0);
}

#[test]
fn a_head_that_does_not_arrive_ends_its_connection() {
    // actix-http reads its clock twice per second: a period must be longer than that.
    let second = Duration::from_secs(1);
    let short = Limits { head: second, idle: second, ..Limits::default() };
    let server = start(Script::Echo, short);
    for first in ["", "POST /v1"] {
        let mut client = server.http.connect();
        client.write(first);
        let answer = client.rest();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    // After a request, the connection is idle or has a part of the next head.
    for next in ["", "G"] {
        let mut client = server.http.connect();
        client.write("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
        let answer = client.until("baton_pages 1\n");
        assert!(answer.ends_with("baton_pages 1\n"), "{answer}");
        client.write(next);
        assert_eq!(client.rest(), "");
    }
}

#[test]
fn a_client_that_leaves_aborts_its_request() {
    let check = |script: Script, stream: bool, limits: Limits, leave: Leave| {
        let started = stream && (matches!(script, Script::Hold(1)) || limits.keep_alive == SOON);
        let server = start(script, limits);
        let mut client = server.http.ask(&format!(r#", "stream": {stream}"#));
        let request = server.next_request();
        if started {
            client.expect("HTTP/1.1 200 OK");
        }
        let kept = client.leave(leave);
        assert_eq!(server.aborts.recv_timeout(WAIT), Ok(request), "{leave:?} stream {stream}");
        if let Some(mut client) = kept {
            client.rest();
        }
        server.all_permits_return();
        assert!(server.shared.streams.is_empty());
    };
    for leave in [Leave::Close, Leave::HalfClose, Leave::Reset] {
        let limits = Limits::default();
        check(Script::Hold(0), false, limits, leave);
        check(Script::Hold(0), true, limits, leave);
        check(Script::Hold(0), true, Limits { keep_alive: SOON, ..limits }, leave);
        check(Script::Hold(1), true, limits, leave);
    }
}

/// A server and a client with small socket buffers. The client has asked for an answer larger than both buffers and does not read.
fn never_reads(deadline: Duration, limits: Limits) -> (Server, RawClient) {
    let server = Server::start_with(Setup {
        deadline,
        limits,
        context_tokens: 4096,
        send_bytes: Some(4096),
        ..Setup::new(Script::Tokens(vec![97]))
    });
    let mut client = server.http.connect_with_room(4096);
    client.ask(r#", "stream": true, "max_tokens": 4000"#);
    server.next_request();
    // The decoder does not wait for the client, so the permit is free after the last token.
    server.all_permits_return();
    assert!(server.shared.streams.is_empty());
    // The buffers are full once the number of unread bytes no longer grows.
    let mut had = 0;
    loop {
        std::thread::sleep(SOON);
        match client.socket.peek(&mut [0; 1 << 16]).unwrap() {
            has if has == had => return (server, client),
            has => had = has,
        }
    }
}

#[test]
fn a_client_that_never_reads_is_cut_at_its_deadline() {
    let limits = Limits { grace: SOON, ..Limits::default() };
    for drips in [false, true] {
        let (server, mut client) = never_reads(Duration::from_millis(300), limits);
        let end = Instant::now() + WAIT;
        let wait = Duration::from_millis(20);
        // The client has not read the end of the answer, so the request counts as dropped.
        while server.aborts.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            assert!(Instant::now() < end, "the stream is still open");
            if drips {
                client.socket.read_exact(&mut [0]).unwrap();
            }
        }
        assert!(!client.rest().contains("[DONE]"));
    }
}

#[test]
fn a_client_that_acknowledges_nothing_is_reset() {
    let limits = Limits { unanswered: Duration::from_millis(500), ..Limits::default() };
    let (server, client) = never_reads(WAIT * 10, limits);
    server.aborts.recv_timeout(WAIT).expect("the stream ends");
    drop(client);
}

#[test]
fn a_client_that_never_reads_and_half_closes_is_noticed() {
    let (server, client) = never_reads(WAIT * 10, Limits::default());
    let client = client.leave(Leave::HalfClose);
    server.aborts.recv_timeout(WAIT).expect("the stream ends");
    drop(client);
}

#[test]
fn a_client_that_sends_much_while_it_is_answered_is_cut() {
    for stream in [false, true] {
        let server = start(Script::Hold(0), Limits { body: WAIT * 10, ..Limits::default() });
        let mut client = server.http.ask(&format!(r#", "stream": {stream}"#));
        let request = server.next_request();
        // This is more than the server reads in advance.
        let more = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        while client.socket.write_all(&more).is_ok() {}
        assert_eq!(server.aborts.recv_timeout(WAIT), Ok(request), "stream {stream}");
        server.all_permits_return();
    }
}

#[test]
fn a_few_requests_may_be_pipelined() {
    let server = Server::start(Script::Hold(0));
    let mut client = server.http.ask("");
    let request = server.next_request();
    client.write("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(10));
    // This is longer than the watcher takes to cut a connection.
    assert_eq!(server.aborts.recv_timeout(Duration::from_secs(3)), Err(RecvTimeoutError::Timeout));
    server.finish(request);
    let mut lines = BufReader::new(client.socket).lines().map(|line| line.unwrap());
    assert_eq!(lines.by_ref().filter(|line| line == "baton_pages 1").take(10).count(), 10);
}

#[test]
fn clients_beyond_the_connection_limit_wait() {
    let server = start(Script::Hold(0), Limits { connections: 1, ..Limits::default() });
    let first = server.http.ask("");
    server.next_request();
    let second = server.http.ask("");
    assert_eq!(server.accepted.recv_timeout(SOON), Err(RecvTimeoutError::Timeout));
    drop(first);
    server.next_request();
    drop(second);
}
