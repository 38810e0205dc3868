//! The metrics of the membership.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actors::membership::{EntryError, Members};
use common::metrics::{Metric, MetricsText};

const MEMBERS: Metric =
    Metric::gauge("baton_fleet_members", "Members that etcd or DNS names, this process included.");
const SKIPPED: Metric = Metric::gauge(
    "baton_fleet_entries_skipped",
    "Entries of the fleet in etcd that are left out, by the reason.",
)
.by(&["reason"]);
const SOURCE: Metric = Metric::gauge(
    "baton_fleet_source_failing",
    "1 while the members cannot be read from etcd or DNS. The known members stay.",
);
const REGISTRATION: Metric = Metric::gauge(
    "baton_fleet_registration_failing",
    "1 while etcd does not renew the registration of this process.",
);

/// How many members a fleet has, and how many entries of its registry are left out.
#[derive(Debug, Default)]
pub struct MembershipMetrics {
    members: AtomicU64,
    /// In the order of [`EntryError::KINDS`].
    skipped: [AtomicU64; EntryError::KINDS.len()],
    /// 1 while etcd or DNS does not answer.
    pub(super) source_fails: Arc<AtomicU64>,
    /// 1 while etcd does not renew the registration.
    pub(super) registration_fails: Arc<AtomicU64>,
}

impl MembershipMetrics {
    /// These are the members now.
    pub(super) fn set(&self, members: &Members) {
        self.members.store(members.all().count() as u64, Ordering::Relaxed);
        for (kind, cell) in EntryError::KINDS.iter().zip(&self.skipped) {
            let count = members.skipped().filter(|skipped| skipped == kind).count();
            cell.store(count as u64, Ordering::Relaxed);
        }
    }

    /// Writes the metrics.
    pub fn write(&self, page: &mut MetricsText) {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        page.single(&MEMBERS, load(&self.members));
        let mut skipped = page.family(&SKIPPED);
        for (kind, count) in EntryError::KINDS.iter().zip(&self.skipped) {
            skipped.sample(&[kind], load(count));
        }
        page.single(&SOURCE, load(&self.source_fails));
        page.single(&REGISTRATION, load(&self.registration_fails));
    }
}

#[cfg(test)]
mod tests {
    use actors::membership::{Entry, Member};

    use super::*;

    fn written(metrics: &MembershipMetrics) -> String {
        let mut page = MetricsText::default();
        metrics.write(&mut page);
        page.into_string()
    }

    #[test]
    fn members_and_skipped_entries_are_counted() {
        let metrics = MembershipMetrics::default();
        let mut members = Members::default();
        let of_another = |name: &str| Entry { name: name.into(), member: Err(EntryError::Incarnation) };
        let good = Entry { name: "c".into(), member: Ok(Member::at(None, None)) };
        members.resync(vec![of_another("a"), of_another("b"), good]);
        metrics.set(&members);
        let text = written(&metrics);
        for line in [
            "baton_fleet_members 1",
            "baton_fleet_entries_skipped{reason=\"incarnation\"} 2",
            "baton_fleet_entries_skipped{reason=\"value\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        members.resync(Vec::new());
        metrics.set(&members);
        let text = written(&metrics);
        assert!(text.contains("reason=\"incarnation\"} 0\n"), "{text}");
    }

    #[test]
    fn an_outage_is_shown_until_it_is_over() {
        let metrics = MembershipMetrics::default();
        let mut outage = crate::membership::Outage::shown(&metrics.source_fails);
        outage.failed("no answer", "refused");
        outage.failed("no answer", "refused");
        assert!(written(&metrics).contains("\nbaton_fleet_source_failing 1\n"));
        outage.works("an answer");
        assert!(written(&metrics).contains("\nbaton_fleet_source_failing 0\n"));
    }
}
