//! The server's side of ZMTP 3.0, ZeroMQ's protocol over TCP, without security: the greeting, the handshake and frames
//! ([RFC 23](https://rfc.zeromq.org/spec/23/)).
//!
//! A peer's frame has at most `FRAME_MAX` bytes and a message at most `FRAMES_MAX` frames. A peer that sends more is disconnected before memory
//! is allocated for it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Maximum number of bytes of a peer's frame. A subscription has a topic, and a request for a replay has 8 bytes.
pub(super) const FRAME_MAX: u64 = 1024;
/// Maximum number of frames of a peer's message.
pub(super) const FRAMES_MAX: usize = 4;

/// Time for the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What a peer sends after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The frames of a message.
    Message(Vec<Vec<u8>>),
    /// A heartbeat, which is answered with this context.
    Ping(Vec<u8>),
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Our greeting: the signature, version 3.0, the mechanism NULL.
fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Greets a peer and exchanges the types of the sockets. The peer's socket must have one of the types `peers`.
///
/// # Errors
/// The peer speaks no ZMTP 3, wants security, has a socket of another type, is too slow, or the connection breaks.
pub(super) async fn handshake(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ours: &str,
    peers: &[&str],
) -> io::Result<()> {
    let shake = async {
        stream.write_all(&greeting()).await?;
        let mut theirs = [0; 64];
        stream.read_exact(&mut theirs).await?;
        if theirs[0] != 0xff || theirs[9] & 1 == 0 || theirs[10] < 3 {
            return Err(broken("the peer does not speak ZMTP 3"));
        }
        if theirs[12..32] != greeting()[12..32] {
            return Err(broken("the peer wants a security mechanism"));
        }
        let property = [b"\x0bSocket-Type", &(ours.len() as u32).to_be_bytes()[..], ours.as_bytes()].concat();
        stream.write_all(&command(b"READY", &property)).await?;
        match read_frame(stream).await? {
            (flags, body) if flags & COMMAND != 0 && is_ready(&body, peers) => Ok(()),
            _ => Err(broken("the peer's socket has another type")),
        }
    };
    timeout(HANDSHAKE_LIMIT, shake).await?
}

/// True if a command is READY with one of these types of sockets.
fn is_ready(command: &[u8], types: &[&str]) -> bool {
    let Some(mut rest) = command.strip_prefix(b"\x05READY") else { return false };
    while let Some((name, value, after)) = property(rest) {
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return types.iter().any(|known| known.as_bytes() == value);
        }
        rest = after;
    }
    false
}

/// The name and the value of the first property, and what follows it.
fn property(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(length.into())?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((name, value, rest))
}

/// A command as one frame. It has at most 255 bytes.
pub(super) fn command(name: &[u8], data: &[u8]) -> Vec<u8> {
    let length = 1 + name.len() + data.len();
    [&[COMMAND, length as u8, name.len() as u8], name, data].concat()
}

/// The bytes of a message.
pub(super) fn message(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frames.iter().map(|frame| frame.len() + 9).sum());
    for (place, frame) in frames.iter().enumerate() {
        let more = if place + 1 < frames.len() { MORE } else { 0 };
        match u8::try_from(frame.len()) {
            Ok(length) => bytes.extend([more, length]),
            Err(_) => {
                bytes.push(more | LONG);
                bytes.extend((frame.len() as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(frame);
    }
    bytes
}

/// Reads a frame: its flags and its body.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let flags = stream.read_u8().await?;
    let length =
        if flags & LONG == 0 { u64::from(stream.read_u8().await?) } else { stream.read_u64().await? };
    if length > FRAME_MAX {
        return Err(broken("the peer's frame is too large"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok((flags, body))
}

/// Reads the next message or heartbeat. Other commands are skipped.
///
/// # Errors
/// The peer sends too much, or the connection ends.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Received> {
    let mut frames = Vec::new();
    loop {
        let (flags, body) = read_frame(stream).await?;
        if flags & COMMAND != 0 {
            // PING has a time of two bytes before its context.
            if let Some(context) = body.strip_prefix(b"\x04PING").and_then(|rest| rest.get(2..)) {
                return Ok(Received::Ping(context[..context.len().min(16)].to_vec()));
            }
            continue;
        }
        frames.push(body);
        if flags & MORE == 0 {
            return Ok(Received::Message(frames));
        }
        if frames.len() == FRAMES_MAX {
            return Err(broken("the peer's message has too many frames"));
        }
    }
}
