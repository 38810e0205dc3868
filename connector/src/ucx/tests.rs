//! What a machine that answers nothing may cost.

use super::blob::{self, Kind};
use super::{UcxConfig, UcxTransport};
use crate::memory::Region;
use crate::transport::{Command, Descriptor, Event, Transport, TransportSession};
use common::cache_folder;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const SILENT: TransportSession = TransportSession(1);
const OTHER: TransportSession = TransportSession(2);

fn transport() -> (UcxTransport, Receiver<Event>) {
    let cache = cache_folder::locate(|name| std::env::var_os(name)).expect("a home");
    let search = vec![cache.join(cache_folder::UCX)];
    let config = UcxConfig { search, ..UcxConfig::default() };
    let (sink, events) = mpsc::channel();
    let sink = Box::new(move |batch: Vec<Event>| batch.into_iter().for_each(|event| drop(sink.send(event))));
    let transport = UcxTransport::start(Region::host(4096), &config, Box::new(|| ()), sink);
    (transport.expect("UCX is needed here, run cargo xtask test to fetch it"), events)
}

/// A port that completes no handshake: its queue of connections is full, and nobody empties it.
fn silent() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
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

/// The ports on which this machine listens, as the kernel lists them.
fn listening() -> Vec<u16> {
    const LISTEN: &str = "0A";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let port = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let &[_, local, _, LISTEN, ..] = fields.as_slice() else { return None };
        u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
    };
    table.lines().filter_map(port).collect()
}

/// `peer` with another port in its address, which UCX keeps in the order of the network.
fn at_port(peer: &Descriptor, port: u16) -> Descriptor {
    let of_peer = blob::open(Kind::Address, peer.base, peer.bytes, &peer.worker_address).expect("whole");
    let (mut address, ports) = (of_peer.to_vec(), listening());
    let begin = |pair: &[u8]| ports.contains(&u16::from_be_bytes([pair[0], pair[1]]));
    let at = address.windows(2).rposition(begin).expect("the port of the peer");
    address[at..at + 2].copy_from_slice(&port.to_be_bytes());
    let worker_address = blob::seal(Kind::Address, peer.base, peer.bytes, &address).expect("as long");
    Descriptor { worker_address, ..peer.clone() }
}

#[test]
fn a_peer_that_takes_no_connection_holds_up_its_own_session_only() {
    let (transport, events) = transport();
    let (listener, _queued) = silent();
    let submit = |command| transport.submit(command).expect("room");
    let next = || events.recv_timeout(DEADLINE).expect("an answer");
    submit(Command::Open { session: SILENT });
    let Event::Opened { result: Ok(peer), .. } = next() else { panic!("no worker") };
    let peer = at_port(&peer, listener.local_addr().expect("bound").port());
    submit(Command::Connect { session: SILENT, peer });
    // Another session is served while that one waits.
    submit(Command::Open { session: OTHER });
    assert!(matches!(next(), Event::Opened { session: OTHER, result: Ok(_) }));
    let Event::Failed { session: SILENT, error } = next() else { panic!("its time is not up") };
    assert!(error.to_string().contains("no answer from the peer within"), "{error}");
    transport.shutdown();
}
