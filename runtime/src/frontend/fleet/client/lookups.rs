//! Looks up the addresses of nodes that the configuration names by host.
//!
//! The system's resolver has no deadline, and holds a thread until it answers. So a lookup gets a time of its own, and at most one lookup of
//! each name runs at a time. Requests for a name that is being looked up wait for the same answer.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec::IntoIter;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::lookup_host;
use tokio::time::timeout;
use tower_service::Service;

/// Maximum time that a connection waits for a lookup.
const LOOKUP: Duration = Duration::from_secs(1);

/// The addresses of a name, or why there are none.
type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;

/// The lookups in progress, and how a name is looked up.
#[derive(Clone)]
pub(super) struct Lookups {
    running: Arc<Mutex<HashMap<String, Shared<BoxFuture<'static, Found>>>>>,
    look_up: fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>,
}

impl Default for Lookups {
    fn default() -> Self {
        let look_up = |name| async { Ok(lookup_host((name, 0)).await?.collect()) }.boxed();
        Self { running: Arc::default(), look_up }
    }
}

impl Lookups {
    /// The addresses of a name.
    async fn find(self, name: String) -> io::Result<Vec<SocketAddr>> {
        let late = |_| io::Error::other(format!("the lookup of {name} has no answer after {LOOKUP:?}"));
        let found = timeout(LOOKUP, self.lookup(name.clone())).await.map_err(late)?;
        found.map_err(|error| io::Error::new(error.kind(), error))
    }

    /// The lookup of this name that is in progress, or a new one. It continues if it is dropped.
    fn lookup(&self, name: String) -> Shared<BoxFuture<'static, Found>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lookup) = running.get(&name) {
            return lookup.clone();
        }
        let (all, own, asked) = (Arc::clone(&self.running), name.clone(), (self.look_up)(name.clone()));
        let lookup = async move {
            let found = asked.await.map_err(Arc::new);
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
            found
        };
        let lookup = lookup.boxed().shared();
        running.insert(name, lookup.clone());
        tokio::spawn(lookup.clone());
        lookup
    }
}

impl Service<Name> for Lookups {
    type Response = IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<IntoIter<SocketAddr>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let find = self.clone().find(name.as_str().to_owned());
        Box::pin(async { Ok(find.await?.into_iter()) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::sleep;

    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_lookup_without_an_answer_ends_and_holds_one_thread() {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let look_up = |_| {
            STARTED.fetch_add(1, Ordering::Relaxed);
            std::future::pending().boxed()
        };
        let lookups = Lookups { look_up, ..Lookups::default() };
        run(async {
            let find = || lookups.clone().find("n1.example".to_owned());
            let (first, second) = tokio::join!(find(), find());
            let expect = "the lookup of n1.example has no answer after 1s";
            assert_eq!(first.unwrap_err().to_string(), expect);
            assert_eq!(second.unwrap_err().to_string(), expect);
            find().await.unwrap_err();
        });
        assert_eq!(STARTED.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_name_is_looked_up_again_after_an_answer() {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let look_up = |_| {
            let turn = STARTED.fetch_add(1, Ordering::Relaxed);
            let found = if turn == 0 {
                Err(io::Error::other("no such name"))
            } else {
                Ok(vec![SocketAddr::from(([10, 0, 0, turn as u8], 0))])
            };
            async { sleep(Duration::from_millis(1)).await }.map(|()| found).boxed()
        };
        let lookups = Lookups { look_up, ..Lookups::default() };
        run(async {
            let find = || lookups.clone().find("n1".to_owned());
            assert!(find().await.unwrap_err().to_string().contains("no such name"));
            for turn in 1..3 {
                let (first, second) = tokio::join!(find(), find());
                assert_eq!(first.unwrap(), [SocketAddr::from(([10, 0, 0, turn], 0))]);
                assert_eq!(second.unwrap(), [SocketAddr::from(([10, 0, 0, turn], 0))]);
            }
        });
    }

    #[test]
    fn the_system_knows_localhost() {
        let found = run(Lookups::default().find("localhost".to_owned())).unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()) && !found.is_empty(), "{found:?}");
    }
}
