//! A receiver that may not prefill (`frontend.local` is `never`).

use ::actors::request::Refused;
use ::actors::routing::LocalPrefill;

use super::*;

#[actix::test]
async fn only_senders_prefill_and_another_one_replaces_a_sender_that_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let routing = RoutingConfig { local: LocalPrefill::Never, ..routing() };
    let receiver = start_compiling(receiver_at(listener), 64, 4, &Damage::default(), None, routing);
    let refused = Err(RequestError::Refused(Refused::NoPrefiller));
    assert_eq!(answer(ask(&receiver, 1, 60, 5).await, 1, 60).await.map(drop), refused);
    let first = dial(&receiver, &address, 64).await;
    let second = start(sender_to(address), 64, 1);
    until("both senders are ready", || receiver.peers() == 2).await;
    let mut sources = Vec::new();
    for request in 10..26 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    until("the first has work", || first.counters.prefills_live().load(Ordering::SeqCst) > 0).await;
    first.shut_down(Duration::ZERO).await;
    for (request, source) in sources {
        let timings = answer(source, request, 60).await.expect("a sender prefills it");
        assert!(timings.disaggregated);
    }
    assert_eq!(receiver.counters.recomputes().load(Ordering::SeqCst), 0);
    second.shut_down(PATIENCE).await;
    until("the receiver has noticed", || receiver.peers() == 0).await;
    assert_eq!(answer(ask(&receiver, 30, 60, 5).await, 30, 60).await.map(drop), refused);
}
