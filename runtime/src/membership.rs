//! The members of a fleet: connects the pure states of [`actors::membership`] with etcd and DNS.
//!
//! [`join`] starts tasks on the current actix arbiter. They publish the members as a whole each time that something changes, and keep this process
//! registered in etcd. They wait for etcd and DNS, and no request waits for them.

mod dns;
mod etcd;
mod gateway;
mod json;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;

use actors::membership::{Change, Member};
use tokio::sync::watch;

pub use etcd::Registered;

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

/// Follows the members of a fleet, and registers this process as `own` if the source is an etcd.
///
/// # Errors
/// A file of the settings cannot be read.
pub fn join(source: Source, own: Option<&Member>) -> anyhow::Result<Membership> {
    let (publish, members) = watch::channel(Arc::from([]));
    let mut registered = None;
    match source {
        Source::Etcd(settings) => registered = etcd::join(settings, own, publish)?,
        Source::Dns { name, is_http } => {
            let resolve = move || dns::addresses(name.clone());
            actix::spawn(dns::follow(resolve, dns::RESOLVE_EVERY, is_http, publish));
        }
    }
    Ok(Membership { members, registered })
}

/// Logs changes and publishes the members. Returns false once there is no reader any more.
fn publish<'a>(
    to: &watch::Sender<Arc<[Member]>>,
    changes: &[Change],
    members: impl Iterator<Item = &'a Member>,
) -> bool {
    let mut has_changed = false;
    for change in changes {
        has_changed |= !matches!(change, Change::Skipped(_));
        match change {
            Change::Joined(member) => {
                tracing::info!(member = member.name, http = ?member.http, link = ?member.link, "member joined");
            }
            Change::Left(member) => tracing::info!(member, "member left"),
            Change::Resync(all) => tracing::info!(members = all.len(), "members read"),
            Change::Skipped(entry) => tracing::warn!(entry, "an entry of the fleet is skipped"),
        }
    }
    if has_changed {
        to.send_replace(members.cloned().collect());
    }
    !to.is_closed()
}

/// The state of the connection to a registry, for the log: one line when it fails, and one when it works again.
#[derive(Default)]
struct Outage {
    is_failing: bool,
}

impl Outage {
    fn failed(&mut self, what: &str, error: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(error, "{what}; known members stay, and it is tried again");
        }
    }

    fn works(&mut self, what: &str) {
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("{what}");
        }
    }
}
