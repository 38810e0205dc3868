//! A transport without UCX: sessions between transports of one process, which move bytes with memcpy.
//!
//! Each transport has a thread "baton-loopback", with the same queue and bounds as UCX. The transport delivers as late as the
//! contract allows: a put copies its source and completes, and the bytes arrive only with the next flush. So code that announces a
//! page before its flush fails in tests without a GPU. If a session holds back more than 64 MiB, the oldest puts arrive early. When a
//! receiver closes its session or is dropped, the sender's session fails.

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
/// Maximum number of bytes held back per session. Beyond that, the oldest puts arrive without a flush.
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
    region: Region,
    /// Locked while bytes are copied in, so that nothing is written after it became false.
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
    /// Copies the oldest puts to the peer until at most `bytes_max` bytes are held back.
    fn deliver(&mut self, bytes_max: usize) -> Result<(), TransportError> {
        let open = lock(&self.peer.open);
        if !*open {
            return Err(peer_gone("deliver"));
        }
        while self.held_bytes > bytes_max {
            let Some(put) = self.held.pop_front() else { break };
            self.held_bytes -= put.bytes.len();
            if let Some(target) = self.peer.region.at(put.remote_offset, put.bytes.len() as u64) {
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
            return Err(TransportError::Descriptor("session already has a peer".into()));
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
/// let transport = LoopbackTransport::start(region.clone(), sink).expect("host memory");
///
/// // One session receives, the other one sends; here both belong to the same transport.
/// let (receiving, sending) = (TransportSession(1), TransportSession(2));
/// let submit = |command| transport.submit(command).expect("the queue has room");
/// submit(Command::Open { session: receiving });
/// let Ok(Event::Opened { result: Ok(peer), .. }) = events.recv() else { panic!("not opened") };
/// submit(Command::Open { session: sending });
/// submit(Command::Connect { session: sending, peer });
/// submit(Command::Put { session: sending, ticket: Ticket(1), local_offset: 0, remote_offset: 4096, bytes: 4096 });
/// submit(Command::Flush { session: sending, ticket: Ticket(2) });
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
    /// Starts the thread, which calls `sink` with all events.
    ///
    /// # Errors
    /// [`LoopbackError::Memory`] if the region is not host memory; [`LoopbackError::Thread`] if the thread cannot be started.
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
            if session.failure.is_none() && session.outlet.as_ref().is_some_and(|o| !*lock(&o.peer.open)) {
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
            return Err(TransportError::Descriptor(format!("session {} is already open", session.0)));
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
            // SAFETY: `at` has checked that the source lies in our region, which `region` keeps mapped. The caller does not write it
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
        LoopbackTransport::start(host, Box::new(drop)).expect("host memory is accepted");
    }
}
