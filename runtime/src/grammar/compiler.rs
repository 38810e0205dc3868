//! Compiles grammars on threads of its own, within a deadline, and caches the outcomes. See [`crate::grammar`] for the bounds.

pub(super) mod state;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use actors::grammar::{
    CompiledGrammar, Grammar, GrammarCompiler, GrammarError, GrammarHash, GrammarSource, guarded,
};

use state::{DEADLINE, Next, State, THREADS};

/// Stack of a thread that compiles. The library recurses along references, and `limits` bounds the depth. The system provides the pages of
/// a stack when they are used.
pub const STACK_BYTES: usize = 128 << 20;

/// Compiles one source. May block for any time, and may panic.
type Build = dyn Fn(&GrammarSource) -> Result<Arc<dyn Grammar>, GrammarError> + Send + Sync;

/// A compiler with bounds. Cheap to clone; clones share the cache and the threads.
#[derive(Clone)]
pub struct Compiler(Arc<Shared>);

struct Shared {
    build: Box<Build>,
    state: Mutex<State>,
    /// An outcome was cached, and a thread is free.
    changed: Condvar,
}

impl Compiler {
    /// A compiler whose threads call `build`.
    pub fn new(
        build: impl Fn(&GrammarSource) -> Result<Arc<dyn Grammar>, GrammarError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared { build: Box::new(build), state: Mutex::default(), changed: Condvar::new() }))
    }

    /// The number of running compilations.
    pub fn running(&self) -> usize {
        self.0.lock().running()
    }

    /// Compiles a source on a new thread.
    ///
    /// # Errors
    /// The system has no thread.
    fn start(&self, source: &GrammarSource, hash: GrammarHash) -> Result<(), GrammarError> {
        let (shared, owned) = (Arc::clone(&self.0), source.clone());
        let work = move || {
            let began = Instant::now();
            let outcome = guarded(|| (shared.build)(&owned));
            let took = began.elapsed();
            if took > DEADLINE {
                tracing::warn!(
                    bytes = owned.text().len(),
                    seconds = took.as_secs_f64(),
                    "a grammar compiled too slowly"
                );
            }
            let bytes = owned.text().len();
            shared.finish(hash, outcome.map(|grammar| CompiledGrammar::new(owned, grammar)), bytes);
        };
        let thread = std::thread::Builder::new().name("baton-grammar".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map(drop).map_err(|error| {
            GrammarError::Busy(format!("the system has no thread to compile a grammar: {error}; retry later"))
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic interrupts a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, hash: GrammarHash, outcome: Result<CompiledGrammar, GrammarError>, source_bytes: usize) {
        self.lock().finish(hash, outcome, source_bytes, Instant::now());
        self.changed.notify_all();
    }
}

impl GrammarCompiler for Compiler {
    fn compile(&self, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError> {
        let bytes = source.text().len();
        if bytes > GrammarSource::BYTES_MAX {
            let message = format!("the grammar has {bytes} bytes; it may have {}", GrammarSource::BYTES_MAX);
            return Err(GrammarError::TooLarge(message));
        }
        let (hash, patience) = (source.hash(), Instant::now() + DEADLINE);
        let mut state = self.0.lock();
        loop {
            let now = Instant::now();
            let until = match state.next(hash, now) {
                Next::Done(outcome) => return outcome,
                Next::Wait(until) => until,
                Next::Start => {
                    if let Err(error) = self.start(source, hash) {
                        state.finish(hash, Err(error.clone()), bytes, now);
                        return Err(error);
                    }
                    now + DEADLINE
                }
                Next::Full if now >= patience => {
                    tracing::warn!(
                        threads = THREADS,
                        "a grammar was refused because all threads compile others"
                    );
                    let message = format!("the server compiles {THREADS} other grammars; retry later");
                    return Err(GrammarError::Busy(message));
                }
                Next::Full => patience,
            };
            let wait = self.0.changed.wait_timeout(state, until.saturating_duration_since(now));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn cached(&self, source: &GrammarSource) -> Option<Result<CompiledGrammar, GrammarError>> {
        self.0.lock().cached(source.hash(), Instant::now())
    }
}

#[cfg(test)]
mod tests;
