//! The stages of a drain. SIGTERM, SIGINT, a fault and `POST /admin/drain` begin the same drain.
//!
//! ```text
//! Serving ──begin──► Leaving ──`shutdown.delay`──► Refusing ──no work left──► Drained
//! ```
//!
//! A leaving process reports to routers and peers that it drains, but still accepts the requests that they have sent to it in the meantime.
//! A process does not return to an earlier stage: its peers have been told to send it no more work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How far the drain of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainStage {
    /// The process accepts requests.
    Serving,
    /// It accepts requests, and reports that it drains.
    Leaving,
    /// It refuses requests and finishes those that run.
    Refusing,
    /// It refuses requests and has no work.
    Drained,
}

impl DrainStage {
    /// The stage as `/admin/drain` reports it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving | Self::Refusing => "draining",
            Self::Drained => "drained",
        }
    }
}

/// The drain of one process. Cheap to clone; clones are the same drain.
#[derive(Clone, Debug)]
pub struct Drain {
    now: Arc<watch::Sender<Progress>>,
    delay: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    stage: DrainStage,
    /// When a leaving process begins to refuse requests.
    refuse_at: Instant,
}

impl Drain {
    /// A drain that has not begun. `delay` is `shutdown.delay`.
    pub fn new(delay: Duration) -> Self {
        let serving = Progress { stage: DrainStage::Serving, refuse_at: Instant::now() };
        Self { now: Arc::new(watch::Sender::new(serving)), delay }
    }

    /// The stage of this moment.
    pub fn stage(&self) -> DrainStage {
        self.now.borrow().stage
    }

    /// Begins the drain, unless it has begun.
    pub fn begin(&self) {
        self.begin_in(self.delay);
    }

    /// Begins the drain without the delay, or ends its delay: a process with a fault cannot answer requests.
    pub fn begin_at_once(&self) {
        self.begin_in(Duration::ZERO);
    }

    fn begin_in(&self, delay: Duration) {
        let asked = Instant::now() + delay;
        self.now.send_if_modified(|now| match now.stage {
            DrainStage::Serving => {
                *now = Progress { stage: DrainStage::Leaving, refuse_at: asked };
                true
            }
            DrainStage::Leaving if asked < now.refuse_at => {
                now.refuse_at = asked;
                true
            }
            _ => false,
        });
    }

    /// Waits until the drain is at `stage` or further.
    pub async fn reached(&self, stage: DrainStage) {
        // An error means that the sender is gone. This drain has it.
        let _ = self.now.subscribe().wait_for(|now| now.stage >= stage).await;
    }

    /// Takes the steps of the drain once it has begun: `announce` tells peers of it, `refuse` closes the process for new work, and `done` completes
    /// when no work is left.
    pub async fn run(&self, announce: impl FnOnce(), refuse: impl FnOnce(), done: impl Future<Output = ()>) {
        self.reached(DrainStage::Leaving).await;
        tracing::info!("draining: routers and peers are told");
        announce();
        self.delay_over().await;
        refuse();
        tracing::info!("draining: new requests are refused, running ones may finish");
        self.enter(DrainStage::Refusing);
        done.await;
        tracing::info!("drained: no request and no hand-over is left");
        self.enter(DrainStage::Drained);
    }

    async fn delay_over(&self) {
        let mut changes = self.now.subscribe();
        loop {
            let refuse_at = changes.borrow_and_update().refuse_at;
            tokio::select! {
                () = sleep_until(refuse_at) => return,
                // Only an earlier end of the delay changes it.
                _ = changes.changed() => {}
            }
        }
    }

    fn enter(&self, stage: DrainStage) {
        self.now.send_modify(|now| now.stage = stage);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::sync::oneshot;

    use super::*;

    /// Longer than the test.
    const LONG: Duration = Duration::from_secs(3600);

    fn run_test(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn a_drain_takes_its_steps_in_order_and_once() {
        run_test(async {
            let (drain, steps) = (Drain::new(Duration::ZERO), RefCell::new(Vec::new()));
            let (finish, finished) = oneshot::channel::<()>();
            let step = |name| steps.borrow_mut().push((name, drain.stage()));
            let work = async {
                step("work");
                let _ = finished.await;
            };
            let run = drain.run(|| step("announce"), || step("refuse"), work);
            let watch = async {
                assert_eq!(drain.stage(), DrainStage::Serving);
                drain.begin();
                drain.reached(DrainStage::Refusing).await;
                assert_eq!(drain.stage().name(), "draining");
                drain.begin();
                drain.begin_at_once();
                assert_eq!(drain.stage(), DrainStage::Refusing);
                finish.send(()).expect("the work is waited for");
                drain.reached(DrainStage::Drained).await;
                drain.begin();
                assert_eq!(drain.stage().name(), "drained");
            };
            tokio::join!(run, watch);
            let (leaving, refusing) = (DrainStage::Leaving, DrainStage::Refusing);
            assert_eq!(
                *steps.borrow(),
                [("announce", leaving), ("refuse", leaving), ("work", refusing)],
                "requests are refused before the work is counted"
            );
        });
    }

    #[test]
    fn requests_are_accepted_during_the_delay_and_a_fault_ends_it() {
        run_test(async {
            let drain = Drain::new(LONG);
            let announced = RefCell::new(false);
            let run = drain.run(|| *announced.borrow_mut() = true, || (), async {});
            let watch = async {
                drain.begin();
                // Gives `run` several turns. It would refuse in its first one without the delay.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                assert_eq!((drain.stage(), *announced.borrow()), (DrainStage::Leaving, true));
                // A second signal asks for a later end and does not get it.
                drain.begin();
                drain.begin_at_once();
                drain.reached(DrainStage::Drained).await;
            };
            tokio::join!(run, watch);
        });
    }
}
