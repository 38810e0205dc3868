//! Tests of frames: the actor that gets each frame, and when frames are written.

use connector::frame::{GRAMMAR_BYTES_MAX, GRAMMARS_MAX, GrammarKind, PrefillFault, TraceContext};

use super::*;
use crate::grammar::{GrammarHash, GrammarSource};
use crate::messages::StoreGrammar;
use crate::messages::{LoadReport, PeerLoad, PromptLogprobs};
use crate::request::CacheSalt;
use connector::frame::TokenLogprobs;

/// Each frame that a sender may send and that has one effect, and the effect of each.
fn of_senders(session: SessionId) -> Vec<(Frame, Effect)> {
    let (first, count, transfer_micros) = (CreditNumber(3), 2, 11);
    let owner = Some(PageOwner { request: 5, first_page: 1 });
    let hashes = vec![8, 9];
    let request = RequestId(5);
    let scored = TokenLogprobs { sampled: -0.5, rank: 2, top: vec![(7, -0.25)] };
    let load = LoadReport {
        waiting_tokens: LoadReport::TOKENS_MAX,
        begun_tokens: LoadReport::TOKENS_MAX,
        nanos_per_token: None,
        decoding: 0,
        decode: None,
    };
    vec![
        (
            Frame::Load {
                waiting_tokens: u64::MAX,
                begun_tokens: u64::MAX,
                nanos_per_token: Some(0),
                cache_pages: 9,
            },
            to::proxy(PeerLoad { session, load, cache_pages: 9 }),
        ),
        (
            Frame::PageFilled { first, count, owner, hashes: hashes.clone(), transfer_micros },
            to::buffer_manager(PageFilled { session, first, count, owner, hashes, transfer_micros }),
        ),
        (
            Frame::PromptLogprobs { request: 5, first: 1, tokens: vec![scored.clone()] },
            to::decoder(PromptLogprobs {
                session,
                request,
                first: 1,
                logprobs: vec![first_token::logprobs_of_frame(scored)],
            }),
        ),
        (
            Frame::PrefillFinished { request: 5, token: 7, logprobs: None, cached: 4, prefill_micros: 12 },
            to::decoder(PrefillFinished { session, request, token: 7.into(), cached: 4, prefill_micros: 12 }),
        ),
        (
            Frame::PrefillFailed { request: 5, fault: PrefillFault::Refused, reason: "full".into() },
            to::decoder(PrefillFailed {
                session,
                request,
                fault: PrefillFault::Refused,
                reason: "full".into(),
            }),
        ),
    ]
}

/// Each frame that a receiver may send, and the effect of each.
fn of_receivers(session: SessionId) -> Vec<(Frame, Effect)> {
    let (first, pages) = (CreditNumber(3), vec![PageIndex(4), PageIndex(6)]);
    let (request, prompt, resident, remaining_ms) = (RequestId(5), vec![1, 2, 3], 2, 1000);
    let (sampled_by, sampling) = (first_token::to_frame(&Default::default(), Some(3)), Default::default());
    let (salt, grammar) = (Some([3; 32]), Some([4; 32]));
    let source = GrammarSource::Regex("a*".into()).into();
    let start = StartPrefill {
        session,
        request,
        prompt: prompt.clone(),
        resident,
        sampling,
        salt: salt.map(CacheSalt),
        grammar: grammar.map(GrammarHash),
        prompt_logprobs: Some(3),
        remaining_ms,
        trace: None,
    };
    vec![
        (
            Frame::Grant { first, pages: pages.clone() },
            to::transfer(CreditsGranted { session, first, pages }),
        ),
        (Frame::RingShare { pages: 4 }, to::transfer(RingShared { session, pages: 4 })),
        (
            Frame::Prefill {
                request: 5,
                prompt,
                resident,
                sampling: sampled_by,
                salt,
                grammar: grammar.map(Box::new),
                remaining_ms,
            },
            to::prefiller(start),
        ),
        (Frame::CancelPrefill { request: 5 }, to::prefiller(CancelPrefill { session, request })),
        (
            Frame::Grammar { index: 1, kind: GrammarKind::Regex, text: "a*".into() },
            to::prefiller(StoreGrammar { session, index: 1, source }),
        ),
    ]
}

#[test]
fn a_senders_frames_reach_the_actors_that_receive_pages() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    for (frame, expect) in of_senders(begun.session) {
        assert_eq!(begun.receives(&mut state, frame), [expect]);
    }
}

#[test]
fn a_leaving_frame_reaches_proxy_and_buffer_manager() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    let leaving = PeerLeaving { session: begun.session };
    assert_eq!(begun.receives(&mut state, Frame::Leaving), [to::proxy(leaving), to::buffer_manager(leaving)]);
}

#[test]
fn a_receivers_frames_reach_the_actors_that_send_pages() {
    let mut state = state(true);
    let begun = up_outgoing(&mut state);
    for (frame, expect) in of_receivers(begun.session) {
        assert_eq!(begun.receives(&mut state, frame), [expect]);
    }
}

#[test]
fn a_grammar_beyond_the_limits_ends_the_session() {
    for (index, bytes, reason) in [
        (GRAMMARS_MAX - 1, GRAMMAR_BYTES_MAX, None),
        (GRAMMARS_MAX, 1, Some("peer sent a grammar with index 16; a session has 16 grammars")),
        (0, GRAMMAR_BYTES_MAX + 1, Some("peer sent a grammar of 262145 bytes; at most 262144 are allowed")),
    ] {
        let mut state = state(true);
        let begun = up_outgoing(&mut state);
        let frame = Frame::Grammar { index, kind: GrammarKind::Lark, text: "a".repeat(bytes) };
        let effects = begun.receives(&mut state, frame);
        match reason {
            Some(reason) => assert_eq!(effects, begun.ended(reason, false)),
            None => assert!(matches!(&effects[..], [Effect::Prefiller(_)]), "{effects:?}"),
        }
    }
}

#[test]
fn peer_ready_reaches_the_decoder_before_the_proxy() {
    let mut state = state(true);
    let begun = up(&mut state, A, 1);
    let (session, pid, name) = (begun.session, A.pid, A.name());
    let ready = PeerReady { session, pid, name, http: None };
    let lane = LaneSpeed { name: "tcp/lo".into(), bytes: 1000, micros: 10 };
    assert_eq!(
        begun.receives(&mut state, probed()),
        [
            to::buffer_manager(ready),
            to::decoder(ready),
            to::proxy(ready),
            to::log(LogLine::SenderReady { session, pid, lane })
        ]
    );
}

#[test]
fn the_advertised_address_of_a_sender_reaches_the_proxy() {
    let check = |http: &str, link: &str, expect: Option<&str>| {
        let mut state = state(true);
        let came = HelloCame { http: http.to_owned(), address: link.to_owned(), ..hello_came(A, 1) };
        let begun = join_with(&mut state, Instant::now(), came);
        state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
        begun.receives(&mut state, lane_connected("tcp/lo"));
        let expect = expect.map(|expect| expect.parse().unwrap());
        let (session, pid, name) = (begun.session, A.pid, A.name());
        let ready = to::proxy(PeerReady { session, pid, name, http: expect });
        assert!(begun.receives(&mut state, probed()).contains(&ready), "{http:?}, {link:?}");
    };
    check("10.0.0.1:8100", "10.0.0.9:5000", Some("10.0.0.1:8100"));
    check("0.0.0.0:8100", "10.0.0.9:5000", Some("10.0.0.9:8100"));
    check("[::]:8100", "10.0.0.9:5000", Some("10.0.0.9:8100"));
    check("[::]:8100", "[fd00::9]:5000", Some("[fd00::9]:8100"));
    check("0.0.0.0:8100", "[::ffff:10.0.0.9]:5000", Some("10.0.0.9:8100"));
    check("[::ffff:10.0.0.1]:8100", "10.0.0.9:5000", Some("10.0.0.1:8100"));
    check("0.0.0.0:8100", "somewhere", None);
    check("sender:8100", "10.0.0.9:5000", None);
    check("", "10.0.0.9:5000", None);
}

#[test]
fn a_frame_of_the_wrong_direction_ends_the_session() {
    let both = Frame::Heartbeat;
    let receivers = of_receivers(SessionId(0)).into_iter().map(|(frame, _)| frame);
    for frame in receivers.chain([both.clone()]) {
        let mut state = state(true);
        let begun = up(&mut state, A, 1);
        let reason =
            format!("peer sent a {} frame, which this side of a session does not accept", frame.name());
        assert_eq!(begun.receives(&mut state, frame), begun.ended(&reason, false));
    }
    let senders = of_senders(SessionId(0)).into_iter().map(|(frame, _)| frame);
    let connected = Frame::LaneConnected { lane: "tcp/lo".into() };
    for frame in senders.chain([Frame::Leaving, probed(), connected, both]) {
        let mut state = state(true);
        let begun = up_outgoing(&mut state);
        let reason =
            format!("peer sent a {} frame, which this side of a session does not accept", frame.name());
        assert_eq!(begun.receives(&mut state, frame), begun.ended(&reason, false));
        assert_eq!(state.ready(), 0);
    }
}

#[test]
fn a_stale_frame_is_counted_and_dropped() {
    let mut state = state(true);
    assert_eq!(deliver(&mut state, FrameCame { session: SessionId(99), frame: Frame::Leaving }), []);
    assert_eq!(state.counts().stale_frames, 1, "there is no such session");
    let begun = join(&mut state, Instant::now(), A, 1);
    assert_eq!(begun.receives(&mut state, Frame::Leaving), []);
    assert_eq!(state.counts().stale_frames, 2, "the session is not up yet");
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    begun.receives(&mut state, lane_connected("tcp/lo"));
    assert_eq!(begun.receives(&mut state, Frame::Leaving).len(), 2);
    state.on_end(begun.session, "eof".into());
    assert_eq!(begun.receives(&mut state, Frame::Leaving), []);
    assert_eq!(begun.receives(&mut state, Frame::RingShare { pages: 1 }), []);
    assert_eq!(state.counts(), LinkCounts { opened: 1, ended: 1, stale_frames: 4 });
}

#[test]
fn frames_are_written_only_while_the_session_is_up() {
    let mut state = state(true);
    let begun = join(&mut state, Instant::now(), A, 1);
    let frame = Frame::RingShare { pages: 3 };
    let send = SendFrame { session: begun.session, frame: frame.clone() };
    assert_eq!(deliver(&mut state, send.clone()), []);
    state.on_opened(Instant::now(), begun.session, Ok(descriptor("ours")));
    assert_eq!(deliver(&mut state, send.clone()), [begun.writes(frame.clone())]);
    begun.receives(&mut state, lane_connected("tcp/lo"));
    begun.receives(&mut state, probed());
    assert_eq!(deliver(&mut state, send.clone()), [begun.writes(frame)]);
    state.on_end(begun.session, "eof".into());
    assert_eq!(deliver(&mut state, send), []);
}

#[test]
fn leaving_is_sent_to_all_sessions_that_are_up() {
    let mut state = state(true);
    let ended = up(&mut state, A, 1).session;
    state.on_end(ended, "eof".into());
    let begun = up_outgoing(&mut state);
    join(&mut state, Instant::now(), B, 1);
    assert_eq!(deliver(&mut state, AnnounceLeaving), [begun.writes(Frame::Leaving)]);
    assert_eq!(deliver(&mut state, AnnounceLeaving), [], "peers are told once");
    let measured = SendFrame { session: begun.session, frame: probed() };
    let effects = [deliver(&mut state, measured), deliver(&mut state, DialDue { receiver: FIRST })].concat();
    assert_eq!(effects, [begun.writes(probed()), begun.writes(load(0)), begun.writes(Frame::Leaving)]);
}

fn load(waiting_tokens: u64) -> Frame {
    Frame::Load { waiting_tokens, begun_tokens: 0, nanos_per_token: None, cache_pages: 50 }
}

#[test]
fn the_peers_that_we_prefill_for_know_our_load() {
    let mut state = state(true);
    let (incoming, outgoing) = (up(&mut state, A, 1), up_outgoing(&mut state));
    incoming.receives(&mut state, probed());
    let report = |waiting_tokens| LoadReport {
        waiting_tokens,
        begun_tokens: 0,
        nanos_per_token: None,
        decoding: 0,
        decode: None,
    };
    assert_eq!(deliver(&mut state, report(5)), [], "its lane is not measured yet");
    let measured = SendFrame { session: outgoing.session, frame: probed() };
    assert_eq!(deliver(&mut state, measured), [outgoing.writes(probed()), outgoing.writes(load(5))]);
    assert_eq!(deliver(&mut state, report(7)), [outgoing.writes(load(7))]);
}

#[test]
fn a_trace_belongs_to_the_next_prefill() {
    let mut state = state(true);
    let begun = up_outgoing(&mut state);
    let context = TraceContext { trace: [1; 16], span: [2; 8], flags: 1 };
    let trace = |request| Frame::Trace { request, context };
    let (prefill, start) = of_receivers(begun.session).into_iter().nth(2).expect("it is in the list");
    let Effect::Prefiller(ToPrefiller::StartPrefill(start)) = start else {
        panic!("{start:?} is no prefill")
    };
    let traced = to::prefiller(StartPrefill { trace: Some(context), ..(*start).clone() });
    assert_eq!(begun.receives(&mut state, trace(5)), []);
    assert_eq!(begun.receives(&mut state, prefill.clone()), [traced]);
    let plain = to::prefiller(*start);
    assert_eq!(
        begun.receives(&mut state, prefill.clone()),
        std::slice::from_ref(&plain),
        "the trace was used"
    );
    assert_eq!(begun.receives(&mut state, trace(6)), []);
    assert_eq!(begun.receives(&mut state, prefill), [plain], "it is the trace of another request");
}
