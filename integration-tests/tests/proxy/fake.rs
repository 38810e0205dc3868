//! Nodes that misbehave on request. They speak just enough HTTP for a proxy: one request for each connection.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

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
    /// Reads the request and never answers.
    Hangs,
    /// As `Hangs`, and does not answer `GET /node` either.
    IsSilent,
}

/// A node that misbehaves on request.
pub(crate) struct FakeNode {
    /// Its HTTP port.
    pub(crate) address: String,
    manner: Arc<Mutex<Manner>>,
    /// Requests for completions that it got.
    pub(crate) asked: Arc<AtomicUsize>,
    /// Connections of hanging requests that the proxy has closed.
    pub(crate) left: Arc<AtomicUsize>,
}

impl FakeNode {
    /// A node that answers.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let node = Self {
            address: listener.local_addr()?.to_string(),
            manner: Arc::new(Mutex::new(Manner::Answers)),
            asked: Arc::default(),
            left: Arc::default(),
        };
        let (address, manner) = (node.address.clone(), Arc::clone(&node.manner));
        let (asked, left) = (Arc::clone(&node.asked), Arc::clone(&node.left));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (address, manner) = (address.clone(), Arc::clone(&manner));
                let (asked, left) = (Arc::clone(&asked), Arc::clone(&left));
                std::thread::spawn(move || serve(socket, &address, &manner, &asked, &left));
            }
        });
        Ok(node)
    }

    /// From now on it treats requests this way.
    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }
}

fn serve(
    mut socket: TcpStream,
    address: &str,
    manner: &Mutex<Manner>,
    asked: &AtomicUsize,
    left: &AtomicUsize,
) -> Option<()> {
    let head = read_request(&mut socket)?;
    let manner = *manner.lock().unwrap_or_else(PoisonError::into_inner);
    if head.starts_with("GET /node ") {
        if manner == Manner::IsSilent {
            std::thread::sleep(Duration::from_secs(60));
            return None;
        }
        return answer(&mut socket, "200 OK", &report(address));
    }
    asked.fetch_add(1, Ordering::Relaxed);
    match manner {
        Manner::IsBusy => answer(&mut socket, "503 Service Unavailable", "{}"),
        Manner::Breaks => None,
        Manner::Hangs | Manner::IsSilent => {
            let closed = matches!(socket.read(&mut [0; 1]), Ok(0) | Err(_));
            left.fetch_add(usize::from(closed), Ordering::Relaxed);
            None
        }
        Manner::Answers | Manner::BreaksLater => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            socket.write_all(head.as_bytes()).ok()?;
            for number in 0..3 {
                let text = format!("data: {address} {number}\n\n");
                socket.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).ok()?;
                std::thread::sleep(Duration::from_millis(50));
                if manner == Manner::BreaksLater {
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

fn report(address: &str) -> String {
    let port = address.rsplit(':').next().unwrap_or_default();
    json!({
        "incarnation": format!("{port:0>16}"), "role": "local", "prefills": true, "decodes": true, "state": "ok", "reason": null,
        "model": "fake", "fingerprint": "00", "context_tokens": 4096, "page_tokens": 16, "pool_pages": 1000, "used_pages": 0,
        "cache_pages": 1000, "waiting_tokens": 0, "begun_tokens": 0, "nanos_per_token": 1_000_000, "running": 0, "waiting": 0,
        "http": address, "prefillers": []
    })
    .to_string()
}
