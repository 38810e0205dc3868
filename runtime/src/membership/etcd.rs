//! Follows the members of a fleet in an etcd, and registers this process there.
//!
//! The key of a member is `baton/v1/{cluster}/{incarnation}`. [`EtcdView`] and [`Registration`] decide what is asked when.

mod calls;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actors::membership::{
    EtcdView, Member, RANGE_EVERY, Registration, RegistrationEvent, RegistrationStep, ViewEvent, ViewStep,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout, timeout_at};

use super::gateway::{CallError, Gateway};
use super::{EtcdSettings, Outage, Publisher, json};
use calls::{Calls, WatchLines};

/// Maximum time for the removal of the own key.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Starts the tasks.
pub(super) fn join(
    settings: EtcdSettings,
    own: Option<&Member>,
    to: Publisher,
) -> anyhow::Result<Option<Registered>> {
    let gateway = Gateway::new(&settings)?;
    let calls = Rc::new(Calls::new(gateway, &settings.cluster));
    let outage = Outage::shown(&to.metrics.registration_fails);
    actix::spawn(follow(Rc::clone(&calls), to));
    Ok(own.map(|own| Registered::begin(calls, own, outage)))
}

/// Asks all endpoints at the same time.
pub(super) async fn look(
    settings: &EtcdSettings,
) -> anyhow::Result<Vec<(String, Result<Vec<Member>, String>)>> {
    let calls = &Calls::new(Gateway::new(settings)?, &settings.cluster);
    let each = settings.endpoints.iter().enumerate().map(async |(endpoint, url)| {
        let members = match calls.range(endpoint).await {
            Ok(ViewEvent::Ranged { entries, .. }) => {
                Ok(entries.into_iter().filter_map(|entry| entry.member.ok()).collect())
            }
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
        (url.clone(), members)
    });
    Ok(futures_util::future::join_all(each).await)
}

/// Publishes the members until there is no reader any more.
async fn follow(calls: Rc<Calls>, to: Publisher) {
    let mut outage = Outage::shown(&to.metrics.source_fails);
    let mut view = EtcdView::new(calls.endpoints());
    let mut apply = |view: &mut EtcdView, event: Result<ViewEvent, CallError>| -> bool {
        let event = event.unwrap_or_else(|error| {
            outage.failed("the members in etcd cannot be read; known members stay", &error.to_string());
            ViewEvent::Failed
        });
        if matches!(event, ViewEvent::Ranged { .. }) {
            outage.works("the members in etcd can be read again");
        }
        let changes = view.on(event);
        to.publish(&changes, view.members())
    };
    loop {
        match view.next() {
            ViewStep::Range { endpoint, after } => {
                sleep(after).await;
                let ranged = calls.range(endpoint).await;
                if !apply(&mut view, ranged) {
                    return;
                }
            }
            ViewStep::Watch { endpoint, from } => {
                let until = tokio::time::Instant::now() + RANGE_EVERY;
                let mut lines = match calls.watch(endpoint, from).await {
                    Ok(lines) => lines,
                    Err(error) => {
                        apply(&mut view, Err(error));
                        continue;
                    }
                };
                while matches!(view.next(), ViewStep::Watch { .. }) {
                    let line = timeout_at(until, WatchLines::next(&mut lines)).await;
                    if !apply(&mut view, line.unwrap_or(Ok(ViewEvent::WatchOver))) {
                        return;
                    }
                }
            }
        }
    }
}

/// This process in etcd.
pub struct Registered {
    calls: Rc<Calls>,
    state: Rc<RefCell<Registration>>,
    task: JoinHandle<()>,
    is_registered: watch::Receiver<bool>,
}

impl Registered {
    fn begin(calls: Rc<Calls>, own: &Member, outage: Outage) -> Self {
        let (to, is_registered) = watch::channel(false);
        let state = Rc::new(RefCell::new(Registration::new(calls.endpoints())));
        let (name, value) = (own.name.clone(), json::write(own));
        let task = actix::spawn(keep(Rc::clone(&calls), Rc::clone(&state), name, value, to, outage));
        Self { calls, state, task, is_registered }
    }

    /// Whether the own key is in etcd, as far as this process knows. A process without it takes no new peers.
    pub fn is_registered(&self) -> watch::Receiver<bool> {
        self.is_registered.clone()
    }

    /// Removes the own key. If etcd does not answer, the key stays until its lease expires.
    pub async fn leave(self) {
        self.task.abort();
        let Some(lease) = self.state.borrow().lease() else { return };
        let endpoint = self.state.borrow().endpoint();
        let each = LEAVE_WITHIN / self.calls.endpoints().max(1) as u32;
        let revoke = async {
            for next in 0..self.calls.endpoints() {
                let call = self.calls.revoke((endpoint + next) % self.calls.endpoints(), lease);
                if let Ok(Ok(()) | Err(CallError::LeaseGone)) = timeout(each, call).await {
                    return true;
                }
            }
            false
        };
        if timeout(LEAVE_WITHIN, revoke).await.unwrap_or(false) {
            tracing::info!("removed from etcd");
        } else {
            tracing::warn!("etcd does not answer; this process stays registered until its lease expires");
        }
    }
}

/// Keeps the own key in etcd.
async fn keep(
    calls: Rc<Calls>,
    state: Rc<RefCell<Registration>>,
    name: String,
    value: Vec<u8>,
    to: watch::Sender<bool>,
    mut outage: Outage,
) {
    loop {
        let next = state.borrow().next();
        let (RegistrationStep::Grant { after, .. }
        | RegistrationStep::Put { after, .. }
        | RegistrationStep::KeepAlive { after, .. }) = next;
        sleep(after).await;
        let sent = Instant::now();
        let answer = match next {
            RegistrationStep::Grant { endpoint, .. } => {
                calls.grant(endpoint).await.map(RegistrationEvent::Granted)
            }
            RegistrationStep::Put { endpoint, lease, .. } => {
                calls.put(endpoint, &name, &value, lease).await.map(|()| RegistrationEvent::Put)
            }
            RegistrationStep::KeepAlive { endpoint, lease, .. } => {
                calls.keep_alive(endpoint, lease).await.map(RegistrationEvent::KeptAlive)
            }
        };
        let event = match answer {
            Ok(event) => event,
            Err(CallError::LeaseGone) => {
                tracing::warn!("the lease in etcd is lost; registering again");
                RegistrationEvent::LeaseGone
            }
            Err(CallError::Other(error)) => {
                outage.failed("etcd does not renew the registration", &error);
                RegistrationEvent::Failed
            }
        };
        if !matches!(event, RegistrationEvent::Failed | RegistrationEvent::LeaseGone) {
            outage.works("etcd answers again");
        }
        state.borrow_mut().on(sent, event);
        let is_registered = state.borrow().is_registered(Instant::now());
        if to.send_if_modified(|before| std::mem::replace(before, is_registered) != is_registered) {
            tracing::info!(name, is_registered, "registration in etcd");
        }
    }
}
