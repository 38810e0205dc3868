//! Which grammars are compiled, which are being compiled, and which are refused.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use actors::grammar::{CompiledGrammar, GrammarError, GrammarHash};

/// Maximum number of compilations at the same time. A compilation that does not return occupies one core.
pub const THREADS: usize = 4;

/// How much CPU time a compilation may take. Useful grammars compile in a few milliseconds. Time in which other threads run does not count, so
/// a busy machine refuses no grammar.
pub const CPU_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a request waits for a thread and for its compilation.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Maximum number of cached outcomes.
pub const ENTRIES_MAX: usize = 128;

/// Maximum memory of the cached grammars, as estimated from the sizes of their sources.
pub const BYTES_MAX: usize = 64 << 20;

/// How long a failure is cached. A client that repeats a bad request does not cause a compilation each time.
const FAILURE_KEPT: Duration = Duration::from_secs(10);

type Outcome = Result<CompiledGrammar, GrammarError>;

/// Approximate memory of the grammar compiled from a source of this many bytes, as measured: a large list of words takes about 64 bytes
/// for each byte of the source.
pub(super) fn cost(source_bytes: usize) -> usize {
    (64 << 10) + 64 * source_bytes
}

/// What a request for a grammar does next.
pub(super) enum Next {
    /// It has its outcome.
    Done(Outcome),
    /// It waits for the outcome of a running compilation.
    Wait,
    /// It starts a compilation, which is counted from now on.
    Start,
    /// It waits until a thread is free.
    Full,
}

enum Entry {
    Compiling {
        /// It has used [`CPU_TIME_MAX`].
        is_slow: bool,
    },
    Done(Cached),
}

struct Cached {
    outcome: Outcome,
    at: Instant,
    bytes: usize,
    /// Number of the last use.
    used: u64,
}

/// The outcomes of recent compilations, and the running ones.
#[derive(Default)]
pub(super) struct State {
    entries: HashMap<GrammarHash, Entry>,
    running: usize,
    bytes: usize,
    uses: u64,
}

impl State {
    /// The cached outcome, if there is one.
    pub(super) fn cached(&mut self, hash: GrammarHash, now: Instant) -> Option<Outcome> {
        self.uses += 1;
        match self.entries.get_mut(&hash)? {
            Entry::Done(cached) if cached.outcome.is_ok() || now < cached.at + FAILURE_KEPT => {
                cached.used = self.uses;
                Some(cached.outcome.clone())
            }
            Entry::Compiling { is_slow: true } => Some(Err(too_slow())),
            Entry::Done(_) | Entry::Compiling { .. } => None,
        }
    }

    /// What the request for a grammar does next.
    pub(super) fn next(&mut self, hash: GrammarHash, now: Instant) -> Next {
        if let Some(outcome) = self.cached(hash, now) {
            return Next::Done(outcome);
        }
        if let Some(Entry::Compiling { .. }) = self.entries.get(&hash) {
            return Next::Wait;
        }
        if self.running == THREADS {
            return Next::Full;
        }
        self.running += 1;
        self.remove(hash);
        self.entries.insert(hash, Entry::Compiling { is_slow: false });
        Next::Start
    }

    /// Notes that a running compilation has used [`CPU_TIME_MAX`]. Requests for it are refused until it ends.
    pub(super) fn note_slow(&mut self, hash: GrammarHash) {
        if let Some(Entry::Compiling { is_slow }) = self.entries.get_mut(&hash) {
            *is_slow = true;
        }
    }

    /// Notes the outcome of a compilation, and caches it unless the compiler was busy. Removes the least recently used outcomes if there
    /// are too many.
    pub(super) fn finish(&mut self, hash: GrammarHash, outcome: Outcome, source_bytes: usize, now: Instant) {
        self.running -= 1;
        if let Err(GrammarError::Busy(_)) = outcome {
            self.remove(hash);
            return;
        }
        self.uses += 1;
        let bytes = if outcome.is_ok() { cost(source_bytes) } else { 0 };
        self.bytes += bytes;
        self.entries.insert(hash, Entry::Done(Cached { outcome, at: now, bytes, used: self.uses }));
        while self.bytes > BYTES_MAX || self.entries.len() - self.running > ENTRIES_MAX {
            let done = self.entries.iter().filter_map(|(hash, entry)| match entry {
                Entry::Done(cached) => Some((cached.used, *hash)),
                Entry::Compiling { .. } => None,
            });
            let Some((_, oldest)) = done.min() else { break };
            self.remove(oldest);
        }
    }

    /// The number of running compilations.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    fn remove(&mut self, hash: GrammarHash) {
        if let Some(Entry::Done(cached)) = self.entries.remove(&hash) {
            self.bytes -= cached.bytes;
        }
    }
}

/// The refusal of a grammar whose compilation takes more than [`CPU_TIME_MAX`].
fn too_slow() -> GrammarError {
    let message = format!("compiling the grammar takes more than {CPU_TIME_MAX:?} of CPU time; simplify it");
    GrammarError::TooLarge(message)
}

#[cfg(test)]
mod tests;
