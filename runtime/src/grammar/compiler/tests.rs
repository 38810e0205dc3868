use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::grammar::testing::Nothing;

/// Much longer than anything takes.
const WAIT: Duration = Duration::from_secs(60);

/// Bounds that nothing reaches.
const LAX: Bounds = Bounds { cpu_time: WAIT, patience: WAIT };

const SHORT: Duration = Duration::from_millis(100);

/// Bounds on the CPU time alone.
const STRICT: Bounds = Bounds { cpu_time: SHORT, patience: WAIT };

fn source(text: &str) -> GrammarSource {
    GrammarSource::Regex(text.to_owned())
}

/// Compiles sources that begin with `stuck` once `release` is dropped, and keeps a core busy meanwhile. Sources that begin with `blocked` wait
/// without using CPU time. Panics on `panic`.
fn compiler(bounds: Bounds, compiled: Arc<AtomicUsize>) -> (Compiler, mpsc::Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let is_released =
        move || matches!(released.lock().unwrap().try_recv(), Err(mpsc::TryRecvError::Disconnected));
    let compiler = Compiler::bounded(bounds, move |source| {
        compiled.fetch_add(1, Ordering::Relaxed);
        match source.text() {
            text if text.starts_with("stuck") => {
                let clock = CpuClock::of_this_thread();
                while !is_released() {
                    if clock.used() > 2 * SHORT {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                Ok(Arc::new(Nothing))
            }
            text if text.starts_with("blocked") => {
                while !is_released() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(Arc::new(Nothing))
            }
            "delayed" => {
                std::thread::sleep(3 * SHORT);
                Ok(Arc::new(Nothing))
            }
            "panic" => panic!("on purpose"),
            "bad" => Err(GrammarError::Invalid("bad".to_owned())),
            _ => Ok(Arc::new(Nothing)),
        }
    });
    (compiler, release)
}

#[test]
fn a_busy_machine_refuses_no_grammar() {
    let (compiler, release) = compiler(STRICT, Arc::default());
    assert!(compiler.compile(&source("delayed")).is_ok(), "it has used no CPU time");
    drop(release);
    let (compiler, release) = self::compiler(Bounds { patience: SHORT, ..LAX }, Arc::default());
    let refused = compiler.compile(&source("blocked")).err();
    let busy = "the server is too busy to compile the grammar; retry later".to_owned();
    assert_eq!(refused, Some(GrammarError::Busy(busy)));
    assert!(compiler.cached(&source("blocked")).is_none(), "it may still compile");
    for n in 1..THREADS {
        assert!(matches!(compiler.compile(&source(&format!("blocked {n}"))), Err(GrammarError::Busy(_))));
    }
    let refused = compiler.compile(&source("a")).err();
    assert_eq!(
        refused,
        Some(GrammarError::Busy("the server compiles 4 other grammars; retry later".to_owned()))
    );
    drop(release);
    until(|| compiler.running() == 0);
    assert!(compiler.compile(&source("blocked")).is_ok());
}

/// Waits until this is true.
fn until(is_true: impl Fn() -> bool) {
    let end = Instant::now() + WAIT;
    while !is_true() {
        assert!(Instant::now() < end, "it does not become true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_panic_costs_its_source_only() {
    let (compiler, _release) = compiler(LAX, Arc::default());
    let panicked = GrammarError::Panicked("on purpose".to_owned());
    assert_eq!(compiler.compile(&source("panic")).err(), Some(panicked));
    assert_eq!(compiler.compile(&source("bad")).err(), Some(GrammarError::Invalid("bad".to_owned())));
    assert_eq!(compiler.compile(&source("a")).unwrap().source().text(), "a");
    assert_eq!(compiler.running(), 0);
}

#[test]
fn outcomes_are_cached() {
    let compiled = Arc::new(AtomicUsize::new(0));
    let (compiler, _release) = compiler(LAX, compiled.clone());
    assert!(compiler.cached(&source("a")).is_none());
    for _ in 0..3 {
        assert!(compiler.compile(&source("a")).is_ok());
        assert!(compiler.compile(&source("bad")).is_err());
    }
    assert!(compiler.cached(&source("a")).unwrap().is_ok());
    assert_eq!(compiled.load(Ordering::Relaxed), 2);
}

#[test]
fn stuck_compilations_are_refused_and_others_still_compile() {
    let compiled = Arc::new(AtomicUsize::new(0));
    let (compiler, release) = compiler(STRICT, compiled.clone());
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
    assert!(compiler.compile(&source("a")).is_ok(), "one thread is left");
    assert!(matches!(compiler.compile(&source("stuck last")), Err(GrammarError::TooLarge(_))));
    let late = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| compiler.compile(&source("b")));
        std::thread::sleep(SHORT);
        assert!(!waiting.is_finished(), "no thread is left");
        drop(release);
        waiting.join()
    });
    assert!(late.unwrap().is_ok(), "it has waited for a thread");
    until(|| compiler.running() == 0);
    assert!(compiler.compile(&source("b")).is_ok());
    assert!(compiler.compile(&source("stuck 1")).is_ok(), "its late outcome is cached");
}

#[test]
fn long_sources_are_refused() {
    let (compiler, _release) = compiler(LAX, Arc::default());
    let long = source(&"a".repeat(GrammarSource::BYTES_MAX + 1));
    assert!(matches!(compiler.compile(&long), Err(GrammarError::TooLarge(_))));
    assert!(compiler.compile(&source(&"a".repeat(GrammarSource::BYTES_MAX))).is_ok());
}
