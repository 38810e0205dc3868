//! Nodes that prefill and decode, for themselves and for each other.

use super::*;

/// A listener on a free port, and its address.
fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    (listener, address)
}

/// Nodes with pools of `pages` pages. Each lists the addresses of all, its own included.
async fn mesh(count: usize, pages: u32, ring_pages: u64) -> Vec<Node> {
    let (listeners, peers): (Vec<_>, Vec<_>) = (0..count).map(|_| listener()).unzip();
    let ends = listeners.into_iter().map(|listener| node_at(listener, peers.clone()));
    let nodes: Vec<Node> = ends.map(|ends| start(ends, pages, ring_pages)).collect();
    // A session in each direction with every other node.
    let sessions = 2 * (count as u64 - 1);
    until("all sessions are ready", || nodes.iter().all(|node| node.peers() == sessions)).await;
    nodes
}

fn counter(node: &Node, of: fn(&::actors::counters::Counters) -> &AtomicU64) -> u64 {
    of(&node.counters).load(Ordering::SeqCst)
}

/// Sends `count` requests, at most 40, to each node at the same time. All prompts differ, so that no node has one in its prefix cache. Returns
/// how many prompts of each node a peer prefilled. All answers must have the tokens that the prompts lead to, so that they equal those of a
/// node alone.
async fn load(nodes: &[Node], count: u64, tokens: fn(u64) -> u32) -> Vec<u64> {
    let mut sources = Vec::new();
    for n in 0..count {
        for (of, node) in nodes.iter().enumerate() {
            let request = 40 * of as u64 + n;
            sources.push((of, request, tokens(n), ask(node, request, tokens(n), 9).await));
        }
    }
    let mut by_peers = vec![0; nodes.len()];
    for (of, request, tokens, source) in sources {
        let timings = answer(source, request, tokens).await.expect("the request succeeds");
        by_peers[of] += u64::from(timings.disaggregated);
    }
    by_peers
}

#[actix::test]
async fn two_nodes_prefill_for_each_other_at_the_same_time() {
    for ring_pages in [1, 3, 64] {
        let nodes = mesh(2, 1000, ring_pages).await;
        assert_eq!(load(&nodes, 16, |request| 1 + request as u32 * 7).await, [16, 16]);
        for node in nodes {
            assert_eq!(counter(&node, |of| of.recomputes()), 0);
            assert_eq!(counter(&node, |of| of.sessions_opened()), 2);
            node.shut_down(PATIENCE).await;
        }
    }
}

#[actix::test]
async fn nodes_with_pools_for_two_prompts_do_not_wait_for_each_other() {
    // A quota of 22 pages, and 22 pages for a request.
    let nodes = mesh(3, 46, 2).await;
    assert_eq!(nodes[0].request_pages, 22);
    let by_peers = load(&nodes, 24, |request| 40 + request as u32 % 3 * 20).await;
    assert!(by_peers.iter().all(|count| *count > 0), "{by_peers:?}");
    for node in &nodes {
        assert!(node.streams.is_empty());
        until("no page is held", || {
            counter(node, |of| of.pages_live()) + counter(node, |of| of.prefills_live()) == 0
        })
        .await;
    }
}

#[actix::test]
async fn a_node_that_lists_only_itself_serves_alone() {
    let nodes = mesh(1, 64, 4).await;
    assert_eq!(load(&nodes, 4, |_| 60).await, [0]);
    assert_eq!(counter(&nodes[0], |of| of.sessions_opened()), 0);
}

/// The sender prefills for the node, and the node prefills for the receiver.
#[actix::test]
async fn a_node_works_beside_a_sender_and_a_receiver() {
    let (of_receiver, receivers) = listener();
    let (of_node, address) = listener();
    let receiver = start(receiver_at(of_receiver), 1000, 4);
    let node = start(node_at(of_node, vec![receivers]), 1000, 4);
    let sender = start(sender_to(address), 1000, 1);
    until("all are ready", || (receiver.peers(), node.peers(), sender.peers()) == (1, 2, 1)).await;
    let nodes = [receiver, node];
    assert_eq!(load(&nodes, 12, |request| 20 + request as u32 * 5).await, [12, 12]);
    let [receiver, node] = nodes;
    sender.shut_down(PATIENCE).await;
    until("the node has noticed", || node.peers() == 1).await;
    assert_eq!(receiver.peers(), 1, "the end of the sender leaves the other session");
    let timings = answer(ask(&receiver, 99, 60, 5).await, 99, 60).await.expect("the request succeeds");
    assert!(timings.disaggregated);
}

/// A node that shuts down finishes its requests, also those that its peer prefills.
#[actix::test]
async fn a_node_that_shuts_down_finishes_its_requests() {
    let mut nodes = mesh(2, 1000, 4).await;
    let (second, first) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    let mut sources = Vec::new();
    for request in 0..16 {
        sources.push((request, ask(&first, request, 60, 40).await));
        sources.push((request, ask(&second, request, 60, 40).await));
    }
    let counters = first.counters.clone();
    first.shut_down(PATIENCE).await;
    for (request, source) in sources {
        answer(source, request, 60).await.expect("the request succeeds");
    }
    assert_eq!(counters.recomputes().load(Ordering::SeqCst), 0, "a session ended before its requests");
    until("the other has noticed", || second.peers() == 0).await;
    assert_eq!(load(std::slice::from_ref(&second), 4, |_| 60).await, [0]);
}

#[actix::test]
async fn two_nodes_that_shut_down_at_once_finish_their_requests() {
    let mut nodes = mesh(2, 1000, 4).await;
    let (second, first) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    let mut sources = Vec::new();
    for request in 0..16 {
        sources.push((request, ask(&first, request, 60, 40).await));
        sources.push((request, ask(&second, request, 60, 40).await));
    }
    tokio::join!(first.shut_down(PATIENCE), second.shut_down(PATIENCE));
    for (request, source) in sources {
        answer(source, request, 60).await.expect("the request succeeds");
    }
}

/// The node has one session, with a receiver, and may have no other. A sender waits until that session is idle.
#[actix::test]
async fn an_idle_session_makes_room_for_a_peer_that_waits() {
    let (of_receiver, receivers) = listener();
    let (of_node, address) = listener();
    let receiver = start(receiver_at(of_receiver), 1000, 4);
    let limits = SessionLimits { sessions: 1, idle: Duration::from_millis(100) };
    let node = start(Ends { limits, ..node_at(of_node, vec![receivers]) }, 1000, 4);
    until("the receiver has a session", || receiver.peers() == 1 && node.peers() == 1).await;
    let sender = start(sender_to(address), 1000, 1);
    until("the sender has a session", || sender.peers() == 1).await;
    until("the receiver has none", || receiver.peers() == 0).await;
    until("the session is the second of the node", || {
        node.peers() == 1 && counter(&node, |of| of.sessions_opened()) == 2
    })
    .await;
    assert_eq!(load(&[receiver, node], 4, |_| 60).await, [0, 4]);
}
