//! Finds members at the addresses of a name, such as that of a headless Service in Kubernetes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use actors::membership::{Entry, Member, Members};
use tokio::time::{sleep, timeout};

use super::{Outage, Publisher};

/// Time between two lookups.
pub(super) const RESOLVE_EVERY: Duration = Duration::from_secs(5);

/// Time after which a lookup counts as failed. There is never a second lookup at the same time, because each holds a thread.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// All addresses of `host:port`.
pub(super) async fn addresses(name: String) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host(name).await?.collect())
}

/// Resolves the name at this interval and publishes the members, until there is no reader any more. A failed lookup changes nothing, and neither does an
/// answer without addresses: the system's resolver does not tell a name without addresses from an outage.
pub(super) async fn follow<F, R>(resolve: F, every: Duration, is_http: bool, to: Publisher)
where
    F: Fn() -> R,
    R: Future<Output = io::Result<Vec<SocketAddr>>> + 'static,
{
    let (mut members, mut outage) = (Members::default(), Outage::shown(&to.metrics.source_fails));
    let what = "the name of fleet.dns has no address; known members stay";
    loop {
        let mut lookup = actix::spawn(resolve());
        let found = loop {
            match timeout(RESOLVE_WITHIN, &mut lookup).await {
                Ok(found) => break found.map_err(io::Error::other).flatten(),
                Err(_) => outage.failed(what, "no answer in 5 s"),
            }
        };
        match found {
            Ok(found) if !found.is_empty() => {
                outage.works("the name of fleet.dns has addresses again");
                let changes = members.resync(entries(found, is_http));
                if !to.publish(&changes, &members) {
                    return;
                }
            }
            Ok(_) => outage.failed(what, "the answer is empty"),
            Err(error) => outage.failed(what, &error.to_string()),
        }
        sleep(every).await;
    }
}

/// One entry for each address. If there are IPv4 addresses, those of IPv6 are left out, because they are the same processes again.
fn entries(mut found: Vec<SocketAddr>, is_http: bool) -> Vec<Entry> {
    if found.iter().any(SocketAddr::is_ipv4) {
        found.retain(SocketAddr::is_ipv4);
    }
    let entry = |address: SocketAddr| {
        let member = Member::at(is_http.then_some(address), (!is_http).then_some(address));
        Entry { name: member.name.clone(), member: Ok(member) }
    };
    found.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;

    fn publisher() -> (Publisher, crate::membership::MembersWatch) {
        let (members, found) = watch::channel(Arc::from([]));
        (Publisher { members, metrics: Arc::default() }, found)
    }

    fn at(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ports(members: &[Member], is_http: bool) -> Vec<SocketAddr> {
        members.iter().filter_map(|member| if is_http { member.http } else { member.link }).collect()
    }

    #[test]
    fn the_system_resolves_a_name() {
        actix::System::new().block_on(async {
            let (to, mut members) = publisher();
            actix::spawn(follow(|| addresses("localhost:8200".into()), RESOLVE_EVERY, true, to));
            members.changed().await.unwrap();
            let found = ports(&members.borrow(), true);
            assert!(
                found.iter().any(|address| address.ip().is_loopback() && address.port() == 8200),
                "{found:?}"
            );
        });
    }

    #[test]
    fn members_follow_the_answers_and_outlive_an_outage() {
        actix::System::new().block_on(async {
            let answers = Rc::new(RefCell::new(vec![
                Err(io::Error::other("no such name")),
                Ok(at(&["10.0.0.1:5", "[::1]:5", "10.0.0.2:5"])),
                Err(io::Error::other("no such name")),
                Ok(vec![]),
                Ok(at(&["10.0.0.2:5", "10.0.0.3:5"])),
            ]));
            let (to, mut members) = publisher();
            let asked = Rc::clone(&answers);
            let resolve = move || {
                let mut answers = asked.borrow_mut();
                let answer = if answers.len() > 1 { answers.remove(0) } else { Ok(at(&["10.0.0.3:5"])) };
                async move { answer }
            };
            actix::spawn(follow(resolve, Duration::from_millis(20), false, to));
            members.changed().await.unwrap();
            assert_eq!(ports(&members.borrow_and_update(), false), at(&["10.0.0.1:5", "10.0.0.2:5"]));
            assert_eq!(answers.borrow().len(), 3);
            members.changed().await.unwrap();
            assert_eq!(ports(&members.borrow_and_update(), false), at(&["10.0.0.3:5"]));
            assert_eq!(answers.borrow().len(), 1, "the outage and the empty answer changed nothing");
        });
    }
}
