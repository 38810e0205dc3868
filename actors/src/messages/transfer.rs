//! Pages on their way to another process.

use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::Event;
use engine::PageId;

use super::SessionId;
use crate::request::RequestId;

/// Prefiller → transfer: these pages of a peer's request are final; hand them over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulePut {
    /// The session whose peer gets them.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
    /// Place of the first page in the request's page table.
    pub first_page: u32,
    /// Pages of our pool.
    pub pages: Vec<PageId>,
}

/// Prefiller → transfer: send nothing more of this request, because all of it was sent or it was cancelled.
/// Answered by [`PutsDrained`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelPuts {
    /// The session of its puts.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
}

/// Transfer → prefiller: more pages of the request are visible at the receiver, and no put reads them any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesSent {
    /// The session of the puts.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
    /// How many more.
    pub count: u32,
    /// The pages' part of the time in which the lane carried them and those announced with them. Time in which flushes overlap is
    /// counted once.
    pub put_micros: u64,
}

/// Transfer → prefiller: no put of this request is in flight any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutsDrained {
    /// The session of the puts.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
}

/// Peer link → transfer: puts of this session may be posted, over this lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneConnected {
    /// Which.
    pub session: SessionId,
    /// What carries them, for example `tcp/lo`.
    pub lane: String,
}

/// Peer link → transfer: the receiver granted credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreditsGranted {
    /// In which session.
    pub session: SessionId,
    /// Number of the first one.
    pub first: CreditNumber,
    /// The receiver's pages.
    pub pages: Vec<PageIndex>,
}

/// Peer link → transfer: the session's share of the ring. Unspent credits beyond it are to go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingShared {
    /// Which.
    pub session: SessionId,
    /// Most credits that we should hold.
    pub pages: u32,
}

/// A page to hash, and the put that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToHash {
    /// The put's session.
    pub session: SessionId,
    /// The page; nothing writes it before it is hashed.
    pub page: PageId,
    /// What its hash begins with. Its credit names the put.
    pub seed: PageSeed,
}

/// Transfer → hash thread: hash these pages. Answered by [`PagesHashed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPages(pub Vec<PageToHash>);

/// Hash thread → transfer: the hash of the page that was put under each credit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagesHashed(pub Vec<(SessionId, CreditNumber, u64)>);

/// Transport thread → transfer, peer link: a batch of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportEvents(pub Vec<Event>);
