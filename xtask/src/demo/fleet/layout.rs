//! The processes of the fleet, their ports and their arguments.

use crate::demo::options;

use anyhow::Result;

/// A process with an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) role: &'static str,
    pub(super) http: u16,
    /// The link port; `None` for a sender, which does not decode for peers.
    pub(super) link: Option<u16>,
}

/// The processes of the fleet on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) members: [Member; 6],
    pub(super) proxy: u16,
    /// Client port and peer port of etcd.
    pub(super) etcd: [u16; 2],
}

impl Layout {
    /// The ports start at `base`, or are the default ports and the next ones. The ports of etcd differ from its default ports, because an etcd may
    /// be running already.
    pub(super) fn new(base: Option<u16>) -> Self {
        let (links, decoders, senders, proxy, etcd) = match base {
            Some(base) => (base, base + 4, base + 8, base + 10, base + 11),
            None => (55555, 8200, 8100, 9000, 12379),
        };
        let decoder = |name, role, at| Member { name, role, http: decoders + at, link: Some(links + at) };
        let sender = |name, at| Member { name, role: "sender", http: senders + at, link: None };
        Self {
            members: [
                decoder("receiver-1", "receiver", 0),
                decoder("receiver-2", "receiver", 1),
                sender("sender-1", 0),
                sender("sender-2", 1),
                decoder("node-1", "node", 2),
                decoder("node-2", "node", 3),
            ],
            proxy,
            etcd: [etcd, etcd + 1],
        }
    }

    /// Fails if a port is in use. Called before the build, which takes minutes.
    pub(super) fn require_free(&self, has_etcd: bool) -> Result<()> {
        let mut ports = vec![(self.proxy, "proxy")];
        for member in &self.members {
            ports.push((member.http, member.name));
            ports.extend(member.link.map(|link| (link, member.name)));
        }
        if has_etcd {
            ports.extend(self.etcd.map(|port| (port, "etcd")));
        }
        options::require_free(&ports)
    }

    pub(super) fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd[0])
    }

    /// The number of members that decode, which the proxy reports as `nodes_ready`.
    pub(super) fn decoders(&self) -> u64 {
        self.members.iter().filter(|member| member.link.is_some()).count() as u64
    }

    /// The number of sessions: each process that prefills has one with each other process that decodes.
    pub(super) fn sessions(&self) -> u64 {
        let of = |prefiller: &Member| self.decoders() - u64::from(prefiller.link.is_some());
        self.members.iter().filter(|member| member.prefills()).map(of).sum()
    }

    /// The arguments of a member.
    pub(super) fn of_member(&self, member: &Member, has_etcd: bool) -> Vec<String> {
        let mut keys = vec![format!("http.port={}", member.http)];
        if let Some(link) = member.link {
            keys.extend([format!("link.port={link}"), "frontend.enabled=false".into()]);
        }
        if has_etcd {
            keys.push(format!("fleet.etcd_endpoints={}", self.etcd_url()));
        } else if member.prefills() {
            let links = self.members.iter().filter_map(|member| member.link);
            keys.push(format!("link.peers={}", addresses(links)));
        }
        arguments(member.role, keys)
    }

    /// The arguments of the proxy.
    pub(super) fn of_proxy(&self, has_etcd: bool) -> Vec<String> {
        let members = match has_etcd {
            true => format!("fleet.etcd_endpoints={}", self.etcd_url()),
            false => format!("fleet.nodes={}", addresses(self.members.iter().map(|member| member.http))),
        };
        arguments("proxy", vec![format!("frontend.port={}", self.proxy), members])
    }
}

impl Member {
    /// Whether it prefills prompts for peers.
    fn prefills(&self) -> bool {
        self.role != "receiver"
    }
}

fn arguments(role: &str, keys: Vec<String>) -> Vec<String> {
    let set = |key| format!("--set={key}");
    ["--role".into(), role.into()].into_iter().chain(keys.into_iter().map(set)).collect()
}

fn addresses(ports: impl Iterator<Item = u16>) -> String {
    ports.map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ports(layout: &Layout) -> Vec<u16> {
        let members = layout.members.iter();
        let mut ports: Vec<u16> =
            members.flat_map(|member| [Some(member.http), member.link]).flatten().collect();
        ports.extend([layout.proxy].into_iter().chain(layout.etcd));
        ports
    }

    #[test]
    fn ports_are_the_defaults_or_start_at_the_base() {
        let usual = [8100, 8101, 8200, 8201, 8202, 8203, 9000, 12379, 12380, 55555, 55556, 55557, 55558];
        let sorted = |layout: &Layout| ports(layout).into_iter().collect::<BTreeSet<u16>>();
        assert_eq!(sorted(&Layout::new(None)), BTreeSet::from(usual));
        let based = Layout::new(Some(7000));
        assert_eq!(sorted(&based), (7000..=7012).collect());
        assert_eq!(ports(&based).len(), 13);
        // The highest base that the command line accepts.
        assert_eq!(sorted(&Layout::new(Some(65523))).last(), Some(&65535));
    }

    #[test]
    fn members_get_a_list_or_an_etcd() {
        let layout = Layout::new(Some(7000));
        let [receiver, _, sender, _, node, _] = &layout.members;
        assert_eq!(
            layout.of_member(receiver, false),
            [
                "--role",
                "receiver",
                "--set=http.port=7004",
                "--set=link.port=7000",
                "--set=frontend.enabled=false"
            ]
        );
        let peers = "--set=link.peers=127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003";
        assert_eq!(layout.of_member(sender, false), ["--role", "sender", "--set=http.port=7008", peers]);
        assert!(layout.of_member(node, false).contains(&peers.to_owned()));
        assert!(
            layout.of_proxy(false)[3]
                .starts_with("--set=fleet.nodes=127.0.0.1:7004,127.0.0.1:7005,127.0.0.1:7008,")
        );
        let etcd = "--set=fleet.etcd_endpoints=http://127.0.0.1:7011".to_owned();
        for arguments in [layout.of_member(sender, true), layout.of_member(node, true), layout.of_proxy(true)]
        {
            assert_eq!(arguments.last(), Some(&etcd));
            assert!(
                !arguments
                    .iter()
                    .any(|argument| argument.contains("peers") || argument.contains("fleet.nodes"))
            );
        }
    }

    #[test]
    fn each_prefiller_has_a_session_with_each_other_decoder() {
        let layout = Layout::new(None);
        // Two senders with four processes, and two nodes with three.
        assert_eq!((layout.decoders(), layout.sessions()), (4, 14));
    }
}
