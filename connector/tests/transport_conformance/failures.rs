//! Commands that fail, and sides that close while puts are in flight.

use crate::side::{Kind, Side};
use connector::shards::SHARDS_MAX;
use connector::transport::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const MIB: u64 = 1 << 20;
const A: TransportSession = TransportSession(1);
const B: TransportSession = TransportSession(2);

pub(crate) fn invalid_puts_fail_with_an_event(kind: Kind) {
    let (mut sender, mut receiver) = (Side::start(kind, 8192), Side::start(kind, 4096));
    let early = sender.put(A, 0, 0, 1);
    assert_eq!(sender.result(early), Err(TransportError::NotConnected(1)));
    sender.open(B);
    let unconnected = sender.put(B, 0, 0, 1);
    assert_eq!(sender.result(unconnected), Err(TransportError::NotConnected(2)));
    assert_eq!(sender.flush(B), Err(TransportError::NotConnected(2)));
    let peer = receiver.open(A);
    sender.connect(A, &peer).expect("connects");
    for (local, remote, bytes, offset, region_bytes) in [
        (0, 0, 8193, 0, 8192),
        (8192, 0, 1, 8192, 8192),
        (0, 1, 4096, 1, 4096),
        (0, 4097, 0, 4097, 4096),
        (u64::MAX, 0, 2, u64::MAX, 8192),
        (0, u64::MAX, 2, u64::MAX, 4096),
    ] {
        let put = sender.put(A, local, remote, bytes);
        let refused = TransportError::OutOfRegion { offset, bytes, region_bytes };
        assert_eq!(sender.result(put), Err(refused));
    }
    // The session still works.
    sender.fill(4096, 4096, 9);
    let put = sender.put(A, 4096, 0, 4096);
    assert_eq!(sender.result(put), Ok(()));
    assert_eq!(sender.flush(A), Ok(()));
    receiver.check(0, 4096, 9);
    assert!(sender.close(A));
    sender.finish();
    receiver.finish();
}

pub(crate) fn commands_for_an_unknown_session_are_answered(kind: Kind) {
    let mut side = Side::start(kind, 4096);
    assert!(!side.close(A), "a session that is not open is not drained");
    let peer = side.open(A);
    side.submit(Command::Connect { session: B, peer }).expect("there is room");
    assert_eq!(side.wait_failed(B), TransportError::NotConnected(2));
    side.submit(Command::Open { session: A }).expect("there is room");
    let again = side.wait("Opened", |event| match event {
        Event::Opened { session: A, result } => Some(result.clone()),
        _ => None,
    });
    assert_eq!(again.map_err(|error| error.kind()), Err("descriptor"));
    assert!(side.close(A));
    side.finish();
}

pub(crate) fn garbage_descriptors_are_refused(kind: Kind) {
    let (mut sender, mut receiver) = (Side::start(kind, 4096), Side::start(kind, 4096));
    let good = receiver.open(A);
    let mut number = 10;
    let mut refused = |peer: Descriptor| {
        number += 1;
        let session = TransportSession(number);
        let error = sender.connect(session, &peer).expect_err("a bad descriptor");
        assert_eq!(error.kind(), "descriptor", "{error}");
        let put = sender.put(session, 0, 0, 1);
        assert!(sender.result(put).is_err());
        assert!(sender.close(session));
    };
    refused(Descriptor { transport: "carrier pigeon".into(), ..good.clone() });
    let [shard] = good.shards.clone().try_into().expect("one region");
    let of = |shards: Vec<ShardDescriptor>| Descriptor { shards, ..good.clone() };
    refused(of(vec![]));
    refused(of(vec![shard.clone(); 1 + SHARDS_MAX as usize]));
    let mut shard_refused = |shard: ShardDescriptor| refused(of(vec![shard]));
    shard_refused(ShardDescriptor { worker_address: Vec::new(), ..shard.clone() });
    shard_refused(ShardDescriptor { worker_address: vec![0xff; 200], ..shard.clone() });
    shard_refused(ShardDescriptor { worker_address: vec![0; 1 << 20], ..shard.clone() });
    shard_refused(ShardDescriptor { base: shard.base + 4096, ..shard.clone() });
    shard_refused(ShardDescriptor { bytes: shard.bytes * 2, ..shard.clone() });
    shard_refused(ShardDescriptor { base: u64::MAX - 5, ..shard.clone() });
    for index in 0..shard.worker_address.len() {
        let mut peer = shard.clone();
        peer.worker_address.truncate(index);
        shard_refused(peer);
    }
    for index in 0..shard.rkey.len() {
        let mut peer = shard.clone();
        peer.rkey[index] ^= 0x10;
        shard_refused(peer);
    }
    sender.connect(A, &good).expect("the valid descriptor still connects");
    sender.finish();
    receiver.finish();
}

pub(crate) fn a_receiver_that_closes_fails_only_that_session(kind: Kind) {
    let bytes = 16 * MIB;
    let (mut sender, mut receiver) = (Side::start(kind, bytes as usize), Side::start(kind, bytes as usize));
    let peer = receiver.open(A);
    sender.connect(A, &peer).expect("connects");
    let puts: Vec<_> = (0..64).map(|_| sender.put(A, 0, 0, bytes)).collect();
    assert_eq!(sender.result(puts[0]), Ok(()));
    assert!(receiver.close(A));
    let before = receiver.read(0, bytes);
    sender.wait_failed(A);
    for put in puts.into_iter().skip(1) {
        let _ok_or_failed = sender.result(put);
    }
    let late = sender.put(A, 0, 0, 1);
    assert!(sender.result(late).is_err(), "the session has failed");
    sender.close(A);
    assert!(receiver.read(0, bytes) == before, "nothing is written after Closed");
    // A stale descriptor is refused. A new session works.
    assert!(sender.connect(TransportSession(7), &peer).is_err(), "the worker was destroyed");
    sender.close(TransportSession(7));
    let peer = receiver.open(B);
    sender.connect(B, &peer).expect("connects");
    sender.fill(0, bytes, 4);
    let put = sender.put(B, 0, 0, bytes);
    assert_eq!(sender.result(put), Ok(()));
    assert_eq!(sender.flush(B), Ok(()));
    receiver.check(0, bytes, 4);
    sender.finish();
    receiver.finish();
}

pub(crate) fn nothing_is_written_after_the_receiver_closed(kind: Kind) {
    let bytes = 16 * MIB;
    let (mut sender, mut receiver) = (Side::start(kind, bytes as usize), Side::start(kind, bytes as usize));
    let peer = receiver.open(A);
    sender.connect(A, &peer).expect("connects");
    sender.fill(0, bytes, 1);
    for _ in 0..64 {
        sender.put(A, 0, 0, bytes);
    }
    sender.submit(Command::Close { session: A }).expect("there is room");
    // The receiver closes without waiting for the sender to drain.
    assert!(receiver.close(A));
    let before = receiver.read(0, bytes);
    sender.finish();
    assert!(receiver.read(0, bytes) == before, "nothing is written after Closed");
    receiver.finish();
}

/// Random commands, valid and invalid, on three sessions of a side with two shards and a side with one. `Side` checks that each command has one answer.
pub(crate) fn any_sequence_of_commands_has_one_answer_each(kind: Kind) {
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    // The third lane does not exist.
    let step = (any::<bool>(), 0..6u8, 0..3u64, 0..5000u64, 0..3u32);
    let run = TestRunner::new(config).run(&prop::collection::vec(step, 0..60), |steps| {
        let mut sides = [Side::start_shards(kind, 2, 4096), Side::start(kind, 4096)];
        let mut peers: Vec<Descriptor> = Vec::new();
        let mut ticket = 1_000_000;
        for (which, what, session, amount, lane) in steps {
            let session = TransportSession(session);
            let side = &mut sides[usize::from(which)];
            ticket += 1;
            let command = match what {
                0 => Command::Open { session },
                1 if peers.is_empty() => Command::Close { session },
                1 => Command::Connect { session, peer: peers[amount as usize % peers.len()].clone() },
                2 | 3 => Command::Put {
                    session,
                    ticket: Ticket(ticket),
                    lane,
                    local_offset: 0,
                    remote_offset: amount / 2,
                    bytes: amount / 2,
                },
                4 => Command::Flush { session, ticket: Ticket(ticket), lane },
                _ => Command::Close { session },
            };
            let opened = matches!(command, Command::Open { .. });
            prop_assert_eq!(side.submit(command), Ok(()));
            if opened {
                let found = side.wait("Opened", |event| match event {
                    Event::Opened { result, .. } => Some(result.clone()),
                    _ => None,
                });
                peers.extend(found.ok());
            }
        }
        sides.into_iter().for_each(Side::finish);
        Ok(())
    });
    run.expect("every command has one answer");
}
