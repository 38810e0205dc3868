//! Where a request goes: the decisions of the proxy, without actix, clock or I/O.

use std::time::Duration;

use crate::effect::{Effect, ToProxy, to};
use crate::messages::{Decode, PrefillOver, SessionId, StreamEnd};
use crate::request::{Generate, Refused, Route, StreamEvent};

/// Prompts shorter than this say more about what a step costs than about how fast it goes.
const MEASURED_TOKENS: u32 = 16;

/// A place that prefills: what waits there, and how fast it has been.
#[derive(Debug, Default)]
struct Place {
    /// Tokens of the prompts that wait.
    waiting: u64,
    /// The newest prompt counts for an eighth; `None` before the first.
    micros_a_token: Option<f64>,
}

impl Place {
    /// When a prompt of so many tokens that comes now is done, in microseconds from now.
    fn done_in(&self, tokens: u64, micros_a_token: f64) -> f64 {
        (self.waiting + tokens) as f64 * micros_a_token
    }

    fn over(&mut self, over: &PrefillOver) {
        self.waiting = self.waiting.saturating_sub(u64::from(over.tokens));
        if let Some((computed, micros)) = over.computed.filter(|(computed, _)| *computed >= MEASURED_TOKENS) {
            let now = micros as f64 / f64::from(computed);
            // One that was stopped for a while has not become slow.
            let mixed = |known: f64| known + (now.min(2.0 * known) - known) / 8.0;
            self.micros_a_token = Some(self.micros_a_token.map_or(now, mixed));
        }
    }
}

/// The senders that can prefill, and what this node can hold.
#[derive(Debug)]
pub struct ProxyState {
    page_tokens: u32,
    /// Pages that a request may have where no lost session holds any.
    request_pages: u32,
    /// Pages that a request may have now.
    usable_pages: u32,
    local_if_sooner_by: Duration,
    here: Place,
    senders: Vec<(SessionId, Place)>,
    next: usize,
    draining: bool,
}

impl ProxyState {
    /// No senders; a request may need at most `request_pages` pages of `page_tokens` tokens, and is prefilled here although a
    /// sender lives if that gives its first token sooner by more than `local_if_sooner_by`.
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

    /// Takes a message.
    pub fn on(&mut self, mail: ToProxy) -> Vec<Effect> {
        match mail {
            ToProxy::Generate(generate) => return vec![self.on_generate(generate)],
            // Behind its request: the decoder hears of a request before it hears of its abort.
            ToProxy::AbortRequest(abort) => return vec![to::decoder(abort)],
            ToProxy::PrefillOver(over) => self.on_prefill_over(&over),
            ToProxy::PeerReady(ready) => self.on_peer_ready(ready.session),
            ToProxy::PeerLeaving(leaving) => self.on_peer_lost(leaving.session),
            ToProxy::PeerLost(lost) => self.on_peer_lost(lost.session),
            ToProxy::RoomChanged(room) => self.usable_pages = room.usable,
            ToProxy::BeginDrain(_) => self.draining = true,
            ToProxy::Tick(_) => {}
        }
        Vec::new()
    }

    fn on_generate(&mut self, generate: Generate) -> Effect {
        match self.route(&generate) {
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

    /// A sender is gone, or takes no new prefills.
    fn on_peer_lost(&mut self, session: SessionId) {
        self.senders.retain(|(sender, _)| *sender != session);
    }

    /// A prompt does not wait any more.
    fn on_prefill_over(&mut self, over: &PrefillOver) {
        let place = match over.on {
            None => Some(&mut self.here),
            // One that is gone has left nothing to keep books of.
            Some(session) => {
                self.senders.iter_mut().find(|(sender, _)| *sender == session).map(|(_, place)| place)
            }
        };
        if let Some(place) = place {
            place.over(over);
        }
    }

    /// Tokens of prompts that wait, here and at senders.
    pub fn waiting(&self) -> u64 {
        self.here.waiting + self.senders.iter().map(|(_, place)| place.waiting).sum::<u64>()
    }

    /// Which sender prefills this request; `None`: this node.
    ///
    /// # Errors
    /// [`Refused`].
    fn route(&mut self, generate: &Generate) -> Result<Option<SessionId>, Refused> {
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
        let sender = self.soonest(tokens).filter(|_| generate.route == Route::Auto);
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

    /// The next in turn of the senders where nothing waits: it is there for this, however slow it once was, and shows how fast it is
    /// now. If there is none, the one that would be done first; `None` if this node would be by so much sooner that it is worth what it
    /// takes from decoding.
    fn soonest(&self, tokens: u64) -> Option<usize> {
        let count = self.senders.len();
        let mut in_turn = (0..count).map(|step| (self.next + step) % count);
        if let Some(idle) = in_turn.clone().find(|index| self.senders[*index].1.waiting == 0) {
            return Some(idle);
        }
        // One that has not shown how fast it is is taken for the fastest.
        let known = self.senders.iter().filter_map(|(_, place)| place.micros_a_token);
        let fastest = known.min_by(f64::total_cmp).unwrap_or(0.0);
        let speed = |index: usize| self.senders[index].1.micros_a_token.unwrap_or(fastest);
        let done_in = |index: usize| self.senders[index].1.done_in(tokens, speed(index));
        let first = in_turn.next()?;
        let best = in_turn.fold(first, |a, b| if done_in(b) < done_in(a) { b } else { a });
        // Nothing better is known of this node than that its kind is the sender's.
        let here = self.here.done_in(tokens, self.here.micros_a_token.unwrap_or(speed(best)));
        let saved = done_in(best) - here;
        (saved <= self.local_if_sooner_by.as_secs_f64() * 1e6).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::messages::BeginDrain;
    use crate::request::{AbortRequest, RequestId};

    fn generate(prompt: usize, max_tokens: u32, route: Route) -> Generate {
        Generate {
            request: RequestId(1),
            prompt: vec![1; prompt].into(),
            max_tokens,
            sampling: Default::default(),
            ignore_eos: false,
            deadline: Instant::now(),
            route,
        }
    }

    const SOONER_BY: Duration = Duration::from_secs(1);

    fn over(on: Option<SessionId>, tokens: u32, micros: Option<u64>) -> PrefillOver {
        PrefillOver { on, tokens, computed: micros.map(|micros| (tokens, micros)) }
    }

    #[test]
    fn a_prompt_goes_where_it_is_done_first() {
        let (fast, slow) = (SessionId(1), SessionId(2));
        let mut state = ProxyState::new(16, 1000, SOONER_BY);
        state.on_peer_ready(fast);
        state.on_peer_ready(slow);
        let route = |state: &mut ProxyState, tokens| state.route(&generate(tokens, 1, Route::Auto)).unwrap();
        for _ in 0..2 {
            route(&mut state, 100);
        }
        state.on_prefill_over(&over(Some(fast), 100, Some(100_000)));
        state.on_prefill_over(&over(Some(slow), 100, Some(300_000)));
        assert_eq!(state.waiting(), 0);
        // 1 and 3 ms a token: whoever has nothing to do is next, then the fast one until three such prompts wait there.
        let chosen: Vec<_> = (0..4).map(|_| route(&mut state, 100)).collect();
        assert_eq!(chosen, [Some(fast), Some(slow), Some(fast), Some(fast)].to_vec());
        // 0.8 s at the fast sender and then 1.3 s, and 0.5 s here: not worth it.
        assert_eq!([route(&mut state, 500), route(&mut state, 500)], [Some(fast); 2]);
        // 1.9 s at the fast sender, 2.1 s at the slow one, 0.6 s here.
        assert_eq!(route(&mut state, 600), None);
        assert_eq!(route(&mut state, 600), Some(fast), "there is one here already");
        state.on_peer_lost(fast);
        state.on_prefill_over(&over(Some(fast), 100, None));
        assert_eq!(state.waiting(), 100 + 600);
    }

    #[test]
    fn senders_take_turns_and_leave() {
        let mut state = ProxyState::new(16, 10, SOONER_BY);
        assert_eq!(state.route(&generate(1, 1, Route::Auto)), Ok(None));
        state.on_peer_ready(SessionId(1));
        state.on_peer_ready(SessionId(2));
        let first = state.route(&generate(1, 1, Route::Auto));
        let second = state.route(&generate(1, 1, Route::Auto));
        assert_ne!(first, second);
        assert_eq!(state.route(&generate(1, 1, Route::Local)), Ok(None));
        state.on_peer_lost(SessionId(1));
        assert_eq!(state.route(&generate(1, 1, Route::Auto)), Ok(Some(SessionId(2))));
    }

    #[test]
    fn an_abort_follows_its_request_to_the_decoder() {
        let mut state = ProxyState::new(16, 10, SOONER_BY);
        let generate = generate(1, 1, Route::Auto);
        let effects = state.on(generate.clone().into());
        assert_eq!(effects, [to::decoder(Decode { generate, prefill_on: None })]);
        for complete_with in [None, Some(3)] {
            let abort = AbortRequest { request: RequestId(1), complete_with };
            assert_eq!(state.on(abort.into()), [to::decoder(abort)]);
        }
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let mut state = ProxyState::new(16, 10, SOONER_BY);
        assert_eq!(state.route(&generate(100, 61, Route::Auto)), Ok(None));
        let refused = Err(Refused::TooLarge { needed: 11, usable: 10 });
        assert_eq!(state.route(&generate(100, 62, Route::Auto)), refused);
        state.on(BeginDrain.into());
        assert_eq!(state.route(&generate(1, 1, Route::Auto)), Err(Refused::ShuttingDown));
    }
}
