//! Pages of the pool: who asks for them, holds them and gives them back.

use std::sync::Arc;

use connector::frame::PageOwner;
use connector::ring::CreditNumber;
use engine::PageId;

use super::{SequenceId, SessionId};
use crate::request::RequestId;

/// Decoder, prefiller → buffer manager: hold pages for a sequence.
///
/// Answered by [`PagesReserved`] when there are enough, in the order of asking, except that sequences that start again come
/// first. Cached pages that hold a prefix of `tokens` are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservePages {
    /// Who asks.
    pub sequence: SequenceId,
    /// Its tokens so far, at least one.
    pub tokens: Arc<[u32]>,
    /// Pages wanted in all; at least those of `tokens`.
    pub pages: u32,
    /// The pages of `tokens` that are not shared land from this session's sender: they are held as a count, and each page that
    /// lands takes one of it. `None`: they are computed here.
    pub landing: Option<SessionId>,
    /// Its place among the reservations that wait.
    pub priority: ReservePriority,
}

/// The place of a [`ReservePages`] among those that wait for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservePriority {
    /// The sequence starts: after all that wait.
    New,
    /// The sequence had pages before and resumes: before all that wait. It was preempted, or its sender failed or was lost.
    Resumed,
}

/// Buffer manager → decoder, prefiller: the reservation is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesReserved {
    /// Whose.
    pub sequence: SequenceId,
    /// Leading tokens whose KV the first pages already hold: a whole number of pages, and fewer than all tokens.
    pub resident: u32,
    /// Pages held as a count. Zero although landing was asked for, if little is left to compute.
    pub landing: u32,
    /// The shared pages, then the sequence's own.
    pub pages: Vec<PageId>,
}

/// Buffer manager → decoder, prefiller: the sequence can never get the pages that it needs, as long as lost sessions hold theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesDenied {
    /// Whose.
    pub sequence: SequenceId,
    /// Pages that it needs.
    pub needed: u32,
    /// Pages that one request may use now.
    pub usable: u32,
}

/// Buffer manager → proxy, peer link: the quarantine has changed, and with it the pages that a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomChanged {
    /// Pages in the pool.
    pub pages: u32,
    /// Pages that one request may use.
    pub usable: u32,
    /// Pages of lost sessions that may still be written.
    pub quarantined: u32,
}

/// Decoder → buffer manager: a running sequence will need more pages.
///
/// Answered by [`PagesGrown`] before any new reservation is granted; by [`PagesShort`] first, if another sequence must give
/// pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowPages {
    /// Whose.
    pub sequence: SequenceId,
    /// The sequence soon stops with fewer; at least one.
    pub least: u32,
    /// More than this is not needed now.
    pub most: u32,
}

/// Buffer manager → decoder: the sequence has more pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesGrown {
    /// Whose.
    pub sequence: SequenceId,
    /// They follow the pages that it has.
    pub pages: Vec<PageId>,
}

/// Buffer manager → decoder: no sequence can grow until another one gives pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesShort {
    /// How many [`ReleasePages`] of own requests had arrived. A decoder that has sent more ignores this message.
    pub releases: u64,
}

/// Decoder, prefiller → buffer manager: the KV of these tokens is in the sequence's pages and may be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesComputed {
    /// Whose.
    pub sequence: SequenceId,
    /// Tokens from the first one on.
    pub tokens: Arc<[u32]>,
    /// The sequence's page table.
    pub pages: Vec<PageId>,
}

/// Decoder, prefiller → buffer manager: the sequence gives back everything that it holds or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleasePages {
    /// Whose.
    pub sequence: SequenceId,
}

/// Peer link → buffer manager: pages of our pool are whole and visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFilled {
    /// The session whose peer put them.
    pub session: SessionId,
    /// First credit spent.
    pub first: CreditNumber,
    /// How many.
    pub count: u32,
    /// The request that the pages belong to; `None`: no request.
    pub owner: Option<PageOwner>,
    /// Hash of each page, or none.
    pub hashes: Vec<u64>,
    /// From the request's first put to the covering flush.
    pub transfer_micros: u64,
}

/// Buffer manager → decoder: landed pages now belong to the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesAdopted {
    /// Whose.
    pub request: RequestId,
    /// Place of the first page in the request's page table.
    pub first_page: u32,
    /// The pages.
    pub pages: Vec<PageId>,
    /// From the request's first put to the covering flush.
    pub transfer_micros: u64,
}

/// Buffer manager → decoder: the hash of a page that landed for the request does not match; none of its pages was adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRejected {
    /// Whose.
    pub request: RequestId,
}

/// Peer link → buffer manager, transfer: a session began; its frames follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOpened {
    /// Which.
    pub session: SessionId,
    /// Most credits outstanding in it.
    pub ring_pages: u32,
    /// Seed of its page hashes.
    pub seed: u64,
}

/// Peer link → buffer manager: proof that no byte of this lost session can land any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionDrained {
    /// Which.
    pub session: SessionId,
}
