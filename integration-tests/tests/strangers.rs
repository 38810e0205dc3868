//! A connection to the link port that is not a sender causes one log line and has no other effect.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::Result;
use connector::frame::{Answer, Capabilities, Challenge, Hello, Incarnation, KvShape, Versions};
use connector::wire;
use integration_tests::client::{complete, metrics};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::process::{Event, Nodes, Pair, start_receiver, start_sender};
use serde_json::json;

/// A connection to the link port that uses its framing.
struct RawLink(TcpStream);

impl RawLink {
    fn open(address: &str) -> Result<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(STATE_WITHIN))?;
        Ok(Self(socket))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(&(bytes.len() as u32).to_be_bytes())?;
        Ok(self.0.write_all(bytes)?)
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn hello(versions: Versions) -> Hello {
    Hello {
        versions,
        version: versions.highest,
        incarnation: Incarnation { pid: 1, start_ticks: 1, boot: 1, pid_namespace: 1, random: 1 },
        capabilities: Capabilities { prefill: true, decode: false },
        http: String::new(),
        session: 1,
        previous: 0,
        previous_drained: true,
        shape: KvShape {
            model: "m\nwith a line of its own".into(),
            fingerprint: [0; 32],
            layers: 1,
            kv_heads: 1,
            head_dim: 32,
            page_tokens: 16,
            dtype: "f32".into(),
            scale: "1".into(),
            page_bytes: 1,
            page_hash: true,
            shards: 1,
        },
        nonce: [0; 32],
        proof: None,
    }
}

#[test]
fn strangers_are_logged_once_and_requests_go_on() -> Result<()> {
    let pair = Pair::start(&[])?;
    let link = pair.receiver.address("link.port")?;
    let expect = complete(&pair.frontend, &json!("The harbour was quiet"), 8)?.ids;
    let refused = |words: &[&str]| pair.receiver.wait_event(Event::ConnectionRefused, words).map(drop);

    let mut garbage = RawLink::open(&link)?;
    garbage.send(b"\xff\xff\xff\xff is no Hello")?;
    refused(&["does not speak baton's link protocol"])?;

    let mut short = RawLink::open(&link)?;
    short.send(b"BTON")?;
    refused(&["cannot be decoded"])?;

    let mut oversized = RawLink::open(&link)?;
    oversized.0.write_all(&u32::MAX.to_be_bytes())?;
    refused(&["frame size too big"])?;

    let mut older = RawLink::open(&link)?;
    let challenge: Challenge = wire::decode(&older.receive()?)?;
    older.send(&wire::encode(&hello(Versions::new(1, challenge.versions.lowest - 1)))?)?;
    refused(&["upgrade the sender"])?;
    let answer: Answer = wire::decode(&older.receive()?)?;
    assert!(
        matches!(&answer, Answer::Refused(reason) if reason.contains("upgrade the sender")),
        "{answer:?}"
    );

    let mut other = RawLink::open(&link)?;
    let challenge: Challenge = wire::decode(&other.receive()?)?;
    other.send(&wire::encode(&hello(challenge.versions))?)?;
    refused(&["m with a line of its own", "same --model"])?;

    let silent = RawLink::open(&link)?;
    refused(&["peer was silent for 5000 ms"])?;
    drop(silent);

    let lines = pair.receiver.count_events(Event::ConnectionRefused);
    assert_eq!(lines, 6, "not one line per connection:\n{}", pair.receiver.log());
    assert_eq!(metrics(&pair.frontend)?.get("baton_sessions_opened_total")?, 1, "{}", pair.receiver.log());
    let answer = complete(&pair.frontend, &json!("The harbour was quiet"), 8)?;
    assert_eq!(answer.ids, expect);
    assert_eq!(answer.timings["disaggregated"], true, "the pair no longer hands over: {}", answer.timings);
    Ok(())
}

#[test]
fn idle_connections_to_the_link_port_do_not_block_a_sender() -> Result<()> {
    let receiver = start_receiver(&[])?;
    let link = receiver.address("link.port")?;
    // Three times as many connections as may be in a handshake at once.
    let _crowd: Vec<TcpStream> = (0..48).map(|_| TcpStream::connect(&link)).collect::<Result<_, _>>()?;
    let sender = start_sender(&receiver, &[])?;
    sender.wait_peers(1)?;
    receiver.wait_peers(1)
}

/// Anyone who connects to a node learns its incarnation. Without the secret, a stranger cannot use it against another node.
#[test]
fn a_stranger_with_the_incarnation_of_a_peer_ends_no_session() -> Result<()> {
    let Nodes { nodes: [first, second], frontends } = Nodes::start(&["link.secret=s3cret"])?;
    let expect = complete(&frontends[1], &json!("The harbour was quiet"), 8)?.ids;
    let of_peer: Challenge = wire::decode(&RawLink::open(&first.address("link.port")?)?.receive()?)?;
    for proof in [None, Some([7; 32])] {
        let mut stranger = RawLink::open(&second.address("link.port")?)?;
        let challenge: Challenge = wire::decode(&stranger.receive()?)?;
        let incarnation = of_peer.incarnation;
        let claims = Hello { incarnation, session: 1 << 40, previous: 1, proof, ..hello(challenge.versions) };
        stranger.send(&wire::encode(&claims)?)?;
        let answer: Answer = wire::decode(&stranger.receive()?)?;
        assert!(matches!(&answer, Answer::Refused(reason) if reason.contains("secret")), "{answer:?}");
    }
    second.until("both are refused", || Ok(second.count_events(Event::ConnectionRefused) >= 2))?;
    let answer = complete(&frontends[1], &json!("The harbour was quiet"), 8)?;
    assert_eq!((answer.ids, &answer.timings["disaggregated"]), (expect, &json!(true)), "{}", answer.timings);
    assert_eq!(second.count_events(Event::ConnectionRefused), 2, "{}", second.log());
    let counters = metrics(&second.address("http.port")?)?;
    assert_eq!((counters.get("baton_sessions_opened_total")?, counters.get("baton_sessions_ready")?), (2, 2));
    Ok(())
}
