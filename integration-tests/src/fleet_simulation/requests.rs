//! The life of a request at its proxy.

use std::net::SocketAddr;

use actors::fleet::{Failure, FleetAsk, FleetRefusal, FleetTicket};

use super::parts::{Proxy, Request};
use super::plan::{BEGIN, DEADLINE, MILLI, SECOND};
use super::world::{Event, Leg, World};

/// The longest time to a first byte if nothing is broken.
const WAIT_MAX: u64 = 5 * SECOND;
/// A request ends so long after its deadline at the latest: a connection whose other end is gone may stay for 10 s.
const OVERTIME: u64 = 10 * SECOND;
const ATTEMPTS: usize = 3;

impl World {
    pub(super) fn on_arrival(&mut self) {
        let proxy = self.dice.between(0, self.plan.proxies as u64 - 1) as usize;
        self.asked += 1;
        self.after(0, Event::Ask { proxy });
        if self.asked < self.plan.requests {
            // Each request has an interval of its own, so that the last one arrives in time.
            let interval = |request: u64| BEGIN + (self.plan.ends - BEGIN) * request / self.plan.requests;
            let (from, to) = (interval(self.asked), interval(self.asked + 1));
            let at = self.dice.between(from, to);
            self.at(at.max(self.now), Event::Arrive);
        }
    }

    /// A proxy has read a request and places it.
    pub(super) fn ask(&mut self, proxy: usize) {
        let id = self.number_request();
        let conversation = self.dice.between(1, 4 * self.plan.nodes as u64);
        let (system, own) = (conversation % 16, self.dice.between(16, 400));
        let system = (0..256).map(|token| (system * 1000 + token) as u32);
        let prompt: Vec<u32> =
            system.chain((0..own).map(|token| (conversation * 10_000 + token) as u32)).collect();
        let tokens = self.dice.between(10, 70) as u32;
        let time = self.time(proxy);
        let ask =
            FleetAsk { model: None, prompt: &prompt, salt: None, hashes: None, max_tokens: Some(tokens) };
        let placed = self.proxies[proxy].state.place(time, &ask);
        let ticket = match placed {
            Ok(ticket) => ticket,
            Err(refusal) => {
                if self.has_place(proxy, &[]) {
                    self.fail(format!("request {id} is refused, although a node takes requests: {refusal}"));
                }
                if self.plan.is_calm_at(self.now) {
                    self.fail(format!("request {id} is refused without a fault: {refusal}"));
                }
                self.note(|| format!("request {id} is refused by proxy {proxy}: {refusal}"));
                return self.count("refused without a node");
            }
        };
        let request = Request {
            proxy,
            ticket: ticket.id,
            conversation,
            prompt,
            tokens,
            is_wrong: self.dice.one_in(100),
            arrived: self.now,
            paused: self.proxies[proxy].paused,
            attempt: 0,
            placed: self.now,
            node: ticket.decode_on,
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            prefill_on: None,
            began: false,
            has_place: false,
            tried: Vec::new(),
            got: Vec::new(),
        };
        self.requests.insert(id, request);
        self.proxies[proxy].requests.insert(id);
        self.after(DEADLINE, Event::Deadline(id));
        if self.dice.one_in(20) {
            let after = self.dice.between(0, 2 * SECOND);
            self.after(after, Event::ClientLeaves(id));
        }
        self.send(id, &ticket);
    }

    fn number_request(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// Sends a request to the node where it was placed.
    fn send(&mut self, id: u64, ticket: &FleetTicket) {
        let Some(proxy) = self.requests.get(&id).map(|request| request.proxy) else { return };
        self.check_placement(proxy, ticket);
        let Some(node) = self.proxies[proxy].known.get_mut(&ticket.decode_on) else { return };
        node.requests.insert(id);
        let to = node.address;
        let Some(request) = self.requests.get_mut(&id) else { return };
        (request.node, request.to, request.prefill_on) = (ticket.decode_on, to, ticket.prefill_on);
        (request.attempt, request.placed) = (request.attempt + 1, self.now);
        let leg = Leg { request: id, attempt: request.attempt };
        let hop = self.hop();
        self.after(hop, Event::Deliver(leg));
    }

    /// The request of an event, if the event belongs to its present attempt.
    pub(super) fn current(&self, leg: Leg) -> Option<&Request> {
        self.requests.get(&leg.request).filter(|request| request.attempt == leg.attempt)
    }

    /// True if bytes of the node of a request reach its proxy now.
    fn is_reached(&self, leg: Leg) -> bool {
        self.current(leg).is_none_or(|request| {
            self.places.get(&request.to).is_none_or(|place| !self.are_parted(request.proxy, *place))
        })
    }

    pub(super) fn first_byte(&mut self, leg: Leg, is_error: bool) {
        if !self.is_reached(leg) {
            return self.after(50 * MILLI, Event::FirstByte { leg, is_error });
        }
        let Some(request) = self.current(leg) else { return };
        let (proxy, ticket, arrived) = (request.proxy, request.ticket, request.arrived);
        let time = self.time(proxy);
        let state = &mut self.proxies[proxy].state;
        if is_error {
            state.rejected(time, ticket)
        } else {
            state.answered(time, ticket)
        }
        self.leave_budget(leg.request);
        if let Some(request) = self.requests.get_mut(&leg.request) {
            request.began = true;
        }
        let wait = self.now - arrived;
        if self.plan.is_calm_at(arrived) {
            self.report.longest_wait = self.report.longest_wait.max(wait);
            if wait > WAIT_MAX {
                self.fail(format!("request {} waits {wait} us for its first byte", leg.request));
            }
        }
    }

    pub(super) fn finished(&mut self, leg: Leg) {
        if !self.is_reached(leg) || self.current(leg).is_some_and(|request| !request.began) {
            return self.after(50 * MILLI, Event::Finished(leg));
        }
        let Some(request) = self.current(leg) else { return };
        let (proxy, ticket) = (request.proxy, request.ticket);
        let time = self.time(proxy);
        self.proxies[proxy].state.completed(time, ticket);
        self.end(
            leg.request,
            if request_is_wrong(self, leg) { "answered with an error" } else { "finished" },
        );
    }

    /// The proxy cuts the connection of a request.
    pub(super) fn cut(&mut self, id: u64) {
        if let Some(request) = self.requests.get(&id) {
            self.failed(Leg { request: id, attempt: request.attempt }, Failure::Broke);
        }
    }

    pub(super) fn deadline(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id).filter(|request| !request.began) else { return };
        let left = (request.arrived + DEADLINE).saturating_sub(request.placed);
        let failure = if left >= DEADLINE / 2 { Failure::Late } else { Failure::OutOfTime };
        self.failed(Leg { request: id, attempt: request.attempt }, failure);
    }

    pub(super) fn client_leaves(&mut self, id: u64) {
        if self.requests.contains_key(&id) {
            self.end(id, "left by the client");
        }
    }

    /// The node of a request has failed. The state decides what follows.
    pub(super) fn failed(&mut self, leg: Leg, failure: Failure) {
        let Some(request) = self.current(leg) else { return };
        let (proxy, ticket, began) = (request.proxy, request.ticket, request.began);
        self.leave_node(leg.request);
        let time = self.time(proxy);
        // The proxy reports a broken answer without asking for another node. The state must not give one either.
        if began && self.dice.one_in(2) {
            self.proxies[proxy].state.broke_off(time, ticket);
            return self.end(leg.request, "broken after the first byte");
        }
        let Some(request) = self.requests.get_mut(&leg.request) else { return };
        request.tried.push(request.node);
        let cost_nothing = matches!(failure, Failure::Unreachable | Failure::Draining);
        let needs_place = !cost_nothing && !request.has_place;
        let Proxy { state, requests, retrying, .. } = &mut self.proxies[proxy];
        let has_budget = !needs_place || *retrying < (requests.len() / 10).max(3);
        let next = state.failed(time, ticket, failure, &request.ask());
        let (is_late, id) = (matches!(failure, Failure::Late | Failure::OutOfTime), leg.request);
        let (tried, got) = (request.tried.clone(), request.got.clone());
        match next {
            Ok(_) if began => self.fail(format!("request {id} gets another node after its first byte")),
            Ok(_) if !has_budget => {
                self.fail(format!("request {id} is retried without a place in the budget"))
            }
            Ok(_) if is_late || tried.len() >= ATTEMPTS => {
                self.fail(format!("request {id} is retried after {failure:?} and {} attempts", tried.len()));
            }
            Ok(ticket) => {
                if needs_place {
                    request.has_place = true;
                    *retrying += 1;
                }
                self.report.retries += 1;
                let address = self.proxies[proxy].known.get(&ticket.decode_on).map(|node| node.address);
                let place = address.and_then(|address| self.places.get(&address));
                let process = place.map(|place| &self.nodes[*place]).filter(|node| node.is_alive);
                let again = process.map(|node| node.incarnation);
                if tried.contains(&ticket.decode_on) || again.is_some_and(|again| got.contains(&again)) {
                    self.fail(format!("request {id} is placed twice on the node at {address:?}"));
                }
                self.send(id, &ticket);
            }
            Err(_) if began => self.end(id, "broken after the first byte"),
            Err(refusal) => {
                let could = has_budget && !is_late && tried.len() < ATTEMPTS && self.has_place(proxy, &tried);
                if could {
                    self.fail(format!("request {id} is given up, although a node takes requests: {refusal}"));
                }
                self.note(|| format!("request {id} is given up by proxy {proxy}: {refusal}"));
                self.end(
                    id,
                    match refusal {
                        FleetRefusal::Late => "late",
                        FleetRefusal::Busy { .. } => "refused by busy nodes",
                        _ => "lost",
                    },
                );
            }
        }
    }

    /// The node no longer has the request. A node that the proxy does not reach goes on with it.
    fn leave_node(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        let (proxy, attempt) = (request.proxy, request.attempt);
        if let Some(node) = self.proxies[proxy].known.get_mut(&request.node) {
            node.requests.remove(&id);
        }
        if let Some(place) = self.places.get(&request.to).copied()
            && !self.are_parted(proxy, place)
            && !self.nodes[place].is_frozen(self.now)
            && self.nodes[place].release(id, attempt)
        {
            self.pump(place);
        }
    }

    fn leave_budget(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        if std::mem::take(&mut request.has_place) {
            self.proxies[request.proxy].retrying -= 1;
        }
    }

    /// A request ends.
    pub(super) fn end(&mut self, id: u64, how: &'static str) {
        self.leave_node(id);
        self.leave_budget(id);
        let request = self.requests.remove(&id).expect("the request is live");
        let proxy = request.proxy;
        let time = self.time(proxy);
        self.proxies[proxy].state.ended(time, request.ticket);
        self.proxies[proxy].requests.remove(&id);
        let pauses = self.proxies[proxy].paused - request.paused;
        if self.now > request.arrived + DEADLINE + OVERTIME + pauses {
            self.fail(format!("request {id} ends {} us after its arrival", self.now - request.arrived));
        }
        let is_answered = ["finished", "answered with an error", "left by the client"].contains(&how);
        if !is_answered && self.plan.is_calm_at(request.arrived) {
            self.fail(format!("request {id} ends without a fault: {how}"));
        }
        self.count(how);
    }

    fn count(&mut self, how: &'static str) {
        *self.report.ends.entry(how).or_default() += 1;
    }
}

fn request_is_wrong(world: &World, leg: Leg) -> bool {
    world.current(leg).is_some_and(|request| request.is_wrong)
}
