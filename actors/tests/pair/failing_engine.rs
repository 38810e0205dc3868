//! Engines that fail for a while, and engines whose GPU is lost.

use engine::CudaError;

use super::*;

/// An error after which the process cannot use the GPU.
fn sticky() -> EngineError {
    EngineError::Device(CudaError::of_status("cuEventQuery", 700))
}

/// An error after which the GPU may work again.
fn passing() -> EngineError {
    EngineError::Device(CudaError::of_status("cuMemAlloc", 2))
}

/// A receiver and a sender that are ready, and the faults of each.
async fn damaged_pair() -> ((Node, Damage), (Node, Damage)) {
    let (of_receiver, of_sender) = (Damage::default(), Damage::default());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start_with(receiver_at(listener), 64, 4, &of_receiver);
    let sender = start_with(sender_to(address), 64, 1, &of_sender);
    until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
    ((receiver, of_receiver), (sender, of_sender))
}

fn fail(damage: &Damage, error: Option<EngineError>) {
    *damage.engine.lock().expect("the thread did not panic") = error;
}

/// Waits until the node reports why it ends and all its sessions are over.
async fn ends(node: &Node) {
    let fault = tokio::time::timeout(PATIENCE, node.faults.wait()).await.expect("it ends");
    for words in ["the GPU failed: cuEventQuery failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)", "restart it"] {
        assert!(fault.contains(words), "{fault}");
    }
    assert_eq!(node.health.fault(), Some(fault));
    until("its sessions are over", || node.peers() == 0).await;
}

#[actix::test]
async fn a_sender_that_loses_its_gpu_costs_no_request_and_ends() {
    let ((receiver, _), (sender, damage)) = damaged_pair().await;
    let mut sources = Vec::new();
    for request in 0..8 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    until("it prefills", || sender.counters.prefills_live().load(Ordering::SeqCst) > 0).await;
    fail(&damage, Some(sticky()));
    sources.push((8, ask(&receiver, 8, 60, 5).await));
    for (request, source) in sources {
        answer(source, request, 60).await.expect("prefilled there or here");
    }
    // The engine would work again, but after a lost GPU it is not called any more.
    fail(&damage, None);
    let error = answer(ask(&sender, 20, 8, 2).await, 20, 8).await.expect_err("its engine is lost");
    assert_eq!(error, RequestError::Engine(sticky().to_string()));
    ends(&sender).await;
    until("the receiver has noticed", || receiver.peers() == 0).await;
    assert_eq!(receiver.counters.engine_failures().load(Ordering::SeqCst), 0);
    assert!(receiver.health.fault().is_none());
    sender.shut_down(PATIENCE).await;
    let timings = answer(ask(&receiver, 9, 60, 5).await, 9, 60).await.expect("the request succeeds");
    assert!(!timings.disaggregated);
}

#[actix::test]
async fn a_receiver_that_loses_its_gpu_fails_its_requests_and_ends() {
    let ((receiver, damage), (sender, _)) = damaged_pair().await;
    let mut sources = Vec::new();
    for request in 0..8 {
        sources.push((request, ask(&receiver, request, 60, 150).await));
    }
    fail(&damage, Some(sticky()));
    for (request, source) in sources {
        let error = answer(source, request, 60).await.expect_err("it cannot decode");
        assert_eq!(error, RequestError::Engine(sticky().to_string()));
    }
    ends(&receiver).await;
    until("the sender has noticed", || sender.peers() == 0).await;
    receiver.shut_down(PATIENCE).await;
    assert!(sender.faults.fault().is_none(), "a sender waits for another receiver");
}

#[actix::test]
async fn a_sender_whose_prefills_fail_is_left_out_until_one_succeeds() {
    let ((receiver, _), (sender, damage)) = damaged_pair().await;
    fail(&damage, Some(passing()));
    for request in 0..50 {
        let timings =
            answer(ask(&receiver, request, 60, 2).await, request, 60).await.expect("the request succeeds");
        assert!(!timings.disaggregated);
    }
    let recomputes = receiver.counters.recomputes().load(Ordering::SeqCst);
    assert!((1..10).contains(&recomputes), "{recomputes} of 50 requests went to a sender that fails");
    assert!(sender.faults.fault().is_none() && sender.health.fault().is_none());
    fail(&damage, None);
    let end = Instant::now() + PATIENCE;
    for request in 50.. {
        assert!(Instant::now() < end, "a sender that works again gets no prompts");
        let timings =
            answer(ask(&receiver, request, 60, 2).await, request, 60).await.expect("the request succeeds");
        if timings.disaggregated {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
