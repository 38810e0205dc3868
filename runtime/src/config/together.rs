//! Checks keys against each other.

use std::net::IpAddr;

use super::layers::Layers;
use super::{Config, ConfigErrors, FleetSection, IDLE_MIN, LocalPrefill, Problem, Role};

impl FleetSection {
    /// The key that says where members are found while the process runs; `None` if no key does.
    pub(crate) fn source(&self) -> Option<&'static str> {
        if !self.etcd_endpoints.is_empty() {
            return Some("fleet.etcd_endpoints");
        }
        self.dns.is_some().then_some("fleet.dns")
    }
}

impl Config {
    /// Checks keys against each other: two ports of one process must differ, a process that dials needs ports to connect to, and a local
    /// process needs the frontend.
    pub(super) fn check_together(&self, role: Role, layers: &Layers) -> Result<(), ConfigErrors> {
        let mut ports = Vec::new();
        if role.accepts_peers() {
            ports.push(("http.port", &self.http.host, self.http.port));
            ports.push(("link.port", &self.link.host, self.link.port));
        }
        if role != Role::Sender && self.frontend.enabled {
            ports.push(("frontend.port", &self.frontend.host, self.frontend.port));
        }
        if self.kv_events.enabled && role != Role::Proxy {
            ports.push(("kv_events.port", &self.kv_events.host, self.kv_events.port));
            ports.push(("kv_events.replay_port", &self.kv_events.host, self.kv_events.replay_port));
        }
        let mut problems = vec![];
        for (n, (key, host, port)) in ports.iter().enumerate() {
            let same = |other: &&(&str, &String, u16)| *port != 0 && other.1 == *host && other.2 == *port;
            if let Some((other, ..)) = ports[..n].iter().find(same) {
                problems.push(
                    layers.problem(key, format!("must differ from {other}; both are {port} on {host}")),
                );
            }
        }
        if self.link.idle < IDLE_MIN {
            let reason = format!(
                "must be at least {} s, so that no session ends during a hand-over",
                IDLE_MIN.as_secs()
            );
            problems.push(layers.problem("link.idle", reason));
        }
        if role == Role::Local && self.frontend.local == LocalPrefill::Never {
            let reason =
                "must not be never for role local, because no other process prefills for it".to_owned();
            problems.push(layers.problem("frontend.local", reason));
        }
        if role == Role::Local && !self.frontend.enabled {
            let reason = "must be true for role local, because it has no other port".to_owned();
            problems.push(layers.problem("frontend.enabled", reason));
        }
        if role == Role::Sender && self.link.peers.iter().any(|peer| peer.ends_with(":0")) {
            let reason = "must name the port of a receiver, not 0; set link.port or link.peers".to_owned();
            problems.push(layers.problem("link.port", reason));
        }
        problems.extend(self.nameless(role).map(|reason| layers.problem("kv_events.pod", reason)));
        self.check_tls(role, layers, &mut problems);
        self.check_fleet(role, layers, &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(ConfigErrors(problems)) }
    }

    /// Why `kv_events.pod` must be set; `None` if it need not be.
    fn nameless(&self, role: Role) -> Option<String> {
        let (key, host) = match role {
            Role::Local => ("frontend.host", &self.frontend.host),
            _ => ("http.host", &self.http.host),
        };
        let is_named = self.kv_events.pod.is_some() || self.http.advertise.is_some();
        let is_any = host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        (self.kv_events.enabled && role != Role::Proxy && is_any && !is_named).then(|| {
            format!("must name this process, because {key} is {host}; set it to the address that routers use")
        })
    }

    /// Checks that the files for TLS are complete.
    fn check_tls(&self, role: Role, layers: &Layers, problems: &mut Vec<Problem>) {
        let (tls, link, fleet) = (&self.tls, &self.link, &self.fleet);
        let mut groups =
            vec![vec![("tls.cert_file", tls.cert_file.is_some()), ("tls.key_file", tls.key_file.is_some())]];
        if role.accepts_peers() || role.dials_peers() {
            groups.push(vec![
                ("link.tls_cert_file", link.tls_cert_file.is_some()),
                ("link.tls_key_file", link.tls_key_file.is_some()),
                ("link.tls_ca_file", link.tls_ca_file.is_some()),
            ]);
            if !link.tls_allowed_names.is_empty() {
                groups.push(vec![
                    ("link.tls_allowed_names", true),
                    ("link.tls_cert_file", link.tls_cert_file.is_some()),
                ]);
            }
        }
        if role == Role::Proxy && fleet.nodes_tls_name.is_some() {
            groups.push(vec![
                ("fleet.nodes_tls_name", true),
                ("fleet.nodes_ca_file", fleet.nodes_ca_file.is_some()),
            ]);
        }
        for group in groups {
            let given = group.iter().find(|(_, is_set)| *is_set);
            let missing: Vec<&str> =
                group.iter().filter(|(_, is_set)| !is_set).map(|(key, _)| *key).collect();
            if let (Some((given, _)), false) = (given, missing.is_empty()) {
                let reason = format!("needs {}; set all of them or none", missing.join(" and "));
                problems.push(layers.problem(given, reason));
            }
        }
    }

    /// Checks the keys that say who the members of the fleet are.
    fn check_fleet(&self, role: Role, layers: &Layers, problems: &mut Vec<Problem>) {
        let fleet = &self.fleet;
        let mut problem = |key: &str, reason: String| problems.push(layers.problem(key, reason));
        // The list of a role that needs no other members is not looked at.
        let (list, has_list) = match role {
            Role::Proxy => ("fleet.nodes", !fleet.nodes.is_empty()),
            Role::Sender | Role::Node => ("link.peers", !self.link.peers.is_empty()),
            Role::Receiver | Role::Local => ("", false),
        };
        if let (true, Some(source)) = (has_list, fleet.source()) {
            problem(source, format!("must not be set together with {list}; members come from one source"));
        }
        if role == Role::Proxy && !has_list && fleet.source().is_none() {
            let reason = "must name the HTTP port of at least one node; set fleet.nodes to a list of host:port, or set \
                          fleet.etcd_endpoints or fleet.dns";
            problem("fleet.nodes", reason.to_owned());
        }
        if fleet.etcd_endpoints.is_empty() || role == Role::Local {
            return;
        }
        if fleet.dns.is_some() {
            let reason = "must not be set together with fleet.etcd_endpoints; members come from one source";
            problem("fleet.dns", reason.to_owned());
        }
        let pairs = [
            (
                "fleet.etcd_user",
                fleet.etcd_user.is_some(),
                "fleet.etcd_password_file",
                fleet.etcd_password_file.is_some(),
            ),
            (
                "fleet.etcd_cert_file",
                fleet.etcd_cert_file.is_some(),
                "fleet.etcd_key_file",
                fleet.etcd_key_file.is_some(),
            ),
        ];
        for (first, has_first, second, has_second) in pairs {
            if has_first != has_second {
                let (given, missing) = if has_first { (first, second) } else { (second, first) };
                problem(given, format!("needs {missing}; set both or neither"));
            }
        }
        let is_https = |endpoint: &String| endpoint.starts_with("https://");
        let files =
            [("fleet.etcd_ca_file", &fleet.etcd_ca_file), ("fleet.etcd_cert_file", &fleet.etcd_cert_file)];
        for (key, _) in files.into_iter().filter(|(_, file)| file.is_some()) {
            if let Some(plain) = fleet.etcd_endpoints.iter().find(|endpoint| !is_https(endpoint)) {
                problem(key, format!("needs https in every endpoint, but {plain} is without TLS"));
            }
        }
        if fleet.etcd_ca_file.is_none() && fleet.etcd_endpoints.iter().any(is_https) {
            let reason = "must be set for an endpoint with https, because no other certificates are trusted";
            problem("fleet.etcd_ca_file", reason.to_owned());
        }
        let is_elsewhere = !fleet.etcd_endpoints.iter().all(|endpoint| is_loopback(host_of(endpoint)));
        let is_unreachable = |host: &str| {
            let is_unspecified = host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
            is_unspecified || (is_elsewhere && is_loopback(host))
        };
        let ports = [
            ("http", role != Role::Proxy, &self.http.host, self.http.advertise.is_some()),
            ("link", role.accepts_peers(), &self.link.host, self.link.advertise.is_some()),
        ];
        for (section, is_open, host, is_advertised) in ports {
            if is_open && is_unreachable(host) && !is_advertised {
                let reason = format!(
                    "must be set to an address that other members can connect to, because {section}.host is {host}"
                );
                problem(&format!("{section}.advertise"), reason);
            }
        }
    }
}

/// The host in a URL such as `http://host:port`.
fn host_of(url: &str) -> &str {
    let address = url.split_once("://").map_or(url, |(_, address)| address);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether only processes of this machine reach the host.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
