//! Pages in shards: nodes with one region for each shard hand pages over to nodes with another number of shards.

use crate::side::{Kind, Side, content};
use connector::memory::Region;
use connector::page_hash::{self, PageSeed, finished, total};
use connector::shards::Lanes;
use connector::transport::*;

const A: TransportSession = TransportSession(1);
const PAGE: u64 = 64 << 10;
const PAGES: u32 = 16;

fn seed(page: u32) -> PageSeed {
    PageSeed { session: 1, credit: u64::from(page), request: 3, place: page }
}

fn node(kind: Kind, shards: u32) -> Side {
    Side::start_shards(kind, shards as usize, PAGE as usize * PAGES as usize / shards as usize)
}

/// Connects a node with `local` shards to a node with `remote` shards.
fn nodes(kind: Kind, local: u32, remote: u32) -> (Side, Side, Lanes) {
    let (mut sender, mut receiver) = (node(kind, local), node(kind, remote));
    let peer = receiver.open(A);
    assert_eq!(peer.shards.len(), remote as usize);
    sender.connect(A, &peer).expect("connects");
    (sender, receiver, Lanes::between(local, remote).expect("one number divides the other"))
}

/// Writes a page into the shards of a node, as its ranks do.
fn write(side: &Side, page: u32, bytes: &[u8]) {
    let part = bytes.len() / side.regions.len();
    for (region, bytes) in side.regions.iter().zip(bytes.chunks(part)) {
        let target = region.at(u64::from(page) * part as u64, part as u64).expect("the page is in the pool");
        // SAFETY: `at` has checked the range, and the test has no operation on it in flight.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target.as_ptr(), part) };
    }
}

/// The hash of a page, from the sums of the node's shards.
fn hash(side: &Side, page: u32, of: u32) -> u64 {
    let part = PAGE / side.regions.len() as u64;
    let shards = side.regions.iter().zip((0..).map(|n| n * part));
    let sum =
        |(region, place)| page_hash::content(region, u64::from(page) * part, part, place).expect("inside");
    finished(total(shards.map(sum)), PAGE, seed(of))
}

/// The hash of a page that one region holds.
fn hash_of_whole(bytes: &[u8], of: u32) -> u64 {
    let whole = Region::host(bytes.len());
    // SAFETY: the region was just made with `bytes.len()` bytes and nothing else refers to it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), whole.base().as_ptr(), bytes.len()) };
    page_hash::page_hash(&whole, 0, PAGE, seed(of)).expect("the whole page")
}

pub(crate) fn pages_in_shards_arrive_whole(kind: Kind) {
    for (local, remote) in [(1, 1), (2, 2), (2, 1), (1, 2), (4, 2), (2, 4)] {
        let (mut sender, mut receiver, lanes) = nodes(kind, local, remote);
        let into = |page: u32| page * 7 % PAGES;
        let mut puts = Vec::new();
        for page in 0..PAGES {
            write(&sender, page, &content(PAGE, u64::from(page)));
            let pieces = lanes.pieces(PAGE, page, into(page));
            puts.extend(pieces.map(|piece| sender.put_piece(A, piece)));
        }
        assert_eq!(puts.len(), (PAGES * local.max(remote)) as usize, "one put for each piece");
        for put in puts {
            assert_eq!(sender.result(put), Ok(()), "{local} to {remote}");
        }
        for lane in 0..lanes.count() {
            assert_eq!(sender.flush_lane(A, lane), Ok(()), "{local} to {remote}");
        }
        for page in 0..PAGES {
            let whole = hash_of_whole(&content(PAGE, u64::from(page)), page);
            assert_eq!(hash(&sender, page, page), whole, "{local} to {remote}, page {page} at the sender");
            assert_eq!(hash(&receiver, into(page), page), whole, "{local} to {remote}, page {page}");
        }
        assert!(sender.close(A), "all lanes are flushed");
        assert!(receiver.close(A));
        sender.finish();
        receiver.finish();
    }
}

/// A page is complete only when all of its lanes are flushed; the close of the session flushes the others.
pub(crate) fn a_lane_that_is_not_flushed_is_missing_from_the_page(kind: Kind) {
    let (mut sender, mut receiver, lanes) = nodes(kind, 2, 2);
    write(&sender, 0, &content(PAGE, 5));
    let puts: Vec<_> = lanes.pieces(PAGE, 0, 3).map(|piece| sender.put_piece(A, piece)).collect();
    for put in puts {
        assert_eq!(sender.result(put), Ok(()));
    }
    assert_eq!(sender.flush_lane(A, 1), Ok(()));
    if kind == Kind::Loopback {
        assert_ne!(hash(&receiver, 3, 0), hash(&sender, 0, 0), "loopback delivers a lane at its flush");
    }
    assert_eq!(sender.flush_lane(A, lanes.count()), Err(TransportError::NoLane(2)));
    assert!(sender.close(A), "the close flushes what is not flushed");
    assert_eq!(hash(&receiver, 3, 0), hash(&sender, 0, 0));
    assert!(receiver.close(A));
    sender.finish();
    receiver.finish();
}

pub(crate) fn nodes_whose_shards_do_not_fit_are_refused(kind: Kind) {
    let (mut sender, mut receiver) = (node(kind, 2), node(kind, 3));
    let peer = receiver.open(A);
    let error = sender.connect(A, &peer).expect_err("2 and 3 shards");
    assert_eq!(error.kind(), "descriptor");
    assert!(error.to_string().contains("one side has 2 shards of a page and the other side 3"), "{error}");
    assert!(sender.close(A));
    sender.finish();
    receiver.finish();
}
