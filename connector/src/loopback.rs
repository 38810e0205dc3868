//! A transport without UCX: sessions between transports of one process, which move bytes with memcpy.
//!
//! Each transport has a thread "baton-loopback", with the same queue and bounds as UCX. The transport delivers as late as the
//! contract allows: a put copies its source and completes, and the bytes arrive only with the next flush. So code that announces a
//! page before its flush fails in tests without a GPU. If a lane holds back more than 64 MiB, its oldest puts arrive early. When a
//! receiver closes its session or is dropped, the sender's session fails.

use crate::memory::{MemoryKind, Region};
use crate::shards::{Lanes, Piece};
use crate::transport::queue::{Driver, Queue, StopOnExit};
use crate::transport::{
    Command, Descriptor, Event, EventSink, ShardDescriptor, SubmitError, Transport, TransportError,
    TransportSession,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const NAME: &str = "loopback";
/// Maximum number of bytes held back per lane. Beyond that, the oldest puts arrive without a flush.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Interval at which a sender checks whether its receiver has closed.
const CHECK_EVERY: Duration = Duration::from_millis(10);

/// The open receiving ends of this process, by the number in their worker address.
static INBOXES: LazyLock<Mutex<BTreeMap<u64, Weak<Inbox>>>> = LazyLock::new(Mutex::default);
static NEXT_INBOX: AtomicU64 = AtomicU64::new(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The receiving end of a session.
struct Inbox {
    number: u64,
    regions: Vec<Region>,
    /// Locked while bytes are copied in, so that nothing is written after it became false.
    open: Mutex<bool>,
}

impl Inbox {
    fn new(regions: Vec<Region>) -> Arc<Self> {
        let number = NEXT_INBOX.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Self { number, regions, open: Mutex::new(true) });
        lock(&INBOXES).insert(number, Arc::downgrade(&inbox));
        inbox
    }

    fn descriptor(&self) -> Descriptor {
        let shard = |region: &Region| ShardDescriptor {
            worker_address: self.number.to_le_bytes().to_vec(),
            rkey: Vec::new(),
            base: region.base().as_ptr().addr() as u64,
            bytes: region.bytes() as u64,
        };
        Descriptor { transport: NAME.into(), shards: self.regions.iter().map(shard).collect() }
    }

    fn find(peer: &Descriptor) -> Result<Arc<Self>, TransportError> {
        let refuse = |text: String| TransportError::Descriptor(text);
        if peer.transport != NAME {
            return Err(refuse(format!("transport is {:?}, not \"loopback\"", peer.transport)));
        }
        let address = peer.shards.first().map(|shard| shard.worker_address.as_slice()).unwrap_or_default();
        let number = <[u8; 8]>::try_from(address)
            .map_err(|_| refuse(format!("worker address of {} bytes is not 8", address.len())))?;
        let found = lock(&INBOXES).get(&u64::from_le_bytes(number)).and_then(Weak::upgrade);
        let inbox = found.ok_or_else(|| refuse("no such session in this process".into()))?;
        if *peer != inbox.descriptor() {
            return Err(refuse("it differs from the session's descriptor".into()));
        }
        Ok(inbox)
    }

    fn close(&self) {
        *lock(&self.open) = false;
        lock(&INBOXES).remove(&self.number);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.close();
    }
}

/// A put that has completed and not yet arrived.
struct Held {
    remote_offset: u64,
    bytes: Vec<u8>,
}

/// The sending end of a lane.
struct Outlet {
    peer: Arc<Inbox>,
    /// The lane's region of this node and of the peer.
    shards: (usize, usize),
    held: VecDeque<Held>,
    held_bytes: usize,
}

fn peer_gone(call: &'static str) -> TransportError {
    TransportError::Call { call, status: "the peer has closed the session".into() }
}

impl Outlet {
    fn target(&self) -> &Region {
        &self.peer.regions[self.shards.1]
    }

    /// Copies the oldest puts to the peer until at most `bytes_max` bytes are held back.
    fn deliver(&mut self, bytes_max: usize) -> Result<(), TransportError> {
        let open = lock(&self.peer.open);
        if !*open {
            return Err(peer_gone("deliver"));
        }
        while self.held_bytes > bytes_max {
            let Some(put) = self.held.pop_front() else { break };
            self.held_bytes -= put.bytes.len();
            if let Some(target) = self.target().at(put.remote_offset, put.bytes.len() as u64) {
                // SAFETY: `at` has checked that the target lies in the peer's region, which `peer` keeps mapped. The peer granted this
                // range to the session, and it cannot close while `open` is locked. The source is our own copy.
                unsafe { std::ptr::copy_nonoverlapping(put.bytes.as_ptr(), target.as_ptr(), put.bytes.len()) }
            }
        }
        Ok(())
    }
}

struct Session {
    inbox: Arc<Inbox>,
    /// By lane; empty until the session is connected.
    outlets: Vec<Outlet>,
    failure: Option<TransportError>,
    put_failed: bool,
}

impl Session {
    fn ready(&mut self, session: TransportSession, lane: u32) -> Result<&mut Outlet, TransportError> {
        match &self.failure {
            Some(error) => Err(error.clone()),
            None if self.outlets.is_empty() => Err(TransportError::NotConnected(session.0)),
            None => self.outlets.get_mut(lane as usize).ok_or(TransportError::NoLane(lane)),
        }
    }

    fn connect(&mut self, peer: &Descriptor) -> Result<(), TransportError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        if !self.outlets.is_empty() {
            return Err(TransportError::Descriptor("session already has a peer".into()));
        }
        let lanes = Lanes::to(self.inbox.regions.len(), peer);
        let found = lanes.and_then(|lanes| Inbox::find(peer).map(|inbox| (lanes, inbox)));
        let (lanes, peer) = found.inspect_err(|error| self.failure = Some(error.clone()))?;
        let outlet = |lane| {
            let (local, remote) = lanes.shards(lane);
            let shards = (local as usize, remote as usize);
            Outlet { peer: Arc::clone(&peer), shards, held: VecDeque::new(), held_bytes: 0 }
        };
        self.outlets = (0..lanes.count()).map(outlet).collect();
        Ok(())
    }
}

/// The loopback transport could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopbackError {
    /// The region is not host memory.
    #[error("the loopback transport needs host memory, but the region is {0:?} memory")]
    Memory(MemoryKind),
    /// The operating system could not create the thread or its eventfd.
    #[error("the loopback thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl LoopbackError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Thread(_) => "thread",
        }
    }
}

/// The loopback transport. Transports of one process find each other by their descriptors.
///
/// A put becomes visible with the next flush:
///
/// ```
/// use std::sync::mpsc;
/// use connector::loopback::LoopbackTransport;
/// use connector::memory::Region;
/// use connector::transport::{Command, Event, Ticket, Transport, TransportSession};
///
/// let (sink, events) = mpsc::channel();
/// let sink = Box::new(move |batch: Vec<Event>| batch.into_iter().for_each(|event| drop(sink.send(event))));
/// let region = Region::host(8192);
/// // SAFETY: the region was just made, and nothing else accesses it.
/// unsafe { region.base().write(7) };
/// let transport = LoopbackTransport::start(vec![region.clone()], sink).expect("host memory");
///
/// // One session receives, the other one sends; here both belong to the same transport.
/// let (receiving, sending) = (TransportSession(1), TransportSession(2));
/// let submit = |command| transport.submit(command).expect("the queue has room");
/// submit(Command::Open { session: receiving });
/// let Ok(Event::Opened { result: Ok(peer), .. }) = events.recv() else { panic!("not opened") };
/// submit(Command::Open { session: sending });
/// submit(Command::Connect { session: sending, peer });
/// submit(Command::Put { session: sending, ticket: Ticket(1), lane: 0, local_offset: 0, remote_offset: 4096, bytes: 4096 });
/// submit(Command::Flush { session: sending, ticket: Ticket(2), lane: 0 });
/// let flushed = events.iter().find(|event| matches!(event, Event::Flushed { ticket: Ticket(2), result: Ok(()), .. }));
/// assert!(flushed.is_some());
///
/// let page = region.at(4096, 4096).expect("inside the region");
/// // SAFETY: the page lies in the region, and no operation is in flight.
/// assert_eq!(unsafe { page.read() }, 7);
/// transport.shutdown();
/// ```
pub struct LoopbackTransport {
    driver: Driver,
}

impl LoopbackTransport {
    /// Starts the thread, which calls `sink` with all events. `regions` has one region for each shard of the node's pages.
    ///
    /// # Errors
    /// [`LoopbackError::Memory`] if a region is not host memory; [`LoopbackError::Thread`] if the thread cannot be started.
    pub fn start(regions: Vec<Region>, sink: EventSink) -> Result<Self, LoopbackError> {
        if let Some(region) = regions.iter().find(|region| region.kind() != MemoryKind::Host) {
            return Err(LoopbackError::Memory(region.kind()));
        }
        let queue = Queue::new()?;
        let on_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("baton-loopback".into()).spawn(move || {
            let _stop = StopOnExit(Arc::clone(&on_thread));
            Thread { queue: on_thread, sink, regions, sessions: BTreeMap::new() }.run();
        })?;
        Ok(Self { driver: Driver::new(NAME, true, queue, thread) })
    }
}

impl Transport for LoopbackTransport {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn close_ends_writes(&self) -> bool {
        self.driver.close_ends_writes()
    }

    fn submit(&self, command: Command) -> Result<(), SubmitError> {
        self.driver.submit(command)
    }

    fn progress(&self) -> u64 {
        self.driver.progress()
    }

    fn shutdown(&self) {
        self.driver.shutdown();
    }
}

struct Thread {
    queue: Arc<Queue>,
    sink: EventSink,
    regions: Vec<Region>,
    sessions: BTreeMap<TransportSession, Session>,
}

impl Thread {
    fn run(mut self) {
        let mut commands = Vec::new();
        loop {
            let stopping = self.queue.take(&mut commands);
            let answered = commands.len();
            let mut events: Vec<_> =
                commands.drain(..).map(|command| self.handle(command, stopping)).collect();
            self.check_peers(&mut events);
            let ended = stopping && answered == 0;
            if ended {
                let open: Vec<_> = self.sessions.keys().copied().collect();
                events.extend(open.into_iter().map(|session| self.close(session)));
            }
            if !events.is_empty() {
                self.queue.answered(answered);
                (self.sink)(events);
            }
            if ended {
                return;
            }
            if answered == 0 {
                self.queue.park(&[], CHECK_EVERY, stopping);
            }
        }
    }

    /// Fails the sessions whose receiver has closed.
    fn check_peers(&mut self, events: &mut Vec<Event>) {
        for (id, session) in &mut self.sessions {
            if session.failure.is_none() && session.outlets.first().is_some_and(|o| !*lock(&o.peer.open)) {
                let error = peer_gone("endpoint");
                session.failure = Some(error.clone());
                events.push(Event::Failed { session: *id, error });
            }
        }
    }

    /// Executes a command and returns its answer.
    fn handle(&mut self, command: Command, stopping: bool) -> Event {
        match command {
            Command::Open { session } => Event::Opened { session, result: self.open(session, stopping) },
            Command::Connect { session, peer } => {
                match self.find(session, stopping).and_then(|found| found.connect(&peer)) {
                    Ok(()) => Event::Connected { session, lane: NAME.into() },
                    Err(error) => Event::Failed { session, error },
                }
            }
            Command::Put { session, ticket, lane, local_offset, remote_offset, bytes } => {
                let piece = Piece { lane, local_offset, remote_offset, bytes };
                Event::PutCompleted { session, ticket, result: self.put(session, piece, stopping) }
            }
            Command::Flush { session, ticket, lane } => {
                let found = self.find(session, stopping);
                let result = found.and_then(|found| found.ready(session, lane)?.deliver(0));
                Event::Flushed { session, ticket, result }
            }
            Command::Close { session } => self.close(session),
        }
    }

    fn find(&mut self, session: TransportSession, stopping: bool) -> Result<&mut Session, TransportError> {
        if stopping {
            return Err(TransportError::Closed);
        }
        self.sessions.get_mut(&session).ok_or(TransportError::NotConnected(session.0))
    }

    fn open(&mut self, session: TransportSession, stopping: bool) -> Result<Descriptor, TransportError> {
        if stopping {
            return Err(TransportError::Closed);
        }
        if self.sessions.contains_key(&session) {
            return Err(TransportError::Descriptor(format!("session {} is already open", session.0)));
        }
        let inbox = Inbox::new(self.regions.clone());
        let descriptor = inbox.descriptor();
        self.sessions
            .insert(session, Session { inbox, outlets: Vec::new(), failure: None, put_failed: false });
        Ok(descriptor)
    }

    fn put(&mut self, session: TransportSession, piece: Piece, stopping: bool) -> Result<(), TransportError> {
        let Piece { lane, local_offset, remote_offset, bytes } = piece;
        let found = self.find(session, stopping)?;
        let own = Arc::clone(&found.inbox);
        let outlet = found.ready(session, lane)?;
        let out_of = |offset, region: &Region| {
            let region_bytes = region.bytes() as u64;
            TransportError::OutOfRegion { offset, bytes, region_bytes }
        };
        let (region, target) = (&own.regions[outlet.shards.0], outlet.target());
        let source = region.at(local_offset, bytes).ok_or_else(|| out_of(local_offset, region))?;
        target.at(remote_offset, bytes).ok_or_else(|| out_of(remote_offset, target))?;
        let mut copy = Vec::with_capacity(bytes as usize);
        // SAFETY: `at` has checked that the source lies in our region, which `own` keeps mapped. The caller does not write it
        // before the put has completed. `copy` has capacity for all bytes, and they are written before `set_len`.
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), copy.as_mut_ptr(), bytes as usize);
            copy.set_len(bytes as usize);
        }
        outlet.held_bytes += copy.len();
        outlet.held.push_back(Held { remote_offset, bytes: copy });
        let result = outlet.deliver(HELD_BYTES_MAX);
        found.put_failed |= result.is_err();
        result
    }

    fn close(&mut self, session: TransportSession) -> Event {
        let Some(mut found) = self.sessions.remove(&session) else {
            return Event::Closed { session, drained: false };
        };
        found.inbox.close();
        let mut flushed = true;
        for outlet in &mut found.outlets {
            flushed &= outlet.held.is_empty() || outlet.deliver(0).is_ok();
        }
        Event::Closed { session, drained: flushed && !found.put_failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_region_is_refused() {
        let host = Region::host(64);
        let device = Region::on_device(host.base(), host.bytes(), Arc::new(host.clone()));
        let error =
            LoopbackTransport::start(vec![host.clone(), device], Box::new(drop)).err().expect("refused");
        assert!(matches!(error, LoopbackError::Memory(MemoryKind::Cuda)), "{error}");
        assert_eq!(error.kind(), "memory");
        LoopbackTransport::start(vec![host], Box::new(drop)).expect("host memory is accepted");
    }
}
