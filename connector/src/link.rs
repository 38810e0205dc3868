//! The link: one TCP connection between two processes that carries control frames, never KV bytes.
//!
//! Length-delimited [`wire`] values. The listener challenges, the dialer says Hello, and a shared secret, where one is
//! set, is proved by both sides without travelling. A broken link is final: whoever dials again opens a new session.
//! Each side sends a heartbeat when it has been quiet for [`HEARTBEAT`]; a peer that was silent for [`SILENCE`] is
//! dead, and so is one that takes no bytes for that long. These are plain futures: they run on whichever tokio
//! runtime polls them, and every wait in them has a deadline.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hmac::{Hmac, KeyInit, Mac};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use crate::frame::{
    Answer, Challenge, Frame, Hello, Incarnation, Incompatible, Versions, Welcome, peer_text,
};
use crate::process::{Pidfd, Presence};
use crate::wire::{self, FRAME_BYTES_MAX, WireError};

/// A side that has sent nothing for this long sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// A peer that was silent for this long is dead.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Each step of the handshake must be over in this time.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why a link could not be made, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The socket failed.
    #[error("link socket: {0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection.
    #[error("peer closed the link")]
    Closed,
    /// The peer ended the session in good order.
    #[error("peer said goodbye")]
    Goodbye,
    /// Nothing came, or nothing could be sent, in the time allowed.
    #[error("peer was silent for {} ms", .0.as_millis())]
    Silent(Duration),
    /// Bytes that are no frame of ours.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The two sides do not fit together.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The listener refused us for good.
    #[error("peer refused the session: {0}")]
    Refused(String),
    /// The listener has no room for us now.
    #[error("peer is busy: {0}")]
    Busy(String),
}

impl LinkError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Closed => "closed",
            Self::Goodbye => "goodbye",
            Self::Silent(_) => "silent",
            Self::Wire(error) => error.kind(),
            Self::Incompatible(error) => error.kind(),
            Self::Refused(_) => "refused",
            Self::Busy(_) => "busy",
        }
    }

    /// True if dialling again cannot help before somebody changes a setting.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Incompatible(_) | Self::Refused(_))
    }
}

/// A fresh nonce for [`Challenge`] or [`Hello`].
///
/// # Errors
/// The operating system has no random bytes.
pub fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// What both sides of a handshake have drawn: a proof covers both, so one that was given elsewhere is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonces {
    /// The listener's, from its [`Challenge`].
    pub listener: [u8; 32],
    /// The dialer's, from its [`Hello`].
    pub dialer: [u8; 32],
}

/// Who proves: part of what is proved, so that one side's proof is not the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prover {
    /// The side that accepted the connection.
    Listener,
    /// The side that dialled.
    Dialer,
}

impl Nonces {
    fn mac(&self, secret: &str, prover: Prover) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(match prover {
            Prover::Listener => b"baton listener",
            Prover::Dialer => b"baton dialer",
        });
        mac.update(&self.listener);
        mac.update(&self.dialer);
        mac
    }

    /// Proof that `prover` knows `secret`.
    pub fn prove(&self, secret: Option<&str>, prover: Prover) -> Option<[u8; 32]> {
        secret.map(|secret| self.mac(secret, prover).finalize().into_bytes().into())
    }

    /// Checks the proof of `prover`; a process without a secret asks for none.
    ///
    /// # Errors
    /// [`Incompatible::Secret`].
    pub fn check(
        &self,
        secret: Option<&str>,
        prover: Prover,
        proof: Option<&[u8; 32]>,
    ) -> Result<(), Incompatible> {
        let known = match (secret, proof) {
            (None, _) => true,
            (Some(secret), Some(proof)) => self.mac(secret, prover).verify_slice(proof).is_ok(),
            (Some(_), None) => false,
        };
        if known { Ok(()) } else { Err(Incompatible::Secret) }
    }

    /// The name under which the dialer shows itself to a listener on the same host: nobody else can know it in time.
    fn presence(&self) -> String {
        let digest = Sha256::new().chain_update(b"baton presence");
        let digest = digest.chain_update(self.listener).chain_update(self.dialer).finalize();
        digest.iter().take(16).fold("baton-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
    }

    /// A number that both sides know and no other session has: the seed of its page hashes.
    pub fn session_seed(&self) -> u64 {
        let digest = Sha256::new().chain_update(self.listener).chain_update(self.dialer).finalize();
        u64::from_le_bytes(std::array::from_fn(|n| digest[n]))
    }
}

type Socket = Framed<TcpStream, LengthDelimitedCodec>;

/// A connection during its handshake.
pub struct Link {
    socket: Socket,
    peer: SocketAddr,
    nonces: Nonces,
    dialer: Option<Pidfd>,
}

impl Link {
    fn new(stream: TcpStream, nonces: Nonces) -> Result<Self, LinkError> {
        // Frames are small and each one is waited for.
        stream.set_nodelay(true)?;
        let peer = stream.peer_addr()?;
        if stream.local_addr()? == peer {
            // The kernel gave the dialer the very port that it dials, so it met itself; it must let go of the port at
            // once, without the wait that TCP keeps it for otherwise.
            stream.set_zero_linger()?;
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connection to itself").into());
        }
        let codec = LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec();
        Ok(Self { socket: Framed::new(stream, codec), peer, nonces, dialer: None })
    }

    /// The other end's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What both sides have drawn.
    pub fn nonces(&self) -> Nonces {
        self.nonces
    }

    /// After [`accept`](Self::accept): the dialer's process, if the kernel says that it runs on this host; once.
    pub fn take_dialer(&mut self) -> Option<Pidfd> {
        self.dialer.take()
    }

    /// Dials a listener and reads its challenge. The caller then says [`hello`](Self::hello).
    ///
    /// # Errors
    /// [`LinkError`]; see [`LinkError::is_permanent`].
    pub async fn dial(address: &str) -> Result<(Self, Challenge), LinkError> {
        let stream = timeout(HANDSHAKE, TcpStream::connect(address))
            .await
            .map_err(|_| LinkError::Silent(HANDSHAKE))??;
        let mut link = Self::new(stream, Nonces { listener: [0; 32], dialer: nonce()? })?;
        let bytes = link.receive_bytes().await?;
        Versions::OURS.agree(&wire::decode_front(&bytes)?)?;
        let challenge: Challenge = wire::decode_front(&bytes)?;
        link.nonces.listener = challenge.nonce;
        Ok((link, challenge))
    }

    /// Says Hello and waits for the welcome. `hello`'s versions, nonce and proof are filled in here.
    ///
    /// # Errors
    /// [`LinkError`]; see [`LinkError::is_permanent`].
    pub async fn hello(
        &mut self,
        challenge: &Challenge,
        mut hello: Hello,
        secret: Option<&str>,
    ) -> Result<Box<Welcome>, LinkError> {
        hello.versions = Versions::OURS;
        hello.version = Versions::OURS.agree(&challenge.versions)?;
        hello.nonce = self.nonces.dialer;
        hello.proof = self.nonces.prove(secret, Prover::Dialer);
        // Until the listener has answered. Where the system refuses, the listener only lacks a proof.
        let _presence = Presence::show(&self.nonces.presence());
        self.send(&hello).await?;
        let welcome = match self.receive::<Answer>().await? {
            Answer::Welcome(welcome) => welcome,
            Answer::Refused(reason) => return Err(LinkError::Refused(peer_text(&reason))),
            Answer::Busy(reason) => return Err(LinkError::Busy(peer_text(&reason))),
        };
        self.nonces.check(secret, Prover::Listener, welcome.proof.as_ref())?;
        hello.shape.accepts(&welcome.shape)?;
        Ok(welcome)
    }

    /// Challenges a dialer and reads its Hello. A peer that speaks no version of ours, serves another model or does not know the
    /// secret is told so and refused. The caller then [`welcome`](Self::welcome)s or [`refuse`](Self::refuse)s.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn accept(
        stream: TcpStream,
        incarnation: Incarnation,
        shape: &crate::frame::KvShape,
        secret: Option<&str>,
    ) -> Result<(Self, Hello), LinkError> {
        let nonce = nonce()?;
        let mut link = Self::new(stream, Nonces { listener: nonce, dialer: [0; 32] })?;
        link.send(&Challenge { versions: Versions::OURS, nonce, incarnation }).await?;
        let bytes = link.receive_bytes().await?;
        let verdict = match Versions::OURS.agree(&wire::decode_front(&bytes)?) {
            Ok(agreed) => {
                let hello: Hello = wire::decode(&bytes)?;
                link.nonces.dialer = hello.nonce;
                let known = link.nonces.check(secret, Prover::Dialer, hello.proof.as_ref());
                known
                    .and_then(|()| hello.speaks(agreed))
                    .and_then(|()| shape.accepts(&hello.shape))
                    .map(|()| hello)
            }
            Err(incompatible) => Err(incompatible),
        };
        match verdict {
            Ok(hello) => {
                link.find_dialer().await?;
                Ok((link, hello))
            }
            Err(incompatible) => {
                link.refuse(incompatible.to_string()).await?;
                Err(incompatible.into())
            }
        }
    }

    /// Looks for the dialer's process on this host. One that has ended before it was looked for is refused: it could never be
    /// proved gone.
    async fn find_dialer(&mut self) -> Result<(), LinkError> {
        let found = timeout(HANDSHAKE, Pidfd::find(&self.nonces.presence())).await;
        self.dialer = found.ok().and_then(Result::ok);
        if self.dialer.is_none() && self.has_hung_up() { Err(LinkError::Closed) } else { Ok(()) }
    }

    /// Whether the peer has closed the connection and all that it sent was read.
    fn has_hung_up(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.socket.read_buffer().is_empty()
            && !matches!(recv(self.socket.get_ref(), &mut [0; 1], flags), Ok((_, 1..)) | Err(Errno::AGAIN))
    }

    /// Ends the handshake: the session is up.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn welcome(&mut self, welcome: Welcome) -> Result<(), LinkError> {
        self.send(&Answer::Welcome(Box::new(welcome))).await
    }

    /// Ends the handshake: there is no session, for this reason.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn refuse(&mut self, reason: String) -> Result<(), LinkError> {
        self.send(&Answer::Refused(reason)).await
    }

    /// Ends the handshake: there is no session now, for this reason; the dialer may try again.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn put_off(&mut self, reason: String) -> Result<(), LinkError> {
        self.send(&Answer::Busy(reason)).await
    }

    /// The two directions of a session whose handshake is over.
    pub fn split(self) -> (FrameWriter, FrameReader) {
        let (sink, stream) = self.socket.split();
        (FrameWriter { sink }, FrameReader { stream })
    }

    async fn send<T: Serialize>(&mut self, value: &T) -> Result<(), LinkError> {
        let bytes = Bytes::from(wire::encode(value)?);
        timeout(HANDSHAKE, self.socket.send(bytes)).await.map_err(|_| LinkError::Silent(HANDSHAKE))??;
        Ok(())
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        Ok(wire::decode(&self.receive_bytes().await?)?)
    }

    async fn receive_bytes(&mut self) -> Result<BytesMut, LinkError> {
        let bytes = timeout(HANDSHAKE, self.socket.next()).await.map_err(|_| LinkError::Silent(HANDSHAKE))?;
        Ok(bytes.ok_or(LinkError::Closed)??)
    }
}

/// The incoming direction.
pub struct FrameReader {
    stream: SplitStream<Socket>,
}

impl FrameReader {
    /// The next frame that is not a heartbeat.
    ///
    /// # Errors
    /// How the session ended; there is no frame after it.
    pub async fn next(&mut self) -> Result<Frame, LinkError> {
        loop {
            let bytes = timeout(SILENCE, self.stream.next()).await.map_err(|_| LinkError::Silent(SILENCE))?;
            match wire::decode(&bytes.ok_or(LinkError::Closed)??)? {
                Frame::Heartbeat => {}
                Frame::Goodbye => return Err(LinkError::Goodbye),
                frame => return Ok(frame),
            }
        }
    }
}

/// The outgoing direction.
pub struct FrameWriter {
    sink: SplitSink<Socket, Bytes>,
}

impl FrameWriter {
    /// Sends what comes out of `queue`, and a heartbeat when nothing does. When the queue's senders are gone it says
    /// goodbye and closes the connection.
    ///
    /// # Errors
    /// [`LinkError`]: the session is over.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Frame>) -> Result<(), LinkError> {
        loop {
            match timeout(HEARTBEAT, queue.recv()).await {
                Ok(Some(frame)) => {
                    self.feed(&frame).await?;
                    // What is queued already leaves in the same write.
                    while let Ok(frame) = queue.try_recv() {
                        self.feed(&frame).await?;
                    }
                }
                Ok(None) => {
                    self.feed(&Frame::Goodbye).await?;
                    return self.within(SinkExt::close).await;
                }
                Err(_) => self.feed(&Frame::Heartbeat).await?,
            }
            self.within(SinkExt::flush).await?;
        }
    }

    async fn feed(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let bytes = Bytes::from(wire::encode(frame)?);
        timeout(SILENCE, self.sink.feed(bytes)).await.map_err(|_| LinkError::Silent(SILENCE))??;
        Ok(())
    }

    async fn within<'a, F>(
        &'a mut self,
        operation: impl FnOnce(&'a mut SplitSink<Socket, Bytes>) -> F,
    ) -> Result<(), LinkError>
    where
        F: Future<Output = Result<(), io::Error>>,
    {
        timeout(SILENCE, operation(&mut self.sink)).await.map_err(|_| LinkError::Silent(SILENCE))??;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
