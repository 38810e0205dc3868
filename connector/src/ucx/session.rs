//! One session: its worker, its endpoint, the operations in flight, and the steps of closing it.
//!
//! Connecting, draining and disconnecting have deadlines. Puts have none, because only the caller knows when a peer is too slow. The
//! caller then sends `Close`, which has deadlines.

use super::handles::{Endpoint, Request, Worker};
use crate::transport::{Descriptor, Event, Ticket, TransportError, TransportSession};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Time limit for connecting. The same as the link's limit for a silent peer.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// Time without a completion after which draining gives up.
const STALL_MAX: Duration = Duration::from_secs(1);
/// Time limit for draining.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// Time limit for closing the endpoint. After that, the worker is destroyed in any case.
const DISCONNECT_WITHIN: Duration = Duration::from_secs(1);

/// The events of one iteration, and the number of commands that they answer.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) events: Vec<Event>,
    pub(super) answered: usize,
}

impl Outbox {
    /// Adds the final event of a command.
    pub(super) fn answer(&mut self, event: Event) {
        self.answered += 1;
        self.events.push(event);
    }

    /// Adds an event that answers no command.
    fn report(&mut self, event: Event) {
        self.events.push(event);
    }
}

/// A put or flush in flight.
struct Operation {
    ticket: Ticket,
    is_put: bool,
    /// For a flush: the number of puts posted before it.
    covers: u64,
    request: Request,
}

enum Closing {
    /// Waits for the operations in flight, then flushes the puts. `moved` is the time of the last completion.
    Drain { flush: Option<Request>, in_flight: usize, moved: Instant, began: Instant },
    /// Waits until the endpoint is closed.
    Disconnect { until: Instant },
}

/// A session of the UCX transport. Fields are dropped in this order: requests, endpoint with its key, worker.
pub(super) struct Session {
    id: TransportSession,
    operations: VecDeque<Operation>,
    connecting: Option<(Request, Instant)>,
    disconnecting: Option<Request>,
    endpoint: Option<Endpoint>,
    worker: Rc<Worker>,
    failure: Option<TransportError>,
    closing: Option<Closing>,
    /// Number of `Close` commands to answer.
    closes: usize,
    puts_posted: u64,
    /// Number of puts known to be visible at the peer.
    puts_flushed: u64,
    put_failed: bool,
}

impl Session {
    pub(super) fn new(id: TransportSession, worker: Rc<Worker>) -> Self {
        Self {
            id,
            operations: VecDeque::new(),
            connecting: None,
            disconnecting: None,
            endpoint: None,
            worker,
            failure: None,
            closing: None,
            closes: 0,
            puts_posted: 0,
            puts_flushed: 0,
            put_failed: false,
        }
    }

    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// True while operations are in flight or a deadline runs. The thread then polls the session often.
    pub(super) fn busy(&self) -> bool {
        !self.operations.is_empty() || self.connecting.is_some() || self.closing.is_some()
    }

    pub(super) fn connect(&mut self, peer: &Descriptor, now: Instant, out: &mut Outbox) {
        let refused = match &self.failure {
            Some(error) => Some(error.clone()),
            None if self.closing.is_some() => Some(TransportError::Closed),
            None if self.endpoint.is_some() => {
                Some(TransportError::Descriptor("session already has a peer".into()))
            }
            None => None,
        };
        if let Some(error) = refused {
            return out.answer(Event::Failed { session: self.id, error });
        }
        let begun = Endpoint::connect(&self.worker, peer)
            // A flush without puts completes when the connection is established.
            .and_then(|endpoint| endpoint.flush().map(|flush| (endpoint, flush)));
        match begun {
            Ok((endpoint, flush)) => {
                self.endpoint = Some(endpoint);
                self.connecting = Some((flush, now + CONNECT_WITHIN));
            }
            Err(error) => {
                self.failure = Some(error.clone());
                out.answer(Event::Failed { session: self.id, error });
            }
        }
    }

    /// The endpoint, if operations may be posted on it.
    fn ready(&self) -> Result<&Endpoint, TransportError> {
        if self.closing.is_some() {
            return Err(TransportError::Closed);
        }
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        match &self.endpoint {
            Some(endpoint) if self.connecting.is_none() => Ok(endpoint),
            _ => Err(TransportError::NotConnected(self.id.0)),
        }
    }

    pub(super) fn put(&mut self, ticket: Ticket, local: u64, remote: u64, bytes: u64, out: &mut Outbox) {
        let endpoint = match self.ready() {
            Ok(endpoint) => endpoint,
            Err(error) => {
                out.answer(Event::PutCompleted { session: self.id, ticket, result: Err(error) });
                return;
            }
        };
        match endpoint.put(local, remote, bytes) {
            Ok(request) => {
                self.puts_posted += 1;
                self.operations.push_back(Operation { ticket, is_put: true, covers: 0, request });
            }
            Err(error) => {
                // A failed call may have sent a part of the bytes. Other errors occur before the call.
                self.put_failed |= matches!(error, TransportError::Call { .. });
                out.answer(Event::PutCompleted { session: self.id, ticket, result: Err(error) });
            }
        }
    }

    pub(super) fn flush(&mut self, ticket: Ticket, out: &mut Outbox) {
        match self.ready().and_then(Endpoint::flush) {
            Ok(request) => {
                let covers = self.puts_posted;
                self.operations.push_back(Operation { ticket, is_put: false, covers, request });
            }
            Err(error) => out.answer(Event::Flushed { session: self.id, ticket, result: Err(error) }),
        }
    }

    /// Starts to close the session. If `commanded` is true, the end of the session answers a `Close` command.
    pub(super) fn close(&mut self, commanded: bool, now: Instant, out: &mut Outbox) {
        self.closes += usize::from(commanded);
        if self.closing.is_some() {
            return;
        }
        if self.connecting.take().is_some() {
            out.answer(Event::Failed { session: self.id, error: TransportError::Closed });
            self.disconnect(true);
        }
        let in_flight = self.operations.len();
        self.closing = Some(Closing::Drain { flush: None, in_flight, moved: now, began: now });
    }

    /// Polls everything in flight. True if the session can be finished.
    pub(super) fn step(&mut self, now: Instant, out: &mut Outbox) -> bool {
        if self.failure.is_none()
            && let Some(error) = self.worker.failure()
        {
            self.fail(error, out);
        }
        self.step_connecting(now, out);
        self.reap(out);
        self.step_closing(now)
    }

    fn fail(&mut self, error: TransportError, out: &mut Outbox) {
        self.failure = Some(error.clone());
        let event = Event::Failed { session: self.id, error };
        if self.connecting.take().is_some() {
            out.answer(event)
        } else {
            out.report(event)
        }
        // Closing by force makes the operations in flight fail.
        self.disconnect(true);
    }

    fn disconnect(&mut self, force: bool) {
        if let Some(endpoint) = &mut self.endpoint
            && let Some(request) = endpoint.close(force)
        {
            self.disconnecting = Some(request);
        }
    }

    fn step_connecting(&mut self, now: Instant, out: &mut Outbox) {
        let Some((flush, until)) = &self.connecting else { return };
        match flush.poll() {
            None if now < *until => {}
            None => {
                let status = format!("the peer did not answer within {} s", CONNECT_WITHIN.as_secs());
                self.fail(TransportError::Call { call: "ucp_ep_create", status }, out);
            }
            Some(Err(error)) => self.fail(error, out),
            Some(Ok(())) => {
                self.connecting = None;
                let lane = self.endpoint.as_ref().map(Endpoint::lane).unwrap_or_default();
                out.answer(Event::Connected { session: self.id, lane });
            }
        }
    }

    fn reap(&mut self, out: &mut Outbox) {
        let Self { id, operations, puts_flushed, put_failed, .. } = self;
        operations.retain(|operation| {
            let Some(result) = operation.request.poll() else { return true };
            let (session, ticket) = (*id, operation.ticket);
            if operation.is_put {
                *put_failed |= result.is_err();
                out.answer(Event::PutCompleted { session, ticket, result });
            } else {
                if result.is_ok() {
                    *puts_flushed = operation.covers.max(*puts_flushed);
                }
                out.answer(Event::Flushed { session, ticket, result });
            }
            false
        });
    }

    /// Advances the closing. True if it is complete.
    fn step_closing(&mut self, now: Instant) -> bool {
        match &mut self.closing {
            None => false,
            Some(Closing::Disconnect { until }) => {
                let closed = self.disconnecting.as_ref().is_none_or(|request| request.poll().is_some());
                (closed && self.operations.is_empty()) || now >= *until
            }
            Some(Closing::Drain { flush, in_flight, moved, began }) => {
                if self.operations.len() < *in_flight {
                    (*in_flight, *moved) = (self.operations.len(), now);
                }
                let late = now >= *moved + STALL_MAX || now >= *began + DRAIN_WITHIN;
                if !self.operations.is_empty() && !late {
                    return false;
                }
                if let Some(request) = flush {
                    match request.poll() {
                        None if !late => return false,
                        Some(Ok(())) => self.puts_flushed = self.puts_posted,
                        _ => {}
                    }
                } else if self.puts_flushed < self.puts_posted
                    && self.failure.is_none()
                    && !late
                    && let Some(Ok(request)) = self.endpoint.as_ref().map(Endpoint::flush)
                {
                    *flush = Some(request);
                    return false;
                }
                self.disconnect(self.failure.is_some() || !self.drained());
                self.closing = Some(Closing::Disconnect { until: now + DISCONNECT_WITHIN });
                false
            }
        }
    }

    fn drained(&self) -> bool {
        self.operations.is_empty() && !self.put_failed && self.puts_flushed == self.puts_posted
    }

    /// Destroys the endpoint, the rkey and the worker, and reports that the session has ended.
    pub(super) fn finish(mut self, out: &mut Outbox) {
        let (session, closes, drained) = (self.id, self.closes, self.drained());
        for operation in self.operations.drain(..) {
            let (ticket, result) = (operation.ticket, Err(TransportError::Closed));
            out.answer(match operation.is_put {
                true => Event::PutCompleted { session, ticket, result },
                false => Event::Flushed { session, ticket, result },
            });
        }
        drop(self);
        for _ in 0..closes {
            out.answer(Event::Closed { session, drained });
        }
        if closes == 0 {
            out.report(Event::Closed { session, drained });
        }
    }
}
