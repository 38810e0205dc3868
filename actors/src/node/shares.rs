//! How a pool is divided: pages for rings, pages for the prompts of peers, and pages for own requests.
//!
//! A process that both decodes and prefills for peers keeps a *quota* of pages for the prompts of its peers, so that two processes never wait
//! for each other's pages. The quota holds one prompt of the greatest length. The pool limits that length too: no prompt is longer than the
//! pages that one own request may use. So the quota is at most about half of the pool that the rings leave. If a model's context is larger
//! than this, the context is limited, and a lower `request.context_tokens` gives the pages back to requests.

/// The numbers that decide the division.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Pages in the pool.
    pub(super) pages: u32,
    /// Tokens in a page; at least one.
    pub(super) page_tokens: u32,
    /// Pages for all rings together. `None`: no peer writes into this pool.
    pub(super) ring_pages: Option<u32>,
    /// This process prefills for peers.
    pub(super) prefills: bool,
    /// `node.prefill_pages`.
    pub(super) prefill_pages: Option<u32>,
    /// Maximum number of tokens of a prompt and its answer.
    pub(super) context_tokens: u32,
}

/// A division of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Pages that rings may claim.
    pub(super) ring: u32,
    /// Pages for prompts of peers. `None`: this process has no quota.
    pub(super) quota: Option<u32>,
    /// Pages that one own request may use.
    pub(super) request: u32,
}

/// Why a pool cannot be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SharesError {
    /// There is no page for the ring beside one for a request.
    #[error("a receiver's pool needs at least 2 pages and this one has {pages}; raise engine.kv_bytes")]
    Receiver {
        /// Pages in the pool.
        pages: u32,
    },
    /// There is no page for each of the three uses.
    #[error(
        "the pool of a node with link.peers needs at least 3 pages (for the ring, a peer's prompt and a request) and this one has {pages}; \
         raise engine.kv_bytes"
    )]
    Node {
        /// Pages in the pool.
        pages: u32,
    },
    /// The quota leaves too few pages for the ring and a request.
    #[error(
        "node.prefill_pages is {given}, but only {most} of the pool's {pages} pages can be reserved beside the ring and a request; \
         lower node.prefill_pages or raise engine.kv_bytes"
    )]
    QuotaTooLarge {
        /// `node.prefill_pages`.
        given: u32,
        /// The largest possible value.
        most: u32,
        /// Pages in the pool.
        pages: u32,
    },
    /// The quota does not hold the longest prompt.
    #[error(
        "node.prefill_pages is {given}, but a prompt of {tokens} tokens, the longest here, needs {least} pages; \
         raise node.prefill_pages to {least} or lower request.context_tokens"
    )]
    QuotaTooSmall {
        /// `node.prefill_pages`.
        given: u32,
        /// The smallest possible value.
        least: u32,
        /// The length of the longest prompt with that value.
        tokens: u64,
    },
}

impl Wanted {
    /// Divides the pool.
    ///
    /// # Errors
    /// [`SharesError`].
    pub(super) fn divide(self) -> Result<Shares, SharesError> {
        let pages = self.pages;
        if self.ring_pages.is_none() {
            return Ok(Shares { ring: 0, quota: None, request: pages });
        }
        if !self.prefills {
            let shares = self.beside(0);
            return if shares.ring == 0 { Err(SharesError::Receiver { pages }) } else { Ok(shares) };
        }
        // Two pages remain: one for the ring and one for a request.
        let most = pages.saturating_sub(2);
        let least = (1..=most).find(|quota| *quota >= self.longest(*quota));
        let least = least.ok_or(SharesError::Node { pages })?;
        let quota = self.prefill_pages.unwrap_or(least);
        if quota > most {
            return Err(SharesError::QuotaTooLarge { given: quota, most, pages });
        }
        if quota < least {
            let page_tokens = u64::from(self.page_tokens);
            let tokens = u64::from(self.context_tokens).min(u64::from(self.longest(least)) * page_tokens);
            return Err(SharesError::QuotaTooSmall { given: quota, least, tokens });
        }
        Ok(Shares { quota: Some(quota), ..self.beside(quota) })
    }

    /// The division of the pages beside a quota. The ring has at least one page if there are two, and at most half of the pages.
    fn beside(self, quota: u32) -> Shares {
        let left = self.pages - quota;
        let ring = self.ring_pages.unwrap_or_default().max(1).min(left / 2);
        Shares { ring, quota: None, request: left - ring }
    }

    /// Pages of the longest prompt beside a quota. It does not grow with the quota.
    fn longest(self, quota: u32) -> u32 {
        self.context_tokens.div_ceil(self.page_tokens).min(self.beside(quota).request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Wanted = Wanted {
        pages: 100,
        page_tokens: 16,
        ring_pages: Some(10),
        prefills: true,
        prefill_pages: None,
        context_tokens: 320,
    };

    fn shares(ring: u32, quota: Option<u32>, request: u32) -> Result<Shares, SharesError> {
        Ok(Shares { ring, quota, request })
    }

    #[test]
    fn a_process_with_one_capability_has_no_quota() {
        let sender = Wanted { ring_pages: None, ..NODE };
        assert_eq!(sender.divide(), shares(0, None, 100));
        let receiver = Wanted { prefills: false, prefill_pages: Some(7), ..NODE };
        assert_eq!(receiver.divide(), shares(10, None, 90));
        for (pages, wanted, ring) in [(100, 90, 50), (5, 3, 2), (2, 0, 1)] {
            let receiver = Wanted { pages, ring_pages: Some(wanted), ..receiver };
            assert_eq!(receiver.divide(), shares(ring, None, pages - ring));
        }
        for pages in [0, 1] {
            assert_eq!(Wanted { pages, ..receiver }.divide(), Err(SharesError::Receiver { pages }));
        }
    }

    #[test]
    fn the_default_quota_is_the_smallest_that_holds_the_longest_prompt() {
        assert_eq!(NODE.divide(), shares(10, Some(20), 70), "the model's context decides");
        // The pool decides: the quota and a request have the same number of pages.
        let long = Wanted { context_tokens: 131_072, ..NODE };
        assert_eq!(long.divide(), shares(10, Some(45), 45));
        assert_eq!(Wanted { ring_pages: Some(90), ..long }.divide(), shares(33, Some(34), 33));
        assert_eq!(Wanted { pages: 3, ..long }.divide(), shares(1, Some(1), 1));
        for pages in [0, 1, 2] {
            assert_eq!(Wanted { pages, ..long }.divide(), Err(SharesError::Node { pages }));
        }
    }

    /// The examples of docs/configuration.md.
    #[test]
    fn the_documented_divisions() {
        let large =
            Wanted { pages: 14_000, page_tokens: 64, ring_pages: Some(128), context_tokens: 131_072, ..NODE };
        assert_eq!(large.divide(), shares(128, Some(2048), 11_824));
        let small = Wanted { pages: 2560, ..large };
        assert_eq!(small.divide(), shares(128, Some(1216), 1216));
        assert_eq!(Wanted { context_tokens: 32_768, ..small }.divide(), shares(128, Some(512), 1920));
    }

    #[test]
    fn every_division_holds_the_longest_prompt_beside_the_ring() {
        for pages in 3..200 {
            for ring in [1, 7, 64, 1000] {
                for context_tokens in [1, 16, 17, 800, 131_072] {
                    let wanted = Wanted { pages, ring_pages: Some(ring), context_tokens, ..NODE };
                    let shares = wanted.divide().expect("three pages are enough");
                    let quota = shares.quota.expect("a node has a quota");
                    assert_eq!(shares.ring + quota + shares.request, pages, "{wanted:?}");
                    assert!(shares.ring >= 1 && shares.ring <= (pages - quota) / 2, "{wanted:?}: {shares:?}");
                    let longest = context_tokens.div_ceil(16).min(shares.request);
                    assert!(longest >= 1 && quota >= longest, "{wanted:?}: {shares:?}");
                    let fewer = Wanted { prefill_pages: Some(quota - 1), ..wanted };
                    assert!(fewer.divide().is_err(), "{wanted:?}: {shares:?}");
                }
            }
        }
    }

    #[test]
    fn a_quota_that_does_not_fit_is_refused_with_the_limit() {
        let divide = |given| Wanted { prefill_pages: Some(given), ..NODE }.divide();
        assert_eq!(divide(30), shares(10, Some(30), 60));
        assert_eq!(divide(98), shares(1, Some(98), 1));
        let too_small = SharesError::QuotaTooSmall { given: 19, least: 20, tokens: 320 };
        assert_eq!(divide(19), Err(too_small));
        let too_large = SharesError::QuotaTooLarge { given: 99, most: 98, pages: 100 };
        assert_eq!(divide(99), Err(too_large));
        let long = Wanted { prefill_pages: Some(20), context_tokens: 131_072, ..NODE };
        let error = long.divide().expect_err("the longest prompt has 45 pages");
        assert_eq!(
            error.to_string(),
            "node.prefill_pages is 20, but a prompt of 720 tokens, the longest here, needs 45 pages; \
             raise node.prefill_pages to 45 or lower request.context_tokens"
        );
    }
}
