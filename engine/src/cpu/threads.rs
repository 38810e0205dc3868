//! A fixed set of threads that share the units of one job at a time with the calling thread.
//!
//! Units are handed out one by one, so that a thread which the system holds up costs one unit's time, and a
//! thread that wakes late finds the job gone instead of being waited for. Between two jobs a worker looks for
//! the next one for some ten microseconds, about the gap between two phases of a step, and then sleeps on a
//! condition variable: an idle engine takes no processor time.
//!
//! This file is compiled twice in test builds: with `cpu::sync`, which is the standard library's, and in `cpu::tests::interleavings` with loom's.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use super::sync::{
    Arc, AtomicBool, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, MutexGuard, Ordering, SPINS, spin_loop,
};

/// A worker panicked while it ran a job; the panic's message is on stderr and the job's results are void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerPanicked;

/// A job as workers see it. The reference is not really static: see [`Threads::run`].
struct Job<S: 'static> {
    units: usize,
    work: &'static (dyn Fn(usize, &mut S) + Sync),
}

struct State<S: 'static> {
    /// The job to join, while it has units left.
    job: Option<Job<S>>,
    /// Workers asleep on `wake`.
    asleep: usize,
    stop: bool,
}

struct Shared<S: 'static> {
    state: Mutex<State<S>>,
    wake: Condvar,
    done: Condvar,
    /// Counts jobs, so that a worker need not take the lock to see that there is none.
    posted: AtomicUsize,
    /// The next unit to hand out.
    next: AtomicUsize,
    /// Workers inside the job. Grows only under the lock while `job` is there.
    inside: AtomicUsize,
    panicked: AtomicBool,
}

/// The threads. Each has its own scratch memory `S`, which lives as long as the thread.
pub(super) struct Threads<S: 'static> {
    shared: Arc<Shared<S>>,
    workers: Vec<JoinHandle<()>>,
    own: S,
}

impl<S: Default + Send + 'static> Threads<S> {
    /// Starts `count - 1` workers; the caller of [`run`](Self::run) is the last of `count` threads.
    ///
    /// # Errors
    /// The worker's index and what the system said when it does not start one.
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

    /// Calls `work(unit, scratch)` once for every unit below `units`, on all threads, and returns when all calls
    /// have returned. What the calls wrote is visible to the caller. The order of units is ascending, each on
    /// whichever thread is free.
    ///
    /// # Errors
    /// [`WorkerPanicked`] when a call panicked on a worker; a panic on the calling thread goes on from here,
    /// once no worker is in the job any more.
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
        // SAFETY: only the lifetime changes. Workers touch the reference only between their entry, counted in
        // `inside`, and their exit; no worker enters once `job` is gone; and this function does not return, nor
        // unwind, before `job` is gone and `inside` is zero.
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
            // A worker catches its panics, so there is nothing to learn from the result.
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

    /// Takes the job down and waits until no worker is in it.
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
                // Under the lock, so that the caller is either not yet waiting or already asleep.
                let _state = self.lock();
                self.done.notify_one();
            }
        }
    }
}

/// Waits for `ready` for a few microseconds; says whether it came.
fn spin(ready: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if ready() {
            return true;
        }
        spin_loop();
    }
    false
}
