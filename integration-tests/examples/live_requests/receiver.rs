//! Measures the decoder and the buffer manager.

use std::time::{Duration, Instant};

use actors::buffer_manager::state::{PoolConfig, PoolState};
use actors::decoder::state::{DecoderConfig, DecoderState};
use actors::effect::{Effect, ToBufferManager, ToDecoder};
use actors::finish::FinishRule;
use actors::messages::*;
use actors::request::{AbortRequest, FinishReason, Generate, RequestId, Route};
use connector::frame::PageOwner;
use connector::ring::CreditNumber;
use engine::PageId;

use crate::{MESSAGES, PAGE_TOKENS, PROMPT_PAGES, PROMPT_TOKENS, Times, fresh, prompt, spread};

const SESSION: SessionId = SessionId(1);
/// Pages of a request: those of its prompt, and as many for its answer.
const PAGES: u32 = 2 * PROMPT_PAGES;

fn own(request: u64) -> SequenceId {
    SequenceId::Own(RequestId(request))
}

fn pages(request: u64, count: u32) -> Vec<PageId> {
    (0..count).map(|page| PageId(request as u32 * PAGES + page)).collect()
}

fn decode(now: Instant, request: u64, prefill_on: Option<SessionId>) -> ToDecoder {
    let generate = Generate {
        request: RequestId(request),
        prompt: prompt(request).into(),
        max_tokens: 1000,
        sampling: Default::default(),
        grammar: None,
        salt: None,
        ignore_eos: true,
        prompt_logprobs: None,
        sent: now,
        deadline: now + Duration::from_secs(3600),
        route: Route::Auto,
        trace: None,
    };
    let placement = Placement { on: prefill_on, tokens: PROMPT_TOKENS, may_fall_back: true };
    Decode { generate, placement }.into()
}

fn reserved(request: u64, landing: u32) -> ToDecoder {
    let pages = pages(request, PAGES - landing);
    PagesReserved { sequence: own(request), resident: 0, landing, pages }.into()
}

fn advanced(request: u64, resident: u32, ended: Option<SequenceEnd>) -> ToDecoder {
    let (sequence, token) = (own(request), Some(7.into()));
    SequenceAdvanced { sequence, resident, prompt_logprobs: Vec::new(), token, running_micros: 1, ended }
        .into()
}

/// A decoder with `live` requests. The pages of their prompts come from the sender `on`, if there is one.
fn decoding(now: Instant, live: u64, on: Option<SessionId>) -> DecoderState {
    let mut state = DecoderState::new(DecoderConfig {
        page_tokens: PAGE_TOKENS,
        page_bytes: 1 << 20,
        finish: FinishRule::default(),
        vocabulary: 1 << 20,
        pid: 1,
        growth_tokens: 64,
        grammars_per_session: 16,
        holds_first_token: false,
    });
    state.on(now, PeerReady { session: SESSION, pid: 2, name: 2, http: None }.into());
    for request in 0..live {
        state.on(now, decode(now, request, on));
        state.on(now, reserved(request, on.map_or(0, |_| PROMPT_PAGES)));
    }
    state
}

/// A decoder with running requests.
pub(crate) fn decoder(live: u64, times: &mut Times) {
    let now = Instant::now();
    let mut state = decoding(now, live, None);
    for request in 0..live {
        state.on(now, advanced(request, PROMPT_TOKENS, None));
    }
    let mut measure = |name, mails: Vec<ToDecoder>| {
        times.measure(&format!("decoder: {name}"), mails, |mail| drop(state.on(now, mail)));
    };
    measure("Decode", fresh(live).map(|request| decode(now, request, None)).collect());
    measure("PagesReserved", fresh(live).map(|request| reserved(request, 0)).collect());
    measure(
        "SequenceAdvanced, first token",
        fresh(live).map(|request| advanced(request, PROMPT_TOKENS, None)).collect(),
    );
    measure(
        "SequenceAdvanced, next token",
        spread(live).map(|request| advanced(request, PROMPT_TOKENS + 1, None)).collect(),
    );
    let grown = |request| PagesGrown { sequence: own(request), pages: vec![PageId(0)] }.into();
    measure("PagesGrown", spread(live).map(grown).collect());
    let abort = |request| AbortRequest::cancelled(RequestId(request)).into();
    measure("AbortRequest", fresh(live).map(abort).collect());
    let ended =
        |request| advanced(request, PROMPT_TOKENS + 1, Some(SequenceEnd::Finished(FinishReason::Length)));
    measure("SequenceAdvanced, the end", spread(live).map(ended).collect());
    let short = |_| PagesShort { releases: u64::MAX }.into();
    measure("PagesShort", (0..MESSAGES).map(short).collect());
    measure("Tick (visits every request)", (0..MESSAGES).map(|_| Tick.into()).collect());
}

/// A decoder with requests whose pages come from a sender.
pub(crate) fn landing(live: u64, times: &mut Times) {
    let now = Instant::now();
    let mut state = decoding(now, live, Some(SESSION));
    let mut measure = |name, mails: Vec<ToDecoder>| {
        times.measure(&format!("decoder: {name}"), mails, |mail| drop(state.on(now, mail)));
    };
    let adopted = |request| {
        let request = RequestId(request);
        PagesAdopted { request, first_page: 0, pages: vec![PageId(0)], transfer_micros: 1 }.into()
    };
    measure("PagesAdopted", spread(live).map(adopted).collect());
    let finished = |request| {
        let request = RequestId(request);
        PrefillFinished { session: SESSION, request, token: 7.into(), cached: 0, prefill_micros: 1 }.into()
    };
    measure("PrefillFinished", spread(live).map(finished).collect());
}

fn reserve(request: u64, landing: Option<SessionId>) -> ToBufferManager {
    let (tokens, pages) = (prompt(request).into(), PAGES);
    let (sequence, priority) = (own(request), ReservePriority::New);
    ReservePages { sequence, tokens, salt: None, reads_cache: true, pages, landing, priority }.into()
}

fn release(request: u64) -> ToBufferManager {
    ReleasePages { sequence: own(request) }.into()
}

fn config(pages: u64, ring_pages: u32) -> PoolConfig {
    let (pages, page_bytes) = (pages as u32, 1 << 20);
    PoolConfig {
        prefill_pages: None,
        pages,
        ring_pages,
        page_tokens: PAGE_TOKENS,
        page_bytes,
        sharing: true,
        announces: false,
        scattered: false,
    }
}

/// A pool with requests that hold pages, and with free pages.
pub(crate) fn pool(live: u64, times: &mut Times) {
    let now = Instant::now();
    let mut state = PoolState::new(config((live + 2 * MESSAGES) * u64::from(PAGES), 0));
    let mut held = Vec::new();
    for request in 0..live {
        for effect in state.on(now, reserve(request, None), None) {
            if let Effect::Decoder(ToDecoder::PagesReserved(reserved)) = effect {
                held.push(reserved.pages);
            }
        }
    }
    let mut measure = |name, mails: Vec<ToBufferManager>| {
        times.measure(&format!("buffer manager: {name}"), mails, |mail| drop(state.on(now, mail, None)));
    };
    measure("ReservePages", fresh(live).map(|request| reserve(request, None)).collect());
    let computed = |request| {
        let (tokens, pages) = (prompt(request).into(), held[request as usize].clone());
        PagesComputed { sequence: own(request), tokens, salt: None, pages }.into()
    };
    measure("PagesComputed", spread(live).map(computed).collect());
    let grow = |request| GrowPages { sequence: own(request), least: 1, most: 4 }.into();
    measure("GrowPages", spread(live).map(grow).collect());
    measure("ReleasePages", spread(live).map(release).collect());
}

/// A pool without free pages, and requests that wait for pages.
pub(crate) fn full_pool(live: u64, times: &mut Times) {
    let now = Instant::now();
    let mut state = PoolState::new(config(MESSAGES * u64::from(PAGES), 0));
    let holders = (live + MESSAGES)..(live + 2 * MESSAGES);
    for request in holders.clone().chain(0..live) {
        state.on(now, reserve(request, None), None);
    }
    let mut measure = |name, mails: Vec<ToBufferManager>| {
        let name = format!("buffer manager, all wait: {name}");
        times.measure(&name, mails, |mail| drop(state.on(now, mail, None)));
    };
    measure("ReservePages", fresh(live).map(|request| reserve(request, None)).collect());
    measure("ReleasePages of the last that wait", fresh(live).map(release).collect());
    measure("ReleasePages of pages, served at once", holders.map(release).collect());
}

/// A pool with requests whose pages land under credits.
pub(crate) fn credits(live: u64, times: &mut Times) {
    let now = Instant::now();
    let ring_pages = 4 * MESSAGES as u32;
    let mut state = PoolState::new(config(live * u64::from(PAGES) + 2 * u64::from(ring_pages), ring_pages));
    state.on(now, SessionOpened { session: SESSION, ring_pages, seed: 1 }.into(), None);
    state.on(now, PeerReady { session: SESSION, pid: 2, name: 2, http: None }.into(), None);
    for request in 0..live {
        state.on(now, reserve(request, Some(SESSION)), None);
    }
    let filled = |(credit, request)| {
        let owner = Some(PageOwner { request, first_page: 0 });
        let (first, count, hashes) = (CreditNumber(credit), 1, Vec::new());
        PageFilled { session: SESSION, first, count, owner, hashes, transfer_micros: 1 }.into()
    };
    let mails = (0..).zip(spread(live)).map(filled).collect();
    times.measure("buffer manager: PageFilled", mails, |mail| drop(state.on(now, mail, None)));
    assert_eq!(state.counts().adopted, MESSAGES, "not all pages were adopted");
}
