//! UCX between two real processes, and what happens when one of them dies or stops.
//!
//! The peer is this test binary again, running [`peer_process`]; it is told what to do by lines on its standard
//! input and answers with lines that begin with `@`.

use crate::side::{DEADLINE, Kind, Side, content};
use connector::transport::*;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
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
            write!(text, "{byte:02x}").expect("a string takes it");
            text
        })
    };
    let Descriptor { transport, worker_address, rkey, base, bytes } = descriptor;
    format!("{transport} {} {} {base} {bytes}", hex(worker_address), hex(rkey))
}

fn decode(text: &str) -> Descriptor {
    let words: Vec<_> = text.split_whitespace().collect();
    let [transport, worker_address, rkey, base, bytes] = words[..] else {
        panic!("not a descriptor: {text}")
    };
    let blob = |word: &str| {
        let digits = word.strip_prefix('x').expect("begins with x");
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
        (0..digits.len()).step_by(2).map(byte).collect()
    };
    Descriptor {
        transport: transport.into(),
        worker_address: blob(worker_address),
        rkey: blob(rkey),
        base: base.parse().expect("base"),
        bytes: bytes.parse().expect("bytes"),
    }
}

/// The peer's side of the tests below; alone it has nothing to do.
#[test]
fn peer_process() {
    if std::env::var_os(PEER).is_none() {
        return;
    }
    let mut side = Side::start(Kind::Ucx, BYTES as usize);
    for line in std::io::stdin().lines() {
        let line = line.expect("standard input");
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("open", _) => println!("@{}", encode(&side.open(A))),
            ("check", seed) => {
                let right = side.read(0, BYTES) == content(BYTES, seed.parse().expect("seed"));
                println!("@{right}");
            }
            ("connect", peer) => println!("@{}", side.connect(A, &decode(peer)).expect("connects")),
            ("put", seed) => {
                side.fill(0, BYTES, seed.parse().expect("seed"));
                let put = side.put(A, 0, 0, BYTES);
                side.result(put).expect("put");
                side.flush(A).expect("flush");
                println!("@flushed");
            }
            ("flood", _) => {
                println!("@flooding");
                loop {
                    let puts: Vec<_> = (0..8).map(|_| side.put(A, 0, 0, BYTES)).collect();
                    puts.into_iter().for_each(|put| side.result(put).expect("put"));
                }
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
        let binary = std::env::current_exe().expect("own path");
        let mut child = Process::new(binary)
            .args(["--exact", "processes::peer_process", "--nocapture", "--test-threads=1"])
            .env(PEER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
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
        writeln!(self.input.as_mut().expect("alive"), "{line}").expect("the peer reads");
        self.lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("the peer does not answer {line:.20}"))
    }

    /// The child has not been waited for, so the id is its own.
    fn signal(&self, signal: Signal) -> Pid {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).expect("ours");
        id
    }

    /// Stops the peer, and returns when all its threads stand still.
    fn stop(&self) {
        let id = self.signal(Signal::STOP);
        let (_, status) = waitpid(Some(id), WaitOptions::UNTRACED).expect("ours").expect("it was waited for");
        assert!(status.stopped(), "stopped, not dead");
    }

    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("reaped");
    }

    /// An orderly end: the peer's own ledger is checked.
    fn finish(mut self) {
        self.input = None;
        assert!(self.child.wait().expect("reaped").success(), "the peer fails");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve_one(sender: &mut Side, session: TransportSession, seed: u64) {
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
    (1..=3).for_each(|number| serve_one(&mut sender, TransportSession(number), number));
    sender.finish();
}

#[test]
fn a_receiver_killed_amid_puts_costs_its_session_only() {
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
    assert!(!sender.close(A), "puts failed, so it is not drained");
    serve_one(&mut sender, TransportSession(2), 8);
    sender.finish();
}

#[test]
fn a_receiver_stopped_amid_puts_does_not_hold_up_close() {
    let mut sender = Side::start(Kind::Ucx, BYTES as usize);
    let mut peer = Peer::start();
    let descriptor = decode(&peer.ask("open"));
    sender.connect(A, &descriptor).expect("connects");
    peer.stop();
    // As many as are accepted: a queue full of stuck puts still has room for Close.
    let puts: Vec<_> = std::iter::from_fn(|| sender.try_put(A, 0, 0, BYTES).ok()).collect();
    assert!(puts.len() > 1000, "the queue takes 1024");
    assert!(!sender.close(A), "no proof that anything has ended over there");
    for put in puts {
        let _either = sender.result(put);
    }
    serve_one(&mut sender, TransportSession(3), 8);
    peer.kill();
    sender.finish();
}

#[test]
fn a_receiver_that_is_stopped_before_connect_is_refused() {
    let mut sender = Side::start(Kind::Ucx, BYTES as usize);
    let mut peer = Peer::start();
    let descriptor = decode(&peer.ask("open"));
    peer.stop();
    let error = sender.connect(A, &descriptor).expect_err("it does not answer");
    assert!(error.to_string().contains("within 3 s"), "{error}");
    assert!(sender.close(A), "nothing was put");
    peer.kill();
    sender.finish();
}

#[test]
fn a_sender_killed_amid_puts_writes_no_more_once_its_session_is_closed() {
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
