//! The OS thread that hashes pages for the transfer actor. Hashing a page takes tens of microseconds on the host; on a busy GPU it waits for
//! the running kernel. The thread sleeps on its queue and takes all waiting pages at once.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use actix::prelude::*;
use connector::ring::CreditNumber;

use crate::effect::ToTransfer;
use crate::messages::{HashPages, PageToHash, PagesHashed};
use crate::pages::Pages;

/// The handle. Dropping it ends the thread.
pub struct HashThread {
    pages: Option<Sender<Vec<PageToHash>>>,
    thread: Option<JoinHandle<()>>,
}

impl HashThread {
    /// Starts the thread. It answers every page in a [`PagesHashed`].
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn spawn(pages: Pages, results: Recipient<ToTransfer>) -> std::io::Result<Self> {
        // Bounded by the ring: a credit is announced, and so granted again, only after its page's hash has arrived.
        let (send, queue) = channel();
        let run = move || run(&pages, &queue, &results);
        let thread = std::thread::Builder::new().name("baton-hash".into()).spawn(run)?;
        Ok(Self { pages: Some(send), thread: Some(thread) })
    }

    /// Queues pages.
    pub fn post(&self, HashPages(pages): HashPages) {
        if let Some(queue) = &self.pages {
            // The thread ends only by a panic, and a panic aborts a release build.
            let _ = queue.send(pages);
        }
    }
}

impl Drop for HashThread {
    fn drop(&mut self) {
        self.pages = None;
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, the panic hook has already reported it.
            let _ = thread.join();
        }
    }
}

fn run(pages: &Pages, queue: &Receiver<Vec<PageToHash>>, results: &Recipient<ToTransfer>) {
    while let Ok(mut batch) = queue.recv() {
        batch.extend(queue.try_iter().flatten());
        let seeded: Vec<_> = batch.iter().map(|one| (one.page, one.seed)).collect();
        let hashes = pages.hash(&seeded).into_iter();
        let named = batch.iter().zip(hashes);
        let named = named.map(|(one, hash)| (one.session, CreditNumber(one.seed.credit), hash));
        results.do_send(PagesHashed(named.collect()).into());
    }
}
