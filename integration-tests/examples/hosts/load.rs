//! Clients that ask the proxies in turn at a steady rate, and compare the token ids with those of a single node.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::Result;
use integration_tests::client::{ask_all, complete};
use serde_json::{Value, json};

/// Maximum number of requests at a time.
const CLIENTS: usize = 48;

/// A prompt of 16 to 64 token ids, and its answer of 8 to 16.
pub(crate) struct Question {
    prompt: Value,
    tokens: u32,
    expect: Vec<u32>,
}

/// Makes prompts, and has the node at `address` prefill and decode all of them.
pub(crate) fn questions(count: usize, address: &str) -> Result<Vec<Question>> {
    let numbers: Vec<u32> = (0..count as u32).collect();
    ask_all(&numbers, 4, |number| {
        let length = 16 + number * 29 % 49;
        let ids: Vec<u32> = (0..length).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect();
        let (prompt, tokens) = (json!(ids), 8 + number * 5 % 9);
        let expect = complete(address, &prompt, tokens)?.ids;
        Ok(Question { prompt, tokens, expect })
    })
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Status 200 and the right ids. `handed_over`: another node prefilled.
    Right { handed_over: bool },
    /// Status 200 and other ids.
    Wrong(String),
    /// Another status, or no answer.
    Failed(String),
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The number of the proxy.
    pub(crate) proxy: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) end: End,
}

impl Asked {
    pub(crate) fn is_right(&self) -> bool {
        matches!(self.end, End::Right { .. })
    }

    pub(crate) fn time(&self) -> Duration {
        self.ended - self.began
    }
}

struct Shared {
    questions: Vec<Question>,
    proxies: Vec<String>,
    rate: f64,
    began: Instant,
    next: AtomicUsize,
    /// The load stops after this number of requests.
    most: AtomicUsize,
    is_stopped: AtomicBool,
    asked: Mutex<Vec<Asked>>,
}

/// The running clients.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients. They ask until [`finish`](Self::finish).
    pub(crate) fn start(questions: Vec<Question>, proxies: Vec<String>, rate: f64) -> Self {
        let shared = Arc::new(Shared {
            questions,
            proxies,
            rate,
            began: Instant::now(),
            next: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            is_stopped: AtomicBool::new(false),
            asked: Mutex::new(Vec::new()),
        });
        let client = || {
            let shared = Arc::clone(&shared);
            spawn(move || shared.ask())
        };
        let threads = (0..CLIENTS).map(|_| client()).collect();
        Self { shared, threads }
    }

    /// All requests that have ended.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The time from the start of the load.
    pub(crate) fn since_start(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.shared.began)
    }

    /// Waits until at least this number of requests have been asked and all are answered.
    pub(crate) fn finish(&mut self, least: usize) {
        self.shared.most.store(least, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }

    /// Asks no more.
    pub(crate) fn stop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.finish(0);
    }
}

impl Shared {
    /// One client: takes the next request, waits until it is due, and asks.
    fn ask(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = self.began + Duration::from_secs_f64(number as f64 / self.rate);
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                if self.is_over(number) {
                    return;
                }
                sleep(left.min(Duration::from_millis(100)));
            }
            if self.is_over(number) {
                return;
            }
            let began = Instant::now();
            let end = self.answer(number);
            let asked = Asked { proxy: number % self.proxies.len(), began, ended: Instant::now(), end };
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        }
    }

    fn is_over(&self, number: usize) -> bool {
        self.is_stopped.load(Ordering::Relaxed) || number >= self.most.load(Ordering::Relaxed)
    }

    fn answer(&self, number: usize) -> End {
        let question = &self.questions[number % self.questions.len()];
        let proxy = &self.proxies[number % self.proxies.len()];
        match complete(proxy, &question.prompt, question.tokens) {
            Ok(answer) if answer.ids == question.expect => {
                End::Right { handed_over: answer.timings["disaggregated"] == true }
            }
            Ok(answer) => End::Wrong(format!(
                "request {number}: {:?} instead of {:?}, {}",
                answer.ids, question.expect, answer.timings
            )),
            Err(error) => End::Failed(format!("request {number}: {error:#}")),
        }
    }
}
