//! The ring of a session: a bounded ring of anonymous page credits, as two pure ledgers.
//!
//! Credit *n* = (*n*, page) is the right to write that page of the receiver's pool **once**. The receiver's
//! [`GrantLedger`] hands credits out (head) and takes filled pages in (tail); the sender's [`SpendLedger`] spends
//! them in the order they were granted, for whichever of its pages is ready. Head and tail only grow: a credit's
//! number is its generation, so nothing stale can be mistaken for something fresh.
//!
//! ```text
//!   receiver   tail ─────────────── head          outstanding = head − tail ≤ capacity
//!   sender            spent ── granted            announced ≤ spent ≤ granted ≤ announced + capacity
//! ```
//!
//! A credit binds no request. Which request a page belongs to is said when it has landed, so an abort reclaims
//! nothing and any ring of at least one page makes progress. No clock, no I/O, no actor: property tests drive this.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// The number of a credit in its session, counted from 0 and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CreditNumber(pub u64);

/// The index of a page in the receiver's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageIndex(pub u32);

/// The right to write `page` once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The credit's number.
    pub number: CreditNumber,
    /// The page it allows to write.
    pub page: PageIndex,
}

/// A step that the ring's rules forbid. From a peer it ends the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// Every credit of the ring is outstanding.
    #[error("ring of {capacity} pages has no room for another {asked}")]
    Full {
        /// Most credits outstanding.
        capacity: u32,
        /// How many were to be added.
        asked: u32,
    },
    /// Credits are granted, spent and filled in order.
    #[error("credit {got} came where {expected} was due")]
    OutOfOrder {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// A list of credits or pages without any.
    #[error("peer named no credit at all")]
    Empty,
    /// More pages were called filled than credits are outstanding (or spent).
    #[error("{count} pages called filled and only {outstanding} credits are outstanding")]
    NotOutstanding {
        /// How many were called filled.
        count: u32,
        /// How many could have been.
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

/// The receiver's side: which pages of the pool the sender may write now.
#[derive(Debug)]
pub struct GrantLedger {
    capacity: NonZeroU32,
    tail: u64,
    outstanding: VecDeque<PageIndex>,
}

impl GrantLedger {
    /// An empty ring that lets at most `capacity` credits be outstanding.
    pub fn new(capacity: NonZeroU32) -> Self {
        Self { capacity, tail: 0, outstanding: VecDeque::new() }
    }

    /// Credits granted so far.
    pub fn head(&self) -> u64 {
        self.tail + self.outstanding.len() as u64
    }

    /// Credits filled so far.
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Credits that the sender holds: each of their pages may be written at any moment.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.len() as u32
    }

    /// True if the sender holds a credit for `page`.
    pub fn covers(&self, page: PageIndex) -> bool {
        self.outstanding.contains(&page)
    }

    /// How many more credits may be granted now.
    pub fn room(&self) -> u32 {
        self.capacity.get() - self.outstanding()
    }

    /// Grants one credit. The caller has taken `page` out of its pool.
    ///
    /// # Errors
    /// [`RingError::Full`]; the page is still the caller's.
    pub fn grant(&mut self, page: PageIndex) -> Result<Credit, RingError> {
        if self.room() == 0 {
            return Err(RingError::Full { capacity: self.capacity.get(), asked: 1 });
        }
        let number = CreditNumber(self.head());
        self.outstanding.push_back(page);
        Ok(Credit { number, page })
    }

    /// Takes `count` pages in, whose bytes the sender has put and flushed under the credits from `first` on.
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

    /// Ends the session: the pages whose credits are still outstanding. A put into any of them may still land, so
    /// they are not free until there is proof that none can.
    pub fn close(self) -> Vec<PageIndex> {
        self.outstanding.into()
    }
}

/// The sender's side: the credits it may spend, in order.
#[derive(Debug)]
pub struct SpendLedger {
    capacity: NonZeroU32,
    announced: u64,
    spent: u64,
    available: VecDeque<PageIndex>,
}

impl SpendLedger {
    /// An empty ring whose receiver said in its Welcome that at most `capacity` credits are ever outstanding.
    pub fn new(capacity: NonZeroU32) -> Self {
        Self { capacity, announced: 0, spent: 0, available: VecDeque::new() }
    }

    /// Credits that can be spent now.
    pub fn available(&self) -> u32 {
        self.available.len() as u32
    }

    /// Credits spent and not yet announced as filled: puts in flight or waiting for their flush.
    pub fn unannounced(&self) -> u32 {
        (self.spent - self.announced) as u32
    }

    /// Takes in the credits from `first` on, one for each page.
    ///
    /// # Errors
    /// [`RingError::Empty`], [`RingError::OutOfOrder`], or [`RingError::Full`] if the receiver granted past the ring it declared; the
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

    /// Spends the next credit, if there is one. The page may then be written once.
    pub fn spend(&mut self) -> Option<Credit> {
        let page = self.available.pop_front()?;
        let number = CreditNumber(self.spent);
        self.spent += 1;
        Some(Credit { number, page })
    }

    /// The next `count` spent credits are about to be announced as filled; returns the first one's number.
    ///
    /// # Errors
    /// [`RingError::NotOutstanding`]; the ledger is unchanged.
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
