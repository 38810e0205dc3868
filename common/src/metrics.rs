//! Metrics in Prometheus's text format, version 0.0.4: their names, help texts and kinds, the escaping of label values, and histograms.
//!
//! Each part of a process describes its metrics as constants of type [`Metric`] and writes their values to a [`MetricsText`] when it is asked.

mod histogram;

use std::fmt::{Display, Write as _};

pub use histogram::Histogram;

/// The description of a metric, without its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name. It ends with the unit, and with `_total` if it is a counter.
    pub name: &'static str,
    /// How its values change.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence that says what is measured.
    pub help: &'static str,
}

/// How the values of a metric change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows until the process ends.
    Counter,
    /// It grows and shrinks.
    Gauge,
    /// It counts values in buckets.
    Histogram,
}

impl MetricKind {
    /// The word after `# TYPE`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Metric {
    /// A counter without labels.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, labels: &[], help }
    }

    /// A gauge without labels.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Gauge, labels: &[], help }
    }

    /// A histogram without labels.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram, labels: &[], help }
    }

    /// The same metric with these labels.
    pub const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }
}

/// A page of metrics that is written from top to bottom.
#[derive(Debug, Default)]
pub struct MetricsText {
    text: String,
    metrics: Vec<Metric>,
}

impl MetricsText {
    /// Writes the head of a metric. Its samples follow. A metric may come once in a page.
    pub fn family(&mut self, metric: &Metric) -> MetricFamily<'_> {
        let Metric { name, kind, help, .. } = metric;
        debug_assert!(self.metrics.iter().all(|known| known.name != *name), "{name} is written twice");
        self.metrics.push(*metric);
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.word());
        MetricFamily { text: &mut self.text, metric: *metric }
    }

    /// Writes a metric that has one value and no labels.
    pub fn single(&mut self, metric: &Metric, value: impl Display) {
        self.family(metric).sample(&[], value);
    }

    /// The metrics that were written so far, in order.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The page.
    pub fn into_string(self) -> String {
        self.text
    }
}

/// A metric whose samples are being written.
#[derive(Debug)]
pub struct MetricFamily<'a> {
    text: &'a mut String,
    metric: Metric,
}

impl MetricFamily<'_> {
    /// Writes the value for these label values, which are in the order of [`Metric::labels`].
    pub fn sample(&mut self, labels: &[&str], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Writes a histogram for these label values.
    pub fn histogram(&mut self, labels: &[&str], histogram: &Histogram) {
        let mut total = 0;
        for (bound, count) in histogram.buckets() {
            total += count;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.line("_bucket", labels, Some(&bound), total);
        }
        self.line("_sum", labels, None, histogram.sum());
        self.line("_count", labels, None, total);
    }

    fn line(&mut self, end: &str, labels: &[&str], bound: Option<&str>, value: impl Display) {
        let Metric { name, labels: names, .. } = self.metric;
        debug_assert_eq!(names.len(), labels.len(), "{name} has other labels");
        let pairs = names.iter().copied().zip(labels.iter().copied()).chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{name}{end}");
        for (name, value) in pairs {
            let _ = write!(self.text, "{separator}{name}=\"{}\"", escaped(value));
            separator = ',';
        }
        let _ = writeln!(self.text, "{} {value}", if separator == ',' { "}" } else { "" });
    }
}

/// Escapes the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_format_of_prometheus() {
        let mut page = MetricsText::default();
        page.single(&Metric::gauge("a_pages", "Pages \\ of\na pool."), 7);
        let mut family = page.family(&Metric::counter("b_total", "Requests.").by(&["peer", "way"]));
        family.sample(&["x\"y\\z\n", "to"], 1);
        family.sample(&["", "from"], 2.5);
        let histogram = Histogram::seconds(&[0.5, 1.0]);
        [0.25, 0.5, 0.75, 3.0].into_iter().for_each(|value| histogram.add(value));
        page.family(&Metric::histogram("c_seconds", "Times.")).histogram(&[], &histogram);
        let names: Vec<_> = page.metrics().iter().map(|metric| metric.name).collect();
        assert_eq!(names, ["a_pages", "b_total", "c_seconds"]);
        let expect = "# HELP a_pages Pages \\\\ of\\na pool.\n# TYPE a_pages gauge\na_pages 7\n\
                      # HELP b_total Requests.\n# TYPE b_total counter\n\
                      b_total{peer=\"x\\\"y\\\\z\\n\",way=\"to\"} 1\nb_total{peer=\"\",way=\"from\"} 2.5\n\
                      # HELP c_seconds Times.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.5\"} 2\n\
                      c_seconds_bucket{le=\"1\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\nc_seconds_sum 4.5\nc_seconds_count 4\n";
        assert_eq!(page.into_string(), expect);
    }
}
