//! Clients that are slow, silent or gone, over real sockets.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use actors::request::{FinishReason, RequestError, StreamEvent, Timings};
use serde_json::{Value, json};
use ureq::Body;
use ureq::http::Response;

use super::super::Limits;
use super::harness::{PERMITS, Script, Server, Setup, WAIT};

/// Short, for a period that must pass.
const SOON: Duration = Duration::from_millis(100);

fn start(script: Script, limits: Limits) -> Server {
    Server::start_with(Setup { limits, ..Setup::new(script) })
}

/// Reads until the server ends the connection, gently or not.
fn rest(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("not ended in time: {error}"),
        _ => String::from_utf8(bytes).unwrap(),
    }
}

/// The lines of a streamed answer, as they come.
struct Lines(BufReader<Box<dyn Read>>);

impl Lines {
    fn of(response: Response<Body>) -> Self {
        assert_eq!(response.status(), 200);
        Self(BufReader::new(Box::new(response.into_body().into_reader())))
    }

    /// The next event or comment; empty at the end.
    fn next(&mut self) -> String {
        let mut message = String::new();
        while self.0.read_line(&mut message).unwrap() > 0 && !message.ends_with("\n\n") {}
        message
    }

    fn next_event(&mut self) -> String {
        loop {
            let message = self.next();
            if message != ": keep-alive\n\n" {
                return message;
            }
        }
    }
}

#[test]
fn a_stream_without_tokens_says_that_it_lives() {
    let server = start(Script::Hold(0), Limits { keep_alive: SOON, ..Limits::default() });
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true}).to_string();
    let mut lines = Lines::of(server.send("/v1/chat/completions", &body, None));
    let request = server.accepted.recv_timeout(WAIT).unwrap();
    for _ in 0..2 {
        assert_eq!(lines.next(), ": keep-alive\n\n");
    }
    assert!(server.streams.token(request, 97));
    let role = lines.next_event();
    assert!(role.contains(r#""delta":{"role":"assistant","content":""}"#), "{role}");
    let token = lines.next_event();
    assert!(token.contains(r#""delta":{"content":"a"}"#), "{token}");
    assert_eq!(lines.next(), ": keep-alive\n\n", "between tokens too");
    let end = StreamEvent::Finished { reason: FinishReason::Length, timings: Timings::default() };
    assert!(server.streams.end(request, end));
    assert!(lines.next_event().contains(r#""finish_reason":"length""#));
    assert_eq!(lines.next(), "data: [DONE]\n\n");
    assert_eq!(lines.next(), "");
}

#[test]
fn a_failure_after_the_start_comes_as_an_event() {
    let server = start(Script::Hold(0), Limits { keep_alive: SOON, ..Limits::default() });
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true}).to_string();
    let mut lines = Lines::of(server.send("/v1/chat/completions", &body, None));
    let request = server.accepted.recv_timeout(WAIT).unwrap();
    assert!(server.streams.end(request, StreamEvent::Failed(RequestError::Engine("x".into()))));
    assert_eq!(
        lines.next_event(),
        "data: {\"error\":{\"message\":\"engine failed: x\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}}\n\n"
    );
    assert_eq!(lines.next(), "data: [DONE]\n\n");
    assert_eq!(lines.next(), "");
    server.all_permits_return();
    assert!(server.aborts.try_recv().is_err(), "there was nothing to abort");
}

#[test]
fn a_body_that_does_not_come_is_answered_408() {
    let server = start(Script::Echo, Limits { body: SOON, ..Limits::default() });
    for (framing, drip) in [("content-length: 900", None), ("content-length: 900", Some(" "))] {
        let mut client = server.connect();
        write!(client, "POST /v1/completions HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n").unwrap();
        let answer = std::thread::scope(|scope| {
            let mut reader = client.try_clone().unwrap();
            let answer = scope.spawn(move || rest(&mut reader));
            while let Some(drip) = drip.filter(|_| !answer.is_finished()) {
                // Refused once the server has closed.
                let _ = client.write_all(drip.as_bytes());
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
fn a_body_on_its_way_holds_no_permit() {
    let server = Server::start(Script::Echo);
    let clients: Vec<_> = (0..=PERMITS)
        .map(|_| {
            let mut client = server.connect();
            client
                .write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
                .unwrap();
            let mut ready = [0; 21];
            client.read_exact(&mut ready).unwrap();
            assert_eq!(&ready, b"HTTP/1.1 100 Continue");
            client.write_all(b"{").unwrap();
            client
        })
        .collect();
    assert_eq!(server.permits.available_permits(), PERMITS);
    let (status, text) = server.post("/v1/completions", r#"{"prompt": "a"}"#);
    assert_eq!(status, 200, "{text}");
    drop(clients);
}

#[test]
fn a_head_that_does_not_come_ends_its_connection() {
    // actix-http reads its clock twice a second: a period must be longer than that.
    let second = Duration::from_secs(1);
    let short = Limits { head: second, idle: second, ..Limits::default() };
    let server = start(Script::Echo, short);
    for first in ["", "POST /v1"] {
        let mut client = server.connect();
        client.write_all(first.as_bytes()).unwrap();
        let answer = rest(&mut client);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    // After a request it is idle.
    {
        let mut client = server.connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"baton_pages 1\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        assert_eq!(rest(&mut client), "");
    }
}

#[test]
fn a_client_that_leaves_aborts_its_request() {
    #[derive(Clone, Copy, Debug)]
    enum Leave {
        Close,
        HalfClose,
    }
    let check = |script: Script, stream: bool, limits: Limits, leave: Leave| {
        let started = stream && (matches!(script, Script::Hold(1)) || limits.keep_alive == SOON);
        let server = start(script, limits);
        let mut client = server.ask(&format!(r#", "stream": {stream}"#));
        let request = server.accepted.recv_timeout(WAIT).expect("the request arrives");
        if started {
            let mut head = [0; 15];
            client.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
        }
        let kept = match leave {
            Leave::Close => {
                drop(client);
                None
            }
            Leave::HalfClose => {
                client.shutdown(Shutdown::Write).unwrap();
                Some(client)
            }
        };
        assert_eq!(server.aborts.recv_timeout(WAIT), Ok(request), "{leave:?} stream {stream}");
        if let Some(mut client) = kept {
            rest(&mut client);
        }
        server.all_permits_return();
        assert!(server.streams.is_empty());
    };
    for leave in [Leave::Close, Leave::HalfClose] {
        let limits = Limits::default();
        check(Script::Hold(0), false, limits, leave);
        check(Script::Hold(0), true, limits, leave);
        check(Script::Hold(0), true, Limits { keep_alive: SOON, ..limits }, leave);
        check(Script::Hold(1), true, limits, leave);
    }
}

#[test]
fn more_clients_than_connections_wait() {
    let server = start(Script::Hold(0), Limits { connections: 1, ..Limits::default() });
    let first = server.ask("");
    server.accepted.recv_timeout(WAIT).expect("the request arrives");
    let second = server.ask("");
    assert_eq!(server.accepted.recv_timeout(SOON), Err(RecvTimeoutError::Timeout));
    drop(first);
    server.accepted.recv_timeout(WAIT).expect("there is room");
    drop(second);
}
