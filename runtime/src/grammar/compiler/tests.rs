use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::grammar::testing::Nothing;

/// Much longer than [`DEADLINE`].
const WAIT: Duration = Duration::from_secs(60);

fn source(text: &str) -> GrammarSource {
    GrammarSource::Regex(text.to_owned())
}

/// Compiles sources that begin with `stuck` once `release` is dropped, and panics on `panic`.
fn compiler(compiled: Arc<AtomicUsize>) -> (Compiler, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let compiler = Compiler::new(move |source| {
        compiled.fetch_add(1, Ordering::Relaxed);
        match source.text() {
            text if text.starts_with("stuck") => {
                let _ = released.lock().unwrap().recv();
                Ok(Arc::new(Nothing))
            }
            "panic" => panic!("on purpose"),
            "bad" => Err(GrammarError::Invalid("bad".to_owned())),
            _ => Ok(Arc::new(Nothing)),
        }
    });
    (compiler, release)
}

/// The outcome of a source that compiles at once. On a busy machine even that may take longer than the deadline; the late outcome is cached.
fn outcome(compiler: &Compiler, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError> {
    let end = Instant::now() + WAIT;
    loop {
        match compiler.compile(source) {
            Err(GrammarError::TooLarge(_) | GrammarError::Busy(_)) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

#[test]
fn a_panic_costs_its_source_only() {
    let (compiler, _release) = compiler(Arc::default());
    let panicked = GrammarError::Panicked("on purpose".to_owned());
    assert_eq!(outcome(&compiler, &source("panic")).err(), Some(panicked));
    assert_eq!(outcome(&compiler, &source("bad")).err(), Some(GrammarError::Invalid("bad".to_owned())));
    assert_eq!(outcome(&compiler, &source("a")).unwrap().source().text(), "a");
    assert_eq!(compiler.running(), 0);
}

#[test]
fn outcomes_are_cached() {
    let compiled = Arc::new(AtomicUsize::new(0));
    let (compiler, _release) = compiler(compiled.clone());
    assert!(compiler.cached(&source("a")).is_none());
    for _ in 0..3 {
        assert!(outcome(&compiler, &source("a")).is_ok());
        assert!(outcome(&compiler, &source("bad")).is_err());
    }
    assert!(compiler.cached(&source("a")).unwrap().is_ok());
    assert_eq!(compiled.load(Ordering::Relaxed), 2);
}

#[test]
fn stuck_compilations_are_refused_and_others_still_compile() {
    let compiled = Arc::new(AtomicUsize::new(0));
    let (compiler, release) = compiler(compiled.clone());
    std::thread::scope(|scope| {
        // Two requests for each source. They compile once.
        let names = (1..THREADS).flat_map(|n| [format!("stuck {n}"), format!("stuck {n}")]);
        let stuck: Vec<_> = names
            .map(|name| {
                scope.spawn({
                    let compiler = &compiler;
                    move || compiler.compile(&source(&name))
                })
            })
            .collect();
        for outcome in stuck {
            assert!(matches!(outcome.join().unwrap(), Err(GrammarError::TooLarge(_))));
        }
    });
    assert_eq!((compiler.running(), compiled.load(Ordering::Relaxed)), (THREADS - 1, THREADS - 1));
    assert!(outcome(&compiler, &source("a")).is_ok(), "one thread is left");
    assert!(matches!(compiler.compile(&source("stuck last")), Err(GrammarError::TooLarge(_))));
    assert!(matches!(compiler.compile(&source("b")), Err(GrammarError::Busy(_))), "no thread is left");
    assert!(compiler.compile(&source("a")).is_ok(), "it is cached");
    drop(release);
    let end = Instant::now() + WAIT;
    while compiler.running() > 0 {
        assert!(Instant::now() < end, "the threads return");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(outcome(&compiler, &source("b")).is_ok());
    assert!(compiler.compile(&source("stuck 1")).is_ok(), "its late outcome is cached");
}

#[test]
fn long_sources_are_refused() {
    let (compiler, _release) = compiler(Arc::default());
    let long = source(&"a".repeat(GrammarSource::BYTES_MAX + 1));
    assert!(matches!(compiler.compile(&long), Err(GrammarError::TooLarge(_))));
    assert!(outcome(&compiler, &source(&"a".repeat(GrammarSource::BYTES_MAX))).is_ok());
}
