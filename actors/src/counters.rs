//! What a node counts, and its text for `/metrics`.
//!
//! The pure states count for themselves; after each message an actor's shell stores its numbers here, where HTTP
//! workers read them. Every name is one constant, and none has labels.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($( $(#[doc = $doc:literal])+ $name:ident: $kind:literal $metric:literal; )+) => {
        #[derive(Debug, Default)]
        struct Cells { $( $name: AtomicU64, )+ }

        /// The node's counters. Cheap to clone; clones share them.
        #[derive(Clone, Debug, Default)]
        pub struct Counters { cells: Arc<Cells> }

        impl Counters {
            $(
                $(#[doc = $doc])+
                pub fn $name(&self) -> &AtomicU64 {
                    &self.cells.$name
                }
            )+

            /// Prometheus's text format.
            pub fn render(&self) -> String {
                let mut text = String::new();
                $(
                    // Writing to a string cannot fail.
                    let _ = write!(
                        text,
                        "# HELP {} {}\n# TYPE {} {}\n{} {}\n",
                        $metric, concat!($($doc),+).trim(), $metric, $kind, $metric,
                        self.cells.$name.load(Ordering::Relaxed)
                    );
                )+
                text
            }
        }
    };
}

counters! {
    /// Pages in the pool.
    pages: "gauge" "baton_pages";
    /// Pages promised to requests whose KV is under way from a sender.
    pages_reserved: "gauge" "baton_pages_reserved";
    /// Pages under outstanding credits.
    pages_outstanding: "gauge" "baton_pages_outstanding";
    /// Pages that live requests hold.
    pages_live: "gauge" "baton_pages_live";
    /// Pages that nobody holds, whose content may be wanted again.
    pages_cached: "gauge" "baton_pages_cached";
    /// Pages that requests found in the cache, and so neither computed nor received.
    pages_resident: "counter" "baton_pages_resident_total";
    /// Pages of lost sessions that may still be written, and damaged ones.
    pages_quarantined: "gauge" "baton_pages_quarantined";
    /// Pages that landed and were adopted.
    pages_adopted: "counter" "baton_pages_adopted_total";
    /// Frames of sessions that were over.
    frames_stale: "counter" "baton_frames_stale_total";
    /// Landed pages that were not what their sender put.
    hash_mismatches: "counter" "baton_page_hash_mismatches_total";
    /// Requests that came in, in whatever way they end.
    taken: "counter" "baton_requests_taken_total";
    /// Prompts computed again here because their sender was lost, failed or confused.
    recomputes: "counter" "baton_recomputes_total";
    /// Requests that gave their pages back to others and went on later.
    preemptions: "counter" "baton_preemptions_total";
    /// Requests ended by their client.
    aborts: "counter" "baton_requests_aborted_total";
    /// Requests ended by the end of the process.
    cut_at_the_end: "counter" "baton_requests_cut_total";
    /// Requests that missed their deadline.
    deadlines_missed: "counter" "baton_requests_deadline_missed_total";
    /// Requests that did not fit beside the pages of lost sessions.
    denied: "counter" "baton_requests_denied_total";
    /// Requests that an engine error ended.
    engine_failures: "counter" "baton_requests_engine_failed_total";
    /// Requests that ended well.
    finished: "counter" "baton_requests_finished_total";
    /// Prompts of peers that are waiting, computed or handed over here.
    prefills_live: "gauge" "baton_prefills_live";
    /// Credits that this process holds at its receivers: not spent, or spent and not announced.
    credits_held: "gauge" "baton_credits_held";
    /// Sessions with peers over which pages can travel.
    sessions_ready: "gauge" "baton_sessions_ready";
    /// Sessions of which the transport holds anything still, over or not.
    sessions_held: "gauge" "baton_sessions_held";
    /// Sessions begun.
    sessions_opened: "counter" "baton_sessions_opened_total";
    /// Sessions that ended.
    sessions_ended: "counter" "baton_sessions_ended_total";
}

/// Stores numbers that a state has counted.
pub(crate) fn store(cell: &AtomicU64, value: impl Into<u64>) {
    cell.store(value.into(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let counters = Counters::default();
        store(counters.hash_mismatches(), 1u32);
        store(counters.pages(), 7u32);
        let text = counters.render();
        assert!(text.contains("# TYPE baton_pages gauge\nbaton_pages 7\n"), "{text}");
        assert!(text.contains("\nbaton_page_hash_mismatches_total 1\n"), "{text}");
        for line in text.lines() {
            assert!(line.starts_with("# ") || line.split(' ').count() == 2, "{line}");
        }
    }
}
