//! Requests that wait for permits, over real sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use actors::request::{FinishReason, RequestId, StreamEvent};
use socket2::SockRef;

use super::super::{Limits, bind, prepare};
use super::harness::{PERMITS, Script, Server, Setup, WAIT};

/// Short, for a period that must pass.
const SOON: Duration = Duration::from_millis(100);

/// A server all of whose permits are taken by requests that hold on to them, and these requests.
fn full(setup: Setup) -> (Server, Vec<TcpStream>, Vec<RequestId>) {
    let server = Server::start_with(setup);
    let (mut clients, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..PERMITS {
        clients.push(server.ask(""));
        requests.push(server.accepted.recv_timeout(WAIT).expect("it runs"));
    }
    (server, clients, requests)
}

/// The answer's head and as much as has come with these words in it.
fn until(client: &mut TcpStream, words: &str) -> String {
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while !text.contains(words) {
        let count = client.read(&mut bytes).expect("in time");
        assert!(count > 0, "the answer ended without {words:?}: {text}");
        text += std::str::from_utf8(&bytes[..count]).unwrap();
    }
    text
}

fn end(server: &Server, request: RequestId) {
    let end = StreamEvent::Finished { reason: FinishReason::Length, timings: Box::default() };
    assert!(server.streams.end(request, end));
}

#[test]
fn requests_wait_in_order() {
    let (server, mut clients, mut requests) = full(Setup::new(Script::Hold(1)));
    for waiting in 1..=3 {
        clients.push(server.ask(""));
        server.until(PERMITS, waiting);
    }
    assert_eq!(server.get("/load"), (200, r#"{"server_load":5,"running":2,"waiting":3}"#.to_owned()));
    for (n, mut client) in clients.into_iter().enumerate() {
        end(&server, requests[n]);
        assert!(until(&mut client, "}]").starts_with("HTTP/1.1 200 OK"));
        if n < 3 {
            requests.push(server.accepted.recv_timeout(WAIT).expect("the next one runs"));
        }
    }
    server.all_permits_return();
}

#[test]
fn a_request_of_several_answers_is_not_overtaken() {
    let (server, _clients, requests) = full(Setup::new(Script::Hold(0)));
    let _both = server.ask(r#", "n": 2"#);
    server.until(PERMITS, 2);
    let _later = server.ask("");
    server.until(PERMITS, 3);
    end(&server, requests[0]);
    server.until(1, 3);
    assert!(server.accepted.recv_timeout(SOON).is_err(), "one permit is free, and the first needs two");
    end(&server, requests[1]);
    server.until(2, 1);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    #[derive(Clone, Copy, Debug)]
    enum Leave {
        Close,
        HalfClose,
        Reset,
    }
    // Of a stream, whose response may have begun meanwhile, and of a whole answer.
    for (more, keep_alive) in [("", WAIT), (r#", "stream": true"#, WAIT), (r#", "stream": true"#, SOON)] {
        for leave in [Leave::Close, Leave::HalfClose, Leave::Reset] {
            let limits = Limits { keep_alive, ..Limits::default() };
            let (server, _clients, _) = full(Setup { queue: 1, limits, ..Setup::new(Script::Hold(0)) });
            let mut waits = server.ask(more);
            server.until(PERMITS, 1);
            server.refused(
                "/v1/completions",
                r#"{"prompt": "a"}"#,
                429,
                "",
                "the queue (request.queue) is full",
            );
            if keep_alive == SOON {
                until(&mut waits, ": keep-alive\n\n");
            }
            let _kept = match leave {
                Leave::Close => {
                    drop(waits);
                    None
                }
                Leave::HalfClose => {
                    waits.shutdown(Shutdown::Write).unwrap();
                    Some(waits)
                }
                Leave::Reset => {
                    SockRef::from(&waits).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(waits);
                    None
                }
            };
            server.until(PERMITS, 0);
            let _next = server.ask("");
            server.until(PERMITS, 1);
            assert!(server.aborts.try_recv().is_err(), "{leave:?}: there was nothing to abort");
        }
    }
}

#[test]
fn a_stream_that_waits_says_that_it_lives() {
    let limits = Limits { keep_alive: SOON, ..Limits::default() };
    let (server, _clients, requests) = full(Setup { limits, ..Setup::new(Script::Hold(1)) });
    let mut waits = server.ask(r#", "stream": true, "stream_options": {"include_usage": true}"#);
    let head = until(&mut waits, ": keep-alive\n\n");
    assert!(head.starts_with("HTTP/1.1 200 OK") && !head.contains("data: "), "{head}");
    until(&mut waits, ": keep-alive\n\n");
    end(&server, requests[0]);
    let request = server.accepted.recv_timeout(WAIT).expect("it runs");
    assert!(until(&mut waits, "data: ").contains(r#""text":"a""#));
    end(&server, request);
    until(&mut waits, "data: [DONE]");
}

#[test]
fn the_deadline_includes_the_wait() {
    let deadline = Duration::from_millis(300);
    let limits = Limits { grace: WAIT, keep_alive: SOON, ..Limits::default() };
    let (server, _clients, _) = full(Setup { deadline, limits, ..Setup::new(Script::Hold(0)) });
    server.refused("/v1/completions", r#"{"prompt": "a"}"#, 504, "", "deadline of 300 ms");
    let (status, text) = server.post("/v1/completions", r#"{"prompt": "a", "stream": true}"#);
    assert_eq!(status, 200, "the response began before");
    assert!(text.contains("deadline of 300 ms") && text.ends_with("data: [DONE]\n\n"), "{text}");
    server.until(PERMITS, 0);
}

#[test]
fn the_deadline_runs_from_the_arrival_of_the_head() {
    let deadline = Duration::from_millis(300);
    let server = Server::start_with(Setup { deadline, ..Setup::new(Script::Hold(0)) });
    let mut client = server.connect();
    let body = r#"{"prompt": "a"}"#;
    write!(client, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len())
        .unwrap();
    std::thread::sleep(deadline + SOON);
    client.write_all(body.as_bytes()).unwrap();
    assert!(until(&mut client, "deadline of 300 ms").starts_with("HTTP/1.1 504 "));
    assert!(server.accepted.try_recv().is_err(), "it was never run");
}

#[test]
fn what_waits_is_told_that_the_process_ends() {
    let limits = Limits { keep_alive: SOON, ..Limits::default() };
    let (server, _clients, _) = full(Setup { limits, ..Setup::new(Script::Hold(0)) });
    let mut whole = server.ask("");
    let mut stream = server.ask(r#", "stream": true"#);
    until(&mut stream, ": keep-alive\n\n");
    server.until(PERMITS, 2);
    server.admission.close();
    assert!(until(&mut whole, "shutting down").starts_with("HTTP/1.1 503 "));
    until(&mut stream, "shutting down");
    server.until(PERMITS, 0);
}

#[test]
fn a_burst_of_connections_fits_the_backlog() {
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let burst = allowed.trim().parse::<usize>().unwrap().min(500);
    let listener = bind("frontend.port", "127.0.0.1", 0).unwrap();
    prepare(&listener, &Limits { connections: 1000, ..Limits::default() }).unwrap();
    let address = listener.local_addr().unwrap();
    // The listener accepts none of them. One that finds the backlog full is tried again after seconds.
    let clients: Vec<_> =
        (0..burst).map(|_| TcpStream::connect_timeout(&address, WAIT).expect("there is room")).collect();
    drop(clients);
}
