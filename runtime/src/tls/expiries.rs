//! When the certificates of this process end, for its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::metrics::{Metric, MetricsText};
use rustls::sign::CertifiedKey;

use super::files::expiry;

const EXPIRY: Metric = Metric::gauge(
    "baton_tls_certificate_expiry_timestamp_seconds",
    "End of the validity of the own certificate that is in use, in seconds since 1970. It has no values without TLS.",
)
.by(&["use"]);

/// The end of one certificate, in seconds since 1970; 0 without one. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CertificateExpiry(Arc<AtomicU64>);

impl CertificateExpiry {
    /// This certificate is in use now.
    pub(super) fn set(&self, certified: &CertifiedKey) {
        let end = expiry(&certified.cert).map_or(0, |(end, _)| end.as_secs());
        self.0.store(end, Ordering::Relaxed);
    }
}

/// The ends of the certificates of a process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct CertificateExpiries {
    /// The certificate of the HTTP ports.
    pub(crate) http: CertificateExpiry,
    /// The certificate of the link.
    pub(crate) link: CertificateExpiry,
}

impl CertificateExpiries {
    /// Writes the metric.
    pub fn write(&self, page: &mut MetricsText) {
        let mut family = page.family(&EXPIRY);
        for (purpose, expiry) in [("http", &self.http), ("link", &self.link)] {
            let end = expiry.0.load(Ordering::Relaxed);
            if end > 0 {
                family.sample(&[purpose], end);
            }
        }
    }
}
