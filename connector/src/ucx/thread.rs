//! The thread "baton-ucx" owns all UCX objects. No other thread calls UCX.
//!
//! In each iteration the thread takes commands, progresses all workers, polls for completions, and passes one batch of events to the sink.
//! If nothing happens it spins for [`SPIN`], then yields for [`YIELD`], then arms all workers and sleeps until one of their
//! descriptors or the command queue wakes it.
//!
//! Over TCP the *receiver's* progress reads the bytes from the socket into their place, and the armed descriptor wakes the receiver.
//! The sleep also has a timeout, in case UCX loses a wake-up; none was ever observed. It is [`PARK_BUSY`] while operations are in
//! flight or shortly after, otherwise [`PARK_IDLE`], which costs 0.2 % of a core.

use super::handles::{Arm, Context, Worker};
use super::session::{Outbox, Session};
use crate::shards::Piece;
use crate::transport::queue::Queue;
use crate::transport::{Command, Event, EventSink, TransportError, TransportSession};
use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time since the last activity for which the thread spins. Longer than the gap between two completions of a running transfer, and far
/// shorter than a scheduler's time slice.
const SPIN: Duration = Duration::from_micros(20);
/// Time since the last activity for which the thread then yields the core. Sleeping earlier would not pay, because a wake-up takes
/// longer than the lane's pauses within a page.
const YIELD: Duration = Duration::from_micros(200);
/// Maximum sleep while operations are in flight, or shortly after activity.
const PARK_BUSY: Duration = Duration::from_millis(1);
/// Maximum sleep otherwise. The watchdog's counter must advance ten times per second.
const PARK_IDLE: Duration = Duration::from_millis(80);
/// Time since the last activity for which the maximum sleep is [`PARK_BUSY`].
const WARM: Duration = Duration::from_secs(1);
/// Maximum number of progress calls per worker in one iteration, so that a peer that sends without a pause does not starve the other
/// sessions.
const ROUNDS_MAX: usize = 64;

pub(super) struct Thread {
    queue: Arc<Queue>,
    sink: EventSink,
    sessions: BTreeMap<TransportSession, Session>,
    context: Rc<Context>,
    out: Outbox,
    stopping: bool,
}

impl Thread {
    pub(super) fn new(queue: Arc<Queue>, context: Rc<Context>, sink: EventSink) -> Self {
        let (sessions, out) = (BTreeMap::new(), Outbox::default());
        Self { queue, sink, sessions, context, out, stopping: false }
    }

    /// Runs until the transport is shut down and all sessions are closed.
    pub(super) fn run(mut self) {
        let mut commands = Vec::new();
        let mut active_at = Instant::now();
        loop {
            let mut now = Instant::now();
            let stop = self.queue.take(&mut commands);
            if stop && !self.stopping {
                self.stopping = true;
                for session in self.sessions.values_mut() {
                    session.close(false, now, &mut self.out);
                }
            }
            let mut active = !commands.is_empty();
            for command in commands.drain(..) {
                self.handle(command, now);
            }
            for session in self.sessions.values() {
                let rounds = (0..ROUNDS_MAX).take_while(|_| session.worker().progress()).count();
                active |= rounds > 0;
            }
            now = Instant::now();
            self.step(now);
            active |= self.deliver();
            if self.stopping && self.sessions.is_empty() && !active {
                return;
            }
            if active {
                active_at = now;
            } else if now < active_at + SPIN {
                std::hint::spin_loop();
            } else if now < active_at + YIELD {
                std::thread::yield_now();
            } else {
                self.park(now < active_at + WARM);
            }
        }
    }

    fn step(&mut self, now: Instant) {
        let finished: Vec<_> = self
            .sessions
            .iter_mut()
            .filter_map(|(id, session)| session.step(now, &mut self.out).then_some(*id))
            .collect();
        for id in finished {
            if let Some(session) = self.sessions.remove(&id) {
                session.finish(&mut self.out);
            }
        }
    }

    /// Passes the events of this iteration to the sink. True if there were any.
    fn deliver(&mut self) -> bool {
        let Outbox { events, answered } = mem::take(&mut self.out);
        let any = !events.is_empty();
        if any {
            // Before the sink, because the receiver of an answer may submit another command at once.
            self.queue.answered(answered);
            (self.sink)(events);
        }
        any
    }

    fn park(&self, warm: bool) {
        let mut busy = warm && !self.sessions.is_empty();
        let mut fds = Vec::with_capacity(self.sessions.len());
        for session in self.sessions.values() {
            busy |= session.busy();
            match session.worker().arm() {
                Arm::Armed => fds.push(session.worker().efd()),
                Arm::Busy => return,
                Arm::Failed => busy = true,
            }
        }
        self.queue.park(&fds, if busy { PARK_BUSY } else { PARK_IDLE }, self.stopping);
    }

    fn open(&mut self, session: TransportSession) -> Result<crate::transport::Descriptor, TransportError> {
        if self.stopping {
            return Err(TransportError::Closed);
        }
        if self.sessions.contains_key(&session) {
            return Err(TransportError::Descriptor(format!("session {} is already open", session.0)));
        }
        let worker = Worker::new(&self.context)?;
        let descriptor = worker.descriptor()?;
        self.sessions.insert(session, Session::new(session, worker));
        Ok(descriptor)
    }

    fn handle(&mut self, command: Command, now: Instant) {
        let missing = |session: TransportSession| match self.stopping {
            true => TransportError::Closed,
            false => TransportError::NotConnected(session.0),
        };
        match command {
            Command::Open { session } => {
                let result = self.open(session);
                self.out.answer(Event::Opened { session, result });
            }
            Command::Connect { session, peer } => match self.sessions.get_mut(&session) {
                Some(found) => found.connect(&peer, now, &mut self.out),
                None => self.out.answer(Event::Failed { session, error: missing(session) }),
            },
            Command::Put { session, ticket, lane, local_offset, remote_offset, bytes } => {
                let piece = Piece { lane, local_offset, remote_offset, bytes };
                match self.sessions.get_mut(&session) {
                    Some(found) => found.put(ticket, piece, &mut self.out),
                    None => {
                        let result = Err(missing(session));
                        self.out.answer(Event::PutCompleted { session, ticket, result });
                    }
                }
            }
            Command::Flush { session, ticket, lane } => match self.sessions.get_mut(&session) {
                Some(found) => found.flush(ticket, lane, &mut self.out),
                None => {
                    let result = Err(missing(session));
                    self.out.answer(Event::Flushed { session, ticket, result });
                }
            },
            Command::Close { session } => match self.sessions.get_mut(&session) {
                Some(found) => found.close(true, now, &mut self.out),
                // The session is not open. Whether it had drained is not known any more.
                None => self.out.answer(Event::Closed { session, drained: false }),
            },
        }
    }
}
