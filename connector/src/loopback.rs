//! A transport without UCX: sessions between transports of one process, bytes moved by memcpy.
//!
//! Runs on one thread a transport, "baton-loopback", with the same queue and bounds as UCX. It is deliberately lazy:
//! a put takes a copy of its source and completes, and the bytes arrive only with the next flush, so code that
//! reports a page before its flush fails here and not first on a GPU. (Past 64 MiB held back, the oldest arrive early.)
//! A receiver that closes its session, or goes away, fails the sender's.

use crate::memory::{MemoryKind, Region};
use crate::transport::queue::{Driver, Queue, StopOnExit};
use crate::transport::{
    Command, Descriptor, Event, EventSink, SubmitError, Ticket, Transport, TransportError, TransportSession,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const NAME: &str = "loopback";
/// Bytes held back in one session before the oldest put arrives without a flush.
const HELD_BYTES_MAX: usize = 64 << 20;
/// How soon a sender notices that its receiver has closed.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The receiving ends that are open in this process, by the number in their worker address.
static INBOXES: LazyLock<Mutex<BTreeMap<u64, Weak<Inbox>>>> = LazyLock::new(Mutex::default);
static NEXT_INBOX: AtomicU64 = AtomicU64::new(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The receiving end of a session.
struct Inbox {
    number: u64,
    region: Region,
    /// Held while bytes are copied in, so that nothing is written after it turned false.
    open: Mutex<bool>,
}

impl Inbox {
    fn new(region: Region) -> Arc<Self> {
        let number = NEXT_INBOX.fetch_add(1, Ordering::Relaxed);
        let inbox = Arc::new(Self { number, region, open: Mutex::new(true) });
        lock(&INBOXES).insert(number, Arc::downgrade(&inbox));
        inbox
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            transport: NAME.into(),
            worker_address: self.number.to_le_bytes().to_vec(),
            rkey: Vec::new(),
            base: self.region.base().as_ptr().addr() as u64,
            bytes: self.region.bytes() as u64,
        }
    }

    fn find(peer: &Descriptor) -> Result<Arc<Self>, TransportError> {
        let refuse = |text: String| TransportError::Descriptor(text);
        if peer.transport != NAME {
            return Err(refuse(format!("transport is {:?}, not \"loopback\"", peer.transport)));
        }
        let number = <[u8; 8]>::try_from(peer.worker_address.as_slice())
            .map_err(|_| refuse(format!("worker address of {} bytes is not 8", peer.worker_address.len())))?;
        let found = lock(&INBOXES).get(&u64::from_le_bytes(number)).and_then(Weak::upgrade);
        let inbox = found.ok_or_else(|| refuse("no such session in this process".into()))?;
        if *peer != inbox.descriptor() {
            return Err(refuse("it does not match the session's own".into()));
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

/// A put that has completed and not arrived.
struct Held {
    remote_offset: u64,
    bytes: Vec<u8>,
}

/// The sending end of a session.
struct Outlet {
    peer: Arc<Inbox>,
    held: VecDeque<Held>,
    held_bytes: usize,
}

fn peer_gone(call: &'static str) -> TransportError {
    TransportError::Call { call, status: "the peer has closed the session".into() }
}

impl Outlet {
    /// Lets the oldest puts arrive until at most `bytes_max` bytes are held back.
    fn deliver(&mut self, bytes_max: usize) -> Result<(), TransportError> {
        let open = lock(&self.peer.open);
        if !*open {
            return Err(peer_gone("deliver"));
        }
        while self.held_bytes > bytes_max {
            let Some(put) = self.held.pop_front() else { break };
            self.held_bytes -= put.bytes.len();
            if let Some(target) = self.peer.region.at(put.remote_offset, put.bytes.len() as u64) {
                // SAFETY: the target lies in the peer's region, which `peer` keeps mapped, and the peer granted the
                // range to this session; the source is our own copy. `open` is held, so the peer has not closed.
                unsafe { std::ptr::copy_nonoverlapping(put.bytes.as_ptr(), target.as_ptr(), put.bytes.len()) }
            }
        }
        Ok(())
    }
}

struct Session {
    inbox: Arc<Inbox>,
    outlet: Option<Outlet>,
    failure: Option<TransportError>,
    put_failed: bool,
}

impl Session {
    fn ready(&mut self, session: TransportSession) -> Result<&mut Outlet, TransportError> {
        match (&self.failure, &mut self.outlet) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(outlet)) => Ok(outlet),
            (None, None) => Err(TransportError::NotConnected(session.0)),
        }
    }

    fn connect(&mut self, peer: &Descriptor) -> Result<(), TransportError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        if self.outlet.is_some() {
            return Err(TransportError::Descriptor("session has a peer already".into()));
        }
        let peer = Inbox::find(peer).inspect_err(|error| self.failure = Some(error.clone()))?;
        self.outlet = Some(Outlet { peer, held: VecDeque::new(), held_bytes: 0 });
        Ok(())
    }
}

/// The loopback transport could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopbackError {
    /// The region is not host memory.
    #[error("the loopback transport copies host memory only, and the region is {0:?} memory")]
    Memory(MemoryKind),
    /// The operating system refused the thread or its doorbell.
    #[error("the loopback thread does not start: {0}")]
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

/// The loopback transport; transports of one process find each other by their descriptors.
pub struct LoopbackTransport {
    driver: Driver,
}

impl LoopbackTransport {
    /// Starts the thread; `sink` gets every event on it.
    ///
    /// # Errors
    /// The region is not host memory, or the thread cannot be started.
    pub fn start(region: Region, sink: EventSink) -> Result<Self, LoopbackError> {
        if region.kind() != MemoryKind::Host {
            return Err(LoopbackError::Memory(region.kind()));
        }
        let queue = Queue::new()?;
        let on_thread = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("baton-loopback".into()).spawn(move || {
            let _stop = StopOnExit(Arc::clone(&on_thread));
            Thread { queue: on_thread, sink, region, sessions: BTreeMap::new() }.run();
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
    region: Region,
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
            self.look_after_peers(&mut events);
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
                self.queue.park(&[], LOOK_EVERY, stopping);
            }
        }
    }

    fn look_after_peers(&mut self, events: &mut Vec<Event>) {
        for (id, session) in &mut self.sessions {
            if session.failure.is_none() && session.outlet.as_ref().is_some_and(|o| !*lock(&o.peer.open)) {
                let error = peer_gone("endpoint");
                session.failure = Some(error.clone());
                events.push(Event::Failed { session: *id, error });
            }
        }
    }

    /// Does the command at once and returns its answer.
    fn handle(&mut self, command: Command, stopping: bool) -> Event {
        match command {
            Command::Open { session } => Event::Opened { session, result: self.open(session, stopping) },
            Command::Connect { session, peer } => {
                match self.find(session, stopping).and_then(|found| found.connect(&peer)) {
                    Ok(()) => Event::Connected { session, lane: NAME.into() },
                    Err(error) => Event::Failed { session, error },
                }
            }
            Command::Put { session, ticket, local_offset, remote_offset, bytes } => {
                self.put(session, ticket, local_offset, remote_offset, bytes, stopping)
            }
            Command::Flush { session, ticket } => {
                let result = self.find(session, stopping).and_then(|found| found.ready(session)?.deliver(0));
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
            return Err(TransportError::Descriptor(format!("session {} is open already", session.0)));
        }
        let inbox = Inbox::new(self.region.clone());
        let descriptor = inbox.descriptor();
        self.sessions.insert(session, Session { inbox, outlet: None, failure: None, put_failed: false });
        Ok(descriptor)
    }

    fn put(
        &mut self,
        session: TransportSession,
        ticket: Ticket,
        local_offset: u64,
        remote_offset: u64,
        bytes: u64,
        stopping: bool,
    ) -> Event {
        let region = self.region.clone();
        let done = self.find(session, stopping).and_then(|found| {
            let outlet = found.ready(session)?;
            let out_of = |offset, region: &Region| {
                let region_bytes = region.bytes() as u64;
                TransportError::OutOfRegion { offset, bytes, region_bytes }
            };
            let source = region.at(local_offset, bytes).ok_or_else(|| out_of(local_offset, &region))?;
            let target = &outlet.peer.region;
            target.at(remote_offset, bytes).ok_or_else(|| out_of(remote_offset, target))?;
            let mut copy = Vec::with_capacity(bytes as usize);
            // SAFETY: the source lies in our region, and the caller leaves it alone until the put has completed; the
            // copy has room for all of it, and is wholly written before its length says so.
            unsafe {
                std::ptr::copy_nonoverlapping(source.as_ptr(), copy.as_mut_ptr(), bytes as usize);
                copy.set_len(bytes as usize);
            }
            outlet.held_bytes += copy.len();
            outlet.held.push_back(Held { remote_offset, bytes: copy });
            let result = outlet.deliver(HELD_BYTES_MAX);
            found.put_failed |= result.is_err();
            result
        });
        Event::PutCompleted { session, ticket, result: done }
    }

    fn close(&mut self, session: TransportSession) -> Event {
        let Some(mut found) = self.sessions.remove(&session) else {
            return Event::Closed { session, drained: false };
        };
        found.inbox.close();
        let mut flush = |outlet: &mut Outlet| outlet.held.is_empty() || outlet.deliver(0).is_ok();
        let flushed = found.outlet.as_mut().is_none_or(&mut flush);
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
        let error = LoopbackTransport::start(device, Box::new(drop)).err().expect("refused");
        assert!(matches!(error, LoopbackError::Memory(MemoryKind::Cuda)), "{error}");
        assert_eq!(error.kind(), "memory");
        LoopbackTransport::start(host, Box::new(drop)).expect("host memory is served");
    }
}
