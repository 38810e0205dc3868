//! The ring of a session: a bounded number of page credits, tracked by one ledger on each side.
//!
//! A credit is a number and a page of the receiver's pool. It permits one write of that page. The receiver's [`GrantLedger`] grants
//! credits at the head and adopts filled pages at the tail. The sender's [`SpendLedger`] spends credits in the order of their
//! numbers, for any page that is ready. Head and tail only grow and numbers are never reused, so a stale credit is never taken for
//! a new one.
//!
//! ```text
//!   receiver   tail ─────────────── head          outstanding = head − tail ≤ capacity
//!   sender            spent ── granted            announced ≤ spent ≤ granted ≤ announced + capacity
//! ```
//!
//! A credit is not tied to a request. The sender names the request when the page has landed. So aborting a request takes no credit
//! back, and a ring of one page is enough to make progress. The ledgers have no clock and no I/O; property tests drive them.
//!
//! # Example
//!
//! ```
//! use std::num::NonZeroU32;
//! use connector::ring::{Credit, CreditNumber, GrantLedger, PageIndex, SpendLedger};
//!
//! # fn main() -> Result<(), connector::ring::RingError> {
//! let capacity = NonZeroU32::new(2).expect("the number is not zero");
//! let mut receiver = GrantLedger::new(capacity);
//! let mut sender = SpendLedger::new(capacity);
//!
//! // The receiver grants page 7 of its pool, in a Grant frame.
//! let credit = receiver.grant(PageIndex(7))?;
//! sender.accept(credit.number, &[credit.page])?;
//!
//! // The sender spends the credit and puts its page. Here the transport would write the bytes.
//! assert_eq!(sender.spend(), Some(Credit { number: CreditNumber(0), page: PageIndex(7) }));
//! assert_eq!(sender.spend(), None);
//!
//! // Once the put is flushed, the sender announces the page in a PageFilled frame, and the receiver adopts it.
//! let first = sender.announce(1)?;
//! assert_eq!(receiver.fill(first, 1)?, [PageIndex(7)]);
//! assert_eq!(receiver.outstanding(), 0);
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// The number of a credit in its session, counted from 0 and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CreditNumber(pub u64);

/// The index of a page in the receiver's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageIndex(pub u32);

/// The permission to write `page` once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The credit's number.
    pub number: CreditNumber,
    /// The page that the credit permits to write.
    pub page: PageIndex,
}

/// A violation of the ring's rules. If a peer caused it, the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// More credits would be outstanding than the ring allows.
    #[error("ring of {capacity} pages has no room for {asked} more")]
    Full {
        /// Maximum number of outstanding credits.
        capacity: u32,
        /// Number of credits to be added.
        asked: u32,
    },
    /// Credits were granted or announced out of order.
    #[error("expected credit {expected}, got credit {got}")]
    OutOfOrder {
        /// The next number in order.
        expected: u64,
        /// The number that the peer sent.
        got: u64,
    },
    /// A grant or an announcement of no credit.
    #[error("peer granted or announced an empty list of credits")]
    Empty,
    /// More pages were announced as filled than credits are outstanding (receiver) or spent (sender).
    #[error("{count} pages announced as filled, but only {outstanding} credits are outstanding")]
    NotOutstanding {
        /// Number of pages announced.
        count: u32,
        /// Number of credits outstanding, or spent and not announced.
        outstanding: u32,
    },
}

impl RingError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Full { .. } => "ring_full",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::NotOutstanding { .. } => "not_outstanding",
            Self::Empty => "empty",
        }
    }
}

/// The receiver's ledger: the pages that the sender may write now.
#[derive(Debug)]
pub struct GrantLedger {
    capacity: NonZeroU32,
    tail: u64,
    outstanding: VecDeque<PageIndex>,
}

impl GrantLedger {
    /// An empty ring with at most `capacity` credits outstanding.
    pub fn new(capacity: NonZeroU32) -> Self {
        Self { capacity, tail: 0, outstanding: VecDeque::new() }
    }

    /// Number of credits granted so far.
    pub fn head(&self) -> u64 {
        self.tail + self.outstanding.len() as u64
    }

    /// Number of credits filled so far.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Number of credits granted and not yet filled. The sender may write their pages at any moment.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.len() as u32
    }

    /// True if a credit for `page` is outstanding.
    pub fn covers(&self, page: PageIndex) -> bool {
        self.outstanding.contains(&page)
    }

    /// Number of credits that may be granted now.
    pub fn room(&self) -> u32 {
        self.capacity.get() - self.outstanding()
    }

    /// Grants one credit. The caller must have taken `page` out of its pool.
    ///
    /// ```
    /// # use std::num::NonZeroU32;
    /// # use connector::ring::{GrantLedger, PageIndex, RingError};
    /// let mut ring = GrantLedger::new(NonZeroU32::MIN);
    /// assert!(ring.grant(PageIndex(3)).is_ok());
    /// assert_eq!(ring.grant(PageIndex(4)), Err(RingError::Full { capacity: 1, asked: 1 }));
    /// ```
    ///
    /// # Errors
    /// [`RingError::Full`]; the page remains with the caller.
    pub fn grant(&mut self, page: PageIndex) -> Result<Credit, RingError> {
        if self.room() == 0 {
            return Err(RingError::Full { capacity: self.capacity.get(), asked: 1 });
        }
        let number = CreditNumber(self.head());
        self.outstanding.push_back(page);
        Ok(Credit { number, page })
    }

    /// Adopts `count` pages, which the sender has put and flushed under the credits from `first` on.
    ///
    /// A peer cannot fill a credit twice, skip one, or fill more than it holds:
    ///
    /// ```
    /// # use std::num::NonZeroU32;
    /// # use connector::ring::{CreditNumber, GrantLedger, PageIndex, RingError};
    /// let mut ring = GrantLedger::new(NonZeroU32::MIN);
    /// ring.grant(PageIndex(3))?;
    /// assert_eq!(ring.fill(CreditNumber(1), 1), Err(RingError::OutOfOrder { expected: 0, got: 1 }));
    /// assert_eq!(ring.fill(CreditNumber(0), 2), Err(RingError::NotOutstanding { count: 2, outstanding: 1 }));
    /// assert_eq!(ring.fill(CreditNumber(0), 1), Ok(vec![PageIndex(3)]));
    /// assert_eq!(ring.fill(CreditNumber(0), 1), Err(RingError::OutOfOrder { expected: 1, got: 0 }));
    /// # Ok::<(), RingError>(())
    /// ```
    ///
    /// # Errors
    /// [`RingError::Empty`], [`RingError::OutOfOrder`] or [`RingError::NotOutstanding`]; the ledger is unchanged.
    pub fn fill(&mut self, first: CreditNumber, count: u32) -> Result<Vec<PageIndex>, RingError> {
        if count == 0 {
            return Err(RingError::Empty);
        }
        if first.0 != self.tail {
            return Err(RingError::OutOfOrder { expected: self.tail, got: first.0 });
        }
        if count > self.outstanding() {
            return Err(RingError::NotOutstanding { count, outstanding: self.outstanding() });
        }
        self.tail += u64::from(count);
        Ok(self.outstanding.drain(..count as usize).collect())
    }

    /// Ends the session and returns the pages of all outstanding credits.
    ///
    /// A put into these pages may still land. The caller must not reuse them before it has proof that none can. A closed ledger
    /// cannot grant:
    ///
    /// ```compile_fail,E0382
    /// # use std::num::NonZeroU32;
    /// # use connector::ring::{GrantLedger, PageIndex};
    /// let mut ring = GrantLedger::new(NonZeroU32::MIN);
    /// let quarantined = ring.close();
    /// ring.grant(PageIndex(0)); // error: use of moved value
    /// ```
    pub fn close(self) -> Vec<PageIndex> {
        self.outstanding.into()
    }
}

/// The sender's ledger: the credits that it may spend, in order.
#[derive(Debug)]
pub struct SpendLedger {
    capacity: NonZeroU32,
    announced: u64,
    spent: u64,
    available: VecDeque<PageIndex>,
}

impl SpendLedger {
    /// An empty ring. `capacity` is [`ring_pages`](crate::frame::Welcome::ring_pages) of the receiver's Welcome.
    pub fn new(capacity: NonZeroU32) -> Self {
        Self { capacity, announced: 0, spent: 0, available: VecDeque::new() }
    }

    /// Number of credits that can be spent now.
    pub fn available(&self) -> u32 {
        self.available.len() as u32
    }

    /// Number of credits spent and not yet announced as filled. Their puts are in flight or wait for a flush.
    pub fn unannounced(&self) -> u32 {
        (self.spent - self.announced) as u32
    }

    /// Accepts the credits from `first` on, one for each page.
    ///
    /// # Errors
    /// [`RingError::Empty`], [`RingError::OutOfOrder`], or [`RingError::Full`] if the receiver grants more than the capacity; the
    /// ledger is unchanged.
    pub fn accept(&mut self, first: CreditNumber, pages: &[PageIndex]) -> Result<(), RingError> {
        if pages.is_empty() {
            return Err(RingError::Empty);
        }
        let granted = self.spent + self.available.len() as u64;
        if first.0 != granted {
            return Err(RingError::OutOfOrder { expected: granted, got: first.0 });
        }
        if granted + pages.len() as u64 > self.announced + u64::from(self.capacity.get()) {
            return Err(RingError::Full { capacity: self.capacity.get(), asked: pages.len() as u32 });
        }
        self.available.extend(pages);
        Ok(())
    }

    /// Spends the next credit, if there is one. The caller may then write its page once.
    pub fn spend(&mut self) -> Option<Credit> {
        let page = self.available.pop_front()?;
        let number = CreditNumber(self.spent);
        self.spent += 1;
        Some(Credit { number, page })
    }

    /// Records that the next `count` spent credits are announced as filled, and returns the first one's number.
    ///
    /// # Errors
    /// [`RingError::NotOutstanding`] if fewer credits are spent and not announced; the ledger is unchanged.
    pub fn announce(&mut self, count: u32) -> Result<CreditNumber, RingError> {
        if count > self.unannounced() {
            return Err(RingError::NotOutstanding { count, outstanding: self.unannounced() });
        }
        let first = CreditNumber(self.announced);
        self.announced += u64::from(count);
        Ok(first)
    }
}

#[cfg(test)]
mod tests;
