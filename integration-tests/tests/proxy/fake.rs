//! Nodes that misbehave on request. They speak just enough HTTP for a proxy.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

/// What a node does with a request for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Answers with three chunks.
    Answers,
    /// Answers 503.
    IsBusy,
    /// Closes the connection without an answer.
    Breaks,
    /// Closes the connection after the first chunk.
    BreaksLater,
    /// Closes the connection after a blank line, which keeps a silent stream alive.
    BreaksAtBlankLine,
    /// Reads the request and never answers.
    Hangs,
    /// As `Hangs`, and does not answer `GET /node` either.
    IsSilent,
    /// Answers the first request of a connection, and closes the connection at the second one.
    ClosesKept,
}

/// A node that misbehaves on request.
pub(crate) struct FakeNode {
    /// Its HTTP port.
    pub(crate) address: String,
    shared: Arc<Shared>,
}

/// What a node shares with its threads.
struct Shared {
    manner: Mutex<Manner>,
    /// What it answers to `GET /node`.
    report: Mutex<String>,
    reported: AtomicUsize,
    /// The heads of the requests for completions that it got.
    heads: Mutex<Vec<String>>,
    left: AtomicUsize,
    closed: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeNode {
    /// A node that answers.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Answers),
            report: Mutex::new(report(&address).to_string()),
            reported: AtomicUsize::default(),
            heads: Mutex::default(),
            left: AtomicUsize::default(),
            closed: AtomicUsize::default(),
        });
        let node = Self { address: address.clone(), shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (address, shared) = (address.clone(), Arc::clone(&shared));
                std::thread::spawn(move || serve(socket, &address, &shared));
            }
        });
        Ok(node)
    }

    /// From now on it treats requests this way.
    pub(crate) fn set(&self, manner: Manner) {
        *lock(&self.shared.manner) = manner;
    }

    /// From now on its report is this text.
    pub(crate) fn report(&self, text: String) {
        *lock(&self.shared.report) = text;
    }

    /// Its report with these fields instead of the true ones.
    pub(crate) fn lie(&self, fields: &Value) -> String {
        let mut report = report(&self.address);
        for (name, value) in fields.as_object().into_iter().flatten() {
            report[name] = value.clone();
        }
        report.to_string()
    }

    /// Number of questions `GET /node` that it got.
    pub(crate) fn polled(&self) -> usize {
        self.shared.reported.load(Ordering::Relaxed)
    }

    /// Requests for completions that it got.
    pub(crate) fn asked(&self) -> usize {
        lock(&self.shared.heads).len()
    }

    /// The value of a header of the last request for completions.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let heads = lock(&self.shared.heads);
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned);
        heads.last()?.lines().find_map(value)
    }

    /// Connections of hanging requests that the proxy has closed.
    pub(crate) fn left(&self) -> usize {
        self.shared.left.load(Ordering::Relaxed)
    }

    /// Connections that it has closed at their second request.
    pub(crate) fn closed(&self) -> usize {
        self.shared.closed.load(Ordering::Relaxed)
    }
}

fn serve(mut socket: TcpStream, address: &str, shared: &Shared) -> Option<()> {
    let head = read_request(&mut socket)?;
    let manner = *lock(&shared.manner);
    if head.starts_with("GET /node ") {
        shared.reported.fetch_add(1, Ordering::Relaxed);
        if manner == Manner::IsSilent {
            std::thread::sleep(Duration::from_secs(60));
            return None;
        }
        let report = lock(&shared.report).clone();
        return answer(&mut socket, "200 OK", &report);
    }
    lock(&shared.heads).push(head);
    match manner {
        Manner::IsBusy => answer(&mut socket, "503 Service Unavailable", "{}"),
        Manner::Breaks => None,
        Manner::Hangs | Manner::IsSilent => {
            let closed = matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_));
            shared.left.fetch_add(usize::from(closed), Ordering::Relaxed);
            None
        }
        Manner::ClosesKept => {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            socket.write_all(head.as_bytes()).ok()?;
            let text = format!("data: {address}\n\n");
            socket.write_all(format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len()).as_bytes()).ok()?;
            read_request(&mut socket)?;
            shared.closed.fetch_add(1, Ordering::Relaxed);
            None
        }
        Manner::Answers | Manner::BreaksLater | Manner::BreaksAtBlankLine => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            socket.write_all(head.as_bytes()).ok()?;
            for number in 0..3 {
                let event = format!("data: {address} {number}\n\n");
                let text = if manner == Manner::BreaksAtBlankLine { "\n" } else { &event };
                socket.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).ok()?;
                std::thread::sleep(Duration::from_millis(50));
                if manner != Manner::Answers {
                    return None;
                }
            }
            socket.write_all(b"0\r\n\r\n").ok()
        }
    }
}

/// Reads a request and returns its head.
fn read_request(socket: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                return Some(head.to_owned());
            }
        }
        let count = socket.read(&mut chunk).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
    }
}

fn answer(socket: &mut TcpStream, status: &str, body: &str) -> Option<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all(format!("{head}{body}").as_bytes()).ok()
}

fn report(address: &str) -> Value {
    let port = address.rsplit(':').next().unwrap_or_default();
    json!({
        "incarnation": format!("{port:0>16}"), "role": "local", "prefills": true, "decodes": true, "state": "ok", "reason": null,
        "model": "fake", "fingerprint": "00", "context_tokens": 4096, "page_tokens": 16, "pool_pages": 1000, "used_pages": 0,
        "cache_pages": 1000, "waiting_tokens": 0, "begun_tokens": 0, "nanos_per_token": 1_000_000, "running": 0, "waiting": 0,
        "http": address, "prefillers": []
    })
}
