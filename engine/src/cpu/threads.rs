//! A fixed thread pool that runs one job at a time. A job has units, which the workers and the calling thread share.
//!
//! Threads take units one by one. So a descheduled thread delays a job by one unit, and the caller does not wait for a
//! worker that wakes late. After a job a worker busy-polls for about ten microseconds, the usual gap between two phases of
//! a step, and then sleeps on a condition variable. An idle engine uses no CPU time.
//!
//! Test builds compile this file twice: with the standard library's primitives from `cpu::sync`, and with loom's in
//! `cpu::tests::interleavings`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use super::sync::{
    Arc, AtomicBool, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, MutexGuard, Ordering, SPINS, spin_loop,
};

/// A worker panicked while it ran a job. The panic's message is on stderr. The job's results are invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerPanicked;

/// A job for the workers. The reference is not really `'static`: see [`Threads::run`].
struct Job<S: 'static> {
    units: usize,
    work: &'static (dyn Fn(usize, &mut S) + Sync),
}

struct State<S: 'static> {
    /// The current job. Workers may join it.
    job: Option<Job<S>>,
    /// Workers that sleep on `wake`.
    asleep: usize,
    stop: bool,
}

struct Shared<S: 'static> {
    state: Mutex<State<S>>,
    wake: Condvar,
    done: Condvar,
    /// The number of jobs so far; dropping the pool adds one. A worker can poll it without the lock.
    posted: AtomicUsize,
    /// The next unit to run.
    next: AtomicUsize,
    /// Workers inside the job. It increases only under the lock and only while `job` is set.
    inside: AtomicUsize,
    panicked: AtomicBool,
}

/// A thread pool. Each thread has its own scratch memory `S`, which lives as long as the thread.
pub(super) struct Threads<S: 'static> {
    shared: Arc<Shared<S>>,
    workers: Vec<JoinHandle<()>>,
    own: S,
}

impl<S: Default + Send + 'static> Threads<S> {
    /// Starts `count - 1` workers. The caller of [`run`](Self::run) is the last of the `count` threads.
    ///
    /// # Errors
    /// The index of the worker that does not start, and the system's error.
    pub(super) fn new(count: usize) -> Result<Self, (usize, std::io::Error)> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { job: None, asleep: 0, stop: false }),
            wake: Condvar::new(),
            done: Condvar::new(),
            posted: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let mut threads = Self { shared, workers: Vec::new(), own: S::default() };
        for index in 1..count {
            let shared = Arc::clone(&threads.shared);
            let worker = Builder::new()
                .name(format!("baton-cpu-{index}"))
                .spawn(move || shared.serve())
                .map_err(|error| (index, error))?;
            threads.workers.push(worker);
        }
        Ok(threads)
    }

    /// Calls `work(unit, scratch)` once for every unit below `units`, on all threads. Returns when all calls have returned,
    /// and their writes are then visible to the caller. Units start in ascending order, each on a free thread.
    ///
    /// # Errors
    /// [`WorkerPanicked`] if a call panicked on a worker.
    ///
    /// # Panics
    /// If a call panicked on the calling thread. The panic resumes after all workers have left the job.
    pub(super) fn run(
        &mut self,
        units: usize,
        work: &(dyn Fn(usize, &mut S) + Sync),
    ) -> Result<(), WorkerPanicked> {
        if units <= 1 || self.workers.is_empty() {
            (0..units).for_each(|unit| work(unit, &mut self.own));
            return Ok(());
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Workers use the reference only while `inside` counts them. No worker enters
        // after `job` is cleared. This function neither returns nor unwinds before `job` is cleared and `inside` is zero.
        let work_for_workers = unsafe {
            std::mem::transmute::<&(dyn Fn(usize, &mut S) + Sync), &'static (dyn Fn(usize, &mut S) + Sync)>(
                work,
            )
        };
        shared.post(Job { units, work: work_for_workers });
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_units(units, work, &mut self.own)));
        shared.retire();
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        match own {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) if panicked => Err(WorkerPanicked),
            Ok(()) => Ok(()),
        }
    }
}

impl<S> Drop for Threads<S> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.posted.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, so the result needs no check.
            let _: Result<(), Box<dyn Any + Send>> = worker.join();
        }
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_units(&self, units: usize, work: &(dyn Fn(usize, &mut S) + Sync), scratch: &mut S) {
        loop {
            let unit = self.next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            work(unit, scratch);
        }
    }

    fn post(&self, job: Job<S>) {
        let mut state = self.lock();
        self.next.store(0, Ordering::Relaxed);
        state.job = Some(job);
        self.posted.fetch_add(1, Ordering::Release);
        if state.asleep > 0 {
            self.wake.notify_all();
        }
    }

    /// Clears the job and waits until no worker is in it.
    fn retire(&self) {
        self.lock().job = None;
        if spin(|| self.inside.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut state = self.lock();
        while self.inside.load(Ordering::Acquire) != 0 {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<S: Default> Shared<S> {
    fn serve(&self) {
        let mut scratch = S::default();
        let mut seen = 0;
        loop {
            spin(|| self.posted.load(Ordering::Acquire) != seen);
            let mut state = self.lock();
            while self.posted.load(Ordering::Acquire) == seen && !state.stop {
                state.asleep += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
            if state.stop {
                return;
            }
            seen = self.posted.load(Ordering::Acquire);
            let Some((units, work)) = state.job.as_ref().map(|job| (job.units, job.work)) else { continue };
            self.inside.fetch_add(1, Ordering::Relaxed);
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| self.take_units(units, work, &mut scratch)));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
                scratch = S::default();
            }
            if self.inside.fetch_sub(1, Ordering::Release) == 1 {
                // The lock ensures that the caller has either not checked `inside` yet or already sleeps.
                let _state = self.lock();
                self.done.notify_one();
            }
        }
    }
}

/// Busy-polls `ready` for some microseconds. Returns true if it became true.
fn spin(ready: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if ready() {
            return true;
        }
        spin_loop();
    }
    false
}
