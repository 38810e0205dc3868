//! The metrics of all processes over time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two samples of a process.
pub(crate) const EVERY: Duration = Duration::from_millis(200);

/// A metric of a node or a proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Metric {
    /// Requests that a node has finished.
    Finished,
    /// Prompts that a node has recomputed because their prefiller failed.
    Recomputes,
    /// Requests that a proxy has sent to another node.
    Retries,
    /// Pages that wait for proof.
    Quarantined,
    /// Pages that were quarantined.
    PagesQuarantined,
    /// Sessions whose quarantined pages are free again.
    QuarantinesEnded,
    /// Microseconds from the end of a session until its pages were free, summed over the sessions in `QuarantinesEnded`.
    QuarantineMicros,
}

const NAMES: [&str; 7] = [
    "baton_requests_finished_total",
    "baton_recomputes_total",
    "baton_proxy_retries_total",
    "baton_pages_quarantined",
    "baton_pages_quarantined_total",
    "baton_quarantines_ended_total",
    "baton_quarantine_seconds_total",
];

/// The metrics of a process at one moment; 0 for those that it does not have.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    values: [u64; NAMES.len()],
}

impl Sample {
    fn get(&self, metric: Metric) -> u64 {
        self.values[metric as usize]
    }
}

/// The samples of each process, by the address of its HTTP port.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Shared>);

#[derive(Default)]
struct Shared {
    series: Mutex<Vec<(String, Vec<Sample>)>>,
    is_over: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<(String, Vec<Sample>)>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Samples a process from now on. An address that has a series is not added again.
    pub(crate) fn add(&self, address: &str) {
        let mut all = self.0.lock();
        if all.iter().any(|(of, _)| of == address) {
            return;
        }
        all.push((address.to_owned(), Vec::new()));
        let (shared, address, index) = (Arc::clone(&self.0), address.to_owned(), all.len() - 1);
        std::thread::spawn(move || {
            let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(1)));
            let agent: ureq::Agent = config.build().into();
            while !shared.is_over.load(Ordering::Relaxed) {
                if let Some(values) = sample(&agent, &address) {
                    shared.lock()[index].1.push(Sample { at: Instant::now(), values });
                }
                std::thread::sleep(EVERY);
            }
        });
    }

    /// Takes no more samples.
    pub(crate) fn stop(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }

    /// The time after `since` at which one of these metrics rose for the last time, in any process, before `end`.
    pub(crate) fn last_rise(&self, metrics: &[Metric], since: Instant, end: Instant) -> Option<Duration> {
        let all = self.0.lock();
        let pairs = all.iter().flat_map(|(_, samples)| samples.windows(2));
        let pairs = pairs.filter(|pair| pair[1].at > since && pair[1].at <= end);
        let rises = pairs.filter(|pair| metrics.iter().any(|name| pair[1].get(*name) > pair[0].get(*name)));
        rises.map(|pair| pair[1].at - since).max()
    }

    /// The first time after `since` at which a node has finished more requests than at its first sample after `since`.
    pub(crate) fn first_answer(&self, address: &str, since: Instant) -> Option<Duration> {
        let all = self.0.lock();
        let (_, samples) = all.iter().find(|(of, _)| of == address)?;
        let mut after = samples.iter().filter(|sample| sample.at > since);
        let first = after.next()?.get(Metric::Finished);
        Some(after.find(|sample| sample.get(Metric::Finished) > first)?.at - since)
    }

    /// The requests that each node has finished, over all processes that had its address.
    pub(crate) fn finished(&self) -> Vec<(String, u64)> {
        let all = self.0.lock();
        let nodes = all.iter().map(|(address, samples)| {
            let pairs = samples.windows(2);
            let rises =
                pairs.map(|pair| pair[1].get(Metric::Finished).saturating_sub(pair[0].get(Metric::Finished)));
            (address.clone(), rises.sum())
        });
        nodes.filter(|(_, finished)| *finished > 0).collect()
    }

    /// By how much a metric has grown between two times at each node except one.
    pub(crate) fn growth(&self, metric: Metric, except: &str, since: Instant, end: Instant) -> Vec<u64> {
        let all = self.0.lock();
        let others = all.iter().filter(|(address, _)| address != except);
        let grown = others.map(|(_, samples)| {
            // The last sample before `since` counts too, because the metric may grow before the next one.
            let begin = samples.partition_point(|sample| sample.at <= since).saturating_sub(1);
            let samples = samples[begin..].iter().take_while(|sample| sample.at <= end);
            let values: Vec<u64> = samples.map(|sample| sample.get(metric)).collect();
            values.last().unwrap_or(&0).saturating_sub(*values.first().unwrap_or(&0))
        });
        grown.collect()
    }

    /// The most pages in quarantine between two times at any node except one, and the longest time for which a node had some.
    pub(crate) fn quarantine(&self, except: &str, since: Instant, end: Instant) -> (u64, Duration) {
        let (mut most, mut longest) = (0, Duration::ZERO);
        for (_, samples) in self.0.lock().iter().filter(|(address, _)| address != except) {
            let mut begin = None;
            for sample in samples.iter().filter(|sample| sample.at > since && sample.at <= end) {
                let pages = sample.get(Metric::Quarantined);
                most = most.max(pages);
                if pages > 0 {
                    begin.get_or_insert(sample.at);
                }
                longest = longest.max(begin.map_or(Duration::ZERO, |begin| sample.at - begin));
                if pages == 0 {
                    begin = None;
                }
            }
        }
        (most, longest)
    }
}

fn sample(agent: &ureq::Agent, address: &str) -> Option<[u64; NAMES.len()]> {
    let mut response = agent.get(format!("http://{address}/metrics")).call().ok()?;
    let text = response.body_mut().read_to_string().ok()?;
    Some(NAMES.map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
        if name.ends_with("_seconds_total") { (value * 1e6) as u64 } else { value as u64 }
    }))
}
