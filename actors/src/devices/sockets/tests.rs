use std::sync::Mutex;

use super::*;

/// Keeps what the peer link hears.
struct Ear(Arc<Mutex<Vec<ToPeerLink>>>);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<ToPeerLink> for Ear {
    type Result = ();

    fn handle(&mut self, message: ToPeerLink, _: &mut Context<Self>) {
        self.0.lock().expect("no test panics with it").push(message);
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
        page_bytes: 4096,
        page_hash: true,
    };
    Identity {
        incarnation: Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 },
        shape,
        secret: None,
        ring_pages: 4,
        receivers: Vec::new(),
        capabilities: Capabilities { prefill: false, decode: true },
        http: String::new(),
    }
}

/// A peer that has said Hello and waits for the Welcome.
async fn say_hello(address: String) -> Link {
    let (mut link, challenge) = Link::dial(&address).await.expect("it listens");
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
    link.hello(&challenge, hello, None).await.expect("it is welcome");
    link
}

#[actix::test]
async fn a_peer_that_takes_no_frames_is_cut_off_before_one_is_left_out() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sockets = Sockets::new(identity(), Ear(heard.clone()).start().recipient());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let listening = actix::spawn(sockets.clone().listen(listener));
    let peer = actix::spawn(say_hello(address));
    let connection = loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(ToPeerLink::HelloCame(came)) = heard.lock().expect("as above").first() {
            break came.connection;
        }
    };
    let session = SessionId(1);
    let descriptor =
        Descriptor { transport: "t".into(), worker_address: vec![], rkey: vec![], base: 0, bytes: 0 };
    sockets.deliver(SayWelcome { connection, session, descriptor }.into());
    let write = |pages| {
        let frame = Frame::RingShare { pages };
        sockets.deliver(WriteFrame { session, connection, frame }.into());
    };
    // The task that writes them has had no turn yet.
    (0..FRAMES_WAITING as u32 + 1).for_each(write);
    let (_, mut reader) = peer.await.expect("it ends").split();
    write(u32::MAX);
    let mut expect = 0;
    let end = loop {
        match reader.next().await {
            Ok(Frame::RingShare { pages }) => assert_eq!(pages, expect, "no frame is left out"),
            Ok(frame) => panic!("{frame:?}"),
            Err(error) => break error,
        }
        expect += 1;
    };
    assert!(!matches!(end, LinkError::Goodbye), "the session is not over in good order");
    let reason = format!("peer did not take {FRAMES_WAITING} frames");
    let ended = ToPeerLink::LinkEnded(LinkEnded { session, end: LinkEnd::Broken(reason) });
    assert_eq!(heard.lock().expect("as above")[1..], [ended]);
    listening.abort();
}
