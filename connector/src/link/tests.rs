use tokio::net::TcpListener;

use super::*;
use crate::frame::{Capabilities, KvShape};
use crate::ring::{CreditNumber, PageIndex};
use crate::transport::{Descriptor, ShardDescriptor};

const LISTENER: Incarnation = Incarnation { pid: 2, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 };

/// Dials and sends this Hello.
async fn dial(address: &str, hello: Hello, secret: Option<&str>) -> Result<(Link, Box<Welcome>), LinkError> {
    let (mut link, _) = Link::dial(address, Versions::OURS, None).await?;
    let welcome = link.hello(hello, secret).await?;
    Ok((link, welcome))
}

fn shape(fingerprint: u8) -> KvShape {
    KvShape {
        model: "m".into(),
        fingerprint: [fingerprint; 32],
        layers: 2,
        kv_heads: 1,
        head_dim: 16,
        page_tokens: 16,
        dtype: "f32".into(),
        scale: "1".into(),
        page_bytes: 4096,
        page_hash: true,
        shards: 1,
    }
}

fn hello(fingerprint: u8) -> Hello {
    Hello {
        versions: Versions::OURS,
        version: Versions::OURS.highest,
        incarnation: Incarnation { pid: 1, start_ticks: 2, boot: 3, pid_namespace: 4, random: 5 },
        capabilities: Capabilities { prefill: true, decode: false },
        http: "127.0.0.1:8100".into(),
        session: 1,
        previous: 0,
        previous_drained: true,
        shape: shape(fingerprint),
        nonce: nonce().expect("random bytes"),
        proof: None,
    }
}

fn welcome(nonces: Nonces, secret: Option<&str>) -> Welcome {
    let shard = ShardDescriptor { worker_address: vec![1], rkey: vec![2], base: 4096, bytes: 8192 };
    let descriptor = Descriptor { transport: "loopback".into(), shards: vec![shard] };
    Welcome {
        incarnation: LISTENER,
        shape: shape(7),
        descriptor,
        ring_pages: 2,
        proof: nonces.prove(secret, Prover::Listener),
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    (listener, address)
}

async fn serve(listener: TcpListener, secret: Option<&'static str>) -> Result<Link, LinkError> {
    let (stream, _) = listener.accept().await?;
    let (mut link, _) = Link::accept(stream, Versions::OURS, LISTENER, &shape(7), secret, None).await?;
    link.welcome(welcome(link.nonces(), secret)).await?;
    Ok(link)
}

/// A handshake. Each side's result is "up" or its error.
async fn shake_hands(
    ours: Option<&'static str>,
    theirs: Option<&'static str>,
    model: u8,
) -> (String, String) {
    let (listener, address) = listener().await;
    let (served, dialled) = tokio::join!(serve(listener, ours), dial(&address, hello(model), theirs));
    let text = |error: Option<LinkError>| error.map_or_else(|| "up".to_owned(), |error| error.to_string());
    (text(served.err()), text(dialled.err()))
}

#[tokio::test]
async fn handshakes() {
    assert_eq!(shake_hands(None, None, 7).await, ("up".into(), "up".into()));
    assert_eq!(shake_hands(Some("s"), Some("s"), 7).await, ("up".into(), "up".into()));
    for (ours, theirs) in [(Some("s"), None), (Some("s"), Some("t"))] {
        let (served, dialled) = shake_hands(ours, theirs, 7).await;
        assert!(served.contains("link.secret") && dialled.contains("link.secret"), "{served} / {dialled}");
    }
    let (_, dialled) = shake_hands(None, Some("s"), 7).await;
    assert!(
        dialled.contains("link.secret"),
        "the listener has no secret, so the dialer refuses it: {dialled}"
    );
    let (served, dialled) = shake_hands(None, None, 8).await;
    assert!(served.contains("same --model") && dialled.contains("same --model"), "{served} / {dialled}");
}

/// A question is refused like a Hello that does not fit, and by the size 0 if all else fits. No session begins.
#[tokio::test]
async fn a_question_is_answered_without_a_session() {
    let ask = async |ours: Option<&'static str>, theirs: Option<&'static str>, model: u8| {
        let (listener, address) = listener().await;
        let question = async {
            let (link, _) = Link::dial(&address, Versions::OURS, None).await?;
            link.ask(hello(model), theirs).await
        };
        let (served, asked) = tokio::join!(serve(listener, ours), question);
        let Err(LinkError::Incompatible(reason)) = served else { panic!("a session has begun") };
        (reason.is_question(), asked.map_err(|error| error.to_string()))
    };
    assert_eq!(ask(None, None, 7).await, (true, Ok(())));
    assert_eq!(ask(Some("s"), Some("s"), 7).await, (true, Ok(())));
    assert_eq!(ask(None, Some("s"), 7).await, (true, Ok(())), "a listener without a secret accepts any");
    for (ours, theirs, model, expect) in [
        (Some("s"), Some("t"), 7, "link.secret"),
        (Some("s"), None, 7, "link.secret"),
        (None, None, 8, "same --model"),
    ] {
        let (is_question, asked) = ask(ours, theirs, model).await;
        assert!(!is_question && asked.as_ref().is_err_and(|text| text.contains(expect)), "{asked:?}");
    }
}

#[tokio::test]
async fn a_dialer_on_this_host_is_found_by_the_kernel() {
    let (listener, address) = listener().await;
    let (served, dialled) = tokio::join!(serve(listener, None), dial(&address, hello(7), None));
    let (mut served, _dialled) = (served.expect("the link comes up"), dialled.expect("the link comes up"));
    let dialer = served.take_dialer().expect("the dialer is this process");
    let gone = timeout(Duration::from_millis(50), dialer.gone()).await;
    assert!(gone.is_err(), "the dialer is alive");
}

/// Accepts a dialer without a presence socket, like one on another host. The dialer hangs up after its Hello if `ends`, or waits.
async fn accept_without_presence(incarnation: Incarnation, ends: bool) -> Result<Option<Pidfd>, LinkError> {
    let (listener, address) = listener().await;
    let dialer = async {
        let stream = TcpStream::connect(&address).await?;
        let mut link = Link::new(
            LinkStream::Plain(stream),
            Versions::OURS,
            Nonces { listener: [0; 32], dialer: [0; 32] },
        )?;
        link.receive::<Challenge>().await?;
        link.send(&Hello { incarnation, ..hello(7) }).await?;
        Ok::<_, LinkError>((!ends).then_some(link))
    };
    let listening = async {
        let (stream, _) = listener.accept().await?;
        if ends {
            stream.readable().await?;
        }
        Link::accept(stream, Versions::OURS, LISTENER, &shape(7), None, None).await
    };
    let (dialled, accepted) = tokio::join!(dialer, listening);
    let _open = dialled?;
    Ok(accepted?.0.take_dialer())
}

/// A peer on a clone of this machine has the same boot id and PID namespace, and any process id and start time.
#[tokio::test]
async fn an_incarnation_alone_does_not_identify_a_process() {
    let ours = Incarnation::current().expect("/proc can be read");
    for peer in [
        ours,
        Incarnation { pid: u32::MAX, ..ours },
        Incarnation { start_ticks: ours.start_ticks - 1, ..ours },
    ] {
        let dialer = accept_without_presence(peer, false).await.expect("accepted");
        assert!(dialer.is_none(), "{peer:?} was taken for a process of this host");
    }
}

#[tokio::test]
async fn a_dialer_that_has_already_ended_gets_no_session() {
    let ours = Incarnation::current().expect("/proc can be read");
    let error = accept_without_presence(ours, true).await.expect_err("refused");
    assert_eq!(error.kind(), "closed");
}

#[tokio::test]
async fn frames_flow_both_ways_and_goodbye_ends_them() {
    let (listener, address) = listener().await;
    let (served, dialled) = tokio::join!(serve(listener, None), dial(&address, hello(7), None));
    let (writer, mut reader) = served.expect("the link comes up").split();
    let (peer_writer, mut peer_reader) = dialled.expect("the link comes up").0.split();
    let (queue, source) = mpsc::channel(4);
    let (peer_queue, peer_source) = mpsc::channel(4);
    let writing = tokio::spawn(writer.run(source));
    let peer_writing = tokio::spawn(peer_writer.run(peer_source));
    let grant = Frame::Grant { first: CreditNumber(0), pages: vec![PageIndex(1)] };
    queue.send(grant.clone()).await.expect("the link is open");
    assert_eq!(peer_reader.next().await.expect("a frame arrives"), grant);
    let cancel = Frame::CancelPrefill { request: 4 };
    peer_queue.send(cancel.clone()).await.expect("the link is open");
    assert_eq!(reader.next().await.expect("a frame arrives"), cancel);
    drop(queue);
    assert_eq!(peer_reader.next().await.expect_err("the end").kind(), "goodbye");
    writing.await.expect("the thread did not panic").expect("the link ends cleanly");
    drop(peer_queue);
    assert_eq!(reader.next().await.expect_err("the end").kind(), "goodbye");
    let _ = peer_writing.await.expect("the thread did not panic");
}

#[tokio::test]
async fn both_sides_have_the_same_seed_and_another_session_has_another_seed() {
    let mut seeds = Vec::new();
    for _ in 0..2 {
        let (listener, address) = listener().await;
        let (served, dialled) = tokio::join!(serve(listener, None), dial(&address, hello(7), None));
        let (served, dialled) =
            (served.expect("the link comes up").nonces(), dialled.expect("the link comes up").0.nonces());
        assert_eq!(served.session_seed(), dialled.session_seed());
        seeds.push(served.session_seed());
    }
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn a_proof_is_valid_for_its_side_and_its_session_only() {
    let nonces = Nonces { listener: [1; 32], dialer: [2; 32] };
    let proof = nonces.prove(Some("s"), Prover::Dialer);
    let check = |nonces: Nonces, prover| nonces.check(Some("s"), prover, proof.as_ref());
    assert_eq!(check(nonces, Prover::Dialer), Ok(()));
    assert_eq!(check(nonces, Prover::Listener), Err(Incompatible::Secret), "sent back to its prover");
    let other = Nonces { dialer: [3; 32], ..nonces };
    assert_eq!(check(other, Prover::Dialer), Err(Incompatible::Secret), "used in another session");
}

#[tokio::test]
async fn a_socket_connected_to_itself_is_closed_and_frees_its_port() {
    let socket = tokio::net::TcpSocket::new_v4().expect("the socket can be created");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port is free");
    let address = socket.local_addr().expect("the socket is bound");
    let stream = socket.connect(address).await.expect("TCP lets a socket connect to itself");
    let error = LinkError::from(prepare(&stream).expect_err("refused"));
    drop(stream);
    assert!(error.to_string().contains("itself") && !error.is_permanent(), "{error}");
    TcpListener::bind(address).await.expect("the port is free, without TIME_WAIT");
}

#[tokio::test]
async fn a_peer_of_another_version_is_refused_with_the_reason() {
    let ours = Versions::OURS;
    for (theirs, expect) in [
        (Versions::new(1, ours.lowest - 1), "and the receiver version 14; upgrade the sender"),
        (Versions::new(ours.highest + 1, ours.highest + 3), "upgrade the receiver"),
    ] {
        let (listener, address) = listener().await;
        let other = async {
            let (mut link, _) = Link::dial(&address, Versions::OURS, None).await?;
            // A Hello of an unknown version: only its first 12 bytes can be decoded.
            let mut bytes = wire::encode(&theirs)?;
            bytes.extend([0xaa; 40]);
            link.socket.send(Bytes::from(bytes)).await?;
            link.receive::<Answer>().await
        };
        let (served, answer) = tokio::join!(serve(listener, None), other);
        let reason = served.err().expect("refused").to_string();
        assert!(reason.contains(expect), "{reason}");
        assert_eq!(answer.expect("an answer arrives"), Answer::Refused(reason));
    }
}

/// A listener without a common version is left with the reason.
#[tokio::test]
async fn a_listener_of_another_version_is_left_with_the_reason() {
    let ours = Versions::OURS;
    for (theirs, expect) in [
        (Versions::new(1, ours.lowest - 1), "the receiver versions 1 to 13; upgrade the receiver"),
        (Versions::new(ours.highest + 1, ours.highest + 3), "upgrade the sender"),
    ] {
        let (listener, address) = listener().await;
        let (served, dialled) = tokio::join!(
            async {
                let (stream, _) = listener.accept().await?;
                Link::accept(stream, theirs, LISTENER, &shape(7), None, None).await.map(drop)
            },
            Link::dial(&address, ours, None)
        );
        let error = dialled.err().expect("there is no common version");
        assert!(error.is_permanent() && error.to_string().contains(expect), "{error}");
        assert!(served.is_err(), "the dialer says no Hello");
    }
}

/// A build of the next version and one of the version before it work together, in both directions of dialling.
#[tokio::test]
async fn two_builds_use_the_highest_version_of_both() {
    let check = async |sender: Versions, receiver: Versions, expect: u32| {
        let (listener, address) = listener().await;
        let listening = async {
            let (stream, _) = listener.accept().await?;
            let (mut link, hello) = Link::accept(stream, receiver, LISTENER, &shape(7), None, None).await?;
            assert_eq!((hello.versions, hello.version), (sender, expect));
            link.welcome(welcome(link.nonces(), None)).await?;
            Ok::<_, LinkError>(link)
        };
        let dialling = async {
            let (mut link, _) = Link::dial(&address, sender, None).await?;
            link.hello(hello(7), None).await?;
            Ok::<_, LinkError>(link)
        };
        let (served, dialled) = tokio::join!(listening, dialling);
        let (served, dialled) = (served.expect("the link comes up"), dialled.expect("the link comes up"));
        assert_eq!((served.version(), dialled.version()), (expect, expect));
    };
    let (ours, newest) = (Versions::OURS, Versions::OURS.highest);
    check(ours, ours, newest).await;
    for other in [Versions::new(newest, newest + 1), Versions::new(1, newest)] {
        check(other, ours, newest).await;
        check(ours, other, newest).await;
    }
}

#[tokio::test]
async fn a_dialer_that_chooses_another_version_is_refused_with_the_reason() {
    let (listener, address) = listener().await;
    let other = async {
        let (mut link, _) = Link::dial(&address, Versions::OURS, None).await?;
        let version = Versions::OURS.highest + 1;
        link.send(&Hello { version, versions: Versions::new(1, version), ..hello(7) }).await?;
        link.receive::<Answer>().await
    };
    let (served, answer) = tokio::join!(serve(listener, None), other);
    let reason = served.err().expect("refused").to_string();
    assert!(reason.contains("instead of version"), "{reason}");
    assert_eq!(answer.expect("an answer arrives"), Answer::Refused(reason));
}

#[tokio::test]
async fn a_dialer_reads_the_challenge_of_a_later_version() {
    let (listener, address) = listener().await;
    let later = async {
        let (stream, _) = listener.accept().await?;
        let mut link = Link::new(
            LinkStream::Plain(stream),
            Versions::OURS,
            Nonces { listener: [0; 32], dialer: [0; 32] },
        )?;
        let versions = Versions::new(Versions::OURS.highest, Versions::OURS.highest + 5);
        let mut bytes = wire::encode(&Challenge { versions, nonce: [9; 32], incarnation: LISTENER })?;
        bytes.extend(b"appended later");
        link.socket.send(Bytes::from(bytes)).await?;
        link.receive::<Hello>().await
    };
    let dialer = async {
        let (mut link, challenge) = Link::dial(&address, Versions::OURS, None).await?;
        assert_eq!(challenge.incarnation, LISTENER);
        link.hello(hello(7), None).await
    };
    let (hello, _) = tokio::join!(later, dialer);
    assert_eq!(hello.expect("a Hello arrives").version, Versions::OURS.highest, "the highest common version");
}

#[tokio::test]
async fn an_http_request_is_refused() {
    let (listener, address) = listener().await;
    let client = async {
        let mut socket = TcpStream::connect(&address).await?;
        tokio::io::AsyncWriteExt::write_all(&mut socket, b"GET / HTTP/1.1\r\n\r\n").await?;
        Ok::<_, io::Error>(socket)
    };
    let (served, _socket) = tokio::join!(serve(listener, None), client);
    assert!(served.is_err(), "an HTTP request is not a Hello");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_link() {
    let (listener, address) = listener().await;
    let (served, dialled) = tokio::join!(serve(listener, None), dial(&address, hello(7), None));
    let (_writer, mut reader) = served.expect("the link comes up").split();
    let _quiet = dialled.expect("the link comes up");
    assert_eq!(reader.next().await.expect_err("nothing is sent").kind(), "silent");
}
