//! Nodes and a proxy that find each other in an etcd, and what an outage of etcd does.

#[path = "membership/etcd.rs"]
mod etcd;

use anyhow::{Context, Result, ensure};
use etcd::Etcd;
use integration_tests::client::{complete, get, metrics};
use integration_tests::process::{Event, Process, start_member};
use serde_json::{Value, json};

/// A prompt of token ids that shares no page with a prompt of another number.
fn prompt(number: u32) -> Value {
    json!((0..96).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<u32>>())
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
    let source = format!("fleet.etcd_endpoints=127.0.0.1:1,{}", etcd.url());
    let proxy = start_member("proxy", &[&source, "fleet.cluster=blue"])?;
    let address = proxy.address("frontend.port")?;
    let receiver = start_member("receiver", &[&source, "fleet.cluster=blue"])?;
    let other = start_member("receiver", &[&source, "fleet.cluster=green"])?;
    etcd.until_keys("baton/v1/green/", 1)?;
    proxy.until("the proxy has found the receiver", || Ok(nodes_ready(&address)? == 1))?;
    proxy.wait_event(Event::EntrySkipped, &["nonsense: the key is no incarnation"])?;
    proxy.wait_event(Event::EntrySkipped, &["00000000000000ab: the value is no member"])?;
    assert_eq!(proxy.count_events(Event::EntrySkipped), 2, "{}", proxy.log());
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
fn etcd_with_users_gives_tokens_that_expire() -> Result<()> {
    let Some(etcd) = Etcd::start_with(&["--auth-token-ttl", "1"])? else { return Ok(()) };
    let password = etcd.enable_users("baton", "secret")?;
    let source = format!("fleet.etcd_endpoints={}", etcd.url());
    let password = format!("fleet.etcd_password_file={}", password.display());
    let proxy = start_member("proxy", &[&source, "fleet.etcd_user=baton", &password])?;
    let address = proxy.address("frontend.port")?;
    let _node = start_member("receiver", &[&source, "fleet.etcd_user=baton", &password])?;
    proxy.until("the proxy has found the node", || Ok(nodes_ready(&address)? == 1))?;
    // The lease has been renewed several times with tokens that had expired.
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(nodes_ready(&address)?, 1);
    assert_eq!(proxy.count_events(Event::MemberLeft), 0, "{}", proxy.log());
    let stranger = start_member("proxy", &[&source])?;
    stranger.wait_event(Event::MembersUnread, &["user name is empty"]).map(drop)
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
