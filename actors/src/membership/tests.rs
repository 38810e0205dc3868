use std::time::{Duration, Instant};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn member(name: &str) -> Member {
    let address = |port| Some(SocketAddr::from(([10, 0, 0, 1], port)));
    let says = Statement {
        role: "node".into(),
        prefills: true,
        decodes: true,
        model: "m".into(),
        fingerprint: "ab".into(),
        protocol: Versions::new(3, 5),
    };
    Member { name: name.into(), http: address(8200), link: address(55555), says: Some(says) }
}

fn entry(name: &str) -> Entry {
    Entry { name: name.into(), member: Ok(member(name)) }
}

fn broken(name: &str) -> Entry {
    Entry { name: name.into(), member: Err(EntryError::Value("no JSON".into())) }
}

fn skipped(name: &str) -> Change {
    Change::Skipped(name.into(), EntryError::Value("no JSON".into()))
}

fn joined(name: &str) -> Change {
    Change::Joined(member(name))
}

fn left(name: &str) -> Change {
    Change::Left(name.into())
}

fn resync(names: &[&str]) -> Change {
    Change::Resync(names.iter().map(|name| member(name)).collect())
}

fn ranged(cluster: u64, revision: i64, names: &[&str]) -> ViewEvent {
    ViewEvent::Ranged { cluster, revision, entries: names.iter().map(|name| entry(name)).collect() }
}

fn put(revision: i64, name: &str) -> ViewEvent {
    ViewEvent::Watched { cluster: 1, changes: vec![(revision, KeyChange::Put(entry(name)))] }
}

fn delete(revision: i64, name: &str) -> ViewEvent {
    ViewEvent::Watched { cluster: 1, changes: vec![(revision, KeyChange::Delete(name.into()))] }
}

fn range_now(endpoint: usize) -> ViewStep {
    ViewStep::Range { endpoint, after: Duration::ZERO }
}

fn names(view: &EtcdView) -> Vec<String> {
    view.members().all().map(|member| member.name.clone()).collect()
}

/// A view that knows `a` and `b` at revision 10 of cluster 1.
fn view() -> EtcdView {
    let mut view = EtcdView::new(2);
    assert_eq!(view.next(), range_now(0));
    assert_eq!(view.on(ranged(1, 10, &["a", "b"])), [resync(&["a", "b"])]);
    assert_eq!(view.next(), ViewStep::Watch { endpoint: 0, from: 11 });
    view
}

#[test]
fn a_range_and_a_watch_follow_the_keys() {
    let mut view = view();
    assert_eq!(view.on(ViewEvent::WatchBegun { cluster: 1, revision: 10 }), []);
    assert_eq!(view.on(put(11, "c")), [joined("c")]);
    assert_eq!(view.on(put(12, "c")), [], "the same value again");
    assert_eq!(view.on(delete(13, "a")), [left("a")]);
    assert_eq!(view.on(delete(14, "a")), []);
    assert_eq!(view.next(), ViewStep::Watch { endpoint: 0, from: 15 });
    assert_eq!(view.on(delete(12, "c")), [], "this change is older than what is known");
    assert_eq!(names(&view), ["b", "c"]);
    // Both changes of one transaction have one revision.
    let changes = vec![(20, KeyChange::Delete("b".into())), (20, KeyChange::Put(entry("d")))];
    assert_eq!(view.on(ViewEvent::Watched { cluster: 1, changes }), [left("b"), joined("d")]);
}

#[test]
fn a_range_finds_what_a_watch_has_lost() {
    let mut view = view();
    assert_eq!(view.on(ViewEvent::WatchOver), []);
    assert_eq!(view.next(), range_now(0));
    assert_eq!(view.on(ranged(1, 10, &["a", "b"])), [], "nothing has changed");
    view.on(ViewEvent::WatchOver);
    assert_eq!(view.on(ranged(1, 12, &["b", "c"])), [left("a"), joined("c")]);
    assert_eq!(view.next(), ViewStep::Watch { endpoint: 0, from: 13 });
}

#[test]
fn an_outage_changes_nothing_and_the_next_endpoint_is_asked() {
    let mut view = view();
    for (failure, millis) in (1..).zip([250, 500, 1000, 2000, 4000, 4000]) {
        assert_eq!(view.on(ViewEvent::Failed), []);
        let after = Duration::from_millis(millis);
        assert_eq!(view.next(), ViewStep::Range { endpoint: failure % 2, after });
        assert_eq!(names(&view), ["a", "b"]);
    }
    assert_eq!(view.on(ranged(1, 11, &["a", "b"])), [], "the same cluster, with nothing new");
    view.on(ViewEvent::Failed);
    let after = Duration::from_millis(4000);
    assert_eq!(
        view.next(),
        ViewStep::Range { endpoint: 1, after },
        "a watch that always fails is not tried at once"
    );
    view.on(ranged(1, 11, &["a", "b"]));
    view.on(ViewEvent::WatchBegun { cluster: 1, revision: 11 });
    view.on(ViewEvent::Failed);
    assert_eq!(view.next(), ViewStep::Range { endpoint: 0, after: Duration::from_millis(250) });
}

#[test]
fn a_revision_that_goes_back_is_a_resync() {
    // etcd came back empty, and its nodes have registered again. Its cluster id is the same.
    let mut view = view();
    view.on(ViewEvent::Failed);
    assert_eq!(view.on(ranged(1, 3, &["a"])), [resync(&["a"])]);
    assert_eq!(view.next(), ViewStep::Watch { endpoint: 1, from: 4 });
    assert_eq!(view.on(put(4, "b")), [joined("b")], "small revisions count from now on");
}

#[test]
fn a_watch_at_an_etcd_with_a_smaller_revision_is_checked_by_a_range() {
    let mut view = view();
    assert_eq!(view.on(ViewEvent::WatchBegun { cluster: 1, revision: 9 }), []);
    assert_eq!(view.next(), ViewStep::Range { endpoint: 0, after: LATE_MILLIS });
    assert_eq!(view.on(ranged(1, 10, &["a", "b"])), [], "that etcd was only late");
    view.on(ViewEvent::WatchBegun { cluster: 1, revision: 9 });
    assert_eq!(view.on(ranged(1, 9, &[])), [resync(&[])]);
}

const LATE_MILLIS: Duration = Duration::from_millis(500);

#[test]
fn another_cluster_is_a_resync() {
    let mut view = view();
    assert_eq!(view.on(ranged(2, 50, &["a", "b"])), [resync(&["a", "b"])]);
    // The events of the watch before are not of this cluster.
    assert_eq!(view.on(delete(51, "a")), []);
    assert_eq!(view.next(), range_now(0));
    view.on(ranged(2, 50, &["a", "b"]));
    view.on(ViewEvent::WatchBegun { cluster: 3, revision: 60 });
    assert!(matches!(view.next(), ViewStep::Range { .. }));
}

#[test]
fn a_compaction_is_a_resync() {
    let mut view = view();
    assert_eq!(view.on(ViewEvent::Compacted), []);
    assert_eq!((view.next(), names(&view)), (range_now(0), vec!["a".into(), "b".into()]));
    assert_eq!(view.on(ranged(1, 40, &["b", "c"])), [resync(&["b", "c"])]);
}

#[test]
fn malformed_entries_are_skipped_and_reported_once() {
    let mut view = EtcdView::new(1);
    let entries = || vec![entry("a"), broken("b")];
    let changes = view.on(ViewEvent::Ranged { cluster: 1, revision: 1, entries: entries() });
    assert_eq!(changes, [skipped("b"), resync(&["a"])]);
    assert_eq!(view.members().skipped().collect::<Vec<_>>(), ["value"]);
    assert_eq!(view.on(ViewEvent::Ranged { cluster: 1, revision: 2, entries: entries() }), []);
    assert_eq!(view.on(put(3, "b")), [joined("b")], "it was repaired");
    assert_eq!(view.members().skipped().count(), 0);
    let changes = vec![(4, KeyChange::Put(broken("b")))];
    let again = view.on(ViewEvent::Watched { cluster: 1, changes });
    assert_eq!(again, [skipped("b")]);
    assert_eq!(names(&view), ["a", "b"], "a member whose entry is damaged stays as it was");
    assert_eq!(view.on(ranged(1, 5, &["a"])), [left("b")]);
    assert_eq!(view.members().skipped().count(), 0);
}

#[test]
fn the_number_of_members_is_bounded() {
    let mut members = Members::default();
    let all = (0..MEMBERS_MAX).map(|number| entry(&format!("{number:016x}"))).collect();
    assert_eq!(members.resync(all).len(), MEMBERS_MAX);
    assert!(matches!(members.put(entry("x")), Some(Change::Skipped(_, EntryError::Full))));
    assert_eq!(members.put(entry(&format!("{:016x}", 7))), None, "a known member may change");
    assert_eq!(members.all().count(), MEMBERS_MAX);
}

#[test]
fn a_process_dials_the_members_that_decode_with_its_weights() {
    let check = |change: fn(&mut Member), expect: bool| {
        let mut other = member("b");
        change(&mut other);
        assert_eq!(other.dialled_by(&member("a")).is_some(), expect, "{other:?}");
    };
    fn says(member: &mut Member) -> &mut Statement {
        member.says.as_mut().expect("it says something")
    }
    check(|_| {}, true);
    check(|other| other.name = "a".into(), false);
    check(|other| other.link = None, false);
    check(|other| says(other).decodes = false, false);
    check(|other| says(other).fingerprint = "cd".into(), false);
    check(|other| says(other).protocol = Versions::new(5, 9), true);
    check(|other| says(other).protocol = Versions::new(6, 9), false);
    check(|other| *other = Member::at(None, other.link), true);
}

#[test]
fn nodes_have_two_sessions_and_other_pairs_have_one() {
    fn role(name: &str, prefills: bool, decodes: bool) -> Member {
        let mut member = member(name);
        member.link = member.link.filter(|_| decodes);
        let says = member.says.as_mut().expect("it says something");
        (says.prefills, says.decodes) = (prefills, decodes);
        member
    }
    let (node, sender, receiver) = (role("a", true, true), role("b", true, false), role("c", false, true));
    let check =
        |own: &Member, other: &Member, expect| assert_eq!(other.sessions_with(own), expect, "{other:?}");
    check(&node, &node, 0);
    check(&node, &role("d", true, true), 2);
    for (prefills, decodes) in [(&sender, &receiver), (&node, &receiver), (&sender, &node)] {
        check(prefills, decodes, 1);
        check(decodes, prefills, 1);
    }
    check(&sender, &role("d", true, false), 0);
    check(&receiver, &role("d", false, true), 0);
    check(&node, &Member::at(None, node.link), 1);
    check(&receiver, &Member::at(None, node.link), 0);
}

#[test]
fn every_error_of_an_entry_has_a_label() {
    let address = SocketAddr::from(([0, 0, 0, 0], 1));
    for error in [
        EntryError::Key,
        EntryError::Value(String::new()),
        EntryError::Incarnation,
        EntryError::Address(address),
        EntryError::Full,
    ] {
        assert!(EntryError::KINDS.contains(&error.kind()), "{error:?}");
    }
}

#[test]
fn an_entry_that_stays_wrong_is_reported_once_and_counted_by_its_last_error() {
    let mut members = Members::default();
    assert_eq!(members.put(broken("b")), Some(skipped("b")));
    assert_eq!(members.put(broken("b")), None);
    let of_another = Entry { name: "b".into(), member: Err(EntryError::Incarnation) };
    assert_eq!(members.put(of_another), None);
    assert_eq!(members.skipped().collect::<Vec<_>>(), ["incarnation"]);
}

#[test]
fn a_process_registers_and_renews_its_lease() {
    let (mut own, start) = (Registration::new(2), Instant::now());
    assert_eq!(own.next(), RegistrationStep::Grant { endpoint: 0, after: Duration::ZERO });
    own.on(start, RegistrationEvent::Granted(7));
    assert_eq!(own.next(), RegistrationStep::Put { endpoint: 0, lease: 7, after: Duration::ZERO });
    assert!(!own.is_registered(start));
    own.on(start, RegistrationEvent::Put);
    assert!(own.is_registered(start + 9 * SECOND) && !own.is_registered(start + LEASE));
    for renewal in 1..=CHECKED_AFTER {
        // A put does not renew the lease, so a renewal follows at once.
        let after = if renewal == 1 { Duration::ZERO } else { KEEP_ALIVE_EVERY };
        assert_eq!(own.next(), RegistrationStep::KeepAlive { endpoint: 0, lease: 7, after });
        own.on(start + 3 * renewal * SECOND, RegistrationEvent::KeptAlive(LEASE));
        assert!(own.is_registered(start + (3 * renewal + 9) * SECOND));
    }
    assert_eq!(own.next(), RegistrationStep::Put { endpoint: 0, lease: 7, after: Duration::ZERO });
    own.on(start + 31 * SECOND, RegistrationEvent::Put);
    assert!(matches!(own.next(), RegistrationStep::KeepAlive { .. }));
}

const CHECKED_AFTER: u32 = 10;

/// A process with lease 7.
fn registered(start: Instant) -> Registration {
    let mut own = Registration::new(2);
    own.on(start, RegistrationEvent::Granted(7));
    own.on(start, RegistrationEvent::Put);
    own
}

#[test]
fn an_etcd_that_refuses_writes_still_renews_leases() {
    let start = Instant::now();
    let mut own = registered(start);
    for round in 0..3 {
        for _ in 0..CHECKED_AFTER {
            own.on(start + 30 * round * SECOND, RegistrationEvent::KeptAlive(LEASE));
        }
        assert!(matches!(own.next(), RegistrationStep::Put { .. }), "the key is checked");
        own.on(start + 30 * round * SECOND, RegistrationEvent::Failed);
        assert!(
            matches!(own.next(), RegistrationStep::KeepAlive { .. }),
            "the check waits for the next time"
        );
    }
}

#[test]
fn a_lost_lease_is_replaced() {
    let start = Instant::now();
    let mut own = registered(start);
    own.on(start + 3 * SECOND, RegistrationEvent::LeaseGone);
    assert!(!own.is_registered(start + 3 * SECOND));
    assert_eq!(own.next(), RegistrationStep::Grant { endpoint: 0, after: Duration::ZERO });
    own.on(start + 3 * SECOND, RegistrationEvent::Granted(8));
    assert!(!own.is_registered(start + 3 * SECOND), "the key is not put again yet");
    own.on(start + 3 * SECOND, RegistrationEvent::LeaseGone);
    assert!(matches!(own.next(), RegistrationStep::Grant { .. }), "etcd was replaced before the put");
}

#[test]
fn a_lease_may_survive_an_outage() {
    let start = Instant::now();
    let mut own = registered(start);
    for failures in 1..=5 {
        own.on(start + failures * 3 * SECOND, RegistrationEvent::Failed);
        assert_eq!(own.is_registered(start + failures * 3 * SECOND), failures <= 3);
        assert!(
            matches!(own.next(), RegistrationStep::KeepAlive { endpoint, lease: 7, .. } if endpoint == failures as usize % 2)
        );
    }
    own.on(start + 16 * SECOND, RegistrationEvent::KeptAlive(LEASE));
    assert!(own.is_registered(start + 17 * SECOND), "no new registration is needed");
}
