//! The streams of one thread: events come in a queue that the thread empties in one step, and go from there to the tasks that wait for them.
//!
//! Waking a task of another thread costs a system call, and waking one of the same thread does not. So the decoder wakes a thread once for all of
//! its streams.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use tokio::sync::Notify;

use super::{Admitted, Streams};
use crate::request::{RequestId, StreamEvent};

/// An event of a request. `None` is an end without a final event.
type Posted = (RequestId, Option<StreamEvent>);

/// The queue of a thread. Its requests bound it: each has at most `max_tokens` tokens and two other events.
#[derive(Default)]
pub(super) struct Post {
    events: Mutex<Vec<Posted>>,
    arrived: Notify,
}

impl Post {
    /// Adds an event. Returns true if the queue was empty, so that its thread may have to be woken.
    pub(super) fn push(&self, request: RequestId, event: Option<StreamEvent>) -> bool {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push((request, event));
        events.len() == 1
    }

    /// Wakes the thread.
    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }
}

/// Reads the streams of one thread. Cheap to clone.
#[derive(Clone)]
pub struct StreamReader(Rc<Local>);

struct Local {
    streams: Streams,
    post: Arc<Post>,
    sources: RefCell<HashMap<RequestId, Rc<Waiting>>>,
    /// The memory of the queue that was emptied last.
    spare: Cell<Vec<Posted>>,
}

/// Events that wait for a task, and its waker.
#[derive(Default)]
struct Waiting {
    events: RefCell<VecDeque<StreamEvent>>,
    /// No more events will come.
    is_over: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl StreamReader {
    /// A reader for the current thread, and its task.
    ///
    /// # Panics
    /// The thread is not one of actix.
    pub fn start(streams: &Streams) -> Self {
        let reader = Self::new(streams);
        let (local, post) = (Rc::downgrade(&reader.0), Arc::clone(&reader.0.post));
        actix::spawn(deliver_all(local, post));
        reader
    }

    /// A reader without a task: events come only to [`AnswerEvents::next_now`].
    pub(super) fn new(streams: &Streams) -> Self {
        let local = Local {
            streams: streams.clone(),
            post: Arc::default(),
            sources: RefCell::default(),
            spare: Cell::default(),
        };
        Self(Rc::new(local))
    }

    /// Its queue.
    #[cfg(test)]
    pub(super) fn post(&self) -> Arc<Post> {
        Arc::clone(&self.0.post)
    }

    /// Opens the stream of `request`, which will produce at most `max_tokens` tokens and holds `permit` until it ends.
    pub fn open(&self, request: RequestId, max_tokens: u32, permit: impl Admitted) -> AnswerEvents {
        let waiting = Rc::<Waiting>::default();
        self.0.sources.borrow_mut().insert(request, Rc::clone(&waiting));
        self.0.streams.insert(request, Arc::clone(&self.0.post), max_tokens, permit);
        AnswerEvents { request, local: Rc::clone(&self.0), waiting }
    }
}

/// Delivers events until the last reader and source are dropped.
async fn deliver_all(local: Weak<Local>, post: Arc<Post>) {
    loop {
        post.arrived.notified().await;
        let Some(local) = local.upgrade() else { return };
        local.deliver();
    }
}

impl Local {
    /// Moves the events of the queue to the tasks that wait for them.
    fn deliver(&self) {
        let mut events = self.spare.take();
        std::mem::swap(&mut events, &mut *self.post.events.lock().unwrap_or_else(PoisonError::into_inner));
        let sources = self.sources.borrow();
        for (request, event) in events.drain(..) {
            // A task that has dropped its source reads no more events.
            let Some(waiting) = sources.get(&request) else { continue };
            match event {
                Some(event) => waiting.events.borrow_mut().push_back(event),
                None => waiting.is_over.set(true),
            }
            if let Some(waker) = waiting.waker.take() {
                waker.wake();
            }
        }
        self.spare.set(events);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.post.wake();
    }
}

/// The events of one request. Dropping it removes the request from the table.
pub struct AnswerEvents {
    request: RequestId,
    local: Rc<Local>,
    waiting: Rc<Waiting>,
}

impl AnswerEvents {
    /// Waits for the next event; `None` after the final one. The future may be dropped and created again.
    pub async fn recv(&mut self) -> Option<StreamEvent> {
        poll_fn(|context| {
            if let Some(event) = self.take() {
                return Poll::Ready(Some(event));
            }
            if self.waiting.is_over.get() {
                return Poll::Ready(None);
            }
            self.waiting.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// The next event, if it has been posted.
    pub fn next_now(&mut self) -> Option<StreamEvent> {
        self.take().or_else(|| {
            self.local.deliver();
            self.take()
        })
    }

    fn take(&self) -> Option<StreamEvent> {
        let event = self.waiting.events.borrow_mut().pop_front()?;
        if matches!(event, StreamEvent::Finished { .. } | StreamEvent::Failed(_)) {
            self.waiting.is_over.set(true);
        }
        Some(event)
    }
}

impl Drop for AnswerEvents {
    fn drop(&mut self) {
        self.local.sources.borrow_mut().remove(&self.request);
        self.local.streams.close(self.request);
    }
}
