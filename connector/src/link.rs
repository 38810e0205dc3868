//! The link: one TCP connection between two processes. It carries control frames, never KV bytes.
//!
//! Each message is a length and a [`wire`] value. The listener sends a Challenge, and the dialer answers with a Hello. If a shared
//! secret is set, both sides prove that they know it without sending it. A link that breaks is not resumed; the dialer dials again
//! for a new session.
//!
//! A side that has sent nothing for [`HEARTBEAT`] sends a heartbeat. A peer is considered dead if nothing arrives from it for
//! [`SILENCE`], or if it accepts no bytes for that long. With [`LinkTls`], all bytes are encrypted and both sides check certificates
//! before the Challenge. The functions here are plain futures. They run on any tokio runtime, and
//! every wait in them has a deadline.

mod error;
pub mod tls;
mod tls_error;

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
use crate::wire::{self, FRAME_BYTES_MAX};
use tls::{LinkStream, LinkTls};

pub use error::LinkError;

/// If a side has sent no frame for this time, it sends a heartbeat.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// If no frame has arrived for this time, the peer is considered dead.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Time limit of each step of the handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// A fresh nonce for [`Challenge`] or [`Hello`].
///
/// # Errors
/// The operating system provides no random bytes.
pub fn nonce() -> io::Result<[u8; 32]> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// The nonces of both sides of a handshake.
///
/// A proof of the secret covers both, so a proof from another handshake does not verify. It also covers the side that makes it, so
/// a peer cannot send our own proof back:
///
/// ```
/// use connector::link::{Nonces, Prover};
///
/// let nonces = Nonces { listener: [1; 32], dialer: [2; 32] };
/// let proof = nonces.prove(Some("secret"), Prover::Dialer);
/// assert!(nonces.check(Some("secret"), Prover::Dialer, proof.as_ref()).is_ok());
/// assert!(nonces.check(Some("secret"), Prover::Listener, proof.as_ref()).is_err());
/// let other = Nonces { dialer: [3; 32], ..nonces };
/// assert!(other.check(Some("secret"), Prover::Dialer, proof.as_ref()).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonces {
    /// The listener's nonce, from its [`Challenge`].
    pub listener: [u8; 32],
    /// The dialer's nonce, from its [`Hello`].
    pub dialer: [u8; 32],
}

/// The side that makes a proof of the secret.
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
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC accepts keys of any length");
        mac.update(match prover {
            Prover::Listener => b"baton listener",
            Prover::Dialer => b"baton dialer",
        });
        mac.update(&self.listener);
        mac.update(&self.dialer);
        mac
    }

    /// Proof that `prover` knows `secret`: HMAC-SHA256 of the side and both nonces. `None` without a secret.
    pub fn prove(&self, secret: Option<&str>, prover: Prover) -> Option<[u8; 32]> {
        secret.map(|secret| self.mac(secret, prover).finalize().into_bytes().into())
    }

    /// Checks the proof of `prover`. Without a secret, every proof is accepted, and a missing proof too.
    ///
    /// # Errors
    /// [`Incompatible::Secret`] if `secret` is set and the proof is missing or wrong.
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

    /// Name of the Unix socket by which a listener on the same kernel finds the dialer's process. No other process can compute it before
    /// the handshake is over, because it is made of both nonces.
    fn presence(&self) -> String {
        let digest = Sha256::new().chain_update(b"baton presence");
        let digest = digest.chain_update(self.listener).chain_update(self.dialer).finalize();
        digest.iter().take(16).fold("baton-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
    }

    /// The session's seed for page hashes. It is the same on both sides, and different for each session.
    pub fn session_seed(&self) -> u64 {
        let digest = Sha256::new().chain_update(self.listener).chain_update(self.dialer).finalize();
        u64::from_le_bytes(std::array::from_fn(|n| digest[n]))
    }
}

type Socket = Framed<LinkStream, LengthDelimitedCodec>;

/// A connection during its handshake.
pub struct Link {
    socket: Socket,
    peer: SocketAddr,
    nonces: Nonces,
    /// The versions that this side supports.
    versions: Versions,
    /// The version of the session, as soon as both sides' versions are known.
    version: u32,
    dialer: Option<Pidfd>,
}

impl Link {
    fn new(stream: LinkStream, versions: Versions, nonces: Nonces) -> Result<Self, LinkError> {
        let peer = stream.tcp().peer_addr()?;
        let codec = LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec();
        Ok(Self { socket: Framed::new(stream, codec), peer, nonces, versions, version: 0, dialer: None })
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The nonces of this handshake.
    pub fn nonces(&self) -> Nonces {
        self.nonces
    }

    /// The version of the session: the highest that both sides support.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Takes the dialer's process out of an accepted link. Returns `None` if the process does not run on this kernel. A second call also
    /// returns `None`.
    pub fn take_dialer(&mut self) -> Option<Pidfd> {
        self.dialer.take()
    }

    /// Dials a listener and reads its Challenge. This side supports `versions`. The caller continues with [`hello`](Self::hello).
    ///
    /// # Errors
    /// Any [`LinkError`]; see [`LinkError::is_permanent`].
    pub async fn dial(
        address: &str,
        versions: Versions,
        tls: Option<&LinkTls>,
    ) -> Result<(Self, Challenge), LinkError> {
        let tcp = timeout(HANDSHAKE, TcpStream::connect(address))
            .await
            .map_err(|_| LinkError::Silent(HANDSHAKE))??;
        prepare(&tcp)?;
        let stream = match tls {
            Some(tls) => tls.connect(tcp, address).await?,
            None => LinkStream::Plain(tcp),
        };
        let mut link = Self::new(stream, versions, Nonces { listener: [0; 32], dialer: nonce()? })?;
        let bytes = link.receive_bytes().await?;
        link.version = Versions::agree(versions, wire::decode_front(&bytes)?)?;
        let challenge: Challenge = wire::decode_front(&bytes)?;
        link.nonces.listener = challenge.nonce;
        Ok((link, challenge))
    }

    /// Sends a Hello and waits for the Welcome. This function sets the versions, the nonce and the proof of `hello`.
    ///
    /// # Errors
    /// Any [`LinkError`]; see [`LinkError::is_permanent`].
    pub async fn hello(&mut self, mut hello: Hello, secret: Option<&str>) -> Result<Box<Welcome>, LinkError> {
        (hello.versions, hello.version) = (self.versions, self.version);
        hello.nonce = self.nonces.dialer;
        hello.proof = self.nonces.prove(secret, Prover::Dialer);
        // Kept until the listener has answered. If the socket cannot be opened, the session works, but the listener cannot detect that this
        // process has ended.
        let _presence = Presence::show(&self.nonces.presence());
        self.send(&hello).await?;
        let welcome = match self.receive::<Answer>().await? {
            Answer::Welcome(welcome) => welcome,
            Answer::Refused(reason) => return Err(LinkError::Refused(peer_text(&reason))),
            Answer::Busy(reason) => return Err(LinkError::Busy(peer_text(&reason))),
        };
        self.nonces.check(secret, Prover::Listener, welcome.proof.as_ref())?;
        hello.shape.accepts(&welcome.shape)?;
        welcome.shape.has_regions(&welcome.descriptor)?;
        Ok(welcome)
    }

    /// Asks the listener whether it accepts sessions with the shape in `hello`, and opens none.
    ///
    /// The Hello has the page size 0. A listener compares the size after the versions, the secret, the model and the other sizes, so it refuses
    /// this size only if it accepts all of them ([`Incompatible::is_question`]). Whether it uses page hashes remains unknown.
    ///
    /// # Errors
    /// Any [`LinkError`]; [`LinkError::Refused`] with the listener's reason if it accepts no session.
    pub async fn ask(mut self, mut hello: Hello, secret: Option<&str>) -> Result<(), LinkError> {
        let shape = hello.shape.clone();
        hello.shape.page_bytes = 0;
        let expected = shape.accepts(&hello.shape).err().map(|size| size.to_string());
        match self.hello(hello, secret).await {
            Err(LinkError::Refused(reason)) if Some(&reason) == expected.as_ref() => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Sends a Challenge to a dialer and reads its Hello. This side supports `versions`. The caller continues with [`welcome`](Self::welcome),
    /// [`refuse`](Self::refuse) or [`put_off`](Self::put_off).
    ///
    /// A dialer with an incompatible version, another model or without the secret gets the reason in [`Answer::Refused`].
    ///
    /// # Errors
    /// Any [`LinkError`]; [`LinkError::Incompatible`] if the dialer was refused.
    pub async fn accept(
        stream: TcpStream,
        versions: Versions,
        incarnation: Incarnation,
        shape: &crate::frame::KvShape,
        secret: Option<&str>,
        tls: Option<&LinkTls>,
    ) -> Result<(Self, Hello), LinkError> {
        let nonce = nonce()?;
        prepare(&stream)?;
        let stream = match tls {
            Some(tls) => tls.accept(stream).await?,
            None => LinkStream::Plain(stream),
        };
        let mut link = Self::new(stream, versions, Nonces { listener: nonce, dialer: [0; 32] })?;
        link.send(&Challenge { versions, nonce, incarnation }).await?;
        let bytes = link.receive_bytes().await?;
        let verdict = match Versions::agree(wire::decode_front(&bytes)?, versions) {
            Ok(agreed) => {
                let hello: Hello = wire::decode(&bytes)?;
                (link.version, link.nonces.dialer) = (agreed, hello.nonce);
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

    /// Looks for the dialer's process on this kernel.
    ///
    /// Fails if the dialer's process was not found and the dialer has already hung up. Otherwise the listener could never know whether that
    /// process has ended.
    async fn find_dialer(&mut self) -> Result<(), LinkError> {
        let found = timeout(HANDSHAKE, Pidfd::find(&self.nonces.presence())).await;
        self.dialer = found.ok().and_then(Result::ok);
        if self.dialer.is_none() && self.has_hung_up() { Err(LinkError::Closed) } else { Ok(()) }
    }

    /// Whether the peer has closed the connection and all of its bytes were read.
    fn has_hung_up(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.socket.read_buffer().is_empty()
            && !matches!(
                recv(self.socket.get_ref().tcp(), &mut [0; 1], flags),
                Ok((_, 1..)) | Err(Errno::AGAIN)
            )
    }

    /// Ends the handshake: the session begins.
    ///
    /// # Errors
    /// [`LinkError::Io`], [`LinkError::Silent`] or [`LinkError::Wire`].
    pub async fn welcome(&mut self, welcome: Welcome) -> Result<(), LinkError> {
        self.send(&Answer::Welcome(Box::new(welcome))).await
    }

    /// Ends the handshake: the session is refused until a setting is changed.
    ///
    /// # Errors
    /// [`LinkError::Io`], [`LinkError::Silent`] or [`LinkError::Wire`].
    pub async fn refuse(&mut self, reason: String) -> Result<(), LinkError> {
        self.send(&Answer::Refused(reason)).await
    }

    /// Ends the handshake: the session is refused for now, and the dialer may dial again.
    ///
    /// # Errors
    /// [`LinkError::Io`], [`LinkError::Silent`] or [`LinkError::Wire`].
    pub async fn put_off(&mut self, reason: String) -> Result<(), LinkError> {
        self.send(&Answer::Busy(reason)).await
    }

    /// Splits a link whose handshake is over into its two directions.
    ///
    /// The link itself is consumed, so a second handshake on it does not compile:
    ///
    /// ```compile_fail,E0382
    /// # async fn example(mut link: connector::link::Link) {
    /// let (writer, reader) = link.split();
    /// link.refuse("too late".into()).await.ok(); // error: use of moved value
    /// # }
    /// ```
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
        bytes.ok_or(LinkError::Closed)?.map_err(|error| {
            let plain = self.socket.get_ref().is_plain();
            let speaks_tls = plain.then(|| tls::peer_speaks_tls(self.socket.read_buffer())).flatten();
            speaks_tls.map_or_else(|| error.into(), LinkError::Tls)
        })
    }
}

/// Sets the options of a new connection.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    // Frames are small, and the peer waits for each one.
    tcp.set_nodelay(true)?;
    if tcp.local_addr()? == tcp.peer_addr()? {
        // The kernel chose the dialled port as the socket's own port, so TCP connected the socket to itself. Zero linger skips
        // TIME_WAIT, so that the listener can bind the port.
        tcp.set_zero_linger()?;
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "socket is connected to itself"));
    }
    Ok(())
}

/// The incoming direction of a session.
pub struct FrameReader {
    stream: SplitStream<Socket>,
}

impl FrameReader {
    /// Waits for the next frame other than a heartbeat.
    ///
    /// # Errors
    /// The reason why the session ended. There are no more frames.
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

/// The outgoing direction of a session.
pub struct FrameWriter {
    sink: SplitSink<Socket, Bytes>,
}

impl FrameWriter {
    /// Sends the frames from `queue`, and a heartbeat after [`HEARTBEAT`] without a frame. When all senders of the queue are dropped,
    /// sends a Goodbye and closes the connection.
    ///
    /// # Errors
    /// [`LinkError::Io`], [`LinkError::Silent`] or [`LinkError::Wire`]; the session is over.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Frame>) -> Result<(), LinkError> {
        loop {
            match timeout(HEARTBEAT, queue.recv()).await {
                Ok(Some(frame)) => {
                    self.feed(&frame).await?;
                    // Frames that are already queued go out in the same write.
                    while let Ok(frame) = queue.try_recv() {
                        self.feed(&frame).await?;
                    }
                }
                Ok(None) => {
                    self.feed(&Frame::Goodbye).await?;
                    return self.with_deadline(SinkExt::close).await;
                }
                Err(_) => self.feed(&Frame::Heartbeat).await?,
            }
            self.with_deadline(SinkExt::flush).await?;
        }
    }

    async fn feed(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let bytes = Bytes::from(wire::encode(frame)?);
        timeout(SILENCE, self.sink.feed(bytes)).await.map_err(|_| LinkError::Silent(SILENCE))??;
        Ok(())
    }

    async fn with_deadline<'a, F>(
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
