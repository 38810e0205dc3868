//! One connection: a subscriber, or a client of the replay.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::history::{Batch, History};
use super::zmtp::{self, Received};

/// Maximum number of subscriptions of a connection.
const SUBSCRIPTIONS_MAX: usize = 64;
/// Time for a peer to read a batch. A slower one is disconnected.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// Time without traffic after which the system asks whether the peer's host still answers.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Sequence number of the last message of a replay: −1.
const REPLAY_END: [u8; 8] = [0xff; 8];

/// The purpose of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sends new batches: a PUB socket.
    Publish,
    /// Sends earlier batches again: a ROUTER socket.
    Replay,
}

impl Kind {
    fn socket(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Publish => ("PUB", &["SUB", "XSUB"]),
            Self::Replay => ("ROUTER", &["REQ", "DEALER", "ROUTER"]),
        }
    }
}

/// Serves a connection until it ends.
///
/// # Errors
/// The peer breaks the protocol, reads too slowly or has closed the connection.
pub(super) async fn serve(
    mut stream: TcpStream,
    kind: Kind,
    topic: &[u8],
    history: watch::Receiver<History>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    let (ours, theirs) = kind.socket();
    zmtp::handshake(&mut stream, ours, theirs).await?;
    let (mut read, write) = stream.into_split();
    // Reading must not be cancelled within a message, so it has a future of its own.
    let (received, inbox) = mpsc::channel(1);
    let reading = async {
        loop {
            let next = zmtp::read(&mut read).await?;
            if received.send(next).await.is_err() {
                return Ok(());
            }
        }
    };
    let peer = Peer { write, inbox, history, topic };
    let writing = async {
        match kind {
            Kind::Publish => peer.publish().await,
            Kind::Replay => peer.replay().await,
        }
    };
    tokio::select! { ended = reading => ended, ended = writing => ended }
}

struct Peer<'a> {
    write: OwnedWriteHalf,
    inbox: mpsc::Receiver<Received>,
    history: watch::Receiver<History>,
    topic: &'a [u8],
}

impl Peer<'_> {
    /// Sends new batches while the peer subscribes to a beginning of the topic.
    async fn publish(mut self) -> io::Result<()> {
        let mut subscriptions: Vec<Vec<u8>> = Vec::new();
        let mut next = 0;
        loop {
            let is_subscribed = subscriptions.iter().any(|begin| self.topic.starts_with(begin));
            let batch = {
                let history = self.history.borrow_and_update();
                // Batches before the subscription are not sent.
                next = if is_subscribed { next } else { history.end() };
                history.first_from(next)
            };
            tokio::select! {
                biased;
                received = self.inbox.recv() => match received {
                    Some(Received::Message(frames)) => subscribe(&mut subscriptions, &frames)?,
                    Some(Received::Ping(context)) => self.pong(&context).await?,
                    None => return Ok(()),
                },
                changed = self.history.changed(), if batch.is_none() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = std::future::ready(()), if batch.is_some() => {
                    let Some(batch) = batch else { continue };
                    next = batch.sequence + 1;
                    self.write(&[self.topic, &batch.sequence.to_be_bytes(), &batch.payload]).await?;
                }
            }
        }
    }

    /// Answers each request with all batches from a sequence number on, and an end.
    async fn replay(mut self) -> io::Result<()> {
        while let Some(received) = self.inbox.recv().await {
            let frames = match received {
                Received::Message(frames) => frames,
                Received::Ping(context) => {
                    self.pong(&context).await?;
                    continue;
                }
            };
            let [delimiter, sequence] = &frames[..] else { return Err(not_understood()) };
            let (true, Ok(sequence)) = (delimiter.is_empty(), <[u8; 8]>::try_from(&sequence[..])) else {
                return Err(not_understood());
            };
            let (mut next, end) = (u64::from_be_bytes(sequence), self.history.borrow().end());
            while let Some(batch) = self.first_from(next).filter(|batch| batch.sequence < end) {
                next = batch.sequence + 1;
                let sequence = batch.sequence.to_be_bytes();
                self.write(&[b"", self.topic, &sequence, &batch.payload]).await?;
            }
            self.write(&[b"", b"", &REPLAY_END, b""]).await?;
        }
        Ok(())
    }

    fn first_from(&self, sequence: u64) -> Option<Arc<Batch>> {
        self.history.borrow().first_from(sequence)
    }

    async fn write(&mut self, frames: &[&[u8]]) -> io::Result<()> {
        timeout(WRITE_LIMIT, self.write.write_all(&zmtp::message(frames))).await?
    }

    async fn pong(&mut self, context: &[u8]) -> io::Result<()> {
        timeout(WRITE_LIMIT, self.write.write_all(&zmtp::command(b"PONG", context))).await?
    }
}

fn not_understood() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the peer's message was not understood")
}

/// Changes the subscriptions by a message of the peer: 1 and the beginning of a topic adds one, 0 removes one.
fn subscribe(subscriptions: &mut Vec<Vec<u8>>, frames: &[Vec<u8>]) -> io::Result<()> {
    let [frame] = frames else { return Err(not_understood()) };
    match frame.split_first() {
        Some((1, begin)) if subscriptions.len() < SUBSCRIPTIONS_MAX => subscriptions.push(begin.to_vec()),
        Some((0, begin)) => {
            if let Some(place) = subscriptions.iter().position(|known| known == begin) {
                subscriptions.remove(place);
            }
        }
        _ => return Err(not_understood()),
    }
    Ok(())
}
