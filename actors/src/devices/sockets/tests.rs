use std::sync::Mutex;

use connector::transport::ShardDescriptor;

use super::*;

/// Replaces the peer link and records its messages.
struct Recorder(Arc<Mutex<Vec<ToPeerLink>>>);

impl Actor for Recorder {
    type Context = Context<Self>;
}

impl Handler<ToPeerLink> for Recorder {
    type Result = ();

    fn handle(&mut self, message: ToPeerLink, _: &mut Context<Self>) {
        self.0.lock().expect("the lock is not poisoned").push(message);
    }
}

fn identity() -> Identity {
    let shape = KvShape {
        model: "m".into(),
        fingerprint: [1; 32],
        layers: 1,
        kv_heads: 1,
        head_dim: 16,
        page_tokens: 16,
        dtype: "f32".into(),
        scale: "1".into(),
        page_bytes: 4096,
        page_hash: true,
        shards: 1,
    };
    Identity {
        incarnation: Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 },
        versions: Versions::OURS,
        shape,
        secret: None,
        tls: None,
        ring_pages: 4,
        capabilities: Capabilities { prefill: false, decode: true },
        http: String::new(),
    }
}

/// Connects as a peer: sends a Hello and returns the link after the Welcome.
async fn say_hello(address: String) -> Link {
    let (mut link, _) = Link::dial(&address, Versions::OURS, None).await.expect("the sockets listen");
    let Identity { incarnation, shape, capabilities, http, .. } = identity();
    let hello = Hello {
        versions: Versions::OURS,
        version: Versions::OURS.highest,
        incarnation,
        capabilities,
        http,
        session: 1,
        previous: 0,
        previous_drained: true,
        shape,
        nonce: link.nonces().dialer,
        proof: None,
    };
    link.hello(hello, None).await.expect("the Hello is accepted");
    link
}

#[actix::test]
async fn a_peer_that_reads_no_frames_is_disconnected_before_a_frame_is_lost() {
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let sockets = Sockets::new(identity(), Recorder(recorded.clone()).start().recipient());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let listening = actix::spawn(sockets.clone().listen(listener));
    let peer = actix::spawn(say_hello(address));
    let connection = loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(ToPeerLink::HelloCame(came)) = recorded.lock().expect("the lock is not poisoned").first()
        {
            break came.connection;
        }
    };
    let session = SessionId(1);
    let shard = ShardDescriptor { worker_address: vec![], rkey: vec![], base: 0, bytes: 0 };
    let descriptor = Descriptor { transport: "t".into(), shards: vec![shard] };
    sockets.deliver(SayWelcome { connection, session, descriptor }.into());
    let write = |pages| {
        let frame = Frame::RingShare { pages };
        sockets.deliver(WriteFrame { session, connection, frame }.into());
    };
    // The task that writes the frames has not run yet, so one frame more than fits overflows the queue.
    (0..FRAMES_WAITING as u32 + 1).for_each(write);
    let (_, mut reader) = peer.await.expect("the handshake ends").split();
    write(u32::MAX);
    let mut expect = 0;
    let end = loop {
        match reader.next().await {
            Ok(Frame::RingShare { pages }) => assert_eq!(pages, expect, "no frame is missing"),
            Ok(frame) => panic!("{frame:?}"),
            Err(error) => break error,
        }
        expect += 1;
    };
    assert!(!matches!(end, LinkError::Goodbye), "the connection ends without a goodbye");
    let reason = format!("peer reads too slowly: {FRAMES_WAITING} frames wait for it");
    let ended = ToPeerLink::LinkEnded(LinkEnded { session, end: LinkEnd::Broken(reason) });
    assert_eq!(recorded.lock().expect("the lock is not poisoned")[1..], [ended]);
    listening.abort();
}
