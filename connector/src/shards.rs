//! The shards of a page: how several ranks divide a pool's pages, and which puts move a page between two nodes.
//!
//! A node's ranks divide each page by KV heads. The heads are outermost in a page, so a *shard*, one rank's part of the page, is contiguous.
//! Each rank has a pool of its own with its shards of all pages. A page has the same number in all pools of a node.
//!
//! ```text
//! page of 4 heads         │ head 0 │ head 1 │ head 2 │ head 3 │
//! sender with 2 shards    │ shard 0         │ shard 1         │
//! receiver with 4 shards  │ shard 0│ shard 1│ shard 2│ shard 3│
//! lane                    │ 0      │ 1      │ 2      │ 3      │
//! ```
//!
//! Both sides cut the page where the side with more shards does. A session has one *lane* for each of these pieces. A put carries one piece,
//! and a page is complete when all of its pieces are.

use crate::transport::{Descriptor, TransportError};

/// Maximum number of shards of a page. The largest descriptors of this many shards take half of a message.
pub const SHARDS_MAX: u32 = 16;
/// A shard is a multiple of this many bytes, so that no segment of the [page hash](crate::page_hash) lies in two shards.
pub const SHARD_ALIGNMENT: u64 = crate::page_hash::SEGMENT as u64;

/// A page cannot be divided, or not moved between two nodes that divide it differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// A side has no shards, or too many.
    #[error("a page cannot have {0} shards; run each side on 1 to {SHARDS_MAX} GPUs")]
    Count(u32),
    /// A shard of one side would not consist of whole shards of the other side.
    #[error(
        "one side has {0} shards of a page and the other side {1}; run one side on a number of GPUs that divides the other's"
    )]
    Ratio(u32, u32),
    /// The shards would have different numbers of heads.
    #[error(
        "{kv_heads} KV heads cannot be divided among {shards} shards of a page; run the side with {shards} shards on a number of GPUs that divides {kv_heads}"
    )]
    Heads {
        /// KV heads in the page.
        kv_heads: u32,
        /// Number of shards.
        shards: u32,
    },
    /// A segment of the page hash would lie in two shards.
    #[error(
        "a shard would have {bytes} bytes, which is no multiple of {SHARD_ALIGNMENT}; raise engine.page_tokens to the same value on both sides"
    )]
    Alignment {
        /// Bytes of one shard.
        bytes: u64,
    },
}

impl ShardError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Count(_) => "shard_count",
            Self::Ratio(..) => "shard_ratio",
            Self::Heads { .. } => "shard_heads",
            Self::Alignment { .. } => "shard_alignment",
        }
    }
}

/// Checks that a page of `page_bytes` bytes and `kv_heads` heads can be divided into `shards` shards.
///
/// ```
/// use connector::shards::check_division;
///
/// assert!(check_division(8 << 20, 8, 4).is_ok());
/// let error = check_division(8 << 20, 3, 2).unwrap_err().to_string();
/// assert_eq!(error, "3 KV heads cannot be divided among 2 shards of a page; run the side with 2 shards on a number of GPUs that divides 3");
/// ```
///
/// # Errors
/// [`ShardError::Count`], [`ShardError::Heads`] or [`ShardError::Alignment`].
pub fn check_division(page_bytes: u64, kv_heads: u32, shards: u32) -> Result<(), ShardError> {
    if !(1..=SHARDS_MAX).contains(&shards) {
        return Err(ShardError::Count(shards));
    }
    if !kv_heads.is_multiple_of(shards) || !page_bytes.is_multiple_of(u64::from(shards)) {
        return Err(ShardError::Heads { kv_heads, shards });
    }
    let bytes = page_bytes / u64::from(shards);
    // A segment at the end of the page is padded, so only the ends of the other shards matter.
    let is_cut = shards > 1 && !bytes.is_multiple_of(SHARD_ALIGNMENT);
    if is_cut { Err(ShardError::Alignment { bytes }) } else { Ok(()) }
}

/// One piece of a page: what one put carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The lane that carries it.
    pub lane: u32,
    /// Its start in the pool of the lane's local shard.
    pub local_offset: u64,
    /// Its start in the pool of the lane's remote shard.
    pub remote_offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// The lanes of a session. Each lane connects one local shard and one remote shard that have bytes of a page in common.
///
/// ```
/// use connector::shards::Lanes;
///
/// // A sender with one shard puts the two halves of its page 3 into page 5 of a receiver with two.
/// let lanes = Lanes::between(1, 2)?;
/// assert_eq!([lanes.shards(0), lanes.shards(1)], [(0, 0), (0, 1)]);
/// let pieces: Vec<_> = lanes.pieces(8192, 3, 5).map(|piece| (piece.local_offset, piece.remote_offset)).collect();
/// assert_eq!(pieces, [(3 * 8192, 5 * 4096), (3 * 8192 + 4096, 5 * 4096)]);
/// # Ok::<(), connector::shards::ShardError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    local: u32,
    remote: u32,
}

impl Lanes {
    /// The lanes between a side with `local` shards and a side with `remote` shards.
    ///
    /// # Errors
    /// [`ShardError::Count`]; [`ShardError::Ratio`] if neither number divides the other.
    pub fn between(local: u32, remote: u32) -> Result<Self, ShardError> {
        for shards in [local, remote] {
            if !(1..=SHARDS_MAX).contains(&shards) {
                return Err(ShardError::Count(shards));
            }
        }
        let fits = local.is_multiple_of(remote) || remote.is_multiple_of(local);
        if fits { Ok(Self { local, remote }) } else { Err(ShardError::Ratio(local, remote)) }
    }

    /// The lanes from a node with `regions` regions to the peer of this descriptor.
    pub(crate) fn to(regions: usize, peer: &Descriptor) -> Result<Self, TransportError> {
        let count = |shards: usize| u32::try_from(shards).unwrap_or(u32::MAX);
        let lanes = Self::between(count(regions), count(peer.shards.len()));
        lanes.map_err(|error| TransportError::Descriptor(error.to_string()))
    }

    /// Number of lanes, and so of pieces of a page.
    pub fn count(self) -> u32 {
        self.local.max(self.remote)
    }

    /// The local and the remote shard that a lane connects.
    pub fn shards(self, lane: u32) -> (u32, u32) {
        (lane / (self.count() / self.local), lane / (self.count() / self.remote))
    }

    /// The pieces of a page of `page_bytes` bytes, in the order of the page. The page has the number `local_page` here and `remote_page` at the
    /// other side.
    pub fn pieces(self, page_bytes: u64, local_page: u32, remote_page: u32) -> impl Iterator<Item = Piece> {
        let bytes = page_bytes / u64::from(self.count());
        // The pieces of a page in a shard, and then the pages of a shard, are adjacent.
        let offset = move |lane: u32, shards: u32, page: u32| {
            let pieces = self.count() / shards;
            (u64::from(page) * u64::from(pieces) + u64::from(lane % pieces)) * bytes
        };
        (0..self.count()).map(move |lane| Piece {
            lane,
            local_offset: offset(lane, self.local, local_page),
            remote_offset: offset(lane, self.remote, remote_page),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_counts_of_which_one_divides_the_other_fit() {
        for (local, remote, lanes) in
            [(1, 1, 1), (2, 2, 2), (2, 1, 2), (1, 2, 2), (4, 2, 4), (1, 3, 3), (16, 8, 16)]
        {
            assert_eq!(Lanes::between(local, remote).map(Lanes::count), Ok(lanes));
        }
        assert_eq!(Lanes::between(2, 3), Err(ShardError::Ratio(2, 3)));
        assert_eq!(Lanes::between(4, 6), Err(ShardError::Ratio(4, 6)));
        assert_eq!(Lanes::between(0, 1), Err(ShardError::Count(0)));
        assert_eq!(Lanes::between(1, SHARDS_MAX + 1), Err(ShardError::Count(SHARDS_MAX + 1)));
    }

    #[test]
    fn a_page_is_divided_at_heads_and_at_segments() {
        let check = |page_bytes, kv_heads, shards, expect: Result<(), ShardError>| {
            assert_eq!(
                check_division(page_bytes, kv_heads, shards),
                expect,
                "{page_bytes} {kv_heads} {shards}"
            );
        };
        check(8 << 20, 8, 8, Ok(()));
        check(737_280, 3, 1, Ok(()));
        check(737_280, 3, 3, Ok(()));
        check(737_280, 3, 2, Err(ShardError::Heads { kv_heads: 3, shards: 2 }));
        check(8192, 4, 4, Err(ShardError::Alignment { bytes: 2048 }));
        check(100, 4, 1, Ok(()));
        check(8192, 4, 0, Err(ShardError::Count(0)));
        check(8 << 20, 64, 64, Err(ShardError::Count(64)));
    }

    /// Two numbers of shards of which one divides the other.
    fn fitting() -> impl Strategy<Value = (u32, u32)> {
        (1..=SHARDS_MAX, 1..=SHARDS_MAX)
            .prop_filter("fit", |(local, remote)| Lanes::between(*local, *remote).is_ok())
    }

    proptest! {
        /// Each byte of a page is in one piece, in order, and each side finds it at the same place of the page.
        #[test]
        fn the_pieces_cover_a_page_once_and_in_order(
            (local, remote) in fitting(),
            segments in 1..5u64,
            local_page in 0..100_000u32,
            remote_page in 0..100_000u32,
        ) {
            let lanes = Lanes::between(local, remote).expect("filtered");
            let page_bytes = u64::from(lanes.count()) * segments * SHARD_ALIGNMENT;
            // The place of a byte in its page: the shard and the offset in the shard's pool give it.
            let place = |shards: u32, page: u32, shard: u32, offset: u64| {
                let shard_bytes = page_bytes / u64::from(shards);
                let in_shard = offset.checked_sub(u64::from(page) * shard_bytes).filter(|at| *at < shard_bytes);
                in_shard.map(|at| u64::from(shard) * shard_bytes + at)
            };
            let mut end = 0;
            for (n, piece) in (0..).zip(lanes.pieces(page_bytes, local_page, remote_page)) {
                let (local_shard, remote_shard) = lanes.shards(piece.lane);
                prop_assert_eq!(piece.lane, n);
                prop_assert_eq!(place(local, local_page, local_shard, piece.local_offset), Some(end));
                prop_assert_eq!(place(remote, remote_page, remote_shard, piece.remote_offset), Some(end));
                end += piece.bytes;
                // The last byte is in the same shards as the first.
                prop_assert_eq!(place(local, local_page, local_shard, piece.local_offset + piece.bytes - 1), Some(end - 1));
                prop_assert_eq!(place(remote, remote_page, remote_shard, piece.remote_offset + piece.bytes - 1), Some(end - 1));
            }
            prop_assert_eq!(end, page_bytes);
        }

        /// The receiver sees the same lanes as the sender.
        #[test]
        fn both_sides_cut_a_page_alike((local, remote) in fitting()) {
            let (ours, theirs) = (Lanes::between(local, remote).expect("filtered"), Lanes::between(remote, local).expect("filtered"));
            prop_assert_eq!(ours.count(), theirs.count());
            for lane in 0..ours.count() {
                let (near, far) = ours.shards(lane);
                prop_assert_eq!(theirs.shards(lane), (far, near));
                prop_assert!(near < local && far < remote);
            }
        }
    }
}
