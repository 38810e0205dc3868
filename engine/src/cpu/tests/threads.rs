//! Tests of the thread pool: every unit runs once, a panic does not hang, and threads stop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::threads::{Claim, Threads, WorkerPanicked};

fn threads(count: usize) -> Threads<Vec<u8>> {
    Threads::new(count).unwrap()
}

#[test]
fn every_unit_runs_once() {
    for count in [1, 2, 5] {
        let mut threads = threads(count);
        for units in [0, 1, 2, 3, 100] {
            for turn in 0..50 {
                let claim = if turn % 2 == 0 { Claim::Part } else { Claim::One };
                let runs: Vec<AtomicU32> = (0..units).map(|_| AtomicU32::new(0)).collect();
                threads
                    .run(units, claim, &|unit, _| {
                        runs[unit].fetch_add(1, Ordering::Relaxed);
                    })
                    .unwrap();
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{count} {units}");
            }
        }
    }
}

#[test]
fn a_panic_ends_the_job_and_not_the_threads() {
    let mut threads = threads(3);
    for _ in 0..20 {
        // Any thread may run the unit. On a worker the panic is an error; on this thread it unwinds.
        let outcome =
            catch_unwind(AssertUnwindSafe(|| threads.run(8, Claim::Part, &|unit, _| assert_ne!(unit, 5))));
        assert!(!matches!(outcome, Ok(Ok(()))));
        assert_eq!(threads.run(8, Claim::Part, &|_, _| ()), Ok(()));
    }
}

#[test]
fn a_panic_on_a_worker_is_an_error() {
    let mut threads = threads(2);
    let caller = std::thread::current().id();
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let (sender, receiver) = (Mutex::new(Some(sender)), Mutex::new(receiver));
    let result = threads.run(2, Claim::One, &|_, _| {
        if std::thread::current().id() == caller {
            // Returns once the worker, in the other unit, has dropped the sender.
            let _ = receiver.lock().unwrap().recv();
        } else {
            drop(sender.lock().unwrap().take());
            panic!("on purpose");
        }
    });
    assert_eq!(result, Err(WorkerPanicked));
}

#[test]
fn scratch_persists_between_jobs() {
    let mut threads = threads(1);
    threads.run(3, Claim::Part, &|unit, scratch| scratch.push(unit as u8)).unwrap();
    threads.run(1, Claim::Part, &|_, scratch| assert_eq!(scratch, &[0, 1, 2])).unwrap();
}
