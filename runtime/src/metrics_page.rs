//! The page `docs/metrics.md`, from the metrics that a process writes.

use std::fmt::Write as _;

use actors::counters::Counters;
use actors::peer_metrics::PeerMetrics;
use actors::streams::Streams;
use common::metrics::{Metric, MetricKind, MetricsText};

use crate::frontend::{AnswerCounts, CacheInfo, Observed, write_proxy_metrics};
use crate::membership::MembershipMetrics;
use crate::process_metrics::ProcessMetrics;
use crate::tls::CertificateExpiries;

const HEAD: &str = "\
# Metrics

What `GET /metrics` has on each HTTP port, in Prometheus's text format. This page is made from the code that writes the metrics, and a test
compares them; `cargo run -p integration-tests --example metric_table > docs/metrics.md` writes it. [Alerts](alerts.md) and the dashboard
`configs/grafana/baton.json` use them.

- Names that begin with `vllm:` are those of vLLM 0.26, and two older ones, so that dashboards for vLLM work. Histograms have vLLM's buckets and finer
  ones for short times.
- Labels have few values. `peer` and `node` have at most 64 addresses, and then `other`. An address that is gone makes room for a new one.
- Counters begin at 0 when the process starts.
";

/// Metrics that the same roles have.
#[derive(Clone, Debug)]
pub struct MetricsGroup {
    /// What they are about.
    pub title: &'static str,
    /// The roles that have them, as a sentence.
    pub roles: &'static str,
    /// The metrics in the order of `/metrics`.
    pub metrics: Vec<Metric>,
}

/// All metrics of all roles.
pub fn groups() -> Vec<MetricsGroup> {
    const SERVING: &str = "Receivers, senders, nodes and local processes have these.";
    let group = |title, roles, write: &dyn Fn(&mut MetricsText)| {
        let mut page = MetricsText::default();
        write(&mut page);
        MetricsGroup { title, roles, metrics: page.metrics().to_vec() }
    };
    let cache = CacheInfo {
        page_tokens: 16,
        request_pages: 1,
        dtype: "bf16".to_owned(),
        prefix_cache: true,
        memory_utilization: 0.9,
    };
    let counters = Counters::default();
    vec![
        group("Requests", SERVING, &|page| {
            let load = AnswerCounts { running: 0, waiting: 0 };
            Observed::new("", cache.clone(), 0).write(page, &counters, load);
            Streams::default().write_metrics("", page);
        }),
        group("Pages, prompts and sessions", SERVING, &|page| counters.write(page)),
        group("Peers", SERVING, &|page| PeerMetrics::default().write(page)),
        group("Proxy", "Proxies have these.", &|page| write_proxy_metrics(page)),
        group("Fleet", "All processes have these. They are 0 without etcd and DNS.", &|page| {
            MembershipMetrics::default().write(page);
        }),
        group("Process", "All processes have these.", &|page| {
            ProcessMetrics::new("", "", CertificateExpiries::default()).write(page);
        }),
    ]
}

/// The whole page.
pub fn render() -> String {
    let mut page = HEAD.to_owned();
    for MetricsGroup { title, roles, metrics } in groups() {
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "\n## {title}\n\n{roles}\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n"
        );
        for metric in metrics {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind, unit) = (metric.name, metric.kind.word(), unit(&metric));
            let _ =
                writeln!(page, "| `{name}` | {kind} | {unit} | {} | {} |", labels.join(", "), metric.help);
        }
    }
    page
}

/// The unit of the values, which the name contains.
fn unit(metric: &Metric) -> &'static str {
    const UNITS: [(&str, &str); 18] = [
        ("_info", "1"),
        ("bytes_per_second", "bytes/s"),
        ("seconds", "seconds"),
        ("bytes", "bytes"),
        ("_perc", "share"),
        ("tokens", "tokens"),
        ("prefix_cache", "tokens"),
        ("_fds", "files"),
        ("sessions", "sessions"),
        ("failing", "0 or 1"),
        ("_node_paused", "0 or 1"),
        ("nodes", "nodes"),
        ("members", "members"),
        ("entries", "entries"),
        ("prompts", "prompts"),
        ("prefills", "prompts"),
        ("pages", "pages"),
        ("requests", "requests"),
    ];
    let known = UNITS.iter().find(|(part, _)| metric.name.contains(part));
    match (known, metric.kind) {
        (Some((_, unit)), _) => unit,
        (None, MetricKind::Counter) => "events",
        (None, _) => "number",
    }
}
