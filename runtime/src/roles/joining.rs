//! A process with an engine as a member of a fleet: it registers itself and dials the members that decode.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use actors::membership::{Member, Statement};
use actors::messages::PeersFound;
use actors::node::Node;
use connector::frame::Versions;
use tokio::sync::watch;

use super::SharedState;
use crate::config::{Config, Role};
use crate::membership::{self, EtcdSettings, Membership, Registered, Source};

/// Where this process finds members; `None` if the configuration lists them.
pub(crate) fn source(role: Role, config: &Config) -> Option<Source> {
    let fleet = &config.fleet;
    if fleet.etcd_endpoints.is_empty() {
        return fleet.dns.clone().map(|name| Source::Dns { name, is_http: role == Role::Proxy });
    }
    Some(Source::Etcd(EtcdSettings {
        endpoints: fleet.etcd_endpoints.clone(),
        cluster: fleet.cluster.clone(),
        user: fleet.etcd_user.clone().zip(fleet.etcd_password_file.clone()),
        ca_file: fleet.etcd_ca_file.clone(),
        certificate: fleet.etcd_cert_file.clone().zip(fleet.etcd_key_file.clone()),
    }))
}

/// Joins the fleet. `link` is the address of the link port. Returns the registration in etcd.
///
/// # Errors
/// As [`membership::join`].
pub(super) fn join(
    role: Role,
    config: &Config,
    node: &Node,
    link: Option<SocketAddr>,
    shared: &SharedState,
) -> anyhow::Result<Option<Registered>> {
    let source = source(role, config).filter(|_| role != Role::Local);
    // A process that dials no peers needs no members. In etcd it registers itself, and counts those that dial it.
    let Some(source) = source.filter(|source| role.dials_peers() || matches!(source, Source::Etcd(_))) else {
        return Ok(None);
    };
    let facts = &node.facts;
    let own = Member {
        name: format!("{:016x}", facts.incarnation.name()),
        http: facts.http,
        link: config.link.advertise.or(link),
        says: Some(Statement {
            role: role.name().to_owned(),
            prefills: facts.capabilities.prefill,
            decodes: facts.capabilities.decode,
            model: shared.model.name.clone(),
            fingerprint: facts.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
            protocol: Versions::OURS,
        }),
    };
    let Membership { members, registered } = membership::join(source, Some(&own), &shared.membership)?;
    actix::spawn(warn_of_many(own.clone(), members.clone(), config.link.sessions as usize));
    let is_registered = registered.as_ref().map(Registered::is_registered);
    if role.dials_peers() {
        dial(node, own, members, is_registered);
    }
    Ok(registered)
}

/// Logs one line each time that the fleet becomes too large for `link.sessions`, until the membership ends.
async fn warn_of_many(own: Member, mut members: membership::MembersWatch, allowed: usize) {
    let mut was_too_large = false;
    loop {
        let sessions = sessions(&own, &members.borrow_and_update(), is_of_machine);
        let is_too_large = sessions > allowed;
        if is_too_large && !was_too_large {
            tracing::warn!(
                sessions,
                link.sessions = allowed,
                "the fleet has more peers for this process than link.sessions allows; some stay without a session, so raise link.sessions"
            );
        }
        was_too_large = is_too_large;
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// Number of sessions that the process `own` and the members open with each other. A name in DNS has the address of this process too, which is no
/// peer. If the link port listens on all addresses, this process has each of the machine's addresses.
fn sessions(own: &Member, members: &[Member], is_of_machine: impl Fn(IpAddr) -> bool) -> usize {
    let is_own = |member: &Member| match (own.link, member.link) {
        (Some(own), Some(link)) if own.ip().is_unspecified() => {
            own.port() == link.port() && is_of_machine(link.ip())
        }
        (own, link) => own.is_some() && own == link,
    };
    members.iter().filter(|member| !is_own(member)).map(|member| member.sessions_with(own)).sum()
}

/// True if this machine has the address: only then a socket can be bound to it.
pub(crate) fn is_of_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Tells the peer link which members to dial, as long as this process is registered.
fn dial(
    node: &Node,
    own: Member,
    mut members: membership::MembersWatch,
    is_registered: Option<watch::Receiver<bool>>,
) {
    let Some(link) = node.peers_found() else { return };
    let (always, yes) = watch::channel(true);
    let mut is_registered = is_registered.unwrap_or(yes);
    actix::spawn(async move {
        let _always = always;
        loop {
            if *is_registered.borrow_and_update() {
                let found = members.borrow_and_update().clone();
                let dialled = found.iter().filter_map(|member| member.dialled_by(&own));
                let addresses = dialled.map(|address| address.to_string()).collect();
                link.do_send(PeersFound { addresses }.into());
            }
            let changed = tokio::select! {
                changed = members.changed() => changed,
                changed = is_registered.changed() => changed,
            };
            // Both tasks have ended: this process is leaving.
            if changed.is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_among_those_of_a_name_is_no_peer() {
        let own = |link: Option<&str>| Member {
            name: "own".into(),
            http: None,
            link: link.map(|link| link.parse().unwrap()),
            says: Some(Statement {
                role: "node".into(),
                prefills: true,
                decodes: link.is_some(),
                model: "m".into(),
                fingerprint: "ab".into(),
                protocol: Versions::OURS,
            }),
        };
        let members = ["10.0.0.1:55555", "10.0.0.2:55555", "10.0.0.3:55555"]
            .map(|link| Member::at(None, Some(link.parse().unwrap())));
        let is_of_machine = |address: IpAddr| address == IpAddr::from([10, 0, 0, 2]);
        let check = |link, expect| {
            assert_eq!(sessions(&own(link), &members, is_of_machine), expect, "{link:?}");
        };
        check(Some("10.0.0.1:55555"), 4);
        check(Some("0.0.0.0:55555"), 4);
        check(Some("[::]:55555"), 4);
        check(Some("0.0.0.0:55556"), 6);
        check(Some("10.0.0.2:55556"), 6);
        check(None, 3);
    }

    #[test]
    fn a_machine_has_its_loopback_address_and_no_reserved_one() {
        assert!(is_of_machine(IpAddr::from([127, 0, 0, 1])));
        assert!(!is_of_machine(IpAddr::from([240, 0, 0, 1])));
    }
}
