//! The tasks around the peer link: listen, dial, and carry one session's frames.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use connector::frame::{Frame, Hello, Incarnation, PROTOCOL_VERSION};
use connector::link::{self, Link, LinkError};
use connector::process::Pidfd;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::dial_line::{Attempt, DialLine};
use super::state::{SenderSession, SessionOver};
use super::{FrameCame, Half, Identity, LinkEnded, PeerConnected, PeerLink, PeerWatched};
use crate::kit::KillSwitch;
use crate::messages::SessionId;
use crate::watchdog::NodeHealth;

/// Handshakes that may be under way at once: strangers on the port cannot pile up.
const HANDSHAKES: usize = 16;
/// Pause between attempts to reach a receiver, first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Carries a session's frames until either side ends it, then says so.
pub(super) async fn carry(
    link: Link,
    frames: mpsc::Receiver<Frame>,
    session: SessionId,
    addr: Addr<PeerLink>,
) {
    let (writer, mut reader) = link.split();
    let reading = async {
        loop {
            match reader.next().await {
                // Waiting for the handler is the bound: one frame of a session is in the mailbox at a time.
                Ok(frame) => {
                    if addr.send(FrameCame { session, frame }).await.is_err() {
                        return None;
                    }
                }
                Err(error) => return Some(error),
            }
        }
    };
    let error = tokio::select! {
        error = reading => error,
        result = writer.run(frames) => result.err(),
    };
    addr.do_send(LinkEnded { session, error });
}

/// Accepts senders for as long as the process lives.
pub async fn listen(listener: TcpListener, identity: Identity, addr: Addr<PeerLink>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "link port could not accept");
                tokio::time::sleep(BACKOFF.0).await;
                continue;
            }
        };
        // A connection too many is closed at once, so that those who say nothing cannot keep others out of the queue.
        let Ok(permit) = handshakes.clone().try_acquire_owned() else { continue };
        let (identity, addr) = (identity.clone(), addr.clone());
        actix::spawn(async move {
            match Link::accept(stream, &identity.shape, identity.secret.as_deref()).await {
                Ok((mut link, hello)) => {
                    let (incarnation, process) = (hello.incarnation, link.take_dialer());
                    let is_watched = process.is_some();
                    let (line, number) = (hello.line, hello.session);
                    let sender = SenderSession { incarnation, line, number, is_watched };
                    let (previous, drained) = (hello.previous, hello.previous_drained);
                    let half = Half::Listened { sender, process, previous, drained };
                    addr.do_send(PeerConnected { link, incarnation, half });
                }
                Err(error) => tracing::warn!(%address, reason = %error, "link connection refused"),
            }
            drop(permit);
        });
    }
}

/// Keeps a session with the receiver at `address`, the `line`th of ours: dials, waits until it is over, dials again; waits
/// while this process is unwell. A receiver that can never fit is a fault of the process.
pub async fn dial(
    line: u32,
    address: String,
    identity: Identity,
    addr: Addr<PeerLink>,
    health: NodeHealth,
    faults: KillSwitch,
) {
    let mut line = DialLine::new(line);
    let (mut backoff, mut told) = (BACKOFF.0, false);
    loop {
        while health.fault().is_some() {
            tokio::time::sleep(BACKOFF.1).await;
        }
        match attempt(&address, &identity, line.dial(), &addr).await {
            Ok(over) => {
                // The actor drops its end only when this process ends.
                let Ok(over) = over.await else { return };
                line.on_over(over.drained);
                if over.probed {
                    (backoff, told) = (BACKOFF.0, false);
                }
            }
            Err(error) if error.is_permanent() => {
                faults.pull(format!("receiver at {address}: {error}"));
                return;
            }
            Err(error) if !told => {
                tracing::info!(address, reason = %error, "receiver cannot be reached yet; dialling on");
                told = true;
            }
            Err(error) => tracing::debug!(address, reason = %error, "receiver still cannot be reached"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

async fn attempt(
    address: &str,
    identity: &Identity,
    attempt: Attempt,
    addr: &Addr<PeerLink>,
) -> Result<oneshot::Receiver<SessionOver>, LinkError> {
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        incarnation: identity.incarnation,
        line: attempt.line,
        session: attempt.session,
        previous: attempt.previous,
        previous_drained: attempt.previous_drained,
        shape: identity.shape.clone(),
        nonce: link::nonce()?,
        proof: None,
    };
    let (link, welcome) = Link::dial(address, hello, identity.secret.as_deref()).await?;
    let (over, ended) = oneshot::channel();
    let incarnation = welcome.incarnation;
    let half = Half::Dialled { welcome, over };
    addr.do_send(PeerConnected { link, incarnation, half });
    Ok(ended)
}

/// Tells the peer link when a peer's process has ended.
pub(super) async fn watch(incarnation: Incarnation, process: Pidfd, addr: Addr<PeerLink>) {
    let gone = process.gone().await.is_ok();
    addr.do_send(PeerWatched { incarnation, gone });
}
