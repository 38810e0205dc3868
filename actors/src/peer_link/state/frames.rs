//! Delivery of frames to actors. A frame that does not belong to its session's direction ends the session.

use std::time::Instant;

use connector::frame::{Frame, GRAMMAR_BYTES_MAX, GRAMMARS_MAX, GrammarKind, Incarnation, TraceContext};
use engine::Sampling;

use super::{Direction, PeerLinkState};
use crate::effect::{Effect, to};
use crate::first_token;
use crate::grammar::{GrammarHash, GrammarSource};
use crate::log::{LaneSpeed, LogLine};
use crate::messages::{
    CancelPrefill, CreditsGranted, LoadReport, PageFilled, PeerLeaving, PeerLoad, PeerReady, PrefillFailed,
    PrefillFinished, PromptLogprobs, RingShared, SessionId, StartPrefill, StoreGrammar,
};
use crate::request::{CacheSalt, RequestId};

impl PeerLinkState {
    /// A frame arrived. If its session is not up, the frame is counted and dropped.
    pub(super) fn on_frame(&mut self, now: Instant, session: SessionId, frame: Frame) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| live.is_up()) else {
            self.counts.stale_frames += 1;
            return Vec::new();
        };
        live.note_credit(now, &frame);
        live.prefills.note(now, &frame);
        let peer = live.peer;
        let has_lane = live.has_lane();
        let effects = match live.direction {
            _ if !has_lane && !matches!(frame, Frame::LaneConnected { .. }) => {
                Err(format!("peer sent a {} frame before LaneConnected", frame.name()))
            }
            Direction::Incoming { .. } => self.on_senders_frame(session, peer, frame),
            Direction::Outgoing { .. } => on_receivers_frame(session, &mut live.trace, frame),
        };
        effects.unwrap_or_else(|reason| self.on_end(session, reason))
    }

    fn on_senders_frame(
        &mut self,
        session: SessionId,
        peer: Incarnation,
        frame: Frame,
    ) -> Result<Vec<Effect>, String> {
        let effect = match frame {
            Frame::PageFilled { first, count, owner, hashes, transfer_micros } => {
                to::buffer_manager(PageFilled { session, first, count, owner, hashes, transfer_micros })
            }
            Frame::PromptLogprobs { request, first, tokens } => {
                let logprobs = tokens.into_iter().map(first_token::logprobs_of_frame).collect();
                to::decoder(PromptLogprobs { session, request: RequestId(request), first, logprobs })
            }
            Frame::PrefillFinished { request, token, logprobs, cached, prefill_micros } => {
                let (request, token) = (RequestId(request), first_token::join(token, logprobs));
                to::decoder(PrefillFinished { session, request, token, cached, prefill_micros })
            }
            Frame::PrefillFailed { request, fault, reason } => {
                to::decoder(PrefillFailed { session, request: RequestId(request), fault, reason })
            }
            Frame::Load { waiting_tokens, begun_tokens, nanos_per_token, cache_pages } => {
                let load = LoadReport::of_peer(waiting_tokens, begun_tokens, nanos_per_token);
                to::proxy(PeerLoad { session, load, cache_pages })
            }
            Frame::Leaving => {
                let leaving = PeerLeaving { session };
                return Ok(vec![to::proxy(leaving), to::buffer_manager(leaving)]);
            }
            Frame::LinkProbed { lane: name, bytes, micros } => {
                self.on_probed(session)?;
                let pid = peer.pid;
                let http = self.sessions.get(&session).and_then(|live| live.http);
                let ready = PeerReady { session, pid, name: peer.name(), http };
                let lane = LaneSpeed { name, bytes, micros };
                // The decoder comes before the proxy, so that it knows the sender before the proxy places a request there.
                return Ok(vec![
                    to::buffer_manager(ready),
                    to::decoder(ready),
                    to::proxy(ready),
                    to::log(LogLine::SenderReady { session, pid, lane }),
                ]);
            }
            Frame::LaneConnected { lane } => to::buffer_manager(self.on_lane_named(session, &lane)?),
            other => return Err(unexpected(&other)),
        };
        Ok(vec![effect])
    }
}

/// `trace` is that of the next prefill.
fn on_receivers_frame(
    session: SessionId,
    trace: &mut Option<(u64, TraceContext)>,
    frame: Frame,
) -> Result<Vec<Effect>, String> {
    let effect = match frame {
        Frame::Grant { first, pages } => to::transfer(CreditsGranted { session, first, pages }),
        Frame::RingShare { pages } => to::transfer(RingShared { session, pages }),
        Frame::Prefill { request, prompt, resident, sampling, salt, grammar, remaining_ms } => {
            let trace = trace.take().filter(|(named, _)| *named == request).map(|(_, context)| context);
            let prompt_logprobs = sampling.prompt_logprobs.map(|top| top.min(Sampling::LOGPROBS_MAX));
            let (request, sampling) = (RequestId(request), first_token::from_frame(*sampling).into());
            let salt = salt.map(CacheSalt);
            let grammar = grammar.map(|hash| GrammarHash(*hash));
            to::prefiller(StartPrefill {
                session,
                request,
                prompt,
                resident,
                sampling,
                salt,
                grammar,
                prompt_logprobs,
                remaining_ms,
                trace,
            })
        }
        Frame::Grammar { index, kind, text } => to::prefiller(grammar(session, index, kind, text)?),
        Frame::Trace { request, context } => {
            *trace = context.is_recorded().then_some((request, context));
            return Ok(Vec::new());
        }
        Frame::CancelPrefill { request } => {
            to::prefiller(CancelPrefill { session, request: RequestId(request) })
        }
        other => return Err(unexpected(&other)),
    };
    Ok(vec![effect])
}

/// A receiver's grammar, whose size and index are checked here.
fn grammar(session: SessionId, index: u32, kind: GrammarKind, text: String) -> Result<StoreGrammar, String> {
    if index >= GRAMMARS_MAX {
        return Err(format!("peer sent a grammar with index {index}; a session has {GRAMMARS_MAX} grammars"));
    }
    if text.len() > GRAMMAR_BYTES_MAX {
        let bytes = text.len();
        return Err(format!("peer sent a grammar of {bytes} bytes; at most {GRAMMAR_BYTES_MAX} are allowed"));
    }
    let source = match kind {
        GrammarKind::JsonSchema => GrammarSource::JsonSchema(text),
        GrammarKind::Regex => GrammarSource::Regex(text),
        GrammarKind::Lark => GrammarSource::Lark(text),
    };
    Ok(StoreGrammar { session, index, source: source.into() })
}

fn unexpected(frame: &Frame) -> String {
    format!("peer sent a {} frame, which this side of a session does not accept", frame.name())
}
