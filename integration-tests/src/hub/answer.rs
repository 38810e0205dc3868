//! The answers of the hub.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::Result;
use serde_json::Value;

use super::{FakeHub, Fault, HubRequest, etag, is_large};

/// Bytes that are sent at once, so that a pause or a kill can come between them.
const PIECE: usize = 8 << 10;

/// Sends the answer to a request.
pub(super) fn send(
    hub: &FakeHub,
    socket: &TcpStream,
    number: usize,
    request: &HubRequest,
    fault: Option<Fault>,
    is_allowed: bool,
) -> Result<()> {
    match &fault {
        Some(Fault::Closed) => return Ok(()),
        Some(Fault::Status { status, headers, .. }) => return head(socket, *status, headers),
        Some(Fault::NoHub) => return head(socket, 200, "Content-Type: text/html"),
        _ => {}
    }
    if !is_allowed {
        return head(socket, 401, "X-Error-Code: RepoNotFound");
    }
    let path = request.path.split('?').next().unwrap_or_default().trim_start_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        ["api", "models", organisation, name, "revision", revision] => {
            let repo = format!("{organisation}/{name}");
            let found = hub.model(&repo, revision);
            let code = if hub.model(&repo, "main").is_some() { "RevisionNotFound" } else { "RepoNotFound" };
            document(socket, found, code)
        }
        ["api", "models", organisation, name, "tree", commit] => {
            document(socket, hub.tree(&format!("{organisation}/{name}"), commit), "RepoNotFound")
        }
        [organisation, name, "resolve", revision, ..] => {
            let place = parts[4..].join("/");
            match hub.file(&format!("{organisation}/{name}"), revision, &place) {
                Some((commit, bytes)) => file(hub, socket, number, request, fault, &place, &commit, bytes),
                None => head(socket, 404, "X-Error-Code: EntryNotFound"),
            }
        }
        _ => head(socket, 404, ""),
    }
}

fn document(mut socket: &TcpStream, value: Option<Value>, code: &str) -> Result<()> {
    let Some(value) = value else { return head(socket, 404, &format!("X-Error-Code: {code}")) };
    let body = value.to_string();
    let length = body.len();
    write!(socket, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n")?;
    write!(socket, "Connection: close\r\n\r\n{body}")?;
    Ok(())
}

fn head(mut socket: &TcpStream, status: u16, headers: &str) -> Result<()> {
    let line = if headers.is_empty() { String::new() } else { format!("{headers}\r\n") };
    write!(socket, "HTTP/1.1 {status} Status\r\n{line}Content-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one request, taken apart")]
fn file(
    hub: &FakeHub,
    mut socket: &TcpStream,
    number: usize,
    request: &HubRequest,
    fault: Option<Fault>,
    path: &str,
    commit: &str,
    mut bytes: Vec<u8>,
) -> Result<()> {
    let mut tag = etag(path, &bytes);
    let mut size = bytes.len() as u64;
    match fault {
        Some(Fault::SaidSize(said)) => size = said,
        Some(Fault::SaidEtag(said)) => said.clone_into(&mut tag),
        Some(Fault::OtherBytes { .. }) => bytes.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::TooLong) => bytes.extend([0; 10]),
        Some(Fault::TooShort) => bytes.truncate(bytes.len() / 2),
        _ => {}
    }
    let mut headers = format!("X-Repo-Commit: {commit}\r\n");
    if !matches!(fault, Some(Fault::NoEtag)) {
        let name = if is_large(path) { "X-Linked-Etag" } else { "ETag" };
        headers += &format!("{name}: \"{tag}\"\r\n");
    }
    if is_large(path) {
        headers += &format!("X-Linked-Size: {size}\r\n");
        if hub.state().redirects && !request.is_elsewhere {
            let place = format!("http://{}{}", hub.elsewhere, request.path);
            return head(socket, 302, &format!("{headers}Location: {place}"));
        }
    }
    if request.method == "HEAD" {
        write!(socket, "HTTP/1.1 200 OK\r\n{headers}Content-Length: {size}\r\nConnection: close\r\n\r\n")?;
        return Ok(());
    }
    let start = if matches!(fault, Some(Fault::RangeIgnored)) { 0 } else { request.start as usize };
    if matches!(fault, Some(Fault::RangeRefused { .. })) || (start > 0 && start >= bytes.len()) {
        return head(socket, 416, &format!("Content-Range: bytes */{size}"));
    }
    let body = &bytes[start..];
    let status = if start > 0 {
        let (last, total) = (bytes.len() - 1, bytes.len());
        headers += &format!("Content-Range: bytes {start}-{last}/{total}\r\n");
        "206 Partial Content"
    } else {
        "200 OK"
    };
    let length = body.len();
    write!(socket, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    let until = match fault {
        Some(Fault::Cut { after, .. } | Fault::Stall { after, .. }) => after.min(length),
        _ => length,
    };
    for piece in body[..until].chunks(PIECE) {
        hub.count(number, piece.len());
        socket.write_all(piece)?;
    }
    if matches!(fault, Some(Fault::Stall { .. })) {
        // The client closes the connection.
        let _ = socket.read(&mut [0]);
    }
    Ok(())
}
