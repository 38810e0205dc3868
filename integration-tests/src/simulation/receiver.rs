//! The receiver's proxy and decoder, and what both roles have: buffer manager and generator.

use actors::buffer_manager::state::{self as buffers, PageUse};
use actors::decoder::state as decoder;
use actors::generator::state::Plan as StepPlan;
use actors::messages::{Decode, SequenceAdvanced};
use connector::frame::Frame;
use connector::page_hash::PageSeed;
use engine::PageId;

use super::machine::{Step, follow, is_own};
use super::node::{Actor, Mail};
use super::plan::MS;
use super::world::{Event, RECEIVER, World};

impl World {
    pub(super) fn receiver_takes(&mut self, actor: Actor, mail: Mail) {
        let now = self.instant();
        let Some((proxy, decoder)) = self.nodes[RECEIVER].receiver() else { return };
        if actor == Actor::Proxy {
            match mail {
                Mail::Generate(generate) => {
                    let request = generate.request;
                    match proxy.route(now, &generate) {
                        Ok(prefill_on) => {
                            let decode = Decode { generate, prefill_on };
                            self.post(RECEIVER, Actor::Decoder, Mail::Decode(decode));
                        }
                        Err(refused) => self.close(request, refused.kind()),
                    }
                }
                Mail::PrefillOver(over) => proxy.on_prefill_over(now, &over),
                Mail::PeerReady(session, _) => proxy.on_peer_ready(session),
                Mail::PeerLeaving(session) | Mail::PeerLost(session) => proxy.on_peer_lost(session),
                other => self.fail(format!("the proxy was sent {other:?}")),
            }
            return;
        }
        let actions = match mail {
            Mail::PeerReady(session, pid) => return decoder.on_peer_ready(session, pid),
            Mail::PeerLost(session) => {
                let actions = decoder.on_peer_lost(session);
                if decoder.waiting_for(session) > 0 {
                    return self.fail(format!("requests still wait for the lost {session}"));
                }
                actions
            }
            Mail::Decode(decode) => {
                let client = self.clients.get(&decode.generate.request);
                let client_waits = client.is_some_and(|client| !client.left);
                decoder.on_decode(now, decode, client_waits)
            }
            Mail::Abort(request) => decoder.on_abort(request),
            Mail::Reserved(reserved) => decoder.on_reserved(now, reserved),
            Mail::Grown(grown) => decoder.on_grown(grown),
            Mail::Short(short) => decoder.on_short(short),
            Mail::Adopted(adopted) => decoder.on_adopted(now, adopted),
            Mail::Rejected(request) => decoder.on_rejected(request),
            Mail::Advanced(event) => decoder.on_advanced(now, event),
            Mail::PrefillFinished(finished) => decoder.on_prefill_finished(now, finished),
            Mail::PrefillFailed(failed) => decoder.on_prefill_failed(failed.session, failed.request),
            Mail::Tick => decoder.on_tick(now),
            other => return self.fail(format!("the decoder was sent {other:?}")),
        };
        self.decoder_does(actions);
    }

    fn decoder_does(&mut self, actions: Vec<decoder::Action>) {
        let mut gone = Vec::new();
        for action in actions {
            match action {
                decoder::Action::Reserve(reserve) => {
                    self.post(RECEIVER, Actor::Buffers, Mail::Reserve(reserve));
                }
                decoder::Action::Release(sequence) => {
                    self.post(RECEIVER, Actor::Buffers, Mail::Release(sequence));
                }
                decoder::Action::Grow(grow) => self.post(RECEIVER, Actor::Buffers, Mail::Grow(grow)),
                decoder::Action::Computed(computed) => {
                    self.post(RECEIVER, Actor::Buffers, Mail::Computed(computed));
                }
                decoder::Action::Extend(extend) => {
                    self.post(RECEIVER, Actor::Generator, Mail::Extend(extend));
                }
                decoder::Action::Start(start) => self.post(RECEIVER, Actor::Generator, Mail::Start(start)),
                decoder::Action::Stop(sequence) => {
                    self.post(RECEIVER, Actor::Generator, Mail::Stop(sequence));
                }
                decoder::Action::Frame(frame) => self.post(RECEIVER, Actor::Link, Mail::Send(frame)),
                decoder::Action::Over(over) => self.post(RECEIVER, Actor::Proxy, Mail::PrefillOver(over)),
                decoder::Action::Token(request, token) => {
                    if !self.token(request, token.id) {
                        gone.push(request);
                    }
                }
                decoder::Action::End(request, event) => self.end(request, &event),
            }
        }
        for request in gone {
            if let Some((_, decoder)) = self.nodes[RECEIVER].receiver() {
                let actions = decoder.on_abort(request);
                self.decoder_does(actions);
            }
        }
    }

    pub(super) fn buffers_take(&mut self, node: usize, mail: Mail) {
        let (hashed, process) = (self.plan.hashed, &mut self.nodes[node]);
        let actions = match mail {
            Mail::Reserve(reserve) => process.pool.on_reserve(reserve),
            Mail::Grow(grow) => process.pool.on_grow(grow),
            Mail::Computed(computed) => return process.pool.on_computed(&computed),
            Mail::Release(sequence) => process.pool.on_release(sequence),
            Mail::SessionOpened { session, ring_pages, seed } => {
                process.pool.on_session_opened(session, ring_pages, seed)
            }
            Mail::PeerLost(session) => process.pool.on_session_lost(session),
            Mail::Drained(session) => process.pool.on_session_drained(session),
            Mail::Filled(filled) => {
                let memory = &process.memory;
                let hasher = |pages: &[(PageId, PageSeed)]| {
                    pages.iter().map(|(page, seed)| memory.hash(*page, *seed)).collect()
                };
                process.pool.on_page_filled(filled, hashed.then_some(&hasher as buffers::Hasher<'_>))
            }
            Mail::Tick => return,
            other => return self.fail(format!("the buffer manager was sent {other:?}")),
        };
        for action in actions {
            use actors::messages::SendFrame;
            match action {
                buffers::Action::Reserved(reserved) => {
                    let to = if is_own(reserved.sequence) { Actor::Decoder } else { Actor::Prefiller };
                    self.post(node, to, Mail::Reserved(reserved));
                }
                buffers::Action::Grown(grown) => self.post(node, Actor::Decoder, Mail::Grown(grown)),
                buffers::Action::Short(short) => self.post(node, Actor::Decoder, Mail::Short(short)),
                buffers::Action::Adopted(adopted) => self.post(node, Actor::Decoder, Mail::Adopted(adopted)),
                buffers::Action::Rejected(request) => {
                    self.report.damaged += 1;
                    self.post(node, Actor::Decoder, Mail::Rejected(request));
                }
                buffers::Action::Grant { session, first, pages } => {
                    let frame = SendFrame { session, frame: Frame::Grant { first, pages } };
                    self.post(node, Actor::Link, Mail::Send(frame));
                }
                buffers::Action::Share { session, pages } => {
                    let frame = SendFrame { session, frame: Frame::RingShare { pages } };
                    self.post(node, Actor::Link, Mail::Send(frame));
                }
                buffers::Action::Break { session, reason } => {
                    self.post(node, Actor::Link, Mail::Break(session, reason));
                }
            }
        }
    }

    pub(super) fn generator_takes(&mut self, node: usize, mail: Mail) {
        let now = self.now;
        let generator = &mut self.nodes[node].generator;
        match mail {
            Mail::Start(start) => {
                generator.on_start(start);
                self.drive(node);
            }
            Mail::Extend(extend) => {
                generator.on_extend(&extend);
                self.drive(node);
            }
            Mail::Stop(sequence) => {
                if let Some(event) = generator.on_stop(sequence, now) {
                    self.tell_advanced(node, event);
                }
            }
            Mail::Tick => {}
            other => self.fail(format!("the generator was sent {other:?}")),
        }
    }

    fn tell_advanced(&mut self, node: usize, event: SequenceAdvanced) {
        let to = if is_own(event.sequence) { Actor::Decoder } else { Actor::Prefiller };
        self.post(node, to, Mail::Advanced(event));
    }

    /// Gives the engine its next step.
    fn drive(&mut self, node: usize) {
        let now = self.now;
        while let Some(plan) = self.nodes[node].generator.plan(now) {
            if self.nodes[node].step.is_some() {
                self.nodes[node].step_ahead = Some(plan);
            } else {
                self.begin_step(node, plan);
            }
        }
    }

    fn begin_step(&mut self, node: usize, plan: StepPlan) {
        let rows = plan.chunks.iter().filter(|chunk| chunk.sample.is_some()).count();
        if rows > self.plan.step_rows as usize {
            self.fail(format!("a step of {node} has {rows} rows, and its engine takes {}", self.plan.step_rows));
        }
        let process = &mut self.nodes[node];
        let step = Step::begin(plan, &mut process.memory);
        self.pages_are_held(node, &step);
        self.nodes[node].step = Some(step);
        let wait = self.dice.wait(5 * MS, 200 * MS);
        self.at_node(node, wait, Event::StepDone);
    }

    fn pages_are_held(&mut self, node: usize, step: &Step) {
        let pool = &self.nodes[node].pool;
        let free = step.pages().find(|page| !matches!(pool.page_use(*page), PageUse::Held(_)));
        if let Some(page) = free {
            let used = pool.page_use(page);
            self.fail(format!("the engine of {node} is at page {}, which is {used:?}", page.0));
        } else if let Some(page) = step.written().find(|page| pool.is_known(*page)) {
            self.fail(format!("the engine of {node} writes page {}, which others may share", page.0));
        }
    }

    pub(super) fn step_done(&mut self, node: usize) {
        let now = self.now;
        let Some(step) = self.nodes[node].step.take() else { return };
        self.pages_are_held(node, &step);
        let process = &mut self.nodes[node];
        let outcome = if std::mem::take(&mut process.step_fails) {
            Err(step.error(now))
        } else {
            Ok(step.end(&mut process.memory))
        };
        if let Some(mut plan) = process.step_ahead.take() {
            follow(&mut plan, outcome.as_deref().unwrap_or_default());
            self.begin_step(node, plan);
        }
        let events = self.nodes[node].generator.on_step(outcome, now);
        events.into_iter().for_each(|event| self.tell_advanced(node, event));
        self.drive(node);
    }
}
