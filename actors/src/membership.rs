//! The members of a fleet: who is there, as a registry says.
//!
//! Pure states, without clock and I/O. [`Members`] is the set of members. [`EtcdView`] keeps it equal to the keys of an etcd, and
//! [`Registration`] keeps the own key there. A list of addresses that DNS returns is the whole set each time ([`Members::resync`]).
//!
//! Membership only says which members exist. It is no proof of death: sessions and requests never end because of it. An outage of the registry
//! changes nothing: the set stays as it was.

mod registration;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use connector::frame::Versions;

pub use registration::{KEEP_ALIVE_EVERY, LEASE, Registration, RegistrationEvent, RegistrationStep};
pub use view::{EtcdView, KeyChange, RANGE_EVERY, ViewEvent, ViewStep};

/// Maximum number of members. Each is polled by every proxy and may be dialled by every node.
pub const MEMBERS_MAX: usize = 4096;

/// Pauses after failures in a row: the first one, and the longest. Each is twice as long as the one before.
const PAUSES: (std::time::Duration, std::time::Duration) =
    (std::time::Duration::from_millis(250), std::time::Duration::from_secs(4));

/// The pause after this many failures in a row.
fn pause_after(failures: u32) -> std::time::Duration {
    match failures {
        0 => std::time::Duration::ZERO,
        _ => (PAUSES.0 * 2_u32.pow((failures - 1).min(8))).min(PAUSES.1),
    }
}

/// One member of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: the name of its incarnation as 16 hexadecimal digits, or its address if the registry knows addresses only.
    pub name: String,
    /// Its HTTP port; `None` if it has none.
    pub http: Option<SocketAddr>,
    /// Its link port, if it accepts peers that prefill for it.
    pub link: Option<SocketAddr>,
    /// What it says about itself; `None` if the registry knows addresses only.
    pub says: Option<Statement>,
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The name of its role.
    pub role: String,
    /// It prefills for peers.
    pub prefills: bool,
    /// It decodes, and accepts peers that prefill for it.
    pub decodes: bool,
    /// The name of its model.
    pub model: String,
    /// SHA-256 of the model's weights, as hexadecimal digits.
    pub fingerprint: String,
    /// The versions of the link protocol that it supports.
    pub protocol: Versions,
}

impl Member {
    /// A member of which only an address is known.
    pub fn at(http: Option<SocketAddr>, link: Option<SocketAddr>) -> Self {
        let name = http.or(link).map(|address| address.to_string()).unwrap_or_default();
        Self { name, http, link, says: None }
    }

    /// The link port of this member, if the process `own` should dial it: the member decodes, is another process, and has the same weights and a
    /// common protocol version. A member of which only an address is known is dialled, and the handshake decides.
    pub fn dialled_by(&self, own: &Self) -> Option<SocketAddr> {
        let fits = match (&self.says, &own.says) {
            (Some(theirs), Some(ours)) => {
                let has_version = Versions::agree(ours.protocol, theirs.protocol).is_ok();
                theirs.decodes && theirs.fingerprint == ours.fingerprint && has_version
            }
            _ => true,
        };
        self.link.filter(|_| fits && self.name != own.name)
    }

    /// Number of sessions that this member and the process `own` open with each other: 0, 1 or 2. A member of which only an address is known counts
    /// if `own` dials it.
    pub fn sessions_with(&self, own: &Self) -> usize {
        let prefills = |member: &Self| member.says.as_ref().is_some_and(|says| says.prefills);
        let is_dialled = prefills(own) && self.dialled_by(own).is_some();
        let dials = prefills(self) && own.dialled_by(self).is_some();
        usize::from(is_dialled) + usize::from(dials)
    }
}

/// A change of the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A member is new, or its statement has changed.
    Joined(Member),
    /// The member of this name has left. Its sessions and requests continue.
    Left(String),
    /// The history is unknown: these are all members now.
    Resync(Vec<Member>),
    /// The entry of this name is left out. Each key is reported once while it stays wrong.
    Skipped(String, EntryError),
}

/// Why an entry of a registry is no member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The key does not end with the name of an incarnation.
    #[error("the key is no incarnation")]
    Key,
    /// The value is not the JSON of a member, or is too large.
    #[error("{0}")]
    Value(String),
    /// The value names another incarnation than the key.
    #[error("the value is of another incarnation")]
    Incarnation,
    /// An address of the member cannot be connected to.
    #[error("{0} is no address that can be connected to")]
    Address(SocketAddr),
    /// There are too many members.
    #[error("the fleet has {MEMBERS_MAX} members, which is the limit")]
    Full,
}

impl EntryError {
    /// The values of [`kind`](Self::kind).
    pub const KINDS: [&'static str; 5] = ["key", "value", "incarnation", "address", "full"];

    /// The value of the label `reason` in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value(_) => "value",
            Self::Incarnation => "incarnation",
            Self::Address(_) => "address",
            Self::Full => "full",
        }
    }
}

/// An entry of a registry: its name, and the member or the reason why it is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last part of the key.
    pub name: String,
    /// The value.
    pub member: Result<Member, EntryError>,
}

/// The set of members.
#[derive(Debug, Default)]
pub struct Members {
    members: BTreeMap<String, Member>,
    /// The entries that are left out, with [`EntryError::kind`].
    skipped: BTreeMap<String, &'static str>,
}

impl Members {
    /// All members, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// [`EntryError::kind`] of each entry that is left out. A member whose entry became wrong is among them.
    pub fn skipped(&self) -> impl Iterator<Item = &'static str> {
        self.skipped.values().copied()
    }

    /// These are all entries. Returns one change for each member that differs.
    pub fn resync(&mut self, entries: Vec<Entry>) -> Vec<Change> {
        let names: BTreeSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
        let known = self.members.keys().chain(self.skipped.keys());
        let gone: Vec<String> = known.filter(|name| !names.contains(*name)).cloned().collect();
        let mut changes: Vec<Change> = gone.iter().filter_map(|name| self.remove(name)).collect();
        changes.extend(entries.into_iter().filter_map(|entry| self.put(entry)));
        changes
    }

    /// An entry is new or has changed.
    pub fn put(&mut self, entry: Entry) -> Option<Change> {
        let Entry { name, member } = entry;
        let is_full = self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&name);
        let member = member.and_then(|member| if is_full { Err(EntryError::Full) } else { Ok(member) });
        match member {
            Ok(member) => {
                self.skipped.remove(&name);
                let before = self.members.insert(name, member.clone());
                (before.as_ref() != Some(&member)).then_some(Change::Joined(member))
            }
            // A member stays as it was: its entry may be damaged, but it is there.
            Err(error) => {
                let is_known = self.skipped.contains_key(&name);
                if is_known || self.skipped.len() < MEMBERS_MAX {
                    self.skipped.insert(name.clone(), error.kind());
                    return (!is_known).then_some(Change::Skipped(name, error));
                }
                None
            }
        }
    }

    /// An entry is gone.
    pub fn remove(&mut self, name: &str) -> Option<Change> {
        self.skipped.remove(name);
        self.members.remove(name).map(|_| Change::Left(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
