//! One side of a test: a transport, its regions, its events, and the commands that are not answered yet.

use common::cache_folder;
use common::splitmix::{STEP, SplitMix64};
use connector::loopback::LoopbackTransport;
use connector::memory::Region;
use connector::shards::Piece;
use connector::transport::*;
use connector::ucx::{UcxConfig, UcxTransport};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Time limit of every wait in the suite. No wait takes a tenth of it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Loopback,
    Ucx,
}

/// UCX from the cache folder of `cargo xtask`. `UCX_*` variables of the environment take precedence, as in the program.
pub(crate) fn ucx_config() -> UcxConfig {
    let cache = cache_folder::locate(|name| std::env::var_os(name)).expect("HOME is set");
    let mut config = UcxConfig { search: vec![cache.join(cache_folder::UCX)], ..UcxConfig::default() };
    config.defaults.retain(|(name, _)| std::env::var_os(name).is_none());
    config
}

/// The command that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Submitted {
    Open(TransportSession),
    Connect(TransportSession),
    Operation(Ticket),
    Close(TransportSession),
}

pub(crate) struct Side {
    pub(crate) transport: Box<dyn Transport>,
    /// One for each shard of the side's pages.
    pub(crate) regions: Vec<Region>,
    events: Receiver<Event>,
    seen: VecDeque<Event>,
    unanswered: BTreeMap<Submitted, usize>,
    failed: BTreeMap<TransportSession, usize>,
    next_ticket: u64,
    stopped: bool,
}

impl Side {
    /// A side with one region.
    pub(crate) fn start(kind: Kind, bytes: usize) -> Self {
        Self::start_shards(kind, 1, bytes)
    }

    /// A side with `shards` regions of `bytes` bytes each.
    pub(crate) fn start_shards(kind: Kind, shards: usize, bytes: usize) -> Self {
        let regions: Vec<Region> = (0..shards).map(|_| Region::host(bytes)).collect();
        let (send, events) = channel();
        let sink: EventSink =
            Box::new(move |batch| batch.into_iter().for_each(|event| drop(send.send(event))));
        let transport: Box<dyn Transport> = match kind {
            Kind::Loopback => {
                Box::new(LoopbackTransport::start(regions.clone(), sink).expect("the thread starts"))
            }
            Kind::Ucx => match UcxTransport::start(regions.clone(), &ucx_config(), Box::new(|| ()), sink) {
                Ok(transport) => Box::new(transport),
                Err(error) => panic!("this test needs UCX; cargo xtask test fetches it: {error}"),
            },
        };
        let (seen, unanswered, failed) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Self { transport, regions, events, seen, unanswered, failed, next_ticket: 1, stopped: false }
    }

    pub(crate) fn submit(&mut self, command: Command) -> Result<(), SubmitError> {
        let submitted = match &command {
            Command::Open { session } => Submitted::Open(*session),
            Command::Connect { session, .. } => Submitted::Connect(*session),
            Command::Put { ticket, .. } | Command::Flush { ticket, .. } => Submitted::Operation(*ticket),
            Command::Close { session } => Submitted::Close(*session),
        };
        self.transport.submit(command)?;
        *self.unanswered.entry(submitted).or_default() += 1;
        Ok(())
    }

    fn settle(&mut self, submitted: Submitted) -> bool {
        let Some(count) = self.unanswered.get_mut(&submitted) else { return false };
        *count -= 1;
        if *count == 0 {
            self.unanswered.remove(&submitted);
        }
        true
    }

    /// Records an event. Panics on a second answer to a command, and on an event that the contract does not allow.
    fn record(&mut self, event: &Event) {
        match event {
            Event::Opened { session, .. } => {
                assert!(self.settle(Submitted::Open(*session)), "answer without a command: {event:?}")
            }
            Event::Connected { session, .. } => {
                assert!(self.settle(Submitted::Connect(*session)), "answer without a command: {event:?}");
            }
            Event::PutCompleted { ticket, .. } | Event::Flushed { ticket, .. } => {
                assert!(self.settle(Submitted::Operation(*ticket)), "answer without a command: {event:?}");
            }
            Event::Failed { session, .. } => {
                if !self.settle(Submitted::Connect(*session)) {
                    let times = self.failed.entry(*session).or_default();
                    *times += 1;
                    assert_eq!(*times, 1, "a session reports its failure once: {event:?}");
                }
            }
            Event::Closed { session, .. } => {
                assert!(
                    self.settle(Submitted::Close(*session)) || self.stopped,
                    "answer without a command: {event:?}"
                );
            }
        }
    }

    /// Waits for the first event, among those not taken yet, for which `pick` returns a value. `what` names it in the panic after the
    /// time limit.
    pub(crate) fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        for index in 0..self.seen.len() {
            if let Some(found) = pick(&self.seen[index]) {
                self.seen.remove(index);
                return found;
            }
        }
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(event) = self.events.recv_timeout(left) else {
                panic!("{what}: nothing within {DEADLINE:?}; unanswered {:?}", self.unanswered);
            };
            self.record(&event);
            if let Some(found) = pick(&event) {
                return found;
            }
            self.seen.push_back(event);
        }
    }

    pub(crate) fn open(&mut self, session: TransportSession) -> Descriptor {
        self.submit(Command::Open { session }).expect("room for Open");
        self.wait("Opened", |event| match event {
            Event::Opened { session: s, result } if *s == session => Some(result.clone()),
            _ => None,
        })
        .expect("a worker")
    }

    /// Opens and connects a session. Returns its lane.
    pub(crate) fn connect(
        &mut self,
        session: TransportSession,
        peer: &Descriptor,
    ) -> Result<String, TransportError> {
        self.open(session);
        self.submit(Command::Connect { session, peer: peer.clone() }).expect("room for Connect");
        self.wait("Connected or Failed", |event| match event {
            Event::Connected { session: s, lane } if *s == session => Some(Ok(lane.clone())),
            Event::Failed { session: s, error } if *s == session => Some(Err(error.clone())),
            _ => None,
        })
    }

    pub(crate) fn try_put(
        &mut self,
        session: TransportSession,
        local_offset: u64,
        remote_offset: u64,
        bytes: u64,
    ) -> Result<Ticket, SubmitError> {
        self.try_put_piece(session, Piece { lane: 0, local_offset, remote_offset, bytes })
    }

    fn try_put_piece(&mut self, session: TransportSession, piece: Piece) -> Result<Ticket, SubmitError> {
        let Piece { lane, local_offset, remote_offset, bytes } = piece;
        let ticket = Ticket(self.next_ticket);
        self.submit(Command::Put { session, ticket, lane, local_offset, remote_offset, bytes })?;
        self.next_ticket += 1;
        Ok(ticket)
    }

    pub(crate) fn put_piece(&mut self, session: TransportSession, piece: Piece) -> Ticket {
        self.try_put_piece(session, piece).expect("room for Put")
    }

    pub(crate) fn put(&mut self, session: TransportSession, local: u64, remote: u64, bytes: u64) -> Ticket {
        self.try_put(session, local, remote, bytes).expect("room for Put")
    }

    /// The result of a put or flush.
    pub(crate) fn result(&mut self, wanted: Ticket) -> Result<(), TransportError> {
        self.wait("PutCompleted or Flushed", |event| match event {
            Event::PutCompleted { ticket, result, .. } | Event::Flushed { ticket, result, .. }
                if *ticket == wanted =>
            {
                Some(result.clone())
            }
            _ => None,
        })
    }

    pub(crate) fn flush(&mut self, session: TransportSession) -> Result<(), TransportError> {
        self.flush_lane(session, 0)
    }

    pub(crate) fn flush_lane(&mut self, session: TransportSession, lane: u32) -> Result<(), TransportError> {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.submit(Command::Flush { session, ticket, lane }).expect("room for Flush");
        self.result(ticket)
    }

    /// Closes a session. Returns whether it was drained.
    pub(crate) fn close(&mut self, session: TransportSession) -> bool {
        self.submit(Command::Close { session }).expect("room for Close");
        self.wait("Closed", |event| match event {
            Event::Closed { session: s, drained } if *s == session => Some(*drained),
            _ => None,
        })
    }

    pub(crate) fn wait_failed(&mut self, session: TransportSession) -> TransportError {
        self.wait("Failed", |event| match event {
            Event::Failed { session: s, error } if *s == session => Some(error.clone()),
            _ => None,
        })
    }

    /// Shuts down and checks that every command was answered.
    pub(crate) fn finish(mut self) {
        self.stopped = true;
        self.transport.shutdown();
        while let Ok(event) = self.events.try_recv() {
            self.record(&event);
        }
        assert!(self.unanswered.is_empty(), "not answered: {:?}", self.unanswered);
    }

    /// Fills part of the first region with the bytes of [`content`].
    pub(crate) fn fill(&self, offset: u64, bytes: u64, seed: u64) {
        let target = self.regions[0].at(offset, bytes).expect("the range lies in the region");
        let content = content(bytes, seed);
        // SAFETY: `at` has checked the range, and the test has no operation on it in flight.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), target.as_ptr(), content.len()) }
    }

    /// A copy of part of the first region.
    pub(crate) fn read(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let source = self.regions[0].at(offset, bytes).expect("the range lies in the region");
        let mut copy = vec![0; bytes as usize];
        // SAFETY: `at` has checked the range. The tests read it after a flush, or after the session was closed, so nothing writes it.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), copy.as_mut_ptr(), copy.len()) }
        copy
    }

    /// Panics unless part of the first region has the bytes of [`content`].
    pub(crate) fn check(&self, offset: u64, bytes: u64, seed: u64) {
        assert!(
            self.read(offset, bytes) == content(bytes, seed),
            "{bytes} bytes at {offset} are not the content for seed {seed}"
        );
    }
}

/// Bytes of a SplitMix64 generator: different for each seed, and not periodic.
pub(crate) fn content(bytes: u64, seed: u64) -> Vec<u8> {
    let mut generator = SplitMix64::new(seed.wrapping_mul(STEP));
    let mut out = Vec::with_capacity(bytes as usize + 8);
    while (out.len() as u64) < bytes {
        out.extend(generator.draw().to_le_bytes());
    }
    out.truncate(bytes as usize);
    out
}
