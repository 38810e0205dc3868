//! The threads that compute masks. They start when the first constraint needs one.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, available_parallelism};

use crate::constraint::Constraint;

/// More threads than this do not help: a step of an engine takes longer than the masks of all its rows.
const THREADS_MAX: usize = 8;

/// The handle. Dropping it ends the threads after their current mask.
#[derive(Default)]
pub struct MaskThreads {
    /// Holds at most one entry for each live constraint, because a constraint is queued once until a thread has worked on it.
    queue: Option<Sender<Arc<Constraint>>>,
    threads: Vec<JoinHandle<()>>,
}

impl MaskThreads {
    /// Has a thread [work](Constraint::work) on the constraint. If the system starts no thread, the work is done here.
    pub fn work_on(&mut self, constraint: Arc<Constraint>) {
        if self.queue.is_none() {
            self.start();
        }
        let rest = match &self.queue {
            Some(queue) => queue.send(constraint).err().map(|rest| rest.0),
            None => Some(constraint),
        };
        if let Some(constraint) = rest {
            constraint.work();
        }
    }

    fn start(&mut self) {
        let count = available_parallelism().map_or(1, usize::from).div_ceil(2).min(THREADS_MAX);
        let (queue, work) = channel();
        let work = Arc::new(Mutex::new(work));
        let start = |index| {
            let work = Arc::clone(&work);
            std::thread::Builder::new().name(format!("baton-mask-{index}")).spawn(move || run(&work)).ok()
        };
        self.threads = (0..count).filter_map(start).collect();
        // Without a thread the queue would never be read.
        self.queue = (!self.threads.is_empty()).then_some(queue);
    }
}

impl Drop for MaskThreads {
    fn drop(&mut self) {
        self.queue = None;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn run(work: &Mutex<Receiver<Arc<Constraint>>>) {
    loop {
        // The lock is held while this thread waits, so the next idle thread waits for the lock.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(constraint) => constraint.work(),
            Err(_) => return,
        }
    }
}
