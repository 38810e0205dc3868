//! The checks that requests of different tenants stay apart: a sequence reads only pages that requests of its own salt computed.

use actors::effect::ToGenerator;
use actors::messages::{SequenceId, StartSequence};
use actors::request::RequestId;
use actors::routing::LocalPrefill;

use super::plan::PAGE_TOKENS;
use super::world::World;

impl World {
    /// The client's request that a sequence of this process computes.
    pub(super) fn request_of(&self, node: usize, sequence: SequenceId) -> Option<RequestId> {
        match sequence {
            SequenceId::Own(request) => Some(request),
            SequenceId::Peer(_) => self.nodes[node].prefilling.as_ref()?.prefiller.request_of(sequence),
        }
    }

    /// A sequence starts. If the node may not prefill its own prompts, it computes one only to continue after its first token.
    fn may_prefill(&mut self, node: usize, start: &StartSequence) {
        let StartSequence { sequence, resident, prompt, tokens, .. } = start;
        let is_own = matches!(sequence, SequenceId::Own(_));
        let is_new = tokens.len() as u32 == *prompt && resident < prompt;
        if self.plan.local == LocalPrefill::Never && is_own && is_new {
            self.fail(format!("node {node} prefills {sequence}, although its peers are to prefill"));
        }
    }

    /// A generator gets a message. The sequence reads its resident pages and will write its other pages.
    pub(super) fn sequence_runs(&mut self, node: usize, mail: &ToGenerator) {
        let (sequence, resident, pages) = match mail {
            ToGenerator::StartSequence(start) => {
                self.grammar_is_right(node, start);
                self.may_prefill(node, start);
                let StartSequence { sequence, resident, pages, .. } = &**start;
                (*sequence, *resident, pages)
            }
            // The pages of an ended sequence may already be another's, and the generator ignores the message.
            ToGenerator::ExtendSequence(extend) if self.nodes[node].generator.contains(extend.sequence) => {
                (extend.sequence, 0, &extend.pages)
            }
            _ => return,
        };
        let client = self.request_of(node, sequence).and_then(|request| self.clients.get(&request));
        let Some(salt) = client.map(|client| client.salt) else {
            return self.fail(format!("process {node} runs {sequence}, which is no client's request"));
        };
        let (read, written) = pages.split_at(resident.div_ceil(PAGE_TOKENS) as usize);
        let memory = &mut self.nodes[node].memory;
        let strange = read.iter().find(|page| !memory.has_salt(page.0, salt));
        memory.claim(written, salt);
        if let Some(page) = strange {
            self.fail(format!("{sequence} of process {node} reads page {} of another salt", page.0));
        }
    }
}
