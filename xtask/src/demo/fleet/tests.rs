//! Which bursts the demo accepts, and what it says about them.

use super::*;

fn burst(losses: &[(LossKind, Instant)]) -> Burst {
    let loss = |(kind, at): &(LossKind, Instant)| Loss { kind: *kind, at: *at, reason: format!("{kind:?}") };
    let answers = vec![Served { prefill_pid: 1, decode_pid: 2 }; REQUESTS - losses.len()];
    Burst { answers, losses: losses.iter().map(loss).collect(), seconds: 2.5 }
}

#[test]
fn only_the_killed_node_may_cost_answers() {
    let before = Instant::now();
    let killed = before + Duration::from_secs(1);
    let after = killed + Duration::from_secs(1);
    for (losses, killed, expect) in [
        (&[][..], None, None),
        (&[], Some(killed), None),
        (&[(LossKind::Broken, after), (LossKind::NotRetried, after)], Some(killed), None),
        (&[(LossKind::Broken, after)], None, Some("1 of 48 requests failed; the first one: Broken")),
        (&[(LossKind::Broken, before)], Some(killed), Some("1 of 48")),
        (&[(LossKind::Broken, after), (LossKind::Other, after)], Some(killed), Some("the first one: Other")),
        (&[(LossKind::Other, after); 3], Some(killed), Some("3 of 48")),
    ] {
        match (judge(&burst(losses), killed), expect) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
            (result, expect) => panic!("{result:?}, expected {expect:?}"),
        }
    }
}

#[test]
fn the_summary_names_each_number_that_is_not_zero() {
    let at = Instant::now();
    let kill = Kill { at, over: 14, noticed: Duration::from_millis(1020) };
    let broken = burst(&[(LossKind::Broken, at); 3]);
    assert_eq!(
        summary(&broken, &kill, 77, 2, 4),
        "  node-2 (pid 77) was killed when 14 requests were over.\n  \
         45 answered and 3 failed in 2.5 s.\n    \
         3 failed because node-2 had begun to answer: their streams broke off\n    \
         2 went to another process, because node-2 had not begun to answer\n  \
         The proxy's nodes_ready fell from 4 to 3 after 1.02 s."
    );
    let refused = summary(&burst(&[(LossKind::NotRetried, at)]), &kill, 77, 0, 4);
    assert!(refused.contains("  1 failed with status 502"), "{refused}");
    assert!(!refused.contains("streams") && !refused.contains("went"), "{refused}");
}

#[test]
fn the_killed_node_is_a_member() {
    let layout = Layout::new(None);
    assert!(layout.members.iter().any(|member| member.name == VICTIM && member.role == "node"));
}
