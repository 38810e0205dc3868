//! Requests with cache salts share pages only with requests of the same salt, on both sides of the pair.

use ::actors::request::CacheSalt;

use super::*;

/// Runs a prompt of fifteen pages with this salt.
async fn run(node: &Node, request: u64, salt: Option<&str>) -> Timings {
    let generate =
        Generate { salt: salt.map(CacheSalt::of), prompt: prompt(0, 60).into(), ..generate(request, 60, 5) };
    answer(send(node, generate).await, 0, 60).await.expect("the request succeeds")
}

#[actix::test]
async fn two_salts_share_no_page_on_either_side() {
    let (receiver, sender, _) = pair(200, 4).await;
    let resident = |node: &Node| node.counters.pages_resident().load(Ordering::SeqCst);
    // The sender computes the prompt for its own client, so its cache has the pages and the receiver's has none.
    run(&sender, 1, Some("a")).await;
    for (request, salt) in [(2, Some("b")), (3, None)] {
        let timings = run(&receiver, request, salt).await;
        assert!(timings.disaggregated && timings.pages == 15 && timings.cached_tokens == 0, "{timings:?}");
        assert_eq!((resident(&sender), resident(&receiver)), (0, 0), "{salt:?}");
    }
    let timings = run(&receiver, 4, Some("a")).await;
    assert!(timings.disaggregated && timings.pages == 15, "{timings:?}");
    assert_eq!(
        (timings.cached_tokens, timings.resident_tokens),
        (56, 0),
        "the sender had 14 pages of the prompt"
    );
    assert_eq!((resident(&sender), resident(&receiver)), (14, 0));
    // Now the receiver has the pages of all three salts. A fourth finds none of them.
    let timings = run(&receiver, 5, Some("c")).await;
    assert_eq!((timings.pages, resident(&sender), resident(&receiver)), (15, 14, 0));
    for (request, salt) in [(6, Some("a")), (7, Some("b")), (8, Some("c")), (9, None)] {
        run(&receiver, request, salt).await;
        assert_eq!((resident(&sender), resident(&receiver)), (14, 14 * (request - 5)), "{salt:?}");
    }
}
