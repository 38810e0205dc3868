//! The clients: their requests, the tokens that they receive, and the checks of these tokens.

use std::time::Duration;

use actors::effect::{Endpoint, to};
use actors::request::{
    AbortRequest, CacheSalt, FinishReason, Generate, RequestError, RequestId, Route, StreamEvent,
};
use actors::routing::LocalPrefill;
use engine::Logprobs;

use super::grammars::any_grammar;
use super::machine::{next_token, score};
use super::parts::Client;
use super::plan::{PAGE_TOKENS, SECOND, VOCABULARY};
use super::topology::NodePlan;
use super::traces::{are_in_order, trace_of};
use super::world::{Event, World};

/// Salts of requests.
const SALTS: [Option<&str>; 4] = [None, None, Some("a"), Some("b")];

/// How long after its deadline a request may end. Ticks and mailboxes add delays.
const GRACE: u64 = SECOND;

impl World {
    /// A client sends a request to the node `home`. If `stays` is true, the client does not disconnect.
    pub(super) fn ask(&mut self, home: usize, stays: bool) -> RequestId {
        let request = RequestId(self.clients.len() as u64 + 1);
        let most = self.plan.nodes[home].request_pages();
        // A request that stays is short enough for every peer, for the shortest deadline, and for the pages that are not at risk.
        let most = if stays {
            let usable = most.saturating_sub(self.pages_at_risk(home));
            let diallers = self.plan.nodes.iter().filter(|node| node.dials.contains(&home));
            let usable = diallers.map(NodePlan::prompt_pages).fold(usable, u32::min);
            (usable * PAGE_TOKENS).min(30)
        } else {
            most * PAGE_TOKENS
        };
        let all = self.dice.between(2, u64::from(most)) as u32;
        let prompt = self.dice.between(1, u64::from(all) - 1) as u32;
        let mut tokens: Vec<u32> =
            (0..prompt).map(|_| self.dice.between(1, u64::from(VOCABULARY) - 1) as u32).collect();
        if !stays && !self.clients.is_empty() && self.dice.one_in(2) {
            // The prompt starts with a part of an earlier sequence.
            let other = RequestId(self.dice.between(1, self.clients.len() as u64));
            let common = self.dice.between(0, tokens.len() as u64) as usize;
            tokens
                .iter_mut()
                .zip(&self.clients[&other].tokens)
                .take(common)
                .for_each(|(to, from)| *to = *from);
        }
        let deadline = self.now + self.plan.deadline;
        let (max_tokens, ignore_eos) = (all - prompt, self.dice.one_in(2));
        let salt = SALTS[self.dice.between(0, SALTS.len() as u64 - 1) as usize].map(CacheSalt::of);
        // The grammar of a request that must be handed over could be refused.
        let grammar = any_grammar(&mut self.dice).filter(|_| !stays);
        let scores_prompt = self.dice.one_in(6);
        self.clients.insert(
            request,
            Client {
                home,
                tokens: tokens.clone(),
                prompt: tokens.len(),
                max_tokens,
                ignore_eos,
                salt,
                grammar: grammar.clone(),
                scores_prompt,
                scored: false,
                deadline,
                left: false,
                end: None,
                disaggregated: false,
            },
        );
        if !self.nodes[home].alive {
            self.close(request, "refused");
            return request;
        }
        let generate = Generate {
            request,
            prompt: tokens.into(),
            max_tokens,
            sampling: Default::default(),
            grammar,
            salt,
            ignore_eos,
            prompt_logprobs: scores_prompt.then_some(2),
            sent: self.instant(),
            deadline: self.epoch + Duration::from_micros(deadline),
            route: Route::Auto,
            trace: trace_of(request),
        };
        self.perform(home, Endpoint::Frontend, vec![to::proxy(generate)]);
        if !stays && self.dice.one_in(5) {
            let wait = self.dice.between(1, SECOND);
            self.at(wait, None, Event::Leave(request));
        }
        let wait = self.plan.bound.unwrap_or(self.plan.deadline + GRACE);
        self.at(wait, None, Event::MustHaveEnded(request));
        request
    }

    /// The client disconnects.
    pub(super) fn leave(&mut self, request: RequestId) {
        if let Some(client) = self.clients.get_mut(&request).filter(|client| client.end.is_none()) {
            client.left = true;
            let (home, abort) = (client.home, AbortRequest::cancelled(request));
            self.perform(home, Endpoint::Frontend, vec![to::proxy(abort)]);
        }
    }

    /// Delivers a token. Returns false if the client has disconnected.
    pub(super) fn token(&mut self, request: RequestId, token: u32) -> bool {
        let Some(client) = self.clients.get_mut(&request) else { return false };
        let expect = next_token(&client.tokens);
        let place = client.tokens.len() - client.prompt;
        client.tokens.push(token);
        let (ended, left) = (client.end, client.left);
        if client.scores_prompt && !client.scored {
            self.fail(format!("{request} got a token before the log probabilities of its prompt"));
        } else if let Some(end) = ended {
            self.fail(format!("{request} got a token after its end ({end})"));
        } else if token != expect {
            self.fail(format!("{request} got {token} as token {place} instead of {expect}"));
        }
        !left
    }

    /// Delivers the log probabilities of a prompt. They must be those of every token but the first, once and in order.
    pub(super) fn prompt_scored(&mut self, request: RequestId, logprobs: &[Logprobs]) {
        let Some(client) = self.clients.get_mut(&request) else { return };
        let prompt = &client.tokens[..client.prompt];
        let expect: Vec<Logprobs> =
            (1..).zip(&prompt[1..]).map(|(place, token)| score(place, *token)).collect();
        let is_first = client.scores_prompt && !std::mem::replace(&mut client.scored, true);
        if !is_first || client.tokens.len() > client.prompt || expect != logprobs {
            self.fail(format!("{request} got wrong log probabilities of its prompt: {logprobs:?}"));
        }
    }

    /// Delivers the end of a request.
    pub(super) fn end(&mut self, request: RequestId, event: &StreamEvent) {
        let Some(client) = self.clients.get_mut(&request) else {
            return self.fail(format!("{request} ended without having started"));
        };
        let got = client.tokens.len() - client.prompt;
        let wrong = match event {
            StreamEvent::Token(_) | StreamEvent::Prompt(_) => Some("a token event"),
            StreamEvent::Finished { timings, .. } if !are_in_order(timings) => Some("times out of order"),
            StreamEvent::Finished { reason: FinishReason::Length, .. } => {
                (got != client.max_tokens as usize).then_some("length before all tokens")
            }
            StreamEvent::Finished { reason: FinishReason::Stop, .. } => {
                (client.ignore_eos || client.tokens.last() != Some(&0)).then_some("stop without reason")
            }
            StreamEvent::Failed(RequestError::Deadline { .. }) => {
                (self.now < client.deadline).then_some("a deadline that has not passed")
            }
            StreamEvent::Failed(RequestError::Aborted) => {
                (!client.left).then_some("an abort although its client is connected")
            }
            StreamEvent::Failed(_) => None,
        };
        if let Some(wrong) = wrong {
            return self.fail(format!("{request} ended with {wrong} after {got} tokens"));
        }
        let name = match event {
            StreamEvent::Finished { timings, .. } => {
                client.disaggregated = timings.disaggregated;
                "finished"
            }
            StreamEvent::Failed(error) => error.kind(),
            StreamEvent::Token(_) | StreamEvent::Prompt(_) => "token",
        };
        self.close(request, name);
    }

    /// The request has ended for the client.
    pub(super) fn close(&mut self, request: RequestId, name: &'static str) {
        let Some(client) = self.clients.get_mut(&request) else { return };
        if let Some(end) = client.end.replace(name) {
            return self.fail(format!("{request} ended twice: {end}, then {name}"));
        }
        let may_refuse = self.plan.local == LocalPrefill::Never && name == "no_prefiller";
        if self.plan.bound.is_some() && name != "finished" && !may_refuse && !client.left {
            return self.fail(format!("{request} ended with {name} although there are no faults"));
        }
        match name {
            "finished" => {
                self.report.finished += 1;
                self.report.disaggregated += u64::from(client.disaggregated);
            }
            name => *self.report.failed.entry(name).or_default() += 1,
        }
        self.trace_event(|| format!("{request}: {name}"));
    }

    /// The live requests of a node.
    fn live_at(&self, home: usize) -> Vec<RequestId> {
        let live = self.clients.iter().filter(|(_, client)| client.home == home && client.end.is_none());
        live.map(|(request, _)| *request).collect()
    }

    /// A node has died: the connections of its clients close.
    pub(super) fn clients_are_cut(&mut self, home: usize) {
        self.live_at(home).into_iter().for_each(|request| self.close(request, "node died"));
    }

    /// A node was stopped. It cannot keep deadlines during the pause.
    pub(super) fn clients_wait(&mut self, home: usize, pause: u64) {
        for request in self.live_at(home) {
            self.at(self.plan.deadline + pause + GRACE, None, Event::MustHaveEnded(request));
        }
    }

    pub(super) fn must_have_ended(&mut self, request: RequestId) {
        let Some(client) = self.clients.get(&request) else { return };
        let stopped = self.nodes[client.home].stopped_until + GRACE;
        if client.end.is_none() && self.plan.bound.is_some() {
            self.fail(format!("{request} has not ended in the time that is enough without faults"));
        } else if client.end.is_none() && self.now >= stopped.max(client.deadline + GRACE) {
            self.fail(format!("{request} has not ended by its deadline"));
        }
    }

    /// How a request ended, and whether a peer prefilled it.
    pub(super) fn outcome(&self, request: RequestId) -> (Option<&'static str>, bool) {
        self.clients.get(&request).map_or((None, false), |client| (client.end, client.disaggregated))
    }
}
