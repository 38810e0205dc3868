//! The members of a fleet: connects the pure states of [`actors::membership`] with etcd and DNS.
//!
//! [`join`] starts tasks on the current actix arbiter. They publish the members as a whole each time that something changes, and keep this process
//! registered in etcd. They wait for etcd and DNS, and no request waits for them.

mod dns;
mod etcd;
mod gateway;
mod json;
mod metrics;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actors::membership::{Change, Member, Members};
use tokio::sync::watch;

pub use etcd::Registered;
pub use metrics::MembershipMetrics;

/// Where the members of a fleet are found.
#[derive(Clone, Debug)]
pub enum Source {
    /// In an etcd.
    Etcd(EtcdSettings),
    /// At the addresses of a name, with a port: `host:port`.
    Dns {
        /// The name.
        name: String,
        /// The port is the HTTP port of the members, and not their link port.
        is_http: bool,
    },
}

/// How an etcd is reached, and the fleet in it.
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// URLs without a path, at least one.
    pub endpoints: Vec<String>,
    /// The name of the fleet.
    pub cluster: String,
    /// A user name, and the file with its password.
    pub user: Option<(String, PathBuf)>,
    /// The certificates that sign those of etcd.
    pub ca_file: Option<PathBuf>,
    /// The certificate that this process shows to etcd, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// All members; replaced as a whole.
pub type MembersWatch = watch::Receiver<Arc<[Member]>>;

/// The place of this process in a fleet.
pub struct Membership {
    /// The members, this process included.
    pub members: MembersWatch,
    /// This process in etcd.
    pub registered: Option<Registered>,
}

/// Follows the members of a fleet, and registers this process as `own` if the source is an etcd. `metrics` counts the members from now on.
///
/// # Errors
/// A file of the settings cannot be read.
pub fn join(
    source: Source,
    own: Option<&Member>,
    metrics: &Arc<MembershipMetrics>,
) -> anyhow::Result<Membership> {
    let (members, found) = watch::channel(Arc::from([]));
    let publisher = Publisher { members, metrics: Arc::clone(metrics) };
    let mut registered = None;
    match source {
        Source::Etcd(settings) => registered = etcd::join(settings, own, publisher)?,
        Source::Dns { name, is_http } => {
            let resolve = move || dns::addresses(name.clone());
            actix::spawn(dns::follow(resolve, dns::RESOLVE_EVERY, is_http, publisher));
        }
    }
    Ok(Membership { members: found, registered })
}

/// The members that each endpoint of an etcd knows now, or why it does not answer, with the URL of the endpoint. Changes nothing there.
///
/// # Errors
/// A file of the settings cannot be read.
pub async fn look(settings: &EtcdSettings) -> anyhow::Result<Vec<(String, Result<Vec<Member>, String>)>> {
    etcd::look(settings).await
}

/// Tells the rest of the process about the members.
struct Publisher {
    members: watch::Sender<Arc<[Member]>>,
    metrics: Arc<MembershipMetrics>,
}

impl Publisher {
    /// Logs changes and publishes the members. Returns false once there is no reader any more.
    fn publish(&self, changes: &[Change], members: &Members) -> bool {
        let mut has_changed = false;
        for change in changes {
            has_changed |= !matches!(change, Change::Skipped(..));
            match change {
                Change::Joined(member) => {
                    tracing::info!(member = member.name, http = ?member.http, link = ?member.link, "member joined");
                }
                Change::Left(member) => tracing::info!(member, "member left"),
                Change::Resync(all) => tracing::info!(members = all.len(), "members read"),
                Change::Skipped(name, error) => {
                    tracing::warn!(entry = format!("{name}: {error}"), "an entry of the fleet is skipped");
                }
            }
        }
        self.metrics.set(members);
        if has_changed {
            self.members.send_replace(members.all().cloned().collect());
        }
        !self.members.is_closed()
    }
}

/// A repeated operation, for the log: one line when it fails, and one when it works again.
#[derive(Default)]
struct Outage {
    is_failing: bool,
    /// 1 while the operation fails.
    gauge: Option<Arc<AtomicU64>>,
}

impl Outage {
    /// An operation that a metric shows.
    fn shown(gauge: &Arc<AtomicU64>) -> Self {
        Self { is_failing: false, gauge: Some(Arc::clone(gauge)) }
    }

    fn failed(&mut self, what: &str, error: &str) {
        self.show(true);
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(error, "{what}, and it is tried again");
        }
    }

    fn works(&mut self, what: &str) {
        self.show(false);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("{what}");
        }
    }

    fn show(&self, is_failing: bool) {
        if let Some(gauge) = &self.gauge {
            gauge.store(u64::from(is_failing), Ordering::Relaxed);
        }
    }
}
