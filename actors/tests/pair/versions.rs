//! Processes of two builds with different versions of the link's protocol: the state of an upgrade in which one process has the new build.

use super::*;

/// The versions of the next build, if it also supports the newest version of this one.
const NEXT: Versions = Versions::new(Versions::OURS.highest, Versions::OURS.highest + 1);

/// Two nodes that prefill for each other, with these versions.
async fn two(versions: [Versions; 2]) -> [Node; 2] {
    let listeners = versions.map(|_| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    let address = |listener: &TcpListener| listener.local_addr().expect("the socket is bound").to_string();
    let peers: Vec<String> = listeners.iter().map(address).collect();
    let [first, second] = listeners;
    [(first, versions[0]), (second, versions[1])]
        .map(|(listener, versions)| start(Ends { versions, ..node_at(listener, peers.clone()) }, 200, 4))
}

/// Each node hands prompts to the other one, so sessions of both directions carry all frames of a prefill.
#[actix::test]
async fn nodes_with_a_common_version_prefill_for_each_other() {
    for versions in [[NEXT, Versions::OURS], [Versions::OURS, NEXT]] {
        let nodes = two(versions).await;
        until("both sessions are ready", || nodes.iter().all(|node| node.peers() == 2)).await;
        for (of, node) in nodes.iter().enumerate() {
            let requests = (0..20).map(|n| 20 * of as u64 + n);
            for request in requests {
                let source = ask(node, request, 5 + request as u32 * 3, 5).await;
                let timings = answer(source, request, 5 + request as u32 * 3).await.expect("it succeeds");
                assert!(timings.disaggregated, "{versions:?}: {timings:?}");
            }
        }
        for node in nodes {
            assert_eq!(node.counters.recomputes().load(Ordering::SeqCst), 0);
            node.shut_down(PATIENCE).await;
        }
    }
}

#[actix::test]
async fn nodes_without_a_common_version_serve_alone() {
    let later = Versions::new(Versions::OURS.highest + 1, Versions::OURS.highest + 2);
    let nodes = two([Versions::OURS, later]).await;
    for (request, node) in (0..).zip(&nodes) {
        let timings = answer(ask(node, request, 60, 5).await, request, 60).await.expect("it succeeds");
        assert!(!timings.disaggregated);
        assert_eq!(node.counters.sessions_opened().load(Ordering::SeqCst), 0);
    }
}
