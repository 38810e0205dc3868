//! The life of a request at a node.

use actors::fleet::Failure;

use super::node::{Job, Manner, PAGE_TOKENS};
use super::plan::{DEADLINE, MILLI, SECOND};
use super::world::{Event, Leg, Process, World};

impl World {
    /// A request comes to the node at its address.
    pub(super) fn deliver(&mut self, leg: Leg) {
        let Some(request) = self.current(leg) else { return };
        let (proxy, wrong) = (request.proxy, request.is_wrong);
        let left = (request.arrived + DEADLINE).saturating_sub(self.now);
        let pages = (request.prompt.len() as u32 + request.tokens).div_ceil(PAGE_TOKENS);
        let place = self.places.get(&request.to).copied();
        let Some(place) = place.filter(|place| self.nodes[*place].is_alive) else {
            return self.after(MILLI, Event::Failed(leg, Failure::Unreachable));
        };
        if self.are_parted(proxy, place) {
            // A new connection is not made within a second. A kept one waits.
            return match self.dice.one_in(2) {
                true => self.after(SECOND, Event::Failed(leg, Failure::Unreachable)),
                false => self.after(50 * MILLI, Event::Deliver(leg)),
            };
        }
        if self.nodes[place].is_frozen(self.now) {
            return self.after(50 * MILLI, Event::Deliver(leg));
        }
        let node = &mut self.nodes[place];
        let (on, manner) = ((place, node.life), node.handles(self.now));
        let (drains, is_full) = (node.is_draining, node.queue.len() >= node.queue_max());
        if let Some(request) = self.requests.get_mut(&leg.request) {
            request.got.push(node.incarnation);
        }
        let hop = self.hop();
        match manner {
            Manner::Breaks => return self.after(hop, Event::Failed(leg, Failure::Broke)),
            Manner::Busy => return self.after(hop, Event::Failed(leg, Failure::Busy)),
            _ if drains => return self.after(hop, Event::Failed(leg, Failure::Draining)),
            _ if is_full => return self.after(hop, Event::Failed(leg, Failure::Busy)),
            _ if wrong && manner == Manner::Answers => {
                self.after(hop, Event::FirstByte { leg, is_error: true });
                return self.after(hop, Event::Finished(leg));
            }
            _ => {}
        }
        let job = Job { attempt: leg.attempt, pages, runs: false, began: false };
        let node = &mut self.nodes[place];
        node.jobs.insert(leg.request, job);
        // The time that the proxy allows, and after which the node ends the request.
        self.after(left - (left / 16).min(SECOND), Event::Expires { leg, on });
        if manner != Manner::Mute {
            self.nodes[place].queue.push_back(leg.request);
            let longest = &mut self.report.longest_queue;
            *longest = (*longest).max(self.nodes[place].queue.len() as u64);
            self.pump(place);
        }
    }

    /// Starts the requests in a node's queue for which it has rows and pages.
    pub(super) fn pump(&mut self, place: usize) {
        loop {
            let now = self.now;
            let node = &mut self.nodes[place];
            let Some(id) = node.queue.front().copied() else { return };
            let (has_row, free) = (node.rows < node.rows_max, node.pool() - node.pages);
            let Some(job) = node.jobs.get_mut(&id) else {
                node.queue.pop_front();
                continue;
            };
            if !has_row || job.pages > free {
                return;
            }
            job.runs = true;
            (node.rows, node.pages) = (node.rows + 1, node.pages + job.pages);
            node.queue.pop_front();
            let (leg, on) = (Leg { request: id, attempt: job.attempt }, (place, node.life));
            let Some(request) = self.current(leg) else {
                self.nodes[place].release(id, leg.attempt);
                continue;
            };
            let (conversation, tokens) = (request.conversation, request.prompt.len() as u64);
            let is_calm = self.plan.is_calm_at(request.arrived);
            let helper = request.prefill_on.and_then(|address| self.places.get(&address).copied());
            let helper = helper.filter(|helper| self.nodes[*helper].is_alive);
            for used in [helper.unwrap_or(place), place] {
                self.nodes[used].is_used |= is_calm;
            }
            let at = self.nodes[helper.unwrap_or(place)].prefill(now, conversation, tokens);
            let by = helper.map(|helper| (helper, self.nodes[helper].life));
            self.report.handed_over += u64::from(by.is_some());
            self.at(at, Event::Prefilled { leg, on, by });
        }
    }

    /// The job of a leg on a process, if it is there and the process runs. A stopped process handles the event later.
    fn job(&mut self, leg: Leg, on: Process, event: impl FnOnce() -> Event) -> Option<Job> {
        let node = &self.nodes[on.0];
        if node.life != on.1 {
            return None;
        }
        if node.is_frozen(self.now) {
            let until = node.frozen_until;
            self.at(until, event());
            return None;
        }
        node.jobs.get(&leg.request).filter(|job| job.attempt == leg.attempt).cloned()
    }

    pub(super) fn prefilled(&mut self, leg: Leg, on: Process, by: Option<Process>) {
        if self.job(leg, on, || Event::Prefilled { leg, on, by }).is_none() {
            return;
        }
        let Some(request) = self.current(leg) else { return };
        let (conversation, prompt) = (request.conversation, request.prompt.len() as u64);
        let tokens = u64::from(request.tokens);
        if let Some((helper, life)) = by {
            let helper = &self.nodes[helper];
            if helper.life != life {
                // The node computes the prompt itself.
                let at = self.nodes[on.0].prefill(self.now, conversation, prompt);
                return self.at(at, Event::Prefilled { leg, on, by: None });
            }
            if helper.is_frozen(self.now) {
                let until = helper.frozen_until;
                return self.at(until, Event::Prefilled { leg, on, by });
            }
        }
        let node = &mut self.nodes[on.0];
        if let Some(job) = node.jobs.get_mut(&leg.request) {
            job.began = true;
        }
        let (length, manner) = (tokens * node.step(self.now), node.handles(self.now));
        let hop = self.hop();
        self.after(hop, Event::FirstByte { leg, is_error: false });
        if manner == Manner::BreaksAnswers {
            self.nodes[on.0].release(leg.request, leg.attempt);
            self.after(hop + MILLI, Event::Failed(leg, Failure::Broke));
            return self.pump(on.0);
        }
        self.after(length, Event::Done { leg, on });
    }

    pub(super) fn done(&mut self, leg: Leg, on: Process) {
        if self.job(leg, on, || Event::Done { leg, on }).is_some() {
            self.nodes[on.0].release(leg.request, leg.attempt);
            let hop = self.hop();
            self.after(hop, Event::Finished(leg));
            self.pump(on.0);
        }
    }

    /// The node ends a request whose time is over: with 504 before its first byte, and with a shorter answer after it.
    pub(super) fn expires(&mut self, leg: Leg, on: Process) {
        let Some(job) = self.job(leg, on, || Event::Expires { leg, on }) else { return };
        let is_mute = !job.runs && !self.nodes[on.0].queue.contains(&leg.request);
        self.nodes[on.0].release(leg.request, leg.attempt);
        if is_mute {
            return;
        }
        let hop = self.hop();
        if !job.began {
            self.after(hop, Event::FirstByte { leg, is_error: true });
        }
        self.after(hop, Event::Finished(leg));
        self.pump(on.0);
    }
}
