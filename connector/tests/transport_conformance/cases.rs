//! Cases in which no side fails.

use crate::side::{DEADLINE, Kind, Side};
use connector::transport::*;
use std::time::Instant;

const MIB: u64 = 1 << 20;
const A: TransportSession = TransportSession(1);
const B: TransportSession = TransportSession(2);

fn pair(kind: Kind, bytes: u64) -> (Side, Side) {
    let (mut sender, mut receiver) = (Side::start(kind, bytes as usize), Side::start(kind, bytes as usize));
    let peer = receiver.open(A);
    let lane = sender.connect(A, &peer).expect("connects");
    match kind {
        Kind::Loopback => assert_eq!(lane, "loopback"),
        Kind::Ucx => assert!(lane.contains("tcp/"), "lane {lane}"),
    }
    (sender, receiver)
}

pub(crate) fn puts_of_every_size_arrive(kind: Kind) {
    let (mut sender, mut receiver) = pair(kind, 64 * MIB + 4096);
    for (seed, bytes) in [0, 1, 63, 4096, 720 << 10, 8 * MIB, 64 * MIB].into_iter().enumerate() {
        let (local, remote, seed) = (7, 1013, seed as u64 + 1);
        sender.fill(local, bytes, seed);
        let put = sender.put(A, local, remote, bytes);
        assert_eq!(sender.result(put), Ok(()), "{bytes} bytes");
        assert_eq!(sender.flush(A), Ok(()), "{bytes} bytes");
        receiver.check(remote, bytes, seed);
    }
    assert!(sender.close(A));
    assert!(receiver.close(A));
    sender.finish();
    receiver.finish();
}

pub(crate) fn many_puts_in_flight_arrive(kind: Kind) {
    const PAGE: u64 = 64 << 10;
    let (mut sender, receiver) = pair(kind, 256 * PAGE);
    for page in 0..256 {
        sender.fill(page * PAGE, PAGE, page);
    }
    let puts: Vec<_> =
        (0..256).map(|page| sender.put(A, page * PAGE, (page * 91 % 256) * PAGE, PAGE)).collect();
    assert_eq!(sender.flush(A), Ok(()));
    for page in 0..256 {
        receiver.check((page * 91 % 256) * PAGE, PAGE, page);
    }
    for put in puts {
        assert_eq!(sender.result(put), Ok(()));
    }
    sender.finish();
    receiver.finish();
}

pub(crate) fn several_sessions_share_a_receiver(kind: Kind) {
    let mut receiver = Side::start(kind, 8 << 20);
    let mut senders: Vec<_> = (0..3).map(|_| Side::start(kind, 1 << 20)).collect();
    for (index, sender) in senders.iter_mut().enumerate() {
        let peer = receiver.open(TransportSession(10 + index as u64));
        sender.connect(A, &peer).expect("connects");
        sender.fill(0, MIB, index as u64);
    }
    let puts: Vec<_> = senders
        .iter_mut()
        .enumerate()
        .map(|(index, sender)| sender.put(A, 0, index as u64 * MIB, MIB))
        .collect();
    for (sender, put) in senders.iter_mut().zip(puts) {
        assert_eq!(sender.result(put), Ok(()));
        assert_eq!(sender.flush(A), Ok(()));
    }
    (0..3).for_each(|index| receiver.check(index * MIB, MIB, index));
    // The end of one session does not affect the others.
    assert!(receiver.close(TransportSession(10)));
    senders[0].wait_failed(A);
    senders[2].fill(0, MIB, 77);
    let put = senders[2].put(A, 0, 5 * MIB, MIB);
    assert_eq!(senders[2].result(put), Ok(()));
    assert_eq!(senders[2].flush(A), Ok(()));
    receiver.check(5 * MIB, MIB, 77);
    senders.into_iter().for_each(Side::finish);
    receiver.finish();
}

pub(crate) fn a_session_may_connect_to_its_own_transport(kind: Kind) {
    let mut side = Side::start(kind, 2 << 20);
    let peer = side.open(A);
    side.connect(B, &peer).expect("connects");
    side.fill(0, MIB, 5);
    let put = side.put(B, 0, MIB, MIB);
    assert_eq!(side.result(put), Ok(()));
    assert_eq!(side.flush(B), Ok(()));
    side.check(MIB, MIB, 5);
    side.finish();
}

pub(crate) fn a_full_queue_refuses_and_recovers(kind: Kind) {
    let (mut sender, receiver) = pair(kind, MIB);
    let mut accepted = Vec::new();
    let full = loop {
        match sender.try_put(A, 0, 0, MIB) {
            Ok(ticket) => accepted.push(ticket),
            Err(error) => break error,
        }
        assert!(accepted.len() < 100_000, "puts of 1 MiB complete faster than they are submitted");
    };
    assert_eq!(full, SubmitError::Full);
    // After an answer the queue has room again.
    let mut more = None;
    for ticket in accepted {
        assert_eq!(sender.result(ticket), Ok(()));
        more = more.or_else(|| sender.try_put(A, 0, 0, 1).ok());
    }
    assert_eq!(sender.result(more.expect("room after an answer")), Ok(()));
    assert_eq!(sender.flush(A), Ok(()));
    sender.finish();
    receiver.finish();
}

pub(crate) fn close_drains_what_is_in_flight(kind: Kind) {
    let (mut sender, mut receiver) = pair(kind, 64 * MIB);
    sender.fill(0, 64 * MIB, 3);
    let puts: Vec<_> = (0..16).map(|page| sender.put(A, page * 4 * MIB, page * 4 * MIB, 4 * MIB)).collect();
    assert!(sender.close(A), "a healthy session drains");
    for put in puts {
        assert_eq!(sender.result(put), Ok(()));
    }
    // A drained session is flushed too.
    receiver.check(0, 64 * MIB, 3);
    assert!(receiver.close(A));
    sender.finish();
    receiver.finish();
}

pub(crate) fn sessions_open_and_close_many_times(kind: Kind) {
    let (mut sender, mut receiver) = (Side::start(kind, 4096), Side::start(kind, 4096));
    for number in 1..=20 {
        let session = TransportSession(number);
        let peer = receiver.open(session);
        sender.connect(session, &peer).expect("connects");
        sender.fill(0, 4096, number);
        let put = sender.put(session, 0, 0, 4096);
        assert_eq!(sender.result(put), Ok(()));
        assert!(sender.close(session));
        receiver.check(0, 4096, number);
        assert!(receiver.close(session));
    }
    sender.finish();
    receiver.finish();
}

pub(crate) fn shutdown_is_idempotent_and_answers_everything(kind: Kind) {
    let (mut sender, receiver) = pair(kind, 8 * MIB);
    for _ in 0..32 {
        sender.put(A, 0, 0, 8 * MIB);
    }
    sender.submit(Command::Open { session: B }).expect("there is room");
    sender.submit(Command::Close { session: A }).expect("there is room");
    let transport = &sender.transport;
    transport.shutdown();
    transport.shutdown();
    assert_eq!(transport.submit(Command::Open { session: B }), Err(SubmitError::ShutDown));
    sender.finish();
    receiver.finish();
}

pub(crate) fn the_watchdog_sees_progress(kind: Kind) {
    let mut side = Side::start(kind, 4096);
    side.open(A);
    let (first, began) = (side.transport.progress(), Instant::now());
    while side.transport.progress() < first + 5 {
        assert!(began.elapsed() < DEADLINE, "the counter does not advance");
        std::thread::yield_now();
    }
    side.finish();
}
