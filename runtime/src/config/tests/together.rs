//! Keys that are checked against each other.

use super::*;

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let check = |role, flags: &[Flag], expect: &str| {
        let errors = Config::load(role, None, flags, surroundings(&[])).unwrap_err();
        assert_eq!(errors.to_string(), expect);
    };
    check(
        Role::Local,
        &[set("tls.key_file", "/k")],
        "--set tls.key_file: tls.key_file needs tls.cert_file; set all of them or none",
    );
    check(
        Role::Node,
        &[set("link.tls_ca_file", "/a")],
        "--set link.tls_ca_file: link.tls_ca_file needs link.tls_cert_file and link.tls_key_file; set all of them or none",
    );
    check(
        Role::Sender,
        &[set("link.tls_allowed_names", "a")],
        "--set link.tls_allowed_names: link.tls_allowed_names needs link.tls_cert_file; set all of them or none",
    );
    check(
        Role::Proxy,
        &[set("fleet.nodes", "a:1"), set("fleet.nodes_tls_name", "a")],
        "--set fleet.nodes_tls_name: fleet.nodes_tls_name needs fleet.nodes_ca_file; set all of them or none",
    );
    check(
        Role::Receiver,
        &[set("frontend.port", "8200")],
        "--set frontend.port: frontend.port must differ from http.port; both are 8200 on 127.0.0.1",
    );
    check(
        Role::Node,
        &[set("link.port", "8200")],
        "--set link.port: link.port must differ from http.port; both are 8200 on 127.0.0.1",
    );
    check(
        Role::Sender,
        &[set("link.port", "0")],
        "--set link.port: link.port must name the port of a receiver, not 0; set link.port or link.peers",
    );
    check(
        Role::Local,
        &[set("frontend.enabled", "false")],
        "--set frontend.enabled: frontend.enabled must be true for role local, because it has no other port",
    );
    check(
        Role::Proxy,
        &[],
        "default: fleet.nodes must name the HTTP port of at least one node; set fleet.nodes to a list of host:port, or set fleet.etcd_endpoints or \
         fleet.dns",
    );
    check(
        Role::Node,
        &[set("kv_events.enabled", "true"), set("kv_events.port", "9000")],
        "--set kv_events.port: kv_events.port must differ from frontend.port; both are 9000 on 127.0.0.1",
    );
    let public = [set("kv_events.enabled", "true"), set("http.host", "0.0.0.0")];
    check(
        Role::Sender,
        &public,
        "default: kv_events.pod must name this process, because http.host is 0.0.0.0; set it to the address that routers use",
    );
    for name in [set("kv_events.pod", "a"), set("http.advertise", "10.0.0.1:80")] {
        let named = [&public[..], &[name]].concat();
        assert!(Config::load(Role::Sender, None, &named, surroundings(&[])).is_ok());
    }
    let zeros = [set("frontend.port", "0"), set("http.port", "0"), set("link.port", "0")];
    assert!(Config::load(Role::Receiver, None, &zeros, surroundings(&[])).is_ok());
}

#[test]
fn the_members_of_a_fleet_come_from_one_source() {
    let check = |role, flags: &[(&str, &str)], expect: &str| {
        let flags: Vec<Flag> = flags.iter().map(|(key, value)| set(key, value)).collect();
        let loaded = Config::load(role, None, &flags, surroundings(&[]));
        let text = loaded.map_or_else(|errors| errors.to_string(), |_| "loaded".to_owned());
        assert!(text.contains(expect), "{text}");
    };
    let etcd = ("fleet.etcd_endpoints", "localhost:2379");
    let elsewhere = ("fleet.etcd_endpoints", "a:2379");
    for role in [Role::Proxy, Role::Node, Role::Sender, Role::Receiver] {
        check(role, &[etcd], "loaded");
        check(
            role,
            &[etcd, ("fleet.dns", "b:1")],
            "fleet.dns must not be set together with fleet.etcd_endpoints",
        );
        check(role, &[etcd, ("fleet.etcd_user", "u")], "fleet.etcd_user needs fleet.etcd_password_file");
        check(role, &[etcd, ("fleet.etcd_key_file", "k")], "fleet.etcd_key_file needs fleet.etcd_cert_file");
        check(role, &[("fleet.etcd_endpoints", "https://a:2379")], "fleet.etcd_ca_file must be set");
        check(
            role,
            &[("fleet.etcd_endpoints", "https://a:1,b:2"), ("fleet.etcd_ca_file", "c")],
            "fleet.etcd_ca_file needs https in every endpoint, but http://b:2 is without TLS",
        );
    }
    check(Role::Node, &[etcd, ("link.peers", "b:1")], "must not be set together with link.peers");
    check(
        Role::Sender,
        &[("fleet.dns", "a:1"), ("link.peers", "b:1")],
        "must not be set together with link.peers",
    );
    check(Role::Proxy, &[etcd, ("fleet.nodes", "b:1")], "must not be set together with fleet.nodes");
    check(Role::Receiver, &[etcd, ("link.peers", "b:1")], "loaded");
    check(Role::Node, &[etcd, ("fleet.nodes", "b:1")], "loaded");
    for (host, advertise) in [("http.host", "http.advertise"), ("link.host", "link.advertise")] {
        let expect = format!("{advertise} must be set to an address that other members can connect to");
        check(Role::Node, &[etcd, (host, "0.0.0.0")], &expect);
        check(Role::Node, &[etcd, (host, "0.0.0.0"), (advertise, "10.0.0.1:7")], "loaded");
        check(Role::Node, &[(host, "0.0.0.0")], "loaded");
        // Members on other machines cannot connect to the default, 127.0.0.1.
        check(Role::Node, &[elsewhere], &expect);
    }
    let sender = Config::load(Role::Sender, None, &[set("fleet.dns", "a:1")], surroundings(&[])).unwrap();
    assert!(sender.link.peers.is_empty(), "a sender with another source dials no default address");
}
