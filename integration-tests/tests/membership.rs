//! Nodes and a proxy that find each other in an etcd, and what an outage of etcd does.

#[path = "membership/etcd.rs"]
mod etcd;

use anyhow::{Context, Result, ensure};
use connector::frame::Versions;
use etcd::{Certificates, Etcd};
use integration_tests::client::{complete, get, metrics};
use integration_tests::process::{Event, Process, start_member};
use serde_json::{Value, json};

/// A prompt of token ids that shares no page with a prompt of another number.
fn prompt(number: u32) -> Value {
    json!((0..96).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<u32>>())
}

/// The value of a member without a link port.
fn member(incarnation: &str, http: &str) -> String {
    let member = json!({
        "incarnation": incarnation, "role": "receiver", "prefills": false, "decodes": true, "http": http, "link": null,
        "model": "m", "fingerprint": "00", "protocol": [1, 1],
    });
    member.to_string()
}

fn opened(node: &Process) -> Result<u64> {
    metrics(&node.address("http.port")?)?.get("baton_sessions_opened_total")
}

/// Asks until a request is prefilled by another process than the one that decodes it.
fn is_handed_over(address: &str, number: u32) -> Result<bool> {
    let timings = complete(address, &prompt(number), 4)?.timings;
    Ok(timings["prefill_pid"] != timings["decode_pid"])
}

fn nodes_ready(proxy: &str) -> Result<u64> {
    get(proxy, "/health")?.1["nodes_ready"].as_u64().context("no nodes_ready")
}

fn nodes(proxy: &str) -> Result<u64> {
    get(proxy, "/health")?.1["nodes"].as_u64().context("no nodes")
}

#[test]
fn members_find_each_other_and_an_outage_of_etcd_costs_nothing() -> Result<()> {
    let Some(mut etcd) = Etcd::start()? else { return Ok(()) };
    let source = format!("fleet.etcd_endpoints={}", etcd.url());
    let sets = [&*source, "fleet.cluster=blue"];
    let mut first = start_member("node", &sets)?;
    let second = start_member("node", &sets)?;
    let proxy = start_member("proxy", &sets)?;
    let address = proxy.address("frontend.port")?;
    proxy.until("the proxy has found both nodes", || Ok(nodes_ready(&address)? == 2))?;
    // One session in each direction.
    [&first, &second].into_iter().try_for_each(|node| node.wait_peers(2))?;
    let frontends = [first.address("frontend.port")?, second.address("frontend.port")?];
    for frontend in &frontends {
        first.until("a prompt is handed over", || is_handed_over(frontend, 1))?;
    }
    let expect = complete(&address, &prompt(2), 4)?.ids;
    assert_eq!(etcd.keys("baton/v1/blue/")?.len(), 2);
    let before = [opened(&first)?, opened(&second)?];
    let lasts = |what: &str| -> Result<()> {
        let lost = [opened(&first)?, opened(&second)?] != before;
        ensure!(!lost, "{what}: sessions began again:\n{}\n{}", first.log(), second.log());
        [&first, &second].into_iter().try_for_each(|node| node.wait_peers(2))?;
        ensure!(nodes_ready(&address)? == 2, "{what}: {}", proxy.log());
        ensure!(complete(&address, &prompt(2), 4)?.ids == expect, "{what}");
        ensure!(is_handed_over(&frontends[0], 3)?, "{what}: the prompt was not handed over");
        Ok(())
    };

    // etcd is killed. Requests go on, also after the leases would have expired.
    etcd.kill()?;
    first.wait_event(Event::RegistrationFails, &[])?;
    first.wait_event(Event::Registration, &["is_registered=false"])?;
    lasts("without etcd")?;

    // It comes back empty: the nodes register again, and nothing else happens.
    etcd.restart_empty()?;
    etcd.until_keys("baton/v1/blue/", 2)?;
    lasts("with an empty etcd")?;

    // A compaction during an outage.
    etcd.kill()?;
    etcd.restart()?;
    etcd.compact()?;
    etcd.until_keys("baton/v1/blue/", 2)?;
    lasts("after a compaction")?;

    // A node that ends removes itself before it refuses requests, and the proxy forgets it once it does not answer.
    first.signal("-TERM")?;
    first.wait_event(Event::Deregistered, &[])?;
    etcd.until_keys("baton/v1/blue/", 1)?;
    assert_eq!(first.wait()?.code(), Some(0), "{}", first.log());
    proxy.until("the proxy has forgotten the node", || Ok(nodes(&address)? == 1))?;
    assert_eq!(complete(&address, &prompt(2), 4)?.ids, expect);
    Ok(())
}

#[test]
fn a_fleet_finds_members_of_its_own_name_only_and_skips_what_is_no_member() -> Result<()> {
    let Some(etcd) = Etcd::start()? else { return Ok(()) };
    etcd.put("baton/v1/blue/nonsense", "{}")?;
    etcd.put("baton/v1/blue/00000000000000ab", "[1]")?;
    etcd.put("baton/v1/blues/00000000000000ab", "[1]")?;
    etcd.put("baton/v1/blue/00000000000000ac", &member("00000000000000ad", "127.0.0.1:1"))?;
    etcd.put("baton/v1/blue/00000000000000ae", &member("00000000000000ae", "0.0.0.0:1"))?;
    let source = format!("fleet.etcd_endpoints=127.0.0.1:1,{}", etcd.url());
    let proxy = start_member("proxy", &[&source, "fleet.cluster=blue"])?;
    let address = proxy.address("frontend.port")?;
    let receiver = start_member("receiver", &[&source, "fleet.cluster=blue"])?;
    let other = start_member("receiver", &[&source, "fleet.cluster=green"])?;
    etcd.until_keys("baton/v1/green/", 1)?;
    proxy.until("the proxy has found the receiver", || Ok(nodes_ready(&address)? == 1))?;
    proxy.wait_event(Event::EntrySkipped, &["nonsense: the key is no incarnation"])?;
    proxy.wait_event(Event::EntrySkipped, &["00000000000000ab: the value is no member"])?;
    proxy.wait_event(Event::EntrySkipped, &["00000000000000ac: the value is of another incarnation"])?;
    proxy.wait_event(Event::EntrySkipped, &["00000000000000ae: 0.0.0.0:1 is no address"])?;
    // The same garbage again and again is no news.
    for number in 0..5 {
        etcd.put("baton/v1/blue/00000000000000ab", &format!("[{number}]"))?;
        complete(&address, &prompt(number), 4)?;
    }
    assert_eq!(proxy.count_events(Event::EntrySkipped), 4, "{}", proxy.log());
    for http in [&address, &receiver.address("http.port")?] {
        let found = metrics(http)?;
        assert_eq!(found.get("baton_fleet_members")?, 1, "{found}");
        for (reason, count) in [("key", 1), ("value", 1), ("incarnation", 1), ("address", 1), ("full", 0)] {
            let line = format!("baton_fleet_entries_skipped{{reason=\"{reason}\"}} {count}\n");
            assert!(found.to_string().contains(&line), "{line} in {found}");
        }
    }
    // A sender finds the receiver of its fleet.
    let sender = start_member("sender", &[&source, "fleet.cluster=blue"])?;
    sender.wait_peers(1)?;
    receiver.wait_peers(1)?;
    other.wait_peers(0)?;
    proxy.until("the proxy has found the sender", || Ok(nodes(&address)? == 2))?;
    // A key that is deleted by hand is put again, and the process is not lost meanwhile.
    etcd.delete("baton/v1/green/")?;
    etcd.until_keys("baton/v1/green/", 1)
}

#[test]
fn etcd_may_have_users_and_forget_their_tokens() -> Result<()> {
    let Some(mut etcd) = Etcd::start()? else { return Ok(()) };
    let password = format!("fleet.etcd_password_file={}", etcd.enable_users()?.display());
    let source = format!("fleet.etcd_endpoints={}", etcd.url());
    let user = [&*source, "fleet.etcd_user=baton", &*password];
    let proxy = start_member("proxy", &user)?;
    let address = proxy.address("frontend.port")?;
    let receiver = start_member("receiver", &user)?;
    proxy.until("the proxy has found the receiver", || Ok(nodes_ready(&address)? == 1))?;
    // A process that cannot register takes no peers, although it sees them.
    let unregistered = start_member("sender", &[&source, "fleet.etcd_user=reader", &password])?;
    unregistered.wait_event(Event::RegistrationFails, &["permission denied"])?;
    unregistered.wait_event(Event::MembersRead, &["members=1"])?;
    // etcd keeps its keys and users when it starts again, and forgets the tokens of all users.
    etcd.kill()?;
    etcd.restart()?;
    let second = start_member("receiver", &user)?;
    proxy.until("the proxy has found the second receiver", || Ok(nodes_ready(&address)? == 2))?;
    assert_eq!(opened(&unregistered)?, 0, "{}", unregistered.log());
    assert_eq!(
        proxy.count_events(Event::MemberLeft),
        0,
        "{}\n{}\n{}",
        proxy.log(),
        receiver.log(),
        second.log()
    );
    let stranger = start_member("proxy", &[&source])?;
    stranger.wait_event(Event::MembersUnread, &["user name is empty"]).map(drop)
}

#[test]
fn etcd_is_reached_over_tls() -> Result<()> {
    let Some(certificates) = Certificates::make()? else { return Ok(()) };
    let Some((etcd, url)) = Etcd::start_tls(&certificates)? else { return Ok(()) };
    let file = |key: &str, name: &str| format!("fleet.{key}={}", certificates.file(name));
    let sets = [
        format!("fleet.etcd_endpoints={url}"),
        file("etcd_ca_file", "ca.pem"),
        file("etcd_cert_file", "client.pem"),
        file("etcd_key_file", "client.key"),
    ];
    let sets = [&*sets[0], &*sets[1], &*sets[2], &*sets[3]];
    let receiver = start_member("receiver", &sets)?;
    let proxy = start_member("proxy", &sets)?;
    let address = proxy.address("frontend.port")?;
    proxy.until("the proxy has found the receiver", || Ok(nodes_ready(&address)? == 1))?;
    assert_eq!(etcd.keys("baton/v1/default/")?.len(), 1);
    // Neither side trusts a stranger.
    let other_ca = file("etcd_ca_file", "client.pem");
    for (sets, error) in
        [(&[sets[0], sets[1]][..], "ertificate"), (&[sets[0], &other_ca], "nvalid peer certificate")]
    {
        let stranger = start_member("proxy", sets)?;
        stranger.wait_event(Event::MembersUnread, &[error])?;
    }
    drop(receiver);
    Ok(())
}

#[test]
fn certificates_that_change_are_read_again() -> Result<()> {
    let Some(certificates) = Certificates::make()? else { return Ok(()) };
    let Some((mut etcd, url)) = Etcd::start_tls(&certificates)? else { return Ok(()) };
    // The process has copies of the files. So etcd can have new ones before the process has them.
    let folder = std::env::temp_dir().join(format!("baton-copies-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let names = ["ca.pem", "client.pem", "client.key"];
    let copy = |name: &str| std::fs::copy(certificates.file(name), folder.join(name)).map(drop);
    names.into_iter().try_for_each(copy)?;
    let keys = ["etcd_ca_file", "etcd_cert_file", "etcd_key_file"];
    let files = keys.iter().zip(names);
    let mut sets: Vec<String> =
        files.map(|(key, name)| format!("fleet.{key}={}", folder.join(name).display())).collect();
    sets.push(format!("fleet.etcd_endpoints={url}"));
    let sets: Vec<&str> = sets.iter().map(|set| &**set).collect();
    let receiver = start_member("receiver", &sets)?;
    let http = receiver.address("http.port")?;
    etcd.until_keys("baton/v1/default/", 1)?;
    complete(&http, &prompt(1), 4)?;

    // etcd has a new authority. Its old connections are gone with it.
    etcd.kill()?;
    certificates.renew()?;
    etcd.restart_empty()?;
    receiver.wait_event(Event::MembersUnread, &[])?;
    receiver.wait_event(Event::Registration, &["is_registered=false"])?;
    // A half-written file, and then a certificate without its key.
    let new = std::fs::read(certificates.file("ca.pem"))?;
    std::fs::write(folder.join("ca.pem"), &new[..new.len() / 2])?;
    receiver.wait_event(Event::CertificatesUnread, &["fleet.etcd_ca_file"])?;
    copy("client.pem")?;
    complete(&http, &prompt(2), 4)?;
    assert_eq!(receiver.count_events(Event::CertificatesRead), 0, "{}", receiver.log());
    copy("ca.pem")?;
    copy("client.key")?;
    receiver.wait_event(Event::CertificatesRead, &[])?;
    etcd.until_keys("baton/v1/default/", 1)?;
    assert_eq!(receiver.count_events(Event::CertificatesUnread), 1, "{}", receiver.log());
    assert_eq!(receiver.count_events(Event::CertificatesRead), 1, "{}", receiver.log());
    complete(&http, &prompt(3), 4)?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

#[test]
fn a_fleet_that_is_larger_than_link_sessions_is_reported_once() -> Result<()> {
    let Some(etcd) = Etcd::start()? else { return Ok(()) };
    let source = format!("fleet.etcd_endpoints={}", etcd.url());
    let receiver = start_member("receiver", &[&source, "link.sessions=1"])?;
    let http = receiver.address("http.port")?;
    let fingerprint = get(&http, "/node")?.1["fingerprint"].clone();
    let sender = |number: u32| -> Result<()> {
        let name = format!("{number:016x}");
        let member = json!({
            "incarnation": name, "role": "sender", "prefills": true, "decodes": false, "http": null, "link": null,
            "model": "m", "fingerprint": fingerprint, "protocol": [Versions::OURS.lowest, Versions::OURS.highest],
        });
        etcd.put(&format!("baton/v1/default/{name}"), &member.to_string())
    };
    let members = || metrics(&http)?.get("baton_fleet_members");
    sender(1)?;
    receiver.until("it knows a sender", || Ok(members()? == 2))?;
    assert_eq!(receiver.count_events(Event::TooManyPeers), 0, "{}", receiver.log());
    sender(2)?;
    receiver.wait_event(Event::TooManyPeers, &["sessions=2", "link.sessions=1"])?;
    sender(3)?;
    receiver.until("it knows three senders", || Ok(members()? == 4))?;
    assert_eq!(receiver.count_events(Event::TooManyPeers), 1, "{}", receiver.log());
    complete(&http, &prompt(1), 4)?;
    Ok(())
}

#[test]
fn a_member_that_left_gets_requests_while_it_answers() -> Result<()> {
    let Some(etcd) = Etcd::start()? else { return Ok(()) };
    // The receiver knows nothing of the fleet.
    let mut receiver = start_member("receiver", &[])?;
    let http = receiver.address("http.port")?;
    let (name, key) = ("00000000000000ab", "baton/v1/default/00000000000000ab");
    let member = member(name, &http);
    etcd.put(key, &member)?;
    let proxy = start_member("proxy", &[&format!("fleet.etcd_endpoints={}", etcd.url())])?;
    let address = proxy.address("frontend.port")?;
    proxy.until("the proxy has found the receiver", || Ok(nodes_ready(&address)? == 1))?;
    etcd.delete(key)?;
    proxy.wait_event(Event::MemberLeft, &[name])?;
    complete(&address, &prompt(1), 4)?;
    assert_eq!((nodes(&address)?, nodes_ready(&address)?), (1, 1));
    receiver.signal("-KILL")?;
    receiver.wait()?;
    proxy.until("the proxy has forgotten the receiver", || Ok(nodes(&address)? == 0))?;
    etcd.put(key, &member)?;
    proxy.until("the proxy asks the address again", || Ok(nodes(&address)? == 1))
}

#[test]
fn members_find_each_other_over_dns() -> Result<()> {
    let receiver = start_member("receiver", &[])?;
    let port = |key: &str| -> Result<String> {
        Ok(receiver.address(key)?.rsplit_once(':').context("no port")?.1.to_owned())
    };
    let sender = start_member("sender", &[&format!("fleet.dns=localhost:{}", port("link.port")?)])?;
    let proxy = start_member("proxy", &[&format!("fleet.dns=localhost:{}", port("http.port")?)])?;
    let address = proxy.address("frontend.port")?;
    proxy.until("the proxy has found the receiver", || Ok(nodes_ready(&address)? == 1))?;
    sender.wait_peers(1)?;
    receiver.wait_peers(1)?;
    complete(&address, &prompt(1), 4)?;
    Ok(())
}
