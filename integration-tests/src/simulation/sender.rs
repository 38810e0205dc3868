//! A sender's prefiller and transfer.

use actors::messages::{CancelPuts, PutsDrained, SendFrame};
use actors::prefiller::state as prefiller;
use actors::transfer::state as transfer;
use connector::frame::Frame;
use connector::ring::CreditNumber;
use engine::PageId;

use super::lane::OutletName;
use super::node::{Actor, Mail};
use super::plan::MS;
use super::world::{Event, World};

impl World {
    pub(super) fn sender_takes(&mut self, node: usize, actor: Actor, mail: Mail) {
        let (now, micros) = (self.instant(), self.now);
        let Some(sender) = self.nodes[node].sender() else { return };
        if actor == Actor::Prefiller {
            let prefiller = &mut sender.prefiller;
            let actions = match mail {
                Mail::StartPrefill(start) => prefiller.on_prefill(now, start),
                Mail::CancelPrefill(session, request) => prefiller.on_cancel((session, request)),
                Mail::PeerLost(session) => prefiller.on_peer_lost(session),
                Mail::Reserved(reserved) => prefiller.on_reserved(reserved),
                Mail::Advanced(event) => prefiller.on_advanced(event),
                Mail::Sent(sent) => prefiller.on_sent(&sent),
                Mail::PutsDrained(drained) => prefiller.on_drained((drained.session, drained.request)),
                Mail::BeginDrain => return prefiller.on_drain(),
                Mail::Tick => prefiller.on_tick(now),
                other => return self.fail(format!("the prefiller was sent {other:?}")),
            };
            return self.prefiller_does(node, actions);
        }
        let transfer = &mut sender.transfer;
        let actions = match mail {
            Mail::SessionOpened { session, ring_pages, seed } => {
                return transfer.on_session_opened(session, ring_pages, seed);
            }
            Mail::LaneConnected(session) => transfer.on_connected(micros, session, "sim".into()),
            Mail::Granted(session, first, pages) => {
                let actions = transfer.on_granted(micros, session, first, &pages);
                self.granted(OutletName { node, life: self.nodes[node].life, session }, &pages);
                actions
            }
            Mail::RingShared(session, pages) => transfer.on_ring_shared(micros, session, pages),
            Mail::SchedulePut(put) => {
                transfer.on_schedule(micros, put.session, put.request, put.first_page, &put.pages)
            }
            Mail::CancelPuts(cancel) => transfer.on_cancel(cancel.session, cancel.request),
            Mail::PutCompleted(session, ticket, result) => {
                transfer.on_put_completed(micros, session, ticket, result)
            }
            Mail::Hashed(session, credit, hash) => transfer.on_hashed(micros, session, credit, hash),
            Mail::Flushed(session, ticket, result) => transfer.on_flushed(micros, session, ticket, result),
            Mail::PeerLost(session) => return transfer.on_lost(session),
            Mail::Tick => transfer.on_tick(micros),
            other => return self.fail(format!("transfer was sent {other:?}")),
        };
        self.transfer_does(node, actions);
    }

    fn prefiller_does(&mut self, node: usize, actions: Vec<prefiller::Action>) {
        for action in actions {
            let (actor, mail) = match action {
                prefiller::Action::Reserve(reserve) => (Actor::Buffers, Mail::Reserve(reserve)),
                prefiller::Action::Release(sequence) => (Actor::Buffers, Mail::Release(sequence)),
                prefiller::Action::Computed(computed) => (Actor::Buffers, Mail::Computed(computed)),
                prefiller::Action::Start(start) => (Actor::Generator, Mail::Start(start)),
                prefiller::Action::Stop(sequence) => (Actor::Generator, Mail::Stop(sequence)),
                prefiller::Action::Put(put) => (Actor::Transfer, Mail::SchedulePut(put)),
                prefiller::Action::Stored { .. } => continue,
                prefiller::Action::Cancel((session, request)) => {
                    (Actor::Transfer, Mail::CancelPuts(CancelPuts { session, request }))
                }
                prefiller::Action::Frame(session, frame) => {
                    (Actor::Link, Mail::Send(SendFrame { session, frame }))
                }
            };
            self.post(node, actor, mail);
        }
    }

    fn transfer_does(&mut self, node: usize, actions: Vec<transfer::Action>) {
        let life = self.nodes[node].life;
        for action in actions {
            match action {
                transfer::Action::Put { session, ticket, page, into, seeds } => {
                    let outlet = OutletName { node, life, session };
                    self.put(outlet, ticket, (page.0, seeds[0].is_some()), into, seeds.len() as u32);
                    for (page, seed) in (page.0..).map(PageId).zip(seeds) {
                        let Some(seed) = seed.filter(|_| self.plan.hashed) else { continue };
                        let hash = self.nodes[node].memory.hash(page, seed);
                        let wait = self.dice.wait(1, 20 * MS);
                        let mail = Box::new(Mail::Hashed(session, CreditNumber(seed.credit), hash));
                        self.at_node(node, wait, Event::Mail(Actor::Transfer, mail));
                    }
                }
                transfer::Action::Flush { session, ticket } => {
                    self.flush(OutletName { node, life, session }, ticket);
                }
                transfer::Action::Frame(session, frame) => {
                    if let Frame::PageFilled { first, count, .. } = &frame {
                        self.has_landed(OutletName { node, life, session }, *first, *count);
                    }
                    for frame in self.as_sent(node, frame) {
                        self.post(node, Actor::Link, Mail::Send(SendFrame { session, frame }));
                    }
                }
                transfer::Action::Sent(sent) => {
                    self.post(node, Actor::Prefiller, Mail::Sent(sent));
                }
                transfer::Action::Drained(session, request) => {
                    let drained = PutsDrained { session, request };
                    self.post(node, Actor::Prefiller, Mail::PutsDrained(drained));
                }
                transfer::Action::Break(session, reason) => {
                    self.post(node, Actor::Link, Mail::Break(session, reason));
                }
                transfer::Action::Measured(..) => self.report.sessions += 1,
            }
        }
    }

    /// The frames that leave: what was to be sent, or what a sender makes of it that miscounts.
    fn as_sent(&mut self, node: usize, frame: Frame) -> Vec<Frame> {
        let wrong = matches!(frame, Frame::PageFilled { .. }) && self.miscounts.remove(&node);
        match frame {
            frame if !wrong => vec![frame],
            Frame::PageFilled { first, count, owner, hashes, transfer_micros } if self.dice.one_in(2) => {
                let first = CreditNumber(first.0 + 1);
                vec![Frame::PageFilled { first, count, owner, hashes, transfer_micros }]
            }
            frame => vec![frame.clone(), frame],
        }
    }
}
