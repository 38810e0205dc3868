//! The quota of pages for prompts of peers.

use super::*;
use crate::effect::ToPrefiller;
use crate::messages::{ComputeHere, PagesDenied};

/// A reservation of `pages` pages for a peer's prompt.
fn prompt(serial: u64, pages: u32) -> ReservePages {
    ReservePages { sequence: SequenceId::Peer(serial), ..reserve(100 + serial, pages, 0) }
}

/// True if the only effect is that a peer's prompt has pages.
fn is_served(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Prefiller(ToPrefiller::PagesReserved(_))])
}

#[test]
fn a_peers_prompt_gets_pages_of_the_quota_at_once_or_is_denied() {
    // Three pages are for peers, and four for own requests.
    let mut pool = shared_pool(7, 0, 1, Some(3));
    assert_eq!(give(&mut pool, reserve(1, 4, 0)).len(), 1);
    assert_eq!(give(&mut pool, reserve(2, 1, 0)), [], "own requests do not take pages of the quota");
    assert!(is_served(&give(&mut pool, prompt(1, 2))), "a peer's prompt does not queue behind own requests");
    assert_eq!((pool.usage().held, pool.usage().quota_used), (6, 2));
    let denied = PagesDenied { sequence: SequenceId::Peer(2), needed: 2, usable: 1 };
    assert_eq!(give(&mut pool, prompt(2, 2)), [to::prefiller(denied)]);
    assert!(is_served(&give(&mut pool, prompt(3, 1))));
    give(&mut pool, ReleasePages { sequence: SequenceId::Peer(1) });
    assert_eq!(pool.waiting.len(), 1, "pages of the quota return to the quota");
    assert!(is_served(&give(&mut pool, prompt(2, 2))));
    assert_eq!(release(&mut pool, 1).len(), 1, "the own request that waits is served");
}

#[test]
fn growth_and_credits_leave_the_quota() {
    let mut pool = shared_pool(8, 2, 1, Some(3));
    open(&mut pool, SESSION, 8, 0);
    give(&mut pool, reserve(1, 2, 0));
    let effects = give(&mut pool, GrowPages { sequence: own(1), least: 1, most: 6 });
    let grown = effects.iter().find_map(|effect| match effect {
        Effect::Decoder(ToDecoder::PagesGrown(grown)) => Some(grown.pages.len()),
        _ => None,
    });
    let credits = pool.usage().outstanding as usize;
    assert_eq!(grown.map(|grown| grown + credits), Some(3), "2 of 8 pages are held, and 3 are for peers");
    assert!(is_served(&give(&mut pool, prompt(1, 3))));
}

#[test]
fn a_page_that_an_own_request_shares_leaves_the_quota_whole() {
    let mut pool = shared_pool(6, 0, 1, Some(3));
    let tokens: std::sync::Arc<[u32]> = [7, 8, 9].into();
    let of_peer = ReservePages { tokens: tokens.clone(), ..prompt(1, 3) };
    let pages = match &give(&mut pool, of_peer)[..] {
        [Effect::Prefiller(ToPrefiller::PagesReserved(reserved))] => reserved.pages.clone(),
        other => panic!("{other:?}"),
    };
    let sequence = SequenceId::Peer(1);
    give(&mut pool, PagesComputed { sequence, tokens: tokens.clone(), salt: None, pages });
    // The own request shares two pages of the peer and pays for them with two of the three pages that are left.
    let effects = give(&mut pool, ReservePages { tokens: tokens.clone(), pages: 3, ..reserve(1, 1, 0) });
    assert!(matches!(effects[..], [Effect::Decoder(ToDecoder::PagesReserved(_))]), "{effects:?}");
    assert_eq!((pool.usage().held, pool.usage().quota_used), (4, 1));
    give(&mut pool, ReleasePages { sequence });
    assert_eq!((pool.usage().held, pool.usage().quota_used), (3, 0));
    assert!(is_served(&give(&mut pool, prompt(2, 3))));
}

#[test]
fn pages_that_do_not_land_are_replaced_at_once() {
    let mut pool = pool(6, 2, 1);
    open(&mut pool, SESSION, 6, 0);
    give(&mut pool, reserve(1, 1, 3));
    assert_eq!(give(&mut pool, reserve(2, 2, 0)), [], "it waits");
    let (usage, outstanding) = (pool.usage(), pool.usage().outstanding);
    assert_eq!((usage.held, usage.landing), (1, 3));
    let effects = give(&mut pool, ComputeHere { sequence: own(1) });
    let Some(Effect::Decoder(ToDecoder::PagesGrown(grown))) = effects.first() else { panic!("{effects:?}") };
    assert_eq!((grown.sequence, grown.pages.len()), (own(1), 3), "before the request that waits");
    assert_eq!((pool.usage().held, pool.usage().landing), (4, 0));
    // A page that lands later is free.
    give(&mut pool, filled(0, 1, Some(1)));
    assert!(pool.usage().outstanding <= outstanding && pool.usage().held == 4, "{:?}", pool.usage());
    assert_eq!(give(&mut pool, ComputeHere { sequence: own(9) }), [], "it has been released");
}
