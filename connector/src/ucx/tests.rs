//! A peer machine that does not answer blocks only its own session.

use super::blob::{self, Kind};
use super::{StartError, UcxConfig, UcxTransport};
use crate::memory::Region;
use crate::transport::{
    Command, Descriptor, Event, ShardDescriptor, Transport, TransportError, TransportSession,
};
use common::cache_folder;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use ucx_sys::CallError;
use ucx_sys::raw::{UCS_ERR_BUSY, UCS_ERR_UNREACHABLE};

const DEADLINE: Duration = Duration::from_secs(60);
const SILENT: TransportSession = TransportSession(1);
const OTHER: TransportSession = TransportSession(2);

fn transport() -> (UcxTransport, Receiver<Event>) {
    transport_over("tcp")
}

/// A transport with this list of `UCX_TLS`.
fn transport_over(tls: &str) -> (UcxTransport, Receiver<Event>) {
    let cache = cache_folder::locate(|name| std::env::var_os(name)).expect("HOME is set");
    let mut config = UcxConfig { search: vec![cache.join(cache_folder::UCX)], ..UcxConfig::default() };
    for (name, value) in &mut config.defaults {
        if name == "UCX_TLS" {
            *value = tls.to_owned();
        }
    }
    let (sink, events) = mpsc::channel();
    let sink = Box::new(move |batch: Vec<Event>| batch.into_iter().for_each(|event| drop(sink.send(event))));
    let transport = UcxTransport::start(vec![Region::host(4096)], &config, Box::new(|| ()), sink);
    (transport.expect("this test needs UCX; cargo xtask test fetches it"), events)
}

/// A listener that completes no TCP handshake, because its accept queue is full and nothing is accepted.
fn full_listener() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("the socket is bound");
    let mut queued = Vec::new();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            Ok(stream) => queued.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut, "behind {}: {error}", queued.len());
                return (listener, queued);
            }
        }
    }
}

/// The TCP ports on which this machine listens, from `/proc/net/tcp`.
fn listening() -> Vec<u16> {
    const LISTEN: &str = "0A";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table of TCP sockets");
    let port = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let &[_, local, _, LISTEN, ..] = fields.as_slice() else { return None };
        u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
    };
    table.lines().filter_map(port).collect()
}

/// `peer` with another port in its worker address. UCX stores the port in network byte order.
fn at_port(peer: &Descriptor, port: u16) -> Descriptor {
    let [shard] = peer.shards.as_slice() else { panic!("one region") };
    let of_peer = blob::open(Kind::Address, shard.base, shard.bytes, &shard.worker_address).expect("valid");
    let (mut address, ports) = (of_peer.to_vec(), listening());
    let is_port = |pair: &[u8]| ports.contains(&u16::from_be_bytes([pair[0], pair[1]]));
    let at = address.windows(2).rposition(is_port).expect("the peer's port is in its address");
    address[at..at + 2].copy_from_slice(&port.to_be_bytes());
    let worker_address = blob::seal(Kind::Address, shard.base, shard.bytes, &address).expect("same length");
    Descriptor { shards: vec![ShardDescriptor { worker_address, ..shard.clone() }], ..peer.clone() }
}

#[test]
fn an_error_about_an_unreachable_peer_names_the_setting() {
    let text = |status| {
        let error = CallError { call: "ucp_ep_create", status, text: "Destination is unreachable".into() };
        TransportError::from(error).to_string()
    };
    let expect = "ucp_ep_create failed: Destination is unreachable; set UCX_NET_DEVICES on both sides";
    assert!(text(UCS_ERR_UNREACHABLE).starts_with(expect), "{}", text(UCS_ERR_UNREACHABLE));
    assert!(!text(UCS_ERR_BUSY).contains("UCX_NET_DEVICES"));
}

/// The caller prints the causes of an error after it.
#[test]
fn the_text_of_a_start_error_does_not_contain_its_cause() {
    for error in [StartError::from(TransportError::Closed), StartError::from(std::io::Error::other("limit"))]
    {
        let cause = std::error::Error::source(&error).expect("it has a cause").to_string();
        assert!(!error.to_string().contains(&cause), "{error}");
    }
}

#[test]
fn closing_is_proof_in_every_session_if_all_transports_end_with_the_worker() {
    for (tls, expect) in [("tcp", true), ("self,tcp", true), ("posix,cma,tcp", false)] {
        assert_eq!(transport_over(tls).0.close_ends_writes(), expect, "{tls}");
    }
}

#[test]
fn a_peer_that_accepts_no_connection_blocks_its_own_session_only() {
    let (transport, events) = transport();
    let (listener, _queued) = full_listener();
    let submit = |command| transport.submit(command).expect("there is room");
    let next = || events.recv_timeout(DEADLINE).expect("an answer arrives");
    submit(Command::Open { session: SILENT });
    let Event::Opened { result: Ok(peer), .. } = next() else { panic!("no worker") };
    let peer = at_port(&peer, listener.local_addr().expect("the socket is bound").port());
    submit(Command::Connect { session: SILENT, peer });
    // Another session opens while that one waits.
    submit(Command::Open { session: OTHER });
    assert!(matches!(next(), Event::Opened { session: OTHER, result: Ok(_) }));
    let Event::Failed { session: SILENT, error } = next() else { panic!("the connect did not fail") };
    assert!(error.to_string().contains("the peer did not answer within"), "{error}");
    transport.shutdown();
}
