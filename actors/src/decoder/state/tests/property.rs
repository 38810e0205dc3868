//! A request ends once and releases its pages once, for every order of messages.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Decode(bool),
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
        any::<bool>().prop_map(Op::Decode),
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
        let mut sampled = 0;
        for op in ops {
            let effects = match op {
                Op::Decode(_) if live => continue,
                Op::Decode(remote) => {
                    (ends, tokens, overs) = (0, 0, 0);
                    state.on_decode(now, decode(now, 6, 5, remote.then_some(SESSION)))
                }
                Op::Reserved(_) if running => continue,
                Op::Reserved(lands) => {
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
                    Effect::Streams(ToStreams::StreamToken(_)) => {
                        tokens += 1;
                        prop_assert!(ends == 0, "a token after the end");
                    }
                    Effect::Generator(ToGenerator::StartSequence(start)) => {
                        prop_assert!(!running);
                        running = true;
                        starts += 1;
                        sampled = start.sample;
                    }
                    Effect::BufferManager(ToBufferManager::ReleasePages(_)) => {
                        prop_assert!(!running, "pages released while the engine may touch them");
                    }
                    _ => {}
                }
            }
            live = !state.is_empty();
            prop_assert!(ends <= 1 && tokens <= 5);
            prop_assert!(overs <= 1 && (live || ends == 0 || overs == 1), "the proxy is told once");
            prop_assert!(live || ends == 1 || starts == 0 && ends == 0);
        }
    }
}
