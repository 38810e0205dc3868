//! Pages of the pool: reservation, growth, landing and release.

use std::sync::Arc;

use connector::frame::PageOwner;
use connector::ring::CreditNumber;
use engine::PageId;

use super::{SequenceId, SessionId};
use crate::request::{CacheSalt, RequestId};

/// Decoder, prefiller → buffer manager: reserve pages for a sequence.
///
/// Answered by [`PagesReserved`] when there are enough pages, or by [`PagesDenied`]. Reservations are granted in the order of arrival, but
/// sequences that resume come first. Cached pages that hold a prefix of `tokens` and have the same salt are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservePages {
    /// The sequence.
    pub sequence: SequenceId,
    /// The sequence's tokens so far, at least one.
    pub tokens: Arc<[u32]>,
    /// The salt of its request.
    pub salt: Option<CacheSalt>,
    /// Whether cached pages are shared. Without them, all tokens are computed.
    pub reads_cache: bool,
    /// All pages that the sequence needs; at least those of `tokens`.
    pub pages: u32,
    /// The session of the sender that computes the pages of `tokens` that are not shared. These pages are held as a count, and each page
    /// that lands reduces the count by one. `None`: the pages are computed here.
    pub landing: Option<SessionId>,
    /// The reservation's place among the waiting ones.
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
    /// The sequence.
    pub sequence: SequenceId,
    /// Leading tokens whose KV the first pages already hold: a whole number of pages, fewer than all tokens.
    pub resident: u32,
    /// Pages held as a count. It is zero, even if landing was asked for, when few tokens are left to compute.
    pub landing: u32,
    /// The shared pages, then the sequence's own pages.
    pub pages: Vec<PageId>,
}

/// Buffer manager → decoder, prefiller: the sequence cannot get the pages that it needs while pages of lost sessions are quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesDenied {
    /// The sequence.
    pub sequence: SequenceId,
    /// Pages that the sequence needs.
    pub needed: u32,
    /// Pages that one request may use now.
    pub usable: u32,
}

/// Buffer manager → proxy, peer link: the number of quarantined pages has changed, and with it the number of pages that a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomChanged {
    /// Pages in the pool.
    pub pages: u32,
    /// Pages that one request may use. Pages whose quarantine lasts are not among them.
    pub usable: u32,
    /// Pages of lost sessions that may still be written.
    pub quarantined: u32,
}

/// Decoder → buffer manager: a running sequence will need more pages.
///
/// Answered by [`PagesGrown`] before any new reservation is granted. [`PagesShort`] comes first if another sequence must release pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrowPages {
    /// The sequence.
    pub sequence: SequenceId,
    /// Pages without which the sequence soon has to wait; at least one.
    pub least: u32,
    /// Maximum number of pages that are useful now.
    pub most: u32,
}

/// Decoder → buffer manager: the pages that a sequence waits for will not land, and the sequence is computed here.
///
/// The sequence gets a free page for each of them and keeps its other pages. It never waits for these pages, because they were counted as its
/// own. Answered by [`PagesGrown`], unless the sequence has been released. Pages that land later return to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeHere {
    /// The sequence.
    pub sequence: SequenceId,
}

/// Buffer manager → decoder: the sequence has more pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesGrown {
    /// The sequence.
    pub sequence: SequenceId,
    /// The additional pages, in order. They come after the pages that the sequence already has. After [`ComputeHere`] they may be none.
    pub pages: Vec<PageId>,
}

/// Buffer manager → decoder: no sequence can grow until another one releases pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesShort {
    /// Number of [`ReleasePages`] of own requests that had arrived. A decoder that has sent more ignores this message.
    pub releases: u64,
}

/// Decoder, prefiller → buffer manager: the sequence's pages contain the KV of these tokens and may be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesComputed {
    /// The sequence.
    pub sequence: SequenceId,
    /// The leading tokens of the sequence.
    pub tokens: Arc<[u32]>,
    /// The salt of its request.
    pub salt: Option<CacheSalt>,
    /// The sequence's page table.
    pub pages: Vec<PageId>,
}

/// Decoder, prefiller → buffer manager: release all pages that the sequence holds or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleasePages {
    /// The sequence.
    pub sequence: SequenceId,
}

/// Peer link → buffer manager: pages of this process's pool were written completely and are visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFilled {
    /// The session in which the peer put the pages.
    pub session: SessionId,
    /// The first spent credit.
    pub first: CreditNumber,
    /// Number of pages.
    pub count: u32,
    /// The request and place of the first page; `None`: the pages belong to no request.
    pub owner: Option<PageOwner>,
    /// The hash of each page; empty if pages are not hashed.
    pub hashes: Vec<u64>,
    /// Time from the request's first put to the flush that covers these pages.
    pub transfer_micros: u64,
}

/// Buffer manager → decoder: landed pages now belong to the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesAdopted {
    /// The request.
    pub request: RequestId,
    /// Place of the first page in the request's page table.
    pub first_page: u32,
    /// The pages.
    pub pages: Vec<PageId>,
    /// Time from the request's first put to the flush that covers these pages.
    pub transfer_micros: u64,
}

/// Buffer manager → decoder: the hash of a landed page of the request does not match. None of the frame's pages was adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRejected {
    /// The request.
    pub request: RequestId,
}

/// Peer link → buffer manager, transfer: a session began. Its frames come after this message. The transfer actor gets it when the session's worker
/// exists. The buffer manager gets it when the sender has named its lane, and grants no credits before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOpened {
    /// The session.
    pub session: SessionId,
    /// Maximum number of outstanding credits in the session.
    pub ring_pages: u32,
    /// The seed of the session's page hashes.
    pub seed: u64,
}

/// Peer link → buffer manager: it is proven that no byte of this lost session can land any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionDrained {
    /// The session.
    pub session: SessionId,
}
