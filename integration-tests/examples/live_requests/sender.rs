//! Measures the prefiller, the transfer actor and the generator.

use std::time::Instant;

use actors::effect::{Effect, ToEngine, ToGenerator, ToPrefiller, ToTransfer};
use actors::finish::FinishRule;
use actors::generator::state::{GeneratorConfig, GeneratorState};
use actors::messages::*;
use actors::prefiller::state::{PrefillerConfig, PrefillerState};
use actors::request::{FinishReason, RequestId};
use actors::transfer::state::{TransferConfig, TransferState};
use engine::{PageId, StepLimits};

use crate::{MESSAGES, PAGE_TOKENS, PROMPT_PAGES, PROMPT_TOKENS, Times, fresh, prompt, spread};

/// Sessions of a sender. A session has at most 1,024 prefills.
const SESSIONS: u64 = 8;

fn session(request: u64) -> SessionId {
    SessionId(request % SESSIONS)
}

fn pages(request: u64) -> Vec<PageId> {
    (0..PROMPT_PAGES).map(|page| PageId(request as u32 * PROMPT_PAGES + page)).collect()
}

/// The prefiller counts prefills from 1.
fn peers(request: u64) -> SequenceId {
    SequenceId::Peer(request + 1)
}

fn start_prefill(request: u64) -> ToPrefiller {
    StartPrefill {
        session: session(request),
        request: RequestId(request),
        prompt: prompt(request),
        resident: 0,
        sampling: Default::default(),
        salt: None,
        grammar: None,
        prompt_logprobs: None,
        remaining_ms: 3_600_000,
        trace: None,
    }
    .into()
}

fn reserved(request: u64) -> ToPrefiller {
    PagesReserved { sequence: peers(request), resident: 0, landing: 0, pages: pages(request) }.into()
}

fn advanced(request: u64, resident: u32, ended: Option<SequenceEnd>) -> ToPrefiller {
    let token = ended.is_some().then(|| 7.into());
    SequenceAdvanced {
        sequence: peers(request),
        resident,
        prompt_logprobs: Vec::new(),
        token,
        running_micros: 1,
        ended,
    }
    .into()
}

/// A prefiller with running prefills.
pub(crate) fn prefiller(live: u64, times: &mut Times) {
    let now = Instant::now();
    let mut state = PrefillerState::new(PrefillerConfig {
        page_tokens: PAGE_TOKENS,
        page_bytes: 1 << 20,
        pool_pages: 1 << 20,
        vocabulary: 1 << 20,
        context_tokens: 8192,
        compiles_grammars: false,
        records_traces: false,
    });
    for request in 0..live {
        state.on(now, start_prefill(request));
        state.on(now, reserved(request));
    }
    let mut measure = |name, mails: Vec<ToPrefiller>| {
        times.measure(&format!("prefiller: {name}"), mails, |mail| drop(state.on(now, mail)));
    };
    measure("StartPrefill", fresh(live).map(start_prefill).collect());
    measure("PagesReserved", fresh(live).map(reserved).collect());
    let chunk = |request| advanced(request, PROMPT_TOKENS / 2, None);
    measure("SequenceAdvanced, a chunk", spread(live).map(chunk).collect());
    let end = || Some(SequenceEnd::Finished(FinishReason::Length));
    let ended = |request| advanced(request, PROMPT_TOKENS, end());
    measure("SequenceAdvanced, the end", spread(live).map(ended).collect());
    let sent = |request| {
        let (session, request) = (session(request), RequestId(request));
        PagesSent { session, request, count: PROMPT_PAGES, put_micros: 1 }.into()
    };
    measure("PagesSent", spread(live).map(sent).collect());
    let drained = |request| PutsDrained { session: session(request), request: RequestId(request) }.into();
    measure("PutsDrained", spread(live).map(drained).collect());
    measure("Tick (visits every request)", (0..MESSAGES).map(|_| Tick.into()).collect());
    assert_eq!(state.len() as u64, live, "a prefill has not ended");
}

/// A transfer actor with requests whose pages wait for credits.
pub(crate) fn transfer(live: u64, times: &mut Times) {
    let mut state = TransferState::new(TransferConfig {
        page_bytes: 1 << 20,
        shards: 1,
        min_gigabytes_per_second: 0.0,
        hashed: true,
        on_device: false,
        pages_in_flight: 16,
    });
    let session = SessionId(1);
    state.on(0, SessionOpened { session, ring_pages: 64, seed: 1 }.into());
    let schedule = |request| {
        let pages = pages(request);
        SchedulePut { session, request: RequestId(request), first_page: 0, pages }.into()
    };
    for request in 0..live {
        state.on(0, schedule(request));
    }
    let mut measure = |name, mails: Vec<ToTransfer>| {
        times.measure(&format!("transfer: {name}"), mails, |mail| drop(state.on(0, mail)));
    };
    let cancel = |request| CancelPuts { session, request: RequestId(request) }.into();
    measure("SchedulePut", fresh(live).map(schedule).collect());
    measure("CancelPuts, all is sent", fresh(live + MESSAGES).map(cancel).collect());
    measure("CancelPuts, pages are queued", spread(live).map(cancel).collect());
}

fn plans(effects: Vec<Effect>) -> Option<RunStep> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Engine(ToEngine::RunStep(plan)) => Some(plan),
        _ => None,
    })
}

fn start(request: u64) -> ToGenerator {
    StartSequence {
        sequence: SequenceId::Own(RequestId(request)),
        tokens: prompt(request),
        resident: PROMPT_TOKENS - 1,
        pages: (0..2 * PROMPT_PAGES).map(PageId).collect(),
        prompt: PROMPT_TOKENS,
        sample: 1000,
        sampling: Default::default(),
        grammar: None,
        ignore_eos: true,
        prompt_logprobs: None,
        announce: false,
    }
    .into()
}

/// A generator whose step in flight has all sequences.
pub(crate) fn generator(live: u64, times: &mut Times) {
    let limits = StepLimits { tokens: 1 << 20, rows: 1 << 20 };
    let mut state = GeneratorState::new(GeneratorConfig {
        chunk_tokens: 512,
        inter_token_bound: None,
        limits,
        page_tokens: PAGE_TOKENS,
        finish: FinishRule::default(),
        runs_ahead: false,
    });
    let mut plan = None;
    for request in 0..live {
        plan = plans(state.on(0, start(request))).or(plan);
    }
    let finished = |plan: RunStep| -> ToGenerator {
        let tokens = plan.chunks.iter().map(|chunk| (chunk.key, 7.into())).collect();
        StepFinished { outcome: Ok(StepResult { tokens, ..StepResult::default() }) }.into()
    };
    // The first step has only the first sequence. The next step has all.
    let plan = plan.and_then(|plan| plans(state.on(0, finished(plan)))).expect("a step with all sequences");
    assert_eq!(plan.chunks.len() as u64, live);
    let began = Instant::now();
    drop(state.on(0, finished(plan)));
    let nanos = began.elapsed().as_nanos() as f64 / live as f64;
    times.0.push(("generator: StepFinished and the next plan, a row".to_owned(), nanos));
    let mut measure = |name, mails: Vec<ToGenerator>| {
        times.measure(&format!("generator: {name}"), mails, |mail| drop(state.on(0, mail)));
    };
    let sequence = |request| SequenceId::Own(RequestId(request));
    measure("StartSequence", fresh(live).map(start).collect());
    let extend = |request| ExtendSequence { sequence: sequence(request), pages: vec![PageId(9)] }.into();
    measure("ExtendSequence", spread(live).map(extend).collect());
    let stop = |request| StopSequence { sequence: sequence(request) }.into();
    measure("StopSequence", spread(live).map(stop).collect());
}
