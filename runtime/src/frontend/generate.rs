//! A request for completions: reads it, compiles its grammar, admits it, sends it to the proxy, and responds with whole answers or a stream.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::dev::SendError;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use actors::finish::FinishRule;
use actors::grammar::CompiledGrammar;
use actors::request::{Generate, Refused, RequestError, Route};
use actors::streams::StreamReader;
use engine::{Logprobs, Token};
use futures_util::TryFutureExt as _;
use tokio::time::timeout_at;

use super::Frontend;
use super::admission::{Permit, Place};
use super::api_error::ApiError;
use super::begin::Begin;
use super::body;
use super::choices::{Choices, Failure};
use super::connection::Connection;
use super::deadline_header;
use super::logprobs::report;
use super::names::{next_request, public_id};
use super::openai::{ApiKind, Ask};
use super::prefiller_header;
use super::prompt_logprobs::ScoredPrompt;
use super::reply::{EndRule, Finish, LiveRequest, Reply};
use super::response::{Choice, DividedAnswer, Head, Said, TimingsReport, Usage, WholeAnswer, finish_word};
use super::responses_api::Output;
use super::server_timing::{self, SERVER_TIMING};
use super::stream::{Answers, EventShape, events, response_writer};
use super::tokenizer::{Detokenizer, Tokenizer};
use crate::traces::{RequestTrace, TRACEPARENT};

/// The time that a request may take.
#[derive(Clone, Copy)]
struct Period {
    /// The arrival of its head.
    arrived: Instant,
    /// The duration from then on.
    allowed: Duration,
}

impl Period {
    /// The period of a request whose head has just arrived. A router may shorten it.
    fn of(frontend: &Frontend, http: &HttpRequest, arrived: Instant) -> Self {
        let router = frontend.trusts_header.then(|| deadline_header::read(http.headers())).flatten();
        let allowed = router.map_or(frontend.deadline, |router| router.min(frontend.deadline));
        Self { arrived, allowed }
    }

    fn end(self) -> Instant {
        self.arrived + self.allowed
    }
}

/// Answers a request whose head has just arrived.
pub(super) async fn generate(
    kind: ApiKind,
    frontend: Arc<Frontend>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let arrived = Instant::now();
    let trace = frontend.traces.begin(kind.path(), arrived, || traceparent(&http));
    let result = answer(kind, frontend, http, payload, (arrived, trace.clone())).await;
    if let Some(trace) = trace {
        match &result {
            Ok(response) => trace.responded(response.status().as_u16()),
            Err(error) => trace.responded(error.status.as_u16()),
        }
    }
    result
}

/// The header that says which trace a request belongs to.
pub(super) fn traceparent(http: &HttpRequest) -> Option<&str> {
    http.headers().get(TRACEPARENT)?.to_str().ok()
}

async fn answer(
    kind: ApiKind,
    frontend: Arc<Frontend>,
    http: HttpRequest,
    payload: web::Payload,
    (arrived, trace): (Instant, Option<Arc<RequestTrace>>),
) -> Result<HttpResponse, ApiError> {
    let period = Period::of(&frontend, &http, arrived);
    let deadline = period.end();
    let turned_away = |error: ApiError| frontend.observed.turned_away(error);
    let body =
        body::read(&http, payload, &frontend.memory, frontend.limits.body).await.map_err(turned_away)?;
    Connection::of(&http).answers_until(deadline);
    let most = frontend.admission.most();
    let read = body.parse(&frontend, move |fields, reader| Ask::read(kind, fields, reader, most));
    let Ok(ask) = timeout_at(deadline.into(), read).await else {
        return Err(late(&frontend, period));
    };
    let ask = Arc::new(ask.map_err(turned_away)?);
    let grammar = match &ask.grammar {
        Some(asked) => match timeout_at(deadline.into(), frontend.grammars.compile(asked)).await {
            Ok(compiled) => Some(compiled.map_err(turned_away)?),
            Err(_) => return Err(late(&frontend, period)),
        },
        None => None,
    };
    let place = frontend.admission.enter(ask.choices(), ask.bytes(), deadline).map_err(turned_away)?;
    let wanted = http.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let head = Head {
        kind,
        id: public_id(kind, wanted.or(ask.request_id.as_deref())),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        model: frontend.model.name.clone(),
    };
    let read = Instant::now();
    if let Some(trace) = &trace {
        trace.queued(&head.id, &head.model);
    }
    let reader = http.app_data::<StreamReader>().expect("each HTTP worker has a reader").clone();
    let named = frontend.trusts_header.then(|| prefiller_header::route(http.headers())).flatten();
    let route = named.unwrap_or_else(|| frontend.route.clone());
    let waiting = Waiting { reader, grammar, place, period, route, read, trace: trace.clone() };
    let started = start(Arc::clone(&frontend), Arc::clone(&ask), waiting);
    // The stream may have begun already, with status 200 and a blank line.
    let started = started.inspect_err(move |error| {
        if let Some(trace) = trace {
            trace.refused(error.status.as_u16());
        }
    });
    let Some(options) = ask.stream else {
        return match kind {
            ApiKind::Response => whole_response(&frontend, &head, &ask, started.await?).await,
            _ => whole(&frontend, head, ask, started.await?).await,
        };
    };
    // A failure within the first `keep_alive` gets an HTTP status. After that, the response begins without a token.
    let keep_alive = frontend.limits.keep_alive;
    let until = (Instant::now() + keep_alive).into();
    let mut started = Box::pin(started);
    let mut timing = None;
    let answers = match timeout_at(until, &mut started).await {
        Ok(choices) => {
            let mut choices = choices?;
            if let Ok(first) = timeout_at(until, choices.next()).await {
                let first = first.map_err(|failure| failed(&frontend, &head, &failure))?;
                choices.unread(first);
                timing = Some(server_timing::of_stream(choices.begin()));
            }
            Answers::Running(choices)
        }
        Err(_) => Answers::Waiting(started),
    };
    let (tokenizer, observed) = (frontend.model.tokenizer.clone(), frontend.observed.clone());
    let memory = frontend.memory.clone();
    let shape = EventShape { head, ask, options, tokenizer, observed, memory };
    Ok(streamed_head(timing).streaming(events(shape, answers, keep_alive)))
}

/// The head of a streamed answer with these timings.
fn streamed_head(timing: Option<String>) -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.content_type("text/event-stream; charset=utf-8").insert_header((CACHE_CONTROL, "no-cache"));
    if let Some(timing) = timing {
        response.insert_header((SERVER_TIMING, timing));
    }
    response
}

/// A request that waits in the queue.
struct Waiting {
    reader: StreamReader,
    grammar: Option<CompiledGrammar>,
    place: Place,
    period: Period,
    route: Route,
    /// When it was read.
    read: Instant,
    trace: Option<Arc<RequestTrace>>,
}

/// Waits for the permits of the request and sends each of its choices to the proxy. Dropping the future frees its place in the queue.
async fn start(frontend: Arc<Frontend>, ask: Arc<Ask>, waiting: Waiting) -> Result<Choices, ApiError> {
    let Waiting { reader, grammar, place, period, route, read, trace } = waiting;
    let Ok(permits) = timeout_at(period.end().into(), place.permits()).await else {
        return Err(late(&frontend, period));
    };
    let began = Instant::now();
    if began >= period.end() {
        // The permits came at once, but the body arrived late.
        return Err(late(&frontend, period));
    }
    let begin = Begin { arrived: period.arrived, read, began, trace };
    let submit = |(choice, permit)| {
        submit((&frontend, &reader), &ask, (choice, permit), grammar.clone(), period, route.clone(), &begin)
    };
    let turned_away = |error: ApiError| frontend.observed.turned_away(error);
    let permits = permits.map_err(turned_away)?;
    if let Some(trace) = &begin.trace {
        trace.began(began, ask.choices());
    }
    let replies: Result<_, ApiError> = permits.into_iter().enumerate().map(submit).collect();
    let replies = replies.map_err(turned_away)?;
    Ok(Choices::new(replies, begin))
}

/// Status 504: the deadline passed before the request ran.
fn late(frontend: &Frontend, period: Period) -> ApiError {
    let error = RequestError::Deadline { deadline_ms: period.allowed.as_millis() as u64 };
    frontend.observed.turned_away(error.into())
}

/// Sends one choice of the request to the proxy. If the proxy refuses it, the refusal is the end of the reply.
fn submit(
    (frontend, reader): (&Frontend, &StreamReader),
    ask: &Ask,
    (choice, permit): (usize, Permit),
    grammar: Option<CompiledGrammar>,
    period: Period,
    route: Route,
    begin: &Begin,
) -> Result<Reply, ApiError> {
    let (model, prompt) = (&frontend.model, ask.prompt_of(choice));
    // The decoder samples a token even if the request asks for none.
    let max_tokens = prompt.max_tokens.max(1);
    let live = LiveRequest::open(next_request(), max_tokens, reader, &frontend.abort, permit.begin());
    let finish = FinishRule::new(model.eos.clone());
    let rule = EndRule { max_tokens: prompt.max_tokens, ignore_eos: ask.ignore_eos, finish };
    let detokenizer = Detokenizer::new(Arc::clone(&model.tokenizer), ask.special_tokens);
    let detokenizer = detokenizer.showing(Arc::clone(&ask.marks));
    let give_up = period.end() + frontend.limits.grace;
    let reply = Reply::new(live, rule, detokenizer, ask.stop.clone(), period.allowed, give_up);
    let generate = Generate {
        request: reply.request(),
        prompt: Arc::clone(&prompt.tokens),
        max_tokens,
        sampling: ask.sampling_of(choice).into(),
        grammar,
        salt: ask.salt,
        ignore_eos: ask.ignore_eos,
        prompt_logprobs: ask.scores.top(),
        sent: begin.began,
        deadline: period.end(),
        route,
        trace: begin.trace.as_ref().map(|trace| trace.prefill_of(choice)),
    };
    match frontend.generate.try_send(generate) {
        Ok(()) => Ok(reply),
        Err(error) => {
            let refused = match error {
                SendError::Full(_) => Refused::Busy,
                SendError::Closed(_) => Refused::ShuttingDown,
            };
            reply.refused(&frontend.streams);
            Err(refused.into())
        }
    }
}

/// The collected pieces of one choice.
struct Collected {
    text: String,
    /// The log probabilities of the prompt, if it is scored.
    scores: Vec<Logprobs>,
    tokens: Vec<Token>,
    finish: Option<Finish>,
}

/// Waits for all answers and sends them in one response. If prompts are scored, the body is written on a thread pool: its 262,144 numbers
/// may take 80 ms.
async fn whole(
    frontend: &Frontend,
    head: Head,
    ask: Arc<Ask>,
    mut choices: Choices,
) -> Result<HttpResponse, ApiError> {
    let begun = |choice| Collected {
        text: ask.prompt_of(choice).echo.clone(),
        scores: Vec::new(),
        tokens: Vec::new(),
        finish: None,
    };
    let mut all: Vec<Collected> = (0..ask.choices()).map(begun).collect();
    while !choices.is_over() {
        let (choice, piece) = choices.next().await.map_err(|failure| failed(frontend, &head, &failure))?;
        let collected = &mut all[choice];
        choices.note_end(choice, &piece, &head, &frontend.observed);
        collected.text += &piece.text;
        if let Some(scores) = piece.prompt {
            collected.scores = scores;
        }
        collected.tokens.extend(piece.token);
        collected.finish = piece.finish.or(collected.finish.take());
    }
    let timing = all.first().and_then(|choice| choice.finish.as_ref());
    let timing = timing.map(|finish| server_timing::of_answer(choices.begin(), &finish.timings));
    let waited = choices.waited();
    let tokenizer = Arc::clone(&frontend.model.tokenizer);
    let is_scored = ask.scores.top().is_some();
    let write = move || whole_body(&tokenizer, &head, &ask, all, waited);
    let body = if is_scored { frontend.memory.run_long(write).await? } else { write() };
    Ok(whole_answer(timing, body))
}

/// The response with this body and these timings.
fn whole_answer(timing: Option<String>, body: String) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    if let Some(timing) = timing {
        response.insert_header((SERVER_TIMING, timing));
    }
    response.content_type("application/json").body(body)
}

/// The body of the response with all answers.
fn whole_body(
    tokenizer: &Tokenizer,
    head: &Head,
    ask: &Ask,
    mut all: Vec<Collected>,
    waited: Duration,
) -> String {
    let sampled = all.iter().map(|choice| choice.tokens.len() as u32).sum();
    let scored = |(choice, collected): (usize, &mut Collected)| match ask.scores.top() {
        Some(_) => ask.prompt_of(choice).scored(std::mem::take(&mut collected.scores)),
        None => Vec::new(),
    };
    let prompts: Vec<Vec<Token>> = all.iter_mut().enumerate().map(scored).collect();
    let ids: Vec<Vec<u32>> =
        all.iter().map(|choice| choice.tokens.iter().map(|token| token.id).collect()).collect();
    let divided: Vec<Option<(DividedAnswer, bool)>> = all.iter().map(|choice| divided(ask, choice)).collect();
    let mut timings = None;
    let mut answers = Vec::with_capacity(all.len());
    for (index, ((choice, ids), divided)) in all.iter().zip(&ids).zip(&divided).enumerate() {
        let Some(finish) = &choice.finish else { continue };
        let plain = Said { text: Some(&choice.text), ..Said::default() };
        let (said, calls) = divided.as_ref().map_or((plain, false), |(parts, calls)| (parts.said(), *calls));
        timings = ask.return_timings.then(|| TimingsReport::new(finish.timings.clone(), waited));
        let prompt = &prompts[index];
        let echoed = ask.scores.echoed.map_or(&[][..], |_| prompt);
        answers.push(Choice {
            said,
            finish: finish_word(finish.reason, calls),
            stop: finish.stop.as_ref(),
            logprobs: report(
                head.kind,
                tokenizer,
                ask.sampling.logprobs,
                echoed.iter().chain(&choice.tokens),
                0,
            ),
            prompt_logprobs: ask.scores.listed.map(|top| ScoredPrompt { tokenizer, tokens: prompt, top }),
            token_ids: ask.return_token_ids.then_some((&*ask.prompt_of(index).tokens, &**ids)),
        });
    }
    let cached =
        all.iter().map(|choice| choice.finish.as_ref().map_or(0, |finish| finish.timings.cached_tokens));
    let usage = Usage::new(ask.prompt_tokens(), sampled).with_cached(cached, ask.n);
    head.response(WholeAnswer { choices: answers, usage, timings })
}

/// Waits for the answer and sends it as a response.
async fn whole_response(
    frontend: &Frontend,
    head: &Head,
    ask: &Ask,
    mut choices: Choices,
) -> Result<HttpResponse, ApiError> {
    let mut writer = response_writer(head, ask);
    let mut timing = None;
    while !choices.is_over() {
        let (choice, piece) = choices.next().await.map_err(|failure| failed(frontend, head, &failure))?;
        choices.note_end(choice, &piece, head, &frontend.observed);
        let finish = piece.finish.as_ref();
        timing = finish.map(|finish| server_timing::of_answer(choices.begin(), &finish.timings)).or(timing);
        writer.push(&piece, &mut Output::None);
    }
    Ok(whole_answer(timing, writer.body()))
}

/// The parts of a whole answer, and whether the client is to run its tool calls. `None` if all its text is content.
fn divided(ask: &Ask, choice: &Collected) -> Option<(DividedAnswer, bool)> {
    if ask.format.is_plain() {
        return None;
    }
    let mut parser = ask.format.parser();
    let mut answer = DividedAnswer::default();
    parser.push(&choice.text, true).into_iter().for_each(|part| answer.push(part));
    Some((answer, parser.finishes_with_calls()))
}

fn failed(frontend: &Frontend, head: &Head, failure: &Failure) -> ApiError {
    frontend.observed.end(&failure.of(head), Err(&failure.error));
    failure.error.clone().into()
}
