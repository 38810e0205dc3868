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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A request ends once, releases its pages after the engine has stopped using them, and streams at most `max_tokens` tokens.
    #[test]
    fn one_end_one_release(ops in vec(any_op(), 0..60)) {
        let (mut state, now) = (state(), Instant::now());
        let (mut live, mut running, mut ends, mut starts, mut tokens, mut overs) = (false, false, 0, 0, 0, 0);
        // Placements, and questions for another one that are not answered.
        let (mut placements, mut asked, mut reserved_now, mut holds, mut must_not) = (0, 0, false, false, false);
        let mut sampled = 0;
        for op in ops {
            let effects = match op {
                Op::Decode(..) if live || asked > 0 => continue,
                Op::Decode(remote, may_fall_back) => {
                    (ends, tokens, overs, placements, starts) = (0, 0, 0, 1, 0);
                    let mut decode = decode(now, 6, 5, remote.then_some(SESSION));
                    decode.placement.may_fall_back = may_fall_back || !remote;
                    must_not = !decode.placement.may_fall_back;
                    state.on_decode(now, decode)
                }
                Op::Placed(_) if asked == 0 => continue,
                Op::Placed(found) => {
                    asked -= 1;
                    placements += u32::from(found);
                    let placement = found.then_some(Placement { may_fall_back: false, ..placement(Some(SESSION), 6) });
                    state.on_placed_again(PlacedAgain { request: R, placement })
                }
                Op::Reserved(_) if running || !reserved_now => continue,
                Op::Reserved(lands) => {
                    reserved_now = false;
                    let reserved = if lands { landing(&[3]) } else { reserved(&[1, 2, 3]) };
                    state.on_reserved(now, reserved)
                }
                Op::Short => state.on_short(PagesShort { releases: state.releases }),
                Op::Grown => state.on_grown(PagesGrown { sequence: OWN, pages: pages(&[9]) }),
                Op::Adopted(place) => state.on_adopted(now, adopted(place, place)),
                Op::Prefilled(token) => state.on_prefill_finished(now, prefilled(token)),
                Op::Advanced(_) if !running => continue,
                Op::Advanced(stopped) => {
                    // The generator's promise: one token per step, and the last one ends the sequence.
                    sampled -= 1;
                    let told = match &state.requests[&R].phase {
                        Phase::Running(running) => running.state == RunState::Preempted,
                        phase => matches!(phase, Phase::Stopping),
                    };
                    let ended = match (stopped && told, sampled) {
                        (true, _) => Some(SequenceEnd::Stopped),
                        (false, 0) => Some(SequenceEnd::Finished(FinishReason::Length)),
                        _ => None,
                    };
                    running = ended.is_none();
                    let token = (ended != Some(SequenceEnd::Stopped)).then_some(7);
                    state.on_advanced(now, advanced(token, ended))
                }
                Op::Lost => state.on_peer_lost(SESSION),
                Op::Ready => state.on_peer_ready(PeerReady { session: SESSION, pid: 9 }),
                Op::Failed => state.on_prefill_failed(prefill_failed(SESSION)),
                Op::Abort => state.on_abort(R),
                Op::Tick(seconds) => state.on_tick(now + Duration::from_secs(seconds)),
            };
            for effect in effects {
                match effect {
                    Effect::Streams(ToStreams::StreamEnd(_)) => ends += 1,
                    Effect::Proxy(ToProxy::PrefillOver(_)) => overs += 1,
                    Effect::Proxy(ToProxy::PlaceAgain(_)) => asked += 1,
                    Effect::BufferManager(ToBufferManager::ReservePages(_)) => {
                        prop_assert!(!reserved_now && !holds, "reserved twice");
                        (reserved_now, holds) = (true, true);
                    }
                    Effect::Streams(ToStreams::StreamToken(_)) => {
                        tokens += 1;
                        prop_assert!(ends == 0, "a token after the end");
                    }
                    Effect::Generator(ToGenerator::StartSequence(start)) => {
                        prop_assert!(!running);
                        running = true;
                        starts += 1;
                        prop_assert!(!must_not || start.resident == 6 || starts > 1, "it must not be prefilled here");
                        sampled = start.sample;
                    }
                    Effect::BufferManager(ToBufferManager::ReleasePages(_)) => {
                        prop_assert!(!running, "pages released while the engine may touch them");
                        prop_assert!(holds, "released twice");
                        (reserved_now, holds) = (false, false);
                    }
                    _ => {}
                }
            }
            live = !state.is_empty();
            prop_assert!(ends <= 1 && tokens <= 5);
            prop_assert!(overs <= placements && (live || ends == 0 || overs == placements), "the proxy is told once");
            prop_assert!(asked <= 1);
            prop_assert!(live || ends == 1 || starts == 0 && ends == 0);
        }
    }
}
