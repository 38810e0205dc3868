//! Requests with grammars that a sender prefills.

use connector::frame::GrammarKind;

use super::*;
use crate::grammar::testing::named;

/// A request of this session with a grammar that asks for its prefill: its number and its frames.
fn frames(state: &mut DecoderState, session: SessionId, number: u64, text: &str) -> Vec<Frame> {
    let (now, request) = (Instant::now(), RequestId(number));
    let mut decode = decode(now, 6, 5, Some(session));
    (decode.generate.request, decode.generate.grammar) = (request, Some(named(text)));
    state.on_decode(now, decode);
    let effects =
        state.on_reserved(now, PagesReserved { sequence: SequenceId::Own(request), ..landing(&[8]) });
    let frame = |effect: Effect| match effect {
        Effect::PeerLink(ToPeerLink::SendFrame(send)) if send.session == session => send.frame,
        other => panic!("{other:?}"),
    };
    effects.into_iter().map(frame).collect()
}

#[test]
fn a_grammar_is_sent_once_before_the_first_prefill_that_names_it() {
    let mut state = state();
    let other = SessionId(2);
    state.on_peer_ready(PeerReady { session: other, pid: 10, name: 10, http: None });
    // A sender keeps two grammars. A third one replaces the least recently used one.
    let steps = [
        (SESSION, "a", Some(0)),
        (SESSION, "b", Some(1)),
        (SESSION, "a", None),
        (SESSION, "c", Some(1)),
        (SESSION, "a", None),
        (SESSION, "b", Some(1)),
        (SESSION, "c", Some(0)),
        (other, "c", Some(0)),
        (SESSION, "c", None),
    ];
    for (number, (session, text, sent)) in (10..).zip(steps) {
        let mut frames = frames(&mut state, session, number, text).into_iter();
        if let Some(index) = sent {
            let expect = Frame::Grammar { index, kind: GrammarKind::Lark, text: text.to_owned() };
            assert_eq!(frames.next(), Some(expect), "step {number}");
        }
        let named = Some(named(text).hash().0.into());
        assert!(
            matches!(frames.next(), Some(Frame::Prefill { request, grammar, .. }) if request == number && grammar == named)
        );
        assert_eq!(frames.next(), None, "step {number}");
    }
    // A new session of the same sender has no grammars.
    state.on_peer_lost(SESSION);
    state.on_peer_ready(PeerReady { session: SESSION, pid: 9, name: 9, http: None });
    assert_eq!(frames(&mut state, SESSION, 30, "c").len(), 2);
}
