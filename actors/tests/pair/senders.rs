//! Senders that end, are cut off, or come back.

use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::*;

/// Connects an accepted connection with `address` until the next `cut`.
async fn forward(mut inner: TcpStream, address: String, cut: Arc<Notify>) {
    let mut outer = TcpStream::connect(address).await.expect("the receiver listens");
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => {}
        () = cut.notified() => {}
    }
}

/// A TCP proxy to `address` for one connection. After `cut` it accepts no other one.
async fn proxy_once(address: String, cut: Arc<Notify>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let ours = listener.local_addr().expect("the socket is bound").to_string();
    actix::spawn(async move {
        let (inner, _) = listener.accept().await.expect("the connection is accepted");
        drop(listener);
        forward(inner, address, cut).await;
    });
    ours
}

/// A TCP proxy to `address`. Each `cut` closes all its connections; later ones are forwarded again.
async fn proxy_to(address: String, cut: Arc<Notify>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let ours = listener.local_addr().expect("the socket is bound").to_string();
    actix::spawn(async move {
        loop {
            let (inner, _) = listener.accept().await.expect("the connection is accepted");
            actix::spawn(forward(inner, address.clone(), cut.clone()));
        }
    });
    ours
}

#[actix::test]
async fn a_sender_that_ends_costs_no_request_and_another_takes_over() {
    let (receiver, sender, address) = pair(64, 2).await;
    let mut sources = Vec::new();
    for request in 0..8 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    sender.shut_down(Duration::ZERO).await;
    for (request, source) in sources {
        answer(source, request, 60).await.expect("prefilled there or here");
    }
    until("the receiver has noticed", || receiver.peers() == 0).await;
    let timings = answer(ask(&receiver, 10, 60, 5).await, 10, 60).await.expect("the request succeeds");
    assert!(!timings.disaggregated);
    let _sender = dial(&receiver, &address, 64).await;
    let timings = answer(ask(&receiver, 11, 60, 5).await, 11, 60).await.expect("the request succeeds");
    assert!(timings.disaggregated);
}

#[actix::test]
async fn a_receiver_serves_64_senders() {
    const SENDERS: u64 = 64;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start(receiver_at(listener), 400, SENDERS);
    let _senders: Vec<Node> = (0..SENDERS).map(|_| start(sender_to(address.clone()), 40, 1)).collect();
    until("all senders are ready", || receiver.peers() == SENDERS).await;
    let mut sources = Vec::new();
    for request in 0..2 * SENDERS {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    for (request, source) in sources {
        assert!(answer(source, request, 60).await.expect("the request succeeds").disaggregated);
    }
}

#[actix::test]
async fn a_sender_that_shuts_down_finishes_its_hand_overs() {
    let (receiver, first, address) = pair(64, 4).await;
    let second = start(sender_to(address), 64, 1);
    until("both senders are ready", || receiver.peers() == 2).await;
    let mut sources = Vec::new();
    for request in 0..16 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    until("the first has work", || first.counters.prefills_live().load(Ordering::SeqCst) > 0).await;
    until("the second has work", || second.counters.prefills_live().load(Ordering::SeqCst) > 0).await;
    first.shut_down(PATIENCE).await;
    for request in 16..20 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    let mut recomputed = 0;
    for (request, source) in sources {
        recomputed +=
            u64::from(!answer(source, request, 60).await.expect("the request succeeds").disaggregated);
    }
    // Only the requests that had not reached the first sender when it began to shut down were computed here.
    assert_eq!(recomputed, receiver.counters.recomputes().load(Ordering::SeqCst));
    assert!(recomputed < 8, "{recomputed} of the 8 requests of the first sender were cut");
    assert_eq!(receiver.peers(), 1);
}

#[actix::test]
async fn a_lost_sender_without_proof_disables_no_other_sender() {
    let foreign = Damage { foreign_writes: true, ..Damage::default() };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start_with(receiver_at(listener), 64, 4, &foreign);
    let quarantined = || receiver.counters.pages_quarantined().load(Ordering::SeqCst);
    // A sender that is cut off and cannot dial again gives no proof. Its process still runs: it is this one.
    let cut = Arc::new(Notify::new());
    let mute = start(sender_to(proxy_once(address.clone(), cut.clone()).await), 64, 1);
    until("it is ready", || receiver.peers() == 1).await;
    cut.notify_waiters();
    until("its pages are quarantined", || quarantined() == 4).await;
    // Quarantined pages count against the pool but not against the ring, so another sender serves as before.
    let next = dial(&receiver, &address, 64).await;
    for request in 0..3 {
        let timings =
            answer(ask(&receiver, request, 60, 5).await, request, 60).await.expect("the request succeeds");
        assert!(timings.disaggregated && quarantined() == 4, "{timings:?}");
    }
    for node in [mute, next, receiver] {
        node.shut_down(PATIENCE).await;
    }
}

#[actix::test]
async fn a_sender_that_leaves_returns_its_credits_first() {
    let foreign = Damage { foreign_writes: true, ..Damage::default() };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start_with(receiver_at(listener), 64, 4, &foreign);
    let ended = || receiver.counters.sessions_ended().load(Ordering::SeqCst);
    for left in 1..3 {
        let sender = start(sender_to(address.clone()), 64, 1);
        until("it is ready", || receiver.peers() == 1).await;
        sender.shut_down(PATIENCE).await;
        until("its session is over", || ended() == left && receiver.peers() == 0).await;
        assert_eq!(receiver.counters.pages_quarantined().load(Ordering::SeqCst), 0);
    }
    receiver.shut_down(PATIENCE).await;
}

#[actix::test]
async fn a_sender_that_dials_again_proves_that_its_last_session_has_drained() {
    let foreign = Damage { foreign_writes: true, ..Damage::default() };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start_with(receiver_at(listener), 64, 4, &foreign);
    let quarantined = || receiver.counters.pages_quarantined().load(Ordering::SeqCst);
    let cut = Arc::new(Notify::new());
    let address = proxy_to(address, cut.clone()).await;
    let sender = start(sender_to(address), 64, 1);
    for request in 0..5 {
        until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
        let timings =
            answer(ask(&receiver, request, 60, 5).await, request, 60).await.expect("the request succeeds");
        assert!(timings.disaggregated, "the sender dialled again and reported its last session as drained");
        assert_eq!(quarantined(), 0);
        let source = ask(&receiver, 100 + request, 60, 5).await;
        cut.notify_waiters();
        answer(source, 100 + request, 60).await.expect("prefilled there or here");
        until("the cut is seen", || receiver.counters.sessions_ended().load(Ordering::SeqCst) == request + 1)
            .await;
    }
}
