//! Tests of the thread pool under loom. Loom runs a test with every interleaving of its threads at locks, waits and atomics,
//! and with every value that an atomic may read under its memory ordering.
//!
//! Units write to loom's cells. Loom fails a test if an access of a unit and an access of the caller after [`Threads::run`]
//! are not ordered. A lost wake-up is a deadlock, which fails too.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::cell::UnsafeCell;

use threads::{Claim, Threads, WorkerPanicked};

/// Loom's counterparts of `cpu::sync`.
mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(super) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub(super) use loom::thread::{Builder, JoinHandle};

    /// Each iteration multiplies the interleavings. One iteration covers both outcomes.
    pub(super) const SPINS: u32 = 1;

    /// A claim of four units on two threads has two units.
    pub(super) const CLAIMS: usize = 1;
}

#[expect(clippy::duplicate_mod, reason = "the same code with other atomics, locks and threads")]
#[path = "../threads.rs"]
mod threads;

/// The number of runs of each unit.
struct Cells(Vec<UnsafeCell<usize>>);

// SAFETY: loom checks each access and fails the test if two accesses race.
unsafe impl Sync for Cells {}

impl Cells {
    fn new(units: usize) -> Self {
        Self((0..units).map(|_| UnsafeCell::new(0)).collect())
    }

    fn add(&self, unit: usize) {
        // SAFETY: as for `Sync`.
        self.0[unit].with_mut(|runs| unsafe { *runs += 1 });
    }

    fn counts(&self) -> Vec<usize> {
        // SAFETY: as for `Sync`.
        self.0.iter().map(|cell| cell.with(|runs| unsafe { *runs })).collect()
    }
}

/// Runs `test` with every interleaving of at most `preemptions` preemptions.
fn explore(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

fn run_jobs(count: usize, jobs: &[usize]) {
    let mut threads: Threads<()> = Threads::new(count).unwrap();
    for units in jobs {
        let cells = Cells::new(*units);
        threads.run(*units, Claim::Part, &|unit, ()| cells.add(unit)).unwrap();
        assert_eq!(cells.counts(), vec![1; *units]);
    }
}

#[test]
fn two_threads_run_every_unit_once_before_run_returns() {
    explore(4, || run_jobs(2, &[2, 3]));
    explore(2, || run_jobs(2, &[4, 2]));
}

#[test]
fn three_threads_run_every_unit_once_before_run_returns() {
    explore(2, || run_jobs(3, &[2]));
    explore(1, || run_jobs(3, &[2, 2]));
}

#[test]
fn a_panic_ends_the_job_and_the_next_one_runs() {
    explore(4, || {
        let mut threads: Threads<()> = Threads::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            threads.run(2, Claim::Part, &|unit, ()| {
                if unit == 1 {
                    // Without a message.
                    resume_unwind(Box::new("on purpose"));
                }
            })
        }));
        // On the calling thread the panic unwinds; on a worker it is an error.
        match outcome {
            Ok(result) => assert_eq!(result, Err(WorkerPanicked)),
            Err(panic) => assert_eq!(panic.downcast_ref(), Some(&"on purpose")),
        }
        let cells = Cells::new(2);
        assert_eq!(threads.run(2, Claim::One, &|unit, ()| cells.add(unit)), Ok(()));
        assert_eq!(cells.counts(), [1, 1]);
    });
}

#[test]
fn threads_without_a_job_end() {
    explore(3, || drop(Threads::<()>::new(3).unwrap()));
}
