//! The engine of a process. Steps take a random time and may fail. They may access only pages that a sequence holds.

use std::collections::BTreeSet;

use actors::buffer_manager::state::PageUse;
use actors::effect::{Endpoint, to};
use actors::messages::{PlannedChunk, RunStep, StepFinished, StepResult};

use super::machine::{Step, follow};
use super::plan::MS;
use super::world::{Event, World};

impl World {
    /// The engine gets a step, which starts at once or waits for the running step.
    pub(super) fn give_step(&mut self, node: usize, plan: RunStep) {
        if self.nodes[node].step.is_none() {
            self.begin_step(node, plan);
        } else if self.nodes[node].step_ahead.replace(plan).is_some() {
            self.fail(format!("the engine of {node} was given a third step"));
        }
    }

    fn begin_step(&mut self, node: usize, mut plan: RunStep) {
        let scored = |chunk: &PlannedChunk| chunk.score.as_ref().map_or(0, |score| score.targets.len());
        let rows: usize =
            plan.chunks.iter().map(|chunk| usize::from(chunk.sample.is_some()) + scored(chunk)).sum();
        let most = self.plan.step_rows as usize;
        if rows > most {
            self.fail(format!("a step of {node} has {rows} rows, but its engine takes at most {most}"));
        }
        let mut keys = BTreeSet::new();
        if let Some(chunk) = plan.chunks.iter().find(|chunk| !keys.insert(chunk.key)) {
            self.fail(format!("a step of {node} has two chunks of the sequence with key {}", chunk.key));
        }
        let process = &mut self.nodes[node];
        follow(&mut plan, &process.sampled);
        let step = Step::begin(plan, &process.memory, &process.late);
        self.pages_are_held(node, &step);
        self.nodes[node].step = Some(step);
        let wait = self.dice.wait(5 * MS, 200 * MS);
        self.at_node(node, wait, Event::StepDone);
    }

    fn pages_are_held(&mut self, node: usize, step: &Step) {
        let pool = &self.nodes[node].pool;
        let free = step.pages().find(|page| !matches!(pool.page_use(*page), PageUse::Held(_)));
        if let Some(page) = free {
            let used = pool.page_use(page);
            self.fail(format!("the engine of {node} accesses page {}, which is {used:?}", page.0));
        } else if let Some(page) = step.written().find(|page| pool.is_known(*page)) {
            self.fail(format!(
                "the engine of {node} writes page {}, which other sequences may share",
                page.0
            ));
        }
    }

    /// True if the step that ends now fails. In an engine that runs ahead, most failures wait until it has the next step too, whose result
    /// must then be ignored.
    fn step_fails(&mut self, node: usize) -> bool {
        let process = &mut self.nodes[node];
        let is_due = !self.plan.runs_ahead || process.step_ahead.is_some();
        let fails = process.step_fails && (is_due || self.dice.one_in(4));
        process.step_fails &= !fails;
        fails
    }

    pub(super) fn step_done(&mut self, node: usize) {
        let now = self.now;
        let Some(step) = self.nodes[node].step.take() else { return };
        self.pages_are_held(node, &step);
        let fails = self.step_fails(node);
        let process = &mut self.nodes[node];
        let outcome = if fails {
            Err(step.error(now))
        } else {
            Ok(step.end(&mut process.memory, || self.dice.one_in(6)))
        };
        let StepResult { tokens, late, .. } = outcome.clone().unwrap_or_default();
        (process.sampled, process.late) = (tokens, late);
        if let Some(plan) = process.step_ahead.take() {
            self.begin_step(node, plan);
        }
        self.perform(node, Endpoint::Engine, vec![to::generator(StepFinished { outcome })]);
    }
}
