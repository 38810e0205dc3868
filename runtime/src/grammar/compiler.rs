//! Compiles grammars on threads of its own, within a deadline, and caches the outcomes. See [`crate::grammar`] for the bounds.

mod cpu_clock;
pub(super) mod state;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actors::grammar::{
    CompiledGrammar, Grammar, GrammarCompiler, GrammarError, GrammarHash, GrammarSource, guarded,
};

use cpu_clock::CpuClock;
use state::{CPU_TIME_MAX, Next, PATIENCE, State, THREADS};

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
    bounds: Bounds,
    progress: Mutex<Progress>,
    /// An outcome was cached, and a thread is free.
    changed: Condvar,
}

/// How long a compilation and its request may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    cpu_time: Duration,
    patience: Duration,
}

#[derive(Default)]
struct Progress {
    state: State,
    /// The clocks of the threads that compile.
    clocks: HashMap<GrammarHash, CpuClock>,
}

impl Compiler {
    /// A compiler whose threads call `build`.
    pub fn new(
        build: impl Fn(&GrammarSource) -> Result<Arc<dyn Grammar>, GrammarError> + Send + Sync + 'static,
    ) -> Self {
        Self::bounded(Bounds { cpu_time: CPU_TIME_MAX, patience: PATIENCE }, build)
    }

    fn bounded(
        bounds: Bounds,
        build: impl Fn(&GrammarSource) -> Result<Arc<dyn Grammar>, GrammarError> + Send + Sync + 'static,
    ) -> Self {
        let (progress, changed) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { build: Box::new(build), bounds, progress, changed }))
    }

    /// The number of running compilations.
    pub fn running(&self) -> usize {
        self.0.lock().state.running()
    }

    /// Compiles a source on a new thread.
    ///
    /// # Errors
    /// The system has no thread.
    fn start(&self, source: &GrammarSource, hash: GrammarHash) -> Result<(), GrammarError> {
        let (shared, owned) = (Arc::clone(&self.0), source.clone());
        let work = move || {
            let clock = CpuClock::of_this_thread();
            shared.lock().clocks.insert(hash, CpuClock::of_this_thread());
            let outcome = guarded(|| (shared.build)(&owned));
            let (bytes, used) = (owned.text().len(), clock.used());
            if used > shared.bounds.cpu_time {
                tracing::warn!(bytes, seconds = used.as_secs_f64(), "a grammar compiled too slowly");
            }
            shared.finish(hash, outcome.map(|grammar| CompiledGrammar::new(owned, grammar)), bytes);
        };
        let thread = std::thread::Builder::new().name("baton-grammar".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map(drop).map_err(|error| {
            GrammarError::Busy(format!("the system has no thread to compile a grammar: {error}; retry later"))
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        // No panic interrupts a change of the state.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, hash: GrammarHash, outcome: Result<CompiledGrammar, GrammarError>, source_bytes: usize) {
        let mut progress = self.lock();
        progress.clocks.remove(&hash);
        progress.state.finish(hash, outcome, source_bytes, Instant::now());
        drop(progress);
        self.changed.notify_all();
    }
}

/// The shortest time between two looks at the clock of a thread.
const LOOK: Duration = Duration::from_millis(10);

impl GrammarCompiler for Compiler {
    fn compile(&self, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError> {
        let bytes = source.text().len();
        if bytes > GrammarSource::BYTES_MAX {
            let message = format!("the grammar has {bytes} bytes; it may have {}", GrammarSource::BYTES_MAX);
            return Err(GrammarError::TooLarge(message));
        }
        let Bounds { cpu_time, patience } = self.0.bounds;
        let (hash, end) = (source.hash(), Instant::now() + patience);
        let mut progress = self.0.lock();
        loop {
            let now = Instant::now();
            let wait = match progress.state.next(hash, now) {
                Next::Done(outcome) => return outcome,
                next @ (Next::Wait | Next::Full) if now >= end => return Err(busy(&next)),
                Next::Start => {
                    if let Err(error) = self.start(source, hash) {
                        progress.state.finish(hash, Err(error.clone()), bytes, now);
                        return Err(error);
                    }
                    cpu_time
                }
                // The thread cannot use CPU time faster than time passes.
                Next::Wait => match progress.clocks.get(&hash).map(CpuClock::used) {
                    Some(used) if used >= cpu_time => {
                        progress.state.note_slow(hash);
                        continue;
                    }
                    used => cpu_time - used.unwrap_or_default(),
                },
                Next::Full => patience,
            };
            let wait = wait.max(LOOK).min(end.saturating_duration_since(now));
            let waited = self.0.changed.wait_timeout(progress, wait);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn cached(&self, source: &GrammarSource) -> Option<Result<CompiledGrammar, GrammarError>> {
        self.0.lock().state.cached(source.hash(), Instant::now())
    }
}

/// The refusal of a request that has waited long enough.
fn busy(next: &Next) -> GrammarError {
    tracing::warn!("a grammar was refused because the server is too busy to compile it");
    GrammarError::Busy(match next {
        Next::Full => format!("the server compiles {THREADS} other grammars; retry later"),
        _ => "the server is too busy to compile the grammar; retry later".to_owned(),
    })
}

#[cfg(test)]
mod tests;
