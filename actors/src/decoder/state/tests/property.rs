//! A request ends once and releases its pages once, for every order of messages.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// Whether a sender prefills, and whether this process may.
    Decode(bool, bool),
    Placed(bool),
    Reserved(bool),
    Short,
    Grown,
    Adopted(u32),
    Prefilled(u32),
    Advanced(bool),
    Lost,
    Ready,
    Failed,
    Abort,
    Tick(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any::<(bool, bool)>().prop_map(|(remote, may)| Op::Decode(remote, may)),
        any::<bool>().prop_map(Op::Placed),
        any::<bool>().prop_map(Op::Reserved),
        Just(Op::Short),
        Just(Op::Grown),
        (0..2u32).prop_map(Op::Adopted),
        (1..4u32).prop_map(Op::Prefilled),
        any::<bool>().prop_map(Op::Advanced),
        Just(Op::Lost),
        Just(Op::Ready),
        Just(Op::Failed),
        Just(Op::Abort),
        (0..12u64).prop_map(Op::Tick),
    ]
}

/// The decoder with what its neighbours know.
struct World {
    state: DecoderState,
    now: Instant,
    live: bool,
    running: bool,
    /// A reservation waits.
    reserving: bool,
    /// The request holds or reserves pages.
    holds: bool,
    must_not_prefill: bool,
    /// Placements, ends of their waits, and questions for another one that are not answered.
    placements: u32,
    overs: u32,
    asked: u32,
    ends: u32,
    starts: u32,
    tokens: u32,
    /// Tokens that the generator still samples.
    sampled: u32,
}

impl World {
    fn new() -> Self {
        Self {
            state: state(),
            now: Instant::now(),
            live: false,
            running: false,
            reserving: false,
            holds: false,
            must_not_prefill: false,
            placements: 0,
            overs: 0,
            asked: 0,
            ends: 0,
            starts: 0,
            tokens: 0,
            sampled: 0,
        }
    }

    /// Applies an operation. `None`: it is impossible now.
    fn apply(&mut self, op: Op) -> Option<Vec<Effect>> {
        let now = self.now;
        Some(match op {
            Op::Decode(..) if self.live || self.asked > 0 => return None,
            Op::Decode(remote, may_fall_back) => {
                (self.ends, self.tokens, self.overs, self.placements, self.starts) = (0, 0, 0, 1, 0);
                let mut decode = decode(now, 6, 5, remote.then_some(SESSION));
                self.must_not_prefill = remote && !may_fall_back;
                decode.placement.may_fall_back = !self.must_not_prefill;
                self.state.on_decode(now, decode)
            }
            Op::Placed(_) if self.asked == 0 => return None,
            Op::Placed(found) => {
                self.asked -= 1;
                self.placements += u32::from(found);
                let on = Placement { may_fall_back: false, ..placement(Some(SESSION), 6) };
                self.state.on_placed_again(PlacedAgain { request: R, placement: found.then_some(on) })
            }
            Op::Reserved(_) if !self.reserving => return None,
            Op::Reserved(lands) => {
                self.reserving = false;
                let reserved = if lands { landing(&[3]) } else { reserved(&[1, 2, 3]) };
                self.state.on_reserved(now, reserved)
            }
            Op::Short => self.state.on_short(PagesShort { releases: self.state.releases }),
            Op::Grown => self.state.on_grown(PagesGrown { sequence: OWN, pages: pages(&[9]) }),
            Op::Adopted(place) => self.state.on_adopted(now, adopted(place, place)),
            Op::Prefilled(token) => self.state.on_prefill_finished(now, prefilled(token)),
            Op::Advanced(_) if !self.running => return None,
            Op::Advanced(stopped) => self.advance(stopped),
            Op::Lost => self.state.on_peer_lost(SESSION),
            Op::Ready => {
                self.state.on_peer_ready(PeerReady { session: SESSION, pid: 9, name: 9, http: None })
            }
            Op::Failed => self.state.on_prefill_failed(prefill_failed(SESSION)),
            Op::Abort => self.state.on_abort(R),
            Op::Tick(seconds) => self.state.on_tick(now + Duration::from_secs(seconds)),
        })
    }

    /// The generator's promise: one token per step, and the last one ends the sequence.
    fn advance(&mut self, stopped: bool) -> Vec<Effect> {
        self.sampled -= 1;
        let told = match &self.state.requests[&R].phase {
            Phase::Running(running) => running.state == RunState::Preempted,
            phase => matches!(phase, Phase::Stopping),
        };
        let ended = match (stopped && told, self.sampled) {
            (true, _) => Some(SequenceEnd::Stopped),
            (false, 0) => Some(SequenceEnd::Finished(FinishReason::Length)),
            _ => None,
        };
        self.running = ended.is_none();
        let token = (ended != Some(SequenceEnd::Stopped)).then_some(7);
        self.state.on_advanced(self.now, advanced(token, ended))
    }

    fn look_at(&mut self, effect: Effect) -> Result<(), TestCaseError> {
        match effect {
            Effect::Streams(ToStreams::StreamEnd(_)) => self.ends += 1,
            Effect::Proxy(ToProxy::PrefillOver(_)) => self.overs += 1,
            Effect::Proxy(ToProxy::PlaceAgain(_)) => self.asked += 1,
            Effect::Streams(ToStreams::StreamToken(_)) => {
                self.tokens += 1;
                prop_assert!(self.ends == 0, "a token after the end");
            }
            Effect::Generator(ToGenerator::StartSequence(start)) => {
                prop_assert!(!self.running);
                (self.running, self.starts, self.sampled) = (true, self.starts + 1, start.sample);
                // A request that was preempted after it had run is recomputed here.
                let is_computed = start.resident == 6 || self.starts > 1;
                prop_assert!(!self.must_not_prefill || is_computed, "it must not be prefilled here");
            }
            Effect::BufferManager(ToBufferManager::ReservePages(_)) => {
                prop_assert!(!self.holds, "reserved twice");
                (self.reserving, self.holds) = (true, true);
            }
            Effect::BufferManager(ToBufferManager::ReleasePages(_)) => {
                prop_assert!(!self.running, "pages released while the engine may touch them");
                prop_assert!(self.holds, "released twice");
                (self.reserving, self.holds) = (false, false);
            }
            _ => {}
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A request ends once, releases its pages after the engine has stopped using them, and streams at most `max_tokens` tokens. The proxy is
    /// told about the end of each placement. A prompt that must not be prefilled here is not.
    #[test]
    fn one_end_one_release(ops in vec(any_op(), 0..60)) {
        let mut world = World::new();
        for op in ops {
            let Some(effects) = world.apply(op) else { continue };
            for effect in effects {
                world.look_at(effect)?;
            }
            world.live = !world.state.is_empty();
            let World { live, ends, starts, tokens, overs, placements, asked, holds, .. } = world;
            prop_assert!(ends <= 1 && tokens <= 5 && asked <= 1);
            let is_told = overs == placements || live && overs < placements;
            prop_assert!(is_told || ends == 0, "{overs} of {placements} placements are over");
            prop_assert!(overs <= placements);
            prop_assert!(live || ends == 1 || starts == 0 && ends == 0);
            prop_assert!(live || !holds, "its pages are not released");
        }
    }
}
