//! One session: its worker, the endpoints of its lanes, the operations in flight, and the steps of closing it.
//!
//! Connecting, draining and disconnecting have deadlines. Puts have none, because only the caller knows when a peer is too slow. The
//! caller then sends `Close`, which has deadlines.

use super::handles::{Endpoint, Request, Worker};
use crate::shards::{Lanes, Piece};
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
    lane: usize,
    /// For a flush: the number of puts posted to the lane before it.
    covers: u64,
    request: Request,
}

enum Closing {
    /// Waits for the operations in flight, then flushes the lanes whose puts are not flushed. `moved` is the time of the last completion.
    Drain { flushes: Option<Vec<(usize, Request)>>, in_flight: usize, moved: Instant, began: Instant },
    /// Waits until the endpoints are closed.
    Disconnect { until: Instant },
}

/// The endpoint of a lane, and its puts.
struct UcxLane {
    endpoint: Endpoint,
    puts_posted: u64,
    /// Number of puts known to be visible at the peer.
    puts_flushed: u64,
}

impl UcxLane {
    fn is_flushed(&self) -> bool {
        self.puts_flushed == self.puts_posted
    }
}

/// A session of the UCX transport. Fields are dropped in this order: requests, endpoints with their keys, worker.
pub(super) struct Session {
    id: TransportSession,
    operations: VecDeque<Operation>,
    /// The flushes that complete when the lanes are connected, and their deadline.
    connecting: Option<(Vec<Request>, Instant)>,
    disconnecting: Vec<Request>,
    /// Empty until the session is told to connect.
    lanes: Vec<UcxLane>,
    worker: Rc<Worker>,
    failure: Option<TransportError>,
    closing: Option<Closing>,
    /// Number of `Close` commands to answer.
    closes: usize,
    put_failed: bool,
}

impl Session {
    pub(super) fn new(id: TransportSession, worker: Rc<Worker>) -> Self {
        Self {
            id,
            operations: VecDeque::new(),
            connecting: None,
            disconnecting: Vec::new(),
            lanes: Vec::new(),
            worker,
            failure: None,
            closing: None,
            closes: 0,
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
            None if !self.lanes.is_empty() => {
                Some(TransportError::Descriptor("session already has a peer".into()))
            }
            None => None,
        };
        if let Some(error) = refused {
            return out.answer(Event::Failed { session: self.id, error });
        }
        match self.begin(peer) {
            Ok((lanes, flushes)) => {
                self.lanes = lanes;
                self.connecting = Some((flushes, now + CONNECT_WITHIN));
            }
            Err(error) => {
                self.failure = Some(error.clone());
                out.answer(Event::Failed { session: self.id, error });
            }
        }
    }

    /// Starts to connect all lanes.
    fn begin(&self, peer: &Descriptor) -> Result<(Vec<UcxLane>, Vec<Request>), TransportError> {
        if peer.transport != super::NAME {
            let reason = format!("transport is {:?}, not \"ucx\"", peer.transport);
            return Err(TransportError::Descriptor(reason));
        }
        let all = Lanes::to(self.worker.regions(), peer)?;
        let begin = |lane| {
            let (local, remote) = all.shards(lane);
            let endpoint = Endpoint::connect(&self.worker, local as usize, &peer.shards[remote as usize])?;
            // A flush without puts completes when the connection is established.
            let flush = endpoint.flush()?;
            Ok((UcxLane { endpoint, puts_posted: 0, puts_flushed: 0 }, flush))
        };
        (0..all.count()).map(begin).collect()
    }

    /// The lane, if operations may be posted on it.
    fn ready(&self, lane: u32) -> Result<&UcxLane, TransportError> {
        if self.closing.is_some() {
            return Err(TransportError::Closed);
        }
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        if self.lanes.is_empty() || self.connecting.is_some() {
            return Err(TransportError::NotConnected(self.id.0));
        }
        self.lanes.get(lane as usize).ok_or(TransportError::NoLane(lane))
    }

    pub(super) fn put(&mut self, ticket: Ticket, piece: Piece, out: &mut Outbox) {
        let Piece { lane, local_offset, remote_offset, bytes } = piece;
        let posted = self.ready(lane).and_then(|to| to.endpoint.put(local_offset, remote_offset, bytes));
        let lane = lane as usize;
        match posted {
            Ok(request) => {
                self.lanes[lane].puts_posted += 1;
                self.operations.push_back(Operation { ticket, is_put: true, lane, covers: 0, request });
            }
            Err(error) => {
                // A failed call may have sent a part of the bytes. Other errors occur before the call.
                self.put_failed |= self.is_open() && matches!(error, TransportError::Call { .. });
                out.answer(Event::PutCompleted { session: self.id, ticket, result: Err(error) });
            }
        }
    }

    /// True unless the session has failed or is closing.
    fn is_open(&self) -> bool {
        self.failure.is_none() && self.closing.is_none()
    }

    pub(super) fn flush(&mut self, ticket: Ticket, lane: u32, out: &mut Outbox) {
        let posted = self.ready(lane).and_then(|to| Ok((to.puts_posted, to.endpoint.flush()?)));
        let lane = lane as usize;
        match posted {
            Ok((covers, request)) => {
                self.operations.push_back(Operation { ticket, is_put: false, lane, covers, request });
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
        self.closing = Some(Closing::Drain { flushes: None, in_flight, moved: now, began: now });
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
        self.disconnecting.extend(self.lanes.iter_mut().filter_map(|lane| lane.endpoint.close(force)));
    }

    fn step_connecting(&mut self, now: Instant, out: &mut Outbox) {
        let Some((flushes, until)) = &mut self.connecting else { return };
        let mut failed = None;
        flushes.retain(|flush| match flush.poll() {
            None => true,
            Some(result) => {
                failed = failed.take().or(result.err());
                false
            }
        });
        if let Some(error) = failed {
            self.fail(error, out);
        } else if flushes.is_empty() {
            self.connecting = None;
            out.answer(Event::Connected { session: self.id, lane: self.lane_names() });
        } else if now >= *until {
            let status = format!("the peer did not answer within {} s", CONNECT_WITHIN.as_secs());
            self.fail(TransportError::Call { call: "ucp_ep_create", status }, out);
        }
    }

    /// The transports and devices of all lanes, each once.
    fn lane_names(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for lane in &self.lanes {
            for name in lane.endpoint.lane().split(',') {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        }
        names.join(",")
    }

    fn reap(&mut self, out: &mut Outbox) {
        let Self { id, operations, lanes, put_failed, .. } = self;
        operations.retain(|operation| {
            let Some(result) = operation.request.poll() else { return true };
            let (session, ticket) = (*id, operation.ticket);
            if operation.is_put {
                *put_failed |= result.is_err();
                out.answer(Event::PutCompleted { session, ticket, result });
            } else {
                if result.is_ok() {
                    let flushed = &mut lanes[operation.lane].puts_flushed;
                    *flushed = operation.covers.max(*flushed);
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
                let closed = self.disconnecting.iter().all(|request| request.poll().is_some());
                (closed && self.operations.is_empty()) || now >= *until
            }
            Some(Closing::Drain { flushes, in_flight, moved, began }) => {
                if self.operations.len() < *in_flight {
                    (*in_flight, *moved) = (self.operations.len(), now);
                }
                let late = now >= *moved + STALL_MAX || now >= *began + DRAIN_WITHIN;
                if !self.operations.is_empty() && !late {
                    return false;
                }
                if let Some(flushes) = flushes {
                    flushes.retain(|(lane, request)| {
                        let result = request.poll();
                        if result == Some(Ok(())) {
                            self.lanes[*lane].puts_flushed = self.lanes[*lane].puts_posted;
                        }
                        result.is_none()
                    });
                    if !flushes.is_empty() && !late {
                        return false;
                    }
                } else if self.failure.is_none() && !late {
                    let lanes = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.is_flushed());
                    let begun: Vec<_> =
                        lanes.filter_map(|(n, lane)| Some((n, lane.endpoint.flush().ok()?))).collect();
                    if !begun.is_empty() {
                        *flushes = Some(begun);
                        return false;
                    }
                }
                self.disconnect(self.failure.is_some() || !self.drained());
                self.closing = Some(Closing::Disconnect { until: now + DISCONNECT_WITHIN });
                false
            }
        }
    }

    fn drained(&self) -> bool {
        self.operations.is_empty() && !self.put_failed && self.lanes.iter().all(UcxLane::is_flushed)
    }

    /// Destroys the endpoints, their rkeys and the worker, and reports that the session has ended.
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
