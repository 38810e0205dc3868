//! UCX between two processes, one of which is killed or stopped.
//!
//! The peer is this test binary again, which runs [`peer_process`]. It reads commands from standard input, one on each line, and
//! answers with lines that begin with `@`.

use crate::side::{DEADLINE, Kind, Side, content};
use connector::transport::*;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, channel};

const PEER: &str = "BATON_CONFORMANCE_PEER";
const MIB: u64 = 1 << 20;
const BYTES: u64 = 16 * MIB;
const A: TransportSession = TransportSession(1);

fn encode(descriptor: &Descriptor) -> String {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::from("x"), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    };
    let [ShardDescriptor { worker_address, rkey, base, bytes }] = descriptor.shards.as_slice() else {
        panic!("one region")
    };
    let transport = &descriptor.transport;
    format!("{transport} {} {} {base} {bytes}", hex(worker_address), hex(rkey))
}

fn decode(text: &str) -> Descriptor {
    let words: Vec<_> = text.split_whitespace().collect();
    let [transport, worker_address, rkey, base, bytes] = words[..] else {
        panic!("not a descriptor: {text}")
    };
    let blob = |word: &str| {
        let digits = word.strip_prefix('x').expect("begins with x");
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("the text is hex");
        (0..digits.len()).step_by(2).map(byte).collect()
    };
    let shard = ShardDescriptor {
        worker_address: blob(worker_address),
        rkey: blob(rkey),
        base: base.parse().expect("the line has a base address"),
        bytes: bytes.parse().expect("the line has a length"),
    };
    Descriptor { transport: transport.into(), shards: vec![shard] }
}

/// The peer's side of the tests below. Without the environment variable it does nothing.
#[test]
fn peer_process() {
    if std::env::var_os(PEER).is_none() {
        return;
    }
    let mut side = Side::start(Kind::Ucx, BYTES as usize);
    for line in std::io::stdin().lines() {
        let line = line.expect("standard input can be read");
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("open", _) => println!("@{}", encode(&side.open(A))),
            ("check", seed) => {
                let equal = side.read(0, BYTES) == content(BYTES, seed.parse().expect("seed"));
                println!("@{equal}");
            }
            ("connect", peer) => println!("@{}", side.connect(A, &decode(peer)).expect("connects")),
            ("put", seed) => {
                side.fill(0, BYTES, seed.parse().expect("seed"));
                let put = side.put(A, 0, 0, BYTES);
                side.result(put).expect("the put succeeds");
                side.flush(A).expect("the flush succeeds");
                println!("@flushed");
            }
            ("flood", _) => {
                println!("@flooding");
                loop {
                    let puts: Vec<_> = (0..8).map(|_| side.put(A, 0, 0, BYTES)).collect();
                    puts.into_iter().for_each(|put| side.result(put).expect("the put succeeds"));
                }
            }
            ("flood_until_failure", seed) => {
                side.fill(0, BYTES, seed.parse().expect("seed"));
                let mut puts: VecDeque<_> = (0..8).map(|_| side.put(A, 0, 0, BYTES)).collect();
                let first = puts.pop_front().expect("there are eight");
                side.result(first).expect("the put succeeds");
                println!("@flooding");
                while let Some(put) = puts.pop_front() {
                    if side.result(put).is_ok() {
                        puts.push_back(side.put(A, 0, 0, BYTES));
                    }
                }
                println!("@failed");
            }
            (word, _) => panic!("unknown word {word}"),
        }
    }
    side.finish();
}

struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Peer {
    fn start() -> Self {
        let binary = std::env::current_exe().expect("the program's own path is known");
        let mut child = Process::new(binary)
            .args(["--exact", "processes::peer_process", "--nocapture", "--test-threads=1"])
            .env(PEER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("the stream is piped"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once('@') {
                    let _ = send.send(answer.to_owned());
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input.as_mut().expect("it is alive"), "{line}").expect("the peer reads");
        self.lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("the peer did not answer {line:.20}"))
    }

    /// Sends a signal. The child was not waited for yet, so its id is not reused.
    fn signal(&self, signal: Signal) -> Pid {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).expect("our own child");
        id
    }

    /// Stops the peer. Returns after all of its threads have stopped.
    fn stop(&self) {
        let id = self.signal(Signal::STOP);
        let (_, status) =
            waitpid(Some(id), WaitOptions::UNTRACED).expect("our own child").expect("without NOHANG");
        assert!(status.stopped(), "the peer is stopped, not dead");
    }

    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("reaped");
    }

    /// Ends the peer cleanly, which checks that its commands were answered.
    fn finish(mut self) {
        self.input = None;
        assert!(self.child.wait().expect("reaped").success(), "the peer failed");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Puts bytes into a new peer and lets it check them.
fn put_into_new_peer(sender: &mut Side, session: TransportSession, seed: u64) {
    let mut peer = Peer::start();
    let descriptor = decode(&peer.ask("open"));
    sender.connect(session, &descriptor).expect("connects");
    sender.fill(0, BYTES, seed);
    let put = sender.put(session, 0, 0, BYTES);
    assert_eq!(sender.result(put), Ok(()));
    assert_eq!(sender.flush(session), Ok(()));
    assert_eq!(peer.ask(&format!("check {seed}")), "true");
    assert!(sender.close(session));
    peer.finish();
}

#[test]
fn bytes_arrive_in_another_process() {
    let mut sender = Side::start(Kind::Ucx, BYTES as usize);
    (1..=3).for_each(|number| put_into_new_peer(&mut sender, TransportSession(number), number));
    sender.finish();
}

#[test]
fn a_receiver_killed_during_puts_fails_only_its_session() {
    let mut sender = Side::start(Kind::Ucx, BYTES as usize);
    let mut peer = Peer::start();
    let descriptor = decode(&peer.ask("open"));
    sender.connect(A, &descriptor).expect("connects");
    let puts: Vec<_> = (0..64).map(|_| sender.put(A, 0, 0, BYTES)).collect();
    assert_eq!(sender.result(puts[0]), Ok(()));
    peer.kill();
    sender.wait_failed(A);
    let failed = puts.into_iter().skip(1).filter(|put| sender.result(*put).is_err()).count();
    assert!(failed > 0, "a gigabyte does not fit in socket buffers");
    assert!(!sender.close(A), "puts failed, so the session is not drained");
    put_into_new_peer(&mut sender, TransportSession(2), 8);
    sender.finish();
}

#[test]
fn a_receiver_stopped_during_puts_does_not_block_close() {
    let mut sender = Side::start(Kind::Ucx, BYTES as usize);
    let mut peer = Peer::start();
    let descriptor = decode(&peer.ask("open"));
    sender.connect(A, &descriptor).expect("connects");
    peer.stop();
    // A queue full of stuck puts still has room for Close.
    let puts: Vec<_> = std::iter::from_fn(|| sender.try_put(A, 0, 0, BYTES).ok()).collect();
    assert!(puts.len() > 1000, "the queue accepts 1024 operations");
    assert!(!sender.close(A), "the puts were not flushed, so the session is not drained");
    for put in puts {
        let _ok_or_failed = sender.result(put);
    }
    put_into_new_peer(&mut sender, TransportSession(3), 8);
    peer.kill();
    sender.finish();
}

#[test]
fn connecting_to_a_stopped_receiver_fails() {
    let mut sender = Side::start(Kind::Ucx, BYTES as usize);
    let mut peer = Peer::start();
    let descriptor = decode(&peer.ask("open"));
    peer.stop();
    let error = sender.connect(A, &descriptor).expect_err("the peer does not answer");
    assert!(error.to_string().contains("within 3 s"), "{error}");
    assert!(sender.close(A), "there were no puts, so the session is drained");
    peer.kill();
    sender.finish();
}

/// The receiver gives a stopped sender up in the middle of puts and writes other bytes there. The sender that continues changes none of
/// them. Another session goes on all the time.
#[test]
fn a_sender_that_continues_after_its_session_was_closed_writes_nothing() {
    const OTHER: TransportSession = TransportSession(2);
    let mut receiver = Side::start(Kind::Ucx, BYTES as usize);
    let (mut stopped, mut other) = (Peer::start(), Peer::start());
    let descriptor = receiver.open(A);
    stopped.ask(&format!("connect {}", encode(&descriptor)));
    assert_eq!(stopped.ask("put 5"), "flushed");
    receiver.check(0, BYTES, 5);
    assert_eq!(stopped.ask("flood_until_failure 6"), "flooding");
    stopped.stop();
    assert!(receiver.close(A), "the receiver put nothing itself");
    assert!(receiver.read(0, BYTES) != content(BYTES, 5), "the sender was stopped after its first put");
    let descriptor = receiver.open(OTHER);
    other.ask(&format!("connect {}", encode(&descriptor)));
    assert_eq!(other.ask("put 7"), "flushed");
    receiver.check(0, BYTES, 7);
    stopped.signal(Signal::CONT);
    let failed = stopped.lines.recv_timeout(DEADLINE);
    assert_eq!(failed.as_deref(), Ok("failed"), "a put of the closed session fails");
    receiver.check(0, BYTES, 7);
    assert_eq!(other.ask("put 8"), "flushed");
    receiver.check(0, BYTES, 8);
    [stopped, other].into_iter().for_each(Peer::finish);
    receiver.finish();
}

#[test]
fn nothing_is_written_after_the_session_of_a_killed_sender_is_closed() {
    let mut receiver = Side::start(Kind::Ucx, BYTES as usize);
    let mut peer = Peer::start();
    let descriptor = receiver.open(A);
    assert!(peer.ask(&format!("connect {}", encode(&descriptor))).contains("tcp"));
    assert_eq!(peer.ask("put 5"), "flushed");
    receiver.check(0, BYTES, 5);
    assert_eq!(peer.ask("flood"), "flooding");
    peer.kill();
    assert!(receiver.close(A));
    let before = receiver.read(0, BYTES);
    let mut peer = Peer::start();
    let descriptor = receiver.open(TransportSession(2));
    peer.ask(&format!("connect {}", encode(&descriptor)));
    assert!(receiver.read(0, BYTES) == before, "nothing is written after Closed");
    assert_eq!(peer.ask("put 6"), "flushed");
    receiver.check(0, BYTES, 6);
    peer.finish();
    receiver.finish();
}
