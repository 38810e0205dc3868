//! Which actor a frame is for, on either side of the link.

use connector::frame::{Frame, peer_text};

use crate::first_token;
use crate::kit::Outbox;
use crate::messages::{
    CancelPrefill, CreditsGranted, LaneConnected, PageFilled, PeerLeaving, PeerLost, PeerReady,
    PrefillFailed, PrefillFinished, RingShared, SessionDrained, SessionId, SessionOpened, StartPrefill,
};
use crate::request::RequestId;

/// Where a receiver's frames and session events go.
pub struct ReceiverSide {
    /// Buffer manager.
    pub opened: Outbox<SessionOpened>,
    /// Buffer manager.
    pub filled: Outbox<PageFilled>,
    /// Buffer manager.
    pub drained: Outbox<SessionDrained>,
    /// Decoder, then proxy: who routes knows a sender only after who serves.
    pub ready: [Outbox<PeerReady>; 2],
    /// Proxy, decoder, buffer manager.
    pub lost: [Outbox<PeerLost>; 3],
    /// Proxy.
    pub leaving: Outbox<PeerLeaving>,
    /// Decoder.
    pub finished: Outbox<PrefillFinished>,
    /// Decoder.
    pub failed: Outbox<PrefillFailed>,
}

/// Where a sender's frames and session events go.
pub struct SenderSide {
    /// Transfer.
    pub opened: Outbox<SessionOpened>,
    /// Transfer.
    pub connected: Outbox<LaneConnected>,
    /// Transfer.
    pub granted: Outbox<CreditsGranted>,
    /// Transfer.
    pub shared: Outbox<RingShared>,
    /// Transfer, prefiller.
    pub lost: [Outbox<PeerLost>; 2],
    /// Prefiller.
    pub prefill: Outbox<StartPrefill>,
    /// Prefiller.
    pub cancel: Outbox<CancelPrefill>,
}

/// What this process is on the link.
pub enum Side {
    /// It takes pages in.
    Receiver(Box<ReceiverSide>),
    /// It hands pages over.
    Sender(Box<SenderSide>),
}

impl Side {
    pub(super) fn opened(&self, message: SessionOpened) {
        match self {
            Self::Receiver(side) => side.opened.post(message),
            Self::Sender(side) => side.opened.post(message),
        }
    }

    pub(super) fn connected(&self, message: LaneConnected) {
        if let Self::Sender(side) = self {
            side.connected.post(message);
        }
    }

    pub(super) fn lost(&self, message: PeerLost) {
        match self {
            Self::Receiver(side) => side.lost.iter().for_each(|outbox| outbox.post(message)),
            Self::Sender(side) => side.lost.iter().for_each(|outbox| outbox.post(message)),
        }
    }

    pub(super) fn drained(&self, message: SessionDrained) {
        if let Self::Receiver(side) = self {
            side.drained.post(message);
        }
    }

    /// Hands a frame to the actor it is for.
    ///
    /// # Errors
    /// The frame is not one that this side's peers may send.
    pub(super) fn route(&self, session: SessionId, pid: u32, frame: Frame) -> Result<(), String> {
        match (self, frame) {
            (Self::Receiver(side), Frame::PageFilled { first, count, owner, hashes, transfer_micros }) => {
                side.filled.post(PageFilled { session, first, count, owner, hashes, transfer_micros });
            }
            (Self::Receiver(side), Frame::PrefillFinished { request, token, logprobs, prefill_micros }) => {
                side.finished.post(PrefillFinished {
                    session,
                    request: RequestId(request),
                    token: first_token::join(token, logprobs),
                    prefill_micros,
                });
            }
            (Self::Receiver(side), Frame::PrefillFailed { request, reason }) => {
                side.failed.post(PrefillFailed { session, request: RequestId(request), reason });
            }
            (Self::Receiver(side), Frame::LinkProbed { lane, bytes, micros }) => {
                side.ready.iter().for_each(|outbox| outbox.post(PeerReady { session, pid }));
                let (mb, speed) = (bytes as f64 / 1e6, bytes as f64 / micros.max(1) as f64 / 1e3);
                let lane = peer_text(&lane);
                tracing::info!(%session, pid, lane, "sender ready: moved {mb:.1} MB at {speed:.2} GB/s");
            }
            (Self::Receiver(side), Frame::Leaving) => side.leaving.post(PeerLeaving { session }),
            (Self::Sender(side), Frame::RingShare { pages }) => {
                side.shared.post(RingShared { session, pages });
            }
            (Self::Sender(side), Frame::Grant { first, pages }) => {
                side.granted.post(CreditsGranted { session, first, pages });
            }
            (Self::Sender(side), Frame::Prefill { request, prompt, resident, sampling, remaining_ms }) => {
                let (request, sampling) = (RequestId(request), first_token::from_frame(sampling).into());
                side.prefill.post(StartPrefill {
                    session,
                    request,
                    prompt,
                    resident,
                    sampling,
                    remaining_ms,
                });
            }
            (Self::Sender(side), Frame::CancelPrefill { request }) => {
                side.cancel.post(CancelPrefill { session, request: RequestId(request) });
            }
            (_, frame) => return Err(format!("peer sent a {} frame, which is not for us", frame.name())),
        }
        Ok(())
    }
}
