//! Clients that are slow, silent or gone, over real sockets.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use actors::request::{FinishReason, RequestError, StreamEvent};
use serde_json::{Value, json};
use socket2::SockRef;
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
    assert!(server.streams.token(request, 97.into()));
    let role = lines.next_event();
    assert!(role.contains(r#""delta":{"role":"assistant","content":""}"#), "{role}");
    let token = lines.next_event();
    assert!(token.contains(r#""delta":{"content":"a"}"#), "{token}");
    assert_eq!(lines.next(), ": keep-alive\n\n", "between tokens too");
    let end = StreamEvent::Finished { reason: FinishReason::Length, timings: Box::default() };
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
    for (framing, drip) in [
        ("content-length: 900", None),
        ("content-length: 900", Some(" ")),
        // actix-http reads on after its answer, for as long as such a body lasts.
        ("transfer-encoding: chunked", Some("1\r\n \r\n")),
    ] {
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
fn a_body_that_nobody_reads_ends_too() {
    let short = Limits { head: SOON, idle: SOON, ..Limits::default() };
    let server = start(Script::Echo, short);
    let mut client = server.connect();
    client.write_all(b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let end = Instant::now() + WAIT;
    while client.write_all(b"1\r\n \r\n").is_ok() {
        assert!(Instant::now() < end, "the server reads on");
        std::thread::sleep(Duration::from_millis(5));
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
    assert_eq!(server.admission.running(), 0);
    let (status, text) = server.post("/v1/completions", r#"{"prompt": "a"}"#);
    assert_eq!(status, 200, "{text}");
    drop(clients);
}

#[test]
fn bodies_share_a_budget() {
    let server = Server::start_with(Setup { input_bytes: 1 << 20, ..Setup::new(Script::Echo) });
    let head = |length: usize| {
        format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    };
    let body = format!(r#"{{"prompt": [{}1]}}"#, "1,".repeat(300_000));
    // A client that announces much takes little.
    let mut first = server.connect();
    first.write_all(head(body.len()).as_bytes()).unwrap();
    first.write_all(&body.as_bytes()[..1]).unwrap();
    server.until_used(1..=20_000);
    first.write_all(&body.as_bytes()[1..500_000]).unwrap();
    server.until_used(500_000..=600_100);
    for _ in 0..2 {
        server.refused(
            "/v1/completions",
            &body,
            503,
            "",
            "more memory than request.input_bytes (1 MiB) allows; retry",
        );
    }
    // Small ones still fit.
    assert_eq!(server.post("/v1/completions", r#"{"prompt": "a"}"#).0, 200);
    first.write_all(&body.as_bytes()[500_000..]).unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400", "its tokens are too many");
    server.refused("/v1/completions", &body, 400, "prompt", "has more than 64 tokens");
    // What a client leaves behind is free at once.
    let mut leaves = server.connect();
    leaves.write_all(head(body.len()).as_bytes()).unwrap();
    leaves.write_all(&body.as_bytes()[..500_000]).unwrap();
    server.until_used(500_000..=600_100);
    drop(leaves);
    server.until_used(0..=0);
}

#[test]
fn a_request_holds_its_share_until_it_is_answered() {
    let server = Server::start(Script::Hold(1));
    let client = server.ask(r#", "stream": true"#);
    let request = server.accepted.recv_timeout(WAIT).expect("it runs");
    server.until_used(4096..=8192);
    let end = StreamEvent::Finished { reason: FinishReason::Length, timings: Box::default() };
    assert!(server.streams.end(request, end));
    server.until_used(0..=0);
    drop(client);
}

#[test]
fn a_body_in_chunks_is_taken_up_to_its_bound() {
    let server = Server::start(Script::Echo);
    let post = |chunks: &[String]| {
        let mut client = server.connect();
        client.set_write_timeout(Some(WAIT)).unwrap();
        write!(client, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        for chunk in chunks {
            write!(client, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
        }
        write!(client, "0\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    };
    assert_eq!(post(&[r#"{"pro"#.to_owned(), r#"mpt": "a"}"#.to_owned()]), "HTTP/1.1 200");
    let space = " ".repeat(1 << 16);
    assert_eq!(post(&vec![space; 129]), "HTTP/1.1 413");
    server.until_used(0..=0);
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
    // After a request: idle, or in the midst of the next head.
    for next in ["", "G"] {
        let mut client = server.connect();
        client.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"baton_pages 1\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        client.write_all(next.as_bytes()).unwrap();
        assert_eq!(rest(&mut client), "");
    }
}

#[test]
fn a_client_that_leaves_aborts_its_request() {
    #[derive(Clone, Copy, Debug)]
    enum Leave {
        Close,
        HalfClose,
        Reset,
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
            Leave::Reset => {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                drop(client);
                None
            }
        };
        assert_eq!(server.aborts.recv_timeout(WAIT), Ok(request), "{leave:?} stream {stream}");
        if let Some(mut client) = kept {
            rest(&mut client);
        }
        server.all_permits_return();
        assert!(server.streams.is_empty());
    };
    for leave in [Leave::Close, Leave::HalfClose, Leave::Reset] {
        let limits = Limits::default();
        check(Script::Hold(0), false, limits, leave);
        check(Script::Hold(0), true, limits, leave);
        check(Script::Hold(0), true, Limits { keep_alive: SOON, ..limits }, leave);
        check(Script::Hold(1), true, limits, leave);
    }
}

/// A server with little room in its sockets, and a client with little room too that has asked for much more than both, and
/// reads none of it.
fn never_reads(deadline: Duration, limits: Limits) -> (Server, TcpStream) {
    let server = Server::start_with(Setup {
        deadline,
        limits,
        context_tokens: 4096,
        send_bytes: Some(4096),
        ..Setup::new(Script::Tokens(vec![97]))
    });
    let client = server.ask_with_room(4096, r#", "stream": true, "max_tokens": 4000"#);
    server.accepted.recv_timeout(WAIT).expect("the request arrives");
    // Its tokens waited for nobody, and with the last one the permit was free.
    server.all_permits_return();
    assert!(server.streams.is_empty());
    // Full is what no longer becomes fuller.
    let mut had = 0;
    loop {
        std::thread::sleep(SOON);
        match client.peek(&mut [0; 1 << 16]).unwrap() {
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
        // Nobody has read the answer's end, so its stream ends as one that is dropped.
        while server.aborts.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            assert!(Instant::now() < end, "it still holds its stream");
            if drips {
                client.read_exact(&mut [0]).unwrap();
            }
        }
        assert!(!rest(&mut client).contains("[DONE]"));
    }
}

#[test]
fn a_client_that_takes_nothing_for_long_is_reset() {
    let limits = Limits { unanswered: Duration::from_millis(500), ..Limits::default() };
    let (server, client) = never_reads(WAIT * 10, limits);
    server.aborts.recv_timeout(WAIT).expect("the stream ends");
    drop(client);
}

#[test]
fn a_client_that_never_reads_may_half_close_too() {
    let (server, client) = never_reads(WAIT * 10, Limits::default());
    client.shutdown(Shutdown::Write).unwrap();
    server.aborts.recv_timeout(WAIT).expect("the stream ends");
    drop(client);
}

#[test]
fn a_client_that_sends_on_while_it_is_answered_is_cut() {
    for stream in [false, true] {
        let server = start(Script::Hold(0), Limits { body: WAIT * 10, ..Limits::default() });
        let mut client = server.ask(&format!(r#", "stream": {stream}"#));
        let request = server.accepted.recv_timeout(WAIT).expect("the request arrives");
        // A few requests in advance are fine; what is more than the server reads is not.
        let more = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        client.set_write_timeout(Some(WAIT)).unwrap();
        while client.write_all(&more).is_ok() {}
        assert_eq!(server.aborts.recv_timeout(WAIT), Ok(request), "stream {stream}");
        server.all_permits_return();
    }
}

#[test]
fn a_few_requests_may_be_sent_in_advance() {
    let server = Server::start(Script::Hold(0));
    let mut client = server.ask("");
    let request = server.accepted.recv_timeout(WAIT).expect("the request arrives");
    client.write_all(&b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(10)).unwrap();
    // Longer than it takes to be cut for it.
    assert_eq!(server.aborts.recv_timeout(Duration::from_secs(3)), Err(RecvTimeoutError::Timeout));
    let end = StreamEvent::Finished { reason: FinishReason::Length, timings: Box::default() };
    assert!(server.streams.end(request, end));
    let mut lines = BufReader::new(client).lines().map(|line| line.unwrap());
    assert_eq!(lines.by_ref().filter(|line| line == "baton_pages 1").take(10).count(), 10);
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
