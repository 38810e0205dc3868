//! The routing of requests: the decisions of the proxy, without actix, clock or I/O.

use std::time::{Duration, Instant};

use super::place::Place;
use crate::effect::{Effect, ToProxy, to};
use crate::messages::{Decode, PrefillOver, SessionId, StreamEnd};
use crate::request::{Generate, Refused, Route, StreamEvent};

/// The senders that can prefill, and the pages that a request may use here.
#[derive(Debug)]
pub struct ProxyState {
    page_tokens: u32,
    /// Pages that a request may use when no page is quarantined.
    request_pages: u32,
    /// Pages that a request may use now.
    usable_pages: u32,
    local_if_sooner_by: Duration,
    here: Place,
    senders: Vec<(SessionId, Place)>,
    next: usize,
    draining: bool,
}

impl ProxyState {
    /// A state without senders. A request may need at most `request_pages` pages of `page_tokens` tokens. If all senders are
    /// busy, a request is prefilled here if its first token then comes sooner by more than `local_if_sooner_by`.
    pub fn new(page_tokens: u32, request_pages: u32, local_if_sooner_by: Duration) -> Self {
        let (here, senders) = (Place::default(), Vec::new());
        let usable_pages = request_pages;
        Self {
            page_tokens,
            request_pages,
            usable_pages,
            local_if_sooner_by,
            here,
            senders,
            next: 0,
            draining: false,
        }
    }

    /// Handles a message and returns the effects.
    pub fn on(&mut self, now: Instant, mail: ToProxy) -> Vec<Effect> {
        match mail {
            ToProxy::Generate(generate) => return vec![self.on_generate(now, generate)],
            // Aborts take the same path as requests, so that the decoder gets a request before its abort.
            ToProxy::AbortRequest(abort) => return vec![to::decoder(abort)],
            ToProxy::PrefillOver(over) => self.on_prefill_over(now, &over),
            ToProxy::PeerReady(ready) => self.on_peer_ready(ready.session),
            ToProxy::PeerLeaving(leaving) => self.on_peer_lost(leaving.session),
            ToProxy::PeerLost(lost) => self.on_peer_lost(lost.session),
            ToProxy::RoomChanged(room) => self.usable_pages = room.usable,
            ToProxy::BeginDrain(_) => self.draining = true,
            ToProxy::Tick(_) => {}
        }
        Vec::new()
    }

    fn on_generate(&mut self, now: Instant, generate: Generate) -> Effect {
        match self.route(now, &generate) {
            Ok(prefill_on) => to::decoder(Decode { generate, prefill_on }),
            Err(refused) => {
                let event = StreamEvent::Failed(refused.into());
                to::streams(StreamEnd { request: generate.request, event })
            }
        }
    }

    /// A sender can prefill.
    fn on_peer_ready(&mut self, session: SessionId) {
        self.senders.push((session, Place::default()));
    }

    /// A sender's session has ended, or the sender accepts no new prefills.
    fn on_peer_lost(&mut self, session: SessionId) {
        self.senders.retain(|(sender, _)| *sender != session);
    }

    /// A prefill has ended.
    fn on_prefill_over(&mut self, now: Instant, over: &PrefillOver) {
        let place = match over.on {
            None => Some(&mut self.here),
            // A sender whose session has ended has no record any more.
            Some(session) => {
                self.senders.iter_mut().find(|(sender, _)| *sender == session).map(|(_, place)| place)
            }
        };
        if let Some(place) = place {
            place.over(now, over);
        }
    }

    /// Total tokens of the prompts that wait here and at senders.
    pub fn waiting(&self) -> u64 {
        self.here.waiting + self.senders.iter().map(|(_, place)| place.waiting).sum::<u64>()
    }

    /// Chooses the sender that prefills this request; `None` means this node.
    ///
    /// # Errors
    /// [`Refused`].
    fn route(&mut self, now: Instant, generate: &Generate) -> Result<Option<SessionId>, Refused> {
        if self.draining {
            return Err(Refused::ShuttingDown);
        }
        let tokens = generate.prompt.len() as u64 + u64::from(generate.max_tokens).saturating_sub(1);
        let needed = tokens.div_ceil(u64::from(self.page_tokens)) as u32;
        if needed > self.request_pages {
            return Err(Refused::TooLarge { needed, usable: self.request_pages });
        }
        if needed > self.usable_pages {
            return Err(Refused::NoRoom { needed, usable: self.usable_pages });
        }
        let tokens = generate.prompt.len() as u64;
        let sender = self.soonest(now, tokens).filter(|_| generate.route == Route::Auto);
        let place = match sender {
            None => &mut self.here,
            Some(index) => {
                self.next = index + 1;
                &mut self.senders[index].1
            }
        };
        place.waiting += tokens;
        Ok(sender.map(|index| self.senders[index].0))
    }

    /// The index of the sender that should prefill a prompt of `tokens` tokens; `None` means this node.
    ///
    /// Senders without waiting prompts come first, in turn. This does not depend on their measured speed, so that a sender that
    /// was slow is measured again. If all senders have waiting prompts, the choice is the sender with the earliest predicted end,
    /// or this node if its predicted end is sooner by more than `local_if_sooner_by`. That duration is the price of delaying the
    /// requests that decode here. Senders whose prefills fail are left out during their pause.
    fn soonest(&self, now: Instant, tokens: u64) -> Option<usize> {
        let count = self.senders.len();
        let in_turn = (0..count).map(|step| (self.next + step) % count);
        let mut open = in_turn.filter(|index| self.senders[*index].1.is_open(now));
        if let Some(idle) = open.clone().find(|index| self.senders[*index].1.waiting == 0) {
            return Some(idle);
        }
        // A sender without a measured speed is assumed to be as fast as the fastest.
        let known = self.senders.iter().filter_map(|(_, place)| place.micros_per_token);
        let fastest = known.min_by(f64::total_cmp).unwrap_or(0.0);
        let speed = |index: usize| self.senders[index].1.micros_per_token.unwrap_or(fastest);
        let done_in = |index: usize| self.senders[index].1.done_in(tokens, speed(index));
        let first = open.next()?;
        let best = open.fold(first, |a, b| if done_in(b) < done_in(a) { b } else { a });
        // Without a measured speed, this node is assumed to be as fast as that sender.
        let here = self.here.done_in(tokens, self.here.micros_per_token.unwrap_or(speed(best)));
        let saved = done_in(best) - here;
        (saved <= self.local_if_sooner_by.as_secs_f64() * 1e6).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{BeginDrain, PrefillOutcome, RoomChanged};
    use crate::request::{AbortRequest, RequestId};

    fn generate(prompt: usize, max_tokens: u32, route: Route) -> Generate {
        Generate {
            request: RequestId(1),
            prompt: vec![1; prompt].into(),
            max_tokens,
            sampling: Default::default(),
            grammar: None,
            salt: None,
            ignore_eos: false,
            prompt_logprobs: None,
            deadline: Instant::now(),
            route,
        }
    }

    const SOONER_BY: Duration = Duration::from_secs(1);

    fn computed(on: SessionId, tokens: u32, micros: u64) -> PrefillOver {
        PrefillOver { on: Some(on), tokens, outcome: PrefillOutcome::Computed { tokens, micros } }
    }

    fn failed(on: SessionId, tokens: u32) -> PrefillOver {
        PrefillOver { on: Some(on), tokens, outcome: PrefillOutcome::Failed }
    }

    #[test]
    fn a_prompt_goes_to_the_place_with_the_earliest_predicted_end() {
        let (fast, slow) = (SessionId(1), SessionId(2));
        let (mut state, now) = (ProxyState::new(16, 1000, SOONER_BY), Instant::now());
        state.on_peer_ready(fast);
        state.on_peer_ready(slow);
        let route =
            |state: &mut ProxyState, tokens| state.route(now, &generate(tokens, 1, Route::Auto)).unwrap();
        for _ in 0..2 {
            route(&mut state, 100);
        }
        state.on_prefill_over(now, &computed(fast, 100, 100_000));
        state.on_prefill_over(now, &computed(slow, 100, 300_000));
        assert_eq!(state.waiting(), 0);
        // 1 and 3 ms per token: idle senders come first, then the fast one until three such prompts wait there.
        let chosen: Vec<_> = (0..4).map(|_| route(&mut state, 100)).collect();
        assert_eq!(chosen, [Some(fast), Some(slow), Some(fast), Some(fast)].to_vec());
        // 0.8 s and then 1.3 s at the fast sender, 0.5 s here: this node is not sooner by more than 1 s.
        assert_eq!([route(&mut state, 500), route(&mut state, 500)], [Some(fast); 2]);
        // 1.9 s at the fast sender, 2.1 s at the slow one, 0.6 s here.
        assert_eq!(route(&mut state, 600), None);
        assert_eq!(route(&mut state, 600), Some(fast), "a prompt already waits here");
        state.on_peer_lost(fast);
        state.on_prefill_over(now, &failed(fast, 100));
        assert_eq!(state.waiting(), 100 + 600);
    }

    #[test]
    fn senders_take_turns_and_leave() {
        let (mut state, now) = (ProxyState::new(16, 10, SOONER_BY), Instant::now());
        assert_eq!(state.route(now, &generate(1, 1, Route::Auto)), Ok(None));
        state.on_peer_ready(SessionId(1));
        state.on_peer_ready(SessionId(2));
        let first = state.route(now, &generate(1, 1, Route::Auto));
        let second = state.route(now, &generate(1, 1, Route::Auto));
        assert_ne!(first, second);
        assert_eq!(state.route(now, &generate(1, 1, Route::Local)), Ok(None));
        state.on_peer_lost(SessionId(1));
        assert_eq!(state.route(now, &generate(1, 1, Route::Auto)), Ok(Some(SessionId(2))));
    }

    #[test]
    fn an_abort_reaches_the_decoder_after_its_request() {
        let (mut state, now) = (ProxyState::new(16, 10, SOONER_BY), Instant::now());
        let generate = generate(1, 1, Route::Auto);
        let effects = state.on(now, generate.clone().into());
        assert_eq!(effects, [to::decoder(Decode { generate, prefill_on: None })]);
        for abort in [AbortRequest::cancelled(RequestId(1)), AbortRequest::completed(RequestId(1), 3)] {
            assert_eq!(state.on(now, abort.into()), [to::decoder(abort)]);
        }
    }

    #[test]
    fn a_request_that_does_not_fit_beside_the_quarantine_is_refused_with_the_numbers() {
        let (mut state, now) = (ProxyState::new(16, 10, SOONER_BY), Instant::now());
        let large = |state: &mut ProxyState| state.route(now, &generate(100, 29, Route::Auto));
        assert_eq!(large(&mut state), Ok(None));
        state.on(now, RoomChanged { pages: 20, usable: 7, quarantined: 3 }.into());
        assert_eq!(large(&mut state), Err(Refused::NoRoom { needed: 8, usable: 7 }));
        state.on(now, RoomChanged { pages: 20, usable: 10, quarantined: 0 }.into());
        assert_eq!(large(&mut state), Ok(None));
    }

    #[test]
    fn a_request_that_can_never_fit_is_refused() {
        let (mut state, now) = (ProxyState::new(16, 10, SOONER_BY), Instant::now());
        assert_eq!(state.route(now, &generate(100, 61, Route::Auto)), Ok(None));
        let refused = Err(Refused::TooLarge { needed: 11, usable: 10 });
        assert_eq!(state.route(now, &generate(100, 62, Route::Auto)), refused);
        state.on(now, BeginDrain.into());
        assert_eq!(state.route(now, &generate(1, 1, Route::Auto)), Err(Refused::ShuttingDown));
    }

    #[test]
    fn a_sender_whose_prefills_fail_is_not_preferred() {
        let (good, broken) = (SessionId(1), SessionId(2));
        let (mut state, mut now) = (ProxyState::new(16, 1000, SOONER_BY), Instant::now());
        state.on_peer_ready(good);
        state.on_peer_ready(broken);
        let route = |state: &mut ProxyState, now| state.route(now, &generate(100, 1, Route::Auto)).unwrap();
        // Both senders are idle, and each gets four prompts.
        let in_progress: Vec<_> = (0..8).map(|_| route(&mut state, now)).collect();
        assert_eq!(in_progress.iter().filter(|on| **on == Some(broken)).count(), 4);
        for _ in 0..4 {
            state.on_prefill_over(now, &failed(broken, 100));
        }
        // The broken sender fails at once, so no prompt ever waits there. For 30 s a prompt arrives every 10 ms; the good sender
        // finishes its prompts.
        let mut tried = Vec::new();
        for tick in 0..3000 {
            now += Duration::from_millis(10);
            match route(&mut state, now) {
                Some(on) if on == broken => {
                    tried.push(tick);
                    state.on_prefill_over(now, &failed(broken, 100));
                }
                on => assert_eq!(on, Some(good)),
            }
            state.on_prefill_over(now, &computed(good, 100, 1000));
        }
        // The four failures at the start count once; the pauses are 0.5, 1, 2, 4, 8 and 16 s.
        assert_eq!(tried, [49, 149, 349, 749, 1549]);
        // The broken sender recovers.
        now += Duration::from_secs(30);
        assert_eq!(route(&mut state, now), Some(broken));
        let during: Vec<_> = (0..3).map(|_| route(&mut state, now)).collect();
        assert_eq!(during, [Some(good); 3], "only one prompt is sent to it until one succeeds");
        state.on_prefill_over(now, &computed(broken, 100, 1000));
        let turns: Vec<_> = (0..4).map(|_| route(&mut state, now)).collect();
        assert!(turns.contains(&Some(broken)), "{turns:?}");
    }

    #[test]
    fn this_node_prefills_if_all_senders_fail() {
        let (mut state, now) = (ProxyState::new(16, 1000, SOONER_BY), Instant::now());
        state.on_peer_ready(SessionId(1));
        let route = |state: &mut ProxyState, now| state.route(now, &generate(100, 1, Route::Auto)).unwrap();
        assert_eq!(route(&mut state, now), Some(SessionId(1)));
        state.on_prefill_over(now, &failed(SessionId(1), 100));
        assert_eq!(route(&mut state, now), None);
        // A withdrawn prompt is neither a success nor a failure: it leaves the pause as it was.
        let later = now + Duration::from_secs(1);
        assert_eq!(route(&mut state, later), Some(SessionId(1)));
        let outcome = PrefillOutcome::Withdrawn;
        state.on_prefill_over(later, &PrefillOver { on: Some(SessionId(1)), tokens: 100, outcome });
        assert_eq!(route(&mut state, later), Some(SessionId(1)));
        state.on_prefill_over(later, &failed(SessionId(1), 100));
        assert_eq!(route(&mut state, later + Duration::from_millis(999)), None);
        assert_eq!(route(&mut state, later + Duration::from_secs(1)), Some(SessionId(1)));
    }
}
