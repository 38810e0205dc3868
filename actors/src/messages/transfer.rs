//! The transfer of pages to another process.

use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::Event;
use engine::PageId;

use super::SessionId;
use crate::request::RequestId;

/// Prefiller → transfer: these pages of a peer's request are final; put them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulePut {
    /// The session of the receiver.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
    /// Place of the first page in the request's page table.
    pub first_page: u32,
    /// Pages of this process's pool.
    pub pages: Vec<PageId>,
}

/// Prefiller → transfer: put no more pages of this request, because all were put or the request was cancelled.
/// Answered by [`PutsDrained`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelPuts {
    /// The session of its puts.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
}

/// Transfer → prefiller: more pages of the request are visible at the receiver, and their puts are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesSent {
    /// The session of the puts.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
    /// Number of further pages.
    pub count: u32,
    /// The pages' share of the time for which the lane carried them and the pages that were announced together with them. Time in which
    /// several pages were carried is counted once.
    pub put_micros: u64,
}

/// Transfer → prefiller: no put of this request is in flight any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutsDrained {
    /// The session of the puts.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
}

/// Peer link → transfer: puts of this session may be posted, over these lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneConnected {
    /// The session.
    pub session: SessionId,
    /// The lanes' transports and devices, for example `tcp/lo`.
    pub lane: String,
    /// Number of shards into which the receiver divides a page.
    pub shards: u32,
}

/// Peer link → transfer: the receiver granted credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreditsGranted {
    /// The session.
    pub session: SessionId,
    /// Number of the first credit.
    pub first: CreditNumber,
    /// The receiver's pages, one for each credit.
    pub pages: Vec<PageIndex>,
}

/// Peer link → transfer: the session's share of the ring. Unspent credits beyond it are to be returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShared {
    /// The session.
    pub session: SessionId,
    /// Maximum number of credits that this process should hold.
    pub pages: u32,
}

/// A page to hash, and the put that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToHash {
    /// The put's session.
    pub session: SessionId,
    /// The page. Nothing writes it before it is hashed.
    pub page: PageId,
    /// The seed of its hash. The seed's credit identifies the put.
    pub seed: PageSeed,
}

/// Transfer → hash thread: hash these pages. Answered by [`PagesHashed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPages(pub Vec<PageToHash>);

/// Hash thread → transfer: the hashes of the pages that were put under these credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesHashed(pub Vec<(SessionId, CreditNumber, u64)>);

/// Transport thread → transfer, peer link: a batch of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportEvents(pub Vec<Event>);
