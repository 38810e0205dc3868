//! The metrics of the membership.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use actors::membership::{EntryError, Members};

/// How many members a fleet has, and how many entries of its registry are left out.
#[derive(Debug, Default)]
pub struct MembershipMetrics {
    members: AtomicU64,
    /// In the order of [`EntryError::KINDS`].
    skipped: [AtomicU64; EntryError::KINDS.len()],
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

    /// The metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        let mut text = format!(
            "# HELP baton_fleet_members Members that etcd or DNS names, this process included.\n\
             # TYPE baton_fleet_members gauge\n\
             baton_fleet_members {}\n\
             # HELP baton_fleet_entries_skipped Entries of the fleet in etcd that are left out, by the reason.\n\
             # TYPE baton_fleet_entries_skipped gauge\n",
            self.members.load(Ordering::Relaxed)
        );
        for (kind, count) in EntryError::KINDS.iter().zip(&self.skipped) {
            let count = count.load(Ordering::Relaxed);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "baton_fleet_entries_skipped{{reason=\"{kind}\"}} {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use actors::membership::{Entry, Member};

    use super::*;

    #[test]
    fn members_and_skipped_entries_are_counted() {
        let metrics = MembershipMetrics::default();
        let mut members = Members::default();
        let of_another = |name: &str| Entry { name: name.into(), member: Err(EntryError::Incarnation) };
        let good = Entry { name: "c".into(), member: Ok(Member::at(None, None)) };
        members.resync(vec![of_another("a"), of_another("b"), good]);
        metrics.set(&members);
        let text = metrics.render();
        for line in [
            "baton_fleet_members 1",
            "baton_fleet_entries_skipped{reason=\"incarnation\"} 2",
            "baton_fleet_entries_skipped{reason=\"value\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        members.resync(Vec::new());
        metrics.set(&members);
        assert!(metrics.render().contains("reason=\"incarnation\"} 0\n"), "{}", metrics.render());
    }
}
