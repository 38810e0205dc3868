use std::time::Duration;

use actors::messages::{CacheEvent, PrefixHash};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

/// Time within which everything must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A publisher, the queue to it, and the addresses of its ports.
struct Publisher {
    batches: mpsc::Sender<CacheBatch>,
    publish: std::net::SocketAddr,
    replay: std::net::SocketAddr,
}

impl Publisher {
    fn start() -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = KvEventPorts { publish: bind(), replay: bind() };
        let address = |socket: &TcpListener| socket.local_addr().unwrap();
        let (publish, replay) = (address(&sockets.publish), address(&sockets.replay));
        let (batches, queue) = mpsc::channel(QUEUE);
        let source = EventSource { pod: "10.0.0.1:8200".to_owned(), model: "m".to_owned(), page_tokens: 2 };
        super::publish(sockets, source, queue).unwrap();
        Self { batches, publish, replay }
    }

    async fn send(&self, sequence: u64) {
        self.batches.send(batch(sequence, vec![CacheEvent::Cleared])).await.unwrap();
    }
}

const TOPIC: &[u8] = b"kv@10.0.0.1:8200@m";

fn batch(sequence: u64, events: Vec<CacheEvent>) -> CacheBatch {
    let at = std::time::UNIX_EPOCH + Duration::from_millis(1_500);
    CacheBatch { sequence, at, events }
}

/// A client with a ZeroMQ socket, byte by byte.
struct Client(TcpStream);

impl Client {
    async fn connect(address: std::net::SocketAddr, socket: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut theirs = [0; 64];
        stream.read_exact(&mut theirs).await.unwrap();
        assert_eq!((theirs[0], theirs[9], &theirs[10..17]), (0xff, 0x7f, &b"\x03\0NULL\0"[..]));
        stream.write_all(&theirs).await.unwrap();
        let mut client = Self(stream);
        let value = [&[0, 0, 0, socket.len() as u8], socket.as_bytes()].concat();
        let properties = [b"\x08Identity\0\0\0\0\x0bSocket-Type", &value[..]].concat();
        client.send(&zmtp::command(b"READY", &properties)).await;
        client
    }

    async fn ready(address: std::net::SocketAddr, socket: &str) -> Self {
        let mut client = Self::connect(address, socket).await;
        let (flags, body) = client.frame().await.unwrap();
        assert_eq!((flags, &body[..6]), (4, &b"\x05READY"[..]));
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let read = async {
            let flags = self.0.read_u8().await?;
            let length =
                if flags & 2 == 0 { self.0.read_u8().await?.into() } else { self.0.read_u64().await? };
            let mut body = vec![0; length as usize];
            self.0.read_exact(&mut body).await?;
            Ok((flags & !2, body))
        };
        timeout(PATIENCE, read).await.unwrap()
    }

    async fn message(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame().await.unwrap();
            frames.push(body);
            if flags == 0 {
                return frames;
            }
        }
    }

    /// Waits until all earlier messages of this client have been handled.
    async fn settle(&mut self) {
        self.send(&zmtp::command(b"PING", b"\0\0here")).await;
        assert_eq!(self.frame().await.unwrap(), (4, b"\x04PONGhere".to_vec()));
    }

    async fn subscribe(&mut self, topic: &[u8]) {
        self.send(&zmtp::message(&[&[b"\x01", topic].concat()])).await;
        self.settle().await;
    }

    async fn sequence(&mut self) -> u64 {
        let frames = self.message().await;
        assert_eq!((frames.len(), &*frames[0]), (3, TOPIC));
        u64::from_be_bytes(frames[1][..].try_into().unwrap())
    }

    /// The sequence numbers that a replay sends.
    async fn replay(&mut self, from: u64) -> Vec<u64> {
        self.send(&zmtp::message(&[b"", &from.to_be_bytes()])).await;
        let mut sequences = Vec::new();
        loop {
            let frames = self.message().await;
            assert_eq!((frames.len(), frames[0].len()), (4, 0));
            if frames[3].is_empty() {
                assert_eq!((&frames[1][..], &frames[2][..]), (&b""[..], &[0xff; 8][..]));
                return sequences;
            }
            assert_eq!(frames[1], TOPIC);
            sequences.push(u64::from_be_bytes(frames[2][..].try_into().unwrap()));
        }
    }

    async fn is_cut(&mut self) -> bool {
        while let Ok((flags, _)) = self.frame().await {
            assert_eq!(flags, 4, "only commands come before the end");
        }
        true
    }
}

/// The bytes are those of vLLM 0.33's own encoder for the same batch, except that msgspec writes the size of a map with optional fields in three
/// bytes.
#[test]
fn a_batch_has_the_bytes_of_vllm() {
    let hashes = vec![PrefixHash(7), PrefixHash(u64::MAX)];
    let stored =
        |parent| CacheEvent::Stored { parent, hashes: hashes.clone(), tokens: vec![1, 127, 128, 70_000] };
    let events = vec![
        CacheEvent::Cleared,
        stored(None),
        stored(Some(PrefixHash(1 << 40))),
        CacheEvent::Removed { hashes: hashes.clone() },
    ];
    let hex: String =
        message::encode(&batch(3, events), 2).iter().map(|byte| format!("{byte:02x}")).collect();
    let expect = include_str!("tests/vllm_batch.hex").trim();
    assert_eq!(hex, expect.replace("de0008", "88"));
}

#[tokio::test]
async fn subscribers_get_the_batches_after_their_subscription() {
    let publisher = Publisher::start();
    publisher.send(0).await;
    let mut replay = Client::ready(publisher.replay, "REQ").await;
    while replay.replay(0).await.is_empty() {}
    let (mut all, mut other) =
        (Client::ready(publisher.publish, "SUB").await, Client::ready(publisher.publish, "XSUB").await);
    all.subscribe(b"").await;
    other.subscribe(b"kv@10.0.0.2").await;
    other.subscribe(b"kv@10.0.0.1:8200@").await;
    publisher.send(1).await;
    publisher.send(4).await;
    assert_eq!([all.sequence().await, all.sequence().await], [1, 4]);
    assert_eq!(other.sequence().await, 1);
    assert_eq!(other.sequence().await, 4);
    // Without a subscription to the topic, nothing comes.
    other.send(&zmtp::message(&[b"\0kv@10.0.0.1:8200@"])).await;
    other.settle().await;
    publisher.send(5).await;
    assert_eq!(all.sequence().await, 5);
    other.settle().await;
    other.subscribe(b"kv@").await;
    publisher.send(6).await;
    assert_eq!(other.sequence().await, 6);
}

#[tokio::test]
async fn a_replay_sends_the_batches_from_a_number_on() {
    let publisher = Publisher::start();
    for sequence in [0, 1, 2, 5, 6] {
        publisher.send(sequence).await;
    }
    let mut dealer = Client::ready(publisher.replay, "DEALER").await;
    while dealer.replay(0).await.len() < 5 {}
    assert_eq!(dealer.replay(0).await, [0, 1, 2, 5, 6]);
    assert_eq!(dealer.replay(3).await, [5, 6]);
    assert_eq!(dealer.replay(7).await, [0; 0]);
    dealer.settle().await;
}

/// A length of 2^62 bytes is refused before memory is allocated for it. So are messages that no subscriber or client of a replay sends.
#[tokio::test]
async fn a_peer_that_sends_nonsense_is_disconnected_alone() {
    let publisher = Publisher::start();
    let mut healthy = Client::ready(publisher.publish, "SUB").await;
    healthy.subscribe(b"").await;
    let huge = [&[2], &(1u64 << 62).to_be_bytes()[..]].concat();
    let many = zmtp::message(&[b"", b"", b"", b"", b""]);
    let subscriptions = (0..65).flat_map(|_| zmtp::message(&[b"\x01"])).collect();
    for (socket, bytes) in [
        ("SUB", huge.clone()),
        ("SUB", many.clone()),
        ("SUB", zmtp::message(&[b"\x02"])),
        ("SUB", subscriptions),
        ("DEALER", huge.clone()),
        ("DEALER", zmtp::message(&[b"", b"seven.."])),
        ("DEALER", zmtp::message(&[b"12345678"])),
    ] {
        let address = if socket == "SUB" { publisher.publish } else { publisher.replay };
        let mut peer = Client::ready(address, socket).await;
        peer.send(&bytes).await;
        assert!(peer.is_cut().await, "{socket} {bytes:?}");
    }
    // Wrong types of sockets, and other protocols.
    for (address, socket) in [(publisher.publish, "DEALER"), (publisher.replay, "SUB")] {
        assert!(Client::connect(address, socket).await.is_cut().await, "{socket}");
    }
    for text in ["GET / HTTP/1.1\r\nhost: a\r\naccept: */*\r\nuser-agent: a program that asks\r\n\r\n"] {
        let mut peer = Client(TcpStream::connect(publisher.publish).await.unwrap());
        peer.send(text.as_bytes()).await;
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, peer.0.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest.len(), 64, "only the greeting");
    }
    publisher.send(0).await;
    assert_eq!(healthy.sequence().await, 0);
}

/// A subscriber that reads nothing delays no other one.
#[tokio::test]
async fn a_subscriber_that_does_not_read_delays_no_other() {
    let publisher = Publisher::start();
    let mut idle = Client::ready(publisher.publish, "SUB").await;
    idle.subscribe(b"").await;
    let mut reader = Client::ready(publisher.publish, "SUB").await;
    reader.subscribe(b"").await;
    // More than the buffers of a connection hold, and more than the history.
    let tokens = vec![70_000; 400_000];
    for sequence in 0..60 {
        let events = vec![CacheEvent::Stored { parent: None, hashes: Vec::new(), tokens: tokens.clone() }];
        publisher.batches.send(batch(sequence, events)).await.unwrap();
        assert_eq!(reader.sequence().await, sequence);
    }
    let (first, mut last) = (idle.sequence().await, 0);
    assert_eq!(first, 0);
    let mut count = 1;
    while last < 59 {
        let next = idle.sequence().await;
        assert!(next > last, "{next} after {last}");
        (last, count) = (next, count + 1);
    }
    assert!(count < 60, "it missed batches, as its sequence numbers show");
}
