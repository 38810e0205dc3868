//! A fixed thread pool that runs one job at a time. A job has units, which the workers and the calling thread share.
//!
//! A free thread claims several of the remaining units, or one if units differ in work. So all threads end at about the same time, and the caller does
//! not wait for a worker that wakes late. A decode step is about 150 jobs of 5 to 50 µs each, so a job takes no lock if the workers are awake: a
//! single atomic word has the number of the job, the workers inside it, and the workers that sleep. After a job a worker busy-polls
//! for about 50 microseconds, longer than the usual gap between two jobs of a step, and then sleeps on a condition variable. An idle
//! engine uses no CPU time.
//!
//! Test builds compile this file twice: with the standard library's primitives from `cpu::sync`, and with loom's in
//! `cpu::tests::interleavings`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use super::sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Builder, CLAIMS, Condvar, JoinHandle, Mutex, MutexGuard,
    Ordering, SPINS, UnsafeCell, spin_loop,
};

/// One worker inside the job, in [`Shared::word`]. Workers enter only while [`CLOSED`] is not set.
const INSIDE: u64 = 1;
/// One worker that sleeps. It changes only under the lock.
const ASLEEP: u64 = 1 << 16;
/// No job may be entered.
const CLOSED: u64 = 1 << 32;
/// The caller sleeps until no worker is inside.
const AWAITED: u64 = 1 << 33;
/// The threads end.
const STOP: u64 = 1 << 34;
/// One job. All higher bits count the jobs so far, and wrap.
const JOB: u64 = 1 << 35;

fn inside(word: u64) -> u64 {
    word % ASLEEP
}

fn asleep(word: u64) -> u64 {
    word % CLOSED / ASLEEP
}

fn number(word: u64) -> u64 {
    word / JOB
}

/// A worker panicked while it ran a job. The panic's message is on stderr. The job's results are invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerPanicked;

/// How many units of a job a thread may claim at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Claim {
    /// The units take about the same time. A thread claims a part of its equal share of those that are left.
    Part,
    /// The units differ in work. The threads end at about the same time if the longest come first.
    One,
}

/// A job for the workers. The reference is not really `'static`: see [`Threads::run`].
struct Job<S: 'static> {
    units: usize,
    claim: Claim,
    work: &'static (dyn Fn(usize, &mut S) + Sync),
}

impl<S> Clone for Job<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Job<S> {}

struct Shared<S: 'static> {
    /// The state of the job and the workers, in the parts above.
    word: AtomicU64,
    /// The current job, if one is open or a worker is inside. The caller writes it while the word is closed and no worker is inside; workers inside read it.
    job: UnsafeCell<Option<Job<S>>>,
    /// The first unit that no thread has taken.
    next: AtomicUsize,
    panicked: AtomicBool,
    threads: usize,
    lock: Mutex<()>,
    wake: Condvar,
    done: Condvar,
}

// SAFETY: the job is accessed as its documentation says, and its closure is `Sync`. Everything else is `Sync`.
unsafe impl<S> Sync for Shared<S> {}
// SAFETY: a job's closure may be called on any thread.
unsafe impl<S> Send for Shared<S> {}

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
            word: AtomicU64::new(CLOSED),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            threads: count,
            lock: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
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
    /// and their writes are then visible to the caller. Units start in ascending order on each thread.
    ///
    /// # Errors
    /// [`WorkerPanicked`] if a call panicked on a worker.
    ///
    /// # Panics
    /// If a call panicked on the calling thread. The panic resumes after all workers have left the job.
    pub(super) fn run(
        &mut self,
        units: usize,
        claim: Claim,
        work: &(dyn Fn(usize, &mut S) + Sync),
    ) -> Result<(), WorkerPanicked> {
        if units <= 1 || self.workers.is_empty() {
            (0..units).for_each(|unit| work(unit, &mut self.own));
            return Ok(());
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Workers use the job only while the word counts them as inside. No worker enters
        // a closed job. This function neither returns nor unwinds before the job is closed and no worker is inside.
        let work_for_workers = unsafe {
            std::mem::transmute::<&(dyn Fn(usize, &mut S) + Sync), &'static (dyn Fn(usize, &mut S) + Sync)>(
                work,
            )
        };
        shared.post(Job { units, claim, work: work_for_workers });
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_units(units, claim, work, &mut self.own)));
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
        self.shared.word.fetch_or(STOP, Ordering::Release);
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, so the result needs no check.
            let _: Result<(), Box<dyn Any + Send>> = worker.join();
        }
    }
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, ()> {
        // No code that can panic runs under the lock.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs units until none is left.
    fn take_units(&self, units: usize, claim: Claim, work: &(dyn Fn(usize, &mut S) + Sync), scratch: &mut S) {
        let mut first = self.next.load(Ordering::Relaxed);
        while first < units {
            let end = first
                + match claim {
                    Claim::Part => ((units - first) / (CLAIMS * self.threads)).max(1),
                    Claim::One => 1,
                };
            match self.next.compare_exchange_weak(first, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    (first..end).for_each(|unit| work(unit, scratch));
                    first = self.next.load(Ordering::Relaxed);
                }
                Err(now) => first = now,
            }
        }
    }

    /// Opens the job and wakes the workers that sleep. The previous job is closed, and no worker is inside.
    fn post(&self, job: Job<S>) {
        self.next.store(0, Ordering::Relaxed);
        // SAFETY: no worker is inside, and none enters before the job is open.
        self.job.with_mut(|current| unsafe { *current = Some(job) });
        let before = self.word.fetch_add(JOB - CLOSED, Ordering::Release);
        if asleep(before) > 0 {
            // A worker counts itself under the lock before it looks at the word, so it has seen this job or it waits.
            drop(self.lock());
            self.wake.notify_all();
        }
    }

    /// Closes the job, waits until no worker is in it, and takes it away.
    fn retire(&self) {
        self.close();
        // SAFETY: the job is closed and no worker is inside.
        self.job.with_mut(|job| unsafe { *job = None });
    }

    fn close(&self) {
        let none_inside = |word| inside(word) == 0;
        if none_inside(self.word.fetch_or(CLOSED, Ordering::Acquire))
            || spin(|| none_inside(self.word.load(Ordering::Acquire)))
        {
            return;
        }
        let mut guard = self.lock();
        self.word.fetch_or(AWAITED, Ordering::Relaxed);
        while !none_inside(self.word.load(Ordering::Acquire)) {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.word.fetch_and(!AWAITED, Ordering::Relaxed);
    }

    /// Waits for a job other than number `seen`, or the end. Returns the word.
    fn wait(&self, seen: u64) -> u64 {
        let is_new = |word| number(word) != seen || word & STOP != 0;
        if !spin(|| is_new(self.word.load(Ordering::Relaxed))) {
            let mut guard = self.lock();
            let mut word = self.word.fetch_add(ASLEEP, Ordering::Relaxed);
            while !is_new(word) {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                word = self.word.load(Ordering::Relaxed);
            }
            self.word.fetch_sub(ASLEEP, Ordering::Relaxed);
        }
        self.word.load(Ordering::Relaxed)
    }

    /// Enters the job of the word that `wait` returned. Returns false if it is closed.
    fn enter(&self, mut word: u64) -> bool {
        let job = number(word);
        while word & CLOSED == 0 && number(word) == job {
            let entered =
                self.word.compare_exchange_weak(word, word + INSIDE, Ordering::Acquire, Ordering::Relaxed);
            match entered {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn leave(&self) {
        let before = self.word.fetch_sub(INSIDE, Ordering::Release);
        if before & AWAITED != 0 && inside(before) == 1 {
            // The caller set `AWAITED` under the lock, so it waits or has seen that this worker left.
            drop(self.lock());
            self.done.notify_one();
        }
    }
}

impl<S: Default> Shared<S> {
    fn serve(&self) {
        let mut scratch = S::default();
        let mut seen = 0;
        loop {
            let word = self.wait(seen);
            if word & STOP != 0 {
                return;
            }
            seen = number(word);
            if !self.enter(word) {
                continue;
            }
            // SAFETY: this worker is inside the job, so the caller does not write it. `enter` synchronised with `post`.
            let job = self.job.with(|job| unsafe { *job });
            let Some(Job { units, claim, work }) = job else { unreachable!("a job that is open is there") };
            let result = catch_unwind(AssertUnwindSafe(|| self.take_units(units, claim, work, &mut scratch)));
            if result.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
                scratch = S::default();
            }
            self.leave();
        }
    }
}

/// Busy-polls `ready` at most [`SPINS`] times. Returns true if it became true.
fn spin(ready: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if ready() {
            return true;
        }
        spin_loop();
    }
    false
}
