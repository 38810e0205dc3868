//! The counters of a node, and their text for `/metrics`.
//!
//! The pure states count. After each message an actor's shell stores the state's numbers here, and HTTP workers read them. Every
//! metric name is one constant without labels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::metrics::{Metric, MetricsText};

macro_rules! counters {
    ($( $(#[doc = $doc:literal])+ $name:ident: $kind:ident $metric:literal $(/ $divisor:literal)?; )+) => {
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

            /// Writes the counters.
            pub fn write(&self, page: &mut MetricsText) {
                $(
                    let value = self.cells.$name.load(Ordering::Relaxed);
                    $( let value = value as f64 / $divisor; )?
                    page.single(&Metric::$kind($metric, concat!($($doc),+).trim_ascii()), value);
                )+
            }
        }
    };
}

counters! {
    /// Pages in the pool.
    pages: gauge "baton_pages";
    /// Pages reserved for requests whose KV is in transit from a sender.
    pages_reserved: gauge "baton_pages_reserved";
    /// Pages under outstanding credits.
    pages_outstanding: gauge "baton_pages_outstanding";
    /// Pages that live requests hold.
    pages_live: gauge "baton_pages_live";
    /// Those of the live pages that prompts of peers have from `node.prefill_pages`.
    prefill_pages_used: gauge "baton_prefill_pages_used";
    /// Pages that no request holds and whose content may be reused.
    pages_cached: gauge "baton_pages_cached";
    /// Pages that requests reused from the cache instead of computing or receiving them.
    pages_resident: counter "baton_pages_resident_total";
    /// Pages that a lost session may still write, and damaged pages.
    pages_quarantined: gauge "baton_pages_quarantined";
    /// Pages that were quarantined since the start, including those that are free again.
    pages_quarantined_total: counter "baton_pages_quarantined_total";
    /// Sessions whose quarantined pages are free again.
    quarantines_ended: counter "baton_quarantines_ended_total";
    /// Time from the end of a session until its quarantined pages were free again, summed over the sessions in
    /// baton_quarantines_ended_total.
    quarantine_micros: counter "baton_quarantine_seconds_total" / 1e6;
    /// Pages that landed and were adopted.
    pages_adopted: counter "baton_pages_adopted_total";
    /// Batches of KV events since the start, including dropped ones.
    kv_event_batches: counter "baton_kv_event_batches_total";
    /// Batches of KV events that were dropped because the publisher was too slow.
    kv_event_batches_dropped: counter "baton_kv_event_batches_dropped_total";
    /// Frames received for sessions that had ended.
    frames_stale: counter "baton_frames_stale_total";
    /// Landed pages whose hash did not match.
    hash_mismatches: counter "baton_page_hash_mismatches_total";
    /// Requests that arrived.
    taken: counter "baton_requests_taken_total";
    /// Prompt tokens that this process has computed, for its own requests and for peers.
    prompt_tokens_computed: counter "baton_prompt_tokens_computed_total";
    /// Prompts recomputed here because their sender was lost, failed or sent something wrong.
    recomputes: counter "baton_recomputes_total";
    /// Requests that were preempted and resumed later.
    preemptions: counter "baton_preemptions_total";
    /// Requests aborted by their client.
    aborts: counter "baton_requests_aborted_total";
    /// Requests cut because the process ended.
    cut_at_the_end: counter "baton_requests_cut_total";
    /// Requests that missed their deadline.
    deadlines_missed: counter "baton_requests_deadline_missed_total";
    /// Requests that did not fit because lost sessions hold pages in quarantine.
    denied: counter "baton_requests_denied_total";
    /// Requests that an engine error ended.
    engine_failures: counter "baton_requests_engine_failed_total";
    /// Requests that a failure of their grammar ended.
    grammar_failures: counter "baton_requests_grammar_failed_total";
    /// Requests that finished.
    finished: counter "baton_requests_finished_total";
    /// Prompts of peers that wait, are computed, or are handed over here.
    prefills_live: gauge "baton_prefills_live";
    /// Requests whose header `x-prefiller-host-port` names neither a connected sender nor this process.
    prefiller_headers_unknown: counter "baton_prefiller_header_unknown_total";
    /// Sessions with receivers in which this process holds credits or may be granted some.
    sessions_with_credits: gauge "baton_sessions_with_credits";
    /// Sessions over which pages can be sent.
    sessions_ready: gauge "baton_sessions_ready";
    /// Sessions for which the transport holds resources, including ended ones.
    sessions_held: gauge "baton_sessions_held";
    /// Sessions begun.
    sessions_opened: counter "baton_sessions_opened_total";
    /// Sessions that ended.
    sessions_ended: counter "baton_sessions_ended_total";
}

/// Stores a number that a state has counted.
pub(crate) fn store(cell: &AtomicU64, value: impl Into<u64>) {
    cell.store(value.into(), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_render_in_the_format_of_prometheus() {
        let counters = Counters::default();
        store(counters.hash_mismatches(), 1u32);
        store(counters.pages(), 7u32);
        store(counters.quarantine_micros(), 1_500_000u32);
        let mut page = MetricsText::default();
        counters.write(&mut page);
        let text = page.into_string();
        assert!(text.contains("# TYPE baton_pages gauge\nbaton_pages 7\n"), "{text}");
        assert!(text.contains("\nbaton_page_hash_mismatches_total 1\n"), "{text}");
        assert!(text.contains("\nbaton_quarantine_seconds_total 1.5\n"), "{text}");
        for line in text.lines() {
            assert!(line.starts_with("# ") || line.split(' ').count() == 2, "{line}");
        }
    }
}
